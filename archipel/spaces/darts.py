"""The DARTS space: two cells, one that keeps the resolution and one that halves it, stacked into a network.

Liu, Simonyan, Yang. DARTS: Differentiable Architecture Search. 2018. https://arxiv.org/abs/1806.09055

    cell    states 0 and 1 are the outputs of the two cells before it; each later state sums two edges from earlier
            states, each edge one of seven operations; the output is the later states side by side (4C channels)
    network 3x3 convolution to 3C -> L cells, of which number L//3 and 2L//3 reduce and double C -> mean -> linear

Decisions: ``normal.e13`` is the operation between states 1 and 3 of all normal cells, ``normal.n3`` the two states that
state 3 sums; an edge's operation is open where the edge is taken. There are (180 * 7^8)^2 architectures with 4 nodes.
The zero operation takes part in mixtures but cannot be chosen. ``tie`` says which cells share decisions: all of a kind
(the paper), those between two reductions, or none.

The searched network has batch norms without affine parameters and normalised pools; ``build`` makes the network that is
trained on its own: affine, plain pools, optionally an auxiliary classifier and drop-path. No known difference.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import torch
from torch import nn

from archipel.core.choice import Fixed
from archipel.core.decision import Arch
from archipel.core.errors import SpaceError, suggest
from archipel.core.extract import extract
from archipel.spaces.darts_network import AUXILIARY_SIDES, Cell, CellNetwork, reductions
from archipel.spaces.genotypes import Genotype, read_cells
from archipel.spaces.operation_sets import DARTS_SETS
from archipel.spaces.operations import (
    CellSpace,
    EdgeFactory,
    choice_edge,
    chosen_edge,
)

TIES = ("kind", "level", "cell")


def cell_names(layers: int, tie: str) -> list[str]:
    """The prefix of each cell's decisions.

    >>> cell_names(4, "level")
    ['normal0', 'reduce', 'reduce', 'normal2']
    """
    first, second = reductions(layers)
    names = []
    for k in range(layers):
        kind = "reduce" if k in (first, second) else "normal"
        if tie == "cell":
            names.append(f"{kind}{k}")
        else:
            names.append(f"normal{(k > first) + (k > second)}" if tie == "level" and kind == "normal" else kind)
    return names


class DartsSpace(CellSpace):
    """Networks of normal and reduction cells.

    Args:
        input_shape: ``(channels, H, W)`` of the images.
        classes: number of classes.
        C: channels of the first cells of the network that is built.
        layers: its number of cells, at least 3.
        search_C, search_layers: the same for the searched network; as the built one by default.
        nodes: states that each cell computes.
        tie: which cells share their decisions: ``"kind"``, ``"level"`` or ``"cell"``.
        auxiliary: whether built networks have an auxiliary classifier (a pair of logits while training).
        drop_path: final probability of leaving a path of a built network out; see
            :func:`~archipel.spaces.darts_network.set_drop_path`.
        ops: the operations of every edge, all by default; ``"none"``, where it is among them, can only be blended.
        search_auxiliary: whether the searched network has an auxiliary classifier too.
        operations: which set they are from, such as ``"darts"``, ``"sharp"`` or ``"binary"``; see
            :mod:`archipel.spaces.operation_sets`.

    Raises:
        SpaceError: sizes that make no network; the message says which.

    >>> from archipel.spaces.genotypes import PC_DARTS_CIFAR
    >>> space = DartsSpace((3, 32, 32), 10, C=36, layers=20)
    >>> space.size == (180 * 7**8) ** 2, space.cost.params(space.from_genotype(PC_DARTS_CIFAR))
    (True, 3634678)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        C: int = 16,
        layers: int = 8,
        search_C: int | None = None,
        search_layers: int | None = None,
        nodes: int = 4,
        tie: str = "kind",
        auxiliary: bool = False,
        drop_path: float = 0.0,
        ops: Sequence[str] | None = None,
        search_auxiliary: bool = False,
        operations: str = "darts",
    ) -> None:
        self.searched = (C if search_C is None else search_C, layers if search_layers is None else search_layers)
        self.nodes, self.tie = nodes, tie
        self.prefixes = cell_names(layers, tie)
        self._check(tuple(input_shape), layers, nodes, tie, auxiliary or search_auxiliary, drop_path)
        if operations not in DARTS_SETS:
            raise SpaceError(f"There is no set of operations {operations!r}. {suggest(operations, DARTS_SETS)}")
        known = tuple(DARTS_SETS[operations].operations(True, 0.0))
        unknown = [op for op in ops or () if op not in known]
        if unknown:
            raise SpaceError(f"A DARTS cell has no operation {unknown[0]!r}. {suggest(unknown[0], known)}")
        mixed = {"ops": known if ops is None else tuple(ops), "operations": DARTS_SETS[operations]}
        common = {"channels": input_shape[0], "classes": classes, "nodes": nodes, **mixed}
        self._built = functools.partial(
            CellNetwork, **common, C=C, layers=layers, prefixes=self.prefixes, searching=False,
            auxiliary=auxiliary, drop_path=drop_path,
        )  # fmt: skip
        self._searched = functools.partial(
            CellNetwork, **common, C=self.searched[0], layers=self.searched[1],
            prefixes=cell_names(self.searched[1], tie), searching=True, auxiliary=search_auxiliary,
        )  # fmt: skip
        # One cell of each kind shows all decisions; a large network with all alternatives is never needed for that.
        kinds = list(dict.fromkeys(self.prefixes))
        structure = functools.partial(_one_of_each, kinds, nodes, **mixed)
        super().__init__(structure, torch.zeros(2, *input_shape), "darts")
        self.factory = functools.partial(self._built, edge=choice_edge)

    def _check(
        self, shape: tuple[int, ...], layers: int, nodes: int, tie: str, auxiliary: bool, drop_path: float
    ) -> None:
        if len(shape) != 3:
            raise SpaceError(f"DARTS cells take images (channels, height, width), not inputs of shape {shape}.")
        if min(layers, self.searched[1]) < 3:
            raise SpaceError(f"DARTS needs at least 3 cells, one of them normal; got {min(layers, self.searched[1])}.")
        if not 1 <= nodes <= 8:
            raise SpaceError(f"A DARTS cell has 1 to 8 nodes, not {nodes}.")
        if tie not in TIES:
            raise SpaceError(f"Cells can be tied by {', '.join(TIES)}, not {tie!r}. {suggest(tie, TIES)}")
        if tie != "kind" and layers != self.searched[1]:
            raise SpaceError(
                f"Cells tied by {tie!r} have other decisions in {self.searched[1]} searched cells than in {layers} "
                f"built ones; give layers and search_layers the same number, or tie='kind'."
            )
        if any(side % 4 for side in shape[1:]):
            raise SpaceError(
                f"Two reductions halve the images twice, so their sides must be divisible by 4, not "
                f"{shape[1]}x{shape[2]}. Pad or crop them."
            )
        if auxiliary and any(side // 4 not in AUXILIARY_SIDES for side in shape[1:]):
            raise SpaceError(
                f"The auxiliary classifier needs feature maps of 8x8 to 10x10 after two reductions, that is images of "
                f"32x32 to 40x40, not {shape[1]}x{shape[2]}. Leave it out with auxiliary=False."
            )
        if not 0.0 <= drop_path < 1.0:
            raise SpaceError(f"drop_path is a probability below 1, not {drop_path!r}.")

    def cells(self, edge: EdgeFactory) -> nn.Module:
        return self._searched(edge=edge)

    def build_meta(self, arch: Arch) -> nn.Module:
        arch = self.validate(arch)
        with torch.device("meta"):
            net = self._built(edge=chosen_edge(arch))
        return extract(net, Fixed(arch))

    # --- what an architecture looks like ---------------------------------------------------------------------------

    def pairs(self, arch: Mapping[str, Any], prefix: str) -> list[list[tuple[str, int]]]:
        """(operation, source) of the two edges of each node of a cell."""
        out = []
        for j in range(2, 2 + self.nodes):
            sources = [int(i) for i in arch[f"{prefix}.n{j}"].split(",")]
            out.append([(arch[f"{prefix}.e{i}{j}"], i) for i in sources])
        return out

    def to_genotype(self, arch: Arch) -> Genotype:
        """The architecture as papers print it, edges of a node in the order of their sources.

        Raises:
            SpaceError: cells of a kind may differ (``tie`` is not ``"kind"``).
        """
        self._only_kinds()
        arch = self.validate(arch)
        cells = {kind: tuple(itertools.chain(*self.pairs(arch, kind))) for kind in ("normal", "reduce")}
        return Genotype(**cells, concat=tuple(range(2, 2 + self.nodes)))

    def from_genotype(self, genotype: Genotype) -> Arch:
        """The architecture that a genotype names.

        Raises:
            SpaceError: the genotype is of other cells; see :func:`~archipel.spaces.genotypes.read_cells`.
        """
        self._only_kinds()
        return self.validate(read_cells(genotype, self.nodes))

    def _only_kinds(self) -> None:
        if self.tie != "kind":
            raise SpaceError(f"A genotype has one normal and one reduction cell; these are tied by {self.tie!r}.")

    def canonical(self, arch: Arch) -> str:
        """Equal for cells that differ only in the order of their nodes (which only permutes output channels)."""
        return json.dumps({p: _canonical_cell(self.pairs(arch, p)) for p in dict.fromkeys(self.prefixes)})

    def graph(self, arch: Arch) -> nx.DiGraph:
        """The cells: states as nodes (``normal.2``), operations as labels of edges."""
        g = nx.DiGraph(name=self.name)
        for prefix in dict.fromkeys(self.prefixes):
            for s, label in enumerate(["cell k-2", "cell k-1", *map(str, range(2, 2 + self.nodes))]):
                g.add_node(f"{prefix}.{s}", label=label)
            g.add_node(f"{prefix}.out", label=f"{prefix} output")
            for j, edges in enumerate(self.pairs(arch, prefix), start=2):
                g.add_edges_from((f"{prefix}.{i}", f"{prefix}.{j}", {"label": op}) for op, i in edges)
                g.add_edge(f"{prefix}.{j}", f"{prefix}.out", label="")
        return g


def _canonical_cell(nodes: list[list[tuple[str, int]]]) -> list[list[tuple[str, int]]]:
    """The smallest way to write a cell over all orders of its nodes that keep sources before their users."""
    best: list[list[tuple[str, int]]] | None = None
    for order in itertools.permutations(range(len(nodes))):
        place = {0: 0, 1: 1, **{old + 2: new + 2 for new, old in enumerate(order)}}
        moved = [sorted((op, place[i]) for op, i in nodes[old]) for old in order]
        if all(i < j for j, edges in enumerate(moved, start=2) for _, i in edges) and (best is None or moved < best):
            best = moved
    assert best is not None  # the order given is one of them
    return best


def _one_of_each(prefixes: Sequence[str], nodes: int, **mixed: Any) -> nn.Module:
    return nn.ModuleList([Cell(p, 2, 2, 2, nodes, False, False, False, choice_edge, 0.0, **mixed) for p in prefixes])
