"""PC-DARTS: only one K-th of the channels goes through the mixture; nodes weigh their edges.

Xu, Xie, Zhang, Chen, Qi, Tian, Xiong. PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search.
2019. https://arxiv.org/abs/1907.05737

    edge    x = [x_a (first C/K channels), x_b]
            y_ij = shuffle_K([ Σ_o softmax(α_ij)_o · o(x_a),  x_b ])      x_b max-pooled 2x2 where the edge has stride 2
    node    x_j = Σ_{i<j} β̂_ij · y_ij,    β̂_·j = softmax of β over the predecessors of j
    keep    two edges a node by β̂_ij · max_o softmax(α_ij)_o

All operations are built with C/K channels, so activations fall with 1/K and pointwise weights with 1/K². The shuffle
moves other channels to the front for the next edge. β steadies the choice of edges, which the sampling makes noisy.

Fills the `mix` slot. Known differences: those of :mod:`~archipel.search.differentiable.darts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.errors import ShapeError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.schedule import Schedule
from archipel.spaces.operations import EdgeFactory, OpFactory, choice_edge, join


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal groups; undone by a shuffle with C/groups groups.

    >>> import torch
    >>> channel_shuffle(torch.arange(8).reshape(1, 8, 1, 1), 4).flatten().tolist()
    [0, 2, 4, 6, 1, 3, 5, 7]
    """
    B, C, H, W = x.shape
    return x.view(B, groups, C // groups, H, W).transpose(1, 2).reshape(B, C, H, W)


class PartialChannelEdge(nn.Module):
    """An edge whose inner module sees the first C/K channels; ``[B, C, H, W] -> [B, C, H/stride, W/stride]``.

    Args:
        inner: on C/K channels; a choice while searching, one operation once decided.
        K: parts of the channels.
        stride: of ``inner``, 1 or 2.
    """

    def __init__(self, inner: nn.Module, K: int, stride: int) -> None:
        super().__init__()
        self.inner = inner
        self.K = K
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.K == 1:
            return self.inner(x)
        share = x.shape[1] // self.K
        bypass = x[:, share:]
        if self.stride > 1:
            bypass = F.max_pool2d(bypass, 2, 2)
        return channel_shuffle(join(x, self.stride, self.inner(x[:, :share]), bypass), self.K)

    def extra_repr(self) -> str:
        return f"K={self.K}, stride={self.stride}"


class PartialChannels(Mix):
    """Softmax mixtures of one K-th of the channels; nodes weigh their edges.

    Args:
        K: the paper's 4 for CIFAR-10 and 2 for ImageNet; 1 is DARTS.
        weigh_edges: whether nodes weigh their edges (β); without, they sum them as in DARTS.
        inside: makes the edge on C/K channels.

    Raises:
        ShapeError: K is no positive integer (a ``ValueError``).
    """

    def __init__(self, K: int = 4, weigh_edges: bool = True, inside: EdgeFactory = choice_edge) -> None:
        if isinstance(K, bool) or not isinstance(K, int) or K < 1:
            raise ShapeError(f"PartialChannels: K, the number of parts, must be a positive integer, not {K!r}.")
        self.K = K
        self.weigh_edges = weigh_edges
        self.inside = inside

    def edge(  # type: ignore[override]
        self, name: str, ops: Mapping[str, OpFactory], C: int, stride: int, blend_only: Sequence[str] = ()
    ) -> nn.Module:
        """
        Raises:
            ShapeError: C is not divisible by K; names the edge.
        """
        if C % self.K:
            raise ShapeError(
                f"Edge {name!r} has C={C} channels, which cannot be divided into K={self.K} parts. "
                f"Take C as a multiple of {self.K}, or another K."
            )
        return PartialChannelEdge(self.inside(name, ops, C // self.K, stride, blend_only), self.K, stride)


# Section 4.2 and reference code: the architecture rests for the first 15 of 50 epochs.
SCHEDULE = Schedule(epochs=50, warmup=15, batch_size=256, lr=0.1, lr_min=0.0, alpha_lr=6e-4)


@register(
    "pc-darts",
    card=61,
    family="search.differentiable",
    slots=["mix"],
    paper=Paper(
        "PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search",
        2019,
        "https://arxiv.org/abs/1907.05737",
    ),
)
def pc_darts(
    K: int = 4, weigh_edges: bool = True, schedule: Schedule | None = None, **slots: Any
) -> DifferentiableSearch:
    """Differentiable search whose edges process one K-th of their channels, with weighed edges.

    Args:
        K, weigh_edges: see :class:`PartialChannels`.
        schedule: the paper's by default: 50 epochs with 15 of warm-up, batches of 256.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    >>> pc_darts(K=2).mix.K
    2
    """
    return DifferentiableSearch(mix=PartialChannels(K, weigh_edges), schedule=schedule or SCHEDULE, **slots)
