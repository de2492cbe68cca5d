"""The record of a search on a virtual clock: what happened when, and what had been found by then."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from archipel.search.strategy import Objective, Trial


class Event(NamedTuple):
    """Something that happened: ``kind`` is start, report, stop (by the strategy), finish or fail.

    ``resource`` is the number of epochs that the weights have seen in total, ``metrics`` what was reported then.
    """

    time: float
    kind: str
    worker: int
    trial: int
    resource: int
    metrics: Mapping[str, float]


NOTHING: Mapping[str, float] = {}
ENDS = ("stop", "finish", "fail")


@dataclass(frozen=True)
class Simulation:
    """What happened.

    Attributes:
        trials: all that were started, in this order; those running when the time was up have no outcome.
        events: in order of time.
        workers: their number.
        seconds: virtual time from the start to the last event, or to the horizon if there was one and work to fill it.
    """

    trials: list[Trial]
    events: list[Event]
    workers: int
    seconds: float

    def best_so_far(self, objective: Objective, times: Iterable[float], min_resource: int = 0) -> np.ndarray:
        """Best reported score (higher is better) at each of ``times``; minus infinity before the first.

        Args:
            min_resource: ignore reports after fewer epochs than this.
        """
        at, score = [-math.inf], [-math.inf]
        for e in self.events:
            if e.metrics and e.resource >= min_resource:
                at.append(e.time)
                score.append(objective.score(e.metrics))
        best = np.maximum.accumulate(score)
        return best[np.searchsorted(at, np.asarray(list(times), dtype=float), side="right") - 1]

    def busy_seconds(self) -> np.ndarray:
        """Time that each worker spent on trials, ``[W]``."""
        busy, since = np.zeros(self.workers), {}
        for e in self.events:
            if e.kind == "start":
                since[e.worker] = e.time
            elif e.kind in ENDS:
                busy[e.worker] += e.time - since.pop(e.worker)
        for worker, start in since.items():  # still at it when the time was up
            busy[worker] += self.seconds - start
        return busy

    def idle_seconds(self) -> np.ndarray:
        """Time that each worker had nothing to do, ``[W]``."""
        return self.seconds - self.busy_seconds()

    def epochs(self) -> dict[int, int]:
        """Epochs trained by each chain of trials that resume one another, by the id of its first trial."""
        first, last = {}, {}
        for e in self.events:
            first.setdefault(e.trial, e.resource)
            last[e.trial] = e.resource
        root: dict[int, int] = {}
        total: dict[int, int] = defaultdict(int)
        for trial in self.trials:
            root[trial.id] = trial.id if trial.resume is None else root[trial.resume]
            total[root[trial.id]] += last[trial.id] - first[trial.id]
        return dict(total)
