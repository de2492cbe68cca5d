"""Reading a network off gates by a threshold, where nodes take any subset of (source, operation) pairs.

Heuillet, Tabia, Arioui, Youcef-Toumi. D-DARTS: Distributed Differentiable Architecture Search. 2021.
https://arxiv.org/abs/2108.09306

    sparse   of each node the two sources with the largest best gate; of each the best operation if its gate ≥ θ
    edge     of each node all sources; of each the two best operations with a gate ≥ θ

A `select`. A node may keep fewer inputs than that; if it would keep none, it keeps the operation with its largest gate
(or an error says so).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from archipel.core.decision import Arch
from archipel.core.errors import SpaceError, UsageError, suggest
from archipel.search.differentiable.pruned_gates import subsets_of
from archipel.search.differentiable.select import Select

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

EDGES, OPS = 2, 2  # sources of a node that `sparse` keeps; operations of an edge that `edge` keeps
PARSES = ("sparse", "edge")


class Threshold(Select):
    """Keeps what has a gate of at least a threshold.

    Args:
        threshold: θ.
        parse: ``"sparse"`` or ``"edge"``.
        keep_best: whether a node that would have no input keeps its best operation.

    Raises:
        UsageError: a threshold outside (0, 1) or another ``parse``; in use: a space whose nodes do not take any subset.
        SpaceError: in use: a node without an input, if its best is not to be kept.
    """

    def __init__(self, threshold: float = 0.85, parse: str = "sparse", keep_best: bool = True) -> None:
        if not 0.0 < threshold < 1.0:
            raise UsageError(f"Threshold: gates are between 0 and 1, so the threshold must be, not {threshold!r}.")
        if parse not in PARSES:
            raise UsageError(f"Threshold: parse {parse!r} is unknown. {suggest(parse, PARSES)}")
        self.threshold, self.parse, self.keep_best = threshold, parse, keep_best

    def started(self, state: SearchState) -> None:
        subsets_of(state.parameters.rows)

    def __call__(self, state: SearchState) -> Arch:
        weights = state.mixture_weights()
        arch: Arch = {}
        for name, subset in subsets_of(state.parameters.rows).items():
            gates = weights[name].tolist()
            kept = kept_pairs(gates, subset.sources, self.threshold, self.parse)
            if not kept and not self.keep_best:
                raise SpaceError(
                    f"Node {name!r} has no gate of {self.threshold} or more (the largest is {max(gates):.4f}), so it "
                    f"would have no input. Search longer, lower the threshold, or keep_best=True."
                )
            arch |= subset.arch([subset.labels[i] for i in kept or [gates.index(max(gates))]])
        return state.supernet.space.validate(arch)

    glance = __call__


def kept_pairs(gates: Sequence[float], sources: Sequence[int], threshold: float, parse: str) -> list[int]:
    """Positions of the pairs of a node that a threshold keeps; among equals, the first.

    >>> kept_pairs([0.9, 0.95, 0.2, 0.86, 0.99, 0.1], [0, 0, 1, 1, 2, 2], 0.85, "sparse")
    [1, 4]
    >>> kept_pairs([0.9, 0.95, 0.2, 0.86, 0.99, 0.1], [0, 0, 1, 1, 2, 2], 0.85, "edge")
    [0, 1, 3, 4]
    """
    edges: dict[int, list[int]] = {}
    for i, source in enumerate(sources):
        edges.setdefault(source, []).append(i)
    ranked = [sorted(edge, key=lambda i: (-gates[i], i)) for edge in edges.values()]
    if parse == "sparse":
        ranked = sorted(ranked, key=lambda edge: -gates[edge[0]])[:EDGES]
    most = 1 if parse == "sparse" else OPS
    return sorted(i for edge in ranked for i in edge[:most] if gates[i] >= threshold)
