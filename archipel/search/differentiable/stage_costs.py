"""What a network of stages costs in expectation: bilinear in the probabilities of operations and of depths.

Nayman, Aflalo, Noy, Zelnik-Manor. HardCoRe-NAS: Hard Constrained diffeRentiable Neural Architecture Search. 2021.
https://arxiv.org/abs/2102.11646

    LAT(α, β) = t_0 + Σ_s Σ_d β^s_d Σ_{b<=d} Σ_c α^s_bc t^s_bc = t_0 + αᵀ(p + Qβ)

α^s_b is over the operations of block b of stage s, β^s over the numbers of blocks of stage s: a block is there if all
before it are. Exact for one-hots, and the mean over networks drawn from α and β.

Axes: B blocks of a stage, C operations, N possible depths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from archipel.core.errors import InfeasibleError, SpaceError

Rows = list[np.ndarray]  # simplices, one after the other; for α those of stage 0 come first


@dataclass(frozen=True)
class StageCosts:
    """What operations cost in every block, exactly.

    Args:
        tables: for each stage, t ``[B, C]``.
        depths: for each stage, the possible numbers of blocks, rising.
        fixed: t_0, what every network has.
        unit: for messages.

    Raises:
        SpaceError: no depth, or one with more blocks than the table has.

    >>> costs = StageCosts([np.array([[1.0, 3.0], [2.0, 4.0], [1.0, 5.0]])], [(1, 2, 3)])
    >>> α = [np.array([0.5, 0.5]), np.array([0.2, 0.8]), np.array([1.0, 0.0])]
    >>> round(costs(α, [np.array([0.2, 0.3, 0.5])]), 10)
    5.38
    """

    tables: Sequence[np.ndarray]
    depths: Sequence[tuple[int, ...]]
    fixed: float = 0.0
    unit: str = ""

    def __post_init__(self) -> None:
        for s, (t, depths) in enumerate(zip(self.tables, self.depths, strict=True)):
            if not depths or list(depths) != sorted(set(depths)) or not 0 <= depths[0] <= depths[-1] <= len(t):
                raise SpaceError(f"Stage {s} has {len(t)} blocks, but its possible depths are {depths}.")
            if not np.isfinite(t).all() or (t < 0).any():
                raise SpaceError(f"Stage {s} has a cost that is negative or no number: {t.tolist()}.")

    def __call__(self, alpha: Rows, beta: Rows) -> float:
        """LAT(α, β)."""
        return self.fixed + float(sum(x @ c for x, c in zip(alpha, self.of_operations(beta))))

    def of_operations(self, beta: Rows) -> Rows:
        """p + Qβ: LAT's coefficients of α, each a cost times the probability that the block is there."""
        out: Rows = []
        for t, depths, b in zip(self.tables, self.depths, beta):
            for position, costs in enumerate(t):
                out.append(costs * sum(p for d, p in zip(depths, b) if d > position))
        return out

    def of_depths(self, alpha: Rows) -> Rows:
        """Qᵀα: LAT's coefficients of β, each the mean cost of so many blocks."""
        out: Rows = []
        rows = iter(alpha)
        for t, depths in zip(self.tables, self.depths):
            means = [float(next(rows) @ costs) for costs in t]
            out.append(np.array([math.fsum(means[:d]) for d in depths]))
        return out

    def uniform(self) -> tuple[Rows, Rows]:
        alpha = [np.full(t.shape[1], 1 / t.shape[1]) for t in self.tables for _ in t]
        return alpha, [np.full(len(d), 1 / len(d)) for d in self.depths]

    def cheapest(self) -> tuple[Rows, Rows]:
        """The cheapest operations and the fewest blocks."""
        alpha = [one_hot(int(costs.argmin()), len(costs)) for t in self.tables for costs in t]
        return alpha, [one_hot(0, len(d)) for d in self.depths]

    @property
    def range(self) -> tuple[float, float]:
        """The costs of the cheapest and of the most expensive network."""
        most = sum(math.fsum(t[: d[-1]].max(1)) for t, d in zip(self.tables, self.depths))
        return self(*self.cheapest()), self.fixed + most

    def check(self, limit: float) -> None:
        """
        Raises:
            InfeasibleError: no network keeps the limit; says what the cheapest costs.
        """
        least, most = self.range
        if not limit >= least:
            raise InfeasibleError(
                f"No network costs at most {limit:,.6g}{self.unit}: the minimum attainable is {least:,.6g}{self.unit}, "
                f"the maximum {most:,.6g}. Raise the limit."
            )

    def one_hot(self, blocks: Sequence[Sequence[int]]) -> tuple[Rows, Rows]:
        """α and β of one network, by the operations of each stage's blocks; those that are not there get the first."""
        alpha: Rows = []
        for t, ops in zip(self.tables, blocks):
            alpha += [one_hot(ops[b] if b < len(ops) else 0, t.shape[1]) for b in range(len(t))]
        return alpha, [one_hot(d.index(len(ops)), len(d)) for d, ops in zip(self.depths, blocks)]

    def blocks(self, alpha: Rows, beta: Rows) -> list[list[int]]:
        """The operations of the most likely network."""
        out, rows = [], iter(alpha)
        for t, depths, b in zip(self.tables, self.depths, beta):
            ops = [int(next(rows).argmax()) for _ in t]
            out.append(ops[: depths[int(b.argmax())]])
        return out


def one_hot(i: int, n: int) -> np.ndarray:
    x = np.zeros(n)
    x[i] = 1.0
    return x
