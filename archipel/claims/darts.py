"""Claim: the gradient of a mixture of operations finds cells that train better than random ones.

Liu, Simonyan, Yang. DARTS: Differentiable Architecture Search. 2018. https://arxiv.org/abs/1806.09055

Twice: on the micro network, where derived cells are trained here, and at real size, where the cell that a short search
on CIFAR-10 derives is looked up among the 15,625 fully trained ones of NAS-Bench-201 (whose accuracy no search sees).
There, published searches are known to drift to skip connections; four later methods, which say that they mend this, are
searched beside them. All searches are shortened, and otherwise take the
published settings of DARTS but for the learning rate of the logits, which is raised so that Adam can move them as far
as in the published number of steps; PC-DARTS also keeps its share of warm-up. Nothing is tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import (
    ALL_CONV,
    clearly_above,
    micro_data,
    micro_space,
    random_retrained,
    retrained,
    searched,
    spread,
)
from archipel.core.decision import Arch
from archipel.data.dataset import Dataset
from archipel.data.load import load
from archipel.search import tables
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.darts_pt import darts_pt
from archipel.search.differentiable.dropnas import dropnas
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.pc_darts import pc_darts
from archipel.search.differentiable.rarts import rarts
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.small_temperature_darts import small_temperature_darts
from archipel.search.metrics import rank_from_worst
from archipel.search.strategy import Strategy
from archipel.spaces.nb201 import NB201, conv_bn
from archipel.spaces.nb201_codec import OPS, arch_of

FIRST, SECOND, PARTIAL = "DARTS, first order", "DARTS, second order", "PC-DARTS, K=4"
REMOVAL, COLD, SPLIT, DROP = "DARTS-PT", "small temperature", "RARTS", "DropNAS"
RANDOM, CONV, BEST = "random", "all conv3x3", "best of the table"
SEARCHES = (FIRST, SECOND, PARTIAL)
LATER = (REMOVAL, COLD, SPLIT, DROP)  # at real size only
TRAIN, VAL = 4_000, 1_000  # images of CIFAR-10; half of the former for the logits
# 3e-4 in 50 epochs of 390 steps moves a logit by up to 5.9; so do these in 372 and 200 steps.
REAL = Schedule(epochs=12, batch_size=64, alpha_lr=1.6e-2)
MICRO = Schedule(epochs=40, batch_size=40, alpha_lr=3e-2)
WARMUP = 0.3
ONE_LEVEL: dict[str, Any] = {"alpha_share": 0.0, "weight_decay": 0.0, "alpha_decay": 0.0}  # it decays on its own
DROP_RATE = 0.045  # as in the claim of DropNAS: 0.21 for each of two operations


@lru_cache(maxsize=1)
def _cifar() -> Dataset:
    return load("cifar10", limit=TRAIN + VAL, val_fraction=VAL / (TRAIN + VAL))


@lru_cache(maxsize=1)
def _trained() -> tables.Table:
    return tables.NB201Table().only("accuracy")


def _later(arm: str, schedule: Schedule) -> Strategy:
    """Later methods, in as many steps as DARTS; what they add comes on top (the tuning between removals)."""
    if arm == REMOVAL:
        return darts_pt(tune=1, schedule=schedule)
    if arm == COLD:
        return small_temperature_darts(schedule=schedule)
    if arm == SPLIT:
        return rarts(schedule=schedule)
    return dropnas(r=DROP_RATE, schedule=replace(schedule, epochs=schedule.epochs // 2, **ONE_LEVEL))


def _strategy(arm: str, schedule: Schedule) -> DifferentiableSearch:
    if arm == PARTIAL:
        return pc_darts(4, schedule=replace(schedule, warmup=round(WARMUP * schedule.epochs)))
    return darts(1 if arm == FIRST else 2, schedule)


def _real_space(data: Dataset) -> NB201:
    """The benchmark's three stages, narrower (C = 8), shallower (N = 1) and at half the resolution."""
    return NB201(data.example(), C=8, N=1, stem=partial(conv_bn, stride=2))


def _looked_up(arch: Arch) -> dict[str, float]:
    """Fully trained accuracy, the share of cells that are better, and how often the cell has each operation."""
    accuracy, everyone = _trained().value(arch, "accuracy"), _trained().column("accuracy")
    better = 1.0 - rank_from_worst(accuracy, everyone) / len(everyone)
    return {"trained": accuracy, "p random better": better, **{op: float(list(arch.values()).count(op)) for op in OPS}}


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What an arm's cell reaches in the table, and what its cell for the micro network reaches there."""
    torch.set_num_threads(1)
    everyone = _trained().column("accuracy")
    if arm == RANDOM:
        val, test, _ = random_retrained(seed)
        return Measurement(val, {"trained": float(everyone.mean()), "micro test": test})
    if arm in (CONV, BEST):
        cell = ALL_CONV if arm == CONV else arch_of(list(_trained().keys())[everyone.argmax()])  # type: ignore[arg-type]
        val, test = retrained(cell, seed)
        return Measurement(val, {**_looked_up(cell), "micro test": test})
    if arm in LATER:
        real, cell = searched(_later(arm, REAL), _real_space(_cifar()), _cifar(), seed)  # type: ignore[arg-type]
        return Measurement(0.0, {**_looked_up(cell), **{k: real.log[-1][k] for k in ("mixture", "one_hot", "gap")}})
    real, cell = searched(_strategy(arm, REAL), _real_space(_cifar()), _cifar(), seed)
    small, micro_cell = searched(_strategy(arm, MICRO), micro_space(C=16), micro_data(), seed)
    val, test = retrained(micro_cell, seed)
    gaps = {k: real.log[-1][k] for k in ("mixture", "one_hot", "gap", "entropy")}
    return Measurement(val, {**_looked_up(cell), **gaps, "micro test": test, "micro gap": small.log[-1]["gap"]})


# --- checks -----------------------------------------------------------------------------------------------------------


def beats_random(arm: str, figure: str, t: Table) -> tuple[bool, str]:
    return clearly_above(t, arm, RANDOM, figure)


def second_is_better(t: Table) -> tuple[bool, str]:
    holds = all(t.mean(SECOND, f) > t.mean(FIRST, f) for f in ("trained", "micro test"))
    return holds, "; ".join(f"{f}: {spread(t, SECOND, f)}, {spread(t, FIRST, f)}" for f in ("trained", "micro test"))


def cut_is_cheap(t: Table) -> tuple[bool, str]:
    """Half of the mixture's accuracy survives the cut without retraining."""
    holds = all(t.mean(a, "one_hot") > 0.5 * t.mean(a, "mixture") for a in SEARCHES)
    cuts = (f"{spread(t, a, 'mixture')} to {t.mean(a, 'one_hot'):.4f} ± {t.std(a, 'one_hot'):.4f}" for a in SEARCHES)
    return holds, "; ".join(cuts) + "; micro gap: " + ", ".join(spread(t, a, "micro gap") for a in SEARCHES)


def better_than_most(t: Table) -> tuple[bool, str]:
    shares = "; ".join(f"{a} {', '.join(f'{p:.3f}' for p in t.values(a, 'p random better'))}" for a in SEARCHES)
    return max(t.mean(a, "p random better") for a in (FIRST, SECOND)) < 0.5, f"by seed: {shares}"


def no_skip_collapse(t: Table) -> tuple[bool, str]:
    counts = "; ".join(
        f"{a}: " + ", ".join(f"{t.mean(a, op):.1f} {op}" for op in OPS if t.mean(a, op)) for a in (*SEARCHES, BEST)
    )
    return max(t.mean(a, "skip") for a in (FIRST, SECOND)) < 3, counts


def partial_is_better(t: Table) -> tuple[bool, str]:
    return t.mean(PARTIAL, "trained") > t.mean(
        FIRST, "trained"
    ), f"{spread(t, PARTIAL, 'trained')}, {spread(t, FIRST, 'trained')}"


def later_are_better(t: Table) -> tuple[bool, str]:
    """Each of the later methods, than first order."""
    texts = ", ".join(spread(t, a, "trained") for a in (*LATER, FIRST))
    return all(t.mean(a, "trained") > t.mean(FIRST, "trained") for a in LATER), texts


def later_beat_random(t: Table) -> tuple[bool, str]:
    texts = ", ".join(spread(t, a, "trained") for a in (*LATER, RANDOM))
    return all(t.mean(a, "trained") > t.mean(RANDOM, "trained") for a in LATER), texts


def beats_all_conv(t: Table) -> tuple[bool, str]:
    texts = [f"{f}: " + ", ".join(spread(t, a, f) for a in (FIRST, SECOND, CONV)) for f in ("trained", "micro test")]
    wins = [t.mean(a, f) > t.mean(CONV, f) for a in (FIRST, SECOND) for f in ("trained", "micro test")]
    return all(wins), "; ".join(texts) + f"; best of the table {t.mean(BEST, 'trained'):.4f}"


CLAIM = Claim(
    slug="darts",
    statement="Descending on the logits of a mixture of all operations finds cells that train better than random ones.",
    scale=f"Real size: {TRAIN} CIFAR-10 images, {REAL.epochs} epochs, NAS-Bench-201 cells in three stages (C = 8, "
    f"N = 1, 16x16 pixels), answers looked up fully trained. Micro: noisy digits, {MICRO.epochs} epochs, retrained.",
    arms=[
        ClaimArm(FIRST, "method"),
        ClaimArm(PARTIAL, "rival"),
        *(ClaimArm(a, "rival") for a in LATER),
        ClaimArm(SECOND, "method"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
        ClaimArm(BEST, "reference"),
    ],
    measure=measure,
    checks=[
        Check("Micro: first order beats the average random cell", partial(beats_random, FIRST, "micro test")),
        Check("Micro: second order beats the average random cell", partial(beats_random, SECOND, "micro test")),
        Check("Real size: first order beats the average random cell", partial(beats_random, FIRST, "trained")),
        Check("Real size: second order beats the average random cell", partial(beats_random, SECOND, "trained")),
        Check("Real size: fewer than half of all cells are better than the derived ones", better_than_most, False),
        Check("Real size: fewer than half of the operations are skip connections", no_skip_collapse, False),
        Check("Second order is better than first order", second_is_better, False),
        Check("Half of the mixture's accuracy survives the cut to one cell", cut_is_cheap, False),
        Check("Real size: PC-DARTS is better than first order", partial_is_better, False),
        Check("Real size: each of the later methods is better than first order", later_are_better, False),
        Check("Real size: each of the later methods is better than the average random cell", later_beat_random, False),
        Check("DARTS is better than convolutions everywhere", beats_all_conv, False),
    ],
    code=(
        "archipel.claims.micro",
        "archipel.search.differentiable.arch_gradient",
        "archipel.search.differentiable.loop",
        "archipel.search.differentiable.mix",
        "archipel.search.differentiable.pc_darts",
        "archipel.search.differentiable.select",
        "archipel.search.differentiable.state",
        "archipel.spaces.nb201",
    ),
)
