"""A space from an ordinary module: mark what may vary with choice modules, and everything else is derived."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from archipel.core.choice import Fixed, Undecided
from archipel.core.counting import Clause
from archipel.core.decision import Arch, Decision
from archipel.core.errors import SpaceError
from archipel.core.extract import extract
from archipel.core.space import Space
from archipel.core.supernet import Supernet
from archipel.cost.model import CostModel
from archipel.spaces.layers import reset_parameters


class ModuleSpace(Space):
    """The space of networks that a module with choices spans.

    Args:
        factory: makes the module; called without arguments, also on the meta device (so that nothing is allocated
            for structure alone).
        example: a batch of inputs, for costs, graphs and exports.
        name: for messages and records.

    Raises:
        SpaceError: the factory fails, nothing in the module is undecided, or the same decision name has two meanings.

    >>> from archipel.core.choice import Choice, Width
    >>> from archipel.spaces.layers import ElasticLinear
    >>> def net():
    ...     w = Width("w", [2, 4])
    ...     return nn.Sequential(ElasticLinear(8, w), nn.ReLU(), ElasticLinear(w, 3))
    >>> space = ModuleSpace(net, torch.zeros(1, 8))
    >>> space.size, space.cost.params({"w": 2}), space.build({"w": 2})(torch.zeros(5, 8)).shape
    (2, 27, torch.Size([5, 3]))
    """

    def __init__(self, factory: Callable[[], nn.Module], example: Tensor, name: str | None = None) -> None:
        self.factory = factory
        self.example = example
        label = name or getattr(factory, "__name__", type(factory).__name__)
        try:
            with torch.device("meta"):
                self._meta = factory()
        except TypeError as error:
            raise SpaceError(
                f"{label} must be callable without arguments; bind them first, for instance with "
                f"functools.partial. Its signature is {inspect.signature(factory)}: {error}"
            ) from error
        decisions, conditions = collect(self._meta)
        if not decisions:
            raise SpaceError(
                f"Nothing in {label} is undecided: it holds no choice module. Put in a Choice, Inputs, Depth or an "
                f"elastic layer with a Width or Kernel."
            )
        super().__init__(decisions, conditions)
        self.name = label
        self._cost: CostModel | None = None

    @property
    def cost(self) -> CostModel:
        """Exact parameters and MACs, memory and latency of this space's networks."""
        if self._cost is None:
            self._cost = CostModel(self.build_meta, self.example, key=_decided)
        return self._cost

    def build_meta(self, arch: Arch) -> nn.Module:
        """The network on the meta device: shapes without memory."""
        return extract(self._meta, Fixed(self.validate(arch)))

    def build(self, arch: Arch, seed: int = 0) -> nn.Module:
        """The network ``arch``, freshly initialised by its layers' own rules; only what is kept is allocated.

        Modules that own tensors but have no ``reset_parameters`` (say, one with a table as a buffer) get the values
        that the factory gave them. A ``reset_parameters`` of the whole module runs last.
        """
        net = self.build_meta(arch).to_empty(device=self.example.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            without_rule = reset_parameters(net)
            if without_rule:
                real = dict(extract(self.factory(), Fixed(arch)).named_modules())
                with torch.no_grad():
                    for name in without_rule:
                        target, source = net.get_submodule(name), real[name]
                        for key, t in [*source._parameters.items(), *source._buffers.items()]:
                            if t is not None:
                                getattr(target, key).copy_(t)
        return net

    def supernet(self, seed: int = 0) -> Supernet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Supernet(self.factory(), self)

    def graph(self, arch: Arch) -> nx.DiGraph:
        """The dataflow of the built network, traced; nodes are layers and operations.

        Raises:
            SpaceError: the module's Python control flow depends on data and cannot be traced.
        """
        net = self.build_meta(arch)
        try:
            traced = torch.fx.symbolic_trace(net)
        except Exception as error:
            raise SpaceError(f"{self.name} cannot be drawn: tracing it failed ({error}).") from error
        g = nx.DiGraph(name=self.name)
        for node in traced.graph.nodes:
            if node.op == "call_module":
                layer = net.get_submodule(str(node.target))
                label = layer_label(layer)
            else:
                label = str(getattr(node.target, "__name__", node.target))
            g.add_node(node.name, label=label, kind=node.op)
            g.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
        return g


def layer_label(layer: nn.Module) -> str:
    """A short name for a drawing.

    >>> layer_label(nn.Conv2d(3, 8, 5)), layer_label(nn.Linear(4, 2)), layer_label(nn.ReLU())
    ('Conv2d 5×5, 3→8', 'Linear 4→2', 'ReLU')
    """
    kind = type(layer).__name__
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kernel = "×".join(map(str, layer.kernel_size))
        stride = f" /{layer.stride[0]}" if layer.stride[0] > 1 else ""
        depthwise = " depthwise" if layer.groups == layer.in_channels > 1 else ""
        return f"{kind} {kernel}{stride}{depthwise}, {layer.in_channels}→{layer.out_channels}"
    if isinstance(layer, nn.Linear):
        return f"{kind} {layer.in_features}→{layer.out_features}"
    return kind


def _decided(arch: Arch) -> frozenset[tuple[str, Any]]:
    """What tells architectures apart, hashable; a function with a name, so that spaces can be sent to processes."""
    return frozenset(arch.items())


def collect(module: nn.Module) -> tuple[list[Decision], dict[str, set[Clause]]]:
    """All decisions in a module, parents first, and the clauses under which each is open.

    Raises:
        SpaceError: one name, two lists of options; or decisions that depend on each other in a circle.
    """
    decisions: dict[str, Decision] = {}
    conditions: dict[str, set[Clause]] = {}

    def conjoin(outer: Clause, inner: Clause) -> Clause | None:
        allowed: dict[str, frozenset[Any]] = dict(outer)
        for name, values in inner:
            allowed[name] = allowed[name] & values if name in allowed else values
            if not allowed[name]:
                return None  # a tied choice inside itself: this branch can never be reached
        return frozenset(allowed.items())

    def visit(m: nn.Module, clause: Clause) -> None:
        if not isinstance(m, Undecided):
            for child in m.children():
                visit(child, clause)
            return
        for d in m.own_decisions():
            known = decisions.setdefault(d.name, d)
            if known.options != d.options:
                raise SpaceError(
                    f"Decision {d.name!r} stands for {list(known.options)} in one place and {list(d.options)} in "
                    f"another. Tied decisions need the same options; otherwise give them different names."
                )
            # A decision's own value never conditions itself: it is open before it has one.
            conditions.setdefault(d.name, set()).add(frozenset(p for p in clause if p[0] != d.name))
        for child, inner in m.branches():
            joint = conjoin(clause, inner)
            if joint is not None:
                visit(child, joint)

    visit(module, frozenset())
    return _parents_first(decisions, conditions), conditions


def _parents_first(decisions: dict[str, Decision], conditions: dict[str, set[Clause]]) -> list[Decision]:
    g = nx.DiGraph()
    g.add_nodes_from(decisions)
    for name, clauses in conditions.items():
        if frozenset() not in clauses:  # unconditional somewhere: depends on nothing
            g.add_edges_from((parent, name) for clause in clauses for parent, _ in clause)
    order = {name: i for i, name in enumerate(decisions)}
    try:
        return [decisions[n] for n in nx.lexicographical_topological_sort(g, key=order.__getitem__)]
    except nx.NetworkXUnfeasible as error:
        circle = " -> ".join(edge[0] for edge in nx.find_cycle(g))
        raise SpaceError(f"Decisions depend on each other in a circle: {circle}.") from error
