"""The gradient matching score: how differently the options of an edge want the shared weights to move.

Hu, Wang, Hong, Li, Hsieh, Feng. Generalizing Few-Shot NAS with Gradient Matching. 2022.
https://arxiv.org/abs/2203.15207. See :mod:`archipel.search.differentiable.gm_nas` for the method.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from archipel.core.errors import ShapeError, UsageError, suggest
from archipel.nets.batch_norm import batch_norms, frozen_statistics
from archipel.search.differentiable.arch_gradient import ArchGradient, Batch
from archipel.search.differentiable.loop import batch
from archipel.search.differentiable.parameters import Row
from archipel.search.differentiable.sampling import SampledPaths
from archipel.search.differentiable.splitting import Split, Splitter, choosable, partitions
from archipel.search.differentiable.state import SearchState
from archipel.search.training import shuffled

DISTANCES = ("cos", "per-filter-cos", "mse")
EDGE_SCORES = ("cut", "within")


@dataclass(frozen=True)
class Partition:
    """Two groups of options, and the sums of distances within them and between them."""

    groups: tuple[tuple[int, ...], tuple[int, ...]]
    within: float
    cut: float


def best_partition(D: Tensor, smallest: int = 1) -> Partition:
    """The division in two with the smallest within-group sum, by looking at all of them.

    Args:
        D: distances ``[K, K]``, symmetric, with a zero diagonal.
        smallest: options of each group.

    Raises:
        ShapeError: D is no such matrix.
        UsageError: there are too few options for two groups.

    >>> best_partition(torch.tensor([[0., 1, 4, 5], [1, 0, 4, 4], [4, 4, 0, 2], [5, 4, 2, 0]]))
    Partition(groups=((0, 1), (2, 3)), within=3.0, cut=17.0)
    """
    K = len(D)
    if D.shape != (K, K) or not torch.allclose(D, D.T) or float(D.diagonal().abs().max()) > 1e-6:
        raise ShapeError(f"Distances are a symmetric matrix with a zero diagonal; got {tuple(D.shape)}: {D.tolist()}.")
    if 2 * smallest > K:
        raise UsageError(f"Two groups of at least {smallest} need {2 * smallest} options, but there are {K}.")
    ways = partitions(K, smallest)
    side = np.array([[i in first for i in range(K)] for first, _ in ways], dtype=float)  # [ways, K]
    d = D.double().numpy()
    within = (np.einsum("pi,ij,pj->p", side, d, side) + np.einsum("pi,ij,pj->p", 1 - side, d, 1 - side)) / 2
    best = int(within.argmin())
    return Partition(ways[best], float(within[best]), float(d.sum() / 2 - within[best]))


def gradient_distances(
    gradients: Sequence[Sequence[Tensor | None]], kind: str = "cos", names: Sequence[str] | None = None
) -> Tensor:
    """Distances between options ``[K, K]``.

    Args:
        gradients: for each option, one for each shared tensor, in the same order; None if it does not depend on it.
        kind: of distance.
        names: of the tensors, for messages.

    Raises:
        ShapeError: gradients of a tensor that options do not share, such as one of the edge itself; names it.
        UsageError: another kind, or no tensor of two axes for ``"per-filter-cos"``.
    """
    if kind not in DISTANCES:
        raise UsageError(f"No gradient distance {kind!r}. {suggest(kind, DISTANCES)}")
    stacks = []  # [K, *shape] for each tensor that some option depends on; where none does, nothing differs
    for place, column in enumerate(zip(*gradients)):
        like = next((g for g in column if g is not None), None)
        if like is not None:
            shapes = {tuple(g.shape) for g in column if g is not None}
            if len(shapes) > 1:
                raise ShapeError(
                    f"Gradients of {place if names is None else names[place]!r} have shapes {sorted(shapes)}: options "
                    f"do not share it. Compare weights that all options share, none of the edge itself."
                )
            stacks.append(torch.stack([torch.zeros_like(like) if g is None else g for g in column]).double())
    if kind == "per-filter-cos":
        filters = [s.flatten(2).transpose(0, 1) for s in stacks if s.ndim > 2]  # [F, K, n]
        if not filters:
            raise UsageError("No shared tensor has output filters, so 'per-filter-cos' compares nothing; take 'cos'.")
        return torch.stack([_one_minus_cosine(f).sum(0) for f in filters]).sum(0)
    G_KP = torch.cat([s.flatten(1) for s in stacks], 1)
    if kind == "cos":
        return _one_minus_cosine(G_KP)
    return torch.cdist(G_KP, G_KP, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / G_KP.shape[1]


def _one_minus_cosine(G: Tensor) -> Tensor:
    """``[..., K, n] -> [..., K, K]``."""
    norm = G.norm(dim=-1, keepdim=True)
    unit = G / norm.clamp_min(torch.finfo(G.dtype).tiny)
    cosine = unit @ unit.mT
    zero = (norm == 0).double()
    D = (1 - cosine - zero @ zero.mT).clamp(0, 2)
    return D * (1 - torch.eye(G.shape[-2], dtype=G.dtype))


class GradientMatching(Splitter):
    """Divides the edge where the best division separates the shared gradients most.

    Args:
        distance: of two gradients.
        batches: R, batches and architectures over which distances are averaged.
        smallest: options of each group.
        edge_score: ``"cut"`` (largest), or ``"within"`` (smallest) as in the published code for the DARTS space.

    Raises:
        UsageError: a setting out of range.
    """

    def __init__(self, distance: str = "cos", batches: int = 100, smallest: int = 2, edge_score: str = "cut") -> None:
        super().__init__(smallest)
        if distance not in DISTANCES:
            raise UsageError(f"No gradient distance {distance!r}. {suggest(distance, DISTANCES)}")
        if edge_score not in EDGE_SCORES:
            raise UsageError(f"Edges are scored by {' or '.join(EDGE_SCORES)}, not {edge_score!r}.")
        if not isinstance(batches, int) or batches < 1:
            raise UsageError(f"batches must be a positive integer, not {batches!r}.")
        self.distance, self.batches, self.edge_score = distance, batches, edge_score

    def split(self, state: SearchState, gradient: ArchGradient, seed: int, deadline: float | None) -> Split | None:
        found: dict[str, Partition] = {}
        data = list(training_batches(state, self.batches, seed))
        for name in self.candidates(state):
            D = self.distances(state, gradient, name, data, deadline)
            if D is None:
                return None
            found[name] = best_partition(D, self.smallest)
        if self.edge_score == "cut":
            best = max(found, key=lambda n: found[n].cut)
        else:
            best = min(found, key=lambda n: found[n].within)
        return Split(best, found[best].groups, {n: getattr(p, self.edge_score) for n, p in found.items()})

    def distances(
        self,
        state: SearchState,
        gradient: ArchGradient,
        name: str,
        data: Sequence[Batch],
        deadline: float | None = None,
    ) -> Tensor | None:
        """D of an edge ``[K, K]``, averaged over batches; None if the deadline passed. Changes nothing."""
        row = state.parameters.rows[name]
        K = choosable(row)
        shared = shared_weights(state, row)
        total = torch.zeros(K, K, dtype=torch.float64)
        with frozen_statistics(batch_norms(state.supernet)):
            for x, y in data:
                if deadline is not None and time.monotonic() > deadline:
                    return None
                mixture = drawn_mixture(state, gradient)
                found = []
                for o in range(K):
                    output = state.output(x, {**mixture, name: only(mixture[name], o)})
                    loss = state.objective.weight_loss(state, output, x, y)
                    found.append(torch.autograd.grad(loss, list(shared.values()), allow_unused=True))
                total += gradient_distances(found, self.distance, list(shared))
        return total / len(data)


def shared_weights(state: SearchState, row: Row) -> dict[str, Tensor]:
    """All weights by name, but for those of an edge itself: its options have gradients of different shapes."""
    own = {id(p) for module in row.modules for p in module.parameters()}
    return {n: p for n, p in state.weights.items() if id(p) not in own}


def drawn_mixture(state: SearchState, gradient: ArchGradient) -> dict[str, Tensor]:
    """The architecture of a training step, without gradients: a sampled path or the mixture."""
    if isinstance(gradient, SampledPaths):
        return gradient.draw(state)
    return {n: w.detach() for n, w in state.mixture_weights(training=True).items()}


def only(weights: Tensor, o: int) -> Tensor:
    """Only option ``o`` is active, with its weight in a mixture, or 1 where a path was sampled.

    >>> only(torch.tensor([0.25, 0.75]), 1), only(torch.tensor([1.0, 0.0]), 1)
    (tensor([0.0000, 0.7500]), tensor([0., 1.]))
    """
    out = torch.zeros_like(weights)
    out[o] = 1.0 if int((weights != 0).sum()) == 1 else weights[o]
    return out


def training_batches(state: SearchState, number: int, seed: int) -> Iterator[Batch]:
    """So many batches of the weights' half of the data, reshuffled when it is used up."""
    data, size, steps = state.halves[0], state.schedule.batch_size, state.steps_per_epoch
    for k in range(number):
        epoch, step = divmod(k, steps)
        yield batch(data, shuffled(len(data), seed, epoch)[step * size : (step + 1) * size])
