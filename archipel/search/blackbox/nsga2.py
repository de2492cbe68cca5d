"""NSGA-II: several objectives at once, by rank of dominance and then by how alone a point is on its front.

Deb, Pratap, Agarwal, Meyarivan. A fast and elitist multiobjective genetic algorithm: NSGA-II. 2002.
https://doi.org/10.1109/4235.996017

    fronts:    F_1 what nobody dominates, F_2 what nobody but F_1 dominates, …; rank r of a member of F_r
    crowding:  sum over objectives of the distance between a member's two neighbours on its front, relative to the
               front's range; infinite at the ends
    better:    a lower rank; at equal rank, more crowding distance
    parents:   each the better of two random members; child = mutated crossover
    survival:  of N members and their N children, the N best

Fills the `propose` and `selection` slots; dominance and crowding are pymoo's. The search never waits: a worker that
asks before a generation is complete gets another child of the present members, and the first N children that return
are the next generation. ``steady`` lets every child compete as soon as it is told (N + 1).

Departures: uniform crossover of decisions and one mutated decision, in place of simulated binary crossover and
polynomial mutation of real numbers; a child whose network was proposed before is drawn anew, at most 20 times; failed
evaluations, or those that lack an objective, are no members.
"""

from __future__ import annotations

import math

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import UsageError, require
from archipel.core.registry import Paper, register
from archipel.search.strategy import Problem, Strategy, Trial

REDRAWS = 20  # how often a child whose network was proposed before is drawn anew


@register(
    "nsga2",
    family="search.blackbox",
    slots=["propose", "selection"],
    paper=Paper(
        "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002, "https://doi.org/10.1109/4235.996017"
    ),
)
class NSGA2(Strategy):
    """Multi-objective evolution by non-dominated sorting and crowding distance.

    Each trial's ``info`` records ``parents`` (ids; empty for the random first N) and ``generation``.

    Args:
        population: N.
        crossover: probability that a child has two parents; else it is a mutation of one.
        mutation: probability that a crossover is mutated as well; with the paper's 1/n for each of n decisions,
            something changes with probability 1 - 1/e.
        steady: every child competes at once, instead of N children together.

    Raises:
        UsageError: fewer than two members, or probabilities outside [0, 1].
        MissingExtraError: pymoo is not installed (at setup).

    >>> from archipel.search.strategy import Objective
    >>> from archipel.spaces.nb201_codec import NB201Codes
    >>> search = NSGA2(population=20)
    >>> search.setup(Problem(NB201Codes(), [Objective("convs"), Objective("skips")]))
    >>> for _ in range(400):
    ...     trial = search.ask()
    ...     ops = list(trial.arch.values())
    ...     trial.metrics = {"convs": ops.count("conv3x3"), "skips": ops.count("skip")}
    ...     search.tell(trial)
    >>> sorted({tuple(search.problem.scores(t)) for t in search.front})
    [(0, 6), (1, 5), (2, 4), (3, 3), (4, 2), (5, 1), (6, 0)]
    """

    multi_objective = True

    def __init__(
        self, population: int = 40, crossover: float = 0.9, mutation: float = 0.63, steady: bool = False
    ) -> None:
        if population < 2:
            raise UsageError(f"population={population}: tournaments need at least 2 members.")
        for name, p in (("crossover", crossover), ("mutation", mutation)):
            if not 0 <= p <= 1:
                raise UsageError(f"{name}={p} is a probability and must lie in [0, 1].")
        self.population = population
        self.crossover = crossover
        self.mutation = mutation
        self.steady = steady

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self._sorting = require("pymoo.util.nds.non_dominated_sorting", "multiobjective").NonDominatedSorting()
        metrics = require("pymoo.operators.survival.rank_and_crowding.metrics", "multiobjective")
        self._crowding = metrics.get_crowding_function("cd")
        self.generation = 0
        self.members: list[Trial] = []
        self._rank: list[int] = []  # of the members
        self._distance: list[float] = []
        self._children: list[Trial] = []  # told, waiting for their generation to be complete
        self._founders = 0
        self._seen: set[str] = set()  # canonical forms of all proposals

    @property
    def front(self) -> list[Trial]:
        """Members that no member dominates."""
        return [t for t, rank in zip(self.members, self._rank) if rank == 0]

    def ask(self) -> Trial:
        if self._founders < self.population or not self.members:
            self._founders += 1
            arch, parents = self.problem.sample(), []
        else:
            arch, parents = self._child()
        self._seen.add(self.problem.space.canonical(arch))
        return self.new_trial(arch, info={"parents": parents, "generation": self.generation})

    def tell(self, trial: Trial) -> None:
        if not trial.ok or not all(map(math.isfinite, self.problem.scores(trial))):
            return
        if len(self.members) < self.population:  # the first members come one by one
            self._survive([*self.members, trial])
            return
        self._children.append(trial)
        if self.steady or len(self._children) == self.population:
            self.generation += 1
            self._survive(self.members + self._children)
            self._children = []

    def _child(self) -> tuple[Arch, list[int]]:
        """A child, new if possible, and the ids of its parents."""
        rng = self.problem.rng
        for _ in range(REDRAWS):
            parents = [self._tournament()]
            if rng.random() < self.crossover:
                parents.append(self._tournament())
                arch = self.problem.crossover(parents[0].arch, parents[1].arch)
                if rng.random() < self.mutation:
                    arch = self.problem.mutate(arch)
            else:
                arch = self.problem.mutate(parents[0].arch)
            if self.problem.space.canonical(arch) not in self._seen:
                break
        return arch, [p.id for p in parents]  # type: ignore[possibly-unbound]

    def _tournament(self) -> Trial:
        rng, n = self.problem.rng, len(self.members)
        i, j = int(rng.random() * n), int(rng.random() * n)
        better = min(i, j, key=lambda m: (self._rank[m], -self._distance[m]))  # i, drawn at random, if they are equal
        return self.members[better]

    def _survive(self, trials: list[Trial]) -> None:
        """Keep the N best of ``trials`` as members."""
        ranks, distances, kept = self._select(np.array([self.problem.scores(t) for t in trials]))
        self.members = [trials[i] for i in kept]
        self._rank = [ranks[i] for i in kept]
        self._distance = [distances[i] for i in kept]

    def _select(self, scores_NM: np.ndarray) -> tuple[dict[int, int], dict[int, float], list[int]]:
        """Rank and crowding distance of the best N rows, and which rows those are, best front first."""
        ranks: dict[int, int] = {}
        distances: dict[int, float] = {}
        kept: list[int] = []
        for rank, front in enumerate(self._sorting.do(-scores_NM, n_stop_if_ranked=self.population)):
            distance = self._crowding.do(-scores_NM[front], n_remove=0)
            lottery = [self.problem.rng.random() for _ in front]  # among equally crowded ones, chance decides
            room = self.population - len(kept)
            for k in np.lexsort((lottery, -distance)).tolist()[:room]:
                i = int(front[k])
                ranks[i], distances[i] = rank, float(distance[k])
                kept.append(i)
        return ranks, distances, kept
