"""Exact counting and exactly uniform drawing of conditional assignments.

A decision may be conditional: it is open only if other decisions took certain values. Its condition is a disjunction
of clauses, each clause a set of (name, allowed values); a tied name has one clause for each place where it stands.
The number of assignments is found by fixing one decision at a time, which splits the rest into independent
components whose counts multiply. That is exact, and small wherever conditions nest like a tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from archipel.core.decision import AnyDecision

Clause = frozenset[tuple[str, frozenset[Any]]]
Condition = frozenset[Clause]  # any clause true; the empty clause is always true
ALWAYS: Condition = frozenset([frozenset()])
Problem = frozenset[tuple[str, Condition]]


def simplify(condition: Iterable[Clause]) -> Condition:
    """Drop clauses implied by a weaker one (a tied decision open in one place unconditionally is simply open)."""
    clauses = set(condition)
    return frozenset(c for c in clauses if not any(other < c for other in clauses))


def _fix(problem: Problem, name: str, value: Any | None) -> Problem:
    """The problem that remains when ``name`` takes ``value`` (None: it is not open), without ``name`` itself."""
    rest: dict[str, Condition] = {}
    gone: list[str] = []
    for other, condition in problem:
        if other == name:
            continue
        clauses = set()
        for clause in condition:
            pair = next((p for p in clause if p[0] == name), None)
            if pair is None:
                clauses.add(clause)
            elif value is not None and value in pair[1]:
                clauses.add(clause - {pair})
        if clauses:
            rest[other] = simplify(clauses)
        else:
            gone.append(other)
    fixed: Problem = frozenset(rest.items())
    for other in gone:  # a decision that is not open closes whatever hangs on it
        fixed = _fix(fixed | {(other, ALWAYS)}, other, None)
    return fixed


def _components(problem: Problem) -> list[Problem]:
    """Split into parts that share no condition."""
    conditions = dict(problem)
    parent = {name: name for name in conditions}

    def root(n: str) -> str:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    for name, condition in problem:
        for clause in condition:
            for other, _ in clause:
                parent[root(name)] = root(other)
    groups: dict[str, set[tuple[str, Condition]]] = {}
    for name, condition in problem:
        groups.setdefault(root(name), set()).add((name, condition))
    return [frozenset(g) for g in groups.values()]


class AssignmentCounter:
    """Counts the assignments of a set of conditional decisions and draws from them uniformly."""

    def __init__(self, decisions: Iterable[AnyDecision], conditions: Mapping[str, Condition]) -> None:
        self.decisions = {d.name: d for d in decisions}
        self.problem: Problem = frozenset((n, conditions.get(n, ALWAYS)) for n in self.decisions)
        self._memo: dict[Problem, int | float] = {}

    def count(self) -> int | float:
        return self._count(self.problem)

    def draw(self, rng: Random) -> dict[str, Any]:
        """One assignment, each with equal probability (real-valued decisions: uniform over their range)."""
        out: dict[str, Any] = {}
        self._draw(self.problem, rng, out)
        return out

    def _count(self, problem: Problem) -> int | float:
        total: int | float = 1
        for part in _components(problem):
            total *= self._count_component(part)
        return total

    def _count_component(self, part: Problem) -> int | float:
        if len(part) == 1:
            return self.decisions[next(iter(part))[0]].size
        if part not in self._memo:
            pivot = self._pivot(part)
            self._memo[part] = sum(self._count(_fix(part, pivot, v)) for v in self.decisions[pivot].options)  # type: ignore[union-attr]
        return self._memo[part]

    @staticmethod
    def _pivot(part: Problem) -> str:
        """The unconditional decision on which most others hang: fixing it splits the problem best."""
        mentions = Counter(other for _, condition in part for clause in condition for other, _ in clause)
        return max((n for n, c in part if c == ALWAYS), key=lambda n: (mentions[n], n))

    def _draw(self, problem: Problem, rng: Random, out: dict[str, Any]) -> None:
        for part in sorted(_components(problem), key=lambda p: min(n for n, _ in p)):  # a fixed order: reproducible
            if len(part) == 1:
                name = next(iter(part))[0]
                out[name] = self.decisions[name].sample(rng)
                continue
            pivot = self._pivot(part)
            rest = [(_fix(part, pivot, v), v) for v in self.decisions[pivot].options]  # type: ignore[union-attr]
            counts = [self._count(p) for p, _ in rest]
            if float("inf") in counts:  # some branches hold real numbers: no uniform measure across them
                remaining, out[pivot] = rest[int(rng.random() * len(rest))]
            else:
                # Integers beyond 2^53 occur, so no floating-point weights: walk along the exact partial sums.
                ticket, i = rng.randrange(int(sum(counts))), 0
                while ticket >= counts[i]:
                    ticket -= int(counts[i])
                    i += 1
                remaining, out[pivot] = rest[i]
            self._draw(remaining, rng, out)
