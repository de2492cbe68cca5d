"""Architecture gradients through the optimal weights, by some stand-in for the inverse Hessian.

    g = g1 + g2,   g1 = ∂_α L_val,   g2 = −M A(v),   v = ∂_w L_val,   M = ∂²_αw L_train

With A = H⁻¹ (H = ∂²_ww L_train) at optimal weights that is the exact gradient, by the implicit function theorem. Two
references for comparison, slow for their many products:

    conjugate gradients  A(v) = x with (H + εI) x = v
    Neumann              A(v) = γ Σ_{k≤K} (I − γH)^k v      converges for 0 < γ < 2/λ_max(H); λ_max by power iteration

The series: Lorraine, Vicol, Duvenaud. Optimizing Millions of Hyperparameters by Implicit Differentiation. 2019.
https://arxiv.org/abs/1911.02590. Cheap stand-ins are methods of their own, such as
:mod:`~archipel.search.differentiable.amended_darts`.
"""

from __future__ import annotations

import warnings

from archipel.core.errors import UsageError
from archipel.search.differentiable.arch_gradient import ArchGradient, Batch, Bilevel, Tensors
from archipel.search.differentiable.hessian import (
    Curvature,
    ExactCurvature,
    FiniteCurvature,
    both_gradients,
    dot,
    largest_eigenvalue,
    norm,
    plus,
)


class HyperGradient(ArchGradient):
    """g = ∂_α L_val − M A(v), where A stands in for H⁻¹.

    Args:
        hessian: ``"exact"`` or ``"finite"`` products.
        r: numerator of ε in finite ones.

    Raises:
        UsageError: other products.
    """

    def __init__(self, hessian: str = "exact", r: float = 0.01) -> None:
        if hessian not in ("exact", "finite"):
            raise UsageError(f"{type(self).__name__}: hessian is 'exact' or 'finite', not {hessian!r}.")
        self.hessian, self.r = hessian, r

    def inverse(self, curvature: Curvature, v: Tensors) -> Tensors:
        """A(v)."""
        raise NotImplementedError

    def curvature(self, problem: Bilevel, batch: Batch) -> Curvature:
        return ExactCurvature(problem, batch) if self.hessian == "exact" else FiniteCurvature(problem, batch, self.r)

    def terms(self, problem: Bilevel, train: Batch, val: Batch) -> tuple[Tensors, Tensors]:
        """g1 = ∂_α L_val and g2 = −M A(v).

        Raises:
            UsageError: the training loss does not depend on the architecture, so that M = 0.
            Diverged: a product is not finite.
        """
        v, g1 = both_gradients(problem.val_loss(val), problem)
        curvature = self.curvature(problem, train)
        x = self.inverse(curvature, v) if norm(v) else {}
        if not norm(x):
            warnings.warn(
                f"{type(self).__name__}: the validation loss has no gradient for the weights, or the Hessian maps it "
                f"to zero; this step is of first order.",
                RuntimeWarning,
                stacklevel=2,
            )
            return g1, {}
        through = curvature.mixed(x)
        if not through:
            raise UsageError(
                f"{type(self).__name__}: the training loss does not depend on the architecture parameters (M = 0), so "
                f"there is nothing to correct. Let both losses use the mixture, or take FirstOrder()."
            )
        return g1, {n: -t for n, t in through.items()}

    def gradient(self, problem: Bilevel, train: Batch, val: Batch) -> Tensors:
        g1, g2 = self.terms(problem, train, val)
        return plus(g1, 1.0, g2)


class Neumann(HyperGradient):
    """H⁻¹ by the first terms of its Neumann series.

    Args:
        K: highest power; K + 1 terms.
        gamma: γ; 1/λ_max(H) if None, which costs twenty more products.
    """

    def __init__(self, K: int = 5, gamma: float | None = None, hessian: str = "exact", r: float = 0.01) -> None:
        super().__init__(hessian, r)
        if K < 0 or (gamma is not None and not gamma > 0):
            raise UsageError(f"Neumann: K must not be negative and gamma positive, got K={K!r}, gamma={gamma!r}.")
        self.K, self.gamma = K, gamma

    def inverse(self, curvature: Curvature, v: Tensors) -> Tensors:
        gamma = 1.0 / max(largest_eigenvalue(curvature), 1e-12) if self.gamma is None else self.gamma
        term, total = v, v
        for _ in range(self.K):
            term = plus(term, -gamma, curvature.hessian(term))
            total = plus(total, 1.0, term)
        return {n: gamma * t for n, t in total.items()}


class ConjugateGradients(HyperGradient):
    """(H + εI) x = v solved by conjugate gradients: the exact gradient, where w is optimal and H positive definite.

    Args:
        damping: ε.
        tolerance: largest ‖residual‖/‖v‖ at the end.
        steps: at most.
    """

    def __init__(
        self,
        damping: float = 0.0,
        tolerance: float = 1e-8,
        steps: int = 500,
        hessian: str = "exact",
        r: float = 0.01,
    ) -> None:
        super().__init__(hessian, r)
        self.damping, self.tolerance, self.steps = damping, tolerance, steps

    def inverse(self, curvature: Curvature, v: Tensors) -> Tensors:
        """
        Raises:
            UsageError: H + εI is not positive definite, or the tolerance is not reached.
        """
        x: Tensors = {}
        residual = direction = v
        square, target = dot(v, v), self.tolerance * norm(v)
        for _ in range(self.steps):
            product = plus(curvature.hessian(direction), self.damping, direction)
            bend = dot(direction, product)
            if float(bend) <= 0:
                raise UsageError(
                    f"ConjugateGradients: the Hessian plus {self.damping} has curvature {float(bend):.3g} somewhere. "
                    f"Train the weights further, or raise damping."
                )
            step = float(square / bend)
            x, residual = plus(x, step, direction), plus(residual, -step, product)
            previous, square = square, dot(residual, residual)
            if float(square.sqrt()) <= target:
                return x
            direction = plus(residual, float(square / previous), direction)
        raise UsageError(
            f"ConjugateGradients: after {self.steps} steps the residual is {float(square.sqrt()):.3g}, "
            f"not {target:.3g}. Raise steps, tolerance or damping."
        )
