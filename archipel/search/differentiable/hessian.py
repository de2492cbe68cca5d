"""Products with second derivatives of the training loss.

    H = ∂²_ww L_train,   M = ∂²_αw L_train        both at one batch, with the same random numbers in every pass

A *curvature* gives products with H and M, by differentiating twice (one graph of the first derivatives serves all
products) or by central differences as in DARTS (Liu et al., 2018, https://arxiv.org/abs/1806.09055, equation 8):

    H v ≈ [∂_w L_train(w + εv) − ∂_w L_train(w − εv)] / 2ε,   ε = r/‖v‖

Weights are passed in from outside and never written, so there is nothing to put back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from archipel.search.differentiable.arch_gradient import (
    Batch,
    Bilevel,
    Tensors,
    gradients,
    mixed_product,
)
from archipel.search.training import Diverged

# --- tensors by name as one vector -----------------------------------------------------------------------------------


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """⟨a, b⟩; what is absent counts as zero.

    >>> float(dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0]), "b": torch.ones(1)}))
    11.0
    """
    shared = [(a[n] * b[n]).sum() for n in a if n in b]
    return torch.stack(shared).sum() if shared else torch.zeros(())


def norm(a: Mapping[str, Tensor]) -> float:
    return float(dot(a, a).sqrt())


def plus(a: Mapping[str, Tensor], c: float, b: Mapping[str, Tensor]) -> Tensors:
    """a + c·b; what is absent counts as zero."""
    return {n: a[n] + c * b[n] if n in a and n in b else a[n] if n in a else c * b[n] for n in {**a, **b}}


def cosine(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Of the angle between two gradients; zero if one of them is zero.

    >>> cosine({"a": torch.tensor([1.0, 0.0])}, {"a": torch.tensor([2.0, 0.0])})
    1.0
    """
    size = norm(a) * norm(b)
    return float(dot(a, b)) / size if size else 0.0


def both_gradients(
    loss: Tensor, problem: Bilevel, create_graph: bool = False, weights: Tensors | None = None
) -> tuple[Tensors, Tensors]:
    """Gradients for weights and logits by one backward pass; what a loss does not depend on is absent.

    Args:
        weights: those that the loss was given from outside, if any.
    """
    w = problem.weights if weights is None else weights
    tagged = {("w", n): t for n, t in w.items()} | {("a", n): t for n, t in problem.logits.items()}
    g = gradients(loss, tagged, create_graph)
    return {n: t for (kind, n), t in g.items() if kind == "w"}, {n: t for (kind, n), t in g.items() if kind == "a"}


# --- products --------------------------------------------------------------------------------------------------------


class Curvature:
    """Products with H and M of the training loss at one batch.

    Attributes:
        products: how many were made.
    """

    def __init__(self, problem: Bilevel, batch: Batch) -> None:
        self.problem, self.batch = problem, batch
        self.products = 0

    def hessian(self, v: Mapping[str, Tensor]) -> Tensors:
        """H v, for all weights that the training loss depends on.

        Raises:
            Diverged: it is not finite.
        """
        self.products += 1
        return _finite(self._hessian(v), "the Hessian")

    def mixed(self, v: Mapping[str, Tensor]) -> Tensors:
        """M v; empty if the training loss does not depend on the architecture.

        Raises:
            Diverged: it is not finite.
        """
        self.products += 1
        return _finite(self._mixed(v), "the mixed derivative")

    def _hessian(self, v: Mapping[str, Tensor]) -> Tensors:
        raise NotImplementedError

    def _mixed(self, v: Mapping[str, Tensor]) -> Tensors:
        raise NotImplementedError


class ExactCurvature(Curvature):
    """By differentiating twice; keeps the graph of one forward and backward pass while it lives."""

    def __init__(self, problem: Bilevel, batch: Batch) -> None:
        super().__init__(problem, batch)
        g_w, g_a = both_gradients(problem.train_loss(batch), problem, create_graph=True)
        self.g_w = {n: t for n, t in g_w.items() if t.requires_grad}
        self.depends = list(g_a)

    def _inner(self, v: Mapping[str, Tensor], of: Mapping[str, Tensor]) -> Tensors:
        found = {n: g for n, g in self.g_w.items() if n in v}
        if not found or not of:
            return {}
        inner = dot(found, {n: v[n].detach() for n in found})
        out = torch.autograd.grad(inner, list(of.values()), retain_graph=True, allow_unused=True)
        return {n: torch.zeros_like(t) if g is None else g for (n, t), g in zip(of.items(), out)}

    def _hessian(self, v: Mapping[str, Tensor]) -> Tensors:
        return self._inner(v, {n: self.problem.weights[n] for n in self.g_w})

    def _mixed(self, v: Mapping[str, Tensor]) -> Tensors:
        return self._inner(v, {n: self.problem.logits[n] for n in self.depends})


class FiniteCurvature(Curvature):
    """By central differences; no memory beyond two copies of the weights.

    Args:
        r: numerator of ε.
    """

    def __init__(self, problem: Bilevel, batch: Batch, r: float = 0.01) -> None:
        super().__init__(problem, batch)
        self.r = r
        self.random = torch.get_rng_state()

    def _hessian(self, v: Mapping[str, Tensor]) -> Tensors:
        size = norm(v)
        if size == 0.0:
            return {}
        if size - size != 0.0:
            raise Diverged(f"the gradient of the validation loss for the weights has norm {size}")
        epsilon = self.r / size
        sides = []
        for sign in (1.0, -1.0):
            torch.set_rng_state(self.random)
            step = {n: sign * epsilon * t.detach() for n, t in v.items()}
            moved = {
                n: (w.detach() + step[n] if n in step else w.detach()).requires_grad_()
                for n, w in self.problem.weights.items()
            }
            sides.append(gradients(self.problem.train_loss(self.batch, weights=moved), moved))
        return {n: (sides[0][n] - sides[1][n]) / (2 * epsilon) for n in sides[0]}

    def _mixed(self, v: Mapping[str, Tensor]) -> Tensors:
        torch.set_rng_state(self.random)
        return mixed_product(self.problem, self.batch, v, self.r)


def _finite(product: Tensors, what: str) -> Tensors:
    size = norm(product)
    if size - size != 0.0:
        raise Diverged(f"the product of {what} of the training loss and a vector has norm {size}")
    return product


def largest_eigenvalue(curvature: Curvature, steps: int = 20) -> float:
    """λ_max(H) in absolute value, by power iteration from the all-ones vector."""
    v: Tensors = {n: torch.ones_like(w) for n, w in curvature.problem.weights.items()}
    size = norm(v)
    for _ in range(steps):
        v = curvature.hessian({n: t / size for n, t in v.items()})
        size = norm(v)
        if size == 0.0:
            return 0.0
    return size
