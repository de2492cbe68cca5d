"""Claim: a supernet that learns from its own earlier states ends in a flatter minimum, and the found cells are as good.

Zhu, Li, Liu, Wang. Improving Differentiable Architecture Search via Self-Distillation. 2023.
https://arxiv.org/abs/2302.05629

DARTS, DARTS with one and with three voting teachers, and DARTS with as much label smoothing as the labels and the vote
of three teachers amount to together (equal mean entropy of the target), since a nearly uniform vote is little else. An
arm with teachers at temperature 1, whose votes are sharper, helps to tell them apart. All searches take the same number
of steps on 400 images for the weights and 400 for the architecture. Nothing is tuned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import numpy as np
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
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.objective import CrossEntropy
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.sd_darts import sd_darts
from archipel.search.differentiable.sharpness import alpha_curvature, sharpness

SCHEDULE = Schedule(epochs=15, batch_size=40, alpha_lr=9e-3)
CLASSES, RHO = 10, 0.05
DARTS, ONE, THREE, SHARP = "DARTS", "one teacher", "three teachers", "three teachers, T = 1"
SMOOTH, RANDOM, CONV = "label smoothing", "random", "all conv3x3"
TEACHERS = {ONE: {"teachers": 1}, THREE: {"teachers": 3}, SHARP: {"teachers": 3, "temperature": 1.0}}


def all_data() -> Dataset:
    """Training and validation images as one set, which the search halves."""
    data = micro_data().without_test()
    both = Split(torch.cat([data.train.x, data.val.x]), torch.cat([data.train.y, data.val.y]))
    return Dataset(data.name, both, data.val, None, data.task, data.classes)


@cache
def taught(arm: str, seed: int) -> tuple[DifferentiableSearch, Arch]:
    return searched(sd_darts(schedule=SCHEDULE, **TEACHERS[arm]), micro_space(), all_data(), seed)


def smoothing_of_entropy(target: float) -> float:
    """The label smoothing whose targets have an entropy of ``target`` nats, by bisection.

    >>> round(smoothing_of_entropy(math.log(10)), 6)
    1.0
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        s = (low + high) / 2
        top, rest = 1 - s + s / CLASSES, s / CLASSES
        found = -top * math.log(top) - (CLASSES - 1) * rest * math.log(rest)
        low, high = (s, high) if found < target else (low, s)
    return high


def target_entropy(search: DifferentiableSearch) -> float:
    """Mean over all epochs; before there is a teacher, the target is the label."""
    return float(np.mean([e["target_entropy"] for e in search.log]))


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    torch.set_num_threads(1)
    if arm == RANDOM:
        val, test, between = random_retrained(seed)
        return Measurement(val, {"test": test, "between cells": between})
    if arm == CONV:
        val, test = retrained(ALL_CONV, seed)
        return Measurement(val, {"test": test})
    extra = {}
    if arm in TEACHERS:
        search, cell = taught(arm, seed)
        entropies = [e["teacher_entropy"] for e in search.log[1:]]
        extra = {"teacher entropy": float(np.mean(entropies)), "target entropy": target_entropy(search)}
    else:
        smoothing = smoothing_of_entropy(target_entropy(taught(THREE, seed)[0])) if arm == SMOOTH else 0.0
        search = darts(schedule=SCHEDULE, objective=CrossEntropy(min(smoothing, 0.999)))
        search, cell = searched(search, micro_space(), all_data(), seed)
        extra = {"smoothing": smoothing} if arm == SMOOTH else {}
    state = search.state
    assert state is not None
    figures = {
        "sharpness": sharpness(state, state.halves[0], RHO),
        "curvature": alpha_curvature(state, state.halves[1]),
        "gap": search.log[-1]["gap"],
        **extra,
    }
    val, test = retrained(cell, seed)
    return Measurement(val, {"test": test, **figures})


# --- checks -----------------------------------------------------------------------------------------------------------


def lower(figure: str, arm: str, other: str, t: Table) -> tuple[bool, str]:
    """In the mean, and with more than half of the seeds."""
    difference = t.values(arm, figure) - t.values(other, figure)
    text = f"{figure}: {spread(t, arm, figure)}, {spread(t, other, figure)}, lower with {(difference < 0).sum()} seeds"
    return bool(difference.mean() < 0 and (difference < 0).mean() > 0.5), text


def not_worse(arm: str, other: str, t: Table) -> tuple[bool, str]:
    """By no more than one standard deviation over seeds, pooled over both arms."""
    sd = float(np.sqrt((t.std(arm, "test") ** 2 + t.std(other, "test") ** 2) / 2))
    return t.mean(arm, "test") >= t.mean(other, "test") - sd, f"{spread(t, arm, 'test')}, {spread(t, other, 'test')}"


def above_random(arm: str, t: Table) -> tuple[bool, str]:
    return clearly_above(t, arm, RANDOM, "test")


def votes_say_something(arm: str, t: Table) -> tuple[bool, str]:
    """Mean entropy of the vote below nine tenths of that of a uniform one."""
    found = t.mean(arm, "teacher entropy")
    return found < 0.9 * math.log(CLASSES), f"{spread(t, arm, 'teacher entropy')} of {math.log(CLASSES):.3f} nats"


CLAIM = Claim(
    slug="sd-darts",
    statement="Distilling a supernet from several of its earlier states makes its loss flatter and the step to one "
    "architecture smaller, and the architecture found is at least as good.",
    scale="Micro-NB201 on noisy digits, C = 8, searched for 15 epochs on 400 + 400 images, retrained for 12 on 400, "
    "tested on 997; sharpness at ρ = 0.05 on the weights' images; 8 random cells a seed.",
    arms=[
        ClaimArm(THREE, "method"),
        ClaimArm(ONE, "method"),
        ClaimArm(SHARP, "method"),
        ClaimArm(DARTS, "untreated"),
        ClaimArm(SMOOTH, "rival"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("Three teachers end flatter than DARTS", partial(lower, "sharpness", THREE, DARTS)),
        Check("One teacher ends flatter than DARTS", partial(lower, "sharpness", ONE, DARTS)),
        Check("Three teachers are not worse than DARTS by one deviation", partial(not_worse, THREE, DARTS)),
        Check("Three teachers end flatter than label smoothing", partial(lower, "sharpness", THREE, SMOOTH), False),
        Check("So do three teachers at temperature 1", partial(lower, "sharpness", SHARP, SMOOTH), False),
        Check("The cut to one cell costs three teachers less than DARTS", partial(lower, "gap", THREE, DARTS), False),
        Check("The loss is less curved in the logits", partial(lower, "curvature", THREE, DARTS), False),
        Check("The votes of three teachers are not nearly uniform", partial(votes_say_something, THREE), False),
        Check("Nor at temperature 1", partial(votes_say_something, SHARP), False),
        Check("Three teachers are clearly above the mean random cell", partial(above_random, THREE), False),
    ],
    code=(
        "archipel.claims.micro",
        "archipel.search.differentiable.sharpness",
        "archipel.spaces.micro_nb201",
    ),
)
