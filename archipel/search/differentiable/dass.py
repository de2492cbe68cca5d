"""DASS: search with the loss of the pruned network, so that the cell found is good when it is sparse.

Mousavi, Loni, Alibeigi, Daneshtalab. DASS: Differentiable Architecture Search for Sparse Neural Networks. 2022.
https://arxiv.org/abs/2207.06968

    min_α L_val(w* ⊙ m*, α)   s.t.  w* = argmin_w L_train(w ⊙ m, α),   m* from scores at keep ratio k
    each step     w by its optimiser; every second step the scores S, with w frozen, and new masks; then α
    k             1 for a quarter of the epochs, then falls linearly to the target in a quarter, where it stays
    afterwards    train the cell dense, S from the trained w, prune every layer to the target, tune with fixed masks

Four convolutions of the DARTS cell exist twice, dense and sparse, and so does nothing else; the classifier is sparse
(``operations="sparse"``, :mod:`archipel.spaces.sparse_operations`). Whichever version wins, the network that is built
has the dense operation, which is pruned as a whole: :mod:`archipel.search.differentiable.sparse_training`.

Fills the `arch-gradient` slot. Only the abstract's mechanism is certain; the step sizes of the scores are HYDRA's. By
default α rests until k is at its target. Pruning a cell of a dense search by magnitude is the baseline, not this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.nets.batch_norm import batch_norms, frozen_statistics
from archipel.search.differentiable.arch_gradient import Batch, Bilevel, FirstOrder, Tensors
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Argmax
from archipel.spaces.sparse_operations import dense_label, kept, sparse_layers

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


def keep_ratio(epoch: int, epochs: int, target: float, dense: float = 0.25, falling: float = 0.25) -> float:
    """k in an epoch: 1, then linearly down, then the target.

    >>> [round(keep_ratio(e, 8, 0.2), 2) for e in range(8)]
    [1.0, 1.0, 0.6, 0.2, 0.2, 0.2, 0.2, 0.2]
    """
    start, length = round(dense * epochs), round(falling * epochs)
    if epoch < start:
        return 1.0
    if epoch >= start + length:
        return target
    return 1.0 - (1.0 - target) * (epoch - start + 1) / length


class SparseSteps(FirstOrder):
    """Weights, scores and architecture take turns; all of them see the masked network.

    Args:
        sparsity: share of zeros in every sparse layer in the end.
        dense, falling: shares of the epochs without masks and with a falling keep ratio.
        every: steps from one score step to the next.
        score_lr, score_momentum: of the scores' SGD.

    Raises:
        UsageError: a number out of range; at the start, a supernet without sparse layers.
    """

    def __init__(
        self,
        sparsity: float = 0.95,
        dense: float = 0.25,
        falling: float = 0.25,
        every: int = 2,
        score_lr: float = 0.1,
        score_momentum: float = 0.9,
    ) -> None:
        kept(1, 1.0 - sparsity)
        if not (dense >= 0.0 and falling >= 0.0 and dense + falling < 1.0):
            raise UsageError(f"Shares of the epochs, dense={dense!r} and falling={falling!r}, must sum to less than 1.")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UsageError(f"SparseSteps: every is at least 1 step, not {every!r}.")
        if not (score_lr > 0 and 0 <= score_momentum < 1):
            raise UsageError(f"SparseSteps: score_lr={score_lr!r} and score_momentum={score_momentum!r} make no SGD.")
        self.target, self.dense, self.falling, self.every = 1.0 - sparsity, dense, falling, every
        self.score_lr, self.score_momentum = score_lr, score_momentum
        self.momenta: dict[str, Tensor] = {}

    def started(self, state: SearchState) -> None:
        if not sparse_layers(state.supernet):
            raise UsageError(
                f"SparseSteps learns masks, but the supernet of {state.supernet.space.name} has no sparse layers. Take "
                f"a space with operations='sparse'."
            )

    def gradient(self, problem: Bilevel, train: Batch, val: Batch) -> Tensors:
        """
        Raises:
            UsageError: there are no masks yet.
        """
        supernet = getattr(problem, "supernet", None)
        unmasked = [] if supernet is None else [n for n, m in sparse_layers(supernet).items() if m.keep is None]
        if unmasked:
            raise UsageError(
                f"The architecture is to learn from the sparse network, but layer {unmasked[0]!r} has no mask yet: set "
                f"its keep ratio first, as SparseSteps.update does."
            )
        return super().gradient(problem, train, val)

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        self.mask(state)
        loss = state.weight_step(train)
        if state.moment.step % self.every == self.every - 1:
            self.score_step(state, train)
        if state.moment.epoch >= state.schedule.warmup:
            state.alpha_step(self.gradient(state, train, val))
        return loss

    def mask(self, state: SearchState) -> None:
        """Masks at the epoch's keep ratio."""
        k = keep_ratio(state.moment.epoch, state.moment.epochs, self.target, self.dense, self.falling)
        for layer in sparse_layers(state.supernet).values():
            if layer.keep != k:
                layer.set_keep(k)

    def score_step(self, state: SearchState, batch: Batch) -> None:
        """SGD on the scores by the training loss, weights and statistics as they are; then new masks."""
        layers = sparse_layers(state.supernet)
        mixture = {n: w.detach() for n, w in state.mixture_weights(training=True).items()}
        for layer in layers.values():
            layer.score.requires_grad_()
        try:
            with frozen_statistics(batch_norms(state.supernet)):
                loss = state.objective.weight_loss(state, state.output(batch[0], mixture), *batch)
            found = torch.autograd.grad(loss, [m.score for m in layers.values()], allow_unused=True)
        finally:
            for layer in layers.values():
                layer.score.requires_grad_(False)
        for (name, layer), g in zip(layers.items(), found):
            if g is not None:
                v = self.momenta.get(name)
                self.momenta[name] = g if v is None else self.score_momentum * v + g
                layer.score.sub_(self.momenta[name], alpha=self.score_lr)
                layer.set_keep(1.0 if layer.keep is None else layer.keep)

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": {name: v.clone() for name, v in self.momenta.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.momenta = dict(state["momenta"])


class DenseTwin(Argmax):
    """The largest weights; a sparse operation that wins becomes the dense one, which is pruned later."""

    def __call__(self, state: SearchState) -> Arch:
        found = super().__call__(state)
        return {n: dense_label(v) if isinstance(v, str) else v for n, v in found.items()}


@register(
    "dass",
    card=64,
    family="search.differentiable",
    slots=["arch-gradient", "select"],
    paper=Paper(
        "DASS: Differentiable Architecture Search for Sparse Neural Networks", 2022, "https://arxiv.org/abs/2207.06968"
    ),
)
def dass(
    sparsity: float = 0.95,
    dense: float = 0.25,
    falling: float = 0.25,
    schedule: Schedule | dict[str, Any] | str | None = None,
    **slots: Any,
) -> DifferentiableSearch:
    """DARTS in which weights, masks and architecture are those of a network at the target sparsity.

    Args:
        sparsity, dense, falling: see :class:`SparseSteps`.
        schedule: that of DARTS by default; the architecture rests for its first half.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    >>> dass(sparsity=0.9).arch_gradient.every
    2
    """
    steps = SparseSteps(sparsity, dense, falling)
    plan = schedule or Schedule(epochs=50, warmup=25)
    return DifferentiableSearch(arch_gradient=steps, schedule=plan, select=DenseTwin(), **slots)
