"""Claim: replacing the inverse Hessian by a multiple of the Hessian keeps the direction of the true gradient.

Bi, Hu, Xie, Chen, Wei, Tian. Stabilizing DARTS with Amended Gradient Estimation on Architectural Parameters. 2019.
https://arxiv.org/abs/1910.11831

Three experiments: random quadratics, in which only the spread of the curvature matters; a regression with mixed
operations at optimal weights; and searches of the micro network, short and twice as long, for whether the amended one
drifts less to operations without parameters. The learning rate of the logits lets Adam move them in the short search as
far as in the published number of steps. Nothing is tuned. That a small angle is kept in general is not claimed: the
paper's proof fails for a rectangular M.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.hypergradients import NO_BATCH, MixedRegression, Quadratics
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
from archipel.search.differentiable.amended_darts import AmendedGradient, amended_darts
from archipel.search.differentiable.arch_gradient import FirstOrder, SecondOrder
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.hessian import ExactCurvature, cosine, largest_eigenvalue, plus
from archipel.search.differentiable.hypergradient import ConjugateGradients, Neumann
from archipel.search.differentiable.schedule import Schedule

WEIGHTS, LOGITS, DRAWS, PROBLEMS = 6, 4, 4_000, 4
KAPPAS, DECAYS = (2, 10, 100), (1e-1, 1e-2)
ETA, SHORT, LONG, ALPHA_LR, BATCH = 0.1, 15, 30, 1.8e-2, 40
ESTIMATES, RANDOM, CONV = "estimates", "random", "all conv3x3"
SEARCHES = {f"{name}, {e} epochs": (name, e) for name in ("first order", "amended") for e in (SHORT, LONG)}
FREE = ("none", "skip", "avgpool3x3")
# Mean cosines with the true gradient for eigenvalues from κ^-½ to κ^½ at κ = 2, 10, 100, worked out beforehand.
EXPECTED = {
    "g2 amended": (0.89, 0.42, 0.09),
    "g2 second order": (0.97, 0.79, 0.60),
    "g first order": (0.36, 0.26, 0.14),
    "g amended": (0.54, 0.38, 0.15),
}


def quadratic_cosines(low: float, high: float, seed: int) -> dict[str, float]:
    """Mean cosines of second terms and of whole gradients with the true ones; eigenvalues geometrically spaced."""
    q = Quadratics(np.geomspace(low, high, WEIGHTS).tolist(), LOGITS, DRAWS, seed)

    def gradient(estimator: Any) -> Tensor:
        return estimator.gradient(q, NO_BATCH, NO_BATCH)["α"]

    exact, first = gradient(ConjugateGradients()), gradient(FirstOrder())
    amended, second = gradient(AmendedGradient(ETA, "exact")), gradient(SecondOrder(1.0, "exact"))

    def mean(a: Tensor, b: Tensor) -> float:
        return float(F.cosine_similarity(a, b, dim=1).mean())

    return {
        "g2 amended": mean(amended - first, exact - first),
        "g2 second order": mean(second - first, exact - first),
        "g first order": mean(first, exact),
        "g amended": mean(amended, exact),
    }


def regression_cosines(decay: float, seed: int) -> dict[str, float]:
    """Cosines of the estimates with the exact gradient, at optimal weights of one regression."""
    p = MixedRegression(decay, seed)
    p.fit()
    estimators = {
        "exact": ConjugateGradients(damping=1e-6, steps=5_000),
        "first order": FirstOrder(),
        "second order": SecondOrder(0.1, "exact"),
        "amended": AmendedGradient(ETA, "exact"),
        "Neumann": Neumann(5),
    }
    g = {name: e.gradient(p, p.train, p.val) for name, e in estimators.items()}
    g2 = {name: plus(t, -1.0, g["first order"]) for name, t in g.items()}
    return {
        **{name: cosine(t, g["exact"]) for name, t in g.items() if name != "exact"},
        "g2 amended": cosine(g2["amended"], g2["exact"]),
        "g2 second order": cosine(g2["second order"], g2["exact"]),
        "λ max": largest_eigenvalue(ExactCurvature(p, p.train)),
    }


def _estimates(seed: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for kappa in KAPPAS:
        for family, low in (("", kappa**-0.5), (", from 1", 1.0)):
            found = quadratic_cosines(low, low * kappa, seed)
            figures |= {f"{name}, κ={kappa}{family}": c for name, c in found.items()}
    for decay in DECAYS:
        rows = [regression_cosines(decay, PROBLEMS * seed + k) for k in range(PROBLEMS)]
        figures |= {f"{n}, l2={decay}": float(np.mean([r[n] for r in rows])) for n in rows[0]}
        figures[f"positive, l2={decay}"] = float(sum(r["g2 amended"] > 0 for r in rows))
        figures[f"above first, l2={decay}"] = float(sum(r["amended"] > r["first order"] for r in rows))
    return figures


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """Cosines of the estimates, or what the cell of a search reaches after retraining."""
    torch.set_num_threads(1)
    if arm == ESTIMATES:
        figures = _estimates(seed)
        return Measurement(figures[f"g2 amended, κ={KAPPAS[0]}"], figures)
    if arm == RANDOM:
        val, test, between = random_retrained(seed)
        return Measurement(val, {"test": test, "between cells": between})
    if arm == CONV:
        val, test = retrained(ALL_CONV, seed)
        return Measurement(val, {"test": test, "parameter-free": 0.0})
    name, epochs = SEARCHES[arm]
    schedule = Schedule(epochs, batch_size=BATCH, alpha_lr=ALPHA_LR)
    began = time.thread_time()
    strategy = amended_darts(ETA, schedule=schedule) if name == "amended" else darts(1, schedule)
    search, cell = searched(strategy, micro_space(), micro_data(), seed)
    seconds = time.thread_time() - began
    assert search.state is not None
    val, test = retrained(cell, seed)
    ratios = [entry["amended_ratio"] for entry in search.log if "amended_ratio" in entry]
    figures = {
        "test": test,
        "parameter-free": float(sum(op in FREE for op in cell.values())),
        "gap": search.log[-1]["gap"],
        "ms": 1e3 * seconds / (epochs * search.state.steps_per_epoch),
    }
    return Measurement(val, figures | ({"ratio": median(ratios)} if ratios else {}))


# --- checks -----------------------------------------------------------------------------------------------------------


def table_is_reproduced(t: Table) -> tuple[bool, str]:
    """All twelve means over seeds within 0.03."""
    found = {n: [t.mean(ESTIMATES, f"{n}, κ={k}") for k in KAPPAS] for n in EXPECTED}
    off = max(abs(a - b) for n in EXPECTED for a, b in zip(found[n], EXPECTED[n]))
    text = "; ".join(f"{n}: " + "/".join(f"{c:.2f}" for c in cs) for n, cs in found.items())
    return off <= 0.03, f"{text}; furthest off by {off:.3f}"


def second_term_points_the_right_way(t: Table) -> tuple[bool, str]:
    """Positive in the mean for both decays, and in nine of ten of all regressions."""
    means = [t.mean(ESTIMATES, f"g2 amended, l2={d}") for d in DECAYS]
    positive = sum(t.values(ESTIMATES, f"positive, l2={d}").sum() for d in DECAYS)
    total = len(DECAYS) * PROBLEMS * len(t.values(ESTIMATES, "λ max, l2=0.1"))
    others = "; ".join(
        f"l2={d}: amended {t.mean(ESTIMATES, f'g2 amended, l2={d}'):.2f}, identity "
        f"{t.mean(ESTIMATES, f'g2 second order, l2={d}'):.2f}, λ_max {t.mean(ESTIMATES, f'λ max, l2={d}'):.1f}"
        for d in DECAYS
    )
    return min(means) > 0 and positive >= 0.9 * total, f"{positive:.0f} of {total} positive; {others}"


def spread_hides_scale(t: Table) -> tuple[bool, str]:
    """Amended above first order for all κ where eigenvalues go from 1 to κ."""
    pairs = [[t.mean(ESTIMATES, f"g {n}, κ={k}, from 1") for n in ("amended", "first order")] for k in KAPPAS]
    return all(a > b for a, b in pairs), "amended/first order: " + ", ".join(f"{a:.2f}/{b:.2f}" for a, b in pairs)


def amended_is_nearer(t: Table) -> tuple[bool, str]:
    """Higher mean cosine with the exact gradient of the regressions than first order, for both decays."""
    names = ("first order", "second order", "amended", "Neumann")
    found = {d: [t.mean(ESTIMATES, f"{n}, l2={d}") for n in names] for d in DECAYS}
    text = "; ".join(
        f"l2={d}: " + ", ".join(f"{n} {c:.2f}" for n, c in zip(names, cs)) + f"; amended above first order in "
        f"{t.values(ESTIMATES, f'above first, l2={d}').mean():.1f} of {PROBLEMS}"
        for d, cs in found.items()
    )
    return all(cs[2] > cs[0] for cs in found.values()), text


def amended_term_dominates(t: Table) -> tuple[bool, str]:
    arms = [a for a, (name, _) in SEARCHES.items() if name == "amended"]
    return all(t.mean(a, "ratio") > 1 for a in arms), ", ".join(spread(t, a, "ratio") for a in arms)


def _by_length(t: Table, figure: str) -> tuple[list[tuple[float, float]], str]:
    """(amended, first order) for each length."""
    pairs = [tuple(t.mean(f"{n}, {e} epochs", figure) for n in ("amended", "first order")) for e in (SHORT, LONG)]
    return pairs, ", ".join(spread(t, a, figure) for a in SEARCHES)  # type: ignore[return-value]


def fewer_free_operations(t: Table) -> tuple[bool, str]:
    pairs, text = _by_length(t, "parameter-free")
    return all(a < b for a, b in pairs), text


def longer_is_no_worse(t: Table) -> tuple[bool, str]:
    """The longer amended search chooses no more operations without parameters than the shorter one."""
    pairs, text = _by_length(t, "parameter-free")
    return pairs[1][0] <= pairs[0][0], text


def trains_better(t: Table) -> tuple[bool, str]:
    pairs, text = _by_length(t, "test")
    return all(a > b for a, b in pairs), f"{text}, {spread(t, CONV, 'test')}"


def above_random(arm: str, t: Table) -> tuple[bool, str]:
    return clearly_above(t, arm, RANDOM, "test")


def time_is_about_three_times(t: Table) -> tuple[bool, str]:
    """Between two and four times first order."""
    pairs, text = _by_length(t, "ms")
    return all(2 <= a / b <= 4 for a, b in pairs), text


CLAIM = Claim(
    slug="amended-darts",
    statement="Two products with the Hessian instead of its inverse keep the architecture gradient on the side of the "
    "true one, and searches no longer drift to operations without parameters.",
    scale=f"{DRAWS} quadratics a seed and condition number; {PROBLEMS} regressions with 56 weights a seed and decay; "
    f"micro-NB201 on noisy digits (400/400/997), {SHORT} and {LONG} epochs, retrained for 12; 8 random cells a seed.",
    arms=[
        ClaimArm(ESTIMATES, "method"),
        *(ClaimArm(a, "method" if name == "amended" else "untreated") for a, (name, _) in SEARCHES.items()),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("The cosines on random quadratics are those worked out beforehand", table_is_reproduced),
        Check("On regressions the amended term alone points the right way", second_term_points_the_right_way),
        Check("On quadratics with eigenvalues from 1 the amended gradient is nearer too", spread_hides_scale, False),
        Check("On regressions the amended gradient is nearer than first order", amended_is_nearer, False),
        Check("Micro: the amended term outweighs the first one", amended_term_dominates, False),
        Check("Micro: fewer operations without parameters than first order", fewer_free_operations, False),
        Check("Micro: no more of them after twice the epochs", longer_is_no_worse, False),
        Check("Micro: the cells train better than those of first order", trains_better, False),
        Check("Micro: amended is clearly above random", partial(above_random, f"amended, {SHORT} epochs"), False),
        Check("Micro: a step takes two to four times as long", time_is_about_three_times, False),
    ],
    code=(
        "archipel.claims.hypergradients",
        "archipel.search.differentiable.hessian",
        "archipel.search.differentiable.hypergradient",
    ),
)
