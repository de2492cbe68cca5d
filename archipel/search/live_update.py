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

from archipel.core.choice import Fixed, Undecided
from archipel.core.counting import Clause
from archipel.core.errors import SpaceError
from archipel.core.supernet import Supernet

Box = tuple[tuple[int, int], ...]  # start and stop along each axis


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
        sliceable = {id(p) for m in supernet.modules() if _slices(m) for p in m.parameters(recurse=False)}
        self._tree = _tree(supernet.net, frozenset(), sliceable)
        self._whole: set[int] = set()
        self._boxes: dict[int, tuple[nn.Parameter, list[Box]]] = {}

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
        blended = getattr(decider, "weights", {})
        for node in self._tree.on_path(decider.arch, blended):
            slices = node.module.live(decider) if isinstance(node.module, Undecided) else {}
            for name, p in node.parameters.items():
                box = _box(p, slices.get(name, ()))
                if box is None:
                    self._whole.add(id(p))
                else:
                    boxes = self._boxes.setdefault(id(p), (p, []))[1]
                    if box not in boxes:
                        boxes.append(box)

    def step(self) -> None:
        """One optimizer step on the union of what was marked, which is then forgotten."""
        views = [
            _View(p, boxes, self.optimizer)
            for key, (p, boxes) in self._boxes.items()
            if key not in self._whole and p.grad is not None
        ]
        try:
            self.optimizer.step()
        finally:
            for view in views:
                view.undo()
            self._boxes.clear()
            self._whole.clear()


# --- which parameters can be used in part --------------------------------------------------------------------------


@dataclass
class _Node:
    """A module whose parameters may be used in part, or that leads to such."""

    module: nn.Module
    clause: Clause
    parameters: dict[str, nn.Parameter]
    children: list[_Node] = field(default_factory=list)

    def on_path(self, arch: Mapping[str, Any], blended: Collection[str]) -> Iterator[_Node]:
        if self.parameters:
            yield self
        for child in self.children:
            if all(n in blended or arch.get(n) in values for n, values in child.clause):
                yield from child.on_path(arch, blended)


def _slices(module: nn.Module) -> bool:
    return isinstance(module, Undecided) and type(module).live is not Undecided.live


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


def _box(p: Tensor, slices: tuple[slice, ...]) -> Box | None:
    """Where slices lie in a parameter; None if they are the whole of it."""
    box = tuple(s.indices(n)[:2] for s, n in zip(slices, p.shape))
    if all(bounds == (0, n) for bounds, n in zip(box, p.shape)):
        return None
    return (*box, *((0, n) for n in p.shape[len(box) :]))


# --- the step ------------------------------------------------------------------------------------------------------


class _View:
    """Shows an optimizer only a part of a parameter, of its gradient and of its state, until :meth:`undo`."""

    def __init__(self, p: nn.Parameter, boxes: list[Box], optimizer: torch.optim.Optimizer) -> None:
        assert p.grad is not None
        self.p, self.state = p, optimizer.state[p]
        self.full, self.grad = p.data, p.grad
        bounds = [(min(b[axis][0] for b in boxes), max(b[axis][1] for b in boxes)) for axis in range(p.ndim)]
        self.part = tuple(slice(*b) for b in bounds)
        # Inside the bounding box but in none of the boxes: to be put back after the step.
        self.outside = None if len(boxes) == 1 else self._outside(boxes)
        self.full_state = {
            k: v for k, v in self.state.items() if isinstance(v, Tensor) and v.shape == p.shape and v.ndim > 0
        }
        p.grad = None
        p.data = self.full[self.part]
        p.grad = self.grad[self.part]
        for k, v in self.full_state.items():
            self.state[k] = v[self.part]
        if self.outside is not None:
            self.kept = p.data[self.outside].clone()
            self.kept_state = {k: self.state[k][self.outside].clone() for k in self.full_state}

    def _outside(self, boxes: list[Box]) -> Tensor | None:
        mask = torch.ones(self.full.shape, dtype=torch.bool)
        for box in boxes:
            mask[tuple(slice(*b) for b in box)] = False
        mask = mask[self.part].to(self.full.device)
        return mask if bool(mask.any()) else None

    def undo(self) -> None:
        part_shape = self.p.data.shape
        if self.outside is not None:
            self.p.data[self.outside] = self.kept
        for k, v in list(self.state.items()):
            if not isinstance(v, Tensor) or v.shape != part_shape or v.ndim == 0:
                continue
            if k not in self.full_state:  # made in this step; elsewhere as if it had only seen zero gradients
                self.full_state[k] = torch.zeros_like(self.full, dtype=v.dtype)
            full = self.full_state[k]
            if v.data_ptr() != full[self.part].data_ptr():
                full[self.part] = v
            if self.outside is not None:
                full[self.part][self.outside] = self.kept_state.get(k, 0.0)
            self.state[k] = full
        self.p.grad = None
        self.p.data = self.full
        self.p.grad = self.grad
