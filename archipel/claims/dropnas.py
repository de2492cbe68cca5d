"""Claim: dropping operations at random, group by group, improves a search on one level.

Hong, Li, Zhang, Tang, Wang, Li, Yu. DropNAS: Grouped Operation Dropout for Differentiable Architecture Search. 2020.
https://www.ijcai.org/proceedings/2020/322

Both searches take the same steps on all training data of the micro network, one with and one without dropout. r is such
that 30 % of the operations would be dropped in the mean; otherwise settings are those of the reference code, but for
the learning rate of the logits, at which Adam can move them as far as in the published number of steps. Along the
search with dropout every step is watched: how many operations were kept, and whether a dropped one changed its
probability. Nothing is tuned. Time is that of the processor, in the median over steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
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
from archipel.search.differentiable.arch_gradient import Batch
from archipel.search.differentiable.dropnas import SCHEDULE, DecoupledSteps, dropnas
from archipel.search.differentiable.grouped_dropout import GroupedDropout, expected_kept, feature_similarity
from archipel.search.differentiable.loop import batch
from archipel.search.differentiable.state import SearchState

DROP, ONE, RANDOM, CONV = "DropNAS", "one-level DARTS", "random", "all conv3x3"
RATES = {DROP: 0.045, ONE: 0.0}
GROUPS = (2, 3)
EPOCHS, BATCH, TIMED = 30, 40, 30
ALPHA_LR = 0.04  # 3e-4 in 76 epochs of 520 steps moves a logit by up to 12; so does this in 300
FREE = ("none", "skip", "avgpool3x3")


class Watched(DecoupledSteps):
    """Records what each step keeps, and how far probabilities of dropped operations move in it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[float] = []
        self.moved = 0.0
        self.starved = 0

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        before = {n: w.detach() for n, w in state.mixture_weights().items()}
        value = super().update(state, train, val)
        after = state.mixture_weights()
        mix = state.mix
        assert isinstance(mix, GroupedDropout)
        self.kept.append(float(np.mean([float(m.sum()) for m in mix.masks.values()])))
        for n, keep in mix.masks.items():
            self.starved += sum(not bool(keep[g].any()) for g in mix.groups[n])
            if not bool(keep.all()):
                self.moved = max(self.moved, float((after[n].detach() - before[n])[~keep].abs().max()))
        return value

    def figures(self) -> Mapping[str, float]:
        return {"kept": float(np.mean(self.kept)), "moved": self.moved, "starved": self.starved}


def _milliseconds(state: SearchState, steps: DecoupledSteps) -> float:
    """Processor time of a step, in the median."""
    state.supernet.train()
    b = batch(state.halves[0], torch.arange(BATCH))
    times = []
    torch.manual_seed(0)
    for _ in range(TIMED):
        began = time.thread_time()
        steps.update(state, b, b)
        times.append(time.thread_time() - began)
    return 1e3 * float(np.median(times))


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What the cell of a search reaches after retraining, and what the search did on the way."""
    torch.set_num_threads(1)
    if arm == RANDOM:
        val, test, between = random_retrained(seed)
        return Measurement(val, {"test": test, "between cells": between})
    if arm == CONV:
        val, test = retrained(ALL_CONV, seed)
        return Measurement(val, {"test": test, "parameter-free": 0.0})
    schedule = replace(SCHEDULE, epochs=EPOCHS, batch_size=BATCH, alpha_lr=ALPHA_LR)
    strategy = dropnas(RATES[arm], schedule=schedule, arch_gradient=Watched())
    search, cell = searched(strategy, micro_space(), micro_data(), seed)
    state, last = search.state, search.log[-1]
    assert state is not None
    val, test = retrained(cell, seed)
    figures = {
        "test": test,
        "parameter-free": sum(op in FREE for op in cell.values()) / len(cell),
        "similarity": feature_similarity(state, micro_data().val.x[:100]),
        **{k: float(last[k]) for k in ("gap", "kept", "moved", "starved")},
        "ms": _milliseconds(state, DecoupledSteps()),
    }
    return Measurement(val, figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def groups_are_never_empty(t: Table) -> tuple[bool, str]:
    """And as many operations are kept as the redraw leaves, within 2 %."""
    expected = expected_kept(RATES[DROP], GROUPS)
    kept, starved = t.mean(DROP, "kept"), t.values(DROP, "starved").sum()
    text = f"{kept:.3f} operations kept an edge, {expected:.3f} expected of {sum(GROUPS)}; {starved:.0f} groups empty"
    return starved == 0 and abs(kept / expected - 1) <= 0.02, text


def dropped_probabilities_rest(t: Table) -> tuple[bool, str]:
    """To 1e-6, the rounding of single precision, in all steps of all seeds."""
    worst = float(t.values(DROP, "moved").max())
    return worst <= 1e-6, f"largest change {worst:.1e}"


def step_is_not_slower(t: Table) -> tuple[bool, str]:
    ratio = t.mean(DROP, "ms") / t.mean(ONE, "ms")
    return ratio <= 1.1, f"{spread(t, DROP, 'ms')}, {spread(t, ONE, 'ms')}: {ratio:.2f} times"


def above_random(arm: str, t: Table) -> tuple[bool, str]:
    return clearly_above(t, arm, RANDOM, "test")


def better_than(other: str, t: Table) -> tuple[bool, str]:
    return t.mean(DROP, "test") >= t.mean(other, "test"), f"{spread(t, DROP, 'test')}, {spread(t, other, 'test')}"


def lower(figure: str, t: Table) -> tuple[bool, str]:
    return t.mean(DROP, figure) < t.mean(ONE, figure), f"{spread(t, DROP, figure)}, {spread(t, ONE, figure)}"


CLAIM = Claim(
    slug="dropnas",
    statement="Dropping operations group by group, while dropped ones keep weights and probabilities, costs no time, "
    "and a one-level search finds better cells by it.",
    scale=f"Micro-NB201 on noisy digits (400/400/997), {EPOCHS} epochs on all training images, r = {RATES[DROP]}, "
    "retrained for 12; 8 random cells a seed.",
    arms=[
        ClaimArm(DROP, "method"),
        ClaimArm(ONE, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("No group is ever empty, and as many operations are kept as expected", groups_are_never_empty),
        Check("Dropped operations keep their probabilities in every step", dropped_probabilities_rest),
        Check("A step takes at most 1.1 times as long", step_is_not_slower),
        Check("Its cells are clearly above random ones", partial(above_random, DROP)),
        Check("Cells of the one-level search are clearly above random ones", partial(above_random, ONE), False),
        Check("Its cells are at least as good as those of the one-level search", partial(better_than, ONE), False),
        Check("It chooses fewer operations without parameters", partial(lower, "parameter-free"), False),
        Check("Operations of an edge are less alike", partial(lower, "similarity"), False),
        Check("The cut to one cell costs less accuracy", partial(lower, "gap"), False),
        Check("Its cells are at least as good as convolutions everywhere", partial(better_than, CONV), False),
    ],
    code=("archipel.search.differentiable.grouped_dropout",),
)
