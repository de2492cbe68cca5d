"""Optimizer steps that change nothing but what the drawn networks used.

A parameter that no drawn network used has no gradient, so optimizers skip it: neither momentum nor weight decay moves
it. But a tensor of which a narrow network uses a slice gets a gradient that is zero, not absent, in the rest, and an
ordinary step would go on moving that rest. Here the optimizer is shown only the slice: for the length of the step,
parameter, gradient and optimizer state are views of the part in use. Whole tensors, the usual case, cost nothing extra.

Several networks may share one step (strictly fair sampling, sandwich rules): then the part in use is the union of their
slices; where that is no box, the rest of the bounding box is put back after the step.

Optimizers must work element by element on tensors shaped like the parameter (SGD without dampening, Adam and its kin
do). A scalar step count, such as Adam's, counts the steps of the tensor, not those of each element.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import EVERYTHING, Fixed, Undecided
from archipel.core.counting import Clause
from archipel.core.errors import SpaceError
from archipel.core.supernet import Supernet

Part = tuple[slice, ...]  # along every axis, with explicit bounds
Uses = list[tuple[nn.Parameter, Part | None]]  # None: the whole of it


class LiveUpdate:
    """Applies an optimizer to what the networks marked since the last step used.

    Args:
        supernet: whose parameters the optimizer holds.
        optimizer: any that works element by element.

    >>> from archipel.core.choice import Width
    >>> from archipel.spaces.layers import ElasticLinear
    >>> from archipel.spaces.module_space import ModuleSpace
    >>> supernet = ModuleSpace(lambda: ElasticLinear(1, Width("w", [1, 2])), torch.zeros(1, 1)).supernet()
    >>> update = LiveUpdate(supernet, torch.optim.SGD(supernet.parameters(), 0.1, weight_decay=0.1))
    >>> before = supernet.net.weight.detach().clone()
    >>> supernet.activate({"w": 1})(torch.ones(1, 1)).sum().backward(); update.mark(); update.step()
    >>> (supernet.net.weight != before).flatten().tolist()
    [True, False]
    """

    def __init__(self, supernet: Supernet, optimizer: torch.optim.Optimizer) -> None:
        self.supernet = supernet
        self.optimizer = optimizer
        sliceable = {id(p) for m in supernet.modules() for p in _sliceable(m)}
        self._tree = _tree(supernet.net, frozenset(), sliceable)
        self._whole: set[int] = set()
        self._parts: dict[int, tuple[nn.Parameter, list[Part]]] = {}

    def mark(self) -> None:
        """Note what the active network uses; call it after the forward pass of each network of a step.

        Raises:
            SpaceError: no architecture is active.
        """
        if self._tree is None:
            return
        decider = self.supernet.decider
        if not isinstance(decider, Fixed):
            raise SpaceError("An update needs an active architecture; call activate(arch) first.")
        for node in self._tree.on_path(decider.arch, getattr(decider, "weights", {})):
            for p, part in node.uses(decider):
                key = id(p)
                if part is None:
                    self._whole.add(key)
                elif key not in self._parts:
                    self._parts[key] = (p, [part])
                elif part not in self._parts[key][1]:
                    self._parts[key][1].append(part)

    def step(self) -> None:
        """One optimizer step on the union of what was marked, which is then forgotten."""
        views = [
            _View(p, parts, self.optimizer.state[p])
            for key, (p, parts) in self._parts.items()
            if key not in self._whole and p.grad is not None
        ]
        try:
            self.optimizer.step()
        finally:
            for view in views:
                view.undo()
            self._parts.clear()
            self._whole.clear()


# --- which parameters can be used in part --------------------------------------------------------------------------


@dataclass
class _Node:
    """A module whose parameters may be used in part, or that leads to such."""

    module: nn.Module
    clause: Clause
    parameters: dict[str, nn.Parameter]
    children: list[_Node] = field(default_factory=list)
    known: dict[tuple[Any, ...], Uses] = field(default_factory=dict)

    def on_path(self, arch: Mapping[str, Any], blended: Collection[str]) -> Iterator[_Node]:
        if self.parameters:
            yield self
        for child in self.children:
            if all(n in blended or arch.get(n) in values for n, values in child.clause):
                yield from child.on_path(arch, blended)

    def uses(self, decider: Fixed) -> Uses:
        """What this module uses of its parameters; remembered for each outcome of its decisions."""
        module = self.module
        if not isinstance(module, Undecided):
            return [(p, None) for p in self.parameters.values()]
        if getattr(module, "live_varies", False):  # also depends on something drawn while computing
            return self._uses(module.live(decider))
        key = tuple([decider.value(d) for d in self.decisions])
        if key not in self.known:
            self.known[key] = self._uses(module.live(decider))
        return self.known[key]

    def _uses(self, live: Mapping[str, tuple[slice, ...]]) -> Uses:
        return [(p, _part(p, live.get(name, ()))) for name, p in self.parameters.items()]

    def __post_init__(self) -> None:
        self.decisions = self.module.own_decisions() if isinstance(self.module, Undecided) else []


def _sliceable(module: nn.Module) -> list[nn.Parameter]:
    """A module's own parameters of which it may use a part."""
    own = {n: p for n, p in module._parameters.items() if p is not None}
    if not isinstance(module, Undecided) or type(module).live is Undecided.live:
        return []
    if module.own_decisions() or getattr(module, "live_varies", False):
        return list(own.values())
    live = module.live(EVERYTHING)  # always the same: there is nothing to decide
    return [p for n, p in own.items() if _part(p, live.get(n, ())) is not None]


def _tree(module: nn.Module, clause: Clause, sliceable: set[int]) -> _Node | None:
    """The part of the module tree that leads to sliceable parameters; None if nothing does."""
    own = {n: p for n, p in module._parameters.items() if p is not None and id(p) in sliceable}
    node = _Node(module, clause, own)
    if isinstance(module, Undecided):
        children = [_tree(child, inner, sliceable) for child, inner in module.branches()]
    else:
        children = [_tree(child, frozenset(), sliceable) for child in module.children()]
    node.children = [child for child in children if child is not None]
    return node if own or node.children else None


def _part(p: Tensor, slices: tuple[slice, ...]) -> Part | None:
    """Slices with explicit bounds along every axis of a parameter; None if they are the whole of it."""
    bounds = [s.indices(n)[:2] for s, n in zip(slices, p.shape)]
    if all(b == (0, n) for b, n in zip(bounds, p.shape)):
        return None
    return tuple(slice(*b) for b in [*bounds, *((0, n) for n in p.shape[len(bounds) :])])


# --- the step ------------------------------------------------------------------------------------------------------


class _View:
    """Shows an optimizer only a part of a parameter, of its gradient and of its state, until :meth:`undo`."""

    __slots__ = ("full", "full_state", "grad", "kept", "kept_state", "outside", "p", "part", "state")

    def __init__(self, p: nn.Parameter, parts: list[Part], state: dict[str, Any]) -> None:
        full, grad = p.data, p.grad
        assert grad is not None
        self.p, self.state, self.full, self.grad = p, state, full, grad
        self.part = part = parts[0] if len(parts) == 1 else _bounding(parts)
        p.grad = None
        p.data = full[part]
        p.grad = grad[part]
        self.full_state = {k: v for k, v in state.items() if _like(v, full)}
        for k, v in self.full_state.items():
            state[k] = v[part]
        # Inside the bounding box but in none of the parts: to be put back after the step.
        self.outside = None if len(parts) == 1 else self._outside(parts)
        if self.outside is not None:
            self.kept = p.data[self.outside].clone()
            self.kept_state = {k: state[k][self.outside].clone() for k in self.full_state}

    def _outside(self, parts: list[Part]) -> Tensor | None:
        mask = torch.ones(self.full.shape, dtype=torch.bool, device=self.full.device)
        for part in parts:
            mask[part] = False
        mask = mask[self.part]
        return mask if bool(mask.any()) else None

    def undo(self) -> None:
        p, state, view = self.p, self.state, self.p.data
        if self.outside is not None:
            view[self.outside] = self.kept
        for k, v in state.items():
            if not _like(v, view):
                continue
            full = self.full_state.get(k)
            if full is None:  # made in this step; elsewhere as if it had only seen zero gradients
                full = torch.zeros_like(self.full, dtype=v.dtype)
                full[self.part] = v
            if self.outside is not None:
                full[self.part][self.outside] = self.kept_state.get(k, 0.0)
            state[k] = full
        p.grad = None
        p.data = self.full
        p.grad = self.grad


def _like(value: Any, t: Tensor) -> bool:
    """Whether an entry of an optimizer's state has a number for each element of a tensor."""
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape == t.shape


def _bounding(parts: list[Part]) -> Part:
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*parts))
