"""Decisions: the named things about a network that are open until somebody decides them.

A decision has a name and either a finite list of options (:class:`Decision`) or a numeric range (:class:`Real`, for
training hyperparameters). Every value is a JSON scalar, so that an architecture — a dict from names to values — is
plain data. Who decides, and when, is not said here: a search, a gradient, a deployer or a router may.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from archipel.core.errors import SpaceError

Value = str | int | float | bool
Arch = dict[str, Any]


@dataclass(frozen=True, init=False)
class Decision:
    """One of finitely many options.

    Args:
        name: the same name elsewhere in a space is the same decision.
        options: distinct JSON scalars, all of one type.
        ordered: whether neighbours in the list are alike (widths, kernel sizes); sets the encoding.

    Raises:
        SpaceError: no options, duplicates, mixed types or non-scalars.
    """

    name: str
    options: tuple[Value, ...]
    ordered: bool

    def __init__(self, name: str, options: Sequence[Value], ordered: bool = False) -> None:
        if not isinstance(name, str) or not name:
            raise SpaceError(f"A decision's name must be a non-empty string, not {name!r}.")
        options = tuple(options)
        if not options:
            raise SpaceError(f"Decision {name!r} has no options; give at least one.")
        if len({type(o) for o in options}) > 1 or not isinstance(options[0], str | int | float | bool):
            raise SpaceError(f"Decision {name!r} needs JSON scalars of one type as options, not {options!r}.")
        if len(set(options)) < len(options):
            raise SpaceError(f"Decision {name!r} lists an option twice: {options!r}.")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "ordered", ordered)
        object.__setattr__(self, "_index", {o: i for i, o in enumerate(options)})

    @property
    def size(self) -> int:
        return len(self.options)

    @property
    def mutable(self) -> bool:
        return len(self.options) > 1

    def index(self, value: Any) -> int:
        """Position of a value among the options."""
        return self._index[value]  # type: ignore[attr-defined]

    def contains(self, value: Any) -> bool:
        return type(value) is type(self.options[0]) and value in self._index  # type: ignore[attr-defined]

    def sample(self, rng: Random) -> Value:
        return self.options[int(rng.random() * len(self.options))]

    def move(self, value: Value, rng: Random) -> Value:
        """Another option than ``value``, each with equal probability."""
        n = len(self.options) - 1
        i = int(rng.random() * n)
        return self.options[i if i < self.index(value) else i + 1]

    @property
    def width(self) -> int:
        """Length of this decision's part of the encoding."""
        return 1 if self.ordered else len(self.options)

    def encode(self, value: Value | None) -> np.ndarray:
        """Rank scaled to [0, 1] if ordered, else one-hot. Inactive (None): the middle, or all zeros."""
        if self.ordered:
            return np.array([0.5 if value is None or self.size == 1 else self.index(value) / (self.size - 1)])
        code = np.zeros(self.size)
        if value is not None:
            code[self.index(value)] = 1.0
        return code

    def describe(self) -> str:
        return f"one of {list(self.options)}"


@dataclass(frozen=True)
class Real:
    """A number from a range, for hyperparameters searched together with the architecture.

    Args:
        name: of the decision.
        low, high: inclusive bounds.
        log: uniform in the logarithm; bounds must be positive.
        integer: whole numbers only.

    Raises:
        SpaceError: empty range, or a logarithm of a non-positive bound.
    """

    name: str
    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise SpaceError(f"Decision {self.name!r} needs finite low < high, not {self.low!r}, {self.high!r}.")
        if self.integer and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise SpaceError(
                f"Decision {self.name!r} is an integer; its bounds {self.low!r}, {self.high!r} must be too."
            )
        if self.log and self.low <= 0:
            raise SpaceError(f"Decision {self.name!r} is on a log scale, so low must be positive, not {self.low!r}.")

    @property
    def size(self) -> float:
        return int(self.high) - int(self.low) + 1 if self.integer else math.inf

    ordered = True
    mutable = True
    width = 1

    def contains(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.integer else int | float):
            return False
        return math.isfinite(value) and self.low <= value <= self.high

    def decode(self, unit: float) -> Value:
        """The value at position ``unit`` in [0, 1] of the (possibly logarithmic) range."""
        unit = min(1.0, max(0.0, unit))
        low, high = self._range
        if self.log:
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        else:
            value = low + unit * (high - low)
        if self.integer:
            value = round(value)
        value = min(self.high, max(self.low, value))  # exp(log(x)) may leave the range by one rounding
        return int(value) if self.integer else value

    def sample(self, rng: Random) -> Value:
        return self.decode(rng.random())

    def move(self, value: Value, rng: Random) -> Value:
        """A Gaussian step of a fifth of the range, reflected at the bounds."""
        unit = float(self.encode(value)[0])
        step = abs(unit + rng.gauss(0.0, 0.2)) % 2.0
        moved = self.decode(step if step <= 1.0 else 2.0 - step)
        return self.sample(rng) if moved == value else moved

    def encode(self, value: Value | None) -> np.ndarray:
        if value is None:
            return np.array([0.5])
        low, high = self._range
        if self.log:
            return np.array([math.log(float(value) / low) / math.log(high / low)])
        return np.array([(float(value) - low) / (high - low)])

    @property
    def _range(self) -> tuple[float, float]:
        """The bounds, half a unit wider for integers, so that rounding gives the end values as much room."""
        margin = 0.5 if self.integer else 0.0
        return self.low - margin, self.high + margin

    def describe(self) -> str:
        return f"a{'n integer' if self.integer else ' number'} in [{self.low}, {self.high}]"


AnyDecision = Decision | Real
