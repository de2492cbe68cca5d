"""The `arch-gradient` slot: the gradient of the validation loss for the architecture, and the order of updates.

Liu, Simonyan, Yang. DARTS: Differentiable Architecture Search. 2018. https://arxiv.org/abs/1806.09055

    min_α L_val(w*(α), α)   s.t.  w*(α) = argmin_w L_train(w, α)

    first order    g = ∂_α L_val(w, α)
    second order   g = ∂_α L_val(w', α) − ξ M v     w' = w − ξ d(∂_w L_train(w, α)),  v = ∂_w' L_val(w', α)       (7)
    where          M v = ∂²_{αw} L_train · v ≈ [∂_α L_train(w + εv) − ∂_α L_train(w − εv)] / 2ε,  ε = r/‖v‖      (8)

and d adds the optimiser's momentum and weight decay, as the weights' next step would. The exact M v differentiates
⟨∂_w L_train, v⟩ for α. Both passes of the difference see the same random numbers, batch-norm statistics are left alone,
and the network's own weights are never written: they are passed in from outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.search.differentiable.mix import Slot
from archipel.search.training import Diverged

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

Batch = tuple[Tensor, Tensor]
Tensors = dict[str, Tensor]


class Bilevel(Protocol):
    """Two losses of weights and logits: what a gradient estimator needs to know of a search.

    Attributes:
        weights, logits: the current ones, by name.
        step_size: ξ, the learning rate of the weights' next step.
    """

    weights: Tensors
    logits: Tensors

    @property
    def step_size(self) -> float: ...

    def train_loss(self, batch: Batch, weights: Tensors | None = None, logits: Tensors | None = None) -> Tensor:
        """L_train; the current weights and logits unless others are given."""
        ...

    def val_loss(self, batch: Batch, weights: Tensors | None = None, logits: Tensors | None = None) -> Tensor:
        """L_val."""
        ...

    def descent(self, gradient: Mapping[str, Tensor]) -> Tensors:
        """What the weights' optimiser would subtract for a gradient, for a learning rate of 1."""
        ...


class ArchGradient(Slot):
    """How the architecture learns from a pair of batches."""

    def gradient(self, problem: Bilevel, train: Batch, val: Batch) -> Tensors:
        """The gradient for each row of logits; a row that the losses do not depend on is absent."""
        raise NotImplementedError

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        """One step of the search: the architecture (after the warm-up), then the weights; returns their loss."""
        if state.moment.epoch >= state.schedule.warmup:
            state.alpha_step(self.gradient(state, train, val))
        return state.weight_step(train)


class FirstOrder(ArchGradient):
    """The weights are taken for optimal as they are."""

    def gradient(self, problem: Bilevel, train: Batch, val: Batch) -> Tensors:
        return gradients(problem.val_loss(val), problem.logits)


class OneLevel(ArchGradient):
    """Weights and architecture step together, on the same batch and by the same backward pass.

    Meant for a schedule with ``alpha_share=0``, in which both have all of the training data.
    """

    def gradient(self, problem: Bilevel, train: Batch, val: Batch) -> Tensors:
        return gradients(problem.train_loss(train), problem.logits)

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        if state.moment.epoch < state.schedule.warmup:
            return state.weight_step(train)
        return state.joint_step(train)


class SecondOrder(ArchGradient):
    """The weights' optimum is approximated by one step of theirs.

    Args:
        xi: size of that step; the learning rate of the weights if None.
        hessian: ``"finite"`` differences as in DARTS, or ``"exact"`` by differentiating twice.
        r: numerator of ε.

    Raises:
        UsageError: another ``hessian``, or a negative ``xi``.
    """

    def __init__(self, xi: float | None = None, hessian: str = "finite", r: float = 0.01) -> None:
        if hessian not in ("finite", "exact"):
            raise UsageError(f"SecondOrder: hessian is 'finite' or 'exact', not {hessian!r}.")
        if xi is not None and not xi >= 0:
            raise UsageError(f"SecondOrder: the step xi must not be negative, got {xi!r}.")
        self.xi, self.hessian, self.r = xi, hessian, r

    def gradient(self, problem: Bilevel, train: Batch, val: Batch) -> Tensors:
        xi = problem.step_size if self.xi is None else self.xi
        step = problem.descent(gradients(problem.train_loss(train), problem.weights))
        ahead = {n: (w.detach() - xi * step[n]).requires_grad_() for n, w in problem.weights.items() if n in step}
        g = gradients(problem.val_loss(val, weights=ahead), {**_tag("w", ahead), **_tag("a", problem.logits)})
        direct = {n: t for (kind, n), t in g.items() if kind == "a"}
        v = {n: t for (kind, n), t in g.items() if kind == "w"}
        if xi == 0.0:
            return direct
        exact = self.hessian == "exact"
        through = exact_mixed_product(problem, train, v) if exact else mixed_product(problem, train, v, self.r)
        # A row that only one of the losses depends on has only one of the terms.
        return {
            n: direct.get(n, torch.zeros_like(t)) - xi * through.get(n, torch.zeros_like(t))
            for n, t in problem.logits.items()
            if n in direct or n in through
        }


def gradients(loss: Tensor, tensors: Mapping[Any, Tensor], create_graph: bool = False) -> dict[Any, Tensor]:
    """Gradients by name; tensors that the loss does not depend on are left out."""
    if not loss.requires_grad:
        return {}
    found = torch.autograd.grad(loss, list(tensors.values()), create_graph=create_graph, allow_unused=True)
    return {n: g for n, g in zip(tensors, found) if g is not None}


def mixed_product(problem: Bilevel, batch: Batch, v: Mapping[str, Tensor], r: float = 0.01) -> Tensors:
    """M v = ∂²_{αw} L_train · v by central differences along ``v``; zero where ``v`` is zero.

    Raises:
        Diverged: ``v`` is not finite.
    """
    norm = float(torch.stack([t.detach().norm() for t in v.values()]).norm()) if v else 0.0
    if norm == 0.0:
        return {}
    if norm != norm or norm == float("inf"):
        raise Diverged(f"the gradient of the validation loss for the weights has norm {norm}")
    epsilon = r / norm
    random = torch.get_rng_state()
    sides = []
    for sign in (1.0, -1.0):
        torch.set_rng_state(random)
        moved = {n: problem.weights[n].detach() + sign * epsilon * t for n, t in v.items()}
        sides.append(gradients(problem.train_loss(batch, weights=moved), problem.logits))
    plus, minus = sides
    return {n: (plus[n] - minus[n]) / (2 * epsilon) for n in plus}


def exact_mixed_product(problem: Bilevel, batch: Batch, v: Mapping[str, Tensor]) -> Tensors:
    """M v = ∂_α ⟨∂_w L_train, v⟩ by differentiating twice; keeps the graph of a whole backward pass."""
    g = gradients(problem.train_loss(batch), {n: problem.weights[n] for n in v}, create_graph=True)
    inner = torch.stack([(g[n] * v[n].detach()).sum() for n in g]).sum() if g else torch.zeros(())
    return gradients(inner, problem.logits)


def _tag(kind: str, tensors: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    return {(kind, n): t for n, t in tensors.items()}
