"""A very small network of NAS-Bench-201 cells, on which differentiable searches are compared in seconds.

Cell of: Dong, Yang. NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search. 2020.
https://arxiv.org/abs/2001.00326

    3x3 convolution to C -> 2 cells -> batch norm, ReLU -> mean -> linear

The cell is that of :mod:`archipel.spaces.nb201`. Both cells share the six decisions ``e01`` to ``e23``, or each has its
own (``tie="cell"``). Differs from the published network in that nothing is reduced, and that the supernet's cells never
have affine batch norms.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archipel.core.errors import SpaceError, suggest
from archipel.spaces.nb201 import Cell, conv_bn
from archipel.spaces.operation_sets import EDGE_SETS, EdgeSet
from archipel.spaces.operations import CellSpace, EdgeFactory, choice_edge


class MicroNetwork(nn.Module):
    """The whole network; ``[B, channels, H, W] -> [B, classes]``."""

    def __init__(
        self,
        channels: int,
        classes: int,
        C: int,
        cells: int,
        tie: str,
        affine: bool,
        edge: EdgeFactory,
        operations: EdgeSet = EDGE_SETS["plain"],
    ) -> None:
        super().__init__()
        self.stem = conv_bn(channels, C)
        prefixes = ["" if tie == "kind" else f"cell{k}." for k in range(cells)]
        self.cells = nn.Sequential(*[Cell(C, edge, affine, p, operations.operations) for p in prefixes])
        self.norm = nn.BatchNorm2d(C)
        self.classifier = operations.classifier(C, classes, not affine)

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
        operations: ``"plain"``, or another of :data:`~archipel.spaces.operation_sets.EDGE_SETS`.

    Raises:
        SpaceError: inputs that are no images, no cell, another ``tie``, or an unknown set of operations.

    >>> space = MicroNB201((1, 8, 8), 10)
    >>> space.size, [d.name for d in space.decisions]
    (15625, ['e01', 'e02', 'e12', 'e03', 'e13', 'e23'])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        C: int = 8,
        cells: int = 2,
        tie: str = "kind",
        operations: str = "plain",
    ) -> None:
        if len(input_shape) != 3:
            raise SpaceError(f"Micro-NB201 takes images (channels, height, width), not shape {tuple(input_shape)}.")
        if cells < 1:
            raise SpaceError(f"Micro-NB201 needs at least one cell, not {cells}.")
        if tie not in ("kind", "cell"):
            raise SpaceError(f"Cells can be tied by kind or cell, not {tie!r}. {suggest(tie, ('kind', 'cell'))}")
        if operations not in EDGE_SETS:
            raise SpaceError(f"There is no set of operations {operations!r}. {suggest(operations, EDGE_SETS)}")
        made = EDGE_SETS[operations]
        self._network = functools.partial(MicroNetwork, input_shape[0], classes, C, cells, tie, operations=made)
        super().__init__(
            functools.partial(self._network, affine=True, edge=choice_edge), torch.zeros(2, *input_shape), "micro-nb201"
        )

    def cells(self, edge: EdgeFactory) -> nn.Module:
        return self._network(affine=False, edge=edge)
