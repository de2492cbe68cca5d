"""Chains of inverted residual blocks in which every layer chooses its kernel and expansion, or is skipped.

Cai, Zhu, Han. ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware. 2018.
https://arxiv.org/abs/1812.00332
Stamoulis et al. Single-Path NAS: Designing Hardware-Efficient ConvNets in less than 4 Hours. 2019.
https://arxiv.org/abs/1904.02877

    stem 3x3 -> fixed blocks -> stages of layers -> fixed blocks -> 1x1 convolution -> mean -> linear

A layer chooses among MBConv blocks ``k{kernel}e{expansion}``; where it keeps shape it may also be ``skip``, the
identity. That is the published zero operation beside a shortcut: here the blocks add their input themselves. The two
published networks are :data:`MACROS`; small images get a small chain of the same make.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archipel.core.errors import SpaceError, suggest
from archipel.nets.mbconv import MBConv, conv_norm, divisible
from archipel.spaces.operations import CellSpace, EdgeFactory, OpFactory, choice_edge

SKIP = "skip"
NORM = functools.partial(nn.BatchNorm2d, eps=1e-3)  # both reference codes


def label_of(kernel: int, expansion: float) -> str:
    """
    >>> label_of(5, 3), label_of(3, 1.5)
    ('k5e3', 'k3e1.5')
    """
    return f"k{kernel}e{expansion:g}"


@dataclass(frozen=True)
class Macro:
    """What is fixed about a chain of blocks.

    Args:
        stem, stem_stride: channels and stride of the first convolution.
        widths, depths, strides: of each stage: channels, layers, and stride of its first layer.
        before, after: fixed blocks around the stages, as (kernel, expansion, channels); they have stride 1.
        head: channels of the last 1x1 convolution; 0 for none.
    """

    stem: int
    stem_stride: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    strides: tuple[int, ...]
    before: tuple[tuple[int, int, int], ...] = ()
    after: tuple[tuple[int, int, int], ...] = ()
    head: int = 0

    def places(self) -> list[tuple[int, int, int]]:
        """(channels in, channels out, stride) of each layer that chooses."""
        c = self.before[-1][2] if self.before else self.stem
        out = []
        for width, depth, stride in zip(self.widths, self.depths, self.strides):
            for position in range(depth):
                out.append((c, width, 1 if position else stride))
                c = width
        return out


_FIRST = ((3, 1, 16),)
MACROS = {
    "proxylessnas": Macro(
        32, 2, (24, 40, 80, 96, 192, 320), (4, 4, 4, 4, 4, 1), (2, 2, 2, 1, 2, 1), before=_FIRST, head=1280
    ),
    "single-path-nas": Macro(
        32, 2, (24, 40, 80, 96, 192), (4,) * 5, (2, 2, 2, 1, 2), before=_FIRST, after=((3, 6, 320),), head=1280
    ),
}


def small_macro(side: int, width: int = 16, depth: int = 2, stages: int | None = None) -> Macro:
    """A chain for images of a side: each stage after the first halves it, down to about 4, and widens by half."""
    possible = max(1, side.bit_length() - 2)
    count = min(4, possible) if stages is None else stages
    if not 1 <= count <= possible or width < 1 or depth < 1:
        raise SpaceError(
            f"mbconv: {count} stages of {depth} layers and {width} channels do not fit images of side {side}; give "
            f"from 1 to {possible} stages, and at least one layer and one channel."
        )
    widths = [width, *(divisible(width * 1.5**s) for s in range(1, count))]
    return Macro(width, 1, tuple(widths), (depth,) * count, (1, *(2,) * (count - 1)))


class Skipped(nn.Identity):
    """A layer left out: the zero operation beside a shortcut."""


class MBConvNet(nn.Module):
    """The whole network; ``[B, channels, H, W] -> [B, classes]``."""

    def __init__(
        self, channels: int, classes: int, macro: Macro, options: Sequence[Mapping[str, OpFactory]], edge: EdgeFactory
    ) -> None:
        super().__init__()
        self.stem = conv_norm(channels, macro.stem, 3, macro.stem_stride, act="relu6", norm=NORM)
        self.before, c = _fixed(macro.stem, macro.before)
        layers = []
        for n, (ops, (c, _, stride)) in enumerate(zip(options, macro.places())):
            layers.append(edge(f"layer{n}", ops, c, stride))
        self.layers = nn.Sequential(*layers)
        self.after, c = _fixed(macro.widths[-1], macro.after)
        self.head = conv_norm(c, macro.head, act="relu6", norm=NORM) if macro.head else nn.Identity()
        self.classifier = nn.Linear(macro.head or c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.layers(self.before(self.stem(x))))
        return self.classifier(self.head(x).mean((2, 3)))


def _fixed(c: int, blocks: Sequence[tuple[int, int, int]]) -> tuple[nn.Sequential, int]:
    made = []
    for kernel, expansion, width in blocks:
        made.append(MBConv(c, width, kernel, expansion, norm=NORM))
        c = width
    return nn.Sequential(*made), c


def _block(c_in: int, c_out: int, kernel: int, expansion: float, C: int, stride: int) -> nn.Module:
    if c_in != C:
        raise SpaceError(
            f"An MBConv layer from {c_in} to {c_out} channels takes all of its input's channels, not {C}. Searches "
            f"that give operations a part of the channels do not go with this space."
        )
    return MBConv(C, c_out, kernel, expansion, stride, norm=NORM)


class MBConvSpace(CellSpace):
    """Chains of layers, each an MBConv block of some kernel and expansion, or skipped.

    Args:
        input_shape: ``(channels, H, W)`` of the images.
        classes: number of classes.
        macro: of :data:`MACROS`, a :class:`Macro` of your own, or None for a small chain.
        kernels, expansions: of the options; every pair is one.
        skip: whether layers that keep shape may be skipped; or the numbers of those that may.
        width, depth, stages: of the small chain; see :func:`small_macro`.

    Raises:
        SpaceError: no images, an unknown macro, no options, or a layer to be skipped that changes shape.

    >>> space = MBConvSpace((3, 224, 224), 1000, "proxylessnas")
    >>> space.size == 6**6 * 7**15, space.decisions[0].options
    (True, ('k3e3', 'k3e6', 'k5e3', 'k5e6', 'k7e3', 'k7e6'))
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        macro: str | Macro | None = None,
        kernels: Sequence[int] = (3, 5, 7),
        expansions: Sequence[float] = (3, 6),
        skip: bool | Sequence[int] = True,
        width: int = 16,
        depth: int = 2,
        stages: int | None = None,
    ) -> None:
        if len(input_shape) != 3:
            raise SpaceError(f"mbconv takes images (channels, height, width), not shape {tuple(input_shape)}.")
        if isinstance(macro, str):
            if macro not in MACROS:
                raise SpaceError(f"No macro-structure {macro!r}. {suggest(macro, MACROS)}")
            macro = MACROS[macro]
        self.macro = macro or small_macro(min(input_shape[1:]), width, depth, stages)
        if not len(self.macro.widths) == len(self.macro.depths) == len(self.macro.strides) > 0:
            raise SpaceError(f"mbconv: each stage needs a width, a depth and a stride: {self.macro}.")
        if not kernels or not expansions:
            raise SpaceError("mbconv: give at least one kernel and one expansion.")
        places = self.macro.places()
        skipped = _skippable(places, skip)
        options = [
            {
                **{
                    label_of(k, e): functools.partial(_block, c_in, c_out, k, e)
                    for k, e in itertools.product(kernels, expansions)
                },
                **({SKIP: _skipped} if n in skipped else {}),
            }
            for n, (c_in, c_out, _) in enumerate(places)
        ]
        self._network = functools.partial(MBConvNet, input_shape[0], classes, self.macro, options)
        super().__init__(functools.partial(self._network, edge=choice_edge), torch.zeros(2, *input_shape), "mbconv")

    def cells(self, edge: EdgeFactory) -> nn.Module:
        return self._network(edge=edge)


def _skipped(C: int, stride: int) -> nn.Module:
    return Skipped()


def _skippable(places: Sequence[tuple[int, int, int]], skip: bool | Sequence[int]) -> set[int]:
    keep_shape = {n for n, (c_in, c_out, stride) in enumerate(places) if c_in == c_out and stride == 1}
    if isinstance(skip, bool):
        return keep_shape if skip else set()
    for n in skip:
        if not 0 <= n < len(places):
            raise SpaceError(f"mbconv: skip names layer {n}, but layers are 0 to {len(places) - 1}.")
        if n not in keep_shape:
            c_in, c_out, stride = places[n]
            raise SpaceError(
                f"mbconv: layer {n} cannot be skipped, since it goes from {c_in} to {c_out} channels with stride "
                f"{stride}. Layers that keep shape: {', '.join(map(str, sorted(keep_shape))) or 'none'}."
            )
    return set(skip)


def digits_space(layers: int, kernels: Sequence[int], expansions: Sequence[float], C: int = 8) -> MBConvSpace:
    """Chains for 8x8 digits without any stride, on which searches are compared in seconds.

    >>> digits_space(6, (1, 3, 5), (1, 3)).size == 7**6
    True
    """
    return MBConvSpace((1, 8, 8), 10, Macro(C, 1, (C,), (layers,), (1,)), kernels, expansions)
