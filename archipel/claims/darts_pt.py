"""Claim: what hurts when it is left out is a better guide than the architecture weight.

Wang, Cheng, Chen, Tang, Hsieh. Rethinking Architecture Selection in Differentiable NAS. 2021.
https://arxiv.org/abs/2108.04392

One supernet a seed, read off in two ways: by its largest weights, and by perturbation with two epochs of training
between decisions. A third supernet has equal weights that never learn (blank), so that selection alone searches. Each
answer is judged twice: in the supernet it came from, where no retraining adds noise (but which perturbation has trained
on), and trained from scratch. Nothing is tuned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

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
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.darts_pt import darts_pt
from archipel.search.differentiable.perturbation import Perturbation
from archipel.search.differentiable.schedule import Schedule

ARGMAX, PT, BLANK = "argmax", "perturbation", "blank perturbation"
RANDOM, CONV = "random", "all conv3x3"
TUNE = 2
# The logits can move as far as in the paper's number of steps; see the claim about DARTS.
SCHEDULE = Schedule(epochs=40, batch_size=40, alpha_lr=3e-2)
FREE = ("skip", "avgpool3x3", "none")  # operations without weights


def agreement(select: Perturbation) -> dict[str, float]:
    """Spearman's ρ of an option's weight and of how much its removal hurts, in the mean over edges.

    An edge on which all removals are equally accurate says nothing about the order and counts as 0.
    """
    rhos: dict[str, list[float]] = {"accuracy": [], "loss": []}
    for entry in select.record:
        for figure, sign in (("accuracy", -1.0), ("loss", 1.0)):
            harm = sign * np.array(list(entry[figure].values()))
            flat = len(set(harm)) == 1
            rhos[figure].append(0.0 if flat else float(spearmanr(entry["weights"], harm)[0]))  # type: ignore[arg-type]
    return {"rho": float(np.mean(rhos["accuracy"])), "rho of loss": float(np.mean(rhos["loss"]))}


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What an arm's cell reaches in its supernet and after retraining."""
    torch.set_num_threads(1)
    if arm == RANDOM:
        val, test, between = random_retrained(seed)
        return Measurement(val, {"test": test, "between cells": between})
    if arm == CONV:
        began = time.thread_time()
        val, test = retrained(ALL_CONV, seed)
        return Measurement(val, {"test": test, "seconds": time.thread_time() - began})
    strategy = darts(schedule=SCHEDULE) if arm == ARGMAX else darts_pt(TUNE, blank=arm == BLANK, schedule=SCHEDULE)
    began = time.thread_time()
    search, cell = searched(strategy, micro_space(), micro_data(), seed)
    seconds = time.thread_time() - began
    shared = search.shared_scores([cell])
    assert shared is not None  # a differentiable search has a supernet
    free = float(sum(op in FREE for op in cell.values()))
    figures = {"supernet": shared[0], "without weights": free, "seconds": seconds}
    if isinstance(search.selection, Perturbation):
        figures["evaluations"] = search.selection.evaluations
        if arm == PT:  # equal weights order nothing
            figures |= agreement(search.selection)
    val, test = retrained(cell, seed)
    return Measurement(val, {"test": test, **figures})


# --- checks -----------------------------------------------------------------------------------------------------------


def weights_do_not_tell(figure: str, t: Table) -> tuple[bool, str]:
    """Below 1 by more than two standard errors."""
    mean, error = t.mean(PT, figure), t.std(PT, figure) / np.sqrt(len(t.values(PT, figure)))
    return mean + 2 * error < 1.0, f"rho {mean:.3f}, SE {error:.3f}"


def not_worse(arm: str, other: str, figure: str, t: Table) -> tuple[bool, str]:
    holds = t.mean(arm, figure) >= t.mean(other, figure)
    return holds, f"{figure}: {spread(t, arm, figure)}, {spread(t, other, figure)}"


def fewer_free_operations(t: Table) -> tuple[bool, str]:
    counts = ", ".join(f"{a} {t.mean(a, 'without weights'):.2f}" for a in (ARGMAX, PT, BLANK))
    return t.mean(PT, "without weights") < t.mean(ARGMAX, "without weights"), counts


def blank_is_as_good(t: Table) -> tuple[bool, str]:
    """By no more than one standard deviation over seeds, pooled over both."""
    sd = float(np.sqrt((t.std(PT, "test") ** 2 + t.std(BLANK, "test") ** 2) / 2))
    text = f"{spread(t, BLANK, 'test')}, {spread(t, PT, 'test')}, pooled {sd:.4f}"
    return abs(t.mean(BLANK, "test") - t.mean(PT, "test")) <= sd, text


def cheaper_than_training_each(t: Table) -> tuple[bool, str]:
    """What selection adds to the search, against training as many networks on their own."""
    added, each = t.mean(PT, "seconds") - t.mean(ARGMAX, "seconds"), t.mean(CONV, "seconds")
    n = t.mean(PT, "evaluations")
    return added < n * each, f"{added:.1f} s for {n:.0f} evaluations and training; {n:.0f} trainings {n * each:.1f} s"


CLAIM = Claim(
    slug="darts-pt",
    statement="Keeping the operation whose removal costs the supernet the most accuracy gives better cells than "
    "keeping the one with the largest architecture weight.",
    scale=f"Micro-NB201 on noisy digits (400/400/997), C = 8, supernets trained for {SCHEDULE.epochs} epochs, {TUNE} "
    "more between decisions, retrained for 12; 8 random cells a seed.",
    arms=[
        ClaimArm(PT, "method"),
        ClaimArm(BLANK, "method"),
        ClaimArm(ARGMAX, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("Weights rank options otherwise than removals do (accuracy)", partial(weights_do_not_tell, "rho")),
        Check("Perturbation is at least as good as argmax after retraining", partial(not_worse, PT, ARGMAX, "test")),
        Check("Perturbation keeps fewer operations without weights than argmax", fewer_free_operations),
        Check("Perturbation is clearly above the mean random cell", lambda t: clearly_above(t, PT, RANDOM, "test")),
        Check(
            "Weights rank options otherwise than removals do (loss)", partial(weights_do_not_tell, "rho of loss"), False
        ),
        Check("In its supernet, too", partial(not_worse, PT, ARGMAX, "supernet"), False),
        Check("Weights that never learnt do as well", blank_is_as_good, False),
        Check(
            "Argmax is clearly above the mean random cell", lambda t: clearly_above(t, ARGMAX, RANDOM, "test"), False
        ),
        Check(
            "Perturbation is at least as good as convolutions everywhere", partial(not_worse, PT, CONV, "test"), False
        ),
        Check("Selection costs less than training every candidate", cheaper_than_training_each, False),
    ],
    code=(
        "archipel.claims.micro",
        "archipel.search.differentiable.perturbation",
        "archipel.search.differentiable.projected",
    ),
)
