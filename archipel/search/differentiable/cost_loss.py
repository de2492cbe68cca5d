"""Objectives in which the expected cost of the architecture takes part, differentiably.

    E = c_0 + Σ_layers Σ_o p_o F(o)                 F: counted (parameters, MACs), or a table of your own (milliseconds)

    mul-log       L · λ (ln E / ln T)^β             ProxylessNAS, 2018, https://arxiv.org/abs/1812.00332
    add-linear    L + λ (E − T) / T                 ProxylessNAS
    add-log       L + λ ln E                        Single-Path NAS, 2019, https://arxiv.org/abs/1904.02877

L is the data term of the architecture. During the schedule's warm-up the cost takes no part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from archipel.core.errors import SpaceError, UsageError, suggest
from archipel.search.differentiable.costs import ExpectedCost, expected_cost, tabled_cost
from archipel.search.differentiable.objective import CrossEntropy
from archipel.search.differentiable.parameters import Moment
from archipel.spaces.module_space import ModuleSpace

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

FORMS = ("mul-log", "add-linear", "add-log")


class CostLoss(CrossEntropy):
    """The task's loss, with the expected cost in the architecture's part of it.

    Args:
        cost: ``"params"`` or ``"macs"``, which are counted; or a table: row -> option -> what it adds.
        form: see the module's docstring.
        target: T, in the unit of the cost; ``add-log`` has none.
        weight: λ.
        power: β of ``mul-log``.
        constant: c_0 of a given table.
        label_smoothing: of the cross entropy that the weights descend on.

    Attributes:
        expected: the cost's expectation, once the search has started.

    Raises:
        UsageError: another form, a negative weight, a target that is missing, superfluous, not positive or, for
            ``mul-log``, at most 1 (whose logarithm is not positive).
    """

    def __init__(
        self,
        cost: str | Mapping[str, Mapping[str, float]] = "macs",
        form: str = "add-linear",
        target: float | None = None,
        weight: float = 0.1,
        power: float = 0.3,
        constant: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        if form not in FORMS:
            raise UsageError(f"CostLoss: no form {form!r}. {suggest(form, FORMS)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"CostLoss: the weight λ of the cost must not be negative, got {weight!r}.")
        if (target is None) != (form == "add-log"):
            takes = "no" if form == "add-log" else "a"
            raise UsageError(f"CostLoss: form {form!r} takes {takes} target, got {target!r}.")
        if target is not None and not (math.isfinite(target) and target > 0):
            raise UsageError(f"CostLoss: the target must be positive, not {target!r}.")
        if form == "mul-log" and target is not None and target <= 1:
            raise UsageError(
                f"CostLoss: mul-log divides by ln T, which is not positive for the target {target!r}. "
                f"Give costs and target in a smaller unit, so that they are above 1."
            )
        super().__init__(label_smoothing)
        self.cost, self.form, self.target, self.weight, self.power = cost, form, target, weight, power
        self.constant = constant
        self.expected: ExpectedCost | None = None
        self._warmup = 0

    def started(self, state: SearchState) -> None:
        """
        Raises:
            SpaceError: a table without an entry for some option (names it), or costs of which no logarithm is positive.
        """
        space = state.supernet.space
        if not isinstance(space, ModuleSpace):
            raise SpaceError(f"Costs of options are found for spaces that are made of a module, not {space.name}.")
        if isinstance(self.cost, str):
            self.expected = expected_cost(space, state.parameters, self.cost)
        else:
            self.expected = tabled_cost(space, state.parameters, "the search", self.cost, self.constant)
        lowest, least = self.expected.range[0], {"mul-log": 1.0, "add-log": 0.0}.get(self.form, -math.inf)
        if lowest <= least:
            raise SpaceError(
                f"{self.form} needs costs above {least:g}, but the cheapest network of {space.name} costs {lowest:g}. "
                f"Use a smaller unit, add the constant cost of what every network has, or use add-linear."
            )
        self._warmup = state.schedule.warmup

    def total(self, loss: Tensor, weights: Mapping[str, Tensor], moment: Moment) -> Tensor:
        if moment.epoch < self._warmup:
            return loss
        assert self.expected is not None  # `started` has set it
        cost = self.expected(weights).to(loss.dtype)
        if self.form == "add-linear":
            assert self.target is not None  # checked in __init__
            return loss + self.weight * (cost / self.target - 1)
        if self.form == "add-log":
            return loss + self.weight * cost.log()
        assert self.target is not None
        return loss * self.weight * (cost.log() / math.log(self.target)) ** self.power
