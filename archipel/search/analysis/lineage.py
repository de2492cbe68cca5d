"""Who descends from whom in a finished evolution, and what patterns that shows.

Underwood, Madhyastha, Burns, Nicolae. Understanding Patterns of Deep Learning Model Evolution in Network Architecture
Search. 2023. https://arxiv.org/abs/2309.12576

The clock counts outcomes: evaluation i is the i-th that was told, and was dispatched when ``told`` outcomes were known.
It is the same for one worker and for many, and for any duration of the evaluations. A *donor* is the parent whose
tensors a child may take over; every evaluation but the founders' requests its donor once, at dispatch.

    structure    genes that differ from the parent and the founder; prefix of layers equal to the parent's
    lineage      depth, founders with living descendants over time (coalescence), generation length
    distribution staleness (outcomes between dispatch and return), donors gone when their child returns
    repeats      genomes evaluated before

How popular donors become is in ``popularity``, what caching them would save in ``donor_cache``.

Analysis of the `propose` and `selection` slots; only the abstract of the paper is known to us, so the definitions are
ours. All metrics cost O(N log N) for N evaluations. Axes: N evaluations, D decisions, R requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.search.simulation import Simulation
from archipel.search.strategy import Problem, Trial


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of an evolution.

    Attributes:
        id: of the trial.
        arch: its genome.
        parent: id of the donor; None for founders and for strategies without parents.
        mutated: the decision that differs from the parent.
        fitness: higher is better; NaN if the evaluation failed.
        told: outcomes known when it was dispatched.
        start, finish: seconds, NaN if unknown.
        worker: that ran it, or None.
        population: snapshot hash at dispatch, or None.
    """

    id: int
    arch: Arch
    parent: int | None
    mutated: str | None
    fitness: float
    told: int
    start: float = math.nan
    finish: float = math.nan
    worker: int | None = None
    population: int | None = None


class Lineage:
    """Evaluations in the order of their completion, as arrays.

    Args:
        evaluations: in order of completion.
        decisions: the genes in the order of the layers they decide; by default in the order they occur.

    Raises:
        UsageError: no evaluations, duplicate ids, completion times out of order, or a parent unknown at dispatch.

    Attributes:
        codes: ``[N, D]`` gene values as integers, -1 where a decision is closed.
        genome: ``[N]`` number of the distinct genome, in order of first evaluation.
        parent: ``[N]`` position of the parent, -1 for founders.
        told: ``[N]``.
        fitness: ``[N]``, NaN for failures.
    """

    def __init__(self, evaluations: Iterable[Evaluation], decisions: Sequence[str] | None = None) -> None:
        self.evaluations = tuple(evaluations)
        if not self.evaluations:
            raise UsageError("A lineage needs at least one finished evaluation; this history is empty.")
        self.position: dict[int, int] = {}
        for i, e in enumerate(self.evaluations):
            if self.position.setdefault(e.id, i) != i:
                raise UsageError(
                    f"Evaluation id {e.id} occurs twice, at {self.position[e.id]} and {i}; ids are unique."
                )
        self.decisions = tuple(decisions or dict.fromkeys(name for e in self.evaluations for name in e.arch))
        self.codes = _encode([e.arch for e in self.evaluations], self.decisions)
        self.genome = _number_rows(self.codes)
        self.told = np.array([e.told for e in self.evaluations], dtype=int)
        self.fitness = np.array([e.fitness for e in self.evaluations], dtype=float)
        self._check_times()
        self.parent = np.array([self._parent_position(e) for e in self.evaluations], dtype=int)

    def __len__(self) -> int:
        return len(self.evaluations)

    def _check_times(self) -> None:
        last = -math.inf
        for i, e in enumerate(self.evaluations):
            if e.finish < e.start or e.finish < last:
                raise UsageError(
                    f"Evaluation {e.id} runs from {e.start} to {e.finish} s and follows one that finished at {last} s. "
                    "Give evaluations in order of completion; each finishes after it starts."
                )
            last = e.finish if e.finish == e.finish else last
            if not 0 <= e.told <= i:
                raise UsageError(
                    f"Evaluation {e.id}, told as number {i}, claims to have been dispatched after {e.told}."
                )

    def _parent_position(self, e: Evaluation) -> int:
        if e.parent is None:
            return -1
        i = self.position.get(e.parent)
        if i is None or i >= e.told:
            state = "is not among the evaluations" if i is None else f"was told as number {i}"
            raise UsageError(
                f"The parent {e.parent} of evaluation {e.id} (dispatched after {e.told} outcomes) {state}."
            )
        return i

    @property
    def ok(self) -> np.ndarray:
        """``[N]`` whether the evaluation gave a fitness, and so became a member."""
        return ~np.isnan(self.fitness)

    @property
    def requests(self) -> np.ndarray:
        """``[R]`` positions of the evaluations that have a donor, in order of dispatch."""
        ids = np.array([e.id for e in self.evaluations], dtype=int)
        order = np.lexsort((ids, self.told))
        return order[self.parent[order] >= 0]

    @classmethod
    def from_trials(cls, trials: Sequence[Trial], problem: Problem) -> Lineage:
        """From trials in the order in which they were told, with the ``info`` that evolution records."""
        out = []
        for t in trials:
            if not t.info or "told" not in t.info:
                raise UsageError(f"Trial {t.id} has no lineage in its info (parent, mutated, told), only {t.info!r}.")
            out.append(_evaluation(t, problem, t.info, int(t.info["told"])))
        return cls(out, [d.name for d in problem.space.decisions])

    @classmethod
    def from_simulation(cls, simulation: Simulation, problem: Problem) -> Lineage:
        """From a simulated search, with its times; of any strategy (without parents if it records none)."""
        trials = {t.id: t for t in simulation.trials}
        dispatched: dict[int, tuple[int, float]] = {}
        out: list[Evaluation] = []
        for event in simulation.events:
            if event.kind == "start":
                dispatched[event.trial] = (len(out), event.time)
            elif event.kind in ("finish", "stop", "fail"):
                trial, (told, start) = trials[event.trial], dispatched[event.trial]
                times = {"start": start, "finish": event.time, "worker": event.worker}
                out.append(_evaluation(trial, problem, trial.info or {}, told, **times))
        return cls(out, [d.name for d in problem.space.decisions])


def _evaluation(trial: Trial, problem: Problem, info: Mapping[str, Any], told: int, **times: Any) -> Evaluation:
    score = problem.score(trial) if trial.ok else -math.inf
    fitness = math.nan if score == -math.inf else score
    parent, mutated, population = (info.get(k) for k in ("parent", "mutated", "population"))
    return Evaluation(trial.id, trial.arch, parent, mutated, fitness, told, population=population, **times)


def _encode(archs: Sequence[Arch], decisions: Sequence[str]) -> np.ndarray:
    codes_ND = np.full((len(archs), len(decisions)), -1, dtype=np.int32)
    for j, name in enumerate(decisions):
        seen: dict[Any, int] = {}
        codes_ND[:, j] = [seen.setdefault(a[name], len(seen)) if name in a else -1 for a in archs]
    return codes_ND


def _number_rows(codes_ND: np.ndarray) -> np.ndarray:
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(row.tobytes(), len(seen)) for row in codes_ND], dtype=int)


# --- structure -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StructureChange:
    """How genomes differ from their ancestors.

    Attributes:
        to_parent: ``[N]`` genes that differ from the parent; -1 for founders.
        to_founder: ``[N]`` genes that differ from the first ancestor; 0 for founders.
        prefix: ``[N]`` layers before the first difference from the parent, which it can hand over; -1 for founders.
        by_position: ``[D]`` mutations that begin at each gene.
    """

    to_parent: np.ndarray
    to_founder: np.ndarray
    prefix: np.ndarray
    by_position: np.ndarray

    def prefix_over_time(self, window: int) -> np.ndarray:
        """Mean prefix in consecutive windows of so many evaluations; NaN in a window of founders only."""
        parts = [self.prefix[i : i + window] for i in range(0, len(self.prefix), window)]
        return np.array([p[p >= 0].mean() if (p >= 0).any() else np.nan for p in parts])


def structure_change(lineage: Lineage) -> StructureChange:
    """Differences of each genome from its parent and its founder."""
    codes_ND, child = lineage.codes, lineage.parent >= 0
    differs_ND = codes_ND != codes_ND[lineage.parent]
    to_parent = np.where(child, differs_ND.sum(1), -1)
    first = np.where(differs_ND.any(1), differs_ND.argmax(1), codes_ND.shape[1])
    changed = first[child & differs_ND.any(1)]
    return StructureChange(
        to_parent,
        (codes_ND != codes_ND[founders(lineage)]).sum(1),
        np.where(child, first, -1),
        np.bincount(changed, minlength=codes_ND.shape[1]),
    )


# --- lineage ---------------------------------------------------------------------------------------------------------


def founders(lineage: Lineage) -> np.ndarray:
    """``[N]`` position of each evaluation's first ancestor; its own for founders."""
    root = np.arange(len(lineage))
    for i, p in enumerate(lineage.parent.tolist()):  # a parent stands before its children
        if p >= 0:
            root[i] = root[p]
    return root


def depths(lineage: Lineage) -> np.ndarray:
    """``[N]`` generations since the founder."""
    depth = np.zeros(len(lineage), dtype=int)
    for i, p in enumerate(lineage.parent.tolist()):
        if p >= 0:
            depth[i] = depth[p] + 1
    return depth


def generation_length(lineage: Lineage) -> float:
    """Mean number of outcomes between a parent's and its child's; NaN without children."""
    child = np.flatnonzero(lineage.parent >= 0)
    return float((child - lineage.parent[child]).mean()) if len(child) else math.nan


def surviving_founders(lineage: Lineage, population: int) -> np.ndarray:
    """``[M]`` founders with a living descendant after each of the M successful evaluations, under aging evolution."""
    root = founders(lineage)[lineage.ok]
    M = len(root)
    order = np.argsort(root, kind="stable")
    until = np.arange(M) + population  # an entry speaks for its root until it dies or the next of the root enters
    same = root[order][1:] == root[order][:-1]
    until[order[:-1][same]] = np.minimum(until[order[:-1]], order[1:])[same]
    steps = np.ones(M, dtype=int)
    np.subtract.at(steps, until[until < M], 1)
    return np.cumsum(steps)


def coalescence(lineage: Lineage, population: int) -> int | None:
    """Number of successful evaluations after which all members descend from one founder, for good; None if never."""
    alive = surviving_founders(lineage, population)
    several = np.flatnonzero(alive > 1)
    done = int(several[-1]) + 2 if len(several) else 1
    return done if done <= len(alive) else None


# --- effects of distribution, repeats --------------------------------------------------------------------------------


def staleness(lineage: Lineage) -> np.ndarray:
    """``[N]`` outcomes that were told between an evaluation's dispatch and its own; 0 with one worker."""
    return np.arange(len(lineage)) - lineage.told


def donor_gone(lineage: Lineage, population: int) -> np.ndarray:
    """``[N]`` whether the donor had left the population (aging) when its child returned; False for founders."""
    members = np.cumsum(lineage.ok) - lineage.ok  # entered before this outcome
    return (lineage.parent >= 0) & (members[lineage.parent] < members - population)


def donor_age(lineage: Lineage) -> np.ndarray:
    """``[R]`` members that entered between a donor's entry and the dispatch of its child, counting the donor."""
    members = np.concatenate([[0], np.cumsum(lineage.ok)])
    requests = lineage.requests
    return members[lineage.told[requests]] - members[lineage.parent[requests]]


def repeats(lineage: Lineage) -> np.ndarray:
    """``[N]`` whether the same genome had been told before: its result could have come from a cache."""
    return np.concatenate([[False], lineage.genome[1:] <= np.maximum.accumulate(lineage.genome)[:-1]])
