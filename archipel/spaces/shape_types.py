"""Types of layers: how the shape that comes out depends on the shape that goes in.

Wu, Saxena, Jain. NeuralArTS: Structuring Neural Architecture Search with Type Theory. 2021.
https://arxiv.org/abs/2110.08710

    convolution, pool     D(I) = ⌊(I + c − 1) / s⌋ + 1,    c = 2p − d(k − 1)          one axis of size I
    acceptable inputs     A = {I : I + 2p ≥ d(k − 1) + 1}
    transposed            D(I) = s·I − s − 2p + d(k − 1) + output padding + 1

Both are maps D(I) = ⌊(u·I + b) / s⌋ + 1, and so are their chains: as ⌊(⌊x/m⌋ + n)/s⌋ = ⌊(x + m·n)/(m·s)⌋ for
integers, a layer of u = 1 merges with what is before it, (s₁, c₁) then (s₂, c₂) giving s = s₁s₂ and c = c₁ + s₁c₂. A
transposed layer behind a stride does not merge; the chain then stays a chain. Two chains are the same function exactly
if they have the same slope Πu/Πs and agree on one period of Πs consecutive sizes.

Three equalities, each implying the next: *complete* (the same settings), *type* (the same function), *instant* (the
same shape for one given input).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from archipel.core.errors import ShapeError
from archipel.spaces.operations import Zero


@dataclass(frozen=True)
class Step:
    """D(I) = ⌊(u·I + b) / s⌋ + 1, for I of at least ``least``; with u = 0 the constant ⌊b/s⌋ + 1."""

    u: int
    s: int
    b: int
    least: int = 1

    def __call__(self, size: int) -> int:
        return (self.u * size + self.b) // self.s + 1


IDENTITY = Step(1, 1, -1)
Axis = tuple[Step, ...]


def axis_out(axis: Axis, size: int) -> int | None:
    """The size that comes out, or None if ``size`` is not acceptable."""
    for step in axis:
        if size < step.least:
            return None
        size = step(size)
        if size < 1:
            return None
    return size


def merged(axis: Sequence[Step]) -> Axis:
    """The same chain with as few steps as possible; what it accepts is not kept.

    >>> merged([Step(1, 2, 0), Step(1, 2, 0)])
    (Step(u=1, s=4, b=2, least=1),)
    """
    out: list[Step] = []
    for b in axis:
        a = out[-1] if out else None
        if a and b.u == 1:
            out[-1] = Step(a.u, a.s * b.s, a.b + a.s * (1 + b.b))
        elif a and a.s == 1:
            out[-1] = Step(a.u * b.u, b.s, b.u * (a.b + 1) + b.b)
        else:
            out.append(Step(b.u, b.s, b.b))
    return tuple(out) or (IDENTITY,)


def same_function(first: Axis, second: Axis) -> bool:
    """Whether two chains give the same size for every size that is large enough."""
    a, b = merged(first), merged(second)
    slope = [Fraction(math.prod(s.u for s in axis), math.prod(s.s for s in axis)) for axis in (a, b)]
    if slope[0] != slope[1]:
        return False
    period = math.lcm(*(math.prod(s.s for s in axis) for axis in (a, b)))

    def at(axis: Axis, size: int) -> int:
        for step in axis:
            size = step(size)
        return size

    return all(at(a, i) == at(b, i) for i in range(period))


@dataclass(frozen=True)
class ShapeType:
    """How a layer maps ``[B, C, *sizes]``.

    Attributes:
        channels: C that goes in and that comes out; None in both places if any C is kept as it is.
        axes: one chain for each spatial axis; one for all of them if ``rank`` is None.
        rank: number of spatial axes, or None if any number is kept.
    """

    channels: tuple[int, int] | None = None
    axes: tuple[Axis, ...] = ((IDENTITY,),)
    rank: int | None = None

    def __call__(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """The shape ``[C, *sizes]`` that comes out, or None if the input is not acceptable."""
        C, *sizes = shape
        if self.rank is not None and len(sizes) != self.rank:
            return None
        if self.channels is not None and self.channels[0] != C:
            return None
        axes = self.axes if self.rank is not None else self.axes * len(sizes)
        out = [axis_out(axis, size) for axis, size in zip(axes, sizes)]
        if any(o is None for o in out):
            return None
        return (C if self.channels is None else self.channels[1], *(o for o in out if o is not None))

    def then(self, other: ShapeType) -> ShapeType:
        """The type of this layer followed by another.

        Raises:
            ShapeError: their channels or ranks do not fit.
        """
        if self.rank is not None and other.rank is not None and self.rank != other.rank:
            raise ShapeError(f"A layer on {self.rank} spatial axes cannot be followed by one on {other.rank}.")
        if self.channels and other.channels and self.channels[1] != other.channels[0]:
            raise ShapeError(
                f"A layer that gives {self.channels[1]} channels cannot be followed by one that takes "
                f"{other.channels[0]}."
            )
        rank = self.rank if self.rank is not None else other.rank
        n = 1 if rank is None else rank
        ours = self.axes if self.rank is not None else self.axes * n
        theirs = other.axes if other.rank is not None else other.axes * n
        channels = self.channels or other.channels
        if self.channels and other.channels:
            channels = (self.channels[0], other.channels[1])
        chains = (tuple(step for step in a + b if step != IDENTITY) or (IDENTITY,) for a, b in zip(ours, theirs))
        return ShapeType(channels, tuple(chains), rank)

    def same(self, other: ShapeType) -> bool:
        """Type equality: the same shape for every input that both accept.

        Raises:
            ShapeError: layers for different numbers of spatial axes are not comparable.
        """
        if self.rank is not None and other.rank is not None and self.rank != other.rank:
            raise ShapeError(f"Types on {self.rank} and {other.rank} spatial axes cannot be compared.")
        n = self.rank or other.rank or 1
        ours = self.axes if self.rank is not None else self.axes * n
        theirs = other.axes if other.rank is not None else other.axes * n
        keeps = (self.channels is None or self.channels[0] == self.channels[1]) and (
            other.channels is None or other.channels[0] == other.channels[1]
        )
        fits = self.channels == other.channels or (keeps and None in (self.channels, other.channels))
        return fits and all(same_function(a, b) for a, b in zip(ours, theirs))

    def accepts(self, size: int) -> bool:
        """Whether a size along every axis is acceptable."""
        return all(axis_out(axis, size) is not None for axis in self.axes)

    def covered_exactly_by(self, before: ShapeType, sizes: Sequence[int]) -> bool:
        """Complete compatibility before → this: the outputs of ``before`` are all that is acceptable here, no less.

        Args:
            sizes: that ``before`` is given; acceptable sizes are looked at up to its largest output.
        """
        given = {out for i in sizes for axis in before.axes if (out := axis_out(axis, i)) is not None}
        return bool(given) and given == {i for i in range(1, max(given) + 1) if self.accepts(i)}

    def accepts_all_of(self, before: ShapeType, sizes: Sequence[int]) -> bool:
        """Forward compatibility before → this: every output of ``before`` for the given sizes is acceptable here."""
        C = before.channels[0] if before.channels else (self.channels[0] if self.channels else 1)
        rank = before.rank or self.rank or 1
        outputs = [before((C, *[size] * rank)) for size in sizes]
        return all(self(o) is not None for o in outputs if o is not None)


# Layers that keep every shape.
KEEPING = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.LeakyReLU,
    nn.ELU, nn.Softplus, nn.PReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
_NORMS = {nn.BatchNorm1d: None, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
_CONVS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_TRANSPOSED = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}
_POOLS = {
    nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3, nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3
}  # fmt: skip


def window(kernel: int, padding: int, dilation: int, stride: int) -> Step:
    """One axis of a convolution or pool.

    >>> window(3, 1, 1, 2)(7), window(3, 1, 1, 2)(8)
    (4, 4)
    """
    c = 2 * padding - dilation * (kernel - 1)
    return Step(1, stride, c - 1, max(1, 1 - c))


def type_of(layer: nn.Module) -> ShapeType | None:
    """The type of a layer or of a sequence of layers; None for modules whose insides are not known.

    Padding ``"same"`` is no number, so such a convolution has no type.

    Raises:
        ShapeError: the layers of a sequence do not fit one behind the other.
    """
    kind = type(layer)
    if isinstance(layer, KEEPING):
        return ShapeType()
    if isinstance(layer, Zero):
        return ShapeType(None, ((Step(1, layer.stride, -1),),))
    if isinstance(layer, nn.Sequential):
        found: ShapeType | None = ShapeType()
        for child in layer:
            inner = type_of(child)
            found = None if inner is None or found is None else found.then(inner)
        return found
    if kind in _NORMS:
        return ShapeType((layer.num_features,) * 2, ((IDENTITY,),) * (_NORMS[kind] or 1), _NORMS[kind])  # type: ignore[arg-type]
    if kind in _CONVS and not isinstance(layer.padding, str):
        steps = _windows(layer, _CONVS[kind])
        return ShapeType((layer.in_channels, layer.out_channels), tuple((s,) for s in steps), _CONVS[kind])
    if isinstance(layer, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
        return _constant(layer)
    if kind in _TRANSPOSED:
        return ShapeType(
            (layer.in_channels, layer.out_channels), tuple((s,) for s in _unpooled(layer, kind)), _TRANSPOSED[kind]
        )
    if kind in _POOLS and not layer.ceil_mode:
        return ShapeType(None, tuple((s,) for s in _windows(layer, _POOLS[kind])), _POOLS[kind])
    return None


def _constant(layer: Any) -> ShapeType:
    """An adaptive pool gives the same size for every input (a constant codomain)."""
    rank = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}[type(layer)]
    sizes = _each(layer.output_size, rank)
    steps = [IDENTITY if size is None else Step(0, 1, size - 1) for size in sizes]
    return ShapeType(None, tuple((step,) for step in steps), rank)


def _each(value: Any, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value)


def _windows(layer: Any, n: int) -> list[Step]:
    values = [_each(getattr(layer, name, 1), n) for name in ("kernel_size", "padding", "dilation", "stride")]
    return [window(k, p, d, s) for k, p, d, s in zip(*values)]


def _unpooled(layer: Any, kind: type[nn.Module]) -> list[Step]:
    n = _TRANSPOSED[kind]  # type: ignore[index]
    names = ("kernel_size", "padding", "dilation", "stride", "output_padding")
    values = [_each(getattr(layer, name), n) for name in names]
    return [Step(s, 1, -s - 2 * p + d * (k - 1) + o) for k, p, d, s, o in zip(*values)]
