"""Block-coordinate Frank-Wolfe over operations and depths, within a hard bound on an exact expected cost.

Nayman, Aflalo, Noy, Zelnik-Manor. HardCoRe-NAS: Hard Constrained diffeRentiable Neural Architecture Search. 2021.
https://arxiv.org/abs/2102.11646

    LAT(α, β) = t_0 + Σ_s Σ_d β^s_d Σ_{b<=d} Σ_c α^s_bc t^s_bc     α^s_b: over operations, β^s: over numbers of blocks

LAT (:mod:`~archipel.search.differentiable.stage_costs`) is linear in α for a fixed β, and in β for a fixed α. So a
step towards the minimiser of a linear function,

    x* = argmin <∇L, x>  s.t.  x in the simplices,  LAT <= T          x <- x + γ (x* - x),   γ = γ_max · 4 / (k + 4)

of one of the two stays feasible whatever the step. A vertex of that linear program has at most one simplex in which two
options share the weight (one bound more than there are simplices), so that rounding touches one decision of each kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from scipy.optimize import linprog, nnls
from scipy.sparse import csr_matrix

from archipel.core.errors import InfeasibleError
from archipel.search.differentiable.stage_costs import Rows, StageCosts, one_hot

SAFETY = 1e-7  # the solver's tolerance on the bound, relative
BALANCE_ROUNDS, HALVINGS = 30, 50


# --- one of the two, the other held --------------------------------------------------------------------------------


def linear_minimiser(gradient: Rows, costs: Rows, budget: float) -> Rows:
    """A vertex that minimises <gradient, x> over simplices with <costs, x> <= budget.

    Args:
        gradient, costs: one array a simplex.
        budget: infinite for none; then each simplex takes its own best.

    Raises:
        InfeasibleError: even the cheapest options cost more.
    """
    least = math.fsum(float(c.min()) for c in costs)
    if budget < least - SAFETY * abs(budget):
        raise InfeasibleError(f"The options cost {least:,.6g} at least, more than the {budget:,.6g} that are left.")
    if not math.isfinite(budget):
        return [one_hot(int(g.argmin()), len(g)) for g in gradient]
    budget = max(least, budget - SAFETY * abs(budget))
    lengths = [len(g) for g in gradient]
    row = np.repeat(np.arange(len(lengths)), lengths)
    sums = csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))))
    scale = max(1e-300, max(float(np.abs(c).max()) for c in costs))
    g = np.concatenate(gradient)
    result = linprog(
        g / max(1e-300, float(np.abs(g).max())),
        A_ub=np.concatenate(costs)[None] / scale,
        b_ub=[budget / scale],
        A_eq=sums,
        b_eq=np.ones(len(lengths)),
        bounds=(0.0, 1.0),
        method="highs-ds",  # the dual simplex ends at a vertex, interior points need not
    )
    if result.x is None:  # the budget is the least, or misses it by rounding
        return [one_hot(int(c.argmin()), len(c)) for c in costs]
    x = np.where(result.x < 1e-9, 0.0, result.x)
    return [part / part.sum() for part in np.split(x, np.cumsum(lengths)[:-1])]


def balanced(costs: Rows, budget: float) -> Rows | None:
    """The x in the simplices with <costs, x> <= budget whose neighbours differ least; None if there is none.

    min Σ (x_c - x_{c+1})² in each simplex, plus λ <costs, x>; λ is found by bisection.
    """
    if budget < math.fsum(float(c.min()) for c in costs):
        return None

    def at(lam: float) -> tuple[Rows, float]:
        x = [_smooth(u, lam) for u in slopes]
        return x, math.fsum(float(a @ c) for a, c in zip(x, costs))

    slopes = [_slope(c) for c in costs]
    scale = max(1e-300, max(float(np.abs(c).max()) for c in costs))
    x, total = at(0.0)
    if total <= budget:
        return x
    low, high = 0.0, 1.0 / scale
    x, total = at(high)
    while total > budget and high * scale < 1e9:
        low, high = high, 4 * high
        x, total = at(high)
    if total > budget:
        return None  # but for rounding, only the cheapest options are left
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        y, total = at(middle)
        low, high, x = (low, middle, y) if total <= budget else (middle, high, x)
    return x


def _slope(costs: np.ndarray) -> np.ndarray:
    """u with Dᵀu = costs, up to a constant; D the differences of neighbours. Dᵀu is -u_1, u_1 - u_2, …, u_(n-1)."""
    return -np.cumsum(costs - costs.mean())[:-1]


def _smooth(u: np.ndarray, lam: float) -> np.ndarray:
    """argmin_x in the simplex of |Dx|² + λ <costs, x>, by non-negative least squares.

    On the simplex the costs count up to a constant, so that <costs, x> is <u, Dx> and the sum |Dx + λu/2|² + const.
    """
    n = len(u) + 1
    if n == 1:
        return np.ones(1)
    difference = np.diff(np.eye(n), axis=0)
    heavy = 1e4 * max(1.0, float(np.abs(lam * u).max()))  # the sum of 1, to some eight digits
    x, _ = nnls(np.vstack([difference, np.full(n, heavy)]), np.append(-lam * u / 2, heavy))
    return x / x.sum()


# --- the search ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """α and β, and the step they are at."""

    alpha: Rows
    beta: Rows
    step: int = 0


def starting_point(costs: StageCosts, limit: float) -> Point:
    """A feasible point, as balanced as can be: α and β in turns, until unchanged.

    Raises:
        InfeasibleError: no network keeps the limit.
    """
    costs.check(limit)
    alpha, beta = costs.uniform()
    for _ in range(BALANCE_ROUNDS):
        before = [*alpha, *beta]
        alpha = balanced(costs.of_operations(beta), limit - costs.fixed) or alpha
        beta = balanced(costs.of_depths(alpha), limit - costs.fixed) or beta
        if all(np.allclose(x, y, rtol=0, atol=1e-7) for x, y in zip(before, [*alpha, *beta])):
            break
    if costs(alpha, beta) > limit:
        alpha, beta = costs.cheapest()
    return Point(alpha, beta)


def step_size(k: int, largest: float) -> float:
    """γ of step ``k``.

    >>> step_size(0, 0.5), step_size(4, 0.5)
    (0.5, 0.25)
    """
    return largest * 4 / (k + 4)


def step(
    costs: StageCosts,
    limit: float,
    point: Point,
    gradients: Callable[[Rows, Rows, bool], Rows],
    largest: float,
    rng: Random,
) -> Point:
    """One step of α or β, each as likely as the other; of α if no depth is open.

    Args:
        gradients: (α, β, whether of α) -> the gradient of the loss for α, or for β.
        largest: γ_max.
    """
    gamma = step_size(point.step, largest)
    of_alpha = rng.random() < 0.5 or all(len(b) == 1 for b in point.beta)
    g = gradients(point.alpha, point.beta, of_alpha)
    if of_alpha:
        target = linear_minimiser(g, costs.of_operations(point.beta), limit - costs.fixed)
        return replace(point, alpha=_towards(point.alpha, target, gamma), step=point.step + 1)
    target = linear_minimiser(g, costs.of_depths(point.alpha), limit - costs.fixed)
    return replace(point, beta=_towards(point.beta, target, gamma), step=point.step + 1)


def _towards(x: Rows, target: Rows, gamma: float) -> Rows:
    return [a + gamma * (b - a) for a, b in zip(x, target)]


def sparsified(costs: StageCosts, limit: float, point: Point) -> Point:
    """The vertices with most of the probability: of α, then of β."""
    alpha = linear_minimiser([-a for a in point.alpha], costs.of_operations(point.beta), limit - costs.fixed)
    beta = linear_minimiser([-b for b in point.beta], costs.of_depths(alpha), limit - costs.fixed)
    return replace(point, alpha=alpha, beta=beta)


def rounded(costs: StageCosts, limit: float, point: Point) -> list[list[int]]:
    """The operations of each stage's blocks, from a sparse point: the likelier of two, or the cheaper if that breaks
    the limit; α first, then β. Never costs more than the limit.
    """
    beta = point.beta
    alpha = [one_hot(int(a.argmax()), len(a)) for a in point.alpha]
    if costs(alpha, beta) > limit:
        alpha = [_cheaper(a, c) for a, c in zip(point.alpha, costs.of_operations(beta))]
    beta = [one_hot(int(b.argmax()), len(b)) for b in point.beta]
    if costs(alpha, beta) > limit:
        beta = [_cheaper(b, c) for b, c in zip(point.beta, costs.of_depths(alpha))]
    return costs.blocks(alpha, beta)


def _cheaper(x: np.ndarray, costs: np.ndarray) -> np.ndarray:
    return one_hot(int(np.where(x > 0.0, costs, np.inf).argmin()), len(x))
