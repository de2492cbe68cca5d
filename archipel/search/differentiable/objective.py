"""The `objective` slot: what weights and architecture are optimised for, and what limits the architecture.

    weights        min_w  L_train(w, α)
    architecture   min_α  L_val(w, α) + penalty(p)     s.t. α ∈ feasible set (``project``)

Penalties see the mixture weights p, so that expected costs are differentiable; constraints act on α after its step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from archipel.core.errors import UsageError
from archipel.search.differentiable.mix import Slot
from archipel.search.differentiable.parameters import ArchParameters, Moment
from archipel.search.training import loss_of

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


class SearchObjective(Slot):
    """The task's own loss and no constraint; methods override what they change."""

    def weight_loss(self, state: SearchState, output: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """What the weights descend on, for one batch."""
        return loss_of(state.task, output, y)

    def arch_loss(self, state: SearchState, output: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The data term of what the architecture descends on, for one batch."""
        return loss_of(state.task, output, y)

    def penalty(self, weights: Mapping[str, Tensor], moment: Moment) -> Tensor | float:
        """Added to the architecture's loss; a function of the mixture weights."""
        return 0.0

    def total(self, loss: Tensor, weights: Mapping[str, Tensor], moment: Moment) -> Tensor:
        """The data term and the penalty together; a sum unless overridden."""
        return loss + self.penalty(weights, moment)

    def project(self, parameters: ArchParameters, moment: Moment) -> None:
        """Bring the logits back into the feasible set, in place; called after each of their steps."""


class CrossEntropy(SearchObjective):
    """Cross entropy on both halves of the data (squared error if the task is a regression), without constraints.

    Args:
        label_smoothing: of what the weights descend on.

    Raises:
        UsageError: a smoothing outside [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"Label smoothing must be at least 0 and below 1, not {label_smoothing!r}.")
        self.label_smoothing = label_smoothing

    def weight_loss(self, state: SearchState, output: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return loss_of(state.task, output, y, self.label_smoothing)
