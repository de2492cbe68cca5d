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
from archipel.spaces.operation_sets import DARTS_SET, OperationSet
from archipel.spaces.operations import DARTS_OPS, DropPath, EdgeFactory

AUXILIARY_WEIGHT = 0.4  # of the auxiliary loss (DARTS, reference code)
# The auxiliary classifier pools 5x5 with stride 3 and then takes all that is left, 2x2, into one convolution.
AUXILIARY_SIDES = (8, 9, 10)
MIXED_OPS = (*DARTS_OPS, "none")


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
        ops: Sequence[str] = MIXED_OPS,
        operations: OperationSet = DARTS_SET,
    ) -> None:
        super().__init__()
        affine = not searching
        self.pre0 = operations.inputs(c0, C, after_reduction, affine)
        self.pre1 = operations.inputs(c1, C, False, affine)
        made = operations.operations(searching, drop_path)
        mixed = {label: made[label] for label in ops}
        blend_only = [label for label in ops if label == "none"]
        self.sums = nn.ModuleList()
        for j in range(2, 2 + nodes):
            edges = [edge(f"{prefix}.e{i}{j}", mixed, C, 1 + (reduction and i < 2), blend_only) for i in range(j)]
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
        ops: Sequence[str] = MIXED_OPS,
        operations: OperationSet = DARTS_SET,
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
                    ops,
                    operations,
                )
            except ShapeError as error:
                raise ShapeError(f"Cell {k} of {layers}: {error}") from error
            self.cells.append(cell)
            c0, c1, after_reduction = c1, nodes * C, reduction
            if auxiliary and k == self.reductions[1]:
                self.auxiliary = AuxiliaryHead(c1, classes)
        self.classifier = operations.classifier(c1, classes, searching)

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
