"""NASNet: a normal and a reduction cell, stacked; with NASNet-A as it was found.

Zoph, Vasudevan, Shlens, Le. Learning Transferable Architectures for Scalable Image Recognition. 2017.
https://arxiv.org/abs/1707.07012

    CIFAR:     3x3 convolution (3F channels)    | N normal (F) | reduction | N normal (2F) | reduction | N normal (4F)
    ImageNet:  3x3 convolution of stride 2 | two reductions (F/4, F/2) | the same

then ReLU, mean over pixels, dropout, linear. In a cell, state 1 is the last output through a 1x1 convolution to F;
state 0 the output before, by a factorised reduction if it is twice as large, by a 1x1 convolution if only its width
differs, else as it is. In a reduction cell operations on states 0 and 1 have stride 2. The network N@P has P channels
before the mean, P = 4 F w with w = 6 for NASNet-A's normal cell. The first cell has no output before the last one and
takes the stem's twice, the second time as it is. Every operation but the plain identity is followed by drop-path.

The auxiliary classifier sits on the last normal cell before the second reduction; its loss is weighted by 0.4.
``skip_reduction_input`` (NASNet-A Large): the cell after a reduction takes as state 0 not the reduction's own input
but the output before that, as in the authors' code. The graph of the code is followed where the paper is silent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.errors import ShapeError, UsageError
from archipel.nets.drop_path import DropPath
from archipel.nets.nasnet_genotype import NASNET_A, CellGenotype, Genotype
from archipel.nets.nasnet_ops import OPS, FactorizedReduction, batch_norm, square

STACKS = ("cifar", "imagenet")


@dataclass(frozen=True)
class State:
    """Channels of a hidden state, and how often its size was halved."""

    channels: int
    level: int


def match(state: State, channels: int, level: int) -> nn.Module:
    """Brings a state to a width and a size: nothing, a 1x1 convolution or a factorised reduction.

    Raises:
        ShapeError: the sizes differ by more than one halving.
    """
    if state.level == level:
        return nn.Identity() if state.channels == channels else square(state.channels, channels, 1, kernel=1)
    if state.level != level - 1:
        raise ShapeError(f"A state halved {state.level} times cannot meet one halved {level} times.")
    return FactorizedReduction(state.channels, channels)


def combine(a: Tensor, b: Tensor, how: str) -> Tensor:
    """Sum of two states, or both side by side along the channels.

    Raises:
        ShapeError: other sizes, or for the sum other widths.
    """
    if a.shape[2:] != b.shape[2:] or (how == "add" and a.shape != b.shape):
        raise ShapeError(f"States of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be combined by {how!r}.")
    return a + b if how == "add" else torch.cat([a, b], dim=1)


class Cell(nn.Module):
    """One cell.

    Args:
        genotype: its blocks.
        previous, current: what states 0 and 1 are made of.
        filters: F; the output has ``F * genotype.width`` channels.
        stride: 2 in a reduction cell.
        layer_fraction: position in the network, for drop-path.
        raw_previous: take ``previous`` as state 0 as it is.
    """

    def __init__(
        self,
        genotype: CellGenotype,
        previous: State,
        current: State,
        filters: int,
        stride: int = 1,
        layer_fraction: float = 1.0,
        raw_previous: bool = False,
    ) -> None:
        super().__init__()
        self.genotype = genotype
        level = current.level + (stride > 1)
        self.match_previous = nn.Identity() if raw_previous else match(previous, filters, current.level)
        self.match_current = square(current.channels, filters, 1, kernel=1)
        states = [previous if raw_previous else State(filters, current.level), State(filters, current.level)]
        self.paths = nn.ModuleList()
        for block in genotype.blocks:
            for i, op in zip(block.inputs, block.ops):
                module = OPS[op](states[i].channels, filters, stride if i < 2 else 1)
                plain = isinstance(module, nn.Identity)
                self.paths.append(module if plain else nn.Sequential(module, DropPath(layer_fraction)))
            states.append(State(filters * (2 if block.combine == "concat" else 1), level))
        # Concatenated inputs of the cell need F channels and the size of its blocks.
        self.match_output = nn.ModuleList(match(states[i], filters, level) if i < 2 else nn.Identity()
                                          for i in genotype.output)  # fmt: skip
        self.out = State(filters * genotype.width, level)

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        states = [self.match_previous(previous), self.match_current(current)]
        for b, block in enumerate(self.genotype.blocks):
            left, right = (self.paths[2 * b + k](states[i]) for k, i in enumerate(block.inputs))
            states.append(combine(left, right, block.combine))
        return torch.cat([fit(states[i]) for fit, i in zip(self.match_output, self.genotype.output)], dim=1)


class AuxiliaryHead(nn.Sequential):
    """Classifier on an inner feature map of a known size: pool 5 by 3, 1x1 to 128, whole map to 768, linear.

    Maps smaller than the pooling window are pooled whole.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int) -> None:
        window = (min(5, size[0]), min(5, size[1]))
        whole = tuple((s - w) // 3 + 1 for s, w in zip(size, window))
        super().__init__(
            nn.ReLU(),
            nn.AvgPool2d(window, stride=3),
            nn.Conv2d(channels, 128, 1, bias=False),
            batch_norm(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, whole, bias=False),
            batch_norm(768),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, classes),
        )


class NASNet(nn.Module):
    """A stack of cells; ``[B, in_channels, H, W]`` to logits ``[B, classes]``.

    Args:
        genotype: the two cells.
        in_channels, classes: of the task.
        filters: F of the first normal cells.
        repeats: N.
        stack: ``"cifar"`` or ``"imagenet"``.
        stem_channels: of the first convolution; 3F (CIFAR) or 32 (ImageNet) if left out.
        skip_reduction_input: see the module's docstring.
        image_size: height and width, needed by the auxiliary classifier; without it there is none.
        dropout: before the last layer.

    Raises:
        UsageError: an unknown stack, N < 1, or F that the stack cannot divide.
    """

    def __init__(
        self,
        genotype: Genotype,
        in_channels: int,
        classes: int,
        filters: int,
        repeats: int,
        stack: str = "cifar",
        stem_channels: int | None = None,
        skip_reduction_input: bool = False,
        image_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if stack not in STACKS:
            raise UsageError(f"NASNet: a stack is one of {STACKS}, not {stack!r}.")
        if repeats < 1 or filters < 1 or (stack == "imagenet" and filters % 4):
            wanted = "a positive multiple of 4 (stem cells have F/4)" if stack == "imagenet" else "positive"
            raise UsageError(f"NASNet: N must be positive and F {wanted}, not N={repeats}, F={filters}.")
        imagenet = stack == "imagenet"
        channels = stem_channels or (32 if imagenet else 3 * filters)
        step, padding = (2, 0) if imagenet else (1, 1)
        convolution = nn.Conv2d(in_channels, channels, 3, step, padding, bias=False)
        self.stem = nn.Sequential(convolution, batch_norm(channels))

        stage, stem_cells = [False] * repeats, 2 if imagenet else 0
        reductions = [True] * stem_cells + stage + [True] + stage + [True] + stage
        widths = [filters // 4, filters // 2][:stem_cells] + [filters] * repeats
        widths += [2 * filters] * (repeats + 1) + [4 * filters] * (repeats + 1)
        outputs = [State(channels, 0)]
        self.cells, self.back = nn.ModuleList(), []  # back: how far back a cell looks for state 0
        for k, (reduces, width) in enumerate(zip(reductions, widths)):
            after_reduction = k > stem_cells and reductions[k - 1]
            back = 2 if after_reduction and skip_reduction_input else 1
            self.back.append(back if k else 0)
            previous = outputs[-1 - self.back[-1]]
            share = (k + 1) / len(reductions)
            cell = genotype.reduction if reduces else genotype.normal
            self.cells.append(Cell(cell, previous, outputs[-1], width, 1 + reduces, share, raw_previous=k == 0))
            outputs.append(self.cells[-1].out)  # type: ignore[arg-type]
        self.out_channels = outputs[-1].channels

        dense = nn.Linear(self.out_channels, classes)
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), dense)
        self.tap = len(reductions) - repeats - 2  # the last normal cell before the second reduction
        self.auxiliary: AuxiliaryHead | None = None
        if image_size is not None:
            at = outputs[self.tap + 1]
            sizes = [(s - 1) // 2 if imagenet else s for s in image_size]
            h, w = (-(-s // 2**at.level) for s in sizes)
            self.auxiliary = AuxiliaryHead(at.channels, (h, w), classes)

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last feature map, and the one that the auxiliary classifier sees."""
        recent = [self.stem(x)]
        tapped = recent[0]
        for k, (cell, back) in enumerate(zip(self.cells, self.back)):
            recent = [*recent[-2:], cell(recent[-1 - back], recent[-1])]
            if k == self.tap:
                tapped = recent[-1]
        return recent[-1], tapped

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[0])

    def with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the network and of its auxiliary classifier.

        Raises:
            UsageError: the network was made without one.
        """
        if self.auxiliary is None:
            raise UsageError("This NASNet has no auxiliary classifier; make it with image_size=(height, width).")
        last, tapped = self.features(x)
        return self.head(last), self.auxiliary(tapped)


def training_loss(net: NASNet, x: Tensor, y: Tensor, weight: float = 0.4, label_smoothing: float = 0.1) -> Tensor:
    """Cross entropy of the network plus ``weight`` times that of its auxiliary classifier, as NASNets are trained."""
    logits, auxiliary = net.with_auxiliary(x)
    losses = [F.cross_entropy(z, y, label_smoothing=label_smoothing) for z in (logits, auxiliary)]
    return losses[0] + weight * losses[1]


def filters_of(name: str, genotype: Genotype = NASNET_A) -> tuple[int, int]:
    """Repeats N and filters F of a network named ``"N@P"`` by its penultimate channels.

    Raises:
        UsageError: another form, or P that is not a multiple of 4 times the normal cell's width.

    >>> filters_of("6@4032"), filters_of("4@1056")
    ((6, 168), (4, 44))
    """
    parts = re.fullmatch(r"(\d+)\s*@\s*(\d+)", name)
    if parts is None:
        raise UsageError(f"A NASNet is named N@P, such as 6@4032, not {name!r}.")
    repeats, penultimate = map(int, parts.groups())
    unit = 4 * genotype.normal.width
    if penultimate == 0 or penultimate % unit:
        raise UsageError(f"NASNet {name}: the penultimate channels are a multiple of {unit}, not {penultimate}.")
    return repeats, penultimate // unit


def nasnet_a_large(classes: int = 1000, image_size: tuple[int, int] | None = None) -> NASNet:
    """NASNet-A (6@4032) for images of 331 x 331."""
    N, filters = filters_of("6@4032")
    return NASNet(NASNET_A, 3, classes, filters, N, "imagenet", 96, True, image_size, dropout=0.5)


def nasnet_a_mobile(classes: int = 1000, image_size: tuple[int, int] | None = None) -> NASNet:
    """NASNet-A (4@1056) for images of 224 x 224."""
    N, filters = filters_of("4@1056")
    return NASNet(NASNET_A, 3, classes, filters, N, "imagenet", 32, False, image_size, dropout=0.5)
