"""BNAS: a space of one-bit convolutions, narrowed by measuring the operations that α likes least.

Chen, Zhang, Liu, Liu, Doermann, Ji, Guo. Binarized Neural Architecture Search. 2019. https://arxiv.org/abs/1911.10862

    K = |O|;  s = 0;  while K > 1:
      train the supernet (partial channels, first order) for L epochs
      W = the ⌈K/2⌉ options of each edge with the smallest α
      T times: draw the options of W without replacement, one on every edge: a network; train it for a pass, y = A_val
      s'(o) = softmax over W of mean_t y_o           for o in W
            = (max + mean of s' over W) / 2          for the others
      s = s/2 + s';  drop argmin s of each edge (equals: the smaller α);  K = K - 1
    each node keeps the edges whose options have the largest s

α alone is unreliable where gradients pass through signs, so it only chooses what is measured. T Σ_K ⌈K/2⌉ networks are
measured, however many edges there are. Fills the `mix` (partial channels) and `select` slots and brings its space,
``operations="binary"`` (:mod:`archipel.spaces.binary_operations`). The kernels' projection loss (PCNN) is an objective.

Departures: L is the schedule's epochs over |O| − 1; where edges differ in their number of options, the smaller ones
start a new draw when all of theirs are used; an option that cannot be chosen (``none`` in DARTS cells) is never the
last; a search that is cut short keeps of each edge the option with the largest s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.objective import CrossEntropy
from archipel.search.differentiable.pc_darts import PartialChannels
from archipel.search.differentiable.performance_drop import PerformanceDrop
from archipel.search.differentiable.schedule import Schedule
from archipel.spaces.binary_operations import projection_loss

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


class KernelProjection(CrossEntropy):
    """Adds the projection loss of binary kernels, θ · ½ Σ ‖W − C sign(W)‖², to what the weights descend on.

    Args:
        theta: its weight.
        lr: if given, the projection loss is descended on by itself after each step, by plain SGD at this rate.

    Raises:
        UsageError: a number that is not positive; at the start, a network without binary convolutions.
    """

    def __init__(self, theta: float = 1e-4, lr: float | None = None) -> None:
        super().__init__()
        for name, value in {"theta": theta, "lr": lr}.items():
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"KernelProjection: {name} must be positive, not {value!r}.")
        self.theta, self.lr = theta, lr

    def started(self, state: SearchState) -> None:
        if not projection_loss(state.supernet).requires_grad:
            raise UsageError("KernelProjection: the supernet has no binary convolutions; take operations='binary'.")

    def weight_loss(self, state: SearchState, output: Tensor, x: Tensor, y: Tensor) -> Tensor:
        loss = super().weight_loss(state, output, x, y)
        return loss if self.lr is not None else loss + self.theta * projection_loss(state.supernet)

    def step_ended(self, state: SearchState) -> None:
        if self.lr is None:
            return
        names, weights = list(state.weights), list(state.weights.values())
        found = torch.autograd.grad(self.theta * projection_loss(state.supernet), weights, allow_unused=True)
        with torch.no_grad():
            for name, g in zip(names, found):
                if g is not None:
                    state.weights[name].sub_(g, alpha=self.lr)


# Four epochs a round with the eight operations of DARTS cells; otherwise as PC-DARTS.
SCHEDULE = Schedule(epochs=28, batch_size=256, lr=0.1, lr_min=0.0, alpha_lr=6e-4)


@register(
    "bnas",
    card=60,
    family="search.differentiable",
    slots=["mix", "select"],
    paper=Paper("Binarized Neural Architecture Search", 2019, "https://arxiv.org/abs/1911.10862"),
)
def bnas(
    K: int = 4,
    tests: int = 3,
    sample_epochs: int = 1,
    schedule: Schedule | dict[str, Any] | str | None = None,
    **slots: Any,
) -> DifferentiableSearch:
    """Partial-channel search that drops one operation of each edge at a time, measured on sampled networks.

    Args:
        K: parts of the channels; see :class:`~archipel.search.differentiable.pc_darts.PartialChannels`.
        tests, sample_epochs: see :class:`PerformanceDrop`.
        schedule: 28 epochs by default, shared out evenly among the rounds.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    >>> bnas(tests=2).select.tests
    2
    """
    mix = PartialChannels(K, weigh_edges=False)
    select = PerformanceDrop(tests, sample_epochs)
    return DifferentiableSearch(mix=mix, schedule=schedule or SCHEDULE, select=select, **slots)
