"""Elastic layers: their sizes are decisions, their weights are views into the largest one.

A smaller layer uses the first channels (and the centre of the kernel) of the largest, so that all sizes share
weights. ``forward`` only slices; a full-size layer slices nothing. ``extract`` gives the plain layer of the same kind.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.choice import Decider, Extract, Size, Undecided, decisions_in, largest, size_at
from archipel.core.decision import Decision
from archipel.core.errors import ShapeError


def _param(t: Tensor) -> nn.Parameter:
    return nn.Parameter(t.detach().clone())


def _first(t: Tensor, n: int, axis: int = 0) -> Tensor:
    """The first ``n`` along an axis; the tensor itself if that is all."""
    return t if t.shape[axis] == n else t.narrow(axis, 0, n)


def _unique(sizes: list[Size]) -> list[Decision]:
    return list(dict.fromkeys(d for s in sizes for d in decisions_in(s)))


@functools.cache
def _uninitialised(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (kind,), {"reset_parameters": lambda self: None})


def _bare(kind: type[nn.Module], *args: Any, **kwargs: Any) -> Any:
    """A layer on the meta device whose tensors are about to be replaced.

    Initialising them first, even without memory, took half of the time of an extraction.
    """
    layer = _uninitialised(kind)(*args, **kwargs, device="meta")
    layer.__class__ = kind
    return layer


class ElasticLinear(Undecided, nn.Linear):
    """Linear layer with decided numbers of features; input ``[..., in]``, output ``[..., out]``."""

    def __init__(self, in_features: Size, out_features: Size, bias: bool = True) -> None:
        nn.Linear.__init__(self, largest(in_features), largest(out_features), bias)
        self.sizes = (in_features, out_features)

    def own_decisions(self) -> list[Decision]:
        return _unique(list(self.sizes))

    def _now(self, decider: Decider) -> tuple[Tensor, Tensor | None]:
        i, o = size_at(self.sizes[0], decider), size_at(self.sizes[1], decider)
        weight = _first(_first(self.weight, o), i, axis=1)
        return weight, None if self.bias is None else _first(self.bias, o)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self._now(self.seat.decider))

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        weight, bias = self._now(decider)
        new = _bare(nn.Linear, weight.shape[1], weight.shape[0], bias is not None)
        new.weight = _param(weight)
        if bias is not None:
            new.bias = _param(bias)
        return new

    def live(self, decider: Decider) -> dict[str, tuple[slice, ...]]:
        o, i = self._now(decider)[0].shape
        return {"weight": (slice(o), slice(i)), "bias": (slice(o),)}


class _ElasticConv(Undecided):
    """What one- and two-dimensional elastic convolutions share; ``dims`` and ``plain`` differ."""

    dims: int
    plain: type[nn.Module]
    weight: Tensor
    bias: Tensor | None
    groups: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def _setup(
        self, in_ch: Size, out_ch: Size, kernel: Size, stride: int, dilation: int, depthwise: bool, bias: bool
    ) -> None:
        if depthwise and in_ch is not out_ch and in_ch != out_ch:
            raise ShapeError(f"A depthwise convolution keeps its channels, but got {in_ch!r} in and {out_ch!r} out.")
        groups = largest(in_ch) if depthwise else 1
        self.plain.__init__(  # type: ignore[misc]
            self,
            largest(in_ch),
            largest(out_ch),
            largest(kernel),
            stride=stride,
            dilation=dilation,
            padding=dilation * (largest(kernel) // 2),
            groups=groups,
            bias=bias,
        )
        self.sizes = (in_ch, out_ch, kernel)
        self.depthwise = depthwise

    def own_decisions(self) -> list[Decision]:
        return _unique(list(self.sizes))

    def _slices(self, decider: Decider) -> tuple[slice, ...]:
        i, o, k = (size_at(s, decider) for s in self.sizes)
        start = (self.weight.shape[-1] - k) // 2
        centre = slice(start, start + k)
        return (slice(o), slice(1 if self.depthwise else i), *[centre] * self.dims)

    def _now(self, decider: Decider) -> tuple[Tensor, Tensor | None, int, int]:
        """Weight, bias, padding and groups in use."""
        weight = self.weight
        for axis, s in enumerate(self._slices(decider)):
            size = s.stop - (s.start or 0)
            if size < weight.shape[axis]:  # even an idle slice costs autograd time
                weight = weight.narrow(axis, s.start or 0, size)
        o, k = weight.shape[0], weight.shape[-1]
        bias = None if self.bias is None else _first(self.bias, o)
        return weight, bias, self.dilation[0] * (k // 2), o if self.depthwise else 1

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, padding, groups = self._now(self.seat.decider)
        conv = F.conv2d if self.dims == 2 else F.conv1d
        return conv(x, weight, bias, self.stride, padding, self.dilation, groups)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        weight, bias, padding, groups = self._now(decider)
        new = _bare(
            self.plain,
            weight.shape[1] * groups,
            weight.shape[0],
            weight.shape[-1],
            stride=self.stride[0],
            dilation=self.dilation[0],
            padding=padding,
            groups=groups,
            bias=bias is not None,
        )
        new.weight = _param(weight)
        if bias is not None:
            new.bias = _param(bias)
        return new

    def live(self, decider: Decider) -> dict[str, tuple[slice, ...]]:
        slices = self._slices(decider)
        return {"weight": slices, "bias": slices[:1]}


class ElasticConv2d(_ElasticConv, nn.Conv2d):
    """2-D convolution with decided channels and kernel, "same" padding; ``[B, C, H, W]``.

    Args:
        in_channels, out_channels: sizes; equal for a depthwise one.
        kernel: odd size; smaller kernels are the centre of the largest.
        depthwise: one filter for each channel.
    """

    dims, plain = 2, nn.Conv2d

    def __init__(
        self,
        in_channels: Size,
        out_channels: Size,
        kernel: Size = 3,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        bias: bool = True,
    ) -> None:
        self._setup(in_channels, out_channels, kernel, stride, dilation, depthwise, bias)


class ElasticConv1d(_ElasticConv, nn.Conv1d):
    """1-D convolution with decided channels and kernel, "same" padding; ``[B, C, T]``. See :class:`ElasticConv2d`."""

    dims, plain = 1, nn.Conv1d

    def __init__(
        self,
        in_channels: Size,
        out_channels: Size,
        kernel: Size = 3,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        bias: bool = True,
    ) -> None:
        self._setup(in_channels, out_channels, kernel, stride, dilation, depthwise, bias)


class _ElasticBatchNorm(Undecided):
    """Batch normalisation of the first so many channels; all sizes share one set of statistics."""

    plain: type[nn.Module]
    num_features: int
    eps: float
    momentum: float | None
    affine: bool
    track_running_stats: bool
    training: bool
    weight: Tensor
    bias: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def _setup(self, features: Size, eps: float, momentum: float | None, affine: bool, track: bool) -> None:
        self.plain.__init__(self, largest(features), eps, momentum, affine, track)  # type: ignore[misc]
        self.size = features

    def own_decisions(self) -> list[Decision]:
        return decisions_in(self.size)

    def _now(self, decider: Decider) -> tuple[Tensor | None, ...]:
        n = size_at(self.size, decider)
        tensors = (self.running_mean, self.running_var, self.weight, self.bias)
        return tuple(None if t is None else _first(t, n) for t in tensors)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)  # type: ignore[attr-defined]
        mean, var, weight, bias = self._now(self.seat.decider)
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        return F.batch_norm(x, mean, var, weight, bias, self.training or mean is None, factor, self.eps)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        n = size_at(self.size, decider)
        new = _bare(self.plain, n, self.eps, self.momentum, self.affine, self.track_running_stats)
        mean, var, weight, bias = self._now(decider)
        if weight is not None and bias is not None:
            new.weight, new.bias = _param(weight), _param(bias)
        if mean is not None and var is not None:
            new.running_mean, new.running_var = mean.detach().clone(), var.detach().clone()
            new.num_batches_tracked = self.num_batches_tracked.detach().clone()  # type: ignore[union-attr]
        return new

    def live(self, decider: Decider) -> dict[str, tuple[slice, ...]]:
        n = size_at(self.size, decider)
        return {"weight": (slice(n),), "bias": (slice(n),)}


class ElasticBatchNorm2d(_ElasticBatchNorm, nn.BatchNorm2d):
    """Batch normalisation with a decided number of channels; ``[B, C, H, W]``."""

    plain = nn.BatchNorm2d

    def __init__(
        self, features: Size, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True, track: bool = True
    ) -> None:
        self._setup(features, eps, momentum, affine, track)


class ElasticBatchNorm1d(_ElasticBatchNorm, nn.BatchNorm1d):
    """Batch normalisation with a decided number of features; ``[B, C]`` or ``[B, C, T]``."""

    plain = nn.BatchNorm1d

    def __init__(
        self, features: Size, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True, track: bool = True
    ) -> None:
        self._setup(features, eps, momentum, affine, track)


class ElasticLayerNorm(Undecided, nn.LayerNorm):
    """Layer normalisation over a decided number of features; ``[..., F]``."""

    def __init__(self, features: Size, eps: float = 1e-5) -> None:
        nn.LayerNorm.__init__(self, largest(features), eps)
        self.size = features

    def own_decisions(self) -> list[Decision]:
        return decisions_in(self.size)

    def forward(self, x: Tensor) -> Tensor:
        n = size_at(self.size, self.seat.decider)
        return F.layer_norm(x, (n,), _first(self.weight, n), _first(self.bias, n), self.eps)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        n = size_at(self.size, decider)
        new = _bare(nn.LayerNorm, n, self.eps)
        new.weight, new.bias = _param(self.weight[:n]), _param(self.bias[:n])
        return new

    def live(self, decider: Decider) -> dict[str, tuple[slice, ...]]:
        n = size_at(self.size, decider)
        return {"weight": (slice(n),), "bias": (slice(n),)}


def reset_parameters(module: nn.Module) -> list[str]:
    """Initialise every submodule by its own rule, children first.

    Returns:
        names of the submodules that own tensors but have no rule (``reset_parameters``); these were left alone.
    """
    without: list[str] = []
    for name, m in reversed(list(module.named_modules())):
        reset = getattr(m, "reset_parameters", None) or getattr(m, "_reset_parameters", None)
        if callable(reset):
            with torch.no_grad():
                reset()
        elif m._parameters or any(b is not None for b in m._buffers.values()):
            without.append(name)
    return without
