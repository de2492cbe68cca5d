"""Claim: some common habits of supernet training, not the search, decide how well the supernet ranks its networks.

Yu, Ranftl, Salzmann. How to Train Your Super-Net: An Analysis of Training Heuristics in Weight-Sharing NAS. 2020.
https://arxiv.org/abs/2003.04276

Every arm changes one factor of the recommended profile and ranks the same 20 random networks of the space of widths of
:mod:`archipel.claims.elastic_truth`, by the mean of two supernets a seed. The learning rate is tuned for all arms alike
on the mean accuracy by inherited weights on the validation split; three more arms hold it. Those judge the same weights
by tracked batch-norm statistics, too, which is the comparison with nothing else changed. The op space of near-equal
blocks is ranked by the recommended profile only.

Half of the data at the same number of epochs means half of the steps, and fair sampling four paths a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch

from archipel.claims.elastic_truth import (
    BATCH,
    LEARNING_RATES,
    OPS,
    SUPERNET_EPOCHS,
    WIDTHS,
    digits,
    full_truth,
    sampled_truth,
    space,
    widths_host,
)
from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.core.storage import Checkpoints
from archipel.search.metrics import kendall_tau, p_surpass_random, rank_from_worst, spearman
from archipel.search.oneshot.factors import Factors
from archipel.search.oneshot.supernet_heuristics import factor_study

BATCH_STATS, TRACKED, RECALIBRATED = "batch statistics", "tracked statistics", "recalibrated statistics"
FAIR, HALF, SHORT, RANDOM = "fair sampling", "half of the data", "a fifth of the steps", "random"
HELD = {f"lr {lr:g}": lr for lr in LEARNING_RATES}
CHANGED: dict[str, tuple[str, Any]] = {
    TRACKED: ("batch_norm", "tracked"),
    RECALIBRATED: ("batch_norm", "recalibrated"),
    FAIR: ("sampling", "fairnas"),
    HALF: ("data", 0.5),
    SHORT: ("epochs", SUPERNET_EPOCHS // 5),
}
TOLERANCE = 0.01  # of the sparse tau: with 397 test images and two seeds, 0.001 is less than one image
DRAWS = 10


@cache
def _finished(lr: float) -> Checkpoints:
    """Supernets of this process, so that the profile is not trained again for every factor."""
    return Checkpoints()


def _row(factor: str | None, value: Any, lr: float, seed: int, where: str = WIDTHS) -> dict[str, float]:
    """Means over two supernets with one factor off the recommended profile."""
    study = factor_study(
        widths_host if where == WIDTHS else space(where),
        digits().without_test(),
        sampled_truth(where, seed),
        {} if factor is None else {factor: [value]},
        Factors(epochs=SUPERNET_EPOCHS, batch_size=BATCH, lr=lr),
        seeds=(2 * seed, 2 * seed + 1),
        tolerance=TOLERANCE,
        draws=DRAWS,
        population=list(full_truth(where).mean),
        checkpoints=_finished(lr) if where == WIDTHS else None,
    )
    row = study.table()[-1]  # after those of a random architecture and of the profile
    figures = {"accuracy": "accuracy", "tau": "tau", "sparse tau": "sparse_tau", "p > random": "p_random",
               "picked": "picked_accuracy"}  # fmt: skip
    return {name: float(row[key]) for name, key in figures.items()} | {"ceiling": float(study.ceiling or 0.0)}


def _random(seed: int) -> dict[str, float]:
    """What a random architecture reaches, and what a random order comes to."""
    truth, everyone = sampled_truth(WIDTHS, seed), full_truth(WIDTHS).mean
    order = np.random.default_rng(seed).permutation(len(truth.archs))
    p = [p_surpass_random(rank_from_worst(float(a), everyone), len(everyone), DRAWS) for a in truth.mean]
    return {"tau": kendall_tau(truth.mean, order), "p > random": float(np.mean(p)), "picked": float(truth.mean.mean()),
            "best": float(truth.mean.max()), "ceiling": float(truth.ceiling or 0.0)}  # fmt: skip


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """How the supernets of an arm rank; ``accuracy`` is by inherited weights on the validation split."""
    torch.set_num_threads(1)
    if arm == RANDOM:
        return Measurement(0.0, _random(seed))  # nothing is trained that a learning rate could change
    lr: float = HELD[arm] if arm in HELD else setting["lr"]
    figures = _row(*CHANGED.get(arm, (None, None)), lr, seed)
    if arm in HELD:
        tracked = _row(*CHANGED[TRACKED], lr, seed)
        figures |= {f"tracked {name}": tracked[name] for name in ("accuracy", "tau", "picked")}
    validation = figures["accuracy"]
    if arm == BATCH_STATS:
        figures |= {f"{OPS} {name}": value for name, value in _row(None, None, lr, seed, OPS).items()}
    return Measurement(validation, figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def _spread(t: Table, arm: str, figure: str) -> str:
    return f"{arm} {t.mean(arm, figure):.3f} ± {t.std(arm, figure):.3f}"


def tracked_is_lower(figure: str, t: Table) -> tuple[bool, str]:
    """In the mean over seeds; says in how many of them, and the standard error of the paired difference."""
    gap = t.values(BATCH_STATS, figure) - t.values(TRACKED, figure)
    text = f"{_spread(t, BATCH_STATS, figure)}, {_spread(t, TRACKED, figure)}; lower in {int((gap > 0).sum())} of "
    text += f"{len(gap)} seeds, by {gap.mean():.3f} (SE {gap.std(ddof=1) / len(gap) ** 0.5:.3f})"
    return bool(gap.mean() > 0), text


def tracked_is_lower_on_the_same_weights(t: Table) -> tuple[bool, str]:
    pairs = [(a, f) for f in ("accuracy", "tau") for a in HELD]
    text = "; ".join(f"{f}, {_spread(t, a, f)} to {t.mean(a, f'tracked {f}'):.3f}" for a, f in pairs)
    return all(t.mean(a, f) > t.mean(a, f"tracked {f}") for a, f in pairs), text


def accuracy_and_tau_disagree(t: Table) -> tuple[bool, str]:
    """The learning rate of the highest supernet accuracy is not that of the highest tau."""
    best = {f: max(HELD, key=lambda a: t.mean(a, f)) for f in ("accuracy", "tau")}
    text = "; ".join(f"{f}: " + ", ".join(_spread(t, a, f) for a in HELD) for f in best)
    return best["accuracy"] != best["tau"], text


def tau_tells_more(t: Table) -> tuple[bool, str]:
    """Rank correlation over arms and seeds with the accuracy of the picked network, less the mean of the seed."""
    arms = [*CHANGED, *HELD]  # one of the latter is the profile as tuned
    picked = np.concatenate([t.values(a, "picked") - t.values(RANDOM, "picked") for a in arms])
    known = {f: spearman(picked, np.concatenate([t.values(a, f) for a in arms]))
             for f in ("accuracy", "tau", "sparse tau")}  # fmt: skip
    return known["sparse tau"] > known["accuracy"], ", ".join(f"{f} {v:.2f}" for f, v in known.items())


def near_ceiling(t: Table) -> tuple[bool, str]:
    """Within 0.15 of the tau between stand-alone seeds."""
    text = f"{_spread(t, BATCH_STATS, 'tau')}, between stand-alone seeds {t.mean(BATCH_STATS, 'ceiling'):.3f}, "
    holds = t.mean(BATCH_STATS, "tau") >= t.mean(BATCH_STATS, "ceiling") - 0.15
    return holds, text + f"random order {t.mean(RANDOM, 'tau'):.3f}"


def picks_well(t: Table) -> tuple[bool, str]:
    """By 8 points."""
    text = f"{_spread(t, BATCH_STATS, 'picked')}, {_spread(t, RANDOM, 'picked')}, best {t.mean(RANDOM, 'best'):.3f}"
    return t.mean(BATCH_STATS, "picked") >= t.mean(RANDOM, "picked") + 0.08, text


def changes_little(t: Table) -> tuple[bool, str]:
    """Tau within 0.1 of the profile's."""
    arms = (RECALIBRATED, FAIR, HALF, SHORT)
    text = "tau (accuracy): " + ", ".join(f"{_spread(t, a, 'tau')} ({t.mean(a, 'accuracy'):.3f})" for a in arms)
    return all(abs(t.mean(a, "tau") - t.mean(BATCH_STATS, "tau")) <= 0.1 for a in arms), text


def equal_blocks_are_hard(t: Table) -> tuple[bool, str]:
    """Below 0.3."""
    text = f"{_spread(t, BATCH_STATS, 'ops tau')}, between stand-alone seeds {t.mean(BATCH_STATS, 'ops ceiling'):.3f}"
    return t.mean(BATCH_STATS, "ops tau") < 0.3, text


CLAIM = Claim(
    slug="supernet-heuristics",
    statement="How a supernet is trained decides how well it ranks: batch-norm statistics tracked over paths lower its "
    "accuracy and its rank correlation, and its accuracy alone does not tell how well it ranks.",
    scale="Digits with noise of 0.25 (1000/400/397); perceptrons of widths {4, 8, 16, 64}³; 1500 steps a supernet, two "
    "supernets a seed; 20 random networks a seed, each trained alone for 250 steps under two seeds.",
    arms=[
        ClaimArm(BATCH_STATS, "method"),
        ClaimArm(TRACKED, "untreated"),
        *(ClaimArm(a, "rival") for a in (RECALIBRATED, FAIR, HALF, SHORT)),
        *(ClaimArm(a, "reference") for a in HELD),
        ClaimArm(RANDOM, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("Tracked statistics lower the supernet's accuracy", lambda t: tracked_is_lower("accuracy", t)),
        Check("Tracked statistics lower tau", lambda t: tracked_is_lower("tau", t)),
        Check("They lower both on the same weights at each learning rate",
              tracked_is_lower_on_the_same_weights, False),
        Check("The learning rate of the highest accuracy is not that of the highest tau",
              accuracy_and_tau_disagree, False),
        Check("Sparse tau goes along with what is picked more than the supernet's accuracy does",
              tau_tells_more, False),
        Check("Tau of the recommended profile is within 0.15 of the noise ceiling", near_ceiling, False),
        Check("It picks a network 8 points above the mean random one", picks_well, False),
        Check("Recalibration, fair sampling, half data or a fifth of the steps change tau by 0.1 at most",
              changes_little, False),
        Check("Among near-equal blocks tau is below 0.3", equal_blocks_are_hard, False),
    ],
    grid=[{"lr": lr} for lr in LEARNING_RATES],
    seeds=3,
    code=(
        "archipel.claims.elastic_truth",
        "archipel.search.live_update",
        "archipel.search.metrics",
        "archipel.search.oneshot.factors",
        "archipel.search.oneshot.samplers",
        "archipel.search.oneshot.shared_evaluation",
        "archipel.search.oneshot.stand_alone",
        "archipel.search.oneshot.supernet_training",
        "archipel.spaces.sharing",
    ),
)  # fmt: skip
