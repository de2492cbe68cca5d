"""Spaces: the set of networks that are possible, as decisions and the conditions under which they are open.

An architecture is a plain dict ``{decision name: JSON scalar}`` that holds exactly the open decisions. Everything a
search needs — exact size, uniform sampling, validation, mutation, crossover, encoding — follows from the decisions
alone; what the architecture *is* (``build``, ``supernet``, ``graph``) is up to the subclass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from archipel.core.counting import ALWAYS, AssignmentCounter, Clause, Condition, simplify
from archipel.core.decision import AnyDecision, Arch, Real
from archipel.core.errors import SpaceError, suggest

if TYPE_CHECKING:
    import networkx as nx
    from torch import nn

    from archipel.core.supernet import Supernet


def when(**allowed: Iterable[Any]) -> Clause:
    """A clause of a condition. Names that are no identifiers go in as ``when(**{"a.b": [1]})``.

    >>> from archipel.core.decision import Decision
    >>> space = Space([Decision("op", ["conv", "skip"]), Decision("k", [3, 5])], {"k": [when(op=["conv"])]})
    >>> space.size
    3
    """
    return frozenset((name, frozenset(values)) for name, values in allowed.items())


class Space:
    """Decisions and the conditions under which each is open.

    Args:
        decisions: parents before the decisions that depend on them.
        conditions: name -> clauses (see :func:`when`), any of which opens the decision; unnamed ones are always open.

    Raises:
        SpaceError: duplicate names, or a condition on something unknown, later, or not an option of its parent.
    """

    name = "space"

    def __init__(
        self, decisions: Sequence[AnyDecision], conditions: Mapping[str, Iterable[Clause]] | None = None
    ) -> None:
        self.decisions: tuple[AnyDecision, ...] = tuple(decisions)
        self.by_name: dict[str, AnyDecision] = {d.name: d for d in self.decisions}
        if len(self.by_name) < len(self.decisions):
            names = [d.name for d in self.decisions]
            twice = sorted({n for n in names if names.count(n) > 1})
            raise SpaceError(f"Decisions named twice: {', '.join(twice)}. Use one decision object, or other names.")
        simplified = {n: simplify(c) for n, c in (conditions or {}).items()}
        self.conditions: dict[str, Condition] = {n: c for n, c in simplified.items() if c != ALWAYS}
        self._check_conditions()
        self._counter = AssignmentCounter(self.decisions, self.conditions)
        self._mutable = [d for d in self.decisions if d.mutable]

    def _check_conditions(self) -> None:
        seen: set[str] = set()
        unknown = set(self.conditions) - set(self.by_name)
        if unknown:
            raise SpaceError(f"Conditions for unknown decisions: {sorted(unknown)}.")
        for d in self.decisions:
            for clause in self.conditions.get(d.name, ()):
                for parent, values in clause:
                    if parent not in seen:
                        raise SpaceError(f"{d.name!r} depends on {parent!r}, which must be declared before it.")
                    owner = self.by_name[parent]
                    if isinstance(owner, Real) or not all(owner.contains(v) for v in values):
                        raise SpaceError(
                            f"{d.name!r} depends on {parent!r} being one of {sorted(map(str, values))}, "
                            f"but {parent!r} is {owner.describe()}."
                        )
            seen.add(d.name)

    # --- the set ---------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int | float:
        """Exact number of architectures; infinite if a decision is real-valued."""
        return self._counter.count()

    def is_open(self, name: str, arch: Mapping[str, Any]) -> bool:
        """Whether a decision is open, given the decisions before it."""
        condition = self.conditions.get(name)
        if condition is None:
            return True
        return any(all(p in arch and arch[p] in values for p, values in clause) for clause in condition)

    def sample(self, rng: Random) -> Arch:
        """An architecture, uniformly among all of them."""
        if not self.conditions:
            return {d.name: d.sample(rng) for d in self.decisions}
        drawn = self._counter.draw(rng)
        return {d.name: drawn[d.name] for d in self.decisions if d.name in drawn}

    def sample_choices(self, rng: Random) -> Arch:
        """An architecture by deciding one thing after the other, each option equally likely.

        Differs from :meth:`sample` only where decisions are conditional: there, options that leave more open are
        not favoured. One-shot training samples paths in this way.
        """
        return self.complete({}, rng)

    def complete(self, partial: Mapping[str, Any], rng: Random) -> Arch:
        """The closest architecture to a partial or overfull one: drop what is closed, draw what is open and missing."""
        arch: Arch = {}
        for d in self.decisions:
            if d.name not in self.conditions or self.is_open(d.name, arch):
                arch[d.name] = partial[d.name] if d.name in partial else d.sample(rng)
        return arch

    def validate(self, arch: Any) -> Arch:
        """Check an architecture and return it with its decisions in the space's order.

        Raises:
            SpaceError: not a dict, an unknown, missing or closed decision, or a value that is no option.
        """
        if not isinstance(arch, Mapping):
            raise SpaceError(f"An architecture of {self.name} is a dict, not {type(arch).__name__}: {arch!r:.80}.")
        for name in arch:
            if name not in self.by_name:
                raise SpaceError(f"{self.name} has no decision {name!r}. {suggest(str(name), self.by_name)}")
        for d in self.decisions:
            if not self.is_open(d.name, arch):
                if d.name in arch:
                    raise SpaceError(f"Decision {d.name!r} is closed by the others, so it must be left out.")
            elif d.name not in arch:
                raise SpaceError(f"Decision {d.name!r} is missing; it is {d.describe()}.")
            elif not d.contains(arch[d.name]):
                raise SpaceError(f"Decision {d.name!r} is {d.describe()}, not {arch[d.name]!r}.")
        return {d.name: arch[d.name] for d in self.decisions if d.name in arch}

    def enumerate(self) -> Iterable[Arch]:
        """All architectures, in lexicographic order of the decisions."""
        if not math.isfinite(self.size):
            raise SpaceError(f"{self.name} has real-valued decisions and cannot be enumerated.")

        def extend(i: int, arch: Arch) -> Iterable[Arch]:
            if i == len(self.decisions):
                yield dict(arch)
                return
            d = self.decisions[i]
            if not self.is_open(d.name, arch):
                yield from extend(i + 1, arch)
                return
            for value in d.options:  # type: ignore[union-attr]
                yield from extend(i + 1, {**arch, d.name: value})

        yield from extend(0, {})

    # --- edits -----------------------------------------------------------------------------------------------------

    def mutate(self, arch: Arch, rng: Random) -> Arch:
        """Change one open decision, uniformly chosen, to another option; decisions that this opens are drawn."""
        if not self.conditions:
            d = self._mutable[int(rng.random() * len(self._mutable))] if self._mutable else None
        else:
            open_ = [d for d in self._mutable if d.name in arch]
            d = open_[int(rng.random() * len(open_))] if open_ else None
        if d is None:
            raise SpaceError(f"{self.name} has a single architecture; there is nothing to mutate.")
        child = dict(arch)
        child[d.name] = d.move(arch[d.name], rng)
        return self.complete(child, rng) if self.conditions else child

    def crossover(self, first: Arch, second: Arch, rng: Random) -> Arch:
        """Each open decision from one of the parents that has it, at random; drawn afresh if neither has."""
        child: Arch = {}
        for d in self.decisions:
            if self.is_open(d.name, child):
                values = [p[d.name] for p in (first, second) if d.name in p]
                child[d.name] = values[int(rng.random() * len(values))] if values else d.sample(rng)
        return child

    # --- what an architecture looks like ---------------------------------------------------------------------------

    def canonical(self, arch: Arch) -> str:
        """A string that is equal for architectures that are the same network up to relabelling."""
        return json.dumps({d.name: arch[d.name] for d in self.decisions if d.name in arch})

    @property
    def encoding_size(self) -> int:
        return sum(d.width for d in self.decisions)

    def encode(self, arch: Arch) -> np.ndarray:
        """A float vector of fixed length: one-hot for unordered decisions, a number in [0, 1] for ordered ones."""
        return np.concatenate([d.encode(arch.get(d.name)) for d in self.decisions])

    def hyper(self, arch: Arch) -> dict[str, Any]:
        """Training hyperparameters that the architecture decides together with the shape (none by default)."""
        return {}

    def graph(self, arch: Arch) -> nx.DiGraph:
        """The network as a directed graph; nodes carry a ``label``. Without a module, the tree of open decisions."""
        import networkx as nx

        g = nx.DiGraph(name=self.name)
        for d in self.decisions:
            if d.name in arch:
                g.add_node(d.name, label=f"{d.name} = {arch[d.name]}")
                parents = {p for clause in self.conditions.get(d.name, ()) for p, _ in clause}
                g.add_edges_from((p, d.name) for p in parents if p in arch)
        return g

    def build(self, arch: Arch, seed: int = 0) -> nn.Module:
        """The network itself, freshly initialised, as a plain module.

        Raises:
            SpaceError: this space only names architectures (such as one that exists as a table).
        """
        raise SpaceError(f"{self.name} has no modules to build; its architectures exist only by name.")

    @property
    def cost(self) -> Any:
        """Costs of the space's networks (a :class:`~archipel.cost.model.CostModel`).

        Raises:
            SpaceError: there are no modules to count.
        """
        raise SpaceError(f"{self.name} has no modules, so its networks have no costs to count.")

    def supernet(self) -> Supernet:
        """All networks at once, sharing weights.

        Raises:
            SpaceError: this space has no supernet.
        """
        raise SpaceError(f"{self.name} has no supernet, so one-shot and differentiable strategies cannot search it.")


class JointSpace(Space):
    """A space and training hyperparameters, decided together.

    >>> from archipel.core.decision import Decision
    >>> joint = JointSpace(Space([Decision("width", [8, 16])]), [Real("lr", 1e-3, 1e-1, log=True)])
    >>> sorted(joint.sample(Random(0))), joint.hyper({"width": 8, "lr": 0.01})
    (['lr', 'width'], {'lr': 0.01})
    """

    def __init__(self, space: Space, hyper: Sequence[AnyDecision]) -> None:
        self.space = space
        self.hyper_names = tuple(d.name for d in hyper)
        super().__init__([*space.decisions, *hyper], space.conditions)
        self.name = f"{space.name}+hyperparameters"

    def hyper(self, arch: Arch) -> dict[str, Any]:
        return {n: arch[n] for n in self.hyper_names if n in arch}

    def architecture(self, arch: Arch) -> Arch:
        """Only the decisions about the network's shape."""
        return {n: v for n, v in arch.items() if n not in self.hyper_names}

    def canonical(self, arch: Arch) -> str:
        return json.dumps([self.space.canonical(self.architecture(arch)), self.hyper(arch)])

    @property
    def cost(self) -> Any:
        return _ShapeCost(self)

    def graph(self, arch: Arch) -> nx.DiGraph:
        return self.space.graph(self.architecture(arch))

    def build(self, arch: Arch, seed: int = 0) -> nn.Module:
        return self.space.build(self.architecture(arch), seed)

    def supernet(self) -> Supernet:
        raise SpaceError(
            f"{self.name} decides training hyperparameters too, which networks that share weights cannot differ in. "
            f"Search {self.space.name} alone."
        )


class _ShapeCost:
    """The inner space's costs, asked about joint architectures."""

    def __init__(self, joint: JointSpace) -> None:
        self._joint = joint

    def __getattr__(self, metric: str) -> Any:
        measure = getattr(self._joint.space.cost, metric)
        return lambda arch, *args, **kwargs: measure(self._joint.architecture(arch), *args, **kwargs)
