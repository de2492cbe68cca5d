"""Claim: a supernet trained by one uniform path a step ranks networks well enough to pick a good one.

Guo, Zhang, Mu, Heng, Liu, Wei, Sun. Single Path One-Shot Neural Architecture Search with Uniform Sampling. 2019.
https://arxiv.org/abs/1904.00420

In both spaces of :mod:`archipel.claims.elastic_truth`. The untreated arm differs in one thing: every step trains all
paths at once, which is all channels where widths are decided, and the average of all blocks where those are; so their
weights adapt to each other. An arm picks the best by inherited weights, from 20 random networks and (as published, in
the space of widths) by evolution over all. The learning rate is tuned on the mean accuracy by inherited weights on
the validation split, in the mean of both spaces. All accuracies but ``shared`` are stand-alone test accuracies.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from random import Random
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
)
from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.core.choice import Fixed
from archipel.core.decision import Arch, Decision
from archipel.core.space import Space
from archipel.core.supernet import Supernet
from archipel.search.metrics import kendall_tau
from archipel.search.oneshot.factors import Factors
from archipel.search.oneshot.samplers import Sampler
from archipel.search.oneshot.spos import SPOS
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe

SINGLE, ALL_PATHS = "single path", "all paths at once"
RANDOM, LARGEST, BEST = "random architecture", "largest architecture", "best of the 20"
TRAINED = (SINGLE, ALL_PATHS)
GAIN, LEAST_TAU = 0.08, 0.15  # asserted
# Half of the 64 networks at most, so that evolution has something to find.
EVOLUTION: dict[str, Any] = {"population": 10, "generations": 3, "top": 5, "crossover": 5, "mutation": 5}


def _largest(space: Space) -> Arch:
    """Every width at its largest."""
    return {d.name: d.options[-1] for d in space.decisions if isinstance(d, Decision)}


class _AllChannels(SPOS):
    """Every step trains the largest network, of which all others are slices."""

    def _sampler(self, supernet: Supernet, factors: Factors) -> Sampler:
        largest = Fixed(_largest(supernet.space))
        return lambda rng: [largest]


def _searched(arm: str, where: str, lr: float, seed: int) -> SPOS:
    """A finished search that has not seen the test split."""
    kind = _AllChannels if (arm, where) == (ALL_PATHS, WIDTHS) else SPOS
    sampling = "all-paths" if (arm, where) == (ALL_PATHS, OPS) else "uniform"
    strategy = kind(epochs=SUPERNET_EPOCHS, batch_size=BATCH, lr=lr, sampling=sampling, **EVOLUTION)
    strategy.setup(Problem(space(where), rng=Random(seed)))
    strategy.prepare(Context(digits().without_test(), Recipe(), seed=seed))
    return strategy


def _alone(where: str, arch: Arch) -> float:
    everyone = full_truth(where)
    return float(everyone.mean[everyone.archs.index(arch)])


def _figures(strategy: SPOS, where: str, seed: int) -> dict[str, float]:
    """What the arm picks from the random networks and by evolution, and how it ranks the former."""
    truth = sampled_truth(where, seed)
    scores = strategy.shared_scores(truth.archs)
    assert scores is not None  # prepared
    picked = float(truth.mean[int(np.argmax(scores))])
    return {
        "picked": picked,
        "gain": picked - float(truth.mean.mean()),
        "to best": float(truth.mean.max()) - picked,
        "evolved": _alone(where, strategy.found.top(1)[0][0]),
        "tau": kendall_tau(truth.mean, scores),
        "ceiling": float(truth.ceiling or 0.0),
        "shared": float(np.mean(scores)),
    }


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What an arm picks in both spaces; the figures of the near-equal blocks are marked."""
    torch.set_num_threads(1)
    if arm in TRAINED:
        found = {w: _figures(_searched(arm, w, setting["lr"], seed), w, seed) for w in (WIDTHS, OPS)}
        validation = float(np.mean([f["shared"] for f in found.values()]))
        return Measurement(validation, found[WIDTHS] | {f"{OPS} {k}": v for k, v in found[OPS].items()})
    figures: dict[str, float] = {}
    for where in (WIDTHS,) if arm == LARGEST else (WIDTHS, OPS):  # blocks have no order
        truth, mark = sampled_truth(where, seed), "" if where == WIDTHS else f"{OPS} "
        value = {RANDOM: truth.mean.mean(), BEST: truth.mean.max()}.get(arm)
        value = _alone(where, _largest(space(where))) if value is None else value
        figures |= {f"{mark}picked": float(value), f"{mark}gain": float(value - truth.mean.mean())}
        figures[f"{mark}to best"] = float(truth.mean.max() - value)
    return Measurement(0.0, figures)  # nothing is trained that a learning rate could change


# --- checks -----------------------------------------------------------------------------------------------------------


def _by_seed(t: Table, arm: str, figure: str) -> str:
    return f"{t.mean(arm, figure):.3f} ± {t.std(arm, figure):.3f}"


def picks_well(t: Table) -> tuple[bool, str]:
    gains = ", ".join(f"{g:+.3f}" for g in t.values(SINGLE, "gain"))
    text = f"random {_by_seed(t, RANDOM, 'picked')}, picked {_by_seed(t, SINGLE, 'picked')}, best of 20 "
    return t.mean(SINGLE, "gain") >= GAIN, text + f"{_by_seed(t, BEST, 'picked')}; gains by seed {gains}"


def ranks(t: Table) -> tuple[bool, str]:
    taus = ", ".join(f"{v:.2f}" for v in t.values(SINGLE, "tau"))
    text = f"{_by_seed(t, SINGLE, 'tau')} ({taus}), between stand-alone seeds {_by_seed(t, SINGLE, 'ceiling')}"
    return t.mean(SINGLE, "tau") > LEAST_TAU, text


def near_best(t: Table) -> tuple[bool, str]:
    """Within two points of the best of the 20."""
    return t.mean(SINGLE, "to best") <= 0.02, f"below the best by {_by_seed(t, SINGLE, 'to best')}"


def higher(figure: str, other: str, t: Table) -> tuple[bool, str]:
    texts = [f"{arm} {_by_seed(t, arm, figure)}" for arm in (SINGLE, other)]
    return t.mean(SINGLE, figure) > t.mean(other, figure), ", ".join(texts)


def evolution_is_no_worse(t: Table) -> tuple[bool, str]:
    text = f"evolved {_by_seed(t, SINGLE, 'evolved')}, picked of 20 {_by_seed(t, SINGLE, 'picked')}"
    text += f", largest {_by_seed(t, LARGEST, 'picked')}"
    return t.mean(SINGLE, "evolved") >= t.mean(SINGLE, "picked"), text


def equal_blocks_are_hard(t: Table) -> tuple[bool, str]:
    """Below 0.3, where the noise ceiling is low too."""
    text = f"{_by_seed(t, SINGLE, 'ops tau')}, between stand-alone seeds {_by_seed(t, SINGLE, 'ops ceiling')}; gain "
    return t.mean(SINGLE, "ops tau") < 0.3, text + _by_seed(t, SINGLE, "ops gain")


CLAIM = Claim(
    slug="spos",
    statement="A supernet in which every step trains one uniformly drawn path ranks networks well enough that the one "
    "it picks is far better than a random one.",
    scale="Digits with noise of 0.25 (1000/400/397); perceptrons of widths {4, 8, 16, 64}³, and of 27 near-equal "
    "blocks; 1500 steps a supernet; 20 random networks a seed, each trained alone for 250 steps under two seeds.",
    arms=[
        ClaimArm(SINGLE, "method"),
        ClaimArm(ALL_PATHS, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(LARGEST, "trivial"),
        ClaimArm(BEST, "reference"),
    ],
    measure=measure,
    checks=[
        Check("The picked network is better than the mean random one by at least 8 points", picks_well),
        Check("Tau between inherited and stand-alone accuracy is above 0.15", ranks),
        Check("The picked network is within two points of the best of the 20", near_best, False),
        Check("Evolution over all picks no worse a network than a choice of 20", evolution_is_no_worse, False),
        Check("Tau is higher than with all paths at once", partial(higher, "tau", ALL_PATHS), False),
        Check("It picks a better network than with all paths at once", partial(higher, "picked", ALL_PATHS), False),
        Check("It picks a better network than the largest", partial(higher, "picked", LARGEST), False),
        Check("Among near-equal blocks tau is below 0.3", equal_blocks_are_hard, False),
        Check("Among near-equal blocks tau is higher than with all at once",
              partial(higher, "ops tau", ALL_PATHS), False),
    ],
    grid=[{"lr": lr} for lr in LEARNING_RATES],
    seeds=5,
    code=(
        "archipel.claims.elastic_truth",
        "archipel.search.live_update",
        "archipel.search.oneshot.base",
        "archipel.search.oneshot.evolution",
        "archipel.search.oneshot.samplers",
        "archipel.search.oneshot.shared_evaluation",
        "archipel.search.oneshot.stand_alone",
        "archipel.search.oneshot.supernet_training",
        "archipel.spaces.sharing",
    ),
)  # fmt: skip
