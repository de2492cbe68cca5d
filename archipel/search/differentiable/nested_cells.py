"""Architectures whose cells differ: how far apart they are, deeper ones of the same cells, and hand-made ones.

Heuillet, Tabia, Arioui, Youcef-Toumi. D-DARTS: Distributed Differentiable Architecture Search. 2021.
https://arxiv.org/abs/2108.09306

    edges      d(u, v) = Σ_k ω_k [u_k ≠ v_k] / Σ_k ω_k      u, v ∈ {0, 1}^O: which operations two edges hold
    cells      max(h(A, B), h(B, A)),   h(A, B) = max_{u ∈ A} min_{v ∈ B} d(u, v)                    (Hausdorff)
    networks   mean over cells; a cell that the shorter one lacks counts 1

ω_k is the measured accuracy of networks that use operation k. A network of L' cells repeats C searched ones: at L'//3
and 2L'//3 stand the two reductions, and each stretch between them cycles through the searched cells of that stretch.
Departure: the reference code's formula for that repeats cells unevenly by a slip of operator precedence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.spaces.darts_network import reductions
from archipel.spaces.plain_operations import ALL_OPS
from archipel.spaces.subsets import SubsetSpace

# Mean test accuracies (%) by operation; facts from github.com/aheuillet/D-DARTS (``op_stats.json``).
OPERATION_ACCURACY = {
    "conv_3x1_1x3": 82.105830863444,
    "conv_7x1_1x7": 83.1591640991211,
    "max_pool_3x3": 82.13416411336264,
    "avg_pool_3x3": 81.56333073120116,
    "skip_connect": 81.34166406249999,
    "simple_conv_1x1": 81.49166413777668,
    "simple_conv_3x3": 82.30333082275389,
    "sep_conv_3x3": 83.39583075561525,
    "sep_conv_5x5": 84.97416410115558,
    "dil_conv_3x3": 82.73583073323566,
    "dil_conv_5x5": 82.89249749959309,
    "bottleneck_1x3x1": 82.87499756469727,
}
# One residual stage of ResNet18 (https://arxiv.org/abs/1512.03385) as a cell: node -> its pairs.
RESNET18_CELL = {
    2: ["simple_conv_3x3<0"],
    3: ["simple_conv_3x3<2", "skip_connect<0"],
    4: ["simple_conv_3x3<3"],
    5: ["simple_conv_3x3<4", "skip_connect<3"],
}
RESNET18_REDUCTIONS = (1, 2, 3)

Pairs = Mapping[str, Sequence[str]]  # node -> pairs, of one cell


def cell_matrix(nodes: Pairs, edges: Sequence[tuple[str, int]], ops: Sequence[str]) -> np.ndarray:
    """A cell as a matrix ``[edges, operations]`` of zeros and ones.

    Args:
        nodes: node -> its pairs, as ``operation<source``.
        edges: (node, source) of each row.
        ops: of each column.
    """
    return np.array([[f"{op}<{i}" in nodes.get(n, ()) for op in ops] for n, i in edges], dtype=np.int8)


def hausdorff(A: np.ndarray, B: np.ndarray, omega: Sequence[float]) -> float:
    """Distance of two cells given as matrices ``[E, O]``, weighted over operations; from 0 to 1.

    >>> hausdorff(np.array([[1, 0]]), np.array([[0, 1], [1, 0]]), [1.0, 3.0])
    1.0
    """
    w = np.asarray(omega, dtype=float)
    if A.shape[1] != len(w) or B.shape[1] != len(w):
        raise UsageError(f"Cells of {A.shape[1]} and {B.shape[1]} operations, but {len(w)} weights.")
    d_AB = (A[:, None] != B[None]) @ (w / w.sum())
    return float(max(d_AB.min(1).max(), d_AB.min(0).max()))


def distance(first: Sequence[np.ndarray], second: Sequence[np.ndarray], omega: Sequence[float]) -> float:
    """Distance of two networks given as lists of cells; from 0 to 1."""
    together = [hausdorff(a, b, omega) for a, b in zip(first, second)]
    longer = max(len(first), len(second))
    return (sum(together) + longer - len(together)) / longer


def cells_of(pairs: Pairs) -> list[dict[str, list[str]]]:
    """Cells in order, each as node (without the cell's name) -> pairs, from a space's ``pairs(arch)``."""
    cells: dict[str, dict[str, list[str]]] = {}
    for name, taken in pairs.items():
        cell, node = name.rsplit(".", 1)
        cells.setdefault(cell, {})[node] = list(taken)
    return list(cells.values())


def architecture_distance(first: Pairs, second: Pairs, omega: Mapping[str, float] | None = None) -> float:
    """Distance of two networks from what their nodes take.

    Args:
        first, second: node -> pairs; what ``pairs(arch)`` of a space gives.
        omega: operation -> weight; :data:`OPERATION_ACCURACY` by default.

    Raises:
        UsageError: an operation without a weight.
    """
    weights = dict(omega or OPERATION_ACCURACY)
    cells = [cells_of(first), cells_of(second)]
    nodes = list(dict.fromkeys(n for network in cells for cell in network for n in cell))
    used = [p.split("<") for network in cells for cell in network for ps in cell.values() for p in ps]
    unknown = [op for op, _ in used if op not in weights]
    if unknown:
        raise UsageError(f"Operation {unknown[0]!r} has no weight; weights are given for {', '.join(weights)}.")
    edges = [(n, i) for n in nodes for i in range(int(n.lstrip("n")))]
    first_cells, second_cells = ([cell_matrix(c, edges, list(weights)) for c in network] for network in cells)
    return distance(first_cells, second_cells, list(weights.values()))


def deeper_positions(layers: int, searched: int) -> list[int]:
    """Which searched cell stands at each place of a network of ``layers`` cells.

    Raises:
        UsageError: fewer than 3 cells, or a stretch for which no cell was searched.

    >>> deeper_positions(14, 8)
    [0, 1, 0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 6, 7]
    """
    if min(layers, searched) < 3:
        raise UsageError(f"Two reductions and a normal cell are at least 3 cells, not {min(layers, searched)}.")
    first, second = reductions(searched)
    stretches = [list(range(first)), list(range(first + 1, second)), list(range(second + 1, searched))]
    new = reductions(layers)
    out: list[int] = []
    for place in range(layers):
        if place in new:
            out.append((first, second)[new.index(place)])
            continue
        k = (place > new[0]) + (place > new[1])
        if not stretches[k]:
            where = ("before", "between", "after")[k]
            raise UsageError(
                f"Of {searched} searched cells none stands {where} the reductions, but place {place} does."
            )
        begin = (0, new[0] + 1, new[1] + 1)[k]
        out.append(stretches[k][(place - begin) % len(stretches[k])])
    return out


def deepen(space: SubsetSpace, arch: Arch, deeper: SubsetSpace) -> Arch:
    """A searched network's cells in a deeper one; see :func:`deeper_positions`.

    Raises:
        UsageError: cells that are tied (a network started from a hand-made one), or other than two reductions.
    """
    for s in (space, deeper):
        if len(s.reduce_at) != 2 or s.reduce_at != reductions(len(s.prefixes)):
            raise UsageError(
                f"Deeper networks are only defined for two reductions, at a third and two thirds of the cells, not at "
                f"{list(s.reduce_at)} of {len(s.prefixes)}."
            )
        if len(set(s.prefixes)) < len(s.prefixes):
            raise UsageError(
                "Deeper networks are made of cells that were searched one by one; these share their decisions, as "
                "those that started from a hand-made network do. Use tie='cell'."
            )
    cells = cells_of(space.pairs(space.validate(arch)))
    index = deeper_positions(len(deeper.prefixes), len(space.prefixes))
    return deeper.from_pairs({f"{p}.{n}": ps for p, i in zip(deeper.prefixes, index) for n, ps in cells[i].items()})


def resnet18_space(input_shape: Sequence[int], classes: int, C: int = 16) -> tuple[SubsetSpace, Arch]:
    """The space that a search from ResNet18 runs in, and ResNet18 in it: four cells that decide alike."""
    cells = len(RESNET18_REDUCTIONS) + 1
    space = SubsetSpace(
        input_shape, classes, C, layers=cells, ops=ALL_OPS, tie=[0] * cells, reduce_at=RESNET18_REDUCTIONS
    )
    return space, space.from_pairs({f"cell0.n{j}": pairs for j, pairs in RESNET18_CELL.items()})
