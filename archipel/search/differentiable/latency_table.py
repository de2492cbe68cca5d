"""A table of measured milliseconds: every option of every choice, timed on this machine at the size it runs at.

    latency(network) ≈ c_0 + Σ_layers F(layer, its option)

as in ProxylessNAS (Cai et al., 2018, https://arxiv.org/abs/1812.00332) and Single-Path NAS. What a table says is what
the options take alone, one after the other; c_0 is what is left of one whole network that was timed.
:class:`MeasuredLoss` is the objective that measures a table when its search starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.choice import Choice, Decider, Inputs
from archipel.core.errors import SpaceError
from archipel.core.supernet import Supernet
from archipel.cost.latency import measure_latency
from archipel.search.differentiable.cost_loss import CostLoss
from archipel.spaces.module_space import ModuleSpace

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


class _Seen(Decider):
    """The first option of every choice is computed, and the inputs of each choice are remembered."""

    def __init__(self) -> None:
        self.inputs: dict[int, Tensor] = {}

    def choose(self, choice: Choice, *args: Tensor) -> Tensor:
        self.inputs.setdefault(id(choice), args[0])
        return choice.blended[0](*args)

    def gather(self, inputs: Inputs, states: Sequence[Tensor]) -> Tensor:
        outputs = [edge(state) for edge, state in zip(inputs.edges, states)]
        return sum(outputs[1:], outputs[0])


def measured_table(
    space: ModuleSpace, batch: int = 1, threads: int = 1, runs: int = 30
) -> tuple[dict[str, dict[str, float]], float]:
    """Milliseconds of every option in evaluation mode, and c_0.

    Args:
        batch, threads, runs: see :func:`~archipel.cost.latency.measure_latency`.

    Returns:
        row -> option -> median milliseconds, over all places that share the row; and c_0, at least 0.

    Raises:
        SpaceError: choices within choices, whose times do not add up.
    """
    net = Supernet(space.factory(), space).eval()
    seen = _Seen()
    net.decider = seen
    with torch.no_grad():
        net(torch.zeros_like(space.example[:1]))
    table: dict[str, dict[str, float]] = {}
    first = 0.0
    for choice in (m for m in net.net.modules() if isinstance(m, Choice)):
        if any(isinstance(m, Choice) for option in choice.blended for m in option.modules()):
            raise SpaceError(f"Choice {choice.decision.name!r} holds further choices; their latencies do not add up.")
        row = table.setdefault(choice.decision.name, dict.fromkeys(choice.blend_labels, 0.0))
        for i, (label, option) in enumerate(zip(choice.blend_labels, choice.blended)):
            ms = measure_latency(option, seen.inputs[id(choice)], batch, threads, runs, seconds=0.5).median_ms
            row[label] += ms
            first += ms if i == 0 else 0.0
    whole = measure_latency(net, space.example, batch, threads, runs).median_ms
    return table, max(0.0, whole - first)


class MeasuredLoss(CostLoss):
    """:class:`~archipel.search.differentiable.cost_loss.CostLoss` of milliseconds that are measured at the start.

    Args:
        batch, threads, runs: see :func:`measured_table`.
        settings: of ``CostLoss``, without ``cost`` and ``constant``; the target is in milliseconds.

    >>> MeasuredLoss(target=2.5).target
    2.5
    """

    def __init__(self, batch: int = 1, threads: int = 1, runs: int = 30, **settings: Any) -> None:
        super().__init__({}, **settings)
        self.batch, self.threads, self.runs = batch, threads, runs

    def started(self, state: SearchState) -> None:
        space = state.supernet.space
        if isinstance(space, ModuleSpace):  # the base class refuses others
            self.cost, self.constant = measured_table(space, self.batch, self.threads, self.runs)
        super().started(state)

    def state_dict(self) -> dict[str, Any]:
        """The costs: a search that goes on does so with those it was begun with."""
        assert self.expected is not None  # since `started`
        return {"table": dict(self.expected.table), "constant": self.expected.constant}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.expected is not None  # since `started`
        self.expected = replace(self.expected, table=state["table"], constant=state["constant"])
