"""Splitting a supernet: operations that disturb each other get weights of their own, level by level.

    A = {supernet};  at each split epoch, every S in A becomes children that differ in what one of its edges may hold

An *encoding* says which options a row may still take. An option outside it has a mixture weight of exactly zero, so a
child is its parent with fewer options: copied weights, logits and optimisers, the same network for every path that it
still holds, and never a computation of the others. The leaves divide the space: each architecture is in exactly one
(where the split edge is not taken, in the first child). Shared by GM-NAS and what it is compared with:

    RandomSplit   two random groups of a random edge
    FewShot       Zhao et al. Few-shot Neural Architecture Search. 2020. https://arxiv.org/abs/2006.06863
                  a random edge, and a supernet for each of its options
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice
from archipel.core.errors import UsageError
from archipel.search.differentiable.arch_gradient import ArchGradient
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.parameters import Moment, Row
from archipel.search.differentiable.state import SearchState

Encoding = dict[str, tuple[int, ...]]  # row -> positions it may take; rows that are absent may take all


@dataclass(frozen=True)
class Split:
    """How a supernet is divided.

    Attributes:
        row: the edge.
        groups: positions of its options, one group for each child.
        scores: row -> score of its best division, where rows were compared.
    """

    row: str
    groups: tuple[tuple[int, ...], ...]
    scores: Mapping[str, float] = field(default_factory=dict)


class Splitter:
    """Says how a supernet is divided; subclasses implement :meth:`split`.

    Args:
        smallest: options that each group holds at least.
    """

    def __init__(self, smallest: int = 2) -> None:
        if not isinstance(smallest, int) or smallest < 1:
            raise UsageError(f"A group must hold at least one option; smallest is {smallest!r}.")
        self.smallest = smallest

    def split(self, state: SearchState, gradient: ArchGradient, seed: int, deadline: float | None) -> Split | None:
        """How to divide this supernet; None if the deadline passed before that was known."""
        raise NotImplementedError

    def candidates(self, state: SearchState) -> dict[str, int]:
        """Rows that can be divided, with their number of options.

        Raises:
            UsageError: there is none.
        """
        found = {n: choosable(row) for n, row in state.parameters.rows.items() if row.is_choice and row.allowed is None}
        fitting = {n: size for n, size in found.items() if size >= 2 * self.smallest}
        if not fitting:
            most = max(found.values(), default=0)
            raise UsageError(
                f"No edge of {state.supernet.space.name} can be divided: two groups of {self.smallest} need "
                f"{2 * self.smallest} options, and the {len(found)} edges not yet divided have at most {most}. "
                f"Lower smallest, or split less often."
            )
        return fitting


class RandomSplit(Splitter):
    """A random edge, divided into two random groups."""

    def split(self, state: SearchState, gradient: ArchGradient, seed: int, deadline: float | None) -> Split | None:
        rng = Random(seed)
        row, size = rng.choice(list(self.candidates(state).items()))
        return Split(row, rng.choice(partitions(size, self.smallest)))


class FewShot(Splitter):
    """A random edge, with a child for each of its options."""

    def __init__(self) -> None:
        super().__init__(smallest=1)

    def split(self, state: SearchState, gradient: ArchGradient, seed: int, deadline: float | None) -> Split | None:
        row, size = Random(seed).choice(list(self.candidates(state).items()))
        return Split(row, tuple((i,) for i in range(size)))


def partitions(n: int, smallest: int = 1) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All ways to divide 0 … n-1 into two groups of at least ``smallest``; the one with 0 first, each way once.

    >>> [len(partitions(n, 2)) for n in (4, 5, 7, 8)]
    [3, 10, 56, 119]
    """
    out = []
    for size in range(smallest, n - smallest + 1):
        for rest in itertools.combinations(range(1, n), size - 1):
            first = (0, *rest)
            out.append((first, tuple(i for i in range(n) if i not in first)))
    return out


def choosable(row: Row) -> int:
    """Options of a choice, but for those that only take part in mixtures."""
    choice = row.modules[0]
    assert isinstance(choice, Choice)
    return choice.decision.size


def encodings_of_children(encoding: Mapping[str, tuple[int, ...]], split: Split, row: Row) -> list[Encoding]:
    """What each child may take: disjoint on the split row, together what the parent may take, elsewhere the same.

    Options that only take part in mixtures stay with all children.

    Raises:
        UsageError: the row is divided already, or the groups do not divide its options.
    """
    if split.row in encoding:
        raise UsageError(f"Edge {split.row!r} is already divided, into {encoding[split.row]}; divide another one.")
    options = list(range(choosable(row)))
    if sorted(i for group in split.groups for i in group) != options or not all(split.groups):
        raise UsageError(f"Groups {split.groups} do not divide the {len(options)} options of {split.row!r}.")
    blend_only = tuple(range(len(options), len(row.labels)))
    return [{**encoding, split.row: (*sorted(group), *blend_only)} for group in split.groups]


def holds(encoding: Mapping[str, tuple[int, ...]], rows: Mapping[str, Row], arch: Mapping[str, Any]) -> bool:
    """Whether an architecture is among those of an encoding; an edge that it does not take counts as its option 0."""
    return all(
        (rows[name].labels.index(str(arch[name])) if name in arch else 0) in allowed
        for name, allowed in encoding.items()
    )


class Restricted(Mix):
    """A mix that sees only the options of an encoding; all others weigh exactly zero.

    Args:
        inner: gives the weights, as if the other options did not exist.
        encoding: of the supernet.
    """

    def __init__(self, inner: Mix, encoding: Mapping[str, tuple[int, ...]]) -> None:
        self.inner = inner
        self.encoding = {name: list(allowed) for name, allowed in encoding.items()}
        self.edge, self.weigh_edges = inner.edge, inner.weigh_edges

    def coefficients(self, logits: Tensor, row: Row, moment: Moment) -> Tensor:
        return self.weights({row.name: logits}, {row.name: row}, moment)[row.name]

    def weights(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        return self._outside(self.inner.weights(*self._inside(logits, rows), moment), logits)

    def scores(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        return self._outside(self.inner.scores(*self._inside(logits, rows), moment), logits)

    def _inside(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row]) -> tuple[dict, dict]:
        """Logits and rows without the options outside the encoding."""
        seen_logits, seen_rows = dict(logits), dict(rows)
        for name, allowed in self.encoding.items():
            if name in rows:
                seen_logits[name] = logits[name][allowed]
                labels = tuple(rows[name].labels[i] for i in allowed)
                seen_rows[name] = Row(name, labels, rows[name].modules)
        return seen_logits, seen_rows

    def _outside(self, found: Mapping[str, Tensor], logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rows of full length, with zeros outside the encoding."""
        out = dict(found)
        for name, allowed in self.encoding.items():
            if name in out:
                full = torch.zeros(len(logits[name]), dtype=out[name].dtype)
                out[name] = full.index_put((torch.tensor(allowed),), out[name])
        return out

    def blend(self, options: Sequence[nn.Module], weights: Tensor, *args: Any) -> Any:
        return self.inner.blend(options, weights, *args)

    def step_ended(self, state: SearchState) -> None:
        self.inner.step_ended(state)

    def epoch_ended(self, state: SearchState) -> None:
        self.inner.epoch_ended(state)

    def figures(self) -> Mapping[str, Any]:
        return self.inner.figures()

    @property
    def finished(self) -> bool:
        return self.inner.finished

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


def scaled_splits(split_epochs: Sequence[int], planned: int, epochs: int) -> list[int]:
    """Split epochs of a schedule that is stretched from ``planned`` epochs to another number.

    Raises:
        UsageError: they would not increase from at least 1 to below ``epochs``.

    >>> scaled_splits([15, 30], 50, 10)
    [3, 6]
    """
    scaled = [round(e * epochs / planned) for e in split_epochs]
    if not all(a < b for a, b in itertools.pairwise([0, *scaled, epochs])):
        raise UsageError(
            f"A search of {epochs} epochs cannot be split after epochs {scaled} (given: {list(split_epochs)} of "
            f"{planned}): they must increase, and be from 1 to {epochs - 1}. Take more epochs or fewer splits."
        )
    return scaled


def levels_of(supernets: int) -> int:
    """How often supernets are halved.

    Raises:
        UsageError: not a power of 2, or less than 2.
    """
    if not isinstance(supernets, int) or supernets < 2 or supernets & (supernets - 1):
        near = 2 ** max(1, round(math.log2(supernets))) if isinstance(supernets, int) and supernets > 1 else 4
        raise UsageError(f"Halving gives 2, 4, 8 … supernets, not {supernets!r}. Take supernets={near}, for instance.")
    return supernets.bit_length() - 1
