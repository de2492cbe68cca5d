"""Problems on which architecture gradients are compared with the exact one.

quadratics   L_train = w'Hw/2 + w'M'α, L_val = v'w + g'α, at α = w = 0, thousands at once: they do not interact
regression   a two-layer network of mixed operations, fitted to noisy points until its gradient vanishes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from archipel.search.differentiable.arch_gradient import Batch, Tensors

NO_BATCH: Batch = (torch.zeros(1), torch.zeros(1))
OPERATIONS = (lambda x: x, F.softplus, torch.tanh, torch.sin)


class Quadratics:
    """N random problems with given eigenvalues of H: eigenvectors uniform, M, v and g standard normal.

    Args:
        eigenvalues: of H, one for each of the weights.
        logits: number of them.
        N: problems.
    """

    step_size = 1.0

    def __init__(self, eigenvalues: Sequence[float], logits: int, N: int, seed: int) -> None:
        n, g = len(eigenvalues), torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(N, *shape, generator=g, dtype=torch.double)

        Q, R = torch.linalg.qr(draw(n, n))
        Q = Q * R.diagonal(dim1=1, dim2=2).sign()[:, None]  # uniform over rotations and reflections
        self.H = (Q * torch.tensor(eigenvalues, dtype=torch.double)) @ Q.mT
        self.M, self.v, self.g = draw(logits, n), draw(n), draw(logits)
        self.weights: Tensors = {"w": torch.zeros_like(self.v).requires_grad_()}
        self.logits: Tensors = {"α": torch.zeros_like(self.g).requires_grad_()}

    def train_loss(self, batch: Batch, weights: Tensors | None = None, logits: Tensors | None = None) -> Tensor:
        w, a = (weights or self.weights)["w"], (logits or self.logits)["α"]
        return torch.einsum("bi,bij,bj->", w, self.H, w) / 2 + torch.einsum("ba,bai,bi->", a, self.M, w)

    def val_loss(self, batch: Batch, weights: Tensors | None = None, logits: Tensors | None = None) -> Tensor:
        return (self.v * (weights or self.weights)["w"]).sum() + (self.g * (logits or self.logits)["α"]).sum()

    def descent(self, gradient: Mapping[str, Tensor]) -> Tensors:
        return dict(gradient)


class MixedRegression:
    """y = w3 · mix(W2 mix(W1 x + b1) + b2) + b3 with 56 weights, where mix(z) = Σ_o softmax(α)_o · o(z).

    Args:
        decay: l2; the training loss is the mean squared error + l2/2 ‖w‖².
    """

    step_size = 0.1
    inputs, hidden, points = 3, 5, 40

    def __init__(self, decay: float, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.double)

        self.decay = decay
        d, h = self.inputs, self.hidden
        shapes = {"W1": (h, d), "b1": (h,), "W2": (h, h), "b2": (h,), "w3": (1, h), "b3": (1,)}
        self.weights: Tensors = {n: (0.5 * draw(*shape)).requires_grad_() for n, shape in shapes.items()}
        self.logits: Tensors = {f"α{k}": draw(len(OPERATIONS)).requires_grad_() for k in (1, 2)}
        slope = draw(d)
        x = draw(2, self.points, d)
        y = torch.sin(x @ slope) + 0.5 * x[..., 0] ** 2 + 0.3 * draw(2, self.points)
        self.train, self.val = ((x[k], y[k]) for k in (0, 1))

    def output(self, x: Tensor, w: Tensors, a: Tensors) -> Tensor:
        for k in (1, 2):
            z = x @ w[f"W{k}"].T + w[f"b{k}"]
            x = torch.stack([o(z) for o in OPERATIONS], -1) @ torch.softmax(a[f"α{k}"], 0)
        return (x @ w["w3"].T + w["b3"]).squeeze(-1)

    def train_loss(self, batch: Batch, weights: Tensors | None = None, logits: Tensors | None = None) -> Tensor:
        w = {**self.weights, **(weights or {})}
        squares = torch.stack([(t**2).sum() for t in w.values()]).sum()
        return self.val_loss(batch, w, logits) + self.decay / 2 * squares

    def val_loss(self, batch: Batch, weights: Tensors | None = None, logits: Tensors | None = None) -> Tensor:
        x, y = batch
        return F.mse_loss(self.output(x, {**self.weights, **(weights or {})}, logits or self.logits), y)

    def descent(self, gradient: Mapping[str, Tensor]) -> Tensors:
        return dict(gradient)

    def fit(self, tolerance: float = 1e-5) -> float:
        """Minimise the training loss over the weights; returns ‖∂_w L_train‖.

        Raises:
            ArithmeticError: the tolerance was not reached.
        """
        parameters = list(self.weights.values())
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=5_000,
            tolerance_grad=tolerance / 10,
            tolerance_change=0.0,
            history_size=50,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = self.train_loss(self.train)
            value.backward(inputs=parameters)
            return value

        optimizer.step(loss)
        size = float(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm())
        optimizer.zero_grad()
        if not size < tolerance:
            raise ArithmeticError(f"The regression's gradient is {size:.2g} after L-BFGS, not below {tolerance:.0e}.")
        return size
