"""Claim: a cell that was searched sparse is better when it is sparse than one that was searched dense.

Mousavi, Loni, Alibeigi, Daneshtalab. DASS: Differentiable Architecture Search for Sparse Neural Networks. 2022.
https://arxiv.org/abs/2207.06968

Cells are searched by DASS at 95 % sparsity, and by DARTS in the dense space with the same schedule. Every cell is then
trained dense, pruned in every layer by the magnitude of its weights, and tuned with fixed masks; the epochs are the
same at all sparsities, 0 % included. Nothing is tuned. Four random cells a seed, at the target alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from functools import cache, partial
from random import Random
from typing import Any

import torch
from torch import nn

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import ALL_CONV, clearly_above, micro_data, micro_space, searched, spread
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.dass import dass
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.sparse_training import baked, pruned_and_tuned
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.nb201_codec import Genome, NB201Codes, arch_of, genome_of
from archipel.spaces.sparse_operations import kept, nonzero_macs, nonzero_params, sparse_layers

DASS, DARTS, RANDOM, CONV = "DASS", "DARTS", "random", "all conv3x3"
TARGET = 0.95
SPARSITIES = (0.0, TARGET, 0.98, 0.99)
C, RANDOM_CELLS = 16, 4
SCHEDULE = Schedule(epochs=20, warmup=10, batch_size=40, alpha_lr=9e-3)
RECIPE = Recipe(epochs=8, batch_size=40, optimizer="sgd", lr=0.05, weight_decay=3e-4)


@cache
def _trained(genome: Genome, seed: int) -> nn.Module:
    net = micro_space(C).build(arch_of(genome), seed)
    train(net, micro_data().train, "classification", RECIPE, seed)
    return net


@cache
def _sparse(genome: Genome, sparsity: float, seed: int) -> dict[str, float]:
    """A cell at a sparsity: validation and test accuracy, what it keeps, and whether every layer keeps its share."""
    data = micro_data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # at 99 % small layers keep a single weight
        net = pruned_and_tuned(copy.deepcopy(_trained(genome, seed)), data.train, data.task, RECIPE, sparsity, seed)
    plain = baked(net)
    exact = all(
        int((plain.get_submodule(n).weight != 0).sum()) <= m.nonzeros == kept(m.weight.numel(), 1.0 - sparsity)  # type: ignore[union-attr]
        for n, m in sparse_layers(net).items()
    )
    return {
        "val": evaluate(plain, data.val, data.task)["accuracy"],
        "test": evaluate(plain, data.open_test("claim"), data.task)["accuracy"],
        "params": float(nonzero_params(net)),
        "macs": float(nonzero_macs(net, data.example())),
        "exact": float(exact),
    }


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What an arm's cell reaches at every sparsity."""
    torch.set_num_threads(1)
    if arm == RANDOM:
        rng = Random(seed)
        found = [_sparse(genome_of(NB201Codes().sample(rng)), TARGET, seed) for _ in range(RANDOM_CELLS)]
        val, test = (torch.tensor([f[k] for f in found], dtype=torch.float64) for k in ("val", "test"))
        return Measurement(float(val.mean()), {"test 95%": float(test.mean()), "between cells": float(test.std())})
    if arm == CONV:
        cell = ALL_CONV
    elif arm == DASS:
        space = MicroNB201((1, 8, 8), 10, C=C, operations="sparse")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            cell = searched(dass(TARGET, schedule=SCHEDULE), space, micro_data(), seed)[1]
    else:
        cell = searched(darts(schedule=SCHEDULE), micro_space(C), micro_data(), seed)[1]
    genome = genome_of(cell)
    found = {s: _sparse(genome, s, seed) for s in SPARSITIES}
    figures = {f"test {round(100 * s)}%": f["test"] for s, f in found.items()}
    target = found[TARGET]
    figures |= {"params": target["params"], "macs": target["macs"], "exact": min(f["exact"] for f in found.values())}
    figures["dense params"] = found[0.0]["params"]
    return Measurement(target["val"], figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def at_least(arm: str, other: str, sparsity: int, t: Table) -> tuple[bool, str]:
    figure = f"test {sparsity}%"
    return t.mean(arm, figure) >= t.mean(other, figure), f"{spread(t, arm, figure)}, {spread(t, other, figure)}"


def every_layer_keeps_its_share(t: Table) -> tuple[bool, str]:
    arms = (DASS, DARTS, CONV)
    text = "; ".join(f"{a} {t.mean(a, 'params'):.0f} of {t.mean(a, 'dense params'):.0f} parameters" for a in arms)
    return all(t.mean(a, "exact") == 1.0 for a in arms), f"exactly ⌈kn⌉ weights kept in every layer; {text}"


def ranking_flips(t: Table) -> tuple[bool, str]:
    """Convolutions everywhere are better dense, the searched cell is better at the highest sparsity."""
    gaps = {s: t.mean(DASS, f"test {s}%") - t.mean(CONV, f"test {s}%") for s in (0, 95, 98, 99)}
    text = ", ".join(f"{gap:+.4f} at {s} %" for s, gap in gaps.items())
    return gaps[0] < 0 < gaps[99], f"DASS against all conv3x3: {text}"


def fewer_macs(t: Table) -> tuple[bool, str]:
    text = ", ".join(f"{a} {t.mean(a, 'macs'):.0f}" for a in (DASS, DARTS, CONV))
    return t.mean(DASS, "macs") <= t.mean(CONV, "macs"), f"MACs on non-zeros at 95 %: {text}"


CLAIM = Claim(
    slug="dass",
    statement="Cells that are searched with sparse operations and the pruned network's loss are better at the target "
    "sparsity than cells that are searched dense and pruned.",
    scale=f"Micro-NB201 on noisy digits (400/400/997), C = {C}, {SCHEDULE.epochs} epochs of search, 8 dense and 8 of "
    f"tuning at 0, 95, 98 and 99 % sparsity; {RANDOM_CELLS} random cells a seed.",
    arms=[
        ClaimArm(DASS, "method"),
        ClaimArm(DARTS, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("At the target, DASS is at least as good as DARTS", partial(at_least, DASS, DARTS, 95)),
        Check(
            "At the target, DASS is clearly above the mean random cell",
            lambda t: clearly_above(t, DASS, RANDOM, "test 95%"),
        ),
        Check("Every layer keeps exactly its share", every_layer_keeps_its_share),
        Check("The ranking against convolutions everywhere flips with sparsity", ranking_flips, False),
        Check("At 98 %, DASS is at least as good as DARTS", partial(at_least, DASS, DARTS, 98), False),
        Check("At 99 %, DASS is at least as good as DARTS", partial(at_least, DASS, DARTS, 99), False),
        Check("Dense, DARTS is at least as good as DASS", partial(at_least, DARTS, DASS, 0), False),
        Check("DASS needs no more MACs than convolutions everywhere", fewer_macs, False),
    ],
    code=(
        "archipel.claims.micro",
        "archipel.search.differentiable.sparse_training",
        "archipel.spaces.sparse_operations",
    ),
)
