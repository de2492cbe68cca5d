"""Reading an architecture off as a path: the selection for spaces whose layers must match their neighbours.

Hundt, Jain, Hager. sharpDARTS: Faster and More Accurate Differentiable Architecture Search. 2019.
https://arxiv.org/abs/1903.09900

    graph     (layer, channels) and, between two of them, each operation with its weight w_l[C_in, C_out, o]
    answer    the path from the image to the classifier with the largest Σ_l w_l

The graph has no cycles, so the best path takes one pass over its edges. The greedy paths take the best layer at one end
and then what fits, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

import networkx as nx

from archipel.core.decision import Arch
from archipel.core.errors import InfeasibleError, UsageError, suggest
from archipel.search.differentiable.select import Select
from archipel.spaces.hyper_cuboid import HyperCuboid, PathLayer

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

Triple = tuple[int, int, str]  # (C_in, C_out, operation)

SOURCE, SINK = "image", "classifier"
MAX_PATHS = 2_000  # looked at, from the best on, for one within limits


def layer_scores(state: SearchState) -> list[dict[Triple, float]]:
    """Layer by layer, the score of every (C_in, C_out, operation)."""
    scores = state.scores()
    out = []
    for name, row in state.parameters.rows.items():
        layer = row.modules[0]
        assert isinstance(layer, PathLayer)
        out.append(dict(zip(layer.triples, scores[name].detach().tolist())))
    return out


def path_graph(layers: list[dict[Triple, float]]) -> nx.DiGraph:
    """The graph of all paths; edges have ``weight``, and ``cost`` (1 − weight) where an operation is entered."""
    g = nx.DiGraph()
    for i, layer in enumerate(layers):
        for triple, w in layer.items():
            g.add_edge((i, triple[0]), (i, triple), weight=w, cost=1.0 - w)
            g.add_edge((i, triple), (i + 1, triple[1]), weight=0.0, cost=0.0)
    for c in {c for c, _, _ in layers[0]}:
        g.add_edge(SOURCE, (0, c), weight=0.0, cost=0.0)
    for c in {c for _, c, _ in layers[-1]}:
        g.add_edge((len(layers), c), SINK, weight=1.0, cost=0.0)  # so that no best path ends before the classifier
    return g


def operations_of(path: list) -> list[Triple]:
    """The operations on a path of :func:`path_graph`."""
    return [node[1] for node in path if isinstance(node, tuple) and isinstance(node[1], tuple)]


def arch_of_path(space: HyperCuboid, path: list[Triple]) -> Arch:
    return space.path([path[0][0], *(c for _, c, _ in path)], [op for _, _, op in path])


class LongestPath(Select):
    """The path with the largest sum of weights."""

    def started(self, state: SearchState) -> None:
        """
        Raises:
            UsageError: the space has no paths.
        """
        space = state.supernet.space
        if not isinstance(space, HyperCuboid):
            raise UsageError(
                f"{type(self).__name__} reads paths of matching channels off, but {space.name} has none. "
                f"Search a HyperCuboid, or use select=Argmax()."
            )

    def best(self, layers: list[dict[Triple, float]]) -> list[Triple]:
        """The path itself, by layers' scores."""
        return operations_of(nx.dag_longest_path(path_graph(layers), weight="weight"))

    def __call__(self, state: SearchState) -> Arch:
        space = state.supernet.space
        assert isinstance(space, HyperCuboid)  # checked at the start
        return arch_of_path(space, self.best(layer_scores(state)))

    def glance(self, state: SearchState) -> Arch:
        return self(state)

    def nearest(self, state: SearchState, feasible: Callable[[Arch], bool], rng: Random) -> Arch:
        """The best path within the limits, among the best so many.

        Raises:
            InfeasibleError: none of them is.
        """
        space = state.supernet.space
        assert isinstance(space, HyperCuboid)
        # Every path has as many operations, so the smallest Σ (1 − w) is the largest Σ w, and has no negative terms.
        paths = nx.shortest_simple_paths(path_graph(layer_scores(state)), SOURCE, SINK, weight="cost")
        for path in islice(paths, MAX_PATHS):
            arch = arch_of_path(space, operations_of(path))
            if feasible(arch):
                return arch
        raise InfeasibleError(
            f"None of the best {min(MAX_PATHS, int(space.size))} paths of {space.name} keeps the limits. Relax them, "
            f"or take fewer channels into the grid."
        )


class GreedyPath(LongestPath):
    """The best layer at one end, then the best that fits, layer by layer.

    Args:
        direction: ``"bottom-up"`` from the image, or ``"top-down"`` from the classifier.

    Raises:
        UsageError: another direction.
    """

    def __init__(self, direction: str = "bottom-up") -> None:
        if direction not in ("bottom-up", "top-down"):
            known = ("bottom-up", "top-down")
            raise UsageError(
                f"A greedy path goes bottom-up or top-down, not {direction!r}. {suggest(direction, known)}"
            )
        self.direction = direction

    def best(self, layers: list[dict[Triple, float]]) -> list[Triple]:
        up = self.direction == "bottom-up"
        path: list[Triple] = []
        for layer in layers if up else reversed(layers):
            met, meets = (1, 0) if up else (0, 1)  # the side of the last one that the next one must fit
            fits = [t for t in layer if not path or t[meets] == path[-1][met]]
            path.append(max(fits, key=lambda t: layer[t]))
        return path if up else path[::-1]
