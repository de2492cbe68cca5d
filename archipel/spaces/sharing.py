"""How the networks of a supernet share weights: the mappings whose effect on rankings Yu et al. measured, as options.

Yu, Ranftl, Salzmann. How to Train Your Super-Net: An Analysis of Training Heuristics in Weight-Sharing NAS. 2020.
https://arxiv.org/abs/2003.04276

    channels    a layer of o channels takes of the O shared ones:  fixed        the first o
                                                                   random       a chunk at a random place, drawn anew in
                                                                                every training pass; else the first o
                                                                   interpolate  adaptive averages of all O
    kernels     a small kernel has weights of its own (separate), or is the centre of the largest one (crop), or that
                centre times a learned matrix (transform; Cai et al., Once-for-All, 2019)
    weights_on  every edge of a cell has operations of its own, or all edges into a node share the node's
    dropout     of whole edges, for each example, deeper cells more often (path); of the last features (global)
    layers, width   proxies: a fraction of the cells or of the channels

A *host* is a function from a :class:`Sharing` to a space. Whatever the sharing, a host's architectures are the same
data, so that stand-alone networks (built from the default, where nothing is shared) and supernets can be compared.

Departures: the reference code's random chunk never reaches the last channels (an exclusive upper bound); ours does.
Once-for-All chains its matrices from size to size; ours lead from the largest kernel to each, the same for two sizes.
The reference raises the path dropout during training; ours is constant.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice, Decider, Derived, Extract, Size, Undecided, Width
from archipel.core.decision import Decision
from archipel.core.errors import SpaceError, suggest
from archipel.spaces.dynamic import CHANNELS, DropPath, DynamicConv2d, DynamicLinear
from archipel.spaces.layers import ElasticBatchNorm1d, ElasticBatchNorm2d
from archipel.spaces.module_space import ModuleSpace

KERNELS = ("separate", "crop", "transform")
WEIGHTS_ON = ("edge", "node")


@dataclass(frozen=True)
class Sharing:
    """The weight-sharing mapping of a supernet; the default shares nothing beyond first channels.

    Raises:
        SpaceError: an unknown option, a dropout rate outside [0, 1), or a proxy outside (0, 1].
    """

    channels: str = "fixed"
    kernels: str = "separate"
    weights_on: str = "edge"
    path_dropout: float = 0.0
    global_dropout: float = 0.0
    layers: float = 1.0
    width: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("channels", CHANNELS), ("kernels", KERNELS), ("weights_on", WEIGHTS_ON)):
            if getattr(self, name) not in known:
                raise SpaceError(f"{name}={getattr(self, name)!r} is unknown. {suggest(getattr(self, name), known)}")
        for name in ("path_dropout", "global_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise SpaceError(f"{name} must be in [0, 1), not {getattr(self, name)!r}.")
        for name in ("layers", "width"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise SpaceError(f"{name} is a fraction in (0, 1], not {getattr(self, name)!r}.")

    def changed(self) -> list[str]:
        """Names of the options that differ from the default."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]


# --- hosts ---------------------------------------------------------------------------------------------------------


class ConcatLast(Undecided, nn.Module):
    """Concatenates as many of the last tensors as were decided; ``list of [B, c, ...] -> [B, n c, ...]``."""

    def __init__(self, number: Decision) -> None:
        super().__init__()
        self.number = number

    def own_decisions(self) -> list[Decision]:
        return [self.number]

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(states)[-self.seat.decider.value(self.number) :], 1)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        return _Concat(decider.value(self.number))


class _Concat(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(states)[-self.number :], 1)


class SharedCell(nn.Module):
    """A cell of two nodes; ``[B, C, H, W] -> [B, C, H, W]``.

    Edges 0→1, 0→2 and 1→2 each have a decided operation. The output concatenates the last node (of C channels) or both
    (of C/2 each), so that, as in NAS-Bench-101, a node's channels depend on how many feed the output.

    Args:
        channels: C.
        concat: how many nodes are concatenated, from many to few.
        kernels: sizes of the convolutions among the operations.
        drop: path dropout of this cell.
    """

    def __init__(self, channels: int, concat: Decision, kernels: Sequence[int], sharing: Sharing, drop: float) -> None:
        super().__init__()
        node: Size = Derived(operator.floordiv, channels, concat)
        self.project = nn.ModuleList(
            nn.Sequential(
                DynamicConv2d(channels, node, 1, sharing.channels), ElasticBatchNorm2d(node), nn.ReLU(inplace=True)
            )
            for _ in (1, 2)
        )
        into_1, into_2 = (operations(node, kernels, sharing) for _ in (1, 2))
        other = into_2 if sharing.weights_on == "node" else operations(node, kernels, sharing)
        self.edge01, self.edge02, self.edge12 = Choice("op01", into_1), Choice("op02", into_2), Choice("op12", other)
        self.drop = DropPath(drop) if drop else nn.Identity()
        self.concat = ConcatLast(concat)

    def forward(self, x: Tensor) -> Tensor:
        one = self.drop(self.edge01(self.project[0](x)))
        two = self.drop(self.edge02(self.project[1](x))) + self.drop(self.edge12(one))
        return self.concat([one, two])


def operations(channels: Size, kernels: Sequence[int], sharing: Sharing) -> dict[str, nn.Module]:
    """Convolutions of every kernel size, with batch norm and ReLU, and the identity."""
    largest = DynamicConv2d(channels, channels, max(kernels), sharing.channels)
    options: dict[str, nn.Module] = {}
    for k in sorted(kernels):
        if k == max(kernels):
            conv = largest
        else:
            shared = None if sharing.kernels == "separate" else largest
            conv = DynamicConv2d(channels, channels, k, sharing.channels, shared, sharing.kernels == "transform")
        options[f"conv{k}"] = nn.Sequential(conv, ElasticBatchNorm2d(channels), nn.ReLU(inplace=True))
    return {**options, "skip": nn.Identity()}


def cell_space(
    input_shape: Sequence[int],
    classes: int,
    channels: int = 16,
    cells: int = 2,
    kernels: Sequence[int] = (1, 3),
    sharing: Sharing = Sharing(),
) -> ModuleSpace:
    """The host for images in which every option of :class:`Sharing` applies.

    stem 3x3 -> cells, all of the same shape, with average pooling between -> mean -> linear

    Raises:
        SpaceError: odd channels, no cells, or images that the pooling uses up.

    >>> space = cell_space((1, 8, 8), 10)
    >>> space.size, space.cost.params({"op01": "skip", "op02": "skip", "op12": "conv1", "concat": 1})
    (54, 2074)
    """
    layers, width = max(1, round(cells * sharing.layers)), 2 * max(1, round(channels * sharing.width / 2))
    if channels < 2 or channels % 2 or cells < 1:
        raise SpaceError(f"A cell host needs even channels and at least one cell, not {channels} and {cells}.")
    if min(input_shape[-2:]) < 2 ** (layers - 1):
        raise SpaceError(f"Images of {tuple(input_shape[-2:])} vanish in {layers} cells; use fewer cells.")
    factory = functools.partial(_cell_net, tuple(input_shape), classes, width, layers, tuple(kernels), sharing)
    return ModuleSpace(factory, torch.zeros(2, *input_shape), name="cells")


def _cell_net(
    input_shape: tuple[int, ...], classes: int, width: int, layers: int, kernels: tuple[int, ...], sharing: Sharing
) -> nn.Module:
    concat = Decision("concat", [2, 1], ordered=True)  # fewer nodes are wider, so the largest comes last
    body: list[nn.Module] = []
    for i in range(layers):
        body += [nn.AvgPool2d(2)] if i else []
        body.append(SharedCell(width, concat, kernels, sharing, sharing.path_dropout * (i + 1) / layers))
    return nn.Sequential(
        nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        *body,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(sharing.global_dropout), nn.Linear(width, classes),
    )  # fmt: skip


def elastic_mlp_space(
    input_shape: Sequence[int],
    classes: int,
    widths: Sequence[int] = (4, 8, 16, 64),
    hidden: int = 3,
    activations: Sequence[str] = ("relu",),
    sharing: Sharing = Sharing(),
) -> ModuleSpace:
    """The host for flat inputs: hidden layers of decided width with batch norm, and perhaps a decided activation each.

    Raises:
        SpaceError: an option of the sharing that means nothing here.

    >>> elastic_mlp_space((64,), 10).size
    64
    """
    unknown = set(sharing.changed()) - {"channels", "global_dropout"}
    if unknown:
        raise SpaceError(
            f"A perceptron has neither edges nor kernels nor cells, so {sorted(unknown)} mean nothing here."
        )
    factory = functools.partial(
        _mlp_net, math.prod(input_shape), classes, tuple(widths), hidden, tuple(activations), sharing
    )
    return ModuleSpace(factory, torch.zeros(2, *input_shape), name="elastic-mlp")


def _mlp_net(
    features: int, classes: int, widths: tuple[int, ...], hidden: int, activations: tuple[str, ...], sharing: Sharing
) -> nn.Module:
    known = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
    layers: list[nn.Module] = [nn.Flatten()]
    before: Size = features
    for i in range(hidden):
        width = Width(f"width{i}", widths)
        layers += [DynamicLinear(before, width, channels=sharing.channels), ElasticBatchNorm1d(width)]
        options = {a: known[a]() for a in activations}
        layers.append(Choice(f"op{i}", options) if len(options) > 1 else next(iter(options.values())))
        before = width
    layers += [nn.Dropout(sharing.global_dropout), DynamicLinear(before, classes, channels=sharing.channels)]
    return nn.Sequential(*layers)
