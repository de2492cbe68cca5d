"""Spaces of cells whose nodes take any non-empty subset of (source, operation) pairs.

Bi, Xie, Chen, Wei, Tian. GOLD-NAS: Gradual, One-Level, Differentiable. 2020. https://arxiv.org/abs/2007.03331

    x_j = 1/|S_j| Σ_{(i, o) in S_j} o(x_i)        S_j any non-empty set of sources i < j and operations o

Nothing is fixed by hand but the macro skeleton: cells need not be alike, a node has as many inputs as are worth it, and
an edge may hold several operations. With 4 nodes and 2 operations a cell has ∏_{n=2..5} (2^{2n} − 1) = 246,517,425
forms. ``subsets`` stacks such cells as DARTS does; ``micro-subsets`` is a very small network of one-input cells.

Decisions are one truth value for each pair (``normal0.n2.skip_connect<1``); see :mod:`archipel.core.subset`. The
searched network has no affine batch norms and normalised pools; the built one is affine, with plain pools. ``mean``
divides a decided node by the number of its inputs, as sums of many paths would make it grow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.decision import Arch
from archipel.core.errors import SpaceError, suggest
from archipel.core.subset import Subset
from archipel.core.supernet import Supernet
from archipel.spaces.darts_network import reductions
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.nb201 import conv_bn, edge_operations
from archipel.spaces.operations import FactorizedReduce, OpFactory, darts_operations, relu_conv_bn
from archipel.spaces.plain_operations import plain_operations

GOLD_OPS = ("skip_connect", "sep_conv_3x3")
MICRO_OPS = ("skip", "conv3x3")


def node(name: str, sources: int, make: Callable[[str, int], nn.Module], ops: Sequence[str], mean: bool) -> Subset:
    """A node that takes any operations from any of its sources; ``make(op, source)``."""
    pairs = {f"{op}<{i}": (i, make(op, i)) for i in range(sources) for op in ops}
    return Subset(name, pairs, mean)


class SubsetCell(nn.Module):
    """One cell; ``[B, c0, H, W], [B, c1, H, W] -> [B, nodes * C, H, W]`` (H/2, W/2 for a reduction)."""

    def __init__(
        self, prefix: str, c0: int, c1: int, C: int, nodes: int, ops: Mapping[str, OpFactory], mean: bool,
        affine: bool, reduction: bool, after_reduction: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pre0 = FactorizedReduce(c0, C, affine) if after_reduction else relu_conv_bn(c0, C, affine=affine)
        self.pre1 = relu_conv_bn(c1, C, affine=affine)

        def make(op: str, i: int) -> nn.Module:
            return ops[op](C, 2 if reduction and i < 2 else 1)

        self.nodes = nn.ModuleList(node(f"{prefix}.n{j}", j, make, list(ops), mean) for j in range(2, 2 + nodes))

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = [self.pre0(s0), self.pre1(s1)]
        for n in self.nodes:
            states.append(n(states))
        return torch.cat(states[2:], 1)


class SubsetNetwork(nn.Module):
    """The stacked cells; ``[B, channels, H, W] -> [B, classes]``."""

    def __init__(
        self, channels: int, classes: int, C: int, nodes: int, prefixes: Sequence[str], reduce_at: Sequence[int],
        ops: Sequence[str], mean: bool, searching: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        known = darts_operations(searching) | plain_operations(not searching)
        made = {op: known[op] for op in ops}
        self.stem = conv_bn(channels, 3 * C)
        c0, c1, after = 3 * C, 3 * C, False
        self.cells = nn.ModuleList()
        for k, prefix in enumerate(prefixes):
            reduction = k in reduce_at
            C *= 1 + reduction
            self.cells.append(SubsetCell(prefix, c0, c1, C, nodes, made, mean, not searching, reduction, after))
            c0, c1, after = c1, nodes * C, reduction
        self.classifier = nn.Linear(c1, classes)

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            s0, s1 = s1, cell(s0, s1)
        return self.classifier(s1.mean((2, 3)))


class MicroSubsetNetwork(nn.Module):
    """Cells of four nodes behind each other; ``[B, channels, H, W] -> [B, classes]``."""

    def __init__(
        self, channels: int, classes: int, C: int, prefixes: Sequence[str], ops: Sequence[str], mean: bool, affine: bool
    ) -> None:
        super().__init__()
        known = edge_operations(affine)
        self.stem = conv_bn(channels, C)
        self.cells = nn.ModuleList(
            nn.ModuleList(node(f"{p}.n{j}", j, lambda op, i: known[op](C, 1), ops, mean) for j in (1, 2, 3))
            for p in prefixes
        )
        self.norm = nn.BatchNorm2d(C)
        self.classifier = nn.Linear(C, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            states = [x]
            for n in cell:  # type: ignore[attr-defined]
                states.append(n(states))
            x = states[-1]
        return self.classifier(torch.relu(self.norm(x)).mean((2, 3)))


class _Subsets(ModuleSpace):
    """What both spaces share: a searched network, and architectures as lists of pairs."""

    prefixes: list[str]

    def _make(self, built: Callable[[], nn.Module], searched: Callable[[], nn.Module], shape: Sequence[int]) -> None:
        self._searched = searched
        ModuleSpace.__init__(self, built, torch.zeros(2, *shape), self.name)
        self.nodes: dict[str, Subset] = {m.name: m for m in self._meta.modules() if isinstance(m, Subset)}

    def supernet(self, seed: int = 0) -> Supernet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Supernet(self._searched(), self)

    def pairs(self, arch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Node -> the pairs that it takes, as ``operation<source``."""
        return {name: subset.taken(arch) for name, subset in self.nodes.items()}

    def from_pairs(self, pairs: Mapping[str, Sequence[str]]) -> Arch:
        """The architecture that takes certain pairs; the reverse of :meth:`pairs`.

        Raises:
            SpaceError: a node without pairs, or an unknown pair.
        """
        found: Arch = {}
        for name, subset in self.nodes.items():
            found |= subset.arch(pairs.get(name, ()))
        return self.validate(found)


class SubsetSpace(_Subsets):
    """DARTS-like networks whose nodes take any subset of pairs.

    Args:
        input_shape: ``(channels, H, W)`` of the images.
        classes: number of classes.
        C: channels of the first cells; each reduction doubles them.
        layers: number of cells.
        nodes: of each cell.
        ops: operations that an edge may hold, any number of them at once.
        tie: ``"cell"`` (each decides for itself), ``"kind"`` (normal cells alike, reductions alike), or a number for
            each cell, where cells of the same number decide alike.
        reduce_at: cells that halve the resolution; L//3 and 2L//3 by default.
        mean: whether a decided node is the mean of its inputs rather than their sum.

    Raises:
        SpaceError: sizes, ties or operations that make no network; the message says which.

    >>> space = SubsetSpace((3, 32, 32), 10, C=2, layers=3, nodes=2)
    >>> space.size == ((2**4 - 1) * (2**6 - 1)) ** 3
    True
    """

    name = "subsets"

    def __init__(
        self, input_shape: Sequence[int], classes: int, C: int = 16, layers: int = 14, nodes: int = 4,
        ops: Sequence[str] = GOLD_OPS, tie: str | Sequence[int] = "cell", reduce_at: Sequence[int] | None = None,
        mean: bool = True,
    ) -> None:  # fmt: skip
        _check(input_shape, ops, {**darts_operations(False), **plain_operations(True)}, {"layers": layers, "C": C})
        if not 1 <= nodes <= 8:
            raise SpaceError(f"A cell has 1 to 8 nodes here, not {nodes}.")
        if reduce_at is None and layers < 3:
            raise SpaceError(f"{layers} cells cannot hold two reductions and a normal cell; take 3, or say reduce_at.")
        self.reduce_at = tuple(reductions(layers) if reduce_at is None else reduce_at)
        if len(set(self.reduce_at)) < len(self.reduce_at) or not all(0 <= k < layers for k in self.reduce_at):
            raise SpaceError(f"reduce_at names different cells from 0 to {layers - 1}, not {list(self.reduce_at)}.")
        if any(side % 2 ** len(self.reduce_at) for side in input_shape[1:]):
            raise SpaceError(
                f"{len(self.reduce_at)} reductions need sides divisible by {2 ** len(self.reduce_at)}, not "
                f"{input_shape[1]}x{input_shape[2]}. Pad or crop the images."
            )
        kinds = ["reduce" if k in self.reduce_at else "normal" for k in range(layers)]
        self.prefixes = _prefixes(kinds, tie)
        common = functools.partial(
            SubsetNetwork, input_shape[0], classes, C, nodes, self.prefixes, self.reduce_at, tuple(ops), mean
        )
        self._make(functools.partial(common, False), functools.partial(common, True), input_shape)


class MicroSubsets(_Subsets):
    """Very small networks of one-input cells with four nodes, of which each but the first takes any subset of pairs.

    Args:
        input_shape, classes, C, tie, mean: as for :class:`SubsetSpace`.
        cells: their number.
        ops: of the operations of NAS-Bench-201, without ``none``, which a subset expresses by leaving out.

    Raises:
        SpaceError: as for :class:`SubsetSpace`.

    >>> MicroSubsets((1, 8, 8), 10).size == ((2**2 - 1) * (2**4 - 1) * (2**6 - 1)) ** 3
    True
    """

    name = "micro-subsets"

    def __init__(
        self, input_shape: Sequence[int], classes: int, C: int = 8, cells: int = 3, ops: Sequence[str] = MICRO_OPS,
        tie: str | Sequence[int] = "cell", mean: bool = True,
    ) -> None:  # fmt: skip
        known = edge_operations()
        del known["none"]
        _check(input_shape, ops, known, {"cells": cells, "C": C})
        self.prefixes = _prefixes(["cell"] * cells, tie)
        common = functools.partial(MicroSubsetNetwork, input_shape[0], classes, C, self.prefixes, tuple(ops), mean)
        self._make(functools.partial(common, True), functools.partial(common, False), input_shape)


def _check(shape: Sequence[int], ops: Sequence[str], known: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    if len(shape) != 3:
        raise SpaceError(f"Cells take images (channels, height, width), not inputs of shape {tuple(shape)}.")
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise SpaceError(f"{name} must be a positive integer, not {value!r}.")
    for op in ops:
        if op not in known or op == "none":
            raise SpaceError(f"A node cannot take operation {op!r}. {suggest(op, set(known) - {'none'})}")
    if not ops or len(set(ops)) < len(ops):
        raise SpaceError(f"Operations must be different and at least one, not {list(ops)}.")


def _prefixes(kinds: Sequence[str], tie: str | Sequence[int]) -> list[str]:
    """The prefix of each cell's decisions."""
    if isinstance(tie, str):
        if tie not in ("cell", "kind"):
            raise SpaceError(f"Cells can be tied by cell, kind or a list of numbers, not {tie!r}.")
        return [f"{kind}{k}" if tie == "cell" else kind for k, kind in enumerate(kinds)]
    if len(tie) != len(kinds):
        raise SpaceError(f"tie has a number for each of the {len(kinds)} cells, not {len(tie)}.")
    return [f"cell{i}" for i in tie]
