"""Stages of inverted residual blocks whose number, expansions, kernels and attention are decided: HardCoRe-NAS.

Nayman, Aflalo, Noy, Zelnik-Manor. HardCoRe-NAS: Hard Constrained diffeRentiable Neural Architecture Search. 2021.
https://arxiv.org/abs/2102.11646

    stem 3x3 -> separable block -> stages -> 1x1 convolution -> mean -> linear -> linear

A stage has a decided number of blocks; of each block the expansion, the kernel and whether it has squeeze-and-
excitation are decided, one *operation* of all combinations. The first block of a stage changes channels and resolution.
Smaller operations use the first channels and the kernels' centres of the largest, so all networks share weights. At the
published sizes there are (12² + 12³ + 12⁴)⁵ networks.

Departs from the published network where an expansion of 1 is an option: it keeps its widening convolution.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice, Depth, Derived, Kernel, Size, Width
from archipel.core.decision import Arch
from archipel.core.errors import SpaceError
from archipel.nets.mbconv import MBConv, activation, divisible
from archipel.nets.mbconv import conv_norm as plain_conv_norm
from archipel.spaces.layers import ElasticBatchNorm2d, ElasticConv2d
from archipel.spaces.module_space import ModuleSpace


@dataclass(frozen=True)
class Operation:
    """What stands in a block."""

    expand: int
    kernel: int
    se: bool

    @property
    def label(self) -> str:
        """
        >>> Operation(6, 5, True).label
        'e6k5se'
        """
        return f"e{self.expand}k{self.kernel}" + "se" * self.se


def elastic_conv_norm(
    i: Size, o: Size, kernel: Size = 1, stride: int = 1, depthwise: bool = False, act: str | None = None
) -> nn.Sequential:
    layers = [ElasticConv2d(i, o, kernel, stride, depthwise=depthwise, bias=False), ElasticBatchNorm2d(o)]
    return nn.Sequential(*layers, *([activation(act)] if act else []))


def _squeezed(channels: int, share: int) -> int:
    return divisible(channels / share)


class ElasticSqueezeExcite(nn.Module):
    """Channels reweighted by a gate that sees their averages, a quarter of them in between; ``[B, C, H, W]``."""

    def __init__(self, channels: Size) -> None:
        super().__init__()
        reduced = Derived(_squeezed, channels, 4)
        self.gate = nn.Sequential(
            ElasticConv2d(channels, reduced, 1), nn.ReLU(), ElasticConv2d(reduced, channels, 1), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class ElasticMBConv(nn.Module):
    """A block of which all operations are possible; ``[B, i, H, W] -> [B, o, H/stride, W/stride]``."""

    def __init__(
        self,
        name: str,
        i: int,
        o: int,
        stride: int,
        expand: Sequence[int],
        kernels: Sequence[int],
        attention: Sequence[bool],
        act: str,
    ) -> None:
        super().__init__()
        hidden = Width(f"{name}.expand", expand) * i
        gates = {"plain": nn.Identity(), "se": ElasticSqueezeExcite(hidden)}
        self.residual = stride == 1 and i == o
        self.body = nn.Sequential(
            elastic_conv_norm(i, hidden, act=act),
            elastic_conv_norm(hidden, hidden, Kernel(f"{name}.kernel", kernels), stride, depthwise=True, act=act),
            Choice(f"{name}.se", {label: m for label, m in gates.items() if (label == "se") in attention}),
            elastic_conv_norm(hidden, o),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


@dataclass(frozen=True)
class Sizes:
    """What is fixed about a network of stages.

    Args:
        stem, stem_stride: channels and stride of the first convolution, and channels of the separable block.
        widths, strides: of the stages.
        head: channels of the last convolution, and features of the first linear layer.
    """

    stem: int
    stem_stride: int
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    head: tuple[int, int]


PUBLISHED = Sizes(16, 2, (24, 40, 80, 112, 192), (2, 2, 2, 1, 2), (960, 1280))
SMALL = Sizes(8, 1, (8, 16), (1, 2), (32, 64))  # images with sides below 64


class HardCoReNet(nn.Module):
    """The whole network; ``[B, channels, H, W] -> [B, classes]``. Its parts are public: a search blends the stages."""

    def __init__(
        self,
        channels: int,
        classes: int,
        sizes: Sizes,
        depth: tuple[int, int],
        expand: Sequence[int],
        kernels: Sequence[int],
        attention: Sequence[bool],
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            plain_conv_norm(channels, sizes.stem, 3, sizes.stem_stride, act="hard-swish"),
            MBConv(sizes.stem, sizes.stem, 3, 1, act="relu"),
        )
        stages, i = [], sizes.stem
        for s, (o, stride) in enumerate(zip(sizes.widths, sizes.strides)):
            act = "relu" if s < 2 else "hard-swish"
            blocks = []
            for b in range(depth[1]):
                name = f"stage{s}.{b}"
                blocks.append(ElasticMBConv(name, i, o, 1 if b else stride, expand, kernels, attention, act))
                i = o
            stages.append(Depth(f"stage{s}.depth", blocks, depth[0]))
        self.stages = nn.Sequential(*stages)
        last, features = sizes.head
        self.head = nn.Sequential(
            plain_conv_norm(i, last, act="hard-swish"),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(last, features),
            nn.Hardswish(),
            nn.Linear(features, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)))


class HardCoReSpace(ModuleSpace):
    """Networks of stages.

    Args:
        input_shape: ``(channels, H, W)`` of the images.
        classes: number of classes.
        stem, stem_stride, widths, strides, head: see :class:`Sizes`; published or small by the images' side.
        depth: smallest and largest number of blocks of a stage.
        expand, kernels, attention: of the operations; every combination is one.

    Attributes:
        operations: in the order in which neighbours are alike.
        depths: possible numbers of blocks.
        stages: how many.

    Raises:
        SpaceError: no images, a depth out of range, or stages without their strides.

    >>> space = HardCoReSpace((3, 224, 224), 1000)
    >>> space.size == (12**2 + 12**3 + 12**4) ** 5, [o.label for o in space.operations[:3]]
    (True, ['e3k3', 'e3k3se', 'e3k5'])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        stem: int | None = None,
        stem_stride: int | None = None,
        widths: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        head: tuple[int, int] | None = None,
        depth: tuple[int, int] = (2, 4),
        expand: Sequence[int] = (3, 4, 6),
        kernels: Sequence[int] = (3, 5),
        attention: Sequence[bool] = (False, True),
    ) -> None:
        if len(input_shape) != 3:
            raise SpaceError(f"hardcore takes images (channels, height, width), not shape {tuple(input_shape)}.")
        if not 1 <= depth[0] <= depth[1]:
            raise SpaceError(f"hardcore: depth is (smallest, largest) with 1 <= smallest <= largest, not {depth!r}.")
        usual = PUBLISHED if min(input_shape[1:]) >= 64 else SMALL
        sizes = Sizes(
            usual.stem if stem is None else stem,
            usual.stem_stride if stem_stride is None else stem_stride,
            usual.widths if widths is None else tuple(widths),
            usual.strides if strides is None else tuple(strides),
            usual.head if head is None else (head[0], head[1]),
        )
        if len(sizes.widths) != len(sizes.strides) or not sizes.widths:
            raise SpaceError(f"hardcore: {len(sizes.widths)} widths need as many strides, not {len(sizes.strides)}.")
        self.stages = len(sizes.widths)
        self.depths = tuple(range(depth[0], depth[1] + 1))
        self.operations = [
            Operation(e, k, bool(a))
            for e, k, a in itertools.product(sorted(expand), sorted(kernels), sorted(attention))
        ]
        factory = functools.partial(
            HardCoReNet, input_shape[0], classes, sizes, (depth[0], depth[1]), tuple(expand), tuple(kernels),
            tuple(attention),
        )  # fmt: skip
        super().__init__(factory, torch.zeros(2, *input_shape), "hardcore")

    def values(self, stage: int, block: int, operation: int) -> dict[str, Any]:
        """The decisions of a block that has an operation."""
        op, name = self.operations[operation], f"stage{stage}.{block}"
        return {f"{name}.expand": op.expand, f"{name}.kernel": op.kernel, f"{name}.se": "se" if op.se else "plain"}

    def arch_of(self, blocks: Sequence[Sequence[int]]) -> Arch:
        """The architecture with these operations in the blocks of each stage."""
        arch: Arch = {}
        for s, ops in enumerate(blocks):
            arch[f"stage{s}.depth"] = len(ops)
            for b, c in enumerate(ops):
                arch |= self.values(s, b, c)
        return self.validate(arch)

    def blocks_of(self, arch: Mapping[str, Any]) -> list[list[int]]:
        """The operations of each stage's blocks."""
        found = []
        for s in range(self.stages):
            names = [f"stage{s}.{b}" for b in range(arch[f"stage{s}.depth"])]
            ops = [Operation(arch[f"{n}.expand"], arch[f"{n}.kernel"], arch[f"{n}.se"] == "se") for n in names]
            found.append([self.operations.index(op) for op in ops])
        return found

    def heaviest(self) -> Arch:
        """All blocks, each with the largest of everything."""
        return self.arch_of([[len(self.operations) - 1] * self.depths[-1]] * self.stages)
