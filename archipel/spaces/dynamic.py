"""Layers whose narrow forms and small kernels share weights in one of several ways; see :mod:`archipel.spaces.sharing`.

A training pass of the random kind draws where its chunk of channels lies, so what such a layer uses depends on more
than the decisions; it says so by ``live_varies``.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.choice import Decider, Extract, Size, Undecided, size_at
from archipel.core.errors import SpaceError, suggest
from archipel.spaces.layers import ElasticConv2d, ElasticLinear

CHANNELS = ("fixed", "random", "interpolate")


@functools.cache
def _pooling(full: int, size: int) -> Tensor:
    """Adaptive average pooling of ``full`` channels to ``size``, as a matrix ``[full, size]``."""
    with torch.device("cpu"):
        return F.adaptive_avg_pool1d(torch.eye(full)[None], size)[0]


def pooled(t: Tensor, axis: int, size: int) -> Tensor:
    """A tensor with one axis averaged down to ``size``."""
    if t.shape[axis] == size:
        return t
    matrix = _pooling(t.shape[axis], size).to(t.device, t.dtype)
    return (t.movedim(axis, -1) @ matrix).movedim(-1, axis)


class _Dynamic(Undecided):
    """Takes output channels (axis 0) and input channels (axis 1) of its weight in one of the three ways."""

    channels: str
    training: bool
    weight: Tensor
    bias: Tensor | None
    sizes: tuple[Size, ...]
    offset: tuple[int, int] = (0, 0)

    def _set_channels(self, channels: str) -> None:
        if channels not in CHANNELS:
            raise SpaceError(f"channels={channels!r} is unknown. {suggest(channels, CHANNELS)}")
        self.channels = channels
        self.live_varies = channels == "random"  # what is used depends on a draw, too

    def _wanted(self, decider: Decider) -> tuple[int, int]:
        return size_at(self.sizes[1], decider), size_at(self.sizes[0], decider)

    def _draw_offset(self) -> None:
        """In training passes of the random kind, a place for the chunk; otherwise the first channels."""
        self.offset = (0, 0)
        if self.channels == "random" and self.training:
            spare = [n - k for n, k in zip(self.weight.shape, self._wanted(self.seat.decider))]
            self.offset = tuple(int(torch.randint(0, s + 1, ())) if s else 0 for s in spare)  # type: ignore[assignment]

    def _shared(self, decider: Decider) -> tuple[Tensor, Tensor | None]:
        o, i = self._wanted(decider)
        if self.channels == "interpolate":
            bias = None if self.bias is None else pooled(self.bias, 0, o)
            return pooled(pooled(self.weight, 0, o), 1, i), bias
        o0, i0 = self.offset
        bias = None if self.bias is None else self.bias[o0 : o0 + o]
        return self.weight[o0 : o0 + o, i0 : i0 + i], bias

    def _chunk(self, decider: Decider) -> tuple[slice, slice]:
        (o0, i0), (o, i) = self.offset, self._wanted(decider)
        return slice(o0, o0 + o), slice(i0, i0 + i)


class DynamicLinear(_Dynamic, ElasticLinear):
    """Linear layer whose narrow forms share weights in a given way; ``[..., in] -> [..., out]``.

    >>> from archipel.core.choice import Width
    >>> layer = DynamicLinear(2, Width("w", [1, 2]), channels="interpolate")
    >>> layer.own_decisions()[0].options
    (1, 2)
    """

    def __init__(self, in_features: Size, out_features: Size, bias: bool = True, channels: str = "fixed") -> None:
        ElasticLinear.__init__(self, in_features, out_features, bias)
        self._set_channels(channels)

    def _now(self, decider: Decider) -> tuple[Tensor, Tensor | None]:
        return ElasticLinear._now(self, decider) if self.channels == "fixed" else self._shared(decider)

    def forward(self, x: Tensor) -> Tensor:
        self._draw_offset()
        return ElasticLinear.forward(self, x)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        self.offset = (0, 0)
        return ElasticLinear.extract(self, decider, inner)

    def live(self, decider: Decider) -> dict[str, tuple[slice, ...]]:
        if self.channels == "interpolate":
            return {}
        chunk = self._chunk(decider)
        return {"weight": chunk, "bias": chunk[:1]}


class DynamicConv2d(_Dynamic, ElasticConv2d):
    """2-D convolution (not depthwise) whose narrow forms share weights in a given way; ``[B, C, H, W]``.

    Args:
        largest: the convolution whose kernel's centre this one uses, or None to have weights of its own.
        transform: multiply the centre by a learned matrix, the identity at first.
    """

    def __init__(
        self,
        in_channels: Size,
        out_channels: Size,
        kernel: int = 3,
        channels: str = "fixed",
        largest: DynamicConv2d | None = None,
        transform: bool = False,
    ) -> None:
        ElasticConv2d.__init__(self, in_channels, out_channels, kernel, bias=False)
        self._set_channels(channels)
        if largest is not None:
            self.weight = largest.weight  # type: ignore[assignment]
        matrix = torch.eye(kernel * kernel) if transform and largest is not None else None
        self.register_parameter("transform", None if matrix is None else nn.Parameter(matrix))

    def _now(self, decider: Decider) -> tuple[Tensor, Tensor | None, int, int]:
        if self.channels == "fixed":
            weight, bias, padding, groups = ElasticConv2d._now(self, decider)
        else:
            (weight, bias), k = self._shared(decider), size_at(self.sizes[2], decider)
            weight, padding, groups = weight[(..., *self._centre(k))], self.dilation[0] * (k // 2), 1
        if self.transform is not None:
            weight = (weight.flatten(2) @ self.transform).view_as(weight)
        return weight, bias, padding, groups

    def _centre(self, k: int) -> tuple[slice, slice]:
        start = (self.weight.shape[-1] - k) // 2
        return slice(start, start + k), slice(start, start + k)

    def forward(self, x: Tensor) -> Tensor:
        self._draw_offset()
        return ElasticConv2d.forward(self, x)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        self.offset = (0, 0)
        return ElasticConv2d.extract(self, decider, inner)

    def live(self, decider: Decider) -> dict[str, tuple[slice, ...]]:
        o, i = self._chunk(decider)
        if self.channels == "interpolate":
            o, i = slice(None), slice(None)
        return {"weight": (o, i, *self._centre(size_at(self.sizes[2], decider)))}


class DropPath(nn.Module):
    """While training, zeroes whole examples with probability ``rate`` and scales the others up to make up for it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept / (1.0 - self.rate)
