"""Regularized (aging) evolution, with everything recorded that explains how its models descend from each other.

Underwood, Madhyastha, Burns, Nicolae. Understanding Patterns of Deep Learning Model Evolution in Network Architecture
Search. 2023. https://arxiv.org/abs/2309.12576   (the patterns; see ``archipel.search.analysis``)
Real, Aggarwal, Huang, Le. Regularized Evolution for Image Classifier Architecture Search. 2019.
https://arxiv.org/abs/1802.01548   (the search)

    population: a queue of P evaluated members; the first P proposals are random
    parent:     the best of S members drawn uniformly without replacement
    child:      one mutation of the parent; joins the queue when its outcome is told, and the oldest member leaves

so the member of rank k (1 the best) of P is the parent with probability C(P-k, S-1) / C(P, S). We draw the rank from
this distribution, which is the same tournament at a cost that does not grow with S; among equals, any is the parent.

Fills the `propose` and `selection` slots. Asynchronous: a parent is chosen when a worker asks, from the members told so
far, however many outcomes are pending, so nobody ever waits. Where the papers are silent: a failed or NaN evaluation is
no member and ages nobody; tournaments among fewer than S members hold all of them; while there is no member at all,
further proposals are random.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from functools import lru_cache
from typing import Any

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search.strategy import Problem, Strategy, Trial

# Modulus of the snapshot hash: integers up to it survive JSON readers that only know doubles.
SNAPSHOT_MODULUS = 2**53 - 111  # prime
POPULATION, SAMPLE, SMALLEST_POPULATION = 100, 10, 4  # defaults


@register(
    "nas-evolution-patterns",
    card=120,
    family="search.blackbox",
    slots=["propose", "selection"],
    paper=Paper(
        "Understanding Patterns of Deep Learning Model Evolution in Network Architecture Search",
        2023,
        "https://arxiv.org/abs/2309.12576",
    ),
)
class RegularizedEvolution(Strategy):
    """Aging evolution: the best of a sample has a child, the oldest member leaves.

    Each trial's ``info`` records ``parent`` (its id, None for the random founders), ``mutated`` (the decision that was
    changed, None for founders), ``told`` (outcomes known when it was proposed: what staleness is counted from) and
    ``population`` (an order-free hash of the members' ids at that moment).

    Args:
        population: P, the members alive. By default 100, or a quarter of the trials where these are known and fewer
            than 400: founders are random, and a budget that only pays for them would be random search.
        sample: S, the members of a tournament; 1 is a uniform choice, P always takes the best. By default 10, or a
            third of a smaller population.
        remove: ``"oldest"``, or ``"worst"`` for the control without aging, in which good members never leave.

    Raises:
        UsageError: S > P, a number below 1, or another ``remove``.

    >>> from archipel.spaces.nb201_codec import NB201Codes
    >>> search = RegularizedEvolution(population=4, sample=2)
    >>> search.setup(Problem(NB201Codes()))
    >>> for _ in range(9):
    ...     trial = search.ask()
    ...     trial.metrics = {"accuracy": list(trial.arch.values()).count("conv3x3") / 6}
    ...     search.tell(trial)
    >>> [m.id for m in search.members], search.ask().info["told"]
    ([5, 6, 7, 8], 9)
    """

    def __init__(self, population: int | None = None, sample: int | None = None, remove: str = "oldest") -> None:
        for name, value in (("population", population), ("sample", sample)):
            if value is not None and value < 1:
                raise UsageError(f"Regularized evolution needs {name} to be at least 1, but {name}={value}.")
        if population is not None and sample is not None and sample > population:
            raise UsageError(
                f"A tournament of sample={sample} needs 1 <= sample <= population, but population={population}. "
                "Lower sample or raise population."
            )
        if remove not in ("oldest", "worst"):
            raise UsageError(f"remove is 'oldest' (aging) or 'worst' (the control without it), not {remove!r}.")
        self._given = population, sample
        self.remove = remove

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self.population, self.sample = fitting_sizes(*self._given, problem.trials)
        self._queue: deque[tuple[float, Trial]] = deque()  # members with their scores, oldest first
        self._ranked: list[Trial] = []  # members, worst first, older first among equals
        self._scores: list[float] = []  # of the ranked members
        self._founders = 0
        self._told = 0
        self._snapshot = 0

    @property
    def members(self) -> list[Trial]:
        """The population, oldest first."""
        return [trial for _, trial in self._queue]

    def ask(self) -> Trial:
        info: dict[str, Any] = {
            "parent": None, "mutated": None, "told": self._told, "population": self._snapshot % SNAPSHOT_MODULUS
        }  # fmt: skip
        if self._founders < self.population or not self._queue:
            self._founders += 1
            return self.new_trial(self.problem.sample(), info=info)
        parent = self._tournament()
        arch = self.problem.mutate(parent.arch)
        info["parent"] = parent.id
        info["mutated"] = changed_decision(parent.arch, arch)
        return self.new_trial(arch, info=info)

    def tell(self, trial: Trial) -> None:
        self._told += 1
        score = self.problem.score(trial)
        if not trial.ok or score == -math.inf:
            return
        i = bisect_right(self._scores, score)
        self._scores.insert(i, score)
        self._ranked.insert(i, trial)
        self._queue.append((score, trial))
        self._snapshot += _mark(trial.id)
        if len(self._queue) > self.population:
            self._remove()

    def _remove(self) -> None:
        if self.remove == "oldest":
            score, gone = self._queue.popleft()
            i = bisect_left(self._scores, score)  # the oldest of all is the first of its equals
        else:
            i, score, gone = 0, self._scores[0], self._ranked[0]
            self._queue.remove((score, gone))
        del self._scores[i], self._ranked[i]
        self._snapshot -= _mark(gone.id)

    def _tournament(self) -> Trial:
        random, scores = self.problem.rng.random, self._scores
        n = len(scores)
        score = scores[n - 1 - bisect_right(_cumulative(n, min(self.sample, n)), random())]
        first, end = bisect_left(scores, score), bisect_right(scores, score)
        return self._ranked[first + int(random() * (end - first))]


def fitting_sizes(population: int | None, sample: int | None, trials: int | None) -> tuple[int, int]:
    """P and S: the given ones, and for those not given, what suits the number of trials.

    >>> fitting_sizes(None, None, None), fitting_sizes(None, None, 32), fitting_sizes(20, None, 32)
    ((100, 10), (8, 2), (20, 6))
    """
    if population is None:
        population = POPULATION if trials is None else min(POPULATION, max(SMALLEST_POPULATION, trials // 4))
        population = max(population, sample or 1)
    return population, sample or min(SAMPLE, max(2, population // 3), population)


def parent_probability(k: int, population: int, sample: int) -> float:
    """How probably the member of rank k (1 is the best) wins a tournament of ``sample`` out of ``population``.

    >>> parent_probability(1, 100, 10), round(parent_probability(2, 100, 10), 4)
    (0.1, 0.0909)
    """
    return math.comb(population - k, sample - 1) / math.comb(population, sample)


@lru_cache(maxsize=1024)
def _cumulative(population: int, sample: int) -> tuple[float, ...]:
    """Probability that the parent is among the best 1, 2, … members; ends with 1."""
    total = math.comb(population, sample)
    return tuple(1 - math.comb(population - k, sample) / total for k in range(1, population - sample + 2))


def changed_decision(parent: Arch, child: Arch) -> str | None:
    """The first decision, in the space's order, in which a child differs: those after it may only have followed.

    >>> changed_decision({"op": "skip"}, {"op": "conv", "kernel": 3})
    'op'
    """
    for name, value in child.items():
        if name not in parent or parent[name] != value:
            return name
    return next((name for name in parent if name not in child), None)


def _mark(id: int) -> int:
    """A scattered number for an id (the finaliser of splitmix64), so that sums over members tell populations apart."""
    x = (id + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 27
