"""A model of two numbers on which architecture gradients can be followed to their ends.

Liu, Simonyan, Yang. DARTS: Differentiable Architecture Search. 2018. https://arxiv.org/abs/1806.09055, section 2.3

    L_val = αw − 2α + 1,   L_train = w² − 2αw + α²        optimum of the bilevel problem: α = w = 1

Where searches end on it, with small steps:

    first order                α = w = 2
    second order, step ξ       α = w = 2 / (1 + 2ξ)         the optimum for ξ = 1/2 only
    descent on L_train + L_val α = 4/3, w = 2/3
    split weights (RARTS)      α = 2 / (2 − 1/(2λ) − 1/β),  w = α (1 − 1/(2λ)),  y = 2 − α
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.search.differentiable.arch_gradient import ArchGradient, Batch, Tensors
from archipel.search.training import Diverged

NO_BATCH: Batch = (torch.zeros(1), torch.zeros(1))


class SolvableModel:
    """The model as the state of a search: weights and logit take plain gradient steps.

    Args:
        eta: size of the steps.
        alpha, w: where they start.
    """

    def __init__(self, eta: float = 0.01, alpha: float = 2.0, w: float = -2.0) -> None:
        self.step_size = eta
        self.weights: Tensors = {"w": torch.tensor([w], dtype=torch.double).requires_grad_()}
        self.logits: Tensors = {"α": torch.tensor([alpha], dtype=torch.double).requires_grad_()}
        self.schedule = SimpleNamespace(
            warmup=0, clip=0.0, weight_optimizer=lambda weights: torch.optim.SGD(weights, eta)
        )
        self.moment = SimpleNamespace(epoch=0)
        self.weight_optimizer = torch.optim.SGD(list(self.weights.values()), eta)
        self.halves = None

    def train_loss(self, batch: Batch, weights: Tensors | None = None, logits: Tensors | None = None) -> Tensor:
        w, a = (weights or self.weights)["w"], (logits or self.logits)["α"]
        return (w * w - 2 * a * w + a * a).sum()

    def val_loss(self, batch: Batch, weights: Tensors | None = None, logits: Tensors | None = None) -> Tensor:
        w, a = (weights or self.weights)["w"], (logits or self.logits)["α"]
        return (a * w - 2 * a + 1).sum()

    def descent(self, gradient: Mapping[str, Tensor]) -> Tensors:
        return dict(gradient)

    def checked(self, loss: Tensor) -> float:
        return float(loss.detach())

    def step_weights(self) -> None:
        self.weight_optimizer.step()

    def weight_step(self, batch: Batch) -> float:
        loss = self.train_loss(batch)
        self.weights["w"].grad = torch.autograd.grad(loss, self.weights["w"])[0]
        self.step_weights()
        return self.checked(loss)

    def alpha_step(self, gradient: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            self.logits["α"] -= self.step_size * gradient["α"]

    def joint_step(self, batch: Batch) -> float:
        """Both step by the gradient of L_train + L_val: the whole data in one loss."""
        loss = self.train_loss(batch) + self.val_loss(batch)
        g_w, g_a = torch.autograd.grad(loss, [self.weights["w"], self.logits["α"]])
        self.weights["w"].grad = g_w
        self.step_weights()
        self.alpha_step({"α": g_a})
        return self.checked(loss)

    @property
    def point(self) -> tuple[float, float]:
        """(α, w)."""
        return float(self.logits["α"].detach()), float(self.weights["w"].detach())


def follow(
    gradient: ArchGradient,
    model: SolvableModel,
    steps: int = 40_000,
    rest: float = 1e-9,
    watch: Callable[[], float] | None = None,
) -> list[float]:
    """Let a search run on the model until it rests, or for so many steps.

    Args:
        rest: it rests when no number moves by more than this in a step.
        watch: called before the first and after each step; what it gives is returned.

    Raises:
        Diverged: the numbers are no longer finite; the steps are too large.
    """
    gradient.started(model)  # type: ignore[arg-type]
    seen = [watch()] if watch else []
    last = model.point
    for _ in range(steps):
        gradient.update(model, NO_BATCH, NO_BATCH)  # type: ignore[arg-type]
        seen += [watch()] if watch else []
        here = model.point
        if not all(map(math.isfinite, here)):
            raise Diverged(f"the solvable model left the numbers with steps of {model.step_size}; take smaller ones")
        if max(abs(a - b) for a, b in zip(here, last)) <= rest:
            break
        last = here
    return seen


def split_stationary_point(lam: float, beta: float) -> tuple[float, float, float]:
    """Where split weights rest: (α, w, y).

    The Lagrangian's Hessian in (y, w, α) has determinant 2λβ(2 − 1/(2λ) − 1/β); where that is positive the point is a
    strict minimum.

    Raises:
        UsageError: the penalties are too small: there is no minimum.

    >>> [round(v, 6) for v in split_stationary_point(10, 10)]
    [1.081081, 1.027027, 0.918919]
    """
    slack = 2 - 1 / (2 * lam) - 1 / beta if lam > 0 and beta > 0 else -float("inf")
    if slack <= 0:
        raise UsageError(
            f"The model has no minimum at λ={lam!r}, β={beta!r}: the penalties are too small. It needs "
            f"2 − 1/(2λ) − 1/β > 0, for instance λ = β = 1."
        )
    alpha = 2 / slack
    return alpha, alpha * (1 - 1 / (2 * lam)), 2 - alpha
