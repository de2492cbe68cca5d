"""NAS-Bench-201 as networks: the cell of the codes space inside its macro skeleton, with a supernet.

Dong, Yang. NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search. 2020.
https://arxiv.org/abs/2001.00326

    image -> stem -> N cells (C) -> reduction -> N cells (2C) -> reduction -> N cells (4C) -> BN-ReLU-mean-linear

The stem is a 3x3 convolution to C channels with batch norm; a reduction is a residual block of stride 2; all cells
are the same architecture (six tied decisions). In a cell, node j = sum over i < j of op_ij(node i); a convolution is
ReLU-conv-BN, pooling does not count padding. The benchmark has C = 16, N = 5 and three stages on 32x32 images.

Cells with equal canonical form compute equal functions when what survives the zero rule has equal weights and the
batch norms of convolutions of zeros are not shifted (they start so). In training such a convolution becomes a learned
constant, in the benchmark as here: it is computed and its parameters count, as in the published sizes.

Departures: the shortcut of a reduction rounds odd sizes up, as its convolutions do (no effect on 32x32 images).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from archipel.core.decision import Arch
from archipel.core.errors import ShapeError, SpaceError
from archipel.core.supernet import Supernet
from archipel.cost.model import CostModel
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.nb201_codec import EDGE_NAMES, EDGES, OPS, NB201Codes, genome_of
from archipel.spaces.operations import (
    AllInputs,
    CellSpace,
    EdgeFactory,
    OpFactory,
    Zero,
    choice_edge,
    relu_conv_bn,
)

Stem = Callable[[int, int], nn.Module]


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (at stride 1) and batch norm: the stem of the benchmark."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def edge_operations(affine: bool = True) -> dict[str, OpFactory]:
    """The five operations of an edge, ``[B, C, H, W]`` to the same (an edge has stride 1)."""
    return {
        "none": lambda C, s: Zero(s),
        "skip": lambda C, s: nn.Identity(),
        "conv1x1": lambda C, s: relu_conv_bn(C, C, 1, affine=affine),
        "conv3x3": lambda C, s: relu_conv_bn(C, C, 3, affine=affine),
        "avgpool3x3": lambda C, s: nn.AvgPool2d(3, s, padding=1, count_include_pad=False),
    }


class Cell(nn.Module):
    """Four nodes; an undecided operation on each of the six edges; ``[B, C, H, W]`` to the same.

    Args:
        C: channels.
        edge: makes the edges.
        affine: whether batch norms scale and shift.
        prefix: of the decisions' names.
        operations: (affine) -> label -> factory.
    """

    def __init__(
        self,
        C: int,
        edge: EdgeFactory = choice_edge,
        affine: bool = True,
        prefix: str = "",
        operations: Callable[[bool], Mapping[str, OpFactory]] = edge_operations,
    ) -> None:
        super().__init__()
        ops = operations(affine)
        self.sums = nn.ModuleList(
            AllInputs(f"{prefix}n{j}", [edge(f"{prefix}e{i}{j}", ops, C, 1) for i in range(j)]) for j in (1, 2, 3)
        )

    @property
    def edges(self) -> list[nn.Module]:
        """What stands on the edges, in the order of :data:`~archipel.spaces.nb201_codec.EDGES`."""
        return [edge for node in self.sums for edge in node.edges]

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for node in self.sums:
            nodes.append(node(nodes))
        return nodes[-1]


class Reduction(nn.Module):
    """Residual block that halves the size (rounding up) and changes the channels, as in the benchmark."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            relu_conv_bn(in_channels, out_channels, 3, stride=2), relu_conv_bn(out_channels, out_channels, 3)
        )
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


class NB201Net(nn.Sequential):
    """The macro skeleton with undecided cells.

    Args:
        in_channels, classes: of the task.
        C: channels of the first stage; doubled in each further one.
        N: cells in each stage.
        stages: separated by reductions.
        stem: ``stem(in_channels, C)`` makes the first module.
        edge, affine: see :class:`Cell`.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        C: int = 16,
        N: int = 5,
        stages: int = 3,
        stem: Stem = conv_bn,
        edge: EdgeFactory = choice_edge,
        affine: bool = True,
    ) -> None:
        layers: list[nn.Module] = [stem(in_channels, C)]
        for stage in range(stages):
            if stage:
                layers.append(Reduction(C * 2 ** (stage - 1), C * 2**stage))
            layers.extend(Cell(C * 2**stage, edge, affine) for _ in range(N))
        width = C * 2 ** (stages - 1)
        head = (nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
        super().__init__(*layers, *head)


class NB201(NB201Codes, CellSpace):
    """The 15,625 NAS-Bench-201 cells as networks.

    Args:
        example: a batch of images ``[B, channels, H, W]``; zeros of CIFAR's size if left out.
        classes: number of classes.
        C, N, stages, stem: see :class:`NB201Net`; smaller ones suit small images. For large images, a stem such as
            ``functools.partial(conv_bn, stride=2)``.

    Raises:
        ShapeError: the example is not a batch of images.
        SpaceError: C, N, stages or classes below 1.

    >>> space = NB201(torch.zeros(1, 1, 8, 8), C=4, N=1)
    >>> arch = space.sample(__import__("random").Random(0))
    >>> space.size, space.build(arch)(torch.zeros(5, 1, 8, 8)).shape
    (15625, torch.Size([5, 10]))
    """

    def __init__(
        self,
        example: Tensor | None = None,
        classes: int = 10,
        C: int = 16,
        N: int = 5,
        stages: int = 3,
        stem: Stem = conv_bn,
    ) -> None:
        images = torch.zeros(1, 3, 32, 32) if example is None else example
        if images.ndim != 4:
            raise ShapeError(f"NAS-Bench-201 networks take images [B, C, H, W], not {tuple(images.shape)}.")
        for name, value in {"classes": classes, "C": C, "N": N, "stages": stages}.items():
            if not isinstance(value, int) or value < 1:
                raise SpaceError(f"NAS-Bench-201 networks need {name} to be a positive integer, not {value!r}.")
        self._network = partial(NB201Net, images.shape[1], classes, C=C, N=N, stages=stages, stem=stem)
        ModuleSpace.__init__(self, self._network, images, name="nb201")

    def cells(self, edge: EdgeFactory) -> nn.Module:
        return self._network(edge=edge, affine=False)

    def supernet(self, seed: int = 0, edge: EdgeFactory | None = None) -> Supernet:
        """All cells at once.

        Args:
            seed: of the weights.
            edge: makes the edges; then the cells' batch norms are not affine, as they could rescale an operation
                against its weight in a mixture. Without it, what is extracted is what :meth:`build` makes.
        """
        return ModuleSpace.supernet(self, seed) if edge is None else CellSpace.supernet(self, seed, edge)

    @property
    def cost(self) -> CostModel:
        """Exact costs, of the cell as it is: equal canonical forms may differ in what they compute in vain."""
        if self._cost is None:
            self._cost = CellCost(self)
        return self._cost


class CellCost(CostModel):
    """Costs summed from a table: cost(cell) = cost(all none) + N * sum over edges of the operation's cost.

    The table comes from the five cells with one operation everywhere, counted in a skeleton with N = 1.
    """

    def __init__(self, space: NB201) -> None:
        skeleton = space._network
        self.N: int = skeleton.keywords["N"]
        one = ModuleSpace(partial(skeleton, N=1), space.example)
        super().__init__(one.build_meta, space.example, key=genome_of)
        self._tables: dict[str, tuple[int, dict[str, int]]] = {}

    def _sum(self, quantity: str, count: Callable[[Arch], int], arch: Arch) -> int:
        if quantity not in self._tables:
            uniform = {op: count(dict.fromkeys(EDGE_NAMES, op)) for op in OPS}
            base = uniform["none"]
            self._tables[quantity] = base, {op: self.N * (c - base) // len(EDGES) for op, c in uniform.items()}
        base, table = self._tables[quantity]
        return base + sum(table[op] for op in genome_of(arch))

    def params(self, arch: Arch) -> int:
        return self._sum("params", super().params, arch)

    def macs(self, arch: Arch) -> int:
        return self._sum("macs", super().macs, arch)
