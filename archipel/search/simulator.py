"""A search on a virtual clock: W workers, any strategy, outcomes and durations from functions or tables.

What an asynchronous search finds by a given time depends on when its results come back. This discrete-event simulator
replays a search of hours in seconds: each worker trains one trial at a time, epoch r of an architecture lasts
``seconds(arch, r)`` and gives ``evaluate(arch, r)``. A worker that becomes free asks the strategy at once, so it
idles only while the strategy itself has nothing to propose. Simultaneous events happen in the order in which they
were scheduled, so a simulation is a deterministic function of the strategy, its seed and the two functions.

Strategies that take reports (:class:`~archipel.search.schedulers.ReportingStrategy`) get one after each epoch and may
stop the trial; a trial that resumes another pays for its further epochs only. With one epoch a trial and W workers
this is the asynchronous mode of evolution: parents are chosen at dispatch, children return at completion.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.space import Space
from archipel.search.schedulers import ReportingStrategy
from archipel.search.simulation import NOTHING, Event, Simulation
from archipel.search.strategy import Problem, Strategy, Trial

Evaluate = Callable[[Arch, int], Mapping[str, float]]  # (architecture, epochs in total) -> metrics
Seconds = float | Callable[[Arch, int], float]  # of one epoch, counted from 1


class TrialFailure(Exception):
    """Raised by an ``evaluate`` function: the trial fails in this epoch, with this reason."""


class CurveTable:
    """Learning curves computed beforehand; their two methods are the functions that a simulation needs.

    Args:
        space: whose ``canonical`` form names the rows.
        rows: canonical form -> metric -> its value after epoch 1, 2, …; a metric ``"seconds"`` holds each epoch's.

    ``table.__contains__`` serves as the problem's ``feasible`` if the table holds a part of the space.
    """

    def __init__(self, space: Space, rows: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        self.space, self.rows = space, rows

    def __contains__(self, arch: Arch) -> bool:
        return self.space.canonical(arch) in self.rows

    def evaluate(self, arch: Arch, resource: int) -> dict[str, float]:
        """All metrics after so many epochs. Raises UsageError: no such row or epoch."""
        key = self.space.canonical(arch)
        if key not in self.rows:
            raise UsageError(f"The table of {len(self.rows)} curves has none for {key}; limit the search to its rows.")
        short = {name: len(curve) for name, curve in self.rows[key].items() if not 1 <= resource <= len(curve)}
        if short:
            raise UsageError(f"The table does not reach epoch {resource} of {key}: it has {short} epochs.")
        return {name: curve[resource - 1] for name, curve in self.rows[key].items()}

    def seconds(self, arch: Arch, resource: int) -> float:
        """Of that one epoch."""
        return self.evaluate(arch, resource)["seconds"]


class _Run(NamedTuple):
    """A trial on a worker, up to its next event."""

    trial: Trial
    start: float
    resource: int


class _Simulator:
    def __init__(
        self, strategy: Strategy, problem: Problem, evaluate: Evaluate, seconds: Seconds, every_epoch: bool
    ) -> None:
        self.strategy, self.problem, self.evaluate, self.every_epoch = strategy, problem, evaluate, every_epoch
        self.seconds = seconds if callable(seconds) else lambda arch, epoch: seconds
        self.report = strategy.report if isinstance(strategy, ReportingStrategy) else lambda *_: True
        self.trials: list[Trial] = []
        self.events: list[Event] = []
        self.trained: dict[int, int] = {}  # epochs of each successful trial's checkpoint
        self.queue: list[tuple[float, int, int, _Run]] = []
        self.scheduled = 0

    def target(self, trial: Trial) -> int:
        return self.problem.max_resource if trial.resource is None else trial.resource

    def start(self, now: float, worker: int) -> bool:
        """Ask for a trial; False if there is none at present."""
        trial = self.strategy.ask()
        if trial is None:
            return False
        done = 0
        if trial.resume is not None:
            if trial.resume not in self.trained:
                raise UsageError(f"Trial {trial.id} resumes trial {trial.resume}, which left no checkpoint.")
            done = self.trained[trial.resume]
        if self.target(trial) <= done:
            raise UsageError(f"Trial {trial.id} asks for {self.target(trial)} epochs, but resumes after {done}.")
        self.trials.append(trial)
        self.events.append(Event(now, "start", worker, trial.id, done, NOTHING))
        self.schedule(now, worker, _Run(trial, now, done))
        return True

    def schedule(self, now: float, worker: int, run: _Run) -> None:
        until = run.resource + 1 if self.every_epoch else self.target(run.trial)
        for epoch in range(run.resource + 1, until + 1):
            duration = self.seconds(run.trial.arch, epoch)
            if not 0 < duration < math.inf:
                raise UsageError(f"Epoch {epoch} of {run.trial.arch} lasts {duration!r} seconds; it must be positive.")
            now += duration
        heapq.heappush(self.queue, (now, self.scheduled, worker, _Run(run.trial, run.start, until)))
        self.scheduled += 1

    def step(self) -> tuple[float, int | None]:
        """Let the next event happen; returns its time and the worker that it frees, if any."""
        now, _, worker, run = heapq.heappop(self.queue)
        trial, kind = run.trial, "finish"
        metrics, trial.failure = self.outcome(trial.arch, run.resource)
        if trial.failure is not None:
            kind = "fail"
        elif self.every_epoch:
            self.events.append(Event(now, "report", worker, trial.id, run.resource, metrics))
            goes_on = self.report(trial, run.resource, metrics)
            if goes_on and run.resource < self.target(trial):
                self.schedule(now, worker, run)
                return now, None
            kind = "stop" if run.resource < self.target(trial) else "finish"
        if trial.failure is None:
            trial.metrics = dict(metrics)
            self.trained[trial.id] = run.resource
        trial.seconds = now - run.start
        self.events.append(Event(now, kind, worker, trial.id, run.resource, metrics))
        self.strategy.tell(trial)
        return now, worker

    def outcome(self, arch: Arch, resource: int) -> tuple[Mapping[str, float], str | None]:
        """Metrics, and the reason if it failed."""
        try:
            metrics = self.evaluate(arch, resource)
        except TrialFailure as failure:
            return NOTHING, str(failure) or "failed"
        for objective in self.problem.objectives:
            value = metrics.get(objective.metric, math.nan)
            if value != value:
                return NOTHING, f"{objective.metric} is NaN after epoch {resource}"
        return metrics, None


def simulate(
    strategy: Strategy,
    problem: Problem,
    evaluate: Evaluate,
    seconds: Seconds = 1.0,
    *,
    workers: int = 1,
    horizon: float = math.inf,
    max_trials: int | None = None,
    every_epoch: bool | None = None,
) -> Simulation:
    """Run a strategy on a virtual clock.

    Args:
        strategy: set up here, for ``problem``.
        evaluate: metrics of an architecture after so many epochs in total; may raise :class:`TrialFailure`.
            A metric of the problem that is NaN or missing is a failure too.
        seconds: of the given epoch of an architecture.
        workers: W.
        horizon: seconds after which nothing happens any more; what runs then is never told.
        max_trials: start no more than so many; those that run are finished.
        every_epoch: whether epochs within a trial are events; None: only if the strategy takes reports.

    Raises:
        UsageError: no budget, no workers, durations that are not positive, or a strategy that resumes what it cannot.

    >>> from archipel.core.decision import Real
    >>> from archipel.search.blackbox.random_search import RandomSearch
    >>> from archipel.search.strategy import Objective
    >>> problem = Problem(Space([Real("x", 0.0, 1.0)]), [Objective("loss", "min")])
    >>> result = simulate(RandomSearch(), problem, lambda arch, r: {"loss": arch["x"]}, 2.0, workers=3, horizon=7)
    >>> len(result.trials), result.idle_seconds()
    (12, array([0., 0., 0.]))
    """
    if workers < 1:
        raise UsageError(f"workers={workers}: a simulation needs at least one.")
    if not horizon > 0 or (max_trials is not None and max_trials < 1):
        raise UsageError(f"horizon={horizon} and max_trials={max_trials} must be positive.")
    if horizon == math.inf and max_trials is None:
        raise UsageError("Without a horizon or max_trials this simulation would never end; give one of them.")
    takes_reports = isinstance(strategy, ReportingStrategy)
    if every_epoch is False and takes_reports and strategy.needs_reports:
        raise UsageError(f"{type(strategy).__name__} stops trials by their reports; leave every_epoch unset.")
    every_epoch = takes_reports if every_epoch is None else every_epoch
    strategy.setup(problem)
    simulator = _Simulator(strategy, problem, evaluate, seconds, every_epoch)
    now, free = 0.0, deque(range(workers))
    while True:
        while free and now < horizon and not strategy.finished and len(simulator.trials) < (max_trials or math.inf):
            if not simulator.start(now, free[0]):
                if not simulator.queue and not strategy.finished:
                    raise RuntimeError(f"{type(strategy).__name__} proposed nothing although no trial is pending.")
                break
            free.popleft()
        if not simulator.queue:
            break
        if simulator.queue[0][0] > horizon:
            now = horizon
            break
        now, worker = simulator.step()
        if worker is not None:
            free.append(worker)
    return Simulation(simulator.trials, simulator.events, workers, now)
