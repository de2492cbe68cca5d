"""The settings of a search: checked once, written to the run folder, and enough to do it again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from archipel.core.errors import UsageError, suggest
from archipel.search.training import Recipe

UNITS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "min": 60.0, "minutes": 60.0, "h": 3600.0, "hours": 3600.0}
EXECUTORS = ("inline", "local", "ray", "dask")


@dataclass(frozen=True)
class Budget:
    """How much a strategy may spend: exactly one of trials, seconds or epochs.

    Seconds are wall-clock time of the search itself, summed over interruptions; the random baseline and the final
    training come on top.

    >>> Budget.parse("30min"), Budget.parse("100").trials, Budget.parse("200 epochs").epochs
    (Budget(trials=None, seconds=1800.0, epochs=None), 100, 200)
    """

    trials: int | None = None
    seconds: float | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.trials, self.seconds, self.epochs) if v is not None]
        if len(given) != 1 or not (isinstance(given[0], int | float) and math.isfinite(given[0]) and given[0] > 0):
            raise UsageError(f"A budget is one positive number of trials, seconds or epochs, not {self.describe()}.")

    @classmethod
    def parse(cls, text: Any) -> Budget:
        """From ``"100"``, ``"100trials"``, ``"200epochs"``, ``"90s"``, ``"30min"`` or ``"2h"``.

        Raises:
            UsageError: anything else.
        """
        if isinstance(text, Budget):
            return text
        if isinstance(text, Mapping):
            unknown = set(text) - {"trials", "seconds", "epochs"}
            if unknown:
                raise UsageError(f"Budget: unknown {sorted(map(str, unknown))}. Known: epochs, seconds, trials.")
            return cls(**text)
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(text).lower())
        if match:
            amount, unit = float(match[1]), match[2]
            if unit in ("", "trial", "trials") and amount == int(amount):
                return cls(trials=int(amount))
            if unit in ("epoch", "epochs") and amount == int(amount):
                return cls(epochs=int(amount))
            if unit in UNITS:
                return cls(seconds=amount * UNITS[unit])
        raise UsageError(f"Budget {text!r} is not understood. Write 100, 100trials, 200epochs, 90s, 30min or 2h.")

    def describe(self) -> str:
        parts = {"trials": self.trials, "seconds": self.seconds, "epochs": self.epochs}
        return ", ".join(f"{v} {k}" for k, v in parts.items() if v is not None) or "nothing"


@dataclass(frozen=True)
class SearchConfig:
    """Everything that determines a search, as JSON.

    Args:
        data, space, strategy: names, paths, or a description of the object that was given.
        data_options, space_options, strategy_options: settings of these.
        budget: of the strategy.
        limits: such as ``["macs=5e6"]``; no returned network breaks one.
        objectives: metric names, ``":min"`` behind those of which less is better.
        joint: training hyperparameters that are searched together with the architecture, such as ``["lr"]``.
        recipe: how each network is trained; ``final_epochs`` for the chosen one.
        baseline: the share of the budget that random search gets for comparison; 0 for none.
        final_candidates: how many of the best are trained in full; the best of them on validation data is chosen.
        final_random: how many random architectures are trained alike, for comparison.
        workers, executor: how many trials at once, and where.
        trial_seconds: time limit of a trial.
        trial_memory: bytes a trial may allocate (local workers).
        seed: of everything.

    Raises:
        UsageError: a value that makes no sense; says which.
    """

    data: str
    space: str = "auto"
    strategy: str = "nas-evolution-patterns"
    data_options: dict[str, Any] = field(default_factory=dict)
    space_options: dict[str, Any] = field(default_factory=dict)
    strategy_options: dict[str, Any] = field(default_factory=dict)
    budget: Budget = Budget(trials=32)
    limits: list[str] = field(default_factory=list)
    objectives: list[str] = field(default_factory=list)
    joint: list[str] = field(default_factory=list)
    recipe: Recipe = field(default_factory=Recipe)
    final_epochs: int | None = None
    baseline: float = 1.0
    final_candidates: int = 2
    final_random: int = 3
    workers: int = 1
    executor: str = "local"
    trial_seconds: float | None = None
    trial_memory: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _expect("workers", self.workers, isinstance(self.workers, int) and 1 <= self.workers <= 4096, "1 or more")
        _expect("seed", self.seed, isinstance(self.seed, int) and 0 <= self.seed < 2**31, "from 0 to 2^31 - 1")
        _expect("baseline", self.baseline, _number(self.baseline) and 0 <= self.baseline <= 10, "from 0 to 10")
        good = isinstance(self.final_candidates, int) and 1 <= self.final_candidates <= 1000
        _expect("final_candidates", self.final_candidates, good, "1 or more")
        good = isinstance(self.final_random, int) and 0 <= self.final_random <= 1000
        _expect("final_random", self.final_random, good, "0 or more")
        for name in ("final_epochs", "trial_memory"):
            v = getattr(self, name)
            _expect(name, v, v is None or (isinstance(v, int) and v > 0), "a positive integer")
        v = self.trial_seconds
        _expect("trial_seconds", v, v is None or (_number(v) and v > 0), "a positive number of seconds")
        for name in ("data", "space", "strategy", "executor"):
            v = getattr(self, name)
            _expect(name, v, isinstance(v, str) and bool(v), "a non-empty string")
        for name in ("limits", "objectives", "joint"):
            v = getattr(self, name)
            _expect(name, v, isinstance(v, list) and all(isinstance(e, str) for e in v), "a list of strings")
        for name in ("data_options", "space_options", "strategy_options"):
            v = getattr(self, name)
            _expect(name, v, isinstance(v, dict) and all(isinstance(k, str) for k in v), "an object with string keys")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Any) -> SearchConfig:
        """From JSON.

        Raises:
            UsageError: not an object, an unknown setting, or a bad value.
        """
        if not isinstance(raw, Mapping):
            raise UsageError(f"A search configuration is an object, not {type(raw).__name__}.")
        known = {f.name: f for f in fields(cls)}
        for name in raw:
            if name not in known:
                raise UsageError(f"Unknown setting {name!r}. {suggest(str(name), known)}")
        values = dict(raw)
        if "budget" in values:
            values["budget"] = Budget.parse(_without_none(values["budget"]))
        if "recipe" in values and not isinstance(values["recipe"], Recipe):
            if not isinstance(values["recipe"], Mapping):
                raise UsageError(f"Setting recipe must be an object, not {values['recipe']!r}.")
            values["recipe"] = Recipe().with_hyper(values["recipe"])
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"Incomplete configuration: {error}.") from error


def _without_none(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _expect(name: str, value: Any, good: bool, wanted: str) -> None:
    if not good or isinstance(value, bool):
        raise UsageError(f"Setting {name} must be {wanted}, not {value!r}.")
