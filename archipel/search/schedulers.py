"""Rungs: which trial gets more epochs, decided at every result without waiting for any other.

Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht, Talwalkar. A System for Massively Parallel Hyperparameter Tuning.
2018. https://arxiv.org/abs/1810.05934 — the quantile rule: Klein, Tiao, Lienart, Archambeau, Seeger. Model-based
Asynchronous Hyperparameter and Neural Architecture Search. 2020. https://arxiv.org/abs/2003.10865

Rungs stand at r_k = r_min eta^k up to r_max. A result passes if it is among the best 1/eta of all n results that were
ever recorded at its rung, its own and the promoted ones included:

    rule "quantile"   loss <= the 1/eta quantile, linear between order statistics
    rule "floor"      rank <= max(1, floor(n / eta)), ties by arrival; stricter whenever n = 1 mod eta

Variant "promotion": a trial pauses at each rung; the best result that waits there is promoted if it passes. Variant
"stopping": a trial runs on until it fails to pass at a rung. Nothing is judged before ``min_results`` results: then a
running trial goes on and a paused one waits. Losses are negated scores, so both modes look alike here; what failed
has an infinite loss and never passes.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Mapping

from archipel.core.errors import UsageError
from archipel.search.strategy import Strategy, Trial

RULES = ("quantile", "floor")
VARIANTS = ("promotion", "stopping")


def check_eta(eta: float) -> None:
    """Raises UsageError: rungs by this ratio would keep (nearly) everything."""
    if not 1.01 <= eta < math.inf:
        raise UsageError(f"eta={eta!r} would keep every trial at every rung; it must be above 1 (3 or 4 are usual).")


def rung_levels(r_max: int, eta: float = 3, r_min: int | None = None) -> list[int]:
    """Epochs at which trials are compared, ascending; the last is ``r_max``.

    Args:
        r_max: epochs of a full evaluation.
        eta: ratio of neighbouring levels (rounded to whole epochs).
        r_min: lowest level; None divides down from ``r_max`` instead, so that every ``r_max`` is reached.

    Raises:
        UsageError: eta <= 1, r_min below 1 or above r_max, or a ladder from ``r_min`` that misses ``r_max``.

    >>> rung_levels(81, 3, r_min=1), rung_levels(10)
    ([1, 3, 9, 27, 81], [1, 3, 10])
    """
    check_eta(eta)
    if r_max < 1 or (r_min is not None and not 1 <= r_min <= r_max):
        raise UsageError(f"Rungs need 1 <= r_min <= r_max, not r_min={r_min}, r_max={r_max}.")
    if r_min is None:
        down = (r_max / eta**k for k in itertools.count())
        return sorted({round(level) for level in itertools.takewhile(lambda level: level > 1 - 1e-9, down)})
    up = (round(r_min * eta**k) for k in itertools.count())
    levels = list(dict.fromkeys(itertools.takewhile(lambda level: level <= r_max, up)))
    if levels[-1] != r_max:
        above = next(level for k in itertools.count() if (level := round(r_min * eta**k)) > r_max)
        raise UsageError(
            f"Rungs {levels} from r_min={r_min} by eta={eta} never reach r_max={r_max}, so no trial would be evaluated "
            f"in full. Use r_max={levels[-1]} or {above}, or r_min=None to divide down from {r_max}."
        )
    return levels


class Rung:
    """All results ever recorded at one level; keys name configurations."""

    def __init__(self, level: int, eta: float, rule: str, min_results: int) -> None:
        self.level, self.eta, self.rule, self.min_results = level, eta, rule, min_results
        self._sorted: list[tuple[float, int]] = []  # (loss, order of arrival)
        self._result: dict[int, tuple[float, int]] = {}
        self._waiting: list[tuple[float, int, int]] = []  # heap of what was not promoted

    def __len__(self) -> int:
        return len(self._sorted)

    def record(self, key: int, loss: float) -> None:
        """Raises UsageError: a second result of the same configuration."""
        if key in self._result:
            raise UsageError(f"Configuration {key} already has a result at {self.level} epochs; ids must be unique.")
        result = (loss if loss == loss else math.inf, len(self._sorted))
        self._result[key] = result
        insort(self._sorted, result)
        heapq.heappush(self._waiting, (*result, key))

    def quantile(self) -> float:
        """The 1/eta quantile of all losses; infinite ones behave like very large ones."""
        position = (len(self._sorted) - 1) / self.eta
        i = int(position)
        low, high = self._sorted[i][0], self._sorted[min(i + 1, len(self._sorted) - 1)][0]
        return low if position == i or low == high else low + (position - i) * (high - low)

    def passes(self, key: int) -> bool:
        """Whether a recorded result is among the best 1/eta by the rule; a failure never is."""
        loss, order = self._result[key]
        if loss == math.inf:
            return False
        if self.rule == "floor":
            return bisect_left(self._sorted, (loss, order)) < max(1, math.floor(len(self) / self.eta))
        cut = self.quantile()
        return loss <= cut + 1e-12 * max(1.0, abs(cut))  # the slack absorbs the rounding of the interpolation

    def continues(self, key: int) -> bool:
        """Stopping variant: whether a trial that has just been recorded goes on."""
        finite = self._result[key][0] < math.inf
        return finite and (len(self) < self.min_results or self.passes(key))

    def promote(self) -> int | None:
        """Promotion variant: take the best waiting configuration, if it passes."""
        if len(self) < self.min_results or not self._waiting or not self.passes(self._waiting[0][2]):
            return None
        return heapq.heappop(self._waiting)[2]


class ReportingStrategy(Strategy):
    """A strategy that can be told how a running trial does, and may stop it.

    Attributes:
        needs_reports: without reports its trials would never be stopped; what cannot report must refuse it.
    """

    needs_reports = False

    def report(self, trial: Trial, resource: int, metrics: Mapping[str, float]) -> bool:
        """The metrics of a running trial after ``resource`` epochs in total; True: go on.

        To be called after every epoch. :meth:`tell` follows at the end, also of a stopped trial.
        """
        raise NotImplementedError
