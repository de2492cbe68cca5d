"""DARTS-PT: an architecture weight does not tell how much an operation matters; leaving the operation out does.

Wang, Cheng, Chen, Tang, Hsieh. Rethinking Architecture Selection in Differentiable NAS. 2021.
https://arxiv.org/abs/2108.04392

    train any supernet; then, edge by edge in random order,
    o* = argmin_o  A_val(supernet with option o of the edge left out, the other weights as they are)
    fix the edge to o*, train the supernet on (lr/10, cosine); afterwards cut each node to k sources in the same way

Why α misleads (Proposition 1): where m is the best feature map of an edge with input x, and skip and convolution miss
it by uncorrelated errors of mean zero, Var(θ_c o(x) + θ_s x − m) with θ_c + θ_s = 1 is least at

    θ_c = Var(x − m) / (Var(x − m) + Var(o(x) − m))        -> :func:`least_variance_weights`

so the better the convolutions make x, the more weight the skip gets.

Fills the `select` slot (:class:`~archipel.search.differentiable.perturbation.Perturbation`). Variants: ``blank`` never
trains α and gives all options equal weights; ``smoothing`` adds uniform noise to the weights before each step of w
(SDARTS-RS, Chen and Hsieh, 2020, https://arxiv.org/abs/2002.05283). Departures: equal accuracies, common on little
data, are told apart by their loss; the measurements are made on the architecture's half of the training data, so that
validation data take no part; the zero operation is measured everywhere but kept only where the space has it as an
option; negative weights after noise are cut to zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.arch_gradient import ArchGradient, Batch, FirstOrder, Tensors
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.parameters import Moment, Row
from archipel.search.differentiable.perturbation import Perturbation
from archipel.search.differentiable.schedule import Schedule

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


class Uniform(Mix):
    """All options of an edge weigh the same, whatever the logits."""

    def coefficients(self, logits: Tensor, row: Row, moment: Moment) -> Tensor:
        return torch.full_like(logits, 1.0 / len(logits), requires_grad=False)


class Frozen(ArchGradient):
    """Only the weights learn."""

    def gradient(self, problem: Any, train: Batch, val: Batch) -> Tensors:
        return {}

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        return state.weight_step(train)


class RandomSmoothing(FirstOrder):
    """First order; the weights step under mixture weights plus U(−ε_t, ε_t), where ε_t grows linearly to ε.

    Args:
        epsilon: ε, at most the 1e-3 of the paper for this method; at most 0.3 for SDARTS.

    Raises:
        UsageError: ε is not positive.
    """

    def __init__(self, epsilon: float = 1e-3) -> None:
        if not 0.0 < epsilon < 1.0:
            raise UsageError(f"Random smoothing: epsilon must be between 0 and 1, not {epsilon!r}.")
        self.epsilon = epsilon

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        moment = state.moment
        if moment.epoch >= state.schedule.warmup:
            state.alpha_step(self.gradient(state, train, val))
        epsilon = self.epsilon * (moment.epoch + 1) / moment.epochs
        constant = {n: p.detach() for n, p in state.logits.items()}
        mixture = state.mixture_weights(constant, training=True)
        for name, row in state.parameters.rows.items():
            w = mixture[name]
            if row.is_choice and int((w != 0).sum()) > 1:  # an edge that is still undecided
                mixture[name] = (w + torch.empty_like(w).uniform_(-epsilon, epsilon)).clamp_min(0.0)
        return state.weight_step(train, mixture)


def least_variance_weights(x: Tensor, o_x: Tensor, m: Tensor) -> tuple[float, float]:
    """(θ_conv, θ_skip) of Proposition 1, from an edge's input, its convolution's output and the map aimed at.

    >>> x = torch.tensor([0.5, -0.5]); least_variance_weights(x, 2 * x, torch.zeros(2))
    (0.2, 0.8)
    """
    skip, conv = (float((t - m).var(correction=0)) for t in (x, o_x))
    if skip + conv == 0.0:
        raise UsageError("Skip and convolution both equal the map aimed at, so any weights are optimal.")
    return skip / (skip + conv), conv / (skip + conv)


@register(
    "darts-pt",
    card=76,
    family="search.differentiable",
    slots=["select"],
    paper=Paper("Rethinking Architecture Selection in Differentiable NAS", 2021, "https://arxiv.org/abs/2108.04392"),
)
def darts_pt(
    tune: int = 10,
    criterion: str = "accuracy",
    blank: bool = False,
    smoothing: float = 0.0,
    order: int = 1,
    schedule: Schedule | dict[str, Any] | str | None = None,
    **slots: Any,
) -> DifferentiableSearch:
    """DARTS whose answer is read off by leaving out one operation at a time.

    Args:
        tune, criterion: see :class:`~archipel.search.differentiable.perturbation.Perturbation`.
        blank: equal weights throughout; nothing but the selection searches.
        smoothing: ε of the noise before each step of the weights, or 0.
        order: of the architecture's gradient, 1 or 2.
        schedule: of the supernet; the epochs of ``tune`` come on top.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    Raises:
        UsageError: variants that exclude each other.

    >>> darts_pt(tune=5, blank=True).select.tune
    5
    """
    if blank:
        if smoothing or order != 1 or {"mix", "arch_gradient"} & slots.keys():
            raise UsageError("darts-pt: blank=True has equal weights that never learn; leave the other variants out.")
        slots |= {"mix": Uniform(), "arch_gradient": Frozen()}
    elif smoothing:
        if order != 1 or "arch_gradient" in slots:
            raise UsageError("darts-pt: smoothing is of first order; leave order and arch_gradient out.")
        slots["arch_gradient"] = RandomSmoothing(smoothing)
    return darts(order, schedule, select=Perturbation(tune, criterion), **slots)
