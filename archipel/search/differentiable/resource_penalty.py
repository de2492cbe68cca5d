"""A price on resources that grows while little is pruned: the penalty, the rule for its weight, and the pruning itself.

Bi, Xie, Chen, Wei, Tian. GOLD-NAS: Gradual, One-Level, Differentiable. 2020. https://arxiv.org/abs/2007.03331
An `objective` for :class:`~archipel.search.differentiable.pruned_gates.PrunedGates`; the equations are in
:mod:`archipel.search.differentiable.gold_nas`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.search.differentiable.costs import ExpectedCost, expected_cost
from archipel.search.differentiable.objective import SearchObjective
from archipel.search.differentiable.parameters import Moment
from archipel.search.differentiable.pruned_gates import PrunedGates

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


def resource_penalty(sigma: Tensor, cost: Tensor) -> Tensor:
    """R = Σ ln(1 + σ/σ̄) · c over operations ``[P]``; those whose gate is zero are gone and count nowhere.

    >>> sigma = torch.tensor([0.2, 0.6], requires_grad=True)
    >>> resource_penalty(sigma, torch.ones(2)).backward()
    >>> sigma.grad                                              # 1/(0.4 + σ)
    tensor([1.6667, 1.0000])
    """
    sigma_mean = sigma.detach()[sigma.detach() > 0].mean()
    return (torch.log1p(sigma / sigma_mean) * cost).sum()


class Pressure:
    """The price λ of resources: doubled increments while too little is removed, a step back when enough was.

    Args:
        lam0: first increment λ_0; 0 to train without a price.
        c0: factor by which increments grow and λ falls.

    Attributes:
        lam: λ.
        stale: epochs in a row that removed too little.

    Raises:
        UsageError: a negative λ_0, or a factor that is not above 1.
    """

    def __init__(self, lam0: float = 1e-5, c0: float = 2.0) -> None:
        if not lam0 >= 0 or not c0 > 1:
            raise UsageError(f"Pressure: lam0 must not be negative and c0 must be above 1, not {lam0!r} and {c0!r}.")
        self.lam0, self.c0 = lam0, c0
        self.lam, self.step, self.stale = 0.0, lam0, 0

    def update(self, enough: bool) -> None:
        """After an epoch that did or did not remove as many operations as it may."""
        if enough:
            # Without the step back λ keeps removing, and no network in between settles enough to be emitted.
            self.stale, self.step, self.lam = 0, self.lam0, self.lam / self.c0
        else:
            self.stale += 1
            self.step *= self.c0
            self.lam += self.step


class ResourcePenalty(SearchObjective):
    """λ (R_FLOPs + μ R_uniform), the pruning at the end of each epoch, and the end at a number of MACs.

    Args:
        mu: weight of counting operations against counting their cost.
        costs: ``"macs"``, ``"params"``, or operation -> cost (in whatever unit ``minimum`` is in).
        minimum: cost of the network, the fixed part included, at which the search ends; None to use all epochs.
        pressure: the rule for λ.

    Raises:
        UsageError: μ outside [0, 1]; in use: an operation without a cost, a minimum that is not below the cost of the
            whole network or that no network of the space attains, or a mix that cannot be pruned.
    """

    def __init__(
        self,
        mu: float = 1.0,
        costs: str | Mapping[str, float] = "macs",
        minimum: float | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        if not 0.0 <= mu <= 1.0:
            raise UsageError(f"ResourcePenalty: mu is from 0 to 1, not {mu!r}.")
        self.mu, self.costs, self.minimum = mu, costs, minimum
        self.pressure = pressure or Pressure()
        self.cost = ExpectedCost("none", {})
        self.removed: list[str] = []

    def started(self, state: SearchState) -> None:
        if not isinstance(state.mix, PrunedGates):
            raise UsageError(f"ResourcePenalty prunes gates, so it needs mix=PrunedGates(), not {state.mix!r:.60}.")
        self.cost = self._table(state)
        entries = torch.cat(list(self.cost.table.values()))
        if not bool(entries.sum() > 0):
            raise UsageError("ResourcePenalty: no operation costs anything, so there is no price to pay.")
        scale = 1.0 / float(entries.mean())
        self._prices = {n: (c * scale + self.mu).float() for n, c in self.cost.table.items()}
        whole = self._spent(state.mix.live)
        least = self.cost.constant + sum(float(c.min()) for c in self.cost.table.values())
        if self.minimum is not None and self.minimum >= whole:
            raise UsageError(
                f"The whole network costs {whole:.6g} {self.cost.metric}, which is within the minimum of "
                f"{self.minimum:.6g}: there is nothing to prune. Lower the minimum."
            )
        if self.minimum is not None and self.minimum < least:
            raise UsageError(
                f"No network of {state.supernet.space.name} costs as little as {self.minimum:.6g} {self.cost.metric}; "
                f"the smallest, with one operation a node, costs {least:.6g}."
            )
        self._finished = False

    def _table(self, state: SearchState) -> ExpectedCost:
        space, rows = state.supernet.space, state.parameters.rows
        if isinstance(self.costs, str):
            return expected_cost(space, state.parameters, self.costs)  # type: ignore[arg-type]
        table = {}
        for name, row in rows.items():
            operations = [label.split("<")[0] for label in row.labels]
            missing = [op for op in operations if not math.isfinite(self.costs.get(op, math.nan))]
            if missing:
                raise UsageError(
                    f"Operation {missing[0]!r} of node {name!r} has no cost; costs are given for "
                    f"{', '.join(self.costs) or 'nothing'}."
                )
            table[name] = torch.tensor([float(self.costs[op]) for op in operations]) * len(row.modules)
        return ExpectedCost("units of the given costs", table)

    def penalty(self, weights: Mapping[str, Tensor], moment: Moment) -> Tensor | float:
        if self.pressure.lam == 0.0:
            return 0.0
        sigma, price = torch.cat([weights[n] for n in self._prices]), torch.cat(list(self._prices.values()))
        return self.pressure.lam * resource_penalty(sigma, price.to(sigma))

    def epoch_ended(self, state: SearchState) -> None:
        mix = state.mix
        assert isinstance(mix, PrunedGates)  # checked at the start
        self.removed = mix.prune(state.mixture_weights())
        self.pressure.update(len(self.removed) >= mix.n0)
        self._finished = self.minimum is not None and self._spent(mix.live) <= self.minimum

    def _spent(self, live: Mapping[str, Tensor]) -> float:
        return float(self.cost({n: m.double() for n, m in live.items()}))

    @property
    def finished(self) -> bool:
        return self._finished

    def figures(self) -> dict[str, Any]:
        return {"lambda": self.pressure.lam, "stale": self.pressure.stale, "removed": self.removed}

    def state_dict(self) -> dict[str, Any]:
        return {"pressure": dict(vars(self.pressure)), "finished": self._finished}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self.pressure).update(state["pressure"])
        self._finished = state["finished"]
