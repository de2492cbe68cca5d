"""A very small network of NAS-Bench-201 cells, on which differentiable searches are compared in seconds.

Cell of: Dong, Yang. NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search. 2020.
https://arxiv.org/abs/2001.00326

    3x3 convolution to C -> 2 cells -> batch norm, ReLU -> mean -> linear

A cell has states 0 (input) to 3 (output); state j is the sum of one operation on each edge i -> j. Both cells share the
six decisions ``e01`` to ``e23``, or each has its own (``tie="cell"``). Differs from the published network in that
nothing is reduced, and that batch norms have no affine parameters while searching.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archipel.core.errors import SpaceError, suggest
from archipel.spaces.operations import (
    AllInputs,
    CellSpace,
    EdgeFactory,
    OpFactory,
    Zero,
    choice_edge,
    relu_conv_bn,
)


def nb201_operations(affine: bool) -> dict[str, OpFactory]:
    """The five operations of the cell, for stride 1."""
    return {
        "none": lambda c, s: Zero(s),
        "skip": lambda c, s: nn.Identity(),
        "conv1x1": lambda c, s: relu_conv_bn(c, c, 1, affine=affine),
        "conv3x3": lambda c, s: relu_conv_bn(c, c, 3, affine=affine),
        "avgpool3x3": lambda c, s: nn.AvgPool2d(3, s, 1, count_include_pad=False),
    }


class MicroCell(nn.Module):
    """One cell; ``[B, C, H, W]`` to the same. Operations have stride 1."""

    def __init__(self, prefix: str, C: int, affine: bool, edge: EdgeFactory) -> None:
        super().__init__()
        ops = nb201_operations(affine)
        self.sums = nn.ModuleList(
            [AllInputs(f"{prefix}n{j}", [edge(f"{prefix}e{i}{j}", ops, C, 1) for i in range(j)]) for j in (1, 2, 3)]
        )

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for node in self.sums:
            states.append(node(states))
        return states[-1]


class MicroNetwork(nn.Module):
    """The whole network; ``[B, channels, H, W] -> [B, classes]``."""

    def __init__(
        self, channels: int, classes: int, C: int, cells: int, tie: str, affine: bool, edge: EdgeFactory
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        prefixes = ["" if tie == "kind" else f"cell{k}." for k in range(cells)]
        self.cells = nn.Sequential(*[MicroCell(p, C, affine, edge) for p in prefixes])
        self.norm = nn.BatchNorm2d(C)
        self.classifier = nn.Linear(C, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.cells(self.stem(x))))
        return self.classifier(x.mean((2, 3)))


class MicroNB201(CellSpace):
    """Small networks of NAS-Bench-201 cells.

    Args:
        input_shape: ``(channels, H, W)`` of the images.
        classes: number of classes.
        C: channels.
        cells: number of cells.
        tie: ``"kind"`` (all cells alike) or ``"cell"`` (each decides for itself).

    Raises:
        SpaceError: inputs that are no images, no cell, or another ``tie``.

    >>> space = MicroNB201((1, 8, 8), 10)
    >>> space.size, [d.name for d in space.decisions]
    (15625, ['e01', 'e02', 'e12', 'e03', 'e13', 'e23'])
    """

    def __init__(self, input_shape: Sequence[int], classes: int, C: int = 8, cells: int = 2, tie: str = "kind") -> None:
        if len(input_shape) != 3:
            raise SpaceError(f"Micro-NB201 takes images (channels, height, width), not shape {tuple(input_shape)}.")
        if cells < 1:
            raise SpaceError(f"Micro-NB201 needs at least one cell, not {cells}.")
        if tie not in ("kind", "cell"):
            raise SpaceError(f"Cells can be tied by kind or cell, not {tie!r}. {suggest(tie, ('kind', 'cell'))}")
        self._network = functools.partial(MicroNetwork, input_shape[0], classes, C, cells, tie)
        super().__init__(
            functools.partial(self._network, affine=True, edge=choice_edge), torch.zeros(2, *input_shape), "micro-nb201"
        )

    def cells(self, edge: EdgeFactory) -> nn.Module:
        return self._network(affine=False, edge=edge)
