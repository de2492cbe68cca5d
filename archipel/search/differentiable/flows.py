"""Flow through a weighted graph of nodes in a row: how much of a task's route depends on an edge.

Axes: N nodes. Edge weights Γ ``[N, N]`` are upper triangular, Γ[i, j] from node i to node j; A ``[N]`` reads in, B
``[N]`` reads out.

    forward      F_j = A_j + Σ_i F_i Γ_ij               backward     G_i = B_i + Σ_j Γ_ij G_j
    importance   edge φ_ij = F_i Γ_ij G_j,   read-in A_j G_j,   read-out F_j B_j
    total        Σ_j A_j G_j = Σ_j F_j B_j = Σ over all routes of the product of their weights
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from archipel.core.errors import SpaceError, UsageError


@dataclass(frozen=True)
class Route:
    """A task's weights on the central network.

    Raises:
        SpaceError: shapes that do not fit, edges backwards or onto themselves, or a weight that is not finite.
    """

    A_N: Tensor
    B_N: Tensor
    gamma_NN: Tensor

    def __post_init__(self) -> None:
        N = len(self.A_N)
        if self.B_N.shape != (N,) or self.gamma_NN.shape != (N, N):
            raise SpaceError(f"A route over {N} nodes has B [{N}] and edges [{N}, {N}], not {tuple(self.B_N.shape)} "
                             f"and {tuple(self.gamma_NN.shape)}.")  # fmt: skip
        for name, t in (("read-in", self.A_N), ("read-out", self.B_N), ("edge", self.gamma_NN)):
            if not bool(torch.isfinite(t).all()):
                raise SpaceError(f"A {name} weight of a route is not finite: {t.tolist()}.")
        if bool(self.gamma_NN.detach().tril().any()):
            raise SpaceError("Edges of a route lead from earlier to later nodes; one does not.")

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Edges with a weight."""
        return [(int(i), int(j)) for i, j in self.gamma_NN.detach().nonzero()]

    def forward_flow(self) -> Tensor:
        """F ``[N]``."""
        F: list[Tensor] = []
        for j in range(len(self.A_N)):
            F.append(self.A_N[j] + sum((F[i] * self.gamma_NN[i, j] for i in range(j)), torch.zeros(())))
        return torch.stack(F)

    def backward_flow(self) -> Tensor:
        """G ``[N]``."""
        N = len(self.A_N)
        G: dict[int, Tensor] = {}
        for i in reversed(range(N)):
            G[i] = self.B_N[i] + sum((self.gamma_NN[i, j] * G[j] for j in range(i + 1, N)), torch.zeros(()))
        return torch.stack([G[i] for i in range(N)])

    def importance(self) -> Tensor:
        """φ ``[N, N]``."""
        return self.forward_flow()[:, None] * self.gamma_NN * self.backward_flow()

    def total(self) -> float:
        return float((self.A_N * self.backward_flow()).sum())

    def without(self, edge: tuple[int, int]) -> Route:
        gamma = self.gamma_NN.clone()
        gamma[edge] = 0.0
        return replace(self, gamma_NN=gamma)

    def depth(self) -> float:
        """Expected read-out node minus expected read-in node."""
        nodes = torch.arange(len(self.A_N), dtype=self.A_N.dtype)
        return float((nodes * (self.B_N - self.A_N)).sum())


def band(N: int, M: int) -> Tensor:
    """Which edges there may be, ``[N, N]``: i to j with 1 <= j - i <= M.

    Raises:
        UsageError: M below 1, or not below N.

    >>> [int(band(N, M).sum()) for N, M in ((4, 2), (8, 3), (12, 3), (15, 4))]
    [5, 18, 30, 50]
    """
    if not 1 <= M < N:
        raise UsageError(f"Edges may span from 1 to N - 1 = {N - 1} nodes, not M={M}.")
    ahead = torch.arange(N)[None] - torch.arange(N)[:, None]
    return (ahead >= 1) & (ahead <= M)


Score = Callable[[Route], Tensor]


def by_flow(route: Route) -> Tensor:
    return route.importance()


def by_weight(route: Route) -> Tensor:
    return route.gamma_NN


def reduce_route(route: Route, target: int, score: Score = by_flow, share: float | None = None) -> Route:
    """Delete edges of the smallest score, one by one, without ever cutting the route; then weak read-ins and read-outs.

    Args:
        target: edges to be left; where that cannot be reached, as few as keep the route.
        score: ``[N, N]``, computed anew after each deletion.
        share: stop earlier, at an edge that carries more than this share of the total flow; and drop read-ins and
            read-outs that carry less (1e-2 if None).

    Raises:
        UsageError: a negative target.
        SpaceError: a route that carries nothing to begin with.
    """
    if target < 0:
        raise UsageError(f"A route cannot be reduced to {target} edges.")
    if route.total() <= 0:
        raise SpaceError("The route carries nothing: no read-in reaches a read-out.")
    while len(route.edges) > target:
        scores, flow = score(route), by_flow(route)
        for edge in sorted(route.edges, key=lambda e: (float(scores[e]), e)):
            if share is not None and float(flow[edge]) > share * route.total():
                continue
            reduced = route.without(edge)
            if reduced.total() > 0:
                route = reduced
                break
        else:
            break  # every edge that is left is needed
    return _without_weak_ends(route, 1e-2 if share is None else share)


def _without_weak_ends(route: Route, share: float) -> Route:
    """Drop read-ins, then read-outs, with less than a share of the flow, and let the rest sum to one again."""
    for ends, flow in (("A_N", Route.backward_flow), ("B_N", Route.forward_flow)):
        weights = getattr(route, ends)
        carried = weights * flow(route)
        least = torch.minimum(share * carried.sum(), carried.max())  # the strongest end stays in any case
        kept = torch.where(carried < least, torch.zeros_like(weights), weights)
        route = replace(route, **{ends: kept / kept.sum()})
    return route
