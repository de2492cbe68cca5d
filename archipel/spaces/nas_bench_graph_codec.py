"""NAS-Bench-Graph architectures as codes: a macro structure, four operations, and a canonical form.

Qin, Zhang, Wang, Zhang, Zhu. NAS-Bench-Graph: Benchmarking Graph Neural Architecture Search. 2022.
https://arxiv.org/abs/2206.09166

Four computing nodes; each reads one earlier node or the raw input, so that the network is a tree under the input, and
all leaves feed the output together. Up to the order of the nodes there are nine such trees (``macro``: the source of
each node, 0 the input). Canonical form: a node that skips is the same as its source, so it is contracted; a leaf that
skips stays, as a residual connection from its source to the output, unless it is its source's only reader (the source
is then the leaf) or its source is the raw input (whose width does not fit); siblings are sorted. The all-skip networks
are no architectures. That gives 26,206 networks with nine operations, 2,021 with the five of the proteins graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING, Any

from archipel.core.decision import Arch, Decision
from archipel.core.errors import SpaceError
from archipel.core.space import Space

if TYPE_CHECKING:
    import networkx as nx

MACROS = ("0000", "0001", "0011", "0012", "0013", "0111", "0112", "0122", "0123")
OPS = ("gat", "gcn", "gin", "cheb", "sage", "arma", "graph", "fc", "skip")
PROTEINS_OPS = ("gcn", "sage", "arma", "fc", "skip")
OP_NAMES = ("op1", "op2", "op3", "op4")


@lru_cache(maxsize=len(MACROS) * len(OPS) ** 4)
def canonical_form(macro: str, ops: tuple[str, ...]) -> str:
    """The network as nested sums, equal for equal networks; empty if nothing but skips is left.

    >>> canonical_form("0121", ("gcn", "gin", "fc", "cheb")), canonical_form("0112", ("gcn", "gin", "cheb", "fc"))
    ('gcn(cheb+gin(fc))', 'gcn(cheb+gin(fc))')
    >>> canonical_form("0012", ("skip", "gat", "skip", "skip"))
    'gat'
    """
    sources = [int(s) for s in macro]

    def readers(node: int) -> list[str]:
        terms: list[str] = []
        for child, (source, op) in enumerate(zip(sources, ops), start=1):
            if source != node:
                continue
            if op == "skip":
                terms += readers(child) if child in sources else ["skip"]
            else:
                below = sorted(readers(child))
                terms.append(op if below in ([], ["skip"]) else f"{op}({'+'.join(below)})")
        return terms

    return "+".join(sorted(t for t in readers(0) if t != "skip"))


class GraphNASCodes(Space):
    """Nine macro structures and four operations each; all-skip networks are not among them.

    Args:
        ops: the operations, in the table's order; ``"skip"`` must be one of them.

    >>> GraphNASCodes().size
    59040
    """

    name = "nas-bench-graph"

    def __init__(self, ops: Sequence[str] = OPS) -> None:
        if "skip" not in ops or len(ops) < 2:
            raise SpaceError(f"The operations must include 'skip' and another one, not only {tuple(ops)!r}.")
        super().__init__([Decision("macro", MACROS), *(Decision(name, ops) for name in OP_NAMES)])

    @property
    def size(self) -> int:
        """Number of valid codes; see :meth:`canonical` for how many different networks those are."""
        return int(super().size) - len(MACROS)

    @staticmethod
    def _empty(arch: Mapping[str, Any]) -> bool:
        return all(arch[name] == "skip" for name in OP_NAMES)

    def validate(self, arch: Any) -> Arch:
        checked = super().validate(arch)
        if self._empty(checked):
            raise SpaceError("All four operations are 'skip', which leaves no network; make at least one another one.")
        return checked

    def sample(self, rng: Random) -> Arch:
        return self._nonempty(super().sample, rng)

    def mutate(self, arch: Arch, rng: Random) -> Arch:
        return self._nonempty(super().mutate, arch, rng)

    def crossover(self, first: Arch, second: Arch, rng: Random) -> Arch:
        return self._nonempty(super().crossover, first, second, rng)

    def complete(self, partial: Mapping[str, Any], rng: Random) -> Arch:
        arch = super().complete(partial, rng)
        if self._empty(arch):
            name = OP_NAMES[int(rng.random() * len(OP_NAMES))]
            arch[name] = self.by_name[name].move("skip", rng)
        return arch

    def enumerate(self) -> Iterable[Arch]:
        return (a for a in super().enumerate() if not self._empty(a))

    def _nonempty(self, draw: Callable[..., Arch], *args: Any) -> Arch:
        while self._empty(arch := draw(*args)):  # a redraw keeps the distribution uniform over what is left
            pass
        return arch

    def canonical(self, arch: Arch) -> str:
        return canonical_form(arch["macro"], tuple([arch[name] for name in OP_NAMES]))

    def graph(self, arch: Arch) -> nx.DiGraph:
        """Input, four labelled nodes, and the output that all leaves feed."""
        import networkx as nx

        g = nx.DiGraph(name=self.name)
        g.add_node(0, label="input")
        sources = [int(s) for s in arch["macro"]]
        for node, (source, name) in enumerate(zip(sources, OP_NAMES), start=1):
            g.add_node(node, label=arch[name])
            g.add_edge(source, node)
        g.add_node("output", label="output")
        g.add_edges_from((node, "output") for node in range(1, 5) if node not in sources)
        return g


def decode_key(key: int) -> tuple[str, tuple[str, ...]]:
    """Macro structure and operations of a table key: five decimal digits, indices into the two lists.

    Raises:
        SpaceError: not such a number.

    >>> decode_key(50018)
    ('0111', ('gat', 'gat', 'gcn', 'skip'))
    """
    digits = [key // 10**i % 10 for i in (4, 3, 2, 1, 0)] if isinstance(key, int) and 0 <= key < 10**5 else []
    if not digits or max(digits) >= len(OPS):
        raise SpaceError(f"A NAS-Bench-Graph key has five digits from 0 to {len(OPS) - 1}, not {key!r}.")
    return MACROS[digits[0]], tuple(OPS[d] for d in digits[1:])
