"""A space's costs by layers: for each layer a table over the decisions about its sizes and its presence.

Parameters follow from the slices that a layer uses. Multiply-accumulates of a layer with weights are its used weights
times the positions they are applied at; the positions are seen once, in a run on the meta device, and hold for all
sizes because no decision changes the resolution there. Where one does, the comparison with exact costs fails.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

from archipel.core.choice import Fixed, Undecided
from archipel.core.counting import Clause, simplify
from archipel.core.decision import Arch, Decision
from archipel.core.errors import SpaceError
from archipel.core.space import Space
from archipel.core.supernet import Supernet
from archipel.cost.model import FlopMode
from archipel.cost.table import MAX_ENTRIES, Term

TRIES = 200


def layer_terms(space: Space, metric: str) -> list[Term]:
    """One term for each module that holds parameters or multiplies.

    Raises:
        SpaceError: the space is not made of one module, or a layer has too many decisions.
    """
    factory = getattr(space, "factory", None)
    if metric not in ("params", "macs") or factory is None:
        raise SpaceError(
            f"{metric} of {space.name} cannot be read off layers; that takes a module, and params or macs."
        )
    with torch.device("meta"):
        net = Supernet(factory(), space)
    places = _places(net.net)
    layers = {id(m): m for m in net.modules() if id(m) in places}
    if metric == "params":
        return [
            _term(space, m, places[k], _weights(m, list(m._parameters))) for k, m in layers.items() if m._parameters
        ]
    if any(m._parameters and _twice(space, places[k]) for k, m in layers.items()):
        raise SpaceError(f"{space.name} has layers that stand in several places; their MACs are not read off layers.")
    flops, archs = _run_until_all_seen(net, space, layers, places)
    terms = []
    for key, module in layers.items():
        if flops.get(key):
            macs = flops[key] // 2
            weights = _weights(module, ["weight"] if "weight" in module._parameters else [])
            used = weights(Fixed(archs[key]))
            if isinstance(module, Undecided) and used:
                terms.append(_term(space, module, places[key], lambda d, w=weights, m=macs, u=used: m * w(d) // u))
            else:
                terms.append(_term(space, module, places[key], lambda d, m=macs: m, own=False))
    return terms


def _places(module: nn.Module) -> dict[int, list[Clause]]:
    """For each module: the clauses under which it is used, one for each place where it stands."""
    places: dict[int, list[Clause]] = {}

    def visit(m: nn.Module, clause: dict[str, frozenset[Any]]) -> None:
        places.setdefault(id(m), []).append(frozenset(clause.items()))
        if not isinstance(m, Undecided):
            for child in m.children():
                visit(child, clause)
            return
        for child, inner in m.branches():
            joint = dict(clause)
            for name, values in inner:
                joint[name] = joint.get(name, values) & values
            if all(joint.values()):
                visit(child, joint)

    visit(module, {})
    return places


def _twice(space: Space, clauses: list[Clause]) -> bool:
    """Whether a layer may stand in two places at once."""
    return any(_compatible(space, a, b) for a, b in itertools.combinations(clauses, 2))


def _compatible(space: Space, a: Clause, b: Clause) -> bool:
    """Whether two clauses may hold together; that all decisions they name are open is part of it."""
    joint = dict(a)
    for name, values in b:
        joint[name] = joint.get(name, values) & values
    return all(joint.values()) and all(
        any(all(joint.get(n, values) & values for n, values in clause) for clause in space.conditions[name])
        for name in joint
        if name in space.conditions
    )


def _weights(module: nn.Module, names: list[str]) -> Callable[[Fixed], int]:
    """Number of trainable values that a module itself uses under a decider."""
    own = [(n, p) for n in names if (p := module._parameters.get(n)) is not None and p.requires_grad]

    def count(decider: Fixed) -> int:
        live = module.live(decider) if isinstance(module, Undecided) else {}
        total = 0
        for name, p in own:
            slices = live.get(name, ())
            sizes = [len(range(*s.indices(n))) for s, n in zip(slices, p.shape)] + list(p.shape[len(slices) :])
            total += math.prod(sizes)
        return total

    return count


def _term(
    space: Space, module: nn.Module, clauses: list[Clause], value: Callable[[Fixed], int], own: bool = True
) -> Term:
    """Value by the module's own decisions, where one of the clauses holds, else zero."""
    names = [d.name for d in module.own_decisions()] if own and isinstance(module, Undecided) else []
    inner = list(dict.fromkeys(names))
    conditions = simplify(clauses)
    outer = sorted({n for clause in conditions for n, _ in clause} - set(inner))
    decisions: list[Decision] = [space.by_name[n] for n in (*inner, *outer)]  # type: ignore[misc]
    shape = [d.size + 1 for d in decisions]
    if math.prod(shape) > MAX_ENTRIES:
        raise SpaceError(f"A layer of {space.name} depends on {len(shape)} decisions; its table would be too large.")
    values = np.zeros(shape[: len(inner)] or [], dtype=np.int64)
    for place in itertools.product(*[range(d.size) for d in decisions[: len(inner)]]):
        values[place] = value(Fixed({d.name: d.options[i] for d, i in zip(decisions, place)}))
    open_ = np.zeros(shape, dtype=bool)
    for clause in conditions:
        allowed = dict(clause)
        holds = np.ones(shape, dtype=bool)
        for axis, d in enumerate(decisions):
            if d.name in allowed:
                row = np.array([*(o in allowed[d.name] for o in d.options), False])
                holds &= row.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        open_ |= holds
    full = values.reshape([*values.shape, *[1] * len(outer)]) * open_
    return Term(tuple(d.name for d in decisions), full)


class _ByModule(FlopMode):
    """Operations attributed to the innermost module that is running."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.stack: list[int] = []
        self.flops: dict[int, int] = {}
        for m in net.modules():
            m.register_forward_pre_hook(lambda module, args: self.stack.append(id(module)))
            m.register_forward_hook(lambda module, args, out: self.stack.pop() and None)

    def count(self, flops: int) -> None:
        key = self.stack[-1]
        self.flops[key] = self.flops.get(key, 0) + flops


def _run_until_all_seen(
    net: Supernet, space: Space, layers: dict[int, nn.Module], places: dict[int, list[Clause]]
) -> tuple[dict[int, int], dict[int, Arch]]:
    """Operations of each module in an architecture that uses it, and that architecture."""
    rng = Random(0)
    counter = _ByModule(net)
    flops: dict[int, int] = {}
    where: dict[int, Arch] = {}
    example = torch.empty_like(space.example[:1], device="meta")  # type: ignore[attr-defined]
    net.eval()
    for arch in _covering(space, layers, places, where, rng):
        counter.flops, before = {}, set(flops)
        used = _used(net.activate(arch))
        if used <= where.keys():
            continue
        with torch.no_grad(), counter:
            net(example)
        for key in used - where.keys():
            where[key] = arch
        flops.update({k: v for k, v in counter.flops.items() if k not in before})
    return flops, where


def _used(net: Supernet) -> set[int]:
    """Modules on the active path."""
    out: set[int] = set()
    decider: Any = net.decider

    def visit(m: nn.Module) -> None:
        out.add(id(m))
        if isinstance(m, Undecided):
            for child, clause in m.branches():
                if all(decider.arch.get(n) in values for n, values in clause):
                    visit(child)
        else:
            for child in m.children():
                visit(child)

    visit(net.net)
    return out


def _covering(
    space: Space, layers: dict[int, nn.Module], places: dict[int, list[Clause]], seen: dict[int, Arch], rng: Random
) -> Iterator[Arch]:
    """Architectures that together use every layer: a few random ones, then one for each layer still unseen."""
    for _ in range(8):
        yield space.sample(rng)
    for key in layers:
        if key not in seen:
            clause = places[key][0]
            for _ in range(TRIES):
                wish = {n: rng.choice(sorted(values, key=str)) for n, values in clause}
                arch = space.complete(wish, rng)
                if all(arch.get(n) in values for n, values in clause):
                    yield arch
                    break
            else:
                raise SpaceError(f"No architecture of {space.name} was found that uses {type(layers[key]).__name__}.")
