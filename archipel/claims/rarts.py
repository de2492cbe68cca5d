"""Claim: splitting the weights makes the search single-level and first-order, cheaper than second order and no worse.

Xue, Qi, Xin. RARTS: An Efficient First-Order Relaxed Architecture Search Method. 2020.
https://arxiv.org/abs/2008.03901

On the model of two numbers, every search is followed to its end and compared with the end that can be worked out. On
the micro network, searches of equally many steps are compared in time and in what their cells reach; the learning rate
of the logits lets Adam move them as far as in the published number of steps. The search on one level has both halves
of the data in one loss. Time is that of the processor, in the median over steps. Nothing is tuned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache, partial
from itertools import pairwise
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
from archipel.search.differentiable.arch_gradient import OneLevel, SecondOrder
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.loop import DifferentiableSearch, batch
from archipel.search.differentiable.rarts import rarts
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.solvable import NO_BATCH, SolvableModel, follow, split_stationary_point
from archipel.search.differentiable.split_weights import SplitWeights
from archipel.search.differentiable.state import SearchState

MODEL, TWO, STRICT, FIRST, SECOND, ONE = (
    "model of two numbers",
    "two-backward",
    "strict order",
    "DARTS, first order",
    "DARTS, second order",
    "one level",
)
RANDOM, CONV = "random", "all conv3x3"
SEARCHES = (TWO, STRICT, FIRST, SECOND, ONE)
EPOCHS, BATCH, ALPHA_LR, TIMED = 20, 40, 1.35e-2, 20
PENALTIES = {10: 0.01, 100: 0.005}  # λ = β -> step; larger steps diverge at 100
XIS = (0.1, 0.5, 0.7)
MODEL_STEPS = 40_000


def split_end(penalty: float, eta: float) -> tuple[tuple[float, float, float], int]:
    """(α, w, y) where strict RARTS ends, and in how many steps the Lagrangian rose."""
    split = SplitWeights(penalty, penalty, "strict", y={"w": torch.zeros(1, dtype=torch.double)})
    model = SolvableModel(eta)
    seen = follow(split, model, MODEL_STEPS, watch=partial(split.lagrangian, model, NO_BATCH, NO_BATCH))
    # Near the end the Lagrangian is flat and its changes are those of rounding.
    rises = sum(after > before + 1e-12 for before, after in pairwise(seen))
    return (*model.point, split.copy["w"].item()), rises


@lru_cache(maxsize=1)
def model_figures() -> dict[str, float]:
    """How far each search ends from where the formula says, on the model; no randomness is involved."""
    figures: dict[str, float] = {}

    def off(found: tuple[float, ...], expected: tuple[float, ...]) -> float:
        return max(abs(a - b) for a, b in zip(found, expected, strict=True))

    for penalty, eta in PENALTIES.items():
        found, rises = split_end(penalty, eta)
        figures[f"RARTS {penalty}: off"] = off(found, split_stationary_point(penalty, penalty))
        figures |= {f"RARTS {penalty}: α": found[0], f"RARTS {penalty}: rises": float(rises)}
    others = {"first order": (SecondOrder(0.0), 2.0, 2.0), "joint descent": (OneLevel(), 4 / 3, 2 / 3)}
    others |= {f"second order, ξ={xi}": (SecondOrder(xi, "exact"), *[2 / (1 + 2 * xi)] * 2) for xi in XIS}
    for name, (gradient, alpha, w) in others.items():
        model = SolvableModel(0.01)
        follow(gradient, model, MODEL_STEPS)
        figures |= {f"{name}: off": off(model.point, (alpha, w)), f"{name}: α": model.point[0]}
    return figures


def _strategy(arm: str) -> DifferentiableSearch:
    schedule = Schedule(EPOCHS, batch_size=BATCH, alpha_lr=ALPHA_LR)
    if arm in (FIRST, SECOND):
        return darts(1 if arm == FIRST else 2, schedule)
    if arm == ONE:  # twice the data in an epoch, so half of the epochs
        half = Schedule(max(1, EPOCHS // 2), batch_size=BATCH, alpha_lr=ALPHA_LR, alpha_share=0.0)
        return DifferentiableSearch(arch_gradient=OneLevel(), schedule=half)
    found = rarts(order="two-backward" if arm == TWO else "strict", schedule=schedule)
    assert isinstance(found, DifferentiableSearch)
    return found


def _seconds_per_step(state: SearchState, gradient: Any) -> float:
    """Processor time of a step of architecture and weights, in the median."""
    state.supernet.train()
    gradient.started(state)
    pair = [batch(half, torch.arange(BATCH)) for half in state.halves]
    times = []
    for _ in range(TIMED):
        began = time.thread_time()
        gradient.update(state, *pair)
        times.append(time.thread_time() - began)
    return float(np.median(times))


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """Where the model ends, or what the cell of a search reaches after retraining and what a step costs."""
    torch.set_num_threads(1)
    if arm == MODEL:
        return Measurement(0.0, model_figures())
    if arm == RANDOM:
        val, test, between = random_retrained(seed)
        return Measurement(val, {"test": test, "between cells": between})
    if arm == CONV:
        val, test = retrained(ALL_CONV, seed)
        return Measurement(val, {"test": test})
    search, cell = searched(_strategy(arm), micro_space(), micro_data(), seed)
    assert search.state is not None
    val, test = retrained(cell, seed)
    figures = {"test": test, "gap": search.log[-1]["gap"]}
    if "lagrangian" in search.log[-1]:
        figures["L fell by"] = search.log[0]["lagrangian"] - search.log[-1]["lagrangian"]
    return Measurement(val, {**figures, "ms": 1e3 * _seconds_per_step(search.state, search.arch_gradient)})


# --- checks -----------------------------------------------------------------------------------------------------------


def ends_where_it_should(t: Table) -> tuple[bool, str]:
    """All within 1e-4 of the formulas."""
    names = [n for n in t.figures[MODEL][0] if n.endswith(": off")]
    text = ", ".join(f"{n.removesuffix(': off')} α={t.mean(MODEL, n.replace('off', 'α')):.6f}" for n in names)
    worst = max(t.mean(MODEL, n) for n in names)
    return worst <= 1e-4, f"{text}; furthest off by {worst:.1e}"


def lagrangian_falls(t: Table) -> tuple[bool, str]:
    rises = {p: t.mean(MODEL, f"RARTS {p}: rises") for p in PENALTIES}
    return not any(rises.values()), ", ".join(f"λ=β={p}: rose in {n:.0f} steps" for p, n in rises.items())


def nearer_than_first_order(t: Table) -> tuple[bool, str]:
    """To the optimum α = 1, with both penalties."""
    ends = {p: t.mean(MODEL, f"RARTS {p}: α") for p in PENALTIES}
    first = t.mean(MODEL, "first order: α")
    text = ", ".join(f"{a:.4f} (λ=β={p})" for p, a in ends.items())
    return all(abs(a - 1) < abs(first - 1) for a in ends.values()), f"α = {text} against {first:.4f}"


def cheaper_than_second_order(arm: str, saved: float, t: Table) -> tuple[bool, str]:
    ratio = t.mean(arm, "ms") / t.mean(SECOND, "ms")
    times = ", ".join(f"{a} {t.mean(a, 'ms'):.1f}" for a in SEARCHES)
    return ratio <= 1 - saved, f"{100 * (1 - ratio):.0f} % cheaper; ms a step: {times}"


def not_worse_than_first_order(arm: str, t: Table) -> tuple[bool, str]:
    """By no more than one standard deviation over seeds, pooled over both arms."""
    sd = float(np.sqrt((t.std(arm, "test") ** 2 + t.std(FIRST, "test") ** 2) / 2))
    text = ", ".join(spread(t, a, "test") for a in (*SEARCHES, CONV))
    return t.mean(arm, "test") >= t.mean(FIRST, "test") - sd, f"{text}; pooled {sd:.4f}"


def better_than(other: str, t: Table) -> tuple[bool, str]:
    return t.mean(TWO, "test") > t.mean(other, "test"), f"{spread(t, TWO, 'test')}, {spread(t, other, 'test')}"


def orders_agree(t: Table) -> tuple[bool, str]:
    """Within 0.02 of test accuracy in the mean."""
    gap = t.mean(STRICT, "test") - t.mean(TWO, "test")
    return abs(gap) <= 0.02, f"{spread(t, TWO, 'test')}, {spread(t, STRICT, 'test')}"


def above_random(t: Table) -> tuple[bool, str]:
    return clearly_above(t, TWO, RANDOM, "test")


CLAIM = Claim(
    slug="rarts",
    statement="Two copies of the weights tied by a penalty turn the bilevel search into descent on one function, which "
    "ends near the right architecture, costs 40 % less than second-order DARTS and is no worse than first order.",
    scale=f"The solvable model of two numbers; micro-NB201 on noisy digits (400/400/997), {EPOCHS} epochs with λ = β = "
    "1, retrained for 12; 8 random cells a seed.",
    arms=[
        ClaimArm(MODEL, "method"),
        ClaimArm(TWO, "method"),
        ClaimArm(STRICT, "method"),
        ClaimArm(FIRST, "untreated"),
        ClaimArm(SECOND, "rival"),
        ClaimArm(ONE, "rival"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("On the model every search ends where its formula says", ends_where_it_should),
        Check("On the model the Lagrangian falls in every step", lagrangian_falls),
        Check("On the model it ends nearer to the optimum than first order", nearer_than_first_order),
        Check(
            "The two-backward step is 40 % cheaper than DARTS of second order",
            partial(cheaper_than_second_order, TWO, 0.4),
        ),
        Check(
            "Its cells are not worse than those of first order by more than one deviation",
            partial(not_worse_than_first_order, TWO),
        ),
        Check(
            "The strict step is cheaper than DARTS of second order",
            partial(cheaper_than_second_order, STRICT, 0.0),
            False,
        ),
        Check("Its cells are better than those of first order", partial(better_than, FIRST), False),
        Check("Its cells are better than those of second order", partial(better_than, SECOND), False),
        Check("Its cells are better than those of a search on one level", partial(better_than, ONE), False),
        Check("Both orders reach the same", orders_agree, False),
        Check("Its cells are clearly above random ones", above_random, False),
        Check("Its cells are better than convolutions everywhere", partial(better_than, CONV), False),
    ],
    code=("archipel.search.differentiable.split_weights", "archipel.search.differentiable.solvable"),
)
