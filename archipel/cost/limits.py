"""Hard limits on costs: what no returned network may exceed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from archipel.core.decision import Arch, Decision
from archipel.core.errors import InfeasibleError, UsageError, suggest

if TYPE_CHECKING:
    from archipel.core.space import Space

# name typed -> (metric of the cost model, units)
SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
METRICS = {
    "params": ("params", SCALE),
    "macs": ("macs", SCALE),
    "latency": ("latency_ms", {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3}),
    "memory": ("memory_bytes", {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}),
}
# Spaces up to this size are searched completely for their cheapest architecture.
ENUMERABLE = 2_000


@dataclass(frozen=True)
class Limits:
    """Upper bounds on costs of a space's networks.

    Args:
        space: whose cost model measures.
        bounds: metric of the cost model -> largest allowed value.
    """

    space: Space
    bounds: dict[str, float]

    @classmethod
    def parse(cls, texts: Sequence[str], space: Space) -> Limits:
        """From ``["macs=5e6", "params=100k", "latency=3ms", "memory=2MB"]``.

        Raises:
            UsageError: unknown metric or unit, no number, or a bound that is not positive; the same metric twice.
        """
        bounds: dict[str, float] = {}
        for text in texts:
            name, _, amount = text.partition("=")
            name = name.strip().lower()
            if name not in METRICS:
                raise UsageError(f"Limit {text!r}: no cost {name!r}. {suggest(name, METRICS)}")
            metric, units = METRICS[name]
            match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([a-z]*)\s*", amount.lower())
            if not match or match[2] not in units:
                raise UsageError(
                    f"Limit {text!r} is not understood. Write {name}=<number>[{'|'.join(filter(None, units))}]."
                )
            try:
                bound = float(match[1]) * units[match[2]]
            except ValueError as error:
                raise UsageError(f"Limit {text!r}: {match[1]!r} is no number.") from error
            if not (math.isfinite(bound) and bound > 0):
                raise UsageError(f"Limit {text!r}: a bound must be positive and finite.")
            if metric in bounds:
                raise UsageError(f"Limit {name} is given twice.")
            bounds[metric] = bound
        return cls(space, bounds)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.bounds)

    def feasible(self, arch: Arch) -> bool:
        """Whether a network keeps every limit, by its exact (or, for latency, measured) costs."""
        return all(getattr(self.space.cost, m)(arch) <= bound for m, bound in self.bounds.items())

    def describe(self) -> str:
        return ", ".join(f"{m} ≤ {bound:,.6g}" for m, bound in self.bounds.items()) or "none"

    def check_possible(self) -> None:
        """Make sure that at least one architecture keeps the limits.

        Raises:
            InfeasibleError: names the smallest cost that was found.
        """
        for metric, bound in self.bounds.items():
            arch, least, exact = cheapest(self.space, metric)
            if least > bound:
                known = "the smallest possible is" if exact else "the smallest found is"
                raise InfeasibleError(
                    f"No architecture of {self.space.name} has {metric} ≤ {bound:,.6g}: {known} {least:,.6g} "
                    f"({arch}). Raise the limit to that or more, or choose a smaller space."
                )


def cheapest(space: Space, metric: str) -> tuple[Arch, float, bool]:
    """The architecture with the lowest cost: architecture, cost, and whether it is certainly the lowest.

    Small spaces are enumerated. In larger ones each decision in turn takes its cheapest option until nothing changes,
    which is exact for costs that grow with every decision on its own, and a good bound otherwise.
    """
    measure = getattr(space.cost, metric)
    if space.size <= ENUMERABLE:
        arch = min(space.enumerate(), key=measure)
        return arch, measure(arch), True
    arch = space.sample(Random(0))
    cost = measure(arch)
    improved = True
    while improved:
        improved = False
        for d in space.decisions:
            if d.name not in arch or not isinstance(d, Decision):
                continue
            for option in d.options:
                trial = space.complete({**arch, d.name: option}, Random(0))
                trial_cost = measure(trial)
                if trial_cost < cost:
                    arch, cost, improved = trial, trial_cost, True
    return arch, cost, False
