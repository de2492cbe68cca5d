"""Runs of a policy under a protocol: what comparisons are made of, and what makes two of them comparable."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import UsageError


def plain(value: Any) -> Any:
    """What stands for an object in a record: its fields, or its name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **asdict(value)}
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', type(value).__module__)}.{name}"


def short_hash(value: Any) -> str:
    """Twelve hexadecimal digits that are equal for equal JSON values, whatever the order of their keys.

    >>> short_hash({"a": 1, "b": 2}) == short_hash({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, default=plain)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Runs:
    """Independent runs of one policy: for each, a search, and the result of training what it found alone.

    Args:
        name: of the policy.
        values: result of each run, higher is better; NaN where there is none.
        protocol: how networks were trained and judged; equal for all that is compared.
        space: name and size of the search space.
        search_seeds, evaluation_seeds: of each run, where known; the two never overlap.
        archs: what was found.
        failures: why a value is NaN.
        settings: hyperparameters of the search.
        queries, seconds: mean cost of a search.

    Raises:
        UsageError: an evaluation seed that is also a search seed, or lists of different lengths.
    """

    name: str
    values: Sequence[float]
    protocol: Mapping[str, Any]
    space: str = ""
    search_seeds: Sequence[int] = ()
    evaluation_seeds: Sequence[int] = ()
    archs: Sequence[Arch] = ()
    failures: Sequence[str | None] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    queries: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for what in ("search_seeds", "evaluation_seeds", "archs", "failures"):
            n = len(getattr(self, what))
            if n not in (0, len(self.values)):
                raise UsageError(f"{self.name}: {len(self.values)} results but {n} {what.replace('_', ' ')}.")
        common = set(self.search_seeds) & set(self.evaluation_seeds)
        if common:
            raise UsageError(
                f"{self.name}: seeds {sorted(common)[:5]} were used for searching and for evaluating. Evaluate under "
                f"other seeds, so that no result profits from the draw that it was chosen by."
            )

    @property
    def protocol_hash(self) -> str:
        return short_hash(self.protocol)

    def checked(self, least: int = 2) -> np.ndarray:
        """The results ``[n]``.

        Raises:
            UsageError: too few of them for a spread, or a run without a result.
        """
        v = np.asarray(self.values, dtype=float)
        if len(v) < least:
            raise UsageError(f"{self.name}: {len(v)} run(s), need >= {least} for a standard deviation. Use more seeds.")
        for i in np.flatnonzero(~np.isfinite(v)).tolist():
            seed = f" (search seed {self.search_seeds[i]})" if self.search_seeds else ""
            reason = (self.failures[i] if self.failures else None) or f"it is {v[i]}"
            raise UsageError(
                f"{self.name}: run {i}{seed} has no result: {reason}. Missing runs are never averaged over: repeat "
                f"it, or leave this seed out for every policy."
            )
        return v


def check_comparable(first: Runs, second: Runs) -> None:
    """
    Raises:
        UsageError: the two were trained by different protocols, or come from different spaces; says what differs.
    """
    a, b = _flat(first.protocol), _flat(second.protocol)
    different = [f"{k}: {a.get(k)!r} and {b.get(k)!r}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    if different:
        raise UsageError(
            f"{first.name} and {second.name} were trained by different protocols ({'; '.join(different[:4])}), so "
            f"their results cannot be compared. Train both alike."
        )
    if first.space != second.space:
        raise UsageError(
            f"{first.name} is from space {first.space!r}, {second.name} from {second.space!r}. A method is compared "
            f"with random architectures of its own space."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    out: dict[str, Any] = {}
    for k, v in value.items():
        out |= _flat(v, f"{prefix}.{k}" if prefix else str(k))
    return out
