"""Exact counting and exactly uniform drawing of conditional assignments.

A decision may be conditional: it is open only if other decisions took certain values. Its condition is a disjunction
of clauses, each clause a set of (name, allowed values); a tied name has one clause for each place where it stands.
The number of assignments is found by fixing one decision at a time, which splits the rest into independent
components whose counts multiply. That is exact, and small wherever conditions nest like a tree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    rest: dict[str, Condition] = dict(problem)
    dependents: dict[str, set[str]] = {}
    for other, condition in problem:
        for clause in condition:
            for parent, _ in clause:
                dependents.setdefault(parent, set()).add(other)
    settled: list[tuple[str, Any | None]] = [(name, value)]
    rest.pop(name, None)
    while settled:
        parent, value = settled.pop()
        for other in dependents.get(parent, ()):
            if other not in rest:
                continue
            clauses = set()
            for clause in rest[other]:
                pair = next((p for p in clause if p[0] == parent), None)
                if pair is None:
                    clauses.add(clause)
                elif value is not None and value in pair[1]:
                    clauses.add(clause - {pair})
            if clauses:
                rest[other] = simplify(clauses)
            else:  # a decision that is not open closes whatever hangs on it
                del rest[other]
                settled.append((other, None))
    return frozenset(rest.items())


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


@dataclass
class _Part:
    """A component: one decision that is open and, if others hang on it, what remains after each of its options."""

    name: str
    count: int | float
    branches: list[tuple[Any, int | float, list[_Part]]]  # option, count, components of the remaining problem


class AssignmentCounter:
    """Counts the assignments of a set of conditional decisions and draws from them uniformly.

    Components are found once; a draw then takes a step for each open decision.
    """

    def __init__(self, decisions: Iterable[AnyDecision], conditions: Mapping[str, Condition]) -> None:
        self.decisions = {d.name: d for d in decisions}
        self.problem: Problem = frozenset((n, conditions.get(n, ALWAYS)) for n in self.decisions)
        self._memo: dict[Problem, _Part] = {}
        self._root: list[_Part] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memo": {}, "_root": None}  # quickly found again, and deeply nested

    def count(self) -> int | float:
        return _product(self._parts())

    def draw(self, rng: Random) -> dict[str, Any]:
        """One assignment, each with equal probability (real-valued decisions: uniform over their range)."""
        out: dict[str, Any] = {}
        self._draw(self._parts(), rng, out)
        return out

    def _parts(self) -> list[_Part]:
        if self._root is None:
            self._root = self._solve(self.problem)
        return self._root

    def _solve(self, problem: Problem) -> list[_Part]:
        parts = sorted(_components(problem), key=lambda p: min(n for n, _ in p))  # a fixed order: reproducible
        return [self._solve_component(part) for part in parts]

    def _solve_component(self, part: Problem) -> _Part:
        if len(part) == 1:
            name = next(iter(part))[0]
            return _Part(name, self.decisions[name].size, [])
        if part not in self._memo:
            pivot = self._pivot(part)
            branches = []
            for value in self.decisions[pivot].options:  # type: ignore[union-attr]
                rest = self._solve(_fix(part, pivot, value))
                branches.append((value, _product(rest), rest))
            self._memo[part] = _Part(pivot, sum(count for _, count, _ in branches), branches)
        return self._memo[part]

    @staticmethod
    def _pivot(part: Problem) -> str:
        """The unconditional decision on which most others hang: fixing it splits the problem best."""
        mentions = Counter(other for _, condition in part for clause in condition for other, _ in clause)
        return max((n for n, c in part if c == ALWAYS), key=lambda n: (mentions[n], n))

    def _draw(self, parts: list[_Part], rng: Random, out: dict[str, Any]) -> None:
        for part in parts:
            if not part.branches:
                out[part.name] = self.decisions[part.name].sample(rng)
                continue
            if part.count == math.inf:  # some branches hold real numbers: no uniform measure across them
                chosen = part.branches[int(rng.random() * len(part.branches))]
            else:
                # Integers beyond 2^53 occur, so no floating-point weights: walk along the exact partial sums.
                ticket = rng.randrange(int(part.count))
                for chosen in part.branches:
                    if ticket < chosen[1]:
                        break
                    ticket -= int(chosen[1])
            out[part.name] = chosen[0]
            self._draw(chosen[2], rng, out)


def _product(parts: Iterable[_Part]) -> int | float:
    total: int | float = 1
    for part in parts:
        total *= part.count
    return total
