"""Projecting logits onto bounds of an expected cost.

    min_a |a - α|²   s.t.   C_L <= Φ_r(a) <= C_U   for each resource r,      Φ_r(a) = c_0 + Σ_rows Σ_o p(a)_o · c_o

Φ is not convex in the logits. Minimising |a - α|² + λ(Φ(a) - C_U)/C_U and bisecting λ therefore fails for some α: the
minimiser jumps from one side of the bound to the other at some λ, and what is left may keep far below the bound (and
far from α). The augmented Lagrangian (Nocedal, Wright. Numerical Optimization. 2006, section 17.3) has no such gap,

    L(a) = |a - α|² + Σ_i [max(0, λ_i + ρ g_i(a))² - λ_i²] / 2ρ,      λ_i <- max(0, λ_i + ρ g_i),     bounds g_i <= 0

and takes any number of bounds; each minimisation is L-BFGS from the one before. From α alone it can still get stuck
where an option is cheap but nearly impossible, its gradient being nearly zero. A second start is therefore tilted,

    a = α - Σ_r λ_r c_r,

which for a softmax is the nearest distribution within the bounds in Kullback-Leibler divergence, and exists for every
bound that some mixture keeps. Of both ends the nearer to α is taken: a local minimum, on the feasible side of the bound
within :data:`MARGIN`. A step costs O(|α|), whatever the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize, nnls

from archipel.core.errors import InfeasibleError

MARGIN = 1e-5  # of the bound, relative, that is left free, so that rounding to the logits' type breaks no bound
ROUNDS, LARGEST_RHO, RESTARTS = 60, 1e10, 5
CYCLES, DOUBLINGS, HALVINGS = 20, 30, 40
PENALTY_STEPS, PENALTY_DOUBLES, PENALTY_TOLERANCE = 5000, 50, 1e-3


@dataclass(frozen=True)
class Bound:
    """One side of a budget.

    Args:
        resource: position of its cost.
        metric: its name.
        limit: in the unit of the cost.
        upper: whether costs must not be above, rather than not below.
    """

    resource: int
    metric: str
    limit: float
    upper: bool = True

    @property
    def slope(self) -> float:
        """∂g/∂cost."""
        return (1.0 if self.upper else -1.0) / max(abs(self.limit), 1e-12)

    def excess(self, cost: Any) -> Any:
        """g: how far a cost is on the wrong side, relative to the limit; negative if it is on the right one."""
        return self.slope * (cost - self.limit)

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.upper else '>='} {self.limit:,.6g}"


class Costs:
    """Expected costs as a function of all logits, side by side.

    Args:
        tables: for each resource, the costs of all options, row after row ``[R, n]``.
    """

    def __init__(self, tables: np.ndarray) -> None:
        self.tables = tables

    def __call__(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Costs ``[R]`` and their gradients ``[R, n]`` at logits ``[n]``."""
        raise NotImplementedError


class SoftmaxCosts(Costs):
    """Under a softmax in each row, in closed form: ∂Φ/∂a_o = p_o (c_o - Σ_j p_j c_j).

    Args:
        tables: see :class:`Costs`.
        lengths: of the rows.
        constants: for each resource.

    >>> costs = SoftmaxCosts([[0.0, 4.0]], [2], [1.0])
    >>> value, gradient = costs(np.zeros(2))
    >>> value.tolist(), gradient.tolist()
    ([3.0], [[-1.0, 1.0]])
    """

    def __init__(self, tables: Any, lengths: Sequence[int], constants: Sequence[float]) -> None:
        super().__init__(np.asarray(tables, dtype=float))
        self.starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int)
        self.row = np.repeat(np.arange(len(lengths)), lengths)
        self.constants = np.asarray(constants, dtype=float)

    def __call__(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e = np.exp(a - np.maximum.reduceat(a, self.starts)[self.row])
        p = e / np.add.reduceat(e, self.starts)[self.row]
        means = np.add.reduceat(p * self.tables, self.starts, axis=1)
        return self.constants + means.sum(1), p * (self.tables - means[:, self.row])


def violated(costs: Costs, a: np.ndarray, bounds: Sequence[Bound], tolerance: float = 0.0) -> list[Bound]:
    """The bounds that do not hold."""
    values, _ = costs(a)
    return [b for b in bounds if b.excess(values[b.resource]) > tolerance]


def project(costs: Costs, alpha: np.ndarray, bounds: Sequence[Bound]) -> np.ndarray:
    """The nearest logits that keep all bounds; ``alpha`` itself if it does. ``[n] -> [n]``.

    Raises:
        InfeasibleError: the bounds cannot be kept together, as far as logits of finite size can.
    """
    start = alpha.astype(float)
    if not violated(costs, start, bounds):
        return alpha
    margin = MARGIN
    for _ in range(8):  # logits of single precision and of great size round by more
        problem = _Problem(costs, start, bounds, margin)
        tilted = problem.tilted()
        ends = [problem.settle(a) for a in (start, tilted) if a is not None]
        rounded = [a.astype(alpha.dtype) for a in ends]
        kept = [a for a in rounded if not violated(costs, a.astype(float), bounds)]
        if kept:
            return min(kept, key=lambda a: float(np.sum((a - start) ** 2)))
        margin *= 2.0
    raise InfeasibleError(_together(costs, start, bounds))


class _Problem:
    """One projection, with bounds a margin inside the real ones."""

    def __init__(self, costs: Costs, alpha: np.ndarray, bounds: Sequence[Bound], margin: float) -> None:
        self.costs, self.alpha, self.margin = costs, alpha, margin
        self.which = np.array([b.resource for b in bounds])
        self.limit, self.slope = np.array([b.limit for b in bounds]), np.array([b.slope for b in bounds])

    def excess(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """g and its gradients."""
        values, gradients = self.costs(a)
        return self.slope * (values[self.which] - self.limit) + self.margin, self.slope[:, None] * gradients[self.which]

    def settle(self, a: np.ndarray) -> np.ndarray:
        """Descend, again if need be: great penalties end a minimisation before it is at its end."""
        for _ in range(RESTARTS):
            lam = self.multipliers(a)
            a = self.descend(a, lam, 10.0 * max(1.0, float(lam.max())))
            d, (g, dg) = a - self.alpha, self.excess(a)
            residual = np.linalg.norm(2 * d + self.multipliers(a) @ dg)
            if residual < 1e-4 * (1 + np.linalg.norm(d)) and (g < self.margin).all():
                break
        return a

    def descend(self, a: np.ndarray, lam: np.ndarray, rho: float) -> np.ndarray:
        """Minimise the augmented Lagrangian from ``a`` until every bound holds by half of the margin at least."""

        def lagrangian(x: np.ndarray) -> tuple[float, np.ndarray]:
            g, dg = self.excess(x)
            m = np.maximum(0.0, lam + rho * g)
            d = x - self.alpha
            return float(d @ d + (m @ m - lam @ lam) / (2 * rho)), 2 * d + m @ dg

        last = np.inf
        options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-8}
        for _ in range(ROUNDS):
            a = minimize(lagrangian, a, jac=True, method="L-BFGS-B", options=options).x
            g, _ = self.excess(a)
            # How far each pair (bound, multiplier) is from one of them being zero and the other on its right side.
            off = float(np.abs(np.maximum(g, -lam / rho)).max())
            if off < self.margin / 2 or rho > LARGEST_RHO:
                break
            lam = np.maximum(0.0, lam + rho * g)
            if off > last / 4:
                rho *= 4.0
            last = off
        return a

    def multipliers(self, a: np.ndarray) -> np.ndarray:
        """λ >= 0 with which ``a`` is nearest to a stationary point."""
        _, dg = self.excess(a)
        return nnls(dg.T, 2 * (self.alpha - a))[0]

    def tilted(self) -> np.ndarray | None:
        """α - Σ_i λ_i ∂g_i/∂p, the λ found one after the other in turns; None if that keeps no point within bounds."""
        c = np.sign(self.slope)[:, None] * self.costs.tables[self.which]
        c = c / np.maximum(np.abs(c).max(1, keepdims=True), 1e-300)
        lam = np.zeros(len(c))

        def at(i: int, value: float) -> tuple[np.ndarray, float]:
            a = self.alpha - np.where(np.arange(len(lam)) == i, value, lam) @ c
            return a, float(self.excess(a)[0][i])

        for _ in range(CYCLES):
            for i in range(len(lam)):
                low, high = 0.0, 0.0 if at(i, 0.0)[1] <= 0.0 else 1.0
                for _ in range(DOUBLINGS):
                    if high == 0.0 or at(i, high)[1] <= 0.0:
                        break
                    low, high = high, 2 * high
                for _ in range(HALVINGS if high else 0):
                    middle = (low + high) / 2
                    low, high = (low, middle) if at(i, middle)[1] <= 0.0 else (middle, high)
                lam[i] = high
            a = self.alpha - lam @ c
            if (self.excess(a)[0] <= self.margin / 2).all():
                return a
        return None


def penalise(costs: Costs, alpha: np.ndarray, bounds: Sequence[Bound], step: float = 0.1) -> np.ndarray:
    """Cheaper and inexact: gradient steps on |a - α|² + λ Σ max(0, g), λ doubled every 50 steps while g > 1e-3.

    Stops at the first point that keeps all bounds within 1e-3; where that is depends on the step.

    Raises:
        InfeasibleError: it never gets there.
    """
    a, lam = alpha.astype(float), 1.0
    for n in range(PENALTY_STEPS):
        broken = violated(costs, a, bounds, PENALTY_TOLERANCE)
        if not broken:
            return alpha if n == 0 else a.astype(alpha.dtype)
        if n and n % PENALTY_DOUBLES == 0:
            lam *= 2.0
        _, gradients = costs(a)
        push = sum(b.slope * gradients[b.resource] for b in broken)
        a = a - step * (2 * (a - alpha) + lam * push)
    raise InfeasibleError(_together(costs, alpha.astype(float), bounds))


def _together(costs: Costs, alpha: np.ndarray, bounds: Sequence[Bound]) -> str:
    values, _ = costs(alpha)
    at = ", ".join(f"{b.metric} {values[b.resource]:,.6g}" for b in bounds)
    return (
        f"No architecture parameters were found that keep {' and '.join(map(str, bounds))} together (projecting from "
        f"{at}). Widen the bounds."
    )
