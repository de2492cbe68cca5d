"""Multilayer perceptrons of decided depth, widths, activation, normalisation and dropout, for tables and flat inputs.

Two forms. Plain: every hidden layer has a width of its own, and the output layer reads the last one that is there.
Residual: the pre-norm blocks of Gorishniy et al. (Revisiting Deep Learning Models for Tabular Data, 2021,
https://arxiv.org/abs/2106.11959) with one common width and a hidden width for each block.

A smaller network uses the first units of every layer of the largest one (Yang et al., TabNAS, 2022,
https://arxiv.org/abs/2204.07615). Activation, normalisation and dropout are one decision each for the whole network.
A list with a single option is no decision.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice, Decider, Depth, Extract, Size, Undecided, Width
from archipel.core.counting import Clause
from archipel.core.decision import Decision
from archipel.core.errors import SpaceError, suggest
from archipel.spaces.layers import ElasticBatchNorm1d, ElasticLayerNorm, ElasticLinear
from archipel.spaces.module_space import ModuleSpace

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
NORMS: dict[str, Callable[[Size], nn.Module]] = {
    "none": lambda size: nn.Identity(),
    "batch": ElasticBatchNorm1d,
    "layer": ElasticLayerNorm,
}


def one_of(name: str, options: Mapping[str, nn.Module]) -> nn.Module:
    """A choice, or the module itself if there is only one."""
    return Choice(name, options) if len(options) > 1 else next(iter(options.values()))


def size_of(name: str, options: Sequence[int]) -> Size:
    """A width decision, or the number itself if there is only one."""
    return Width(name, options) if len(options) > 1 else options[0]


class Exits(Undecided, nn.Module):
    """The first so many of a row of blocks, and then the exit that belongs to that depth.

    Unlike :class:`~archipel.core.choice.Depth`, the blocks may all end in different shapes.

    Args:
        name: of the decision.
        blocks: applied one after the other.
        exits: ``exits[d - 1]`` follows the first ``d`` blocks.
        min: smallest depth, at least 1.

    >>> two = Exits("depth", [nn.Linear(4, 3), nn.Linear(3, 2)], [nn.Linear(3, 5), nn.Linear(2, 5)])
    >>> two(torch.zeros(7, 4)).shape
    torch.Size([7, 5])
    """

    def __init__(self, name: str, blocks: Sequence[nn.Module], exits: Sequence[nn.Module], min: int = 1) -> None:
        super().__init__()
        if len(exits) != len(blocks) or not 1 <= min <= len(blocks):
            raise SpaceError(f"Exits {name!r}: min is {min}, with {len(blocks)} blocks and {len(exits)} exits.")
        self.decision = Decision(name, list(range(min, len(blocks) + 1)), ordered=True)
        self.blocks = nn.ModuleList(blocks)
        self.exits = nn.ModuleList(exits)

    def own_decisions(self) -> list[Decision]:
        return [self.decision]

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        depths = self.decision.options
        for i, (block, leave) in enumerate(zip(self.blocks, self.exits)):
            yield block, frozenset([(self.decision.name, frozenset(d for d in depths if d > i))])  # type: ignore[operator]
            if i + 1 in depths:
                yield leave, frozenset([(self.decision.name, frozenset([i + 1]))])

    def forward(self, x: Tensor) -> Tensor:
        depth = self.seat.decider.value(self.decision)
        for i in range(depth):
            x = self.blocks[i](x)
        return self.exits[depth - 1](x)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        depth = decider.value(self.decision)
        return nn.Sequential(*[inner(self.blocks[i]) for i in range(depth)], inner(self.exits[depth - 1]))


class ResidualBlock(nn.Module):
    """``x + dropout(W2 act(W1 norm(x)))``; ``[B, width] -> [B, width]``."""

    def __init__(self, norm: nn.Module, up: nn.Module, activation: nn.Module, down: nn.Module, drop: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(norm, up, activation, down, drop)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class MLP(nn.Module):
    """The largest perceptron of the space; see :func:`mlp_space`. ``[B, *input_shape] -> [B, classes]``."""

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        widths: Sequence[int],
        depth: tuple[int, int],
        activations: Sequence[str],
        norms: Sequence[str],
        dropout: Sequence[float],
        residual: bool,
    ) -> None:
        super().__init__()
        low, high = depth

        def activation() -> nn.Module:
            return one_of("activation", {a: ACTIVATIONS[a]() for a in activations})

        def norm(size: Size) -> nn.Module:
            return one_of("norm", {n: NORMS[n](size) for n in norms})

        def drop() -> nn.Module:
            return one_of("dropout", {str(p): nn.Dropout(p) if p else nn.Identity() for p in dropout})

        self.flatten = nn.Flatten()
        hidden = [size_of(f"width{i}", widths) for i in range(high)]
        features = math.prod(input_shape)
        if residual:
            width = size_of("width", widths)
            blocks = [
                ResidualBlock(norm(width), ElasticLinear(width, h), activation(), ElasticLinear(h, width), drop())
                for h in hidden
            ]
            stem = ElasticLinear(features, width)
            body = Depth("depth", blocks, low) if low < high else nn.Sequential(*blocks)
            self.body = nn.Sequential(stem, body, norm(width), activation(), ElasticLinear(width, classes))
            return
        sizes = [features, *hidden]
        blocks = [
            nn.Sequential(ElasticLinear(i, o), norm(o), activation(), drop()) for i, o in itertools.pairwise(sizes)
        ]
        if low < high:
            self.body = Exits("depth", blocks, [ElasticLinear(h, classes) for h in hidden], low)
        else:
            self.body = nn.Sequential(*blocks, ElasticLinear(hidden[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.flatten(x))


def mlp_space(
    input_shape: Sequence[int],
    classes: int,
    widths: Sequence[int] = (16, 32, 64, 128),
    depth: int | tuple[int, int] = (1, 4),
    activations: Sequence[str] = ("relu", "gelu", "silu"),
    norms: Sequence[str] = ("none", "batch"),
    dropout: Sequence[float] = (0.0,),
    residual: bool = False,
) -> ModuleSpace:
    """The space of perceptrons for inputs of a shape.

    Args:
        input_shape: of one input, flattened.
        classes: number of outputs.
        widths: options for every hidden layer.
        depth: smallest and largest number of hidden layers (of blocks, if residual), or one number.
        activations: of "relu", "gelu", "silu", "tanh".
        norms: of "none", "batch", "layer".
        dropout: rates after each layer.
        residual: residual blocks of one common width instead of plain layers.

    Raises:
        SpaceError: an unknown activation or norm, an empty list, a depth below 1, or a rate outside [0, 1).

    >>> space = mlp_space((2,), 1, widths=[2, 3, 4], depth=2, activations=["relu"], norms=["none"])
    >>> space.size, space.cost.params({"width0": 4, "width1": 2})
    (9, 25)
    """
    low, high = (depth, depth) if isinstance(depth, int) else depth
    if not 1 <= low <= high:
        raise SpaceError(f"mlp: depth must be (smallest, largest) with 1 <= smallest <= largest, not {depth!r}.")
    for what, given, known in (("activation", activations, ACTIVATIONS), ("norm", norms, NORMS)):
        for name in given:
            if name not in known:
                raise SpaceError(f"mlp: {what} {name!r} is unknown. {suggest(name, known)}")
    for what, given in (("widths", widths), ("activations", activations), ("norms", norms), ("dropout", dropout)):
        if len(given) == 0:
            raise SpaceError(f"mlp: {what} is empty; give at least one option.")
    if not all(0 <= p < 1 for p in dropout):
        raise SpaceError(f"mlp: dropout rates must be in [0, 1), not {list(dropout)!r}.")
    Width("width", widths)  # checks the options, also where there is only one
    factory = functools.partial(
        MLP, tuple(input_shape), classes, tuple(widths), (low, high), tuple(activations), tuple(norms),
        tuple(float(p) for p in dropout), residual,
    )  # fmt: skip
    return ModuleSpace(factory, torch.zeros(2, *input_shape), name="mlp")
