"""A node that takes any non-empty subset of (source, operation) pairs, as one more kind of choice.

    y = Σ_{p taken} o_p(x_{i(p)})      or its mean over the pairs taken

Every pair is a decision of its own, true where it is taken, so that an architecture stays a dict of JSON scalars. The
last pair's decision is open only if another pair is taken: where none is, it is taken without being asked, and so there
are exactly 2^P − 1 architectures and none in which the node has no input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Decider, Extract, Undecided
from archipel.core.counting import Clause
from archipel.core.decision import Arch, Decision
from archipel.core.errors import ShapeError, SpaceError

TAKEN = (True, False)


class Subset(Undecided, nn.Module):
    """Any non-empty subset of (source, operation) pairs, each operation applied to its source, summed.

    Args:
        name: of the node; decisions are called ``name.label``.
        pairs: label -> (number of the source, operation).
        mean: divide the sum of a decided subset by the number of pairs taken. Blends are plain weighted sums.

    Raises:
        SpaceError: no pair.

    >>> node = Subset("n", {"same<0": (0, nn.Identity()), "double<1": (1, nn.Linear(2, 2))})
    >>> node.taken({"n.same<0": False})
    ['double<1']
    """

    def __init__(self, name: str, pairs: Mapping[str, tuple[int, nn.Module]], mean: bool = False) -> None:
        super().__init__()
        if not pairs:
            raise SpaceError(f"Node {name!r} has no pair of source and operation to take.")
        self.name = name
        self.labels = tuple(pairs)
        self.sources = tuple(i for i, _ in pairs.values())
        self.blended = nn.ModuleList(op for _, op in pairs.values())
        self.mean = mean
        self.decisions = [Decision(f"{name}.{label}", TAKEN) for label in self.labels]
        self.last = _Last(self.decisions[-1]) if len(pairs) > 1 else None

    # --- what is decided -------------------------------------------------------------------------------------------

    def own_decisions(self) -> list[Decision]:
        return self.decisions[:-1]

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        *others, last = self.decisions
        if self.last is not None:
            for d in others:
                yield self.last, frozenset([(d.name, frozenset([True]))])
        for d, op in zip(others, self.blended):
            yield op, frozenset([(d.name, frozenset([True]))])
        if others:
            yield self.blended[-1], frozenset([(last.name, frozenset([True]))])
        yield self.blended[-1], frozenset((d.name, frozenset([False])) for d in others)

    def positions(self, value: Callable[[Decision], Any]) -> list[int]:
        """Positions of the pairs that are taken; ``value`` answers for the decisions that are open."""
        *others, last = self.decisions
        found = [i for i, d in enumerate(others) if value(d)]
        if not found or value(last):
            found.append(len(others))
        return found

    def taken(self, arch: Mapping[str, Any]) -> list[str]:
        """Labels of the pairs that an architecture takes."""
        return [self.labels[i] for i in self.positions(lambda d: arch[d.name])]

    def arch(self, labels: Sequence[str]) -> Arch:
        """The decisions that take certain pairs; the reverse of :meth:`taken`.

        Raises:
            SpaceError: no pair, or an unknown one.
        """
        unknown = [label for label in labels if label not in self.labels]
        if unknown or not labels:
            wrong = f"there is no {unknown[0]!r}" if unknown else "got none"
            raise SpaceError(f"Node {self.name!r} takes at least one of {', '.join(self.labels)}; {wrong}.")
        out: Arch = {d.name: label in labels for d, label in zip(self.decisions, self.labels)}
        if not any(list(out.values())[:-1]):
            del out[self.decisions[-1].name]  # implied
        return out

    # --- what is computed ------------------------------------------------------------------------------------------

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        if len(states) <= max(self.sources):
            raise ShapeError(f"Node {self.name!r} has {max(self.sources) + 1} sources but got {len(states)} tensors.")
        return self.seat.decider.merge(self, states)

    def decided(self, states: Sequence[Tensor], positions: Sequence[int]) -> Tensor:
        """The sum or mean of some pairs."""
        return _total([self.blended[i](states[self.sources[i]]) for i in positions], self.mean)

    def weighted(self, states: Sequence[Tensor], positions: Sequence[int], weights: Tensor) -> Tensor:
        """Σ w_p · o_p(x_i(p)) over some pairs; the others are not computed."""
        total: Tensor | None = None
        for i, w in zip(positions, weights.unbind()):
            y = self.blended[i](states[self.sources[i]])
            total = w * y if total is None else torch.addcmul(total, w, y)
        if total is None:
            raise SpaceError(f"Node {self.name!r} has no input left: all its weights are zero.")
        return total

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        taken = self.positions(decider.value)
        return SumOfPairs([self.sources[i] for i in taken], [inner(self.blended[i]) for i in taken], self.mean)


class _Last(Undecided, nn.Module):
    """Holds the last pair's decision, which hangs on the others."""

    def __init__(self, decision: Decision) -> None:
        super().__init__()
        self.decision = decision

    def own_decisions(self) -> list[Decision]:
        return [self.decision]


class SumOfPairs(nn.Module):
    """Operations applied to their sources, summed or averaged: what a :class:`Subset` is once decided."""

    def __init__(self, sources: Sequence[int], operations: Sequence[nn.Module], mean: bool) -> None:
        super().__init__()
        self.sources = tuple(sources)
        self.operations = nn.ModuleList(operations)
        self.mean = mean

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        return _total([op(states[i]) for i, op in zip(self.sources, self.operations)], self.mean)


def _total(outputs: Sequence[Tensor], mean: bool) -> Tensor:
    total = outputs[0]
    for y in outputs[1:]:
        total = total + y
    return total / len(outputs) if mean and len(outputs) > 1 else total
