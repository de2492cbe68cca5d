"""Sigmoid gates of which some are removed for good: their weight is exactly zero, so they are never computed again.

Bi, Xie, Chen, Wei, Tian. GOLD-NAS: Gradual, One-Level, Differentiable. 2020. https://arxiv.org/abs/2007.03331
A `mix` for nodes that take any subset of pairs; see :mod:`archipel.search.differentiable.gold_nas`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.core.subset import Subset
from archipel.search.differentiable.mix import Sigmoid
from archipel.search.differentiable.parameters import Moment, Row

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


class PrunedGates(Sigmoid):
    """σ(α) for each pair of a node that is still there.

    Args:
        xi_max: gates below it may be removed.
        xi_min: gates below it must be.
        n0: how many may be removed at once, unless more must.

    Attributes:
        live: node -> which of its pairs are left, ``[P]``.

    Raises:
        UsageError: thresholds out of order, or n0 below 1; in use: a space whose nodes do not take any subset.
    """

    def __init__(self, xi_max: float = 0.05, xi_min: float = 0.01, n0: int = 4) -> None:
        if not 0.0 <= xi_min <= xi_max < 1.0:
            raise UsageError(f"PrunedGates needs 0 <= xi_min <= xi_max < 1, not {xi_min!r} and {xi_max!r}.")
        if isinstance(n0, bool) or not isinstance(n0, int) or n0 < 1:
            raise UsageError(f"PrunedGates: n0, the removals of an epoch, must be a positive integer, not {n0!r}.")
        self.xi_max, self.xi_min, self.n0 = xi_max, xi_min, n0
        self.live: dict[str, Tensor] = {}

    def started(self, state: SearchState) -> None:
        subsets_of(state.parameters.rows)
        self.live = {n: torch.ones(len(row.labels), dtype=torch.bool) for n, row in state.parameters.rows.items()}

    def coefficients(self, logits: Tensor, row: Row, moment: Moment) -> Tensor:
        return torch.sigmoid(logits) * self.live[row.name]

    def prune(self, gates: Mapping[str, Tensor]) -> list[str]:
        """Remove what is due, for the present ``gates``; names of the pairs removed."""
        left = {n: {i: g for i, (g, m) in enumerate(zip(w.tolist(), self.live[n])) if m} for n, w in gates.items()}
        found = removals(left, self.xi_max, self.xi_min, self.n0)
        for name, i in found:
            self.live[name][i] = False
        return [f"{name}[{i}]" for name, i in found]

    def state_dict(self) -> dict[str, Any]:
        return {"live": {n: m.clone() for n, m in self.live.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.live = {n: m.clone() for n, m in state["live"].items()}


def removals(gates: Mapping[str, Mapping[int, float]], xi_max: float, xi_min: float, n0: int) -> list[tuple[str, int]]:
    """Which pairs to remove: all below ``xi_min``, then the smallest below ``xi_max`` up to ``n0`` in all.

    A node keeps its largest gate.

    Args:
        gates: node -> position of each pair that is left -> its gate.

    >>> removals({"n": {0: 0.3, 1: 0.04, 2: 0.02, 3: 0.005}, "m": {0: 0.001}}, 0.05, 0.01, n0=2)
    [('n', 3), ('n', 2)]
    """
    left = {n: len(row) for n, row in gates.items()}
    weak = sorted((g, n, i) for n, row in gates.items() for i, g in row.items() if g < xi_max)
    out: list[tuple[str, int]] = []
    for g, n, i in weak:  # from the smallest, so those that must go come first
        if left[n] > 1 and (g < xi_min or len(out) < n0):
            out.append((n, i))
            left[n] -= 1
    return out


def subsets_of(rows: Mapping[str, Row]) -> dict[str, Subset]:
    """The nodes whose pairs are gated.

    Raises:
        UsageError: a row of another kind; names it.
    """
    found: dict[str, Subset] = {}
    for name, row in rows.items():
        node = row.modules[0]
        if not isinstance(node, Subset):
            raise UsageError(
                f"{name!r} is one choice among {', '.join(row.labels)}, but this search needs nodes that take any "
                f"subset of pairs. Use a space such as subsets or micro-subsets."
            )
        found[name] = node
    return found
