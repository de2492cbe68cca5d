"""The evolutionary searcher of single path one-shot search: generations under a hard constraint, nothing scored twice.

Guo et al. Single Path One-Shot Neural Architecture Search with Uniform Sampling. 2019.
https://arxiv.org/abs/1904.00420

    P_0 = random legal architectures
    repeat: score P_t; top = the best k so far
            P_t+1 = crossovers of two of the top, mutations of one (each decision drawn anew with probability 0.1),
                    and random legal architectures to fill up

A child outside the limits, or one seen before, is drawn again; limits are never a penalty. Every generation draws from
(seed, generation) alone, so a search can be continued.

Unlike in the reference code, no generation is bred that does not count among the best that are read off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from archipel.core.decision import Arch
from archipel.core.errors import InfeasibleError, UsageError
from archipel.core.space import Space
from archipel.cost.table import index_matrix

# Draws for each child before a source of children is given up (the reference code allows 10).
DRAWS_PER_CHILD = 10
# Draws for each random architecture; when they are all seen or illegal, the space is taken to be exhausted.
DRAWS_PER_RANDOM = 1_000
MAX_DRAWS = 10_000
# Draws that are judged together where that is possible.
CHUNK = 256

Feasible = Callable[[Arch], bool]


@dataclass(frozen=True)
class Evolution:
    """Settings of the search, at the paper's values.

    Raises:
        UsageError: a size that makes no sense.
    """

    population: int = 50
    generations: int = 20
    top: int = 10
    crossover: int = 25
    mutation: int = 25
    probability: float = 0.1

    def __post_init__(self) -> None:
        for name in ("population", "generations", "top"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"Evolution: {name} must be a positive integer, not {getattr(self, name)!r}.")
        if min(self.crossover, self.mutation) < 0 or self.crossover + self.mutation > self.population:
            raise UsageError(
                f"Evolution: crossover ({self.crossover}) and mutation ({self.mutation}) must not exceed the "
                f"population ({self.population})."
            )
        if not 0.0 < self.probability <= 1.0:
            raise UsageError(f"Evolution: probability must be in (0, 1], not {self.probability!r}.")


@dataclass
class Found:
    """What a search has seen.

    Attributes:
        scored: canonical form -> (architecture, score), in the order of scoring.
        best: the highest score after each generation.
    """

    scored: dict[str, tuple[Arch, float]] = field(default_factory=dict)
    best: list[float] = field(default_factory=list)
    mean_top: list[float] = field(default_factory=list)

    def top(self, k: int) -> list[tuple[Arch, float]]:
        """The best ``k``, best first; the earlier of equals first."""
        return sorted(self.scored.values(), key=lambda pair: -pair[1])[:k]

    def as_dict(self) -> dict[str, Any]:
        return {"scored": [[a, s] for a, s in self.scored.values()], "best": self.best, "mean_top": self.mean_top}

    @classmethod
    def from_dict(cls, state: dict[str, Any], space: Space) -> Found:
        scored = {space.canonical(a): (a, s) for a, s in state["scored"]}
        return cls(scored, list(state["best"]), list(state["mean_top"]))


def mutated(space: Space, arch: Arch, probability: float, rng: Random) -> Arch:
    """Each open decision drawn anew with a probability (perhaps to what it was); what that opens is drawn too."""
    child = {n: space.by_name[n].sample(rng) if rng.random() < probability else v for n, v in arch.items()}
    return space.complete(child, rng) if space.conditions else child


class _Breeder:
    """Makes one generation: legal architectures that were not seen before."""

    def __init__(self, space: Space, found: Found, feasible: Feasible | None, describe: Callable[[], str]) -> None:
        self.space, self.found, self.feasible, self.describe = space, found, feasible, describe
        self.members: dict[str, Arch] = {}
        self.illegal: set[str] = set()
        # Limits that are answered by tables judge many architectures at the cost of one.
        self.judge_many = getattr(feasible, "feasible_batch", None)

    def take(self, draw: Callable[[], Arch], wanted: int, draws: int) -> bool:
        """Add up to ``wanted`` new legal members; whether any draw was legal at all."""
        goal = len(self.members) + wanted
        any_legal = False
        while draws > 0 and len(self.members) < goal:
            archs = [draw() for _ in range(min(draws, CHUNK if self.judge_many else 1))]
            draws -= len(archs)
            for arch, (key, legal) in zip(archs, self.judge(archs)):
                any_legal |= legal
                if legal and len(self.members) < goal and key not in self.found.scored:
                    self.members.setdefault(key, arch)
        return any_legal

    def judge(self, archs: list[Arch]) -> Iterator[tuple[str, bool]]:
        """Canonical form and legality of each."""
        if self.judge_many is not None:
            legal = self.judge_many(index_matrix(self.space, archs)).tolist()
            yield from zip(map(self.space.canonical, archs), legal)
            return
        for arch in archs:
            key = self.space.canonical(arch)
            judged = key in self.illegal or key in self.members or key in self.found.scored
            if not judged and self.feasible is not None and not self.feasible(arch):
                self.illegal.add(key)
            yield key, key not in self.illegal

    def fill(self, size: int, rng: Random) -> None:
        """Random legal members up to ``size``; fewer when no unseen ones are left.

        Raises:
            InfeasibleError: no draw is within the limits.
        """
        while len(self.members) < size:
            before = len(self.members)
            legal = self.take(lambda: self.space.sample(rng), size - before, DRAWS_PER_RANDOM)
            if not legal and not self.members and not self.found.scored:
                legal = self.take(lambda: self.space.sample(rng), size, MAX_DRAWS)
                if not legal:
                    raise InfeasibleError(f"No legal architecture in {self.space.name}: {self.describe()}.")
            if len(self.members) == before:
                return


def breed(
    space: Space,
    found: Found,
    settings: Evolution,
    rng: Random,
    feasible: Feasible | None = None,
    describe: Callable[[], str] = lambda: "the limits exclude all that were drawn",
) -> list[Arch]:
    """The next generation.

    Raises:
        InfeasibleError: nothing drawn was within the limits; repeats ``describe``.
    """
    breeder = _Breeder(space, found, feasible, describe)
    parents = [a for a, _ in found.top(settings.top)]
    if parents:

        def cross() -> Arch:
            return space.crossover(rng.choice(parents), rng.choice(parents), rng)

        def mutate() -> Arch:
            return mutated(space, rng.choice(parents), settings.probability, rng)

        breeder.take(cross, settings.crossover, DRAWS_PER_CHILD * settings.crossover)
        breeder.take(mutate, settings.mutation, DRAWS_PER_CHILD * settings.mutation)
    breeder.fill(settings.population, rng)
    return list(breeder.members.values())


def evolve(
    space: Space,
    score: Callable[[Arch], float],
    settings: Evolution = Evolution(),
    seed: int = 0,
    feasible: Feasible | None = None,
    describe: Callable[[], str] = lambda: "the limits exclude all that were drawn",
    found: Found | None = None,
    after: Callable[[Found], None] = lambda found: None,
    deadline: float | None = None,
) -> Found:
    """Search for architectures of high score.

    Args:
        score: higher is better; called once for each architecture.
        feasible: the hard constraint, asked for every draw; one with a ``feasible_batch`` for index matrices, such as
            tabulated :class:`~archipel.cost.limits.Limits`, is asked for many at once.
        describe: what the limits are, for the error.
        found: of the generations so far, to continue.
        after: called after each generation, to save it.
        deadline: on the monotonic clock; scoring stops there.

    Raises:
        InfeasibleError: no architecture within the limits.

    >>> from archipel.core.decision import Decision
    >>> space = Space([Decision(f"x{i}", list(range(8)), ordered=True) for i in range(4)])
    >>> evolve(space, lambda a: -sum(a.values())).top(1)
    [({'x0': 0, 'x1': 0, 'x2': 0, 'x3': 0}, 0)]
    """
    found = Found() if found is None else found
    for generation in range(len(found.best), settings.generations):
        rng = Random(f"generation {generation} under seed {seed}")
        members = breed(space, found, settings, rng, feasible, describe)
        for arch in members:
            if deadline is not None and time.monotonic() > deadline and found.scored:
                break
            found.scored[space.canonical(arch)] = (arch, score(arch))
        top = found.top(settings.top)
        found.best.append(top[0][1])
        found.mean_top.append(sum(s for _, s in top) / len(top))
        after(found)
        if not members or (deadline is not None and time.monotonic() > deadline):
            break
    return found


def random_search(
    space: Space,
    score: Callable[[Arch], float],
    evaluations: int,
    seed: int = 0,
    feasible: Feasible | None = None,
    describe: Callable[[], str] = lambda: "the limits exclude all that were drawn",
    deadline: float | None = None,
) -> Found:
    """As many distinct random legal architectures, scored in the same way: what evolution is to be compared with.

    Raises:
        InfeasibleError: no architecture within the limits.
    """
    found = Found()
    breeder = _Breeder(space, found, feasible, describe)
    breeder.fill(evaluations, Random(f"random search under seed {seed}"))
    for key, arch in breeder.members.items():
        if deadline is not None and time.monotonic() > deadline and found.scored:
            break
        found.scored[key] = (arch, score(arch))
    return found
