"""Hard limits on costs: read from text with units, checked for each architecture, and for whether they can be kept.

    macs=5e6   params=1M   latency=3ms   memory=2MB   training=64MiB

K, M and G are thousands, millions and billions; KiB, MiB and GiB are powers of 1024. A limit is inclusive.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import InfeasibleError, SpaceError, UsageError, suggest
from archipel.core.space import Space
from archipel.cost.cheapest import Cheapest, cheapest
from archipel.cost.table import CostTable, archs_of

# What a user writes -> the name of the cost, in the order in which costs are cheap to find.
METRICS = {
    "params": "params",
    "macs": "macs",
    "memory": "memory_bytes",
    "memory_bytes": "memory_bytes",
    "training": "training_bytes",
    "training_bytes": "training_bytes",
    "latency": "latency_ms",
    "latency_ms": "latency_ms",
}
ORDER = tuple(dict.fromkeys(METRICS.values()))
_DECIMAL = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BINARY = {"ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}
_BYTES = {f"{p}b": f for p, f in {**_DECIMAL, **_BINARY}.items()}
# Unit -> factor, lower case. A limit on bytes may also go without the B; a latency without unit is in milliseconds.
UNITS = {
    "params": _DECIMAL,
    "macs": _DECIMAL,
    "memory_bytes": {**_DECIMAL, **_BYTES},
    "training_bytes": {**_DECIMAL, **_BYTES},
    "latency_ms": {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3},
}
_LIMIT = re.compile(r"\s*([A-Za-z_]+)\s*<?=\s*(.+?)\s*")
_VALUE = re.compile(r"([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-zµ]*)")


def parse_limit(text: str) -> tuple[str, float]:
    """Name of the cost and the limit, in its base unit.

    Raises:
        UsageError: another form, an unknown cost or unit, or a limit that is not positive.

    >>> parse_limit("macs=5M"), parse_limit("memory=2KiB"), parse_limit("latency=0.5s")
    (('macs', 5000000.0), ('memory_bytes', 2048.0), ('latency_ms', 500.0))
    """
    match = _LIMIT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise UsageError(f"Limit {text!r} should read COST=NUMBER, with a unit if need be: macs=5e6 or memory=2MB.")
    name, amount = match.groups()
    if name.lower() not in METRICS:
        raise UsageError(f"Limit {text!r}: there is no cost {name!r}. {suggest(name, METRICS)}")
    parts = _VALUE.fullmatch(amount)
    if parts is None:
        raise UsageError(f"Limit {text!r}: {amount!r} is not a number, or a number and a unit.")
    number, unit = parts.groups()
    metric = METRICS[name.lower()]
    units = UNITS[metric]
    if unit.lower() not in units:
        known = ", ".join(u or "none" for u in units)
        raise UsageError(f"Limit {text!r}: unit {unit!r} does not fit {name}. Known: {known}.")
    value = float(number) * units[unit.lower()]
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"Limit {text!r}: a limit must be a positive, finite number.")
    return metric, value


class Limits:
    """Upper limits on the costs of a space's architectures.

    Args:
        limits: name of the cost -> largest value allowed.
        space: whose ``cost`` tells them.
        costs: other ways to tell a cost, such as a latency predictor.

    >>> from archipel.core.decision import Decision
    >>> space = Space([Decision("width", [8, 16], ordered=True)])
    >>> limits = Limits({"params": 10}, space, {"params": lambda arch: arch["width"]})
    >>> limits.feasible({"width": 8}), limits.feasible({"width": 16}), limits.describe()
    (True, False, 'params <= 10')
    """

    def __init__(
        self,
        limits: Mapping[str, float],
        space: Space,
        costs: Mapping[str, Callable[[Arch], float]] | None = None,
    ) -> None:
        self.space = space
        self.by_metric = {m: limits[m] for m in sorted(limits, key=ORDER.index)}
        self._costs = dict(costs or {})
        self.tables: dict[str, CostTable] = {}

    @classmethod
    def parse(
        cls, texts: Iterable[str], space: Space, costs: Mapping[str, Callable[[Arch], float]] | None = None
    ) -> Limits:
        """Limits from texts such as ``"macs=5e6"``.

        Raises:
            UsageError: a text that is no limit, or two limits on one cost.
        """
        limits: dict[str, float] = {}
        for text in texts:
            metric, value = parse_limit(text)
            if metric in limits:
                raise UsageError(f"Limit {text!r}: {metric} is limited twice; give one limit for each cost.")
            limits[metric] = value
        return cls(limits, space, costs)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the limited costs, as in :class:`~archipel.cost.model.CostModel`."""
        return tuple(self.by_metric)

    def cost(self, metric: str, arch: Arch) -> float:
        if metric in self.tables:
            return self.tables[metric](arch)
        if metric in self._costs:
            return self._costs[metric](arch)
        return getattr(self.space.cost, metric)(arch)

    def feasible(self, arch: Arch) -> bool:
        """Whether an architecture keeps all limits."""
        return all(self.cost(metric, arch) <= limit for metric, limit in self.by_metric.items())

    __call__ = feasible

    def excess(self, arch: Arch) -> float:
        """The largest of cost / limit: at most 1 if feasible."""
        return max((self.cost(m, arch) / limit for m, limit in self.by_metric.items()), default=0.0)

    # --- many at once ----------------------------------------------------------------------------------------------

    def tabulated(self) -> Limits:
        """The same limits, answered by exact tables: microseconds for an architecture, and many at once.

        Raises:
            SpaceError: a limited cost has no exact table (a measured latency, say).
        """
        if self.tables.keys() >= self.by_metric.keys():
            return self
        copy = Limits(self.by_metric, self.space, self._costs)
        for metric in self.by_metric:
            own = self._costs.get(metric)
            if own is None and metric not in ("params", "macs"):
                raise SpaceError(f"There is no exact table for {metric}; only params and macs have one.")
            copy.tables[metric] = CostTable.of(self.space, metric) if own is None else CostTable.fit(self.space, own, 2)
        return copy

    def excess_batch(self, index: np.ndarray) -> np.ndarray:
        """The largest of cost / limit for each row of an index matrix ``[N, D]``; quick if :meth:`tabulated`."""
        worst = np.zeros(len(index))
        for metric, limit in self.by_metric.items():
            if metric in self.tables:
                costs = self.tables[metric].batch(index)
            else:
                costs = np.array([self.cost(metric, a) for a in archs_of(self.space, index)])
            worst = np.maximum(worst, costs / limit)
        return worst

    def feasible_batch(self, index: np.ndarray) -> np.ndarray:
        """Feasibility ``[N]`` of an index matrix ``[N, D]``."""
        good = np.ones(len(index), dtype=bool)
        for metric, limit in self.by_metric.items():
            if metric in self.tables:
                good &= self.tables[metric].batch(index) <= limit
            else:
                rows = np.flatnonzero(good)
                archs = archs_of(self.space, index[rows])
                good[rows] = [self.cost(metric, a) <= limit for a in archs]
        return good

    # --- in words --------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """The limits in words, such as ``"params <= 1,000,000, latency_ms <= 3"``."""
        return ", ".join(f"{m} <= {_number(v)}" for m, v in self.by_metric.items()) or "no limits"

    def cheapest(self, metric: str, enough: float = -math.inf, seed: int = 0) -> Cheapest:
        """The cheapest architecture by one cost; see :func:`cheapest`."""
        return cheapest(self.space, lambda arch: self.cost(metric, arch), enough, seed)

    def check_possible(self) -> None:
        """See whether each limit can be kept by itself.

        Raises:
            InfeasibleError: one cannot, as far as was looked; names the cheapest architecture.
        """
        for metric, limit in self.by_metric.items():
            if metric == "latency_ms" and metric not in self._costs:
                found = cheapest(self.space, self.space.cost.macs, seed=0)  # the least work; measuring all takes long
                found = Cheapest(found.arch, self.cost(metric, found.arch), False, "the network with fewest MACs")
            else:
                found = self.cheapest(metric, enough=limit)
            if found.value > limit:
                certain = "The smallest possible" if found.exact else "The smallest found"
                raise InfeasibleError(
                    f"No network of {self.space.name} keeps {metric} <= {_number(limit)}. {certain} has "
                    f"{_number(found.value)} ({found.how}): {found.arch}. Raise the limit, or choose a smaller space."
                )


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,.6g}"


def limits_behind(feasible: Any) -> Limits | None:
    """The limits that a feasibility test belongs to, if it is one of :class:`Limits`."""
    owner = feasible if isinstance(feasible, Limits) else getattr(feasible, "__self__", None)
    return owner if isinstance(owner, Limits) else None
