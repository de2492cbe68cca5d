"""ASHA: asynchronous successive halving over random architectures.

Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht, Talwalkar. A System for Massively Parallel Hyperparameter Tuning.
2018. https://arxiv.org/abs/1810.05934

Whoever asks gets work at once: a promotion if a rung has one, else a new architecture. Rungs, rules and variants are
described in :mod:`archipel.search.schedulers`. Fills `fidelity` (:class:`AsynchronousHalving`, shared with strategies
that propose by a model) and `propose` (:class:`ASHA`: uniform among the feasible ones that were not started yet).

Departures: a failure is recorded as infinitely bad at the rung that it was due to reach, and is not tried again;
brackets are optional and drawn with Hyperband's proportions, where the paper runs one bracket throughout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from archipel.core.decision import Arch
from archipel.core.errors import UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.search.schedulers import RULES, VARIANTS, ReportingStrategy, Rung, check_eta, rung_levels
from archipel.search.strategy import Problem, Trial

# How often a draw that was seen before is repeated, and the largest space that is then searched for what is left.
UNSEEN_DRAWS, ENUMERABLE = 100, 50_000


@dataclass
class Configuration:
    """An architecture on its way up the rungs.

    Attributes:
        id: of its first trial, in ``info["configuration"]`` of all its trials.
        bracket: index of its ladder.
        checkpoint: id of the last successful trial, which a promotion resumes.
        losses: at the rungs that it reached; failures are infinite.
        last: (epoch, loss) of the latest report.
        target: the rung that it is running towards, None while it is not running.
    """

    id: int
    arch: Arch
    bracket: int
    checkpoint: int
    target: int | None
    losses: dict[int, float] = field(default_factory=dict)
    last: tuple[int, float] | None = None


class AsynchronousHalving(ReportingStrategy):
    """The rungs as a strategy; a subclass says in :meth:`propose` what to start next.

    Args:
        variant: ``"promotion"`` (works with any executor) or ``"stopping"`` (needs reports).
        eta, r_min: see :func:`rung_levels`; r_max is the problem's ``max_resource``.
        rule: ``"quantile"`` or ``"floor"``.
        min_results: results at a rung before any is judged; None: eta.
        brackets: ladders that start at ever higher rungs; 1 is plain asynchronous successive halving.

    Raises:
        UsageError: an unknown variant or rule, eta <= 1, less than one bracket or result.
    """

    def __init__(
        self,
        variant: str = "promotion",
        eta: float = 3,
        r_min: int | None = None,
        rule: str = "quantile",
        min_results: int | None = None,
        brackets: int = 1,
    ) -> None:
        if variant not in VARIANTS:
            raise UsageError(f"No variant {variant!r}. {suggest(variant, VARIANTS)}")
        if rule not in RULES:
            raise UsageError(f"No promotion rule {rule!r}. {suggest(rule, RULES)}")
        check_eta(eta)
        if brackets < 1 or (min_results is not None and min_results < 1):
            raise UsageError(f"brackets={brackets} and min_results={min_results} must be at least 1.")
        self.variant, self.eta, self.r_min, self.rule, self.brackets = variant, eta, r_min, rule, brackets
        self.min_results = math.ceil(eta) if min_results is None else min_results
        self.needs_reports = variant == "stopping"

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self.levels = rung_levels(problem.max_resource, self.eta, self.r_min)
        if self.brackets > len(self.levels):
            raise UsageError(f"{self.brackets} brackets need as many rungs, but there are {self.levels}.")
        self.ladders = [
            {level: Rung(level, self.eta, self.rule, self.min_results) for level in self.levels[start:]}
            for start in range(self.brackets)
        ]
        self.configurations: dict[int, Configuration] = {}
        self._running: dict[int, Configuration] = {}  # by id of the trial
        self._seen: set[str] = set()
        self._exhausted = False

    def propose(self) -> Arch:
        """The architecture to start next."""
        raise NotImplementedError

    def unseen(self) -> Arch:
        """A random feasible architecture that was not started before, as long as the space has one."""
        for _ in range(1 if self._exhausted else UNSEEN_DRAWS):
            arch = self.problem.sample()
            if not self.seen(arch):
                return arch
        if not self._exhausted and self.problem.space.size <= ENUMERABLE:
            feasible = self.problem.feasible or (lambda a: True)
            left = [a for a in self.problem.space.enumerate() if not self.seen(a) and feasible(a)]
            if left:
                return left[int(self.problem.rng.random() * len(left))]
            self._exhausted = True
        return arch  # type: ignore[possibly-unbound]

    def seen(self, arch: Arch) -> bool:
        return self.problem.space.canonical(arch) in self._seen

    def ask(self) -> Trial:
        bracket = self._draw_bracket()
        ladder = self.ladders[bracket]
        if self.variant == "promotion":
            for level, above in reversed(list(itertools.pairwise(ladder))):
                if (key := ladder[level].promote()) is not None:
                    return self._start(self.configurations[key], above)
        arch = self.propose()
        self._seen.add(self.problem.space.canonical(arch))
        configuration = Configuration(self._next_id, arch, bracket, self._next_id, target=None)
        self.configurations[configuration.id] = configuration
        return self._start(configuration, min(ladder))

    def _draw_bracket(self) -> int:
        """In proportion to the number of configurations that Hyperband starts in each."""
        if self.brackets == 1:
            return 0
        top = len(self.levels) - 1
        shares = [math.ceil((top + 1) / (top + 1 - b) * self.eta ** (top - b)) for b in range(self.brackets)]
        return self.problem.rng.choices(range(self.brackets), shares)[0]

    def _start(self, configuration: Configuration, target: int) -> Trial:
        trial = self.new_trial(
            configuration.arch,
            resource=self.levels[-1] if self.variant == "stopping" else target,
            resume=configuration.checkpoint if configuration.losses else None,
            info={"configuration": configuration.id, "bracket": configuration.bracket, "rung": target},
        )
        configuration.target = target
        self._running[trial.id] = configuration
        return trial

    def _configuration(self, trial: Trial) -> Configuration:
        if trial.id not in self._running:
            raise UsageError(f"Trial {trial.id} is not running: it was never asked for, or told before.")
        return self._running[trial.id]

    def report(self, trial: Trial, resource: int, metrics: Mapping[str, float]) -> bool:
        configuration = self._configuration(trial)
        target, previous = configuration.target, configuration.last
        if target is None:
            raise UsageError(f"Trial {trial.id} was stopped, but reports {resource} epochs.")
        if (previous and resource <= previous[0]) or resource > target:
            raise UsageError(
                f"Trial {trial.id} reports {resource} epochs after {previous[0] if previous else 0}, with a rung at "
                f"{target}: reports must come after every epoch, in order."
            )
        loss = self._loss(metrics)
        if loss == math.inf:  # it is judged once, when its failure is told
            return False
        configuration.last = (resource, loss)
        if self.variant == "promotion" or resource < target:
            return True
        return self._reach(configuration, loss)

    def tell(self, trial: Trial) -> None:
        configuration = self._configuration(trial)
        del self._running[trial.id]
        if configuration.target is None:  # stopped or done: its rungs know all
            return
        loss = self._loss(trial.metrics) if trial.ok else math.inf
        if self.variant == "stopping" and loss < math.inf:
            if configuration.last and configuration.last[0] < self.levels[-1]:
                raise UsageError(f"Trial {trial.id} ended after {configuration.last[0]} epochs without being stopped.")
            configuration.target = self.levels[-1]
        if loss < math.inf:
            configuration.checkpoint = trial.id
            configuration.last = (configuration.target, loss)
        self._reach(configuration, loss)
        configuration.target = None

    def _reach(self, configuration: Configuration, loss: float) -> bool:
        """Record a result at the target rung; whether a running trial goes on to the next one."""
        level, ladder = configuration.target, self.ladders[configuration.bracket]
        assert level is not None
        ladder[level].record(configuration.id, loss)
        configuration.losses[level] = loss
        goes_on = level < self.levels[-1] and ladder[level].continues(configuration.id)
        configuration.target = next(r for r in ladder if r > level) if goes_on else None
        return goes_on

    def resumable(self) -> set[int] | None:
        """Whatever waits at a rung: results that come in later may move the cut below it."""
        top = self.levels[-1]
        waiting = (c for c in self.configurations.values() if c.losses and c.target is None)
        return {c.checkpoint for c in waiting if top not in c.losses and math.isfinite(c.losses[max(c.losses)])}

    def _loss(self, metrics: Mapping[str, float]) -> float:
        """The negated first score; infinite for whatever is not a finite number."""
        loss = -self.problem.objectives[0].score(metrics)
        return loss if math.isfinite(loss) else math.inf


@register(
    "asha",
    family="search.blackbox",
    slots=["propose", "fidelity"],
    paper=Paper("A System for Massively Parallel Hyperparameter Tuning", 2018, "https://arxiv.org/abs/1810.05934"),
)
class ASHA(AsynchronousHalving):
    """Asynchronous successive halving over random architectures.

    >>> from archipel.core.decision import Real
    >>> from archipel.core.space import Space
    >>> asha = ASHA(min_results=1)
    >>> asha.setup(Problem(Space([Real("lr", 0.0, 1.0)]), max_resource=9))
    >>> first = asha.ask()
    >>> first.metrics = {"accuracy": 0.5}
    >>> asha.tell(first)
    >>> asha.ask()  # resumes the first where it paused
    Trial(1, {'lr': ...}, resource=3, {})
    """

    def propose(self) -> Arch:
        return self.unseen()
