"""Hyperband's brackets: successive halving over growing budgets, hedged over how hard it cuts at the start.

Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar. Hyperband: A Novel Bandit-Based Approach to Hyperparameter
Optimization. 2016. https://arxiv.org/abs/1603.06560

    s_max = floor(log_eta(b_max / b_min)),   brackets s = s_max, …, 0, then again from s_max
    stage i of bracket s: n_i = floor(n_0 eta^-i) configurations, each evaluated with budget b_max eta^(i-s)
    n_0 = ceil((s_max + 1) / (s + 1) · eta^s)      form "ceil": the paper
    n_0 = floor((s_max + 1) / (s + 1)) · eta^s     form "floor": the form that BOHB was published with

s_max is found by a loop over exact fractions, since a floating-point logarithm loses a level at exact powers
(log(243) / log(3) < 5). A stage waits for all its results before the best n_(i+1) are promoted; other brackets do not
wait for it: whoever asks gets work from the oldest bracket that has some, else a new bracket is opened, so no worker
idles. Shared by the strategies that differ in how a new configuration is drawn.

Departures: budgets are whole epochs, rounded where b_max is no multiple of eta^s; a failed evaluation ranks last and
is never promoted, since it would fail again, so its stage may pass on fewer (none: the bracket ends).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.search.strategy import Problem, Strategy, Trial

FORMS = ("ceil", "floor")
DEFAULT_LEVELS = 4  # budgets in a ladder when b_min is not given: as many as in the BOHB study of joint search


@dataclass(frozen=True)
class Stage:
    """``size`` configurations, each evaluated with ``budget`` epochs."""

    size: int
    budget: int


Bracket = tuple[Stage, ...]


def _check_ladder(b_min: int, b_max: int, eta: float, form: str) -> None:
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not math.isfinite(eta) or eta <= 1:
        raise UsageError(f"eta={eta!r}: the factor between budgets must be a number above 1, such as 3.")
    if form not in FORMS:
        raise UsageError(f"Bracket form {form!r}; it is one of {', '.join(FORMS)}.")
    for name, value in (("b_min", b_min), ("b_max", b_max)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name}={value!r}: budgets are whole numbers of epochs, at least 1.")
    if b_min > b_max:
        raise UsageError(f"The smallest budget b_min={b_min} exceeds the full budget b_max={b_max}; lower b_min.")


def halvings(b_min: int, b_max: int, eta: float) -> int:
    """s_max, the largest s with b_min · eta^s <= b_max, in exact arithmetic.

    >>> halvings(1, 243, 3), int(math.log(243) / math.log(3))
    (5, 4)
    """
    factor, s = Fraction(str(eta)), 0
    while b_min * factor ** (s + 1) <= b_max:
        s += 1
    return s


def hyperband_brackets(b_min: int, b_max: int, eta: float = 3, form: str = "ceil") -> list[Bracket]:
    """The brackets of one Hyperband iteration, from the one that cuts most (s = s_max) to plain evaluation (s = 0).

    Args:
        b_min, b_max: epochs of the smallest and of the full evaluation.
        eta: the best 1/eta are promoted to eta times the budget.
        form: ``"ceil"`` (Hyperband) or ``"floor"`` (BOHB).

    Raises:
        UsageError: b_min > b_max, eta <= 1, an unknown form, or budgets that coincide when rounded to whole epochs.

    >>> [[(r.size, r.budget) for r in bracket] for bracket in hyperband_brackets(1, 9, form="floor")]
    [[(9, 1), (3, 3), (1, 9)], [(3, 3), (1, 9)], [(3, 9)]]
    """
    _check_ladder(b_min, b_max, eta, form)
    factor, s_max = Fraction(str(eta)), halvings(b_min, b_max, eta)
    budgets = [round(b_max / factor**k) for k in range(s_max, -1, -1)]
    if len(set(budgets)) < len(budgets):
        raise UsageError(f"eta={eta} from {b_min} to {b_max} gives equal budgets {budgets}; raise eta or b_min.")
    brackets = []
    for s in range(s_max, -1, -1):
        if form == "ceil":
            n = math.ceil(Fraction(s_max + 1, s + 1) * factor**s)
        else:
            n = math.floor((s_max + 1) // (s + 1) * factor**s)
        sizes = [max(1, math.floor(n / factor**i)) for i in range(s + 1)]
        brackets.append(tuple(Stage(size, budget) for size, budget in zip(sizes, budgets[s_max - s :])))
    return brackets


def epochs(bracket: Bracket) -> int:
    """Epochs of a bracket in which every stage trains from scratch."""
    return sum(stage.size * stage.budget for stage in bracket)


def top(results: list[tuple[float, Trial]], n: int) -> list[Trial]:
    """The ``n`` best of (score, trial), best first, earlier trials first among equals; failures never."""
    ranked = sorted(results, key=lambda r: (-r[0], r[1].id))
    return [trial for score, trial in ranked[:n] if score > -math.inf]


class Halving:
    """One bracket in progress. ``queue`` holds what waits to start in the current stage: the trial that is promoted,
    or None for a configuration yet to be drawn."""

    def __init__(self, index: int, bracket: Bracket) -> None:
        self.index = index
        self.bracket = bracket
        self.level = 0
        self.queue: deque[Trial | None] = deque([None] * bracket[0].size)
        self._running = 0
        self._results: list[tuple[float, Trial]] = []

    @property
    def stage(self) -> Stage:
        return self.bracket[self.level]

    @property
    def done(self) -> bool:
        return not self.queue and not self._running

    def start(self) -> None:
        """The head of the queue is on its way."""
        self.queue.popleft()
        self._running += 1

    def promotable(self) -> list[Trial]:
        """Who waits for the next stage, and who would be promoted if no other result came."""
        following = self.bracket[self.level + 1].size if self.level + 1 < len(self.bracket) else 0
        return [t for t in self.queue if t is not None] + top(self._results, following)

    def record(self, trial: Trial, score: float) -> None:
        """One outcome; the last of a stage decides who is promoted."""
        self._running -= 1
        self._results.append((score, trial))
        if self.done and self.level + 1 < len(self.bracket):
            self.level += 1
            self.queue.extend(top(self._results, self.stage.size))
            self._results = []


class BracketStrategy(Strategy):
    """Runs brackets; subclasses say how a new configuration is drawn (:meth:`propose`).

    Args:
        eta: factor between neighbouring budgets; the best 1/eta are promoted.
        b_min: epochs of the smallest evaluation. None: such that there are four budgets (s_max = 3), or as many as
            fit between one epoch and the full budget.
        form: of the bracket table, see :func:`hyperband_brackets`.
        from_scratch: a promoted configuration is trained anew, with a schedule over its larger budget, instead of
            continuing from its smaller evaluation.
        rounds: stop after so many times all brackets; None: go on as long as asked.

    Raises:
        UsageError: settings out of range; at :meth:`setup` if b_min exceeds the problem's full budget.
    """

    def __init__(
        self,
        eta: float = 3,
        b_min: int | None = None,
        form: str = "ceil",
        from_scratch: bool = False,
        rounds: int | None = None,
    ) -> None:
        smallest = 1 if b_min is None else b_min
        _check_ladder(smallest, smallest, eta, form)
        if rounds is not None and rounds < 1:
            raise UsageError(f"rounds={rounds!r}: give at least 1, or None to go on as long as asked.")
        self.eta, self.b_min, self.form = eta, b_min, form
        self.from_scratch, self.rounds = from_scratch, rounds

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        b_max, b_min = problem.max_resource, self.b_min
        if b_min is None:
            s = min(DEFAULT_LEVELS - 1, halvings(1, b_max, self.eta))
            b_min = max(1, math.floor(b_max / Fraction(str(self.eta)) ** s))
        self.brackets = hyperband_brackets(b_min, b_max, self.eta, self.form)
        self._active: list[Halving] = []
        self._opened = 0
        self._running: dict[int, Halving] = {}

    def propose(self) -> tuple[Arch, dict[str, Any]]:
        """A new configuration, and what to record about its origin."""
        raise NotImplementedError

    def observe(self, trial: Trial, score: float) -> None:
        """Called with every outcome before it may promote anything; failures score minus infinity."""

    def _next_halving(self) -> Halving | None:
        for halving in self._active:
            if halving.queue:
                return halving
        if self.rounds is not None and self._opened >= self.rounds * len(self.brackets):
            return None
        halving = Halving(self._opened, self.brackets[self._opened % len(self.brackets)])
        self._opened += 1
        self._active.append(halving)
        return halving

    def ask(self) -> Trial | None:
        halving = self._next_halving()
        if halving is None:
            return None
        info: dict[str, Any] = {"bracket": halving.index, "s": len(halving.bracket) - 1, "stage": halving.level}
        if self.from_scratch:
            info["from_scratch"] = True  # the trainer lays its schedule over this budget, not over the full one
        earlier = halving.queue[0]
        if earlier is None:
            arch, origin = self.propose()
            trial = self.new_trial(arch, halving.stage.budget, None, info | origin)
        else:
            resume = None if self.from_scratch else earlier.id
            trial = self.new_trial(earlier.arch, halving.stage.budget, resume, info | {"promoted_from": earlier.id})
        halving.start()
        self._running[trial.id] = halving
        return trial

    def tell(self, trial: Trial) -> None:
        halving = self._running.pop(trial.id, None)
        if halving is None:
            raise UsageError(f"Trial {trial.id} was not asked for, or was told before; tell each asked trial once.")
        score = self.problem.score(trial) if trial.ok else -math.inf
        self.observe(trial, score)
        halving.record(trial, score)
        if halving.done:
            self._active.remove(halving)

    def resumable(self) -> set[int] | None:
        return {trial.id for halving in self._active for trial in halving.promotable()}

    @property
    def finished(self) -> bool:
        opened_all = self.rounds is not None and self._opened >= self.rounds * len(self.brackets)
        return opened_all and not self._active
