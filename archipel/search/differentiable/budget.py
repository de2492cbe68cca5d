"""Budgets of a differentiable search: upper and lower bounds on what a whole network costs.

Costs are counted (parameters, multiply-accumulates) or given as a table for each option (milliseconds, say); both add
up over the choices of a network, so the same tables tell the expected cost of a mixture and the cost of one
architecture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archipel.core.errors import InfeasibleError, UsageError
from archipel.cost.limits import parse_limit
from archipel.search.differentiable.costs import METRICS, ExpectedCost, expected_cost, tabled_cost
from archipel.search.differentiable.parameters import ArchParameters
from archipel.search.differentiable.projection import Bound
from archipel.spaces.module_space import ModuleSpace

Limit = float | int | str
CostEntries = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Budget:
    """Bounds on the costs of a whole network.

    Args:
        upper, lower: cost -> bound, a number in single parameters, MACs or the unit of a table of your own, or a text
            such as ``"20k"``.
        tables: costs that are given and not counted: name -> row -> option -> cost of the option over all its places.
            ``"constant"`` in place of a row is what every network has, as ``{"constant": {"": 1.5}}``.

    Raises:
        UsageError: no upper bound, an unknown cost, or a lower bound above the upper one.

    >>> [str(b) for b in Budget({"params": "20k"}, {"params": 1000}).bounds]
    ['params <= 20,000', 'params >= 1,000']
    """

    upper: Mapping[str, Limit]
    lower: Mapping[str, Limit] | None = None
    tables: Mapping[str, CostEntries] | None = None

    def __post_init__(self) -> None:
        if not self.upper and not self.lower:
            raise UsageError("A budget needs a bound, as in upper={'params': 20000} or upper={'macs': '5M'}.")
        for metric in self.metrics:
            if metric not in METRICS and metric not in (self.tables or {}):
                raise UsageError(
                    f"A budget bounds {' or '.join(METRICS)}, or a cost that a table is given for, not {metric!r}."
                )
            if any(math.isnan(limit) for limit in self.limits(metric)):
                raise UsageError(f"A bound of {metric} is not a number.")

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys([*self.upper, *(self.lower or {})]))

    @property
    def bounds(self) -> list[Bound]:
        """Those that can be broken: infinite upper ones and lower ones of zero and less cannot."""
        found = []
        for i, metric in enumerate(self.metrics):
            high, low = self.limits(metric)
            if math.isfinite(high):
                found.append(Bound(i, metric, high))
            if low > 0.0:
                found.append(Bound(i, metric, low, upper=False))
        return found

    def limits(self, metric: str) -> tuple[float, float]:
        """Upper and lower bound of a cost."""
        high = _number(metric, self.upper.get(metric, math.inf))
        return high, _number(metric, (self.lower or {}).get(metric, 0.0))

    def costs(self, space: ModuleSpace, parameters: ArchParameters, kept: bool) -> list[ExpectedCost]:
        """One for each metric; see :func:`~archipel.search.differentiable.costs.expected_cost`."""
        found = []
        for metric in self.metrics:
            entries = (self.tables or {}).get(metric)
            if entries is None:
                found.append(expected_cost(space, parameters, metric, kept))
            else:
                constant = sum(entries.get("constant", {}).values())
                found.append(tabled_cost(space, parameters, metric, entries, constant, kept))
        return found

    def check(self, ranges: Sequence[tuple[float, float]]) -> None:
        """Whether each bound can be kept and matters.

        Args:
            ranges: the smallest and largest cost there is, for each metric.

        Raises:
            UsageError: a lower bound above the upper one, or an upper bound that no network reaches.
            InfeasibleError: a bound that no network keeps. All name the costs that can be attained.
        """
        for metric, (least, most) in zip(self.metrics, ranges):
            high, low = self.limits(metric)
            there_are = f"Networks of this space have {least:,.6g} to {most:,.6g} {metric}"
            if low > high:
                raise UsageError(
                    f"The lower bound of {metric}, {low:,.6g}, is above the upper, {high:,.6g}. {there_are}."
                )
            slack = 1e-4 * (most - least)
            if high < least + slack or low > most - slack:
                kind, value = ("upper", high) if high < least + slack else ("lower", low)
                raise InfeasibleError(
                    f"The {kind} bound of {metric} is {value:,.6g}, which leaves no choice. {there_are}."
                )
            if most < high < math.inf:
                raise UsageError(
                    f"The upper bound of {metric} is {high:,.6g}, which nothing can break. {there_are}; is the bound "
                    f"in another unit? Leave it out to search without."
                )
            if high - low < slack:
                raise UsageError(f"Between {low:,.6g} and {high:,.6g} {metric} there is hardly a network. {there_are}.")


def _number(metric: str, limit: Limit) -> float:
    if not isinstance(limit, str):
        return float(limit)
    return parse_limit(f"{metric}={limit}")[1]
