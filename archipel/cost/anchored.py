"""The anchored decomposition of a cost over decisions: terms by inclusion and exclusion around a reference.

Rabitz, Alis. General foundations of high-dimensional model representations. 1999.
https://doi.org/10.1023/A:1019188517934   (also called cut-HDMR)

    cost(a) = sum over S of f_S(a_S),     f_S(v) = cost(reference with v on S) - sum of f_T over T below S

Every decision has a reference option; a term belongs to a set of options that are not the reference, and counts where
all its decisions are open with those options. Beyond the paper: decisions may be conditional. Setting up a term may
then need other decisions to be moved, to open its own; terms whose set-up moves fewest come first, since those of
larger set-ups need them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from archipel.core.decision import Arch, Decision
from archipel.core.errors import SpaceError
from archipel.core.space import Space

Measure = Callable[[Arch], float]
Pair = tuple[str, Any]
# Exact costs that a fit may ask for.
MAX_ASKED = 20_000


class Anchored:
    """The terms of a cost up to an order; see :meth:`solve`.

    Args:
        space: with finitely many options in each decision.
        measure: the exact cost of an architecture.
        order: decisions in a term, at most.

    Raises:
        SpaceError: another order than 1, 2 or 3, or a decision that is a range of numbers.
    """

    def __init__(self, space: Space, measure: Measure, order: int) -> None:
        if order not in (1, 2, 3):
            raise SpaceError(f"A cost table has order 1, 2 or 3, not {order!r}.")
        self.space, self.measure, self.order = space, measure, order
        for d in space.decisions:
            if not isinstance(d, Decision):
                raise SpaceError(f"Decision {d.name!r} is a number from a range; tables need finitely many options.")
        self.decisions: list[Decision] = list(space.decisions)  # type: ignore[arg-type]
        self.reference = {d.name: self._favoured(d) for d in self.decisions}
        base = self._place({})
        self.opener = {d.name: {} if base and d.name in base else self._open(d.name) for d in self.decisions}

    def _favoured(self, d: Decision) -> Any:
        """The option under which most other decisions are open; the last of equals."""

        def opened(option: Any) -> int:
            clauses = itertools.chain.from_iterable(self.space.conditions.values())
            return sum(n == d.name and option in values for clause in clauses for n, values in clause)

        return max(reversed(d.options), key=opened)

    def _open(self, name: str) -> dict[str, Any]:
        """Options of other decisions under which a decision is open."""
        clause = min(self.space.conditions[name], key=len)
        needed: dict[str, Any] = {}
        for parent, values in clause:
            keep = self.reference[parent] if self.reference[parent] in values else min(values, key=str)
            needed[parent] = keep
        for parent, _ in clause:
            base = self._place(needed)
            if base is None or parent not in base:
                needed = {**self._open(parent), **needed}
        return needed

    def _place(self, chosen: Mapping[str, Any]) -> Arch | None:
        """The reference with some options replaced, or None if that closes one of them."""
        arch: Arch = {}
        for d in self.decisions:
            if self.space.is_open(d.name, arch):
                arch[d.name] = chosen.get(d.name, self.reference[d.name])
        return arch if all(n in arch for n in chosen) else None

    def solve(self) -> tuple[float, dict[frozenset[Pair], float]]:
        """The reference's cost, and the terms that are not zero.

        Raises:
            SpaceError: it would need more than 20,000 exact costs.
        """
        moves = [(d.name, o) for d in self.decisions for o in d.options if o != self.reference[d.name]]
        wanted: list[tuple[frozenset[Pair], frozenset[Pair], Arch]] = []
        for size in range(1, self.order + 1):
            for pairs in itertools.combinations(moves, size):
                chosen = dict(pairs)
                if len(chosen) < size:
                    continue  # two options of one decision
                opened: dict[str, Any] = {}
                for name in chosen:
                    opened.update(self.opener[name])
                arch = self._place({**opened, **chosen})
                if arch is not None:
                    wanted.append((frozenset(pairs), self._moved(arch), arch))
            if len(wanted) > MAX_ASKED:
                raise SpaceError(
                    f"A table of order {self.order} for {self.space.name} needs more than {MAX_ASKED:,} exact costs. "
                    f"Use CostTable.from_modules, or a lower order."
                )
        base = self._place({})
        assert base is not None
        constant = self.measure(base)
        found: dict[frozenset[Pair], float] = {}
        costs: dict[frozenset[Pair], float] = {}
        # Terms whose set-up moves fewest decisions come first: those of larger set-ups need them.
        for pairs, moved, arch in sorted(wanted, key=lambda w: (len(w[1]), len(w[0]))):
            if moved not in costs:
                costs[moved] = self.measure(arch)
            known = sum(
                found.get(frozenset(part), 0)
                for size in range(1, self.order + 1)
                for part in itertools.combinations(moved, size)
            )
            found[pairs] = costs[moved] - constant - known
        return constant, {pairs: value for pairs, value in found.items() if value}

    def _moved(self, arch: Arch) -> frozenset[Pair]:
        return frozenset((n, v) for n, v in arch.items() if v != self.reference[n])
