"""NeuralArTS: generate the layers that may stand where a given convolution stands.

Wu, Saxena, Jain. NeuralArTS: Structuring Neural Architecture Search with Type Theory. 2021.
https://arxiv.org/abs/2110.08710

    type of a convolution   (s, c),  c = 2p − d(k − 1)                    :mod:`archipel.spaces.shape_types`
    one free setting        k = (2p − c)/d + 1,   p = (c + d(k − 1))/2,   d = (2p − c)/(k − 1)
    a larger space          base operations + n generated + ⌈n/4⌉ further average and as many maximum pools

Two of kernel, padding and dilation run over a range, the third follows; solutions in integers are type-equivalent to
the reference, so they can be added to its choice and nothing downstream notices. The pools keep the balance between
convolutions and pools. The types are also what every space is checked by (:mod:`archipel.spaces.type_check`): before a
mixture is trained, and before a user's module is searched.

Fills the `validity` slot. Differs from the published generator in that the padding is solved for any c, not only 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from archipel.core.choice import Choice
from archipel.core.errors import ShapeError, UsageError
from archipel.core.registry import Paper, register
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.operations import OpFactory
from archipel.spaces.shape_types import window


@dataclass(frozen=True, order=True)
class Window:
    """Kernel, padding, dilation and stride along an axis (the same for all axes).

    Raises:
        ShapeError: a kernel, dilation or stride below 1, or a negative padding.
    """

    k: int
    p: int
    d: int = 1
    s: int = 1

    def __post_init__(self) -> None:
        if min(self.k, self.d, self.s) < 1 or self.p < 0:
            raise ShapeError(f"A window needs k, d, s of at least 1 and p of at least 0, not {self}.")

    @property
    def c(self) -> int:
        """How much larger the output is at stride 1."""
        return 2 * self.p - self.d * (self.k - 1)

    def same_type(self, other: Window) -> bool:
        return (self.s, self.c) == (other.s, other.c)

    def same_at(self, other: Window, size: int) -> bool:
        """Instant equality: the same output for inputs of one size."""
        a, b = window(self.k, self.p, self.d, self.s), window(other.k, other.p, other.d, other.s)
        return size >= max(a.least, b.least) and a(size) == b(size)

    @property
    def label(self) -> str:
        return f"conv{self.k}p{self.p}d{self.d}"


@register(
    "neuralarts",
    card=14,
    family="spaces",
    slots=["validity"],
    paper=Paper(
        "NeuralArTS: Structuring Neural Architecture Search with Type Theory", 2021, "https://arxiv.org/abs/2110.08710"
    ),
)
def equivalent_windows(
    reference: Window,
    k: Sequence[int] | None = None,
    p: Sequence[int] | None = None,
    d: Sequence[int] | None = None,
) -> list[Window]:
    """All windows of the reference's type with two settings from ranges and the third solved for.

    Args:
        reference: whose type is kept, stride included.
        k, p, d: values of two of them; the third is None.

    Raises:
        UsageError: not exactly one is None, an empty range, or values that no window has.

    >>> [(w.k, w.p, w.d) for w in equivalent_windows(Window(3, 1), k=range(1, 4), d=range(1, 3))]
    [(1, 0, 1), (1, 0, 2), (2, 1, 2), (3, 1, 1), (3, 2, 2)]
    """
    given = {"k": k, "p": p, "d": d}
    free = [name for name, values in given.items() if values is None]
    if len(free) != 1:
        raise UsageError(f"Exactly one of k, p, d must be None (it is solved for), but {len(free)} are.")
    for name, values in given.items():
        if values is not None and (len(values) == 0 or min(values) < (0 if name == "p" else 1)):
            raise UsageError(f"The range of {name} is {list(values)}; give values from {0 if name == 'p' else 1} up.")
    s, c = reference.s, reference.c
    found = set()
    if k is not None and d is not None:
        found = {Window(a, (c + b * (a - 1)) // 2, b, s) for a in k for b in d if _padding_exists(a, b, c)}
    elif k is not None and p is not None:
        for a in k:
            if a == 1:
                raise UsageError("A kernel of 1 fits with any dilation, so d cannot be solved for: let k start at 2.")
            found |= {Window(a, b, (2 * b - c) // (a - 1), s) for b in p if (2 * b - c) > 0 == (2 * b - c) % (a - 1)}
    elif p is not None and d is not None:
        found = {Window((2 * a - c) // b + 1, a, b, s) for a in p for b in d if (2 * a - c) >= 0 == (2 * a - c) % b}
    return sorted(found)


def _padding_exists(k: int, d: int, c: int) -> bool:
    twice = c + d * (k - 1)
    return twice >= 0 and twice % 2 == 0


def with_equivalents(
    base: Mapping[str, OpFactory], windows: Sequence[Window], pools: Mapping[str, OpFactory]
) -> dict[str, OpFactory]:
    """A set of operations enlarged by generated convolutions, and by pools so that the balance is kept.

    Args:
        base: label -> factory of (channels, stride).
        windows: to add, each as ReLU, convolution, batch norm.
        pools: the two kinds; each is added ⌈n/4⌉ times for n windows.
    """
    out = dict(base)
    for w in windows:
        out[w.label] = _conv(w)
    for i in range(math.ceil(len(windows) / 4)):
        out |= {f"{label}_{i + 2}": make for label, make in pools.items()}
    return out


def _conv(w: Window) -> OpFactory:
    def make(C: int, stride: int) -> nn.Module:
        conv = nn.Conv2d(C, C, w.k, stride * w.s, w.p, w.d, bias=False)
        return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(C))

    return make


def chain_space(
    ops: Mapping[str, OpFactory], input_shape: Sequence[int], classes: int, C: int = 8, layers: int = 4
) -> ModuleSpace:
    """Layers one behind the other, each any of the operations: stem, layers, mean over the plane, linear.

    >>> from archipel.spaces.operations import darts_operations
    >>> chain_space(darts_operations(False), (1, 8, 8), 10, layers=3).size
    512
    """

    def net() -> nn.Module:
        stem = [nn.Conv2d(input_shape[0], C, 3, padding=1, bias=False), nn.BatchNorm2d(C)]
        body = [Choice(f"layer{i}", {label: make(C, 1) for label, make in ops.items()}) for i in range(layers)]
        return nn.Sequential(*stem, *body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, classes))

    return ModuleSpace(net, torch.zeros(2, *input_shape), name="chain")
