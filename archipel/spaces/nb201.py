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

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice
from archipel.core.decision import Arch
from archipel.core.errors import ShapeError, SpaceError
from archipel.cost.model import CostModel
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.nb201_codec import EDGE_NAMES, EDGES, OPS, NB201Codes, genome_of

Stem = Callable[[int, int], nn.Module]


class Zero(nn.Module):
    """The operation ``none``: zeros of the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (at stride 1) and batch norm: the stem of the benchmark."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def relu_conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), *conv_bn(in_channels, out_channels, kernel, stride))


def edge_operations(C: int) -> dict[str, nn.Module]:
    """The five operations of an edge, ``[B, C, H, W]`` to the same."""
    return {
        "none": Zero(),
        "skip": nn.Identity(),
        "conv1x1": relu_conv_bn(C, C, 1),
        "conv3x3": relu_conv_bn(C, C, 3),
        "avgpool3x3": nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    }


class Cell(nn.Module):
    """Four nodes; an undecided operation on each of the six edges."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(Choice(name, edge_operations(C)) for name in EDGE_NAMES)

    def forward(self, x: Tensor) -> Tensor:
        nodes: list[Tensor | None] = [x, None, None, None]
        for (i, j), edge in zip(EDGES, self.edges):  # sorted by target: node i is complete before it is read
            y = edge(nodes[i])
            nodes[j] = y if nodes[j] is None else nodes[j] + y
        assert nodes[3] is not None
        return nodes[3]


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
    """

    def __init__(
        self, in_channels: int, classes: int, C: int = 16, N: int = 5, stages: int = 3, stem: Stem = conv_bn
    ) -> None:
        layers: list[nn.Module] = [stem(in_channels, C)]
        for stage in range(stages):
            if stage:
                layers.append(Reduction(C * 2 ** (stage - 1), C * 2**stage))
            layers.extend(Cell(C * 2**stage) for _ in range(N))
        width = C * 2 ** (stages - 1)
        head = (nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
        super().__init__(*layers, *head)


class NB201(NB201Codes, ModuleSpace):
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
        factory = partial(NB201Net, images.shape[1], classes, C=C, N=N, stages=stages, stem=stem)
        ModuleSpace.__init__(self, factory, images, name="nb201")

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
        skeleton: partial[NB201Net] = space.factory  # type: ignore[assignment]
        self.N: int = skeleton.keywords["N"]
        one = ModuleSpace(partial(skeleton.func, *skeleton.args, **{**skeleton.keywords, "N": 1}), space.example)
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
