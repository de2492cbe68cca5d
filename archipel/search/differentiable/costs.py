"""What each option of a supernet costs, and the expected cost of a mixture, exactly.

    Φ(p) = c_0 + Σ_rows r  n_r Σ_o p_r,o · c_r,o

c_r,o is what option o of row r adds to the network that is built in the end (parameters, or multiply-accumulates of one
input), summed over all places that share the row; n_r is the share of those places that survive the derivation, k of S
for an edge of a node that keeps k of its S sources, else 1. c_0 is what every network has. With one-hot p and n = 1
that is the cost of the discrete network's searchable part, whichever it is, since options lie one behind or beside the
other and none changes the size of another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archipel.core.choice import Choice, Decider, Inputs
from archipel.core.errors import SpaceError, UsageError
from archipel.core.subset import Subset
from archipel.core.supernet import Supernet
from archipel.cost.model import FlopMode, count_params
from archipel.search.differentiable.parameters import ArchParameters
from archipel.spaces.module_space import ModuleSpace

METRICS = ("params", "macs")


@dataclass(frozen=True)
class ExpectedCost:
    """A cost that is linear in each row of mixture weights.

    Args:
        metric: ``"params"`` or ``"macs"``, or what a table of your own holds (milliseconds).
        table: row -> costs ``[O]`` in the order of its labels, kept edges' share included.
        constant: of what every network has.
    """

    metric: str
    table: Mapping[str, Tensor]
    constant: float = 0.0

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Φ for the weights of all rows; differentiable.

        Raises:
            SpaceError: a row of the table without weights.
        """
        missing = [name for name in self.table if name not in weights]
        if missing:
            raise SpaceError(f"The cost table has a row {missing[0]!r}, but there are no mixture weights for it.")
        terms = [(weights[name] * c.to(weights[name])).sum() for name, c in self.table.items()]
        return torch.stack(terms).sum() + self.constant

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest cost that any weights attain."""
        low = self.constant + sum(float(c.min()) for c in self.table.values())
        return low, self.constant + sum(float(c.max()) for c in self.table.values())


def expected_cost(space: ModuleSpace, parameters: ArchParameters, metric: str, kept: bool = True) -> ExpectedCost:
    """The table of a space whose choices are all between operations.

    Args:
        kept: whether edges count by the share of them that a node keeps (k of S); if not, all count whole.

    Raises:
        UsageError: another metric.
        SpaceError: choices within choices, whose costs do not add up, or a size that was fixed among several.
    """
    if metric not in METRICS:
        raise UsageError(f"Costs of options are counted in {' or '.join(METRICS)}, not {metric!r}.")
    net = _undecided(space)
    _check_sizes(net, parameters.fixed)
    choices = [m for m in net.net.modules() if isinstance(m, Choice | Subset)]
    for choice in choices:
        if isinstance(choice, Choice) and choice.decision.name not in space.by_name:
            raise SpaceError(
                f"Choice {choice.decision.name!r} is made by several decisions, and what it costs depends on its "
                f"neighbours; expected costs are only counted for choices that stand alone."
            )
        if any(isinstance(m, Choice | Subset) for option in choice.blended for m in option.modules()):
            raise SpaceError(f"Choice {_row_name(choice)!r} holds further choices; their costs do not add up.")
    found, total = (_params if metric == "params" else _macs)(net, space)
    shares = _kept_shares(net, parameters.fixed) if kept else {}
    constant = float(total - sum(sum(costs) for costs in found.values()))
    table: dict[str, Tensor] = {}
    for choice in choices:
        name = _row_name(choice)
        c = torch.tensor(found[id(choice)], dtype=torch.float64) * shares.get(id(choice), 1.0)
        if name in parameters.rows:
            table[name] = c + table[name] if name in table else c
        elif isinstance(choice, Choice) and name in parameters.fixed:
            constant += float(c[choice.decision.index(parameters.fixed[name])])
    if not table:
        raise SpaceError(f"{space.name} has no open choice between operations, so no option has a cost of its own.")
    return ExpectedCost(metric, table, constant)


def tabled_cost(
    space: ModuleSpace,
    parameters: ArchParameters,
    metric: str,
    costs: Mapping[str, Mapping[str, float]],
    constant: float = 0.0,
    kept: bool = True,
) -> ExpectedCost:
    """A cost that is not counted but given: measured milliseconds, say.

    Args:
        costs: row -> option -> what it adds, over all places that share the row.
        kept: as for :func:`expected_cost`.

    Raises:
        SpaceError: a row or an option without an entry, or an entry that is no number; names it.
    """
    net = _undecided(space)
    shares = _kept_shares(net, parameters.fixed) if kept else {}
    table: dict[str, Tensor] = {}
    for choice in (m for m in net.net.modules() if isinstance(m, Choice)):
        name = choice.decision.name
        if name not in parameters.rows or name in table:
            continue
        entries = costs.get(name, {})
        for label in choice.blend_labels:
            if not isinstance(entries.get(label), int | float) or not math.isfinite(entries[label]):
                known = ", ".join(entries) or "nothing"
                raise SpaceError(
                    f"The cost table for {metric} gives {entries.get(label)!r} for option {label!r} of {name!r}; it "
                    f"needs a number for each of {', '.join(choice.blend_labels)}, and has one for {known}."
                )
        c = torch.tensor([float(entries[label]) for label in choice.blend_labels], dtype=torch.float64)
        table[name] = c * shares.get(id(choice), 1.0)
    return ExpectedCost(metric, table, constant)


def _row_name(choice: Choice | Subset) -> str:
    return choice.name if isinstance(choice, Subset) else choice.decision.name


def _undecided(space: ModuleSpace) -> Supernet:
    """The network that is trained in the end (its norms affine), all options in place, on the meta device."""
    with torch.device("meta"):
        return Supernet(space.factory(), space)


class _All(Decider):
    """Every option of every choice is computed, one after the other, so that each can be counted."""

    def __init__(self, counter: FlopMode | None = None) -> None:
        self.counter = counter
        self.macs: dict[int, list[int]] = {}

    def choose(self, choice: Choice, *args: Tensor) -> Tensor:
        return self._each(choice, [args] * len(choice.blended))

    def merge(self, subset: Subset, states: Sequence[Tensor]) -> Tensor:
        return self._each(subset, [(states[i],) for i in subset.sources])

    def _each(self, choice: Choice | Subset, inputs: Sequence[tuple[Tensor, ...]]) -> Tensor:
        outputs, counted = [], []
        for option, args in zip(choice.blended, inputs):
            before = self.counter.total if self.counter else 0
            outputs.append(option(*args))
            counted.append((self.counter.total - before) // 2 if self.counter else 0)
        earlier = self.macs.get(id(choice), [0] * len(counted))  # a module may stand in several places
        self.macs[id(choice)] = [a + b for a, b in zip(earlier, counted)]
        return outputs[0]

    def gather(self, inputs: Inputs, states: list[Tensor]) -> Tensor:
        outputs = [edge(state) for edge, state in zip(inputs.edges, states)]
        return sum(outputs[1:], outputs[0])


def _params(net: Supernet, space: ModuleSpace) -> tuple[dict[int, list[int]], int]:
    choices = [m for m in net.net.modules() if isinstance(m, Choice | Subset)]
    return {id(m): [count_params(option) for option in m.blended] for m in choices}, count_params(net.net)


def _macs(net: Supernet, space: ModuleSpace) -> tuple[dict[int, list[int]], int]:
    counter = FlopMode()
    decider = _All(counter)
    net.decider = decider
    net.eval()
    with torch.no_grad(), counter:
        net(torch.empty_like(space.example[:1], device="meta"))
    return decider.macs, counter.total // 2


def _kept_shares(net: Supernet, fixed: Mapping[str, Any]) -> dict[int, float]:
    """Choice -> the share of its node's edges that are kept; where they are fixed, 1 or 0."""
    shares: dict[int, float] = {}
    for node in (m for m in net.net.modules() if isinstance(m, Inputs)):
        taken = node.sources[fixed[node.decision.name]] if node.decision.name in fixed else None
        for i, edge in enumerate(node.edges):
            share = node.k / len(node.edges) if taken is None else float(i in taken)
            shares.update({id(m): share for m in edge.modules() if isinstance(m, Choice)})
    return shares


def _check_sizes(net: Supernet, fixed: Mapping[str, Any]) -> None:
    """
    Raises:
        SpaceError: a size is fixed at one of several values; here every layer counts at its largest.
    """
    named = {m.decision.name for m in net.net.modules() if isinstance(m, Choice | Inputs)}
    for name in fixed:
        if name not in named and net.space.by_name[name].mutable:
            raise SpaceError(f"Costs of options are not counted where a size is fixed, as {name!r} is.")
