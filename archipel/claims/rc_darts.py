"""Claim: a projection keeps any budget, and the networks found within one are no worse than random ones there.

Jin, Wang, Slocum, Yang, Dai, Yan, Feng. RC-DARTS: Resource Constrained Differentiable Architecture Search. 2019.
https://arxiv.org/abs/1912.12814

Budgets are shares of the parameters of the network with 3x3 convolutions everywhere; each of the two cells is a level
of its own. The rival adds λ Φ(α) / Φ_max to the loss, for three λ, and knows no budget: each of its searches is
compared with all three. Random networks use at least half of their budget. Plain DARTS is the search without any bound.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache, partial
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import RECIPE, micro_data, searched, spread
from archipel.core.decision import Arch
from archipel.search.differentiable.costs import expected_cost
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.loop import batch
from archipel.search.differentiable.objective import SearchObjective
from archipel.search.differentiable.parameters import Moment
from archipel.search.differentiable.rc_darts import HardCost, RCDarts
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Argmax
from archipel.search.differentiable.state import SearchState
from archipel.search.training import evaluate, train
from archipel.spaces.micro_nb201 import MicroNB201

BUDGETS = (0.2, 0.4, 0.7)
PENALTIES = (0.1, 1.0, 10.0)
SCHEDULE = Schedule(epochs=15, batch_size=40, lr=0.1, lr_min=0.0, alpha_lr=9e-3)
EVERY, RANDOM_NETWORKS = 15, 6
RC, DARTS, RANDOM = "RC-DARTS", "DARTS", "random"
PENALISED = {f"penalty λ={w:g}": w for w in PENALTIES}


@cache
def space() -> MicroNB201:
    return MicroNB201((1, 8, 8), 10, C=8, tie="cell")


@cache
def largest() -> int:
    return space().cost.params({d.name: "conv3x3" for d in space().decisions})


class Penalised(SearchObjective):
    """The validation loss plus λ times the expected parameters, as a share of the largest network's."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def started(self, state: SearchState) -> None:
        self.phi = expected_cost(space(), state.parameters, "params")

    def penalty(self, weights: Mapping[str, Tensor], moment: Moment) -> Tensor:
        return self.strength * self.phi(weights) / largest()


@cache
def _trained(arch: tuple[tuple[str, str], ...], seed: int) -> tuple[float, float]:
    data, net = micro_data(), space().build(dict(arch), seed)
    train(net, data.train, data.task, RECIPE, seed)
    return evaluate(net, data.val, data.task)["accuracy"], evaluate(net, data.open_test("claim"), data.task)["accuracy"]


def trained(arch: Arch, seed: int) -> tuple[float, float]:
    """Validation and test accuracy after training from scratch."""
    return _trained(tuple(sorted(arch.items())), seed)


def random_within(limit: float, rng: Random) -> Arch:
    """A random network with half of the parameters allowed, or more."""
    while True:
        arch = space().sample(rng)
        if limit / 2 <= space().cost.params(arch) <= limit:
            return arch


def _projecting_share(state: SearchState) -> float:
    """Processor time of a projection that moves the logits, as a share of that of the steps between two."""
    objective = state.objective
    assert isinstance(objective, HardCost)
    pair = [batch(half, torch.arange(SCHEDULE.batch_size)) for half in state.halves]
    before = {n: p.detach().clone() for n, p in state.logits.items()}
    projections, steps = [], []
    for _ in range(5):
        with torch.no_grad():
            for p in state.logits.values():
                p.copy_(torch.eye(5)[3] * 0.5)  # towards the dearest option
        began = time.thread_time()
        objective.enforce(state.parameters, state.moment)
        projections.append(time.thread_time() - began)
        began = time.thread_time()
        loss = state.val_loss((pair[1][0], pair[1][1]))
        torch.autograd.grad(loss, list(state.logits.values()))
        loss = state.train_loss((pair[0][0], pair[0][1]))
        torch.autograd.grad(loss, list(state.weights.values()), allow_unused=True)
        steps.append(time.thread_time() - began)
    with torch.no_grad():
        for n, p in state.logits.items():
            p.copy_(before[n])
    return float(np.median(projections) / (EVERY * np.median(steps)))


def _within(arch: Arch, budget: float) -> float:
    return space().cost.params(arch) / (budget * largest())


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """Accuracy and cost at each budget; ``over`` is cost / budget, ``before`` that without repair."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    validation = []
    if arm in (DARTS, *PENALISED):
        objective = Penalised(PENALISED[arm]) if arm in PENALISED else None
        search, arch = searched(darts(schedule=SCHEDULE, objective=objective), space(), micro_data(), seed)
        val, test = trained(arch, seed)
        figures = {"test": test, "params": float(space().cost.params(arch))}
        figures |= {f"over {b:.0%}": _within(arch, b) for b in BUDGETS}
        return Measurement(val, figures)
    for b in BUDGETS:
        if arm == RANDOM:
            rng = Random(seed * 1000 + round(100 * b))
            found = [random_within(b * largest(), rng) for _ in range(RANDOM_NETWORKS)]
        else:
            rc = RCDarts({"params": b * largest()}, every=EVERY, schedule=SCHEDULE)
            search, arch = searched(rc, space(), micro_data(), seed)
            state = search.state
            assert state is not None
            assert isinstance(state.objective, HardCost)
            phi = state.objective.expected[0](state.mixture_weights())
            figures[f"expected {b:.0%}"] = float(phi.detach()) / (b * largest())
            figures[f"before {b:.0%}"] = _within(Argmax()(state), b)
            figures[f"active {b:.0%}"] = float(state.objective.active)
            if b == BUDGETS[0]:
                figures["projecting"] = _projecting_share(state)
            found = [arch]
        pairs = [trained(arch, seed) for arch in found]
        figures[f"test {b:.0%}"] = float(np.mean([test for _, test in pairs]))
        figures[f"over {b:.0%}"] = float(np.max([_within(arch, b) for arch in found]))
        validation.append(float(np.mean([val for val, _ in pairs])))
    return Measurement(float(np.mean(validation)), figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def _most(t: Table, figure: str) -> dict[float, float]:
    return {b: float(t.values(RC, f"{figure} {b:.0%}").max()) for b in BUDGETS}


def _text(values: Mapping[float, float]) -> str:
    return ", ".join(f"{v:.4f} at {b:.0%}" for b, v in values.items())


def derived_fit(t: Table) -> tuple[bool, str]:
    most = _most(t, "over")
    return max(most.values()) <= 1.0, f"largest cost / budget: {_text(most)}"


def expectation_fits(t: Table) -> tuple[bool, str]:
    """Within the rounding of the mixture's single precision."""
    most = _most(t, "expected")
    return max(most.values()) <= 1.0 + 1e-6, f"largest expected cost / budget: {_text(most)}"


def deriving_breaks_it(t: Table) -> tuple[bool, str]:
    most = _most(t, "before")
    return max(most.values()) > 1.0, f"largest cost / budget without repair: {_text(most)}"


def not_below_random(budget: float, t: Table) -> tuple[bool, str]:
    figure = f"test {budget:.0%}"
    return t.mean(RC, figure) >= t.mean(RANDOM, figure), f"{spread(t, RC, figure)}, {spread(t, RANDOM, figure)}"


def penalties_miss(t: Table) -> tuple[bool, str]:
    """No λ is within every budget and uses half of each; and they differ by a factor of two."""
    rows = {a: [t.mean(a, f"over {b:.0%}") for b in BUDGETS] for a in PENALISED}
    text = "; ".join(f"{a} {', '.join(f'{v:.2f}' for v in r)}" for a, r in rows.items())
    misses = all(any(not 0.5 <= v <= 1.0 for v in r) for r in rows.values())
    first = [r[0] for r in rows.values()]
    return misses and max(first) >= 2 * min(first), f"mean cost / budget: {text}"


def smaller_and_no_worse(t: Table) -> tuple[bool, str]:
    """At the middle budget, against DARTS without one."""
    rc = f"test {BUDGETS[1]:.0%}"
    cost = t.mean(RC, f"over {BUDGETS[1]:.0%}") * BUDGETS[1] * largest()
    holds = t.mean(RC, rc) >= t.mean(DARTS, "test") and cost < t.mean(DARTS, "params")
    return holds, f"{spread(t, RC, rc)} with {cost:.0f} parameters, {spread(t, DARTS, 'test')} with " + (
        f"{t.mean(DARTS, 'params'):.0f}"
    )


def projecting_is_cheap(t: Table) -> tuple[bool, str]:
    return t.mean(RC, "projecting") < 0.05, f"{t.mean(RC, 'projecting'):.4f} of the time of {EVERY} steps"


def active_where_tight(t: Table) -> tuple[bool, str]:
    means = {b: t.mean(RC, f"active {b:.0%}") for b in BUDGETS}
    return means[BUDGETS[0]] > 0 and means[BUDGETS[-1]] == 0, f"projections that moved: {_text(means)}"


CLAIM = Claim(
    slug="rc-darts",
    statement="Projecting the architecture onto a resource budget gives networks that keep it, without a penalty "
    "weight to tune, at equal or better accuracy.",
    scale=f"Micro-NB201 with C = 8 and two cells that decide for themselves, noisy digits (400/400/997), "
    f"{SCHEDULE.epochs} epochs of search, budgets of {', '.join(f'{b:.0%}' for b in BUDGETS)} of the largest network's "
    f"parameters; {RANDOM_NETWORKS} random networks a budget and seed.",
    arms=[
        ClaimArm(RC, "method"),
        ClaimArm(DARTS, "untreated"),
        *(ClaimArm(a, "rival") for a in PENALISED),
        ClaimArm(RANDOM, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("Every derived network keeps its budget", derived_fit),
        Check("The mixture keeps every budget when the search ends", expectation_fits),
        Check("A penalty misses budgets, by amounts that depend on its weight", penalties_miss),
        *(Check(f"Not below random networks at {b:.0%}", partial(not_below_random, b)) for b in BUDGETS),
        Check("Smaller than DARTS, and no less accurate, at 40%", smaller_and_no_worse, False),
        Check("Deriving breaks a budget that the mixture keeps", deriving_breaks_it, False),
        Check("The tightest budget acts, the widest does not", active_where_tight, False),
        Check("Projecting takes under a twentieth of the steps' time", projecting_is_cheap, False),
    ],
    code=(
        "archipel.search.differentiable.budget",
        "archipel.search.differentiable.costs",
        "archipel.search.differentiable.projection",
        "archipel.search.differentiable.within_budget",
    ),
)
