"""Ask/tell: the contract of every strategy that proposes architectures.

A strategy holds no processes, clocks or files. It is asked for the next :class:`Trial`, may be asked again before it
was told the outcome (those trials are pending), and is told outcomes in whatever order they arrive. Its state is a
deterministic function of the seed and the order of asks and tells, which is how an interrupted run is restored: by
replaying them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from archipel.core.decision import Arch
from archipel.core.errors import InfeasibleError
from archipel.core.space import Space
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset
from archipel.search.training import Recipe

# How often a constrained draw is retried before it is called infeasible.
MAX_DRAWS = 10_000


@dataclass(frozen=True)
class Objective:
    """A metric and whether more of it is better.

    Raises:
        ValueError: a mode other than ``"max"`` or ``"min"``.
    """

    metric: str
    mode: str = "max"

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise ValueError(f"Objective {self.metric!r}: mode must be 'max' or 'min', not {self.mode!r}.")

    def score(self, metrics: Mapping[str, float]) -> float:
        """The metric, negated if less is better: higher is always better. NaN or missing scores minus infinity."""
        value = metrics.get(self.metric, math.nan)
        if value != value:
            return -math.inf
        return value if self.mode == "max" else -value


class Trial:
    """One evaluation, from proposal to outcome.

    Attributes:
        id: counted from 0 in the order of asks.
        arch: the architecture.
        resource: epochs it is to be trained in total (None: the full amount).
        resume: id of the trial of the same architecture whose weights it continues, or None.
        info: whatever the strategy wants recorded (parent, bracket, rung …); JSON.
        metrics: outcome; empty until told, and after a failure.
        failure: the reason of a failure (error, timeout, NaN, out of memory), or None.
        seconds: that the evaluation took.
    """

    __slots__ = ("arch", "failure", "id", "info", "metrics", "resource", "resume", "seconds")

    def __init__(
        self,
        id: int,
        arch: Arch,
        resource: int | None = None,
        resume: int | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        self.id = id
        self.arch = arch
        self.resource = resource
        self.resume = resume
        self.info = info
        self.metrics: dict[str, float] = {}
        self.failure: str | None = None
        self.seconds = 0.0

    @property
    def ok(self) -> bool:
        return self.failure is None and bool(self.metrics)

    def __repr__(self) -> str:
        return f"Trial({self.id}, {self.arch}, resource={self.resource}, {self.failure or self.metrics})"


@dataclass
class Problem:
    """What a strategy is told about the search it serves.

    Args:
        space: to search.
        objectives: one, or several for multi-objective strategies; all scores are maximised.
        rng: the only source of randomness a strategy may use for its proposals (seed others from it).
        feasible: whether an architecture keeps all hard limits; None if there are none.
        max_resource: epochs of a full evaluation.
        trials: about how many full evaluations the budget allows; None if that is not known.
        describe_limits: for error messages.
    """

    space: Space
    objectives: Sequence[Objective] = (Objective("accuracy"),)
    rng: Random = field(default_factory=lambda: Random(0))
    feasible: Callable[[Arch], bool] | None = None
    max_resource: int = 1
    trials: int | None = None
    describe_limits: Callable[[], str] = lambda: "the given limits"

    def score(self, trial: Trial) -> float:
        """First objective, higher is better; failures score minus infinity."""
        return self.objectives[0].score(trial.metrics)

    def scores(self, trial: Trial) -> list[float]:
        return [o.score(trial.metrics) for o in self.objectives]

    def _until_feasible(self, draw: Callable[[], Arch]) -> Arch:
        if self.feasible is None:
            return draw()
        for _ in range(MAX_DRAWS):
            arch = draw()
            if self.feasible(arch):
                return arch
        raise InfeasibleError(
            f"No architecture within the limits in {MAX_DRAWS} draws from {self.space.name}: {self.describe_limits()}."
        )

    def sample(self) -> Arch:
        """A feasible architecture, uniformly among all feasible ones."""
        return self._until_feasible(lambda: self.space.sample(self.rng))

    def mutate(self, arch: Arch) -> Arch:
        """A feasible mutation of ``arch``, uniformly among its feasible mutations."""
        return self._until_feasible(lambda: self.space.mutate(arch, self.rng))

    def crossover(self, first: Arch, second: Arch) -> Arch:
        return self._until_feasible(lambda: self.space.crossover(first, second, self.rng))


@dataclass
class Context:
    """What a strategy that trains something of its own (a supernet) is given before it is asked.

    Args:
        dataset: train and validation splits; the test split is not in it.
        recipe: how single networks are trained, for reference.
        seed: of everything that is trained here.
        checkpoints: where to save progress; what was saved is there again after an interruption.
        progress: ``progress(what, fraction)``, for display.
        deadline: on the monotonic clock, or None; training should stop early and cleanly at it.
        epochs: budget of epochs for the supernet, or None for the strategy's own default.
    """

    dataset: Dataset
    recipe: Recipe
    seed: int = 0
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    progress: Callable[[str, float], None] = lambda what, fraction: None
    deadline: float | None = None
    epochs: int | None = None


class Strategy:
    """Base of ask/tell strategies; subclasses implement :meth:`ask` and :meth:`tell`.

    A strategy object only holds its settings until :meth:`setup`; after that it belongs to one search.
    """

    multi_objective = False

    def setup(self, problem: Problem) -> None:
        """Start a search. Overriding methods call this first."""
        self.problem = problem
        self._next_id = 0

    def new_trial(
        self, arch: Arch, resource: int | None = None, resume: int | None = None, info: dict[str, Any] | None = None
    ) -> Trial:
        trial = Trial(self._next_id, arch, resource, resume, info)
        self._next_id += 1
        return trial

    def ask(self) -> Trial | None:
        """The next trial, or None if nothing can be proposed before pending trials are told."""
        raise NotImplementedError

    def tell(self, trial: Trial) -> None:
        """The outcome of a trial that :meth:`ask` returned; called once for each."""
        raise NotImplementedError

    def prepare(self, context: Context) -> None:
        """Train what proposals depend on, such as a supernet; called once, after :meth:`setup`, before any ask.

        Long work saves its progress in ``context.checkpoints`` and goes on from there when called in a new process.
        """

    def shared_scores(self, archs: Sequence[Arch]) -> list[float] | None:
        """Scores of architectures by shared weights, for rank correlations; None without a supernet."""
        return None

    def resumable(self) -> set[int] | None:
        """Ids of told trials that a later ask may resume (one in progress keeps what it resumes); None: any may be.

        The weights of other partly trained networks are deleted, so leaving out one that is resumed later loses it.
        """
        return None

    @property
    def finished(self) -> bool:
        """True once the strategy will propose nothing more, whatever the budget."""
        return False
