"""Claim: a supernet split by gradient matching ranks architectures better than one supernet, and than random splits.

Hu, Wang, Hong, Li, Hsieh, Feng. Generalizing Few-Shot NAS with Gradient Matching. 2022.
https://arxiv.org/abs/2203.15207

All supernets are trained on uniformly sampled paths, for the same number of steps in total: one for 140 epochs; four
in a tree that is split after 20 and 40 epochs of 60; five by Few-Shot, split after 20 epochs of 44. Sixteen random
cells are ranked by inherited weights on the validation data; the truth is their test accuracy after training alone,
over three seeds. The best of 100 paths, shared out over an arm's supernets, on the held-out part of the training data
is the answer. Nothing is tuned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from random import Random
from typing import Any

import numpy as np
import torch

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import ALL_CONV, clearly_above, micro_data, micro_space, retrained, searched, spread
from archipel.core.decision import Arch
from archipel.search.differentiable.gm_nas import gm_nas
from archipel.search.differentiable.gradient_matching import GradientMatching, training_batches
from archipel.search.differentiable.loop import DifferentiableSearch, run_epoch
from archipel.search.differentiable.sampling import BestOfPaths, SampledPaths
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.split_search import SplitSearch
from archipel.search.metrics import kendall_tau
from archipel.spaces.nb201_codec import NB201Codes

GM, RANDOM_SPLIT, FEW_SHOT, ONE_SHOT = "gradient matching", "random halves", "few-shot", "one-shot"
RANDOM, CONV = "random cells", "all conv3x3"
FOURS, SUPERNETS = (GM, RANDOM_SPLIT), (GM, RANDOM_SPLIT, FEW_SHOT, ONE_SHOT)
PHASE, FEW_SHOT_PHASE, BATCHES, SAMPLES, CELLS, SEEDS = 20, 24, 10, 100, 16, 3
RATE = {"batch_size": 40, "lr": 0.1, "lr_min": 0.0}


def _strategy(arm: str) -> DifferentiableSearch:
    """Each trains 7 PHASE epochs in total (140), Few-Shot one and five of its own length."""
    if arm == ONE_SHOT:
        return DifferentiableSearch(
            arch_gradient=SampledPaths(), select=BestOfPaths(SAMPLES), schedule=Schedule(7 * PHASE, **RATE)
        )
    if arm == FEW_SHOT:
        schedule = Schedule(PHASE + FEW_SHOT_PHASE, **RATE)
        return gm_nas([PHASE], splitter="few-shot", samples=SAMPLES // 5, schedule=schedule)
    splitter = "gradient" if arm == GM else "random"
    schedule = Schedule(3 * PHASE, **RATE)
    return gm_nas(
        [PHASE, 2 * PHASE], splitter=splitter, batches=BATCHES, samples=SAMPLES // 4, schedule=schedule
    )  # fmt: skip


def _cells() -> list[Arch]:
    rng = Random(94)
    return [NB201Codes().sample(rng) for _ in range(CELLS)]


def _truth() -> list[float]:
    """Test accuracy of each random cell after training alone, over three seeds."""
    return [float(np.mean([retrained(cell, seed)[1] for seed in range(SEEDS)])) for cell in _cells()]


def _matching(search: SplitSearch, seed: int) -> dict[str, float]:
    """Whether the first division separates gradients on batches and paths that it was not made on, and what it cost."""
    whole = search.parts[0]
    assert whole.split is not None
    splitter = GradientMatching(batches=BATCHES)
    other = list(training_batches(whole.state, BATCHES, seed + 1_000))
    torch.manual_seed(seed + 1_000)
    whole.state.supernet.train()
    D = splitter.distances(whole.state, whole.gradient, whole.split.row, other)
    assert D is not None
    side = torch.tensor([i in whole.split.groups[0] for i in range(len(D))])
    same = (side[:, None] == side) & ~torch.eye(len(D), dtype=torch.bool)
    within, between = float(D[same].mean()), float(D[side[:, None] != side].mean())
    began = time.thread_time()
    splitter.split(whole.state, whole.gradient, seed, None)
    scored = time.thread_time()
    run_epoch(whole.state, whole.gradient, 0, seed)
    return {
        "within": within,
        "between": between,
        "score s": scored - began,
        "epoch s": time.thread_time() - scored,
    }


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """How an arm's supernets rank, and what its answer reaches."""
    torch.set_num_threads(1)
    if arm == RANDOM:
        val, test = np.array([retrained(cell, seed) for cell in _cells()]).T
        return Measurement(float(val.mean()), {"test": float(test.mean()), "between cells": float(test.std(ddof=1))})
    if arm == CONV:
        val, test = retrained(ALL_CONV, seed)
        return Measurement(val, {"test": test})
    search, cell = searched(_strategy(arm), micro_space(), micro_data(), seed)
    scores = search.shared_scores(_cells())
    assert scores is not None
    figures = {"tau": kendall_tau(_truth(), scores)}
    if isinstance(search, SplitSearch):
        figures |= {"epochs": float(search.trained_epochs), "supernets": float(len(search.leaves))}
        if arm in FOURS:
            figures |= _matching(search, seed)
    else:
        figures |= {"epochs": float(len(search.log)), "supernets": 1.0}
    val, test = retrained(cell, seed)
    return Measurement(val, {**figures, "test": test})


# --- checks -----------------------------------------------------------------------------------------------------------


def equally_trained(t: Table) -> tuple[bool, str]:
    epochs = {a: t.values(a, "epochs") for a in SUPERNETS}
    text = ", ".join(f"{a}: {t.mean(a, 'epochs'):.0f} in {t.mean(a, 'supernets'):.0f} supernet(s)" for a in SUPERNETS)
    return len(set(np.concatenate(list(epochs.values())))) == 1, text


def gradients_differ_between_groups(t: Table) -> tuple[bool, str]:
    """In every seed."""
    within, between = t.values(GM, "within"), t.values(GM, "between")
    shares = ", ".join(f"{a} {t.mean(a, 'within'):.3f} within, {t.mean(a, 'between'):.3f} between" for a in FOURS)
    return bool((within < between).all()), shares


def ranks_as_well(other: str, t: Table) -> tuple[bool, str]:
    return t.mean(GM, "tau") >= t.mean(other, "tau"), f"{spread(t, GM, 'tau')}, {spread(t, other, 'tau')}"


def above_random(t: Table) -> tuple[bool, str]:
    holds, text = clearly_above(t, GM, RANDOM, "test")
    return holds, f"{text}; between random cells {t.mean(RANDOM, 'between cells'):.4f}"


def answer_is_best(t: Table) -> tuple[bool, str]:
    others = [a for a in SUPERNETS if a != GM]
    text = ", ".join(spread(t, a, "test") for a in SUPERNETS)
    return all(t.mean(GM, "test") >= t.mean(a, "test") for a in others), text


def beats_all_conv(t: Table) -> tuple[bool, str]:
    return t.mean(GM, "test") > t.mean(CONV, "test"), f"{spread(t, GM, 'test')}, {spread(t, CONV, 'test')}"


def score_is_cheap(t: Table) -> tuple[bool, str]:
    """A division costs less than the epochs that a supernet trains between two."""
    cost, epoch = t.mean(GM, "score s"), t.mean(GM, "epoch s")
    return cost < PHASE * epoch, f"{cost:.2f} s a division, {epoch:.3f} s an epoch, {PHASE} epochs between divisions"


CLAIM = Claim(
    slug="gm-nas",
    statement="Splitting a supernet where gradients of shared weights disagree gives supernets that rank architectures "
    "better than one supernet, random splits or exhaustive ones, at equal training in total.",
    scale=f"Micro-NB201 on noisy digits (400/400/997), C = 8, {7 * PHASE} epochs of 5 steps in total, R = {BATCHES}; "
    f"{CELLS} random cells, truth from {SEEDS} trainings each.",
    arms=[
        ClaimArm(GM, "method"),
        ClaimArm(ONE_SHOT, "untreated"),
        ClaimArm(RANDOM_SPLIT, "untreated"),
        ClaimArm(FEW_SHOT, "rival"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("All supernets of an arm were trained equally long in total", equally_trained),
        Check(
            "Gradients differ more between groups than within, on new batches and paths",
            gradients_differ_between_groups,
        ),
        Check("It ranks at least as well as one supernet", partial(ranks_as_well, ONE_SHOT)),
        Check("It ranks at least as well as random halves", partial(ranks_as_well, RANDOM_SPLIT)),
        Check("Its cell is clearly above the mean random cell", above_random),
        Check("It ranks at least as well as Few-Shot", partial(ranks_as_well, FEW_SHOT), False),
        Check("Its cell is the best of the four ways", answer_is_best, False),
        Check("Its cell is better than convolutions everywhere", beats_all_conv, False),
        Check("A division costs less than the epochs between two", score_is_cheap, False),
    ],
    code=(
        "archipel.claims.micro",
        "archipel.search.differentiable.gradient_matching",
        "archipel.search.differentiable.sampling",
        "archipel.search.differentiable.split_part",
        "archipel.search.differentiable.split_search",
        "archipel.search.differentiable.splitting",
    ),
)
