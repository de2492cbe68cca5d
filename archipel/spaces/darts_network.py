"""The network of the DARTS space: cells, the stack of them, and what is added for training it on its own.

Liu, Simonyan, Yang. DARTS: Differentiable Architecture Search. 2018. https://arxiv.org/abs/1806.09055
See :mod:`archipel.spaces.darts` for the space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archipel.core.choice import Inputs
from archipel.core.errors import ShapeError
from archipel.spaces.operations import DropPath, EdgeFactory, FactorizedReduce, darts_operations, relu_conv_bn

AUXILIARY_WEIGHT = 0.4  # of the auxiliary loss (DARTS, reference code)
# The auxiliary classifier pools 5x5 with stride 3 and then takes all that is left, 2x2, into one convolution.
AUXILIARY_SIDES = (8, 9, 10)


class Cell(nn.Module):
    """One cell; ``[B, c0, H, W], [B, c1, H, W] -> [B, nodes * C, H, W]`` (H/2, W/2 for a reduction)."""

    def __init__(
        self,
        prefix: str,
        c0: int,
        c1: int,
        C: int,
        nodes: int,
        reduction: bool,
        after_reduction: bool,
        searching: bool,
        edge: EdgeFactory,
        drop_path: float,
    ) -> None:
        super().__init__()
        affine = not searching
        self.pre0 = FactorizedReduce(c0, C, affine) if after_reduction else relu_conv_bn(c0, C, affine=affine)
        self.pre1 = relu_conv_bn(c1, C, affine=affine)
        ops = darts_operations(searching, drop_path)
        self.sums = nn.ModuleList()
        for j in range(2, 2 + nodes):
            edges = [edge(f"{prefix}.e{i}{j}", ops, C, 1 + (reduction and i < 2), ("none",)) for i in range(j)]
            self.sums.append(Inputs(f"{prefix}.n{j}", edges, k=2))

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = [self.pre0(s0), self.pre1(s1)]
        for node in self.sums:
            states.append(node(states))
        return torch.cat(states[2:], 1)


class AuxiliaryHead(nn.Module):
    """A second classifier halfway up, for training only; ``[B, C, 8, 8] -> [B, classes]``."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, 3, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class CellNetwork(nn.Module):
    """The stacked cells; ``[B, channels, H, W] -> [B, classes]``.

    With an auxiliary classifier, ``forward`` returns the pair (logits, auxiliary logits) while training.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        C: int,
        layers: int,
        nodes: int,
        prefixes: Sequence[str],
        searching: bool,
        edge: EdgeFactory,
        auxiliary: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.reductions = reductions(layers)
        self.stem = nn.Sequential(nn.Conv2d(channels, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C))
        c0, c1, after_reduction = 3 * C, 3 * C, False
        self.cells = nn.ModuleList()
        self.auxiliary = None
        for k in range(layers):
            reduction = k in self.reductions
            C *= 1 + reduction
            try:
                cell = Cell(
                    prefixes[k],
                    c0,
                    c1,
                    C,
                    nodes,
                    reduction,
                    after_reduction,
                    searching,
                    edge,
                    drop_path * (not searching),
                )
            except ShapeError as error:
                raise ShapeError(f"Cell {k} of {layers}: {error}") from error
            self.cells.append(cell)
            c0, c1, after_reduction = c1, nodes * C, reduction
            if auxiliary and k == self.reductions[1]:
                self.auxiliary = AuxiliaryHead(c1, classes)
        self.classifier = nn.Linear(c1, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        s0 = s1 = self.stem(x)
        second = None
        for k, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1)
            if self.training and self.auxiliary is not None and k == self.reductions[1]:
                second = self.auxiliary(s1)
        logits = self.classifier(s1.mean((2, 3)))
        return logits if second is None else (logits, second)


def reductions(layers: int) -> tuple[int, int]:
    """Which cells halve the resolution."""
    return layers // 3, 2 * layers // 3


def set_drop_path(net: nn.Module, p: float) -> None:
    """Set the probability of every drop-path; the paper raises it linearly with the epoch."""
    for m in net.modules():
        if isinstance(m, DropPath):
            m.p = p


def loss_with_auxiliary(outputs: tuple[Tensor, Tensor], y: Tensor, weight: float = AUXILIARY_WEIGHT) -> Tensor:
    """Cross entropy of a network with an auxiliary classifier, which counts ``weight`` times."""
    logits, second = outputs
    return nn.functional.cross_entropy(logits, y) + weight * nn.functional.cross_entropy(second, y)
