"""Genotypes: DARTS cells as papers print them, and some published ones.

    normal = [(operation, source), (operation, source),  ... two for each node in turn],  concat = nodes put out

Sources 0 and 1 are the two cells before. Cells are facts from github.com/quark0/darts (``cnn/genotypes.py``) and
github.com/yuhuixu1993/PC-DARTS (``genotypes.py``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from archipel.core.decision import Arch
from archipel.core.errors import SpaceError, suggest
from archipel.spaces.operations import DARTS_OPS

Pairs = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Genotype:
    """A normal and a reduction cell: (operation, source) of two edges of each node in turn, and the nodes put out."""

    normal: Pairs
    reduce: Pairs
    concat: tuple[int, ...] = (2, 3, 4, 5)


def pairs(text: str) -> Pairs:
    """Edges from words such as ``sep_conv_3x3<0``.

    >>> pairs("sep_conv_3x3<0 skip_connect<1")
    (('sep_conv_3x3', 0), ('skip_connect', 1))
    """
    out = []
    for word in text.split():
        match = re.fullmatch(r"(\w+)<(\d+)", word)
        if match is None:
            raise SpaceError(f"An edge is written operation<source, as in sep_conv_3x3<0, not {word!r}.")
        out.append((match[1], int(match[2])))
    return tuple(out)


DARTS_V2 = Genotype(
    normal=pairs(
        "sep_conv_3x3<0 sep_conv_3x3<1  sep_conv_3x3<0 sep_conv_3x3<1  sep_conv_3x3<1 skip_connect<0 "
        "skip_connect<0 dil_conv_3x3<2"
    ),
    reduce=pairs(
        "max_pool_3x3<0 max_pool_3x3<1  skip_connect<2 max_pool_3x3<1  max_pool_3x3<0 skip_connect<2 "
        "skip_connect<2 max_pool_3x3<1"
    ),
)
PC_DARTS_CIFAR = Genotype(
    normal=pairs(
        "sep_conv_3x3<1 skip_connect<0  sep_conv_3x3<0 dil_conv_3x3<1  sep_conv_5x5<0 sep_conv_3x3<1 "
        "avg_pool_3x3<0 dil_conv_3x3<1"
    ),
    reduce=pairs(
        "sep_conv_5x5<1 max_pool_3x3<0  sep_conv_5x5<1 sep_conv_5x5<2  sep_conv_3x3<0 sep_conv_3x3<3 "
        "sep_conv_3x3<1 sep_conv_3x3<2"
    ),
)
GENOTYPES = {"DARTS_V2": DARTS_V2, "PC_DARTS_cifar": PC_DARTS_CIFAR}


def read_cells(genotype: Genotype, nodes: int = 4) -> Arch:
    """The decisions that a genotype takes.

    Raises:
        SpaceError: another number of edges, an unknown operation, a source that is not earlier, both edges of a node
            from one source, or an output that is not all nodes.
    """
    if tuple(genotype.concat) != tuple(range(2, 2 + nodes)):
        raise SpaceError(f"Cells here put out states 2 to {1 + nodes}, not {list(genotype.concat)}.")
    arch: Arch = {}
    for kind in ("normal", "reduce"):
        edges = getattr(genotype, kind)
        if len(edges) != 2 * nodes:
            raise SpaceError(f"The {kind} cell needs {2 * nodes} (operation, source) pairs, not {len(edges)}.")
        for n in range(nodes):
            _read_node(arch, kind, n + 2, edges[2 * n : 2 * n + 2])
    return arch


def _read_node(arch: Arch, kind: str, j: int, edges: Sequence[tuple[str, int]]) -> None:
    low, high = sorted(i for _, i in edges)
    if not 0 <= low < high < j:
        raise SpaceError(
            f"State {j} of the {kind} cell sums two different states below {j}, not states {low} and {high}."
        )
    arch[f"{kind}.n{j}"] = f"{low},{high}"
    for op, i in edges:
        if op not in DARTS_OPS:
            raise SpaceError(f"State {j} of the {kind} cell has no operation {op!r}. {suggest(op, DARTS_OPS)}")
        arch[f"{kind}.e{i}{j}"] = op
