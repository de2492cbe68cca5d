"""The ask/tell loop of one arm of a run: the strategy's, or the random baseline's.

The loop keeps the order of asks and tells in the journal. A strategy is a deterministic function of that order, so an
interrupted loop is restored by replaying it, without pickling anybody's state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from archipel.core.decision import Arch
from archipel.core.errors import RunError
from archipel.core.run import Journal
from archipel.search.config import Budget
from archipel.search.executors import Crew
from archipel.search.flights import Flights
from archipel.search.strategy import Problem, Strategy, Trial
from archipel.search.worker import Job, Outcome


@dataclass
class Ledger:
    """What an arm spent."""

    queries: int = 0
    cached: int = 0
    failures: int = 0
    epochs: float = 0.0
    trial_seconds: float = 0.0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return dict(self.__dict__)


@dataclass
class Arm:
    """One strategy with its budget, its trials and what it spent.

    Its ``best`` is the best of the trials that had the most training: of complete ones, as soon as there is one.

    Args:
        name: ``"search"`` or ``"baseline"``.
        strategy: already set up for ``problem``.
        costs: architecture -> exact costs that belong to its metrics.
        key: architecture -> what equal results are cached by; None: nothing is cached (a table is as quick).
    """

    name: str
    strategy: Strategy
    problem: Problem
    budget: Budget
    journal: Journal
    key: Callable[[Arch], Any] | None
    costs: Callable[[Arch], dict[str, float]] = lambda arch: {}
    trials: list[Trial] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    on_told: Callable[[Trial], None] = lambda trial: None

    def __post_init__(self) -> None:
        self.pending: dict[int, Trial] = {}
        self.best: Trial | None = None
        self._asked = 0
        self._asked_epochs = 0.0
        self._resource_of: dict[int, int] = {}
        self._seen: dict[Any, Trial] = {}
        self.gone: set[int] = set()  # partly trained trials whose weights were deleted
        self._same_as: dict[int, int] = {}  # trials that were not trained -> the equal ones that were
        self._clock = time.monotonic()

    # --- budget ----------------------------------------------------------------------------------------------------

    def elapsed(self) -> float:
        return self.ledger.seconds + time.monotonic() - self._clock

    def spent(self) -> float:
        """The share of the budget that is spent (by asks, for trials and epochs)."""
        if self.budget.trials is not None:
            return self._asked / self.budget.trials
        if self.budget.epochs is not None:
            return self._asked_epochs / self.budget.epochs
        return self.elapsed() / (self.budget.seconds or math.inf)

    def ask(self) -> Trial | None:
        """The next trial, recorded; None when the budget is spent or the strategy waits or is finished."""
        if self.spent() >= 1.0 or self.strategy.finished:
            return None
        trial = self.strategy.ask()
        if trial is not None:
            self._count(trial)
            self.journal.asked(self.name, trial.id)
        return trial

    def _count(self, trial: Trial) -> None:
        self.pending[trial.id] = trial
        self._asked += 1
        start = 0 if trial.resume is None else self._resource_of.get(trial.resume, 0)
        self._resource_of[trial.id] = self.resource(trial)
        self._asked_epochs += self.resource(trial) - start

    # --- outcomes --------------------------------------------------------------------------------------------------

    def known(self, trial: Trial) -> Trial | None:
        """An earlier trial of the same network and amount of training, whose result this one would repeat.

        Of a trial that may be continued the weights are wanted too, which only fit if nothing is labelled otherwise,
        and which may be gone.
        """
        if trial.resume is not None or self.key is None:
            return None
        earlier = self._seen.get((self.key(trial.arch), trial.resource))
        if earlier is None or self.complete(trial):
            return earlier
        return earlier if earlier.arch == trial.arch and earlier.id not in self.gone else None

    def weights_of(self, trial_id: int) -> int:
        """The trial whose training gave this one its weights: itself, unless it was answered from an earlier one."""
        return self._same_as.get(trial_id, trial_id)

    def tell(self, trial: Trial, outcome: Outcome, cached: bool = False) -> None:
        """Record an outcome, on disk first, then tell the strategy."""
        trial.metrics, trial.failure, trial.seconds = outcome.metrics, outcome.failure, outcome.seconds
        if outcome.metrics and not cached:
            trial.metrics = {**outcome.metrics, **self.costs(trial.arch)}
        row = {
            "id": trial.id,
            "arch": trial.arch,
            "resource": trial.resource,
            "resume": trial.resume,
            "info": trial.info,
            "metrics": trial.metrics,
            "failure": trial.failure,
            "seconds": trial.seconds,
        }
        self.journal.told(self.name, row, cached)
        self._take(trial, cached)

    def _take(self, trial: Trial, cached: bool) -> None:
        self.pending.pop(trial.id, None)
        self.trials.append(trial)
        ledger = self.ledger
        ledger.queries += 1
        ledger.cached += cached
        ledger.trial_seconds += trial.seconds
        if trial.failure is None:
            key = None if self.key is None else (self.key(trial.arch), trial.resource)
            if cached:
                self._same_as[trial.id] = self._seen[key].id
            else:
                ledger.epochs += trial.metrics.get("epochs", 0.0)
                if key is not None:
                    self._seen[key] = trial
            if self.best is None or self.rank(trial) > self.rank(self.best):
                self.best = trial
        else:
            ledger.failures += 1
        self.strategy.tell(trial)
        self.on_told(trial)

    def resource(self, trial: Trial) -> int:
        """Epochs of training that a trial is to have had in total when it is done."""
        full = self.problem.max_resource
        return full if trial.resource is None else min(trial.resource, full)

    def complete(self, trial: Trial) -> bool:
        """Whether a trial is to have the full amount of training."""
        return trial.resource is None or trial.resource >= self.problem.max_resource

    def complete_trials(self) -> list[Trial]:
        """Successful trials that had the full amount of training, in the order they were told."""
        return [t for t in self.trials if t.ok and self.complete(t)]

    def contenders(self) -> list[Trial]:
        """Successful trials that had as much training as the best: complete ones, if there are any."""
        return [t for t in self.trials if self.best and t.ok and self.resource(t) == self.resource(self.best)]

    def rank(self, trial: Trial) -> tuple[int, float]:
        """More training first, since scores after different amounts of it do not compare; then the score."""
        return self.resource(trial), self.score(trial)

    def score(self, trial: Trial) -> float:
        return self.problem.score(trial)

    # --- resuming --------------------------------------------------------------------------------------------------

    def replay(self) -> None:
        """Restore the strategy from the journal.

        Raises:
            RunError: the strategy proposes something else than it did, so code or settings have changed.
        """
        rows = {row["id"]: row for row in self.journal.trials(self.name)}
        for kind, trial_id in self.journal.events(self.name):
            if kind == "ask":
                trial = self.strategy.ask()
                if trial is None or trial.id != trial_id:
                    raise RunError(f"Cannot resume: the strategy does not propose trial {trial_id} of the journal "
                                   f"again. The code or the settings have changed since.")  # fmt: skip
                self._count(trial)
                continue
            trial, row = self.pending[trial_id], rows[trial_id]
            if trial.arch != row["arch"]:
                raise RunError(f"Cannot resume: trial {trial_id} was {row['arch']}, but the strategy now proposes "
                               f"{trial.arch}. The code or the settings have changed since.")  # fmt: skip
            trial.metrics, trial.failure, trial.seconds = row["metrics"], row["failure"], row["seconds"]
            self._take(trial, bool(row["cached"]))
        self.ledger.seconds = self.journal.recall(f"seconds:{self.name}", 0.0)
        self._clock = time.monotonic()

    def save_clock(self) -> None:
        """Remember the seconds spent."""
        self.ledger.seconds, self._clock = self.elapsed(), time.monotonic()
        self.journal.note(f"seconds:{self.name}", self.ledger.seconds)


def run_table(
    arm: Arm, evaluate: Callable[[Arch], dict[str, float]], progress: Callable[[Arm], None] = lambda arm: None
) -> None:
    """Run an arm on an evaluator that answers at once (a table)."""
    try:
        for trial in list(arm.pending.values()):
            arm.tell(trial, Outcome(evaluate(trial.arch)))
        while (trial := arm.ask()) is not None:
            arm.tell(trial, Outcome(evaluate(trial.arch)))
            if not trial.id % 1000:
                progress(arm)
    finally:
        arm.save_clock()
        arm.journal.flush()


def run_crew(
    arm: Arm,
    crew: Crew,
    make_job: Callable[[Trial], Job],
    progress: Callable[[Arm], None] = lambda arm: None,
    meanwhile: Callable[[Trial], None] = lambda trial: None,
) -> None:
    """Run an arm with workers: as many trials in flight as there are workers, told as they finish.

    Args:
        meanwhile: what can be done about a trial while it is in flight and no worker waits for us.
    """
    flights = Flights(crew, make_job)
    try:
        launched = list(arm.pending.values())
        for trial in launched:
            flights.launch(trial)
        while True:
            while len(flights) < crew.workers and (trial := arm.ask()) is not None:
                earlier = arm.known(trial)
                if earlier is not None:
                    arm.tell(trial, Outcome(dict(earlier.metrics)), cached=True)
                else:
                    flights.launch(trial)
                    launched.append(trial)
            if not len(flights):
                break
            for trial in launched:
                meanwhile(trial)
            launched.clear()
            for trial, outcome in flights.landed():
                arm.tell(trial, outcome)
                arm.save_clock()
            progress(arm)
    finally:
        arm.save_clock()
        arm.journal.flush()
