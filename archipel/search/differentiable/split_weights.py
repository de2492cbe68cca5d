"""Split weights: two copies tied by a penalty, so that the architecture learns from all data at first order (RARTS).

Xue, Qi, Xin. RARTS: An Efficient First-Order Relaxed Architecture Search Method. 2020.
https://arxiv.org/abs/2008.03901

    L(y, w, α) = L_val(y, α) + λ L_train(w, α) + β/2 ‖y − w‖²

    w ← w − η_w (λ ∂_w L_train(w, α) + β (w − y))
    y ← y − η_y (∂_y L_val(y, α) + β (y − w_new))
    α ← α − η_α (λ ∂_α L_train(w_new, α) + ∂_α L_val(y_new, α))

in this ``strict`` order four backward passes. The ``two-backward`` order takes α's gradients by the same two passes as
those of w and y, before either moves, which changes α's step by O(η²); the coupling needs no pass, so y still sees
w_new. ``jacobi`` also takes y's coupling at the old w. No gradient is differentiated again.

w are the weights of the supernet, y is a copy that is passed in from outside. Both normalise by their own batches and
leave running statistics alone, so that none are shared. Both step by SGD with the schedule's momentum and learning rate
(gradients are clipped with the coupling in them), α by its optimiser. y is discarded with w when α has been read off.
The log has L on all data after each epoch, ``lagrangian``, and ‖y − w‖, ``distance``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archipel.core.errors import ShapeError, UsageError, suggest
from archipel.data.dataset import Split
from archipel.search.differentiable.arch_gradient import ArchGradient, Batch, Bilevel, Tensors
from archipel.search.differentiable.hessian import both_gradients, norm, plus

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

ORDERS = ("two-backward", "strict", "jacobi")


class SplitWeights(ArchGradient):
    """The update of the split problem.

    Args:
        lam, beta: λ and β.
        order: see the module's docstring.
        y: where the copy starts; the weights themselves if None.

    Attributes:
        copy: y, once the search has started.

    Raises:
        UsageError: a negative penalty, or another order.
        ShapeError: when the search starts: a ``y`` that does not fit the weights.
    """

    def __init__(
        self, lam: float = 1.0, beta: float = 1.0, order: str = "two-backward", y: Mapping[str, Tensor] | None = None
    ) -> None:
        if not (lam >= 0 and beta >= 0):
            raise UsageError(f"SplitWeights: lam and beta must not be negative, got lam={lam!r}, beta={beta!r}.")
        if order not in ORDERS:
            raise UsageError(f"SplitWeights: no order {order!r}. {suggest(order, ORDERS)}")
        self.lam, self.beta, self.order = lam, beta, order
        self.initial = y
        self.copy: Tensors = {}
        self._figures: dict[str, float] = {}

    def started(self, state: SearchState) -> None:
        start = state.weights if self.initial is None else self.initial
        for n, w in state.weights.items():
            if n not in start or start[n].shape != w.shape:
                got = tuple(start[n].shape) if n in start else "nothing"
                raise ShapeError(
                    f"SplitWeights: the copy y has {got} for {n!r}, whose weights are {tuple(w.shape)}. Start it as a "
                    f"copy of the weights (y=None)."
                )
        self.copy = {n: start[n].detach().clone().requires_grad_() for n in state.weights}
        self.optimizer = state.schedule.weight_optimizer(self.copy.values())

    # --- one iteration -----------------------------------------------------------------------------------------------

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        searching = state.moment.epoch >= state.schedule.warmup
        w_old = {n: w.detach().clone() for n, w in state.weights.items()} if self.order == "jacobi" else state.weights
        loss = state.train_loss(train)
        value = state.checked(loss)
        g_w, a_train = both_gradients(loss, state)
        if self.order != "strict":
            g_y, a_val = self._of_copy(state, val)
        self._step(state.weights, g_w, self.lam, self.copy, state.step_weights)
        if self.order == "strict":
            g_y, _ = self._of_copy(state, val)
        self._step(self.copy, g_y, 1.0, w_old, lambda: self._step_copy(state))
        if not searching:
            return value
        if self.order == "strict":
            _, a_train = both_gradients(state.train_loss(train), state)
            _, a_val = self._of_copy(state, val)
        state.alpha_step(plus(a_val, self.lam, a_train))
        return value

    def _of_copy(self, state: Bilevel, val: Batch) -> tuple[Tensors, Tensors]:
        return both_gradients(state.val_loss(val, weights=self.copy), state, weights=self.copy)

    def _step(
        self, mine: Tensors, gradient: Tensors, factor: float, other: Mapping[str, Tensor], step: Callable[[], None]
    ) -> None:
        """Descend on factor · loss + β/2 ‖mine − other‖²; what has neither gradient nor coupling rests."""
        for n, p in mine.items():
            p.grad = factor * gradient[n] if n in gradient and factor else None
            if self.beta:
                pull = self.beta * (p.detach() - other[n].detach())
                p.grad = pull if p.grad is None else p.grad + pull
        step()
        for p in mine.values():
            p.grad = None

    def _step_copy(self, state: SearchState) -> None:
        if state.schedule.clip:
            nn.utils.clip_grad_norm_(self.copy.values(), state.schedule.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = state.step_size
        self.optimizer.step()

    # --- what is watched ---------------------------------------------------------------------------------------------

    def distance(self, state: Bilevel) -> float:
        """‖y − w‖."""
        return norm({n: y.detach() - state.weights[n].detach() for n, y in self.copy.items()})

    @torch.no_grad()
    def lagrangian(self, state: Bilevel, train: Batch, val: Batch) -> float:
        """L(y, w, α) on given batches."""
        losses = state.val_loss(val, weights=self.copy) + self.lam * state.train_loss(train)
        return float(losses) + self.beta / 2 * self.distance(state) ** 2

    @torch.no_grad()
    def epoch_ended(self, state: SearchState) -> None:
        ours, theirs = state.halves
        train, val = _whole(ours, state.train_loss), _whole(theirs, lambda b: state.val_loss(b, weights=self.copy))
        distance = self.distance(state)
        self._figures = {"lagrangian": val + self.lam * train + self.beta / 2 * distance**2, "distance": distance}

    def figures(self) -> Mapping[str, float]:
        return self._figures

    # --- saving ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "copy": {n: y.detach().clone() for n, y in self.copy.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for n, y in self.copy.items():
                y.copy_(state["copy"][n])
        self.optimizer.load_state_dict(state["optimizer"])


def _whole(data: Split, loss: Callable[[Batch], Tensor], chunk: int = 512) -> float:
    """Mean of a loss over a whole split, in as few batches as memory allows."""
    parts = list(zip(data.x.split(chunk), data.y.split(chunk)))
    return sum(float(loss(b)) * len(b[0]) for b in parts) / len(data)
