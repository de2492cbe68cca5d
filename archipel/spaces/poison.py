"""Operations that do a network no good, to be put into a search space as a test of the search.

Wu, Saxena, Jain. Poisoning the Search Space in Neural Architecture Search. 2021. https://arxiv.org/abs/2106.14406

    identity     x
    gaussian     x · (1 + σε), ε ~ N(0, 1), while training; x otherwise
    dropout      p = 0.9 or 1.0, while training; x otherwise
    transposed   transposed convolutions with kernels 3 and 5
    stretched    a 3x3 convolution with padding and dilation 50: its outer taps see only padding

All keep the shape. Noise and dropout are the identity in evaluation, so a search that rewards in evaluation mode does
not see what they do to training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from archipel.core.errors import SpaceError, UsageError, suggest
from archipel.spaces.operations import OpFactory
from archipel.spaces.shape_types import ShapeType, type_of

STRETCH = 50


class GaussianNoise(nn.Module):
    """Multiplies by 1 + σε while training; ``[...] -> [...]``. The mean of the output is the input."""

    def __init__(self, sigma: float = 2.0) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.0 + self.sigma * torch.randn_like(x)) if self.training else x

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}"


def _transposed(kernel: int) -> OpFactory:
    return lambda C, s: nn.Sequential(
        nn.ReLU(), nn.ConvTranspose2d(C, C, kernel, 1, kernel // 2, bias=False), nn.BatchNorm2d(C)
    )


def _stretched(C: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(C, C, 3, stride, STRETCH, STRETCH, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(C))


POISONS: dict[str, dict[str, OpFactory]] = {
    "identity": {"identity": lambda C, s: nn.Identity()},
    "gaussian": {"gaussian": lambda C, s: GaussianNoise(2.0)},
    "gaussian10": {"gaussian10": lambda C, s: GaussianNoise(10.0)},
    "dropout": {"dropout": lambda C, s: nn.Dropout(0.9)},
    "dropout1": {"dropout1": lambda C, s: nn.Dropout(1.0)},
    "transposed": {"transposed3": _transposed(3), "transposed5": _transposed(5)},
    "stretched": {"stretched": _stretched},
}


def poison_operations(names: Sequence[str]) -> dict[str, OpFactory]:
    """The operations of one or several poisons (a grouping).

    Raises:
        UsageError: an unknown poison.

    >>> sorted(poison_operations(["dropout1", "transposed"]))
    ['dropout1', 'transposed3', 'transposed5']
    """
    out: dict[str, OpFactory] = {}
    for name in names:
        if name not in POISONS:
            raise UsageError(f"No poison {name!r}. {suggest(name, POISONS)}")
        out |= POISONS[name]
    return out


def poisoned(
    base: Mapping[str, OpFactory], poisons: Sequence[str], instances: int
) -> tuple[dict[str, OpFactory], dict[str, int]]:
    """Operations with poison among them, and under how many names each can be chosen.

    Args:
        instances: names for each poisonous operation; 0 leaves the space clean.

    Raises:
        UsageError: a negative number of instances, or an unknown poison.
        SpaceError: a poison that has the name of a base operation, or changes the shape.
    """
    if instances < 0:
        raise UsageError(f"A space cannot have {instances} instances of a poison; give 0 or more.")
    added = poison_operations(poisons) if instances else {}
    for label, make in added.items():
        if label in base:
            raise SpaceError(f"The poison {label!r} has the name of an operation that is there already.")
        check_keeps_shape(label, make)
    return {**base, **added}, dict.fromkeys(added, instances)


def check_keeps_shape(label: str, make: OpFactory) -> None:
    """
    Raises:
        SpaceError: an operation whose type is not the identity.
    """
    with torch.device("meta"):
        t = type_of(make(4, 1))
    if t is None or not t.same(ShapeType()):
        raise SpaceError(f"The poison {label!r} changes the shape of its input (its type is {t}), so it fits nowhere.")
