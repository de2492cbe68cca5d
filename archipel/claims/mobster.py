"""Claim: a Gaussian process over (x, r) makes asynchronous successive halving reach its final quality much sooner.

Klein, Tiao, Lienart, Archambeau, Seeger. Model-based Asynchronous Hyperparameter and Neural Architecture Search. 2020.
https://arxiv.org/abs/2003.10865

All arms run on the virtual clock with 4 workers and a second an epoch, and may be stopped at any time: what counts is
the best result reported so far, of any resource. Nothing is tuned. Two objectives:

    curves y(x, r) = a + (1 − a) exp(−c r),  x in [0, 1]^4,  a = .05 + .6 q / (1 + q),  q = sum w_i (x_i − x*_i)²,
           c = .05 + .5 x_k;  w, x* and k by the seed; regret against the least y(x, 27)
    table  validation accuracy of 300 perceptrons on noisy digits after each of 27 epochs; regret against its best entry

The asserted checks rest on the first, which the method was specified with; the second is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
from scipy.optimize import minimize

from archipel.claims.curves import curves
from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.core.decision import Arch, Decision, Real
from archipel.core.space import Space
from archipel.search.blackbox.asha import ASHA
from archipel.search.blackbox.hyperband_search import Hyperband
from archipel.search.blackbox.mobster import MOBSTER
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.simulation import Simulation
from archipel.search.simulator import simulate
from archipel.search.strategy import Objective, Problem, Strategy

WORKERS, EPOCHS, HORIZON = 4, 27, 270
ROWS, TABLE_SEED, TABLE_HORIZON = 300, 0, 135  # plain halving then starts some 180 of the 300
MATERN, DECAY, UNTREATED, TRIVIAL, RIVAL = "MOBSTER matern", "MOBSTER decay", "ASHA", "random", "Hyperband"
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    MATERN: lambda: MOBSTER(kernel="matern"),
    DECAY: lambda: MOBSTER(kernel="decay"),
    UNTREATED: ASHA,
    TRIVIAL: RandomSearch,
    RIVAL: lambda: Hyperband(b_min=1),
}
LEAST_REGRET = 1e-6  # to which the optimum is known


class LearningCurves:
    """The synthetic objective of a seed."""

    space = Space([Real(f"x{i}", 0.0, 1.0) for i in range(4)])
    objective = Objective("loss", "min")

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.w, self.best, self.k = rng.uniform(0.5, 2.0, 4), rng.uniform(0.2, 0.8, 4), int(rng.integers(4))
        starts = [self.best, *rng.uniform(0.0, 1.0, (9, 4))]
        found = [minimize(self.loss, x, args=(EPOCHS,), bounds=[(0, 1)] * 4, tol=1e-12) for x in starts]
        self.optimum = min(f.fun for f in found)

    def loss(self, x: np.ndarray, r: int) -> float:
        q = float(self.w @ (x - self.best) ** 2)
        a = 0.05 + 0.6 * q / (1 + q)
        return a + (1 - a) * math.exp(-(0.05 + 0.5 * x[self.k]) * r)

    def evaluate(self, arch: Arch, r: int) -> dict[str, float]:
        return {"loss": self.loss(np.array([arch[f"x{i}"] for i in range(4)]), r)}

    def regret(self, run: Simulation) -> np.ndarray:
        """At each second."""
        best = run.best_so_far(self.objective, range(1, HORIZON + 1))
        return np.maximum(-best - self.optimum, LEAST_REGRET)


class Rows(Space):
    """The configurations of a table, known to a model by what they decide."""

    def __init__(self, space: Space, archs: list[Arch]) -> None:
        super().__init__([Decision("row", range(len(archs)))])
        self.codes = np.stack([space.encode(arch) for arch in archs])

    @property
    def encoding_size(self) -> int:
        return self.codes.shape[1]

    def encode(self, arch: Arch) -> np.ndarray:
        return self.codes[arch["row"]]


@lru_cache(maxsize=1)
def _table() -> tuple[Rows, np.ndarray]:
    """The configurations, and their validation accuracies ``[ROWS, EPOCHS]``, NaN once diverged."""
    digits = curves(TABLE_SEED)
    archs = digits.sample(ROWS, TABLE_SEED)
    return Rows(digits.space, archs), np.array([digits.curve(arch, EPOCHS) for arch in archs])


def _run(arm: str, space: Space, objective: Objective, evaluate: Any, horizon: int, seed: int) -> Simulation:
    problem = Problem(space, [objective], Random(seed), max_resource=EPOCHS)
    return simulate(STRATEGIES[arm](), problem, evaluate, workers=WORKERS, horizon=horizon, every_epoch=True)


@lru_cache(maxsize=64)
def _on_curves(arm: str, seed: int) -> tuple[np.ndarray, float]:
    """Regret at each second, and the most that a worker was idle."""
    objective = LearningCurves(seed)
    run = _run(arm, objective.space, objective.objective, objective.evaluate, HORIZON, seed)
    return objective.regret(run), float(run.idle_seconds().max())


def _on_table(arm: str, seed: int) -> np.ndarray:
    """Regret at each second."""
    rows, accuracy = _table()
    objective = Objective("accuracy")
    run = _run(arm, rows, objective, lambda arch, r: {"accuracy": accuracy[arch["row"], r - 1]}, TABLE_HORIZON, seed)
    return np.nanmax(accuracy) - run.best_so_far(objective, range(1, TABLE_HORIZON + 1))


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """One search on the curves of a seed and one on the table."""
    regret, idle = _on_curves(arm, seed)
    as_good = np.flatnonzero(regret <= _on_curves(UNTREATED, seed)[0][-1])
    on_table = _on_table(arm, seed)
    figures = {
        "log10 regret": float(np.log10(regret).mean()),
        "regret at 50%": float(regret[HORIZON // 2 - 1]),
        "final regret": float(regret[-1]),
        "seconds to ASHA's end": float(as_good[0] + 1) if len(as_good) else float(HORIZON),  # at the latest
        "idle seconds": idle,
        "table regret": float(on_table.mean()),
        "table regret at 50%": float(on_table[TABLE_HORIZON // 2 - 1]),
        "table final regret": float(on_table[-1]),
    }
    return Measurement(-figures["log10 regret"], figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def _below(arm: str, other: str, figure: str = "log10 regret", asserted: bool = False) -> Check:
    """An arm's mean is below another's; the numbers hold the difference paired by seed."""

    def test(t: Table) -> tuple[bool, str]:
        gap = t.values(arm, figure) - t.values(other, figure)
        error = gap.std(ddof=1) / math.sqrt(len(gap))
        means = ", ".join(f"{a} {t.mean(a, figure):.4g} ± {t.std(a, figure):.2g}" for a in (arm, other))
        text = f"{means}; paired {gap.mean():+.4g} ± {error:.2g} (SE), lower in {(gap < 0).sum()} of {len(gap)} seeds"
        return bool(gap.mean() < 0), text

    return Check(f"{arm} is below {other} in mean {figure} over time", test, asserted)


def much_sooner(t: Table) -> tuple[bool, str]:
    figure = "seconds to ASHA's end"
    text = ", ".join(f"{a} {t.mean(a, figure):.0f} ± {t.std(a, figure):.0f}" for a in (MATERN, DECAY, UNTREATED))
    return max(t.mean(MATERN, figure), t.mean(DECAY, figure)) < t.mean(UNTREATED, figure) / 2, f"{figure}: {text}"


CLAIM = Claim(
    slug="mobster",
    statement="A Gaussian process over configuration and resource, aware of pending trials, lets asynchronous "
    "successive halving reach its final quality in much less time.",
    scale=f"Virtual clock, {WORKERS} workers, up to {EPOCHS} epochs of a second each: synthetic curves in 4 dimensions "
    f"for {HORIZON} s; a table of {ROWS} perceptrons with 8 joint decisions on noisy digits for {TABLE_HORIZON} s.",
    arms=[
        ClaimArm(MATERN, "method"),
        ClaimArm(DECAY, "method"),
        ClaimArm(UNTREATED, "untreated"),
        ClaimArm(TRIVIAL, "trivial"),
        ClaimArm(RIVAL, "rival"),
    ],
    measure=measure,
    checks=[
        _below(MATERN, UNTREATED, asserted=True),
        _below(DECAY, UNTREATED, asserted=True),
        Check("Both kernels reach ASHA's final regret in less than half its time", much_sooner, False),
        *(_below(*pair) for pair in ((UNTREATED, TRIVIAL), (MATERN, RIVAL), (DECAY, RIVAL))),
        *(_below(*pair, "table regret") for pair in ((MATERN, UNTREATED), (DECAY, UNTREATED), (UNTREATED, TRIVIAL))),
    ],
    seeds=5,
    code=(
        "archipel.claims.curves",
        "archipel.search.blackbox.asha",
        "archipel.search.blackbox.hyperband_search",
        "archipel.search.hyperband",
        "archipel.search.schedulers",
        "archipel.search.simulation",
        "archipel.search.simulator",
        "archipel.search.surrogates.acquisition",
        "archipel.search.surrogates.gp",
        "archipel.search.surrogates.kernels",
        "archipel.search.training",
    ),
)
