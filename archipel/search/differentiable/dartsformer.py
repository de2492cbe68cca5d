"""DARTSformer: DARTS on reversible Transformers, whose memory does not grow with depth.

Zhao, Dong, Shen, Zhang, Wei, Chen. Memory-Efficient Differentiable Transformer Architecture Search. 2021.
https://arxiv.org/abs/2105.14669

    node      G_k = Σ_o softmax(α_k)_o · õ(pool of the other parts)    õ(h) = LayerNorm(h + o(h)) but for zero, identity
    backward  reconstruction of X from Y, layer by layer: only the last output of a stack is kept
    search    w by Adam (0.9, 0.98) with a warm-up and lr ~ 1/sqrt(step) on one part of the data, α by Adam with a
              constant lr on the other; label smoothing
    answer    the largest weight of each node, zero among them; the network is trained by ordinary backpropagation

The stack is :mod:`archipel.nets.reversible`, the space :mod:`archipel.spaces.reversible_transformer`. Mixture weights
are ordinary inputs of the stack's autograd function, so any mix works, and so does any arch-gradient of first order.
Fills the `schedule`, `objective` and `select` slots. Departure: batches hold so many sequences, not so many tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.choice import Choice
from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.arch_gradient import SecondOrder
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.objective import CrossEntropy
from archipel.search.differentiable.parameters import Moment
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Argmax, Select
from archipel.search.training import loss_of

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """Adam for both; the weights' rate rises linearly for ``rise`` steps to ``lr`` and then falls as 1/sqrt(step).

    Args:
        rise: steps of the rise; with 0 the rate falls from the first step.
        betas: of the weights' Adam.

    Raises:
        UsageError: a negative rise.
    """

    batch_size: int = 64
    lr: float = 5e-4
    weight_decay: float = 0.0
    alpha_lr: float = 3e-4
    alpha_betas: tuple[float, float] = (0.9, 0.98)
    rise: int = 10_000
    betas: tuple[float, float] = (0.9, 0.98)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rise < 0:
            raise UsageError(f"InverseSqrt: rise is a number of steps, not {self.rise!r}.")

    def rate(self, moment: Moment) -> float:
        step, top = moment.step + 1, max(1, self.rise)
        return self.lr * min(step / top, (top / step) ** 0.5)

    def weight_optimizer(self, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(weights, self.lr, self.betas, weight_decay=self.weight_decay)


class SmoothedCrossEntropy(CrossEntropy):
    """Cross entropy with smoothed labels on both parts of the data.

    Args:
        smoothing: share of the mass that is spread over all labels, in [0, 1).

    Raises:
        UsageError: another share.
    """

    def __init__(self, smoothing: float = 0.1) -> None:
        if not 0.0 <= smoothing < 1.0:
            raise UsageError(f"Label smoothing is a share from 0 to below 1, not {smoothing!r}.")
        self.smoothing = smoothing

    def weight_loss(self, state: SearchState, output: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return loss_of(state.task, output, y, self.smoothing)

    def arch_loss(self, state: SearchState, output: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return loss_of(state.task, output, y, self.smoothing)


class ArgmaxOfAll(Argmax):
    """The options with the largest weights, zero operations among them: a node may leave its part as it is."""

    def __call__(self, state: SearchState) -> Arch:
        arch = super().__call__(state)
        for name, scores in state.scores().items():
            choice = state.parameters.rows[name].modules[0]
            if isinstance(choice, Choice) and name in arch:
                arch[name] = choice.decision.options[int(scores[: len(choice.decision.options)].argmax())]
        return arch

    def glance(self, state: SearchState) -> Arch:
        return self(state)


@register(
    "dartsformer",
    card=141,
    family="search.differentiable",
    slots=["schedule", "objective", "select"],
    paper=Paper(
        "Memory-Efficient Differentiable Transformer Architecture Search", 2021, "https://arxiv.org/abs/2105.14669"
    ),
)
def dartsformer(smoothing: float = 0.1, schedule: Schedule | None = None, **slots: Any) -> DifferentiableSearch:
    """Differentiable search of Transformers, meant for the space of reversible ones.

    Args:
        smoothing: of the labels.
        schedule: :class:`InverseSqrt` by default, with the paper's 10,000 steps of warm-up.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    Raises:
        UsageError: an arch-gradient of second order.

    >>> dartsformer().schedule.rate(Moment(0, 1, 9_999, 60_000))
    0.0005
    """
    if isinstance(slots.get("arch_gradient"), SecondOrder):
        raise UsageError(
            "DARTSformer's weights are stepped by Adam, which SecondOrder does not look ahead for, and its reversible "
            "stack can only be differentiated once. Use a gradient of first order."
        )
    slots.setdefault("objective", SmoothedCrossEntropy(smoothing))
    select: Select = slots.pop("select", None) or ArgmaxOfAll()
    return DifferentiableSearch(schedule=schedule or InverseSqrt(), select=select, **slots)
