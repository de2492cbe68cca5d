"""Cost tables: a space's exact costs as sums of small tables, for a hundred thousand architectures a second.

Many costs decompose over decisions:

    cost(a) = sum over S of f_S(a_S),   S a small set of decisions that are open in a

A table of order 1 is additive (operations on edges, layer by layer), one of order 2 has a term for each pair (a layer's
size depends on the widths on both sides). Terms are found by asking for the exact cost of few architectures around a
reference (the anchored decomposition, also called cut-HDMR: Rabitz, Alis, General foundations of high-dimensional model
representations, 1999, https://doi.org/10.1023/A:1019188517934), or read off the layers of a module with choices. Either
way the table is compared with exact costs of random architectures before it is handed out; a space whose costs are not
of that form is an error, never an approximation.

Axes: N architectures, D decisions. An index matrix [N, D] holds the position of each decision's option, or the number
of its options where the decision is closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from archipel.core.decision import Arch, Decision
from archipel.core.errors import SpaceError
from archipel.core.space import Space
from archipel.cost.anchored import Anchored, Measure, Pair

# Entries that one term may have.
MAX_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Term:
    """A table over the states of some decisions; each axis has one more entry, for the closed decision."""

    names: tuple[str, ...]
    values: np.ndarray


class CostTable:
    """A cost as a sum of terms; use :meth:`fit`, :meth:`from_modules` or :meth:`of` to make one.

    Args:
        space: with finitely many options in each decision.
        metric: for messages.
        constant: common to all architectures.
        terms: of which each is the more useful the fewer there are; those that others contain are merged.
    """

    def __init__(self, space: Space, metric: str, constant: float, terms: Iterable[Term]) -> None:
        self.space, self.metric, self.constant = space, metric, constant
        self.terms = _merge(terms)
        self._column = {d.name: i for i, d in enumerate(space.decisions)}
        self._lookups = []
        for term in self.terms:
            shape = term.values.shape
            strides = np.array([int(np.prod(shape[i + 1 :])) for i in range(len(shape))])
            columns = np.array([self._column[n] for n in term.names])
            self._lookups.append((columns, strides, np.ascontiguousarray(term.values).reshape(-1)))

    # --- evaluation ------------------------------------------------------------------------------------------------

    def batch(self, index: np.ndarray) -> np.ndarray:
        """Costs ``[N]`` of an index matrix ``[N, D]``."""
        total = np.full(len(index), self.constant)
        columns = np.ascontiguousarray(np.asarray(index).T)  # [D, N]: every lookup reads whole rows
        for used, strides, values in self._lookups:
            place = columns[used[0]] * strides[0]
            for column, stride in zip(used[1:], strides[1:]):
                place = place + columns[column] * stride
            total = total + values[place]
        return total

    def __call__(self, arch: Arch) -> float:
        """The cost of one architecture."""
        return self.batch(index_matrix(self.space, [arch]))[0].item()

    # --- construction ----------------------------------------------------------------------------------------------

    @classmethod
    def fit(cls, space: Space, metric: str | Measure, order: int = 1, check: int = 32, seed: int = 0) -> CostTable:
        """Find the terms by asking for exact costs around a reference architecture.

        Args:
            metric: an exact cost of ``space.cost``, such as "params" or "macs"; or a function of the architecture.
            order: decisions in a term, at most: 1, 2 or 3.
            check: random architectures that the table is compared on.

        Raises:
            SpaceError: the cost is no sum of terms of that order, or the fit would need more than 20,000 costs.

        >>> from archipel.core.decision import Decision
        >>> grid = Space([Decision("a", [1, 2, 3], ordered=True), Decision("b", [4, 5], ordered=True)])
        >>> CostTable.fit(grid, lambda arch: arch["a"] * arch["b"], order=2)({"a": 3, "b": 5})
        15
        """
        measure, label = _measure(space, metric)
        anchored = Anchored(space, measure, order)
        constant, found = anchored.solve()
        table = cls(space, label, constant, _as_terms(space, found))
        return table.checked(measure, check, seed, f"a sum of terms of order {order}")

    @classmethod
    def from_modules(cls, space: Space, metric: str = "params", check: int = 32, seed: int = 0) -> CostTable:
        """Read the terms off the layers of a module with choices: one for each, over its sizes and conditions.

        Raises:
            SpaceError: the space is not made of a module, or its costs do not follow from single layers (attention's
                products, say, belong to no layer with weights).
        """
        from archipel.cost.layer_table import layer_terms

        measure, label = _measure(space, metric)
        table = cls(space, label, 0, layer_terms(space, label))
        return table.checked(measure, check, seed, "a sum over its layers")

    @classmethod
    def of(cls, space: Space, metric: str = "params") -> CostTable:
        """The first table that is exact: of order 1 or 2 for small spaces, else by layers.

        Raises:
            SpaceError: none is.
        """
        reasons = []
        for make in (
            lambda: cls.from_modules(space, metric),
            lambda: cls.fit(space, metric, order=1),
            lambda: cls.fit(space, metric, order=2),
        ):
            try:
                return make()
            except SpaceError as error:
                reasons.append(str(error))
        raise SpaceError(f"There is no exact table for {metric} of {space.name}: {' '.join(reasons)}")

    def checked(self, measure: Measure, count: int, seed: int, form: str) -> CostTable:
        """This table, after a comparison with exact costs.

        Raises:
            SpaceError: they differ; shows where.
        """
        rng = Random(seed)
        archs = [self.space.sample(rng) for _ in range(count)]
        for arch, got in zip(archs, self.batch(index_matrix(self.space, archs)).tolist()):
            exact = measure(arch)
            close = got == exact if isinstance(exact, int) else abs(got - exact) <= 1e-9 * max(1.0, abs(exact))
            if not close:
                raise SpaceError(
                    f"{self.metric} of {self.space.name} is not {form}: the table gives {got}, exact is {exact}, "
                    f"for {arch}."
                )
        return self


def _measure(space: Space, metric: str | Measure) -> tuple[Measure, str]:
    if callable(metric):
        return metric, getattr(metric, "__name__", "cost")
    return getattr(space.cost, metric), metric


def index_matrix(space: Space, archs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Architectures as an index matrix ``[N, D]``.

    >>> from archipel.core.decision import Decision
    >>> index_matrix(Space([Decision("a", ["x", "y"])]), [{"a": "y"}, {}]).tolist()
    [[1], [2]]
    """
    out = np.empty((len(archs), len(space.decisions)), dtype=np.int64)
    for column, d in enumerate(space.decisions):
        if not isinstance(d, Decision):
            raise SpaceError(f"Decision {d.name!r} is a number from a range; tables need finitely many options.")
        position = {option: i for i, option in enumerate(d.options)}
        name, closed = d.name, d.size
        out[:, column] = [position[a[name]] if name in a else closed for a in archs]
    return out


def archs_of(space: Space, index: np.ndarray) -> list[Arch]:
    """The architectures of an index matrix."""
    options = [(d.name, d.options) for d in space.decisions if isinstance(d, Decision)]
    return [{name: o[i] for (name, o), i in zip(options, row) if i < len(o)} for row in index.tolist()]


def _merge(terms: Iterable[Term]) -> list[Term]:
    """Add terms to others over a superset of their decisions, and drop those that are zero."""
    merged: list[Term] = []
    for term in sorted((t for t in terms if np.any(t.values)), key=lambda t: -len(t.names)):
        host = next((i for i, m in enumerate(merged) if set(term.names) <= set(m.names)), None)
        if host is None:
            merged.append(term)
            continue
        names = merged[host].names
        order = sorted(range(len(term.names)), key=lambda i: names.index(term.names[i]))
        shape = [n if name in term.names else 1 for name, n in zip(names, merged[host].values.shape)]
        added = term.values.transpose(order).reshape(shape)
        merged[host] = Term(names, merged[host].values + added)
    return merged


def _as_terms(space: Space, found: Mapping[frozenset[Pair], float]) -> list[Term]:
    tables: dict[tuple[str, ...], np.ndarray] = {}
    for pairs, value in found.items():
        ordered = sorted(pairs, key=lambda p: p[0])
        names = tuple(n for n, _ in ordered)
        decisions: list[Any] = [space.by_name[n] for n in names]
        dtype = np.int64 if isinstance(value, int) else np.float64
        table = tables.setdefault(names, np.zeros([d.size + 1 for d in decisions], dtype=dtype))
        if dtype == np.float64 and table.dtype != dtype:
            table = tables[names] = table.astype(dtype)
        table[tuple(d.index(v) for d, (_, v) in zip(decisions, ordered))] = value
    return [Term(names, values) for names, values in tables.items()]
