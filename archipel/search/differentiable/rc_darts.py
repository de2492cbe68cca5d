"""RC-DARTS: architecture parameters are projected onto a resource budget, and the derived network is held to it.

Jin, Wang, Slocum, Yang, Dai, Yan, Feng. RC-DARTS: Resource Constrained Differentiable Architecture Search. 2019.
https://arxiv.org/abs/1912.12814

    min_α L_val(w*(α), α)   s.t.  C_L <= Φ_r(α) <= C_U  for each resource r
    Φ_r(α) = c_0 + Σ_levels Σ_edges n_e Σ_o softmax(α_e)_o c_e,o     n_e: share of edges that a node keeps (2/indegree)
    T steps of DARTS, then  α <- argmin_a |a - α|²  s.t. the bounds; so on; once more at the end

Then DARTS' derivation, which breaks the budget as often as not, and its repair
(:class:`~archipel.search.differentiable.within_budget.WithinBudget`). Levels of depth have cells of their own where the
space says so: ``tie="level"`` of the DARTS space gives normal cells before, between and after the reductions their own
parameters, and the reductions theirs; costs count at each level's width and resolution.

Fills the slots `objective` (:class:`HardCost`, for any mix) and `select`. Known differences: the projection is found by
an augmented Lagrangian, not by a search for the multiplier of a plain one, which for some α ends far below the bound
(:mod:`~archipel.search.differentiable.projection`); bounds are on whole networks, what is not searched included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from archipel.core.errors import SpaceError, UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.cost.limits import limits_behind
from archipel.search.differentiable.budget import Budget, CostEntries, Limit
from archipel.search.differentiable.costs import METRICS, ExpectedCost
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.objective import SearchObjective
from archipel.search.differentiable.parameters import ArchParameters, Moment
from archipel.search.differentiable.projection import Costs, SoftmaxCosts, penalise, project
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.within_budget import Repair, WithinBudget
from archipel.search.strategy import Problem
from archipel.spaces.module_space import ModuleSpace

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

METHODS = ("projection", "penalty")


class HardCost(SearchObjective):
    """The task's loss within bounds on expected costs, which a projection of the logits keeps.

    Args:
        upper, lower, tables: bounds on the costs of the whole network; see
            :class:`~archipel.search.differentiable.budget.Budget`.
        every: steps of the architecture from one projection to the next.
        kept: whether an edge's cost counts by the share of edges that its node keeps.
        method: ``"projection"``, or ``"penalty"``: cheaper, not the nearest point, bounds kept within 1e-3.
        step: of the penalty's gradient steps.

    Attributes:
        active: how many projections have moved the logits.

    Raises:
        UsageError: another method, or ``every`` below 1.
    """

    def __init__(
        self,
        upper: Mapping[str, Limit],
        lower: Mapping[str, Limit] | None = None,
        tables: Mapping[str, CostEntries] | None = None,
        every: int = 1,
        kept: bool = True,
        method: str = "projection",
        step: float = 0.1,
    ) -> None:
        if method not in METHODS:
            raise UsageError(f"HardCost: no method {method!r}. {suggest(method, METHODS)}")
        if not isinstance(every, int) or every < 1:
            raise UsageError(f"HardCost: every is a number of steps from 1 on, not {every!r}.")
        self.budget = Budget(upper, lower, tables)
        self.every, self.kept, self.method, self.step = every, kept, method, step
        self.active = 0

    def started(self, state: SearchState) -> None:
        """
        Raises:
            SpaceError: options of this space have no costs of their own.
            InfeasibleError: a bound that nothing keeps; says what can be attained.
        """
        space = state.supernet.space
        if not isinstance(space, ModuleSpace):
            raise SpaceError(f"Costs are counted in spaces made of a module, which {space.name} is not.")
        self.mix = state.mix
        self.expected = self.budget.costs(space, state.parameters, self.kept)
        discrete = Repair(self.budget, space, state.parameters).attainable()
        ranges = [(e.range, d) for e, d in zip(self.expected, discrete)]
        self.budget.check([(max(e[0], d[0]), max(e[1], d[1])) for e, d in ranges])

    def project(self, parameters: ArchParameters, moment: Moment) -> None:
        if (moment.step + 1) % self.every == 0 or moment.step + 1 == moment.steps:
            self.enforce(parameters, moment)

    def enforce(self, parameters: ArchParameters, moment: Moment) -> None:
        """Project now; logits that keep the bounds stay as they are, bit for bit.

        Raises:
            InfeasibleError: the bounds cannot be kept together.
        """
        bounds = self.budget.bounds
        if not bounds:
            return
        names = list(self.expected[0].table)
        alpha = torch.cat([parameters.logits[n].detach() for n in names])
        costs = expected_costs(self.expected, self.mix, parameters, moment)
        if self.method == "penalty":
            moved = penalise(costs, alpha.numpy(force=True), bounds, self.step)
        else:
            moved = project(costs, alpha.numpy(force=True), bounds)
        a = torch.from_numpy(moved).to(alpha)
        if torch.equal(a, alpha):
            return
        self.active += 1
        with torch.no_grad():
            for name, part in zip(names, a.split([len(parameters.logits[n]) for n in names])):
                parameters.logits[name].copy_(part)

    def state_dict(self) -> dict[str, Any]:
        return {"active": self.active}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.active = state["active"]


def expected_costs(expected: Sequence[ExpectedCost], mix: Mix, parameters: ArchParameters, moment: Moment) -> Costs:
    """Expected costs as a function of the logits: in closed form for a softmax, else by automatic differentiation."""
    names = list(expected[0].table)
    lengths = [len(parameters.logits[n]) for n in names]
    tables = np.stack([torch.cat([e.table[n] for n in names]).numpy() for e in expected])
    if type(mix).coefficients is Mix.coefficients and type(mix).weights is Mix.weights:
        return SoftmaxCosts(tables, lengths, [e.constant for e in expected])
    return MixtureCosts(tables, expected, mix, parameters, replace(moment, training=False))


class MixtureCosts(Costs):
    """Expected costs under any mix, by automatic differentiation."""

    def __init__(
        self,
        tables: np.ndarray,
        expected: Sequence[ExpectedCost],
        mix: Mix,
        parameters: ArchParameters,
        moment: Moment,
    ) -> None:
        super().__init__(tables)
        self.expected, self.mix, self.rows, self.moment = expected, mix, parameters.rows, moment
        self.logits = {n: t.detach().double() for n, t in parameters.logits.items()}
        self.lengths = {n: len(self.logits[n]) for n in expected[0].table}

    def __call__(self, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Raises:
            UsageError: costs have no gradient under this mix.
        """
        x = torch.from_numpy(np.asarray(a, dtype=float)).requires_grad_()
        with torch.enable_grad():
            logits = self.logits | dict(zip(self.lengths, x.split(list(self.lengths.values()))))
            weights = self.mix.weights(logits, self.rows, self.moment)
            phi = [e(weights) for e in self.expected]
        if not all(p.requires_grad for p in phi):
            raise UsageError(
                f"{type(self.mix).__name__} takes one option of each choice when no noise is drawn; its expected cost "
                f"has no gradient and cannot be projected. Use a penalty, or hold only the answer to the budget "
                f"(WithinBudget)."
            )
        gradients = [torch.autograd.grad(p, x, retain_graph=True)[0].numpy() for p in phi]
        return np.array([float(p.detach()) for p in phi]), np.stack(gradients)


class ProjectThenRepair(WithinBudget):
    """Projects once more, whenever the search ended, and then derives and repairs."""

    def answers(self, state: SearchState) -> list[dict[str, Any]]:
        if isinstance(state.objective, HardCost):
            state.objective.enforce(state.parameters, state.moment)
        return super().answers(state)


# Section 4 of the paper follows DARTS; the number of steps between projections is ours.
SCHEDULE = Schedule(epochs=50, batch_size=64, lr=0.025, alpha_lr=3e-4, alpha_decay=1e-3)


@register(
    "rc-darts",
    card=43,
    family="search.differentiable",
    slots=["objective", "select"],
    paper=Paper(
        "RC-DARTS: Resource Constrained Differentiable Architecture Search", 2019, "https://arxiv.org/abs/1912.12814"
    ),
)
class RCDarts(DifferentiableSearch):
    """Differentiable search within bounds on parameters and MACs, which the returned network keeps.

    Args:
        upper, lower: cost -> bound of the whole network, as ``{"params": "20k"}``; without any, the limits of the
            search (``--limit``) are the upper ones.
        tables: see :class:`~archipel.search.differentiable.budget.Budget`.
        every, kept, method, step: see :class:`HardCost`.
        schedule: that of DARTS by default.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    Raises:
        UsageError: bounds that make no sense; at the start of a search, none at all.

    >>> RCDarts(upper={"params": 20000}, every=15).objective.every
    15
    """

    def __init__(
        self,
        upper: Mapping[str, Limit] | None = None,
        lower: Mapping[str, Limit] | None = None,
        tables: Mapping[str, CostEntries] | None = None,
        every: int = 15,
        kept: bool = True,
        method: str = "projection",
        step: float = 0.1,
        schedule: Schedule | None = None,
        **slots: Any,
    ) -> None:
        self._settings = {"every": every, "kept": kept, "method": method, "step": step}
        self._bounded = bool(upper or lower)
        bounds = upper if self._bounded else {"params": float("inf")}  # until there are limits
        super().__init__(
            objective=HardCost(bounds or {}, lower, tables, **self._settings),
            schedule=schedule or SCHEDULE,
            **{"select": ProjectThenRepair(), **slots},
        )

    def setup(self, problem: Problem) -> None:
        """
        Raises:
            UsageError: no bounds, neither of its own nor as limits of the search.
        """
        if not self._bounded:
            limits = limits_behind(problem.feasible)
            upper = {m: v for m, v in (limits.by_metric if limits else {}).items() if m in METRICS}
            if not upper:
                raise UsageError(
                    "rc-darts searches within a budget and was given none: limit the search (as in --limit params=20k) "
                    "or set bounds (as in upper={'params': 20000})."
                )
            self.objective = HardCost(upper, **self._settings)
        super().setup(problem)
