"""NAS-Bench-201 cells as codes: the published string, plain architectures, and canonical forms.

Dong, Yang. NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search. 2020.
https://arxiv.org/abs/2001.00326
Wu, Liu, Deng, Chrysos, Cevher. Robust NAS under adversarial training: benchmark, theory, and beyond. 2024.
https://arxiv.org/abs/2403.13134  (the count of 6,466 distinct cells)

A cell has nodes 0 (input) to 3 (output) and one operation on each of the six edges i -> j, i < j; node j is the sum of
what arrives. Canonical form of node j: the sorted terms of its edges joined by '+', where the term of edge i -> j is

    rule "skip"   the form of i for a skip, else '(form of i)@operation'                               12,751 forms
    rule "zero"   also '#' if the operation is none or the form of i is '#'                             6,466 forms
    rule "live"   also leaves out '#' beside other terms; a node that receives only '#' is itself '#'   5,390 forms

"zero" is the published count and what :meth:`NB201Codes.canonical` uses. It still tells apart some cells that compute
the same function (a node that sums two zeros is '#+#', which is not '#'); "live" is our completion of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from archipel.core.decision import Arch, Decision
from archipel.core.errors import SpaceError, suggest
from archipel.core.space import Space

if TYPE_CHECKING:
    import networkx as nx

Genome = tuple[str, ...]

# Grouped by the node that an edge enters, as in the published string.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
EDGE_NAMES = ("e01", "e02", "e12", "e03", "e13", "e23")
OPS = ("none", "skip", "conv1x1", "conv3x3", "avgpool3x3")
STRING_CODES = {
    "none": "none",
    "skip": "skip_connect",
    "conv1x1": "nor_conv_1x1",
    "conv3x3": "nor_conv_3x3",
    "avgpool3x3": "avg_pool_3x3",
}
_OP_OF_CODE = {code: op for op, code in STRING_CODES.items()}
RULES = ("skip", "zero", "live")
EXAMPLE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def genome_of(arch: Mapping[str, Any]) -> Genome:
    """The six operations in the order of :data:`EDGES`.

    Raises:
        SpaceError: a missing edge or an unknown operation.
    """
    missing = [name for name in EDGE_NAMES if name not in arch]
    if missing:
        raise SpaceError(f"A NAS-Bench-201 cell needs an operation on all six edges; missing: {', '.join(missing)}.")
    return check_genome(tuple([arch[name] for name in EDGE_NAMES]))


def check_genome(genome: Genome) -> Genome:
    """The genome itself, if it is six known operations.

    Raises:
        SpaceError: another length, or an unknown operation.
    """
    if len(genome) != len(EDGES):
        raise SpaceError(f"A NAS-Bench-201 genome has {len(EDGES)} operations, not {len(genome)}: {genome!r}.")
    for name, op in zip(EDGE_NAMES, genome):
        if op not in OPS:
            raise SpaceError(f"Edge {name} has no operation {op!r}. {suggest(str(op), OPS)}")
    return genome


def arch_of(genome: Genome) -> Arch:
    """The architecture of six operations in the order of :data:`EDGES`."""
    return dict(zip(EDGE_NAMES, check_genome(tuple(genome))))


def to_string(arch: Mapping[str, Any]) -> str:
    """The published string of a cell.

    >>> to_string(arch_of(("conv3x3", "none", "skip", "conv1x1", "avgpool3x3", "none")))
    '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|none~2|'
    """
    op_of = dict(zip(EDGES, genome_of(arch)))
    nodes = (f"|{'|'.join(f'{STRING_CODES[op_of[i, j]]}~{i}' for i in range(j))}|" for j in (1, 2, 3))
    return "+".join(nodes)


def from_string(text: str) -> Arch:
    """The architecture that a published string names.

    Raises:
        SpaceError: not three nodes with one, two and three inputs, or an unknown operation; names the place.

    >>> from_string("|none~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_3x3~2|")["e23"]
    'conv3x3'
    """
    if not isinstance(text, str):
        raise SpaceError(f"A NAS-Bench-201 cell is a string like {EXAMPLE!r}, not {type(text).__name__}.")
    nodes = text.strip().split("+")
    if len(nodes) != 3:
        raise SpaceError(
            f"A NAS-Bench-201 cell has 3 nodes joined by '+', not {len(nodes)}: {text!r}. Like {EXAMPLE!r}."
        )
    ops: list[str] = []
    for j, node in enumerate(nodes, start=1):
        if len(node) < 2 or node[0] != "|" or node[-1] != "|":
            raise SpaceError(f"Node {j} of {text!r} must stand between two '|', as in {EXAMPLE!r}, not {node!r}.")
        tokens = node[1:-1].split("|")
        if len(tokens) != j:
            raise SpaceError(f"Node {j} of {text!r} has {j} inputs, not {len(tokens)}: {node!r}.")
        ops.extend(_parse_edge(token, i, j, text) for i, token in enumerate(tokens))
    return dict(zip(EDGE_NAMES, ops))


def _parse_edge(token: str, i: int, j: int, text: str) -> str:
    code, _, source = token.partition("~")
    if source != str(i):
        raise SpaceError(f"Input {i} of node {j} in {text!r} must be 'operation~{i}', not {token!r}.")
    if code not in _OP_OF_CODE:
        raise SpaceError(f"Input {i} of node {j} in {text!r}: no operation {code!r}. {suggest(code, _OP_OF_CODE)}")
    return _OP_OF_CODE[code]


@lru_cache(maxsize=3 * 5**6)
def canonical_form(genome: Genome, rule: str = "zero") -> str:
    """The canonical string of a cell; the rules are in the module's docstring.

    >>> cell = ("conv3x3", "none", "skip", "none", "none", "conv1x1")
    >>> canonical_form(cell), canonical_form(cell, "live")
    ('#+#+(#+(0)@conv3x3)@conv1x1', '((0)@conv3x3)@conv1x1')

    Raises:
        SpaceError: an unknown rule.
    """
    if rule not in RULES:
        raise SpaceError(f"No canonical rule {rule!r}. {suggest(rule, RULES)}")
    form = {0: "0"}
    for j in (1, 2, 3):
        terms = []
        for (i, target), op in zip(EDGES, genome):
            if target != j:
                continue
            if rule != "skip" and (op == "none" or form[i] == "#"):
                terms.append("#")
            else:
                terms.append(form[i] if op == "skip" else f"({form[i]})@{op}")
        if rule == "live":
            terms = [t for t in terms if t != "#"] or ["#"]
        form[j] = "+".join(sorted(terms))
    return form[3]


class NB201Codes(Space):
    """The 15,625 NAS-Bench-201 cells by name only; tables look them up, a subclass may build them.

    >>> space = NB201Codes()
    >>> space.size
    15625
    """

    name = "nb201"

    def __init__(self) -> None:
        super().__init__([Decision(name, OPS) for name in EDGE_NAMES])

    def canonical(self, arch: Arch) -> str:
        return canonical_form(genome_of(arch))

    def representative(self, arch: Arch, rule: str = "zero") -> Arch:
        """The first cell, in the order of :meth:`enumerate`, with the same canonical form."""
        return arch_of(_representatives(rule)[canonical_form(genome_of(arch), rule)])

    def graph(self, arch: Arch) -> nx.DiGraph:
        """Four nodes, and an edge labelled with its operation for every operation but none."""
        import networkx as nx

        g = nx.DiGraph(name=self.name)
        for node, label in enumerate(("input", "1", "2", "output")):
            g.add_node(node, label=label)
        for (i, j), op in zip(EDGES, genome_of(arch)):
            if op != "none":
                g.add_edge(i, j, label=op)
        return g


@lru_cache(maxsize=len(RULES))
def _representatives(rule: str) -> dict[str, Genome]:
    first: dict[str, Genome] = {}
    for arch in NB201Codes().enumerate():
        genome = tuple(arch.values())
        first.setdefault(canonical_form(genome, rule), genome)
    return first
