"""MobileNet-like elastic convolutional networks for images of any size.

Inverted residuals and linear bottlenecks: Sandler et al., MobileNetV2, 2018, https://arxiv.org/abs/1801.04381.
Squeeze-and-excitation: Hu et al., 2017, https://arxiv.org/abs/1709.01507. Elastic depth, width and kernel: Cai et al.,
Once-for-All, 2019, https://arxiv.org/abs/1908.09791.

    stem 3x3 -> stages -> 1x1 convolution -> average over the plane -> linear

A stage has a decided number of blocks and a decided number of channels; its first block changes channels and
resolution, the others are residual. A block widens its input by a decided factor (1x1), filters each channel by a
decided kernel (k x k), may reweight the channels by what they hold on average (decided for the stage), and narrows
again (1x1). Stages halve the resolution until a side of about 4 is left: 2 stages for 8x8, 3 for 28x28, 4 for 32x32.

Smaller networks use the first channels and the centre of the kernels of the largest one. Differs from Once-for-All in
that smaller kernels are plain centres, without a learned transformation, and that channels are not sorted.
The blocks also serve one-dimensional signals (:mod:`archipel.spaces.signal`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice, Depth, Kernel, Size, Width
from archipel.core.errors import SpaceError
from archipel.spaces.layers import (
    ElasticBatchNorm1d,
    ElasticBatchNorm2d,
    ElasticConv1d,
    ElasticConv2d,
    ElasticLinear,
)
from archipel.spaces.module_space import ModuleSpace

CONV = {1: ElasticConv1d, 2: ElasticConv2d}
NORM = {1: ElasticBatchNorm1d, 2: ElasticBatchNorm2d}


def conv_norm(
    dims: int, i: Size, o: Size, kernel: Size = 1, stride: int = 1, depthwise: bool = False, act: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and, unless the output is a linear bottleneck, ReLU6."""
    layers = [CONV[dims](i, o, kernel, stride, depthwise=depthwise, bias=False), NORM[dims](o)]
    return nn.Sequential(*layers, *[nn.ReLU6()] * act)


class SqueezeExcite(nn.Module):
    """Channels reweighted by a gate that sees their averages; ``[B, C, ...] -> [B, C, ...]``."""

    def __init__(self, dims: int, channels: Size, reduction: int = 4) -> None:
        super().__init__()
        squeezed: Size = channels // reduction  # type: ignore[operator]
        self.dims = dims
        self.gate = nn.Sequential(
            ElasticLinear(channels, squeezed), nn.ReLU(), ElasticLinear(squeezed, channels), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x.flatten(2).mean(-1)).unsqueeze(-1)
        return x * (gate.unsqueeze(-1) if self.dims == 2 else gate)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, perhaps reweight, narrow; ``[B, i, ...] -> [B, o, ...]``.

    Args:
        i, o: channels; the same size object makes it residual.
        expand: factor between ``i`` and the channels that are filtered.
        kernel: of the filters.
        attention: name of the decision for squeeze-and-excitation, or None to go without.
    """

    def __init__(
        self, dims: int, i: Size, o: Size, expand: Size, kernel: Size, stride: int, attention: str | None
    ) -> None:
        super().__init__()
        hidden: Size = i * expand  # type: ignore[operator]
        gate = []
        if attention:
            gate = [Choice(attention, {"none": nn.Identity(), "se": SqueezeExcite(dims, hidden)})]
        self.residual = stride == 1 and i is o
        self.body = nn.Sequential(
            conv_norm(dims, i, hidden),
            conv_norm(dims, hidden, hidden, kernel, stride, depthwise=True),
            *gate,
            conv_norm(dims, hidden, o, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNet(nn.Module):
    """The largest network of the space; see :func:`mobile_space`. ``[B, C, ...] -> [B, classes]``."""

    def __init__(
        self,
        dims: int,
        channels: int,
        classes: int,
        stem_stride: int,
        strides: Sequence[int],
        widths: Sequence[Sequence[int]],
        depth: tuple[int, int],
        expand: Sequence[int],
        kernels: Sequence[int],
        attention: bool,
        head: Sequence[int],
    ) -> None:
        super().__init__()
        stem = Width("stem.width", widths[0])
        self.stem = conv_norm(dims, channels, stem, 3, stem_stride)
        stages = []
        i = stem
        for s, (stride, options) in enumerate(zip(strides, widths[1:])):
            name = f"stage{s}"
            o = Width(f"{name}.width", options)
            blocks = []
            for b in range(depth[1]):
                blocks.append(
                    InvertedResidual(
                        dims,
                        o if b else i,
                        o,
                        Width(f"{name}.{b}.expand", expand),
                        Kernel(f"{name}.{b}.kernel", kernels),
                        1 if b else stride,
                        f"{name}.attention" if attention else None,
                    )
                )
            stages.append(Depth(f"{name}.depth", blocks, depth[0]))
            i = o
        features = Width("head.width", head)
        self.stages = nn.Sequential(*stages)
        self.head = conv_norm(dims, i, features)
        self.classifier = ElasticLinear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.stages(self.stem(x)))
        return self.classifier(x.flatten(2).mean(-1))


def halvings(side: int, smallest: int = 4) -> int:
    """How often a side can be halved (rounding up) until less than twice ``smallest`` is left.

    >>> [halvings(side) for side in (8, 28, 32, 224)]
    [1, 2, 3, 5]
    """
    return max(0, int(math.log2(max(1, side) / smallest))) if side >= smallest else 0


def even_widths(base: int, ratios: Sequence[float]) -> tuple[int, ...]:
    """Numbers of channels near ``base`` times the ratios, multiples of 4.

    >>> even_widths(24, (0.5, 0.75, 1.0))
    (12, 16, 24)
    """
    return tuple(sorted({max(4, int(base * r) // 4 * 4) for r in ratios}))


def mobile_space(
    input_shape: Sequence[int],
    classes: int,
    width: int = 16,
    ratios: Sequence[float] = (0.5, 0.75, 1.0),
    depth: tuple[int, int] = (1, 3),
    expand: Sequence[int] = (2, 3, 4),
    kernels: Sequence[int] | None = None,
    attention: bool = True,
    stages: int | None = None,
) -> ModuleSpace:
    """The space of MobileNet-like networks for images.

    Args:
        input_shape: ``(C, H, W)``.
        classes: number of outputs.
        width: channels of the widest stem; stages grow from it by half each.
        ratios: options of every number of channels, as fractions of the widest.
        depth: smallest and largest number of blocks of a stage; at least 1, since the first block makes the channels.
        expand: options of each block's expansion.
        kernels: options of each block's kernel; by default 3 and 5, and 7 for sides of 16 and more.
        attention: whether squeeze-and-excitation is an option of every stage.
        stages: number of stages; by default as many as the input's side allows, at most 5.

    Raises:
        SpaceError: the input is no image, or is too small for the stages.

    >>> space = mobile_space((1, 8, 8), 10)
    >>> [d.name for d in space.decisions if d.name.endswith("width")]
    ['stem.width', 'stage0.width', 'stage1.width', 'head.width']
    """
    if len(input_shape) != 3:
        raise SpaceError(f"mobile: needs images (C, H, W), not inputs of shape {tuple(input_shape)}.")
    side = min(input_shape[1:])
    return inverted_residual_space(
        "mobile", 2, input_shape, classes, side, 64, width, ratios, depth, expand,
        kernels or ((3, 5, 7) if side >= 16 else (3, 5)), attention, stages,
    )  # fmt: skip


def inverted_residual_space(
    name: str,
    dims: int,
    input_shape: Sequence[int],
    classes: int,
    side: int,
    stem_halves_from: int,
    width: int,
    ratios: Sequence[float],
    depth: tuple[int, int],
    expand: Sequence[int],
    kernels: Sequence[int],
    attention: bool,
    stages: int | None,
) -> ModuleSpace:
    """What images and signals share: stages planned by the input's side, each after the first halving it."""
    halve_first = side >= stem_halves_from
    possible = 1 + halvings(side) - halve_first
    count = min(5, possible) if stages is None else stages
    if not 1 <= count <= possible:
        raise SpaceError(
            f"{name}: {count} stages do not fit inputs of side {side}, which can be halved for at most {possible}. "
            f"Give stages from 1 to {possible}, or larger inputs."
        )
    if not 1 <= depth[0] <= depth[1]:
        raise SpaceError(f"{name}: depth must be (smallest, largest) with 1 <= smallest <= largest, not {depth!r}.")
    bases = [width, *(round(width * 1.5**s) for s in range(count))]
    factory = functools.partial(
        MobileNet,
        dims,
        input_shape[0],
        classes,
        2 if halve_first else 1,
        (1, *[2] * (count - 1)),
        tuple(even_widths(b, ratios) for b in bases),
        (depth[0], depth[1]),
        tuple(expand),
        tuple(kernels),
        attention,
        even_widths(bases[-1] * 4, ratios),
    )
    return ModuleSpace(factory, torch.zeros(2, *input_shape), name=name)
