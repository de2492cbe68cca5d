"""How sharp a minimum is: the rise of the loss along its gradient, and the largest curvature in the architecture.

Foret, Kleiner, Mobahi, Neyshabur. Sharpness-Aware Minimization. 2020. https://arxiv.org/abs/2010.01412
Zela, Elsken, Saikia, Marrakchi, Brox, Hutter. Understanding and Robustifying DARTS. 2019.
https://arxiv.org/abs/1909.09656

    S_ρ = L_train(w + ρ g/‖g‖, α) − L_train(w, α),   g = ∇_w L_train
    λ   = the eigenvalue of ∂²_αα L_val that is largest in magnitude, by power iteration

Losses are those of the task, with batch statistics and without noise in the mixture; nothing is changed by looking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.data.dataset import Split
from archipel.nets.batch_norm import batch_norms, frozen_statistics
from archipel.search.differentiable.arch_gradient import Tensors, gradients
from archipel.search.training import loss_of

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

Loss = Callable[[Tensors], Tensor]


def rise(loss: Loss, tensors: Mapping[str, Tensor], rho: float = 0.05) -> float:
    """S_ρ of a function of named tensors; 0 where the gradient vanishes.

    Raises:
        UsageError: ``rho`` is not positive.

    >>> round(rise(lambda t: (t["w"] ** 2).sum(), {"w": torch.tensor([3.0, 4.0], dtype=torch.double)}, 0.1), 6)
    1.01
    """
    if not rho > 0:
        raise UsageError(f"Sharpness is measured at a positive distance rho, not {rho!r}.")
    here = {n: t.detach().clone().requires_grad_() for n, t in tensors.items()}
    value = loss(here)
    g = gradients(value, here)
    size = torch.stack([t.norm() for t in g.values()]).norm() if g else torch.zeros(())
    if float(size) == 0.0:
        return 0.0
    with torch.no_grad():
        moved = {n: t + rho * g[n] / size if n in g else t for n, t in here.items()}
        return float(loss(moved) - value)


def top_eigenvalue(loss: Loss, tensors: Mapping[str, Tensor], products: int = 20, seed: int = 0) -> float:
    """The Hessian's eigenvalue of largest magnitude, as the Rayleigh quotient after some Hessian-vector products.

    Raises:
        UsageError: no product.

    >>> top_eigenvalue(lambda t: t["a"][0] ** 2 - 3 * t["a"][1] ** 2, {"a": torch.zeros(2, dtype=torch.double)})
    -6.0
    """
    if products < 1:
        raise UsageError(f"Power iteration needs at least one product, not {products!r}.")
    here = {n: t.detach().clone().requires_grad_() for n, t in tensors.items()}
    found = gradients(loss(here), here, create_graph=True)
    names = [n for n, g in found.items() if g.requires_grad]
    if not names:
        return 0.0
    g = torch.cat([found[n].flatten() for n in names])
    v = torch.randn(len(g), generator=torch.Generator().manual_seed(seed)).to(g)
    v, value = v / v.norm(), 0.0
    for _ in range(products):
        out = torch.autograd.grad(g, [here[n] for n in names], v, retain_graph=True, allow_unused=True)
        Hv = torch.cat([torch.zeros_like(here[n]).flatten() if t is None else t.flatten() for n, t in zip(names, out)])
        value, size = float(v @ Hv), Hv.norm()
        if float(size) == 0.0:
            return 0.0
        v = Hv / size
    return value


def sharpness(state: SearchState, data: Split, rho: float = 0.05) -> float:
    """S_ρ of the supernet's weights, on all of ``data`` as one batch."""
    with frozen_statistics(batch_norms(state.supernet)):
        mixture = {n: w.detach() for n, w in state.mixture_weights().items()}
        return rise(lambda w: _loss(state, data, mixture, w), state.weights, rho)


def alpha_curvature(state: SearchState, data: Split, products: int = 20) -> float:
    """The top eigenvalue of the loss in the logits, on all of ``data`` as one batch."""
    with frozen_statistics(batch_norms(state.supernet)):
        return top_eigenvalue(lambda a: _loss(state, data, state.mixture_weights(a)), state.logits, products)


def _loss(state: SearchState, data: Split, mixture: Tensors, weights: Tensors | None = None) -> Tensor:
    return loss_of(state.task, state.output(data.x, mixture, weights), data.y)
