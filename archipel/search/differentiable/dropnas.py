"""DropNAS: a search on one level in which operations are dropped at random, group by group.

Hong, Li, Zhang, Tang, Wang, Li, Yu. DropNAS: Grouped Operation Dropout for Differentiable Architecture Search. 2020.
https://www.ijcai.org/proceedings/2020/322 (reference code: wiljohnhong/DropNAS)

    masks    m_o ~ Bernoulli(1 − p), p = r^(1/|G|), on every edge and group G; again while a group is dropped whole
    mix      w_o = exp α_o / Σ_{q kept} exp α_q for kept operations; the others are not computed
    step     one loss on all training data, one backward pass: SGD on w (clipped), Adam on α, without decay of theirs
    decay    a second step of both, by the gradient of λ_w Σ ‖w‖² + λ_α Σ α² over what had a gradient
    adjust   α_kept += ln(ρ/(1 − ρ) · Σ_dropped e^α / Σ_kept e^α),  ρ = Σ_kept e^α / Σ e^α before the step

so that dropped operations keep weights, moments and probabilities exactly, and small operations cannot starve large
ones. The groups are operations with and without parameters; each keeps at least one. Tied cells share their masks.

Fills the `mix` slot (:class:`~archipel.search.differentiable.grouped_dropout.GroupedDropout`) and the `arch-gradient`
slot (:class:`DecoupledSteps`). The gradient of the decay is written down instead of computed, so the network runs once
a step. Adam's moments of dropped entries are put back after its step, as they would decay otherwise (its count of steps
is one for a whole row and goes on). As dropped α rest, the adjustment is ln Σ_kept e^α before minus after the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.arch_gradient import Batch, OneLevel
from archipel.search.differentiable.grouped_dropout import GroupedDropout
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.objective import SearchObjective
from archipel.search.differentiable.schedule import Schedule

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

NOTICEABLE = 1e-7  # gradients of α from which an entry decays (reference code)


class DecoupledSteps(OneLevel):
    """Steps of weights and logits by the loss, then by decay of what took part, then the adjustment of the logits.

    Args:
        decay: λ_w.
        alpha_decay: λ_α.
        adjust: whether probabilities of dropped options are kept.

    Raises:
        UsageError: a negative decay; when the search starts: a schedule whose optimisers decay too, or an objective
            that projects the logits (which the adjustment would undo).
    """

    def __init__(self, decay: float = 3e-4, alpha_decay: float = 1e-3, adjust: bool = True) -> None:
        if not (decay >= 0 and alpha_decay >= 0):
            raise UsageError(f"DecoupledSteps: decays must not be negative, got {decay!r} and {alpha_decay!r}.")
        self.decay, self.alpha_decay, self.adjust = decay, alpha_decay, adjust

    def started(self, state: SearchState) -> None:
        s = state.schedule
        if s.weight_decay or s.alpha_decay:
            raise UsageError(
                f"DecoupledSteps decays weights and logits itself, but the schedule's optimisers would do it again "
                f"(weight_decay={s.weight_decay}, alpha_decay={s.alpha_decay}). Set both to 0 in the schedule."
            )
        if self.adjust and type(state.objective).project is not SearchObjective.project:
            raise UsageError(
                f"{type(state.objective).__name__} projects the logits into a feasible set after each step, and the "
                f"adjustment of DecoupledSteps would move them out again. Take an objective with a penalty instead."
            )

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        if state.moment.epoch < state.schedule.warmup:
            value = state.weight_step(train)
            self._decay_weights(state)
            return value
        mixture = state.mixture_weights(training=True)
        masks = dict(state.mix.masks) if isinstance(state.mix, GroupedDropout) else {}
        loss = state.objective.weight_loss(state, state.output(train[0], mixture), *train)
        value = state.checked(loss)
        loss = state.objective.total(loss, mixture, state.moment)
        state.weight_optimizer.zero_grad(set_to_none=True)
        state.alpha_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        before = self._remember(state, masks)
        gradient = {n: p.grad for n, p in state.logits.items() if p.grad is not None}
        state.step_weights()
        state.alpha_step(gradient)
        self._decay_weights(state)
        if self.alpha_decay:
            state.alpha_step(
                {
                    n: 2 * self.alpha_decay * state.logits[n].detach() * (g.abs() > NOTICEABLE)
                    for n, g in gradient.items()
                }
            )
        self._restore(state, masks, before)
        if self.adjust and masks:
            adjust_kept(state.logits, masks, {n: logits for n, (logits, _) in before.items()})
        return value

    def _decay_weights(self, state: SearchState) -> None:
        """A step along the gradient of λ_w Σ ‖w‖², over weights that had one of the loss."""
        if not self.decay:
            return
        for w in state.weights.values():
            if w.grad is not None:
                w.grad = 2 * self.decay * w.detach()
        state.weight_optimizer.step()

    @staticmethod
    def _remember(state: SearchState, masks: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
        """Logits, and Adam's moments of them, of rows in which something was dropped."""
        out = {}
        for n, keep in masks.items():
            if not bool(keep.all()):
                p = state.logits[n]
                moments = {
                    k: t.clone() for k, t in state.alpha_optimizer.state.get(p, {}).items() if t.shape == p.shape
                }
                out[n] = p.detach().clone(), moments
        return out

    @staticmethod
    def _restore(
        state: SearchState,
        masks: Mapping[str, Tensor],
        before: Mapping[str, tuple[Tensor, dict[str, Tensor]]],
    ) -> None:
        """Put back the dropped entries; moments that did not exist before are zero."""
        with torch.no_grad():
            for n, (logits, moments) in before.items():
                p, dropped = state.logits[n], ~masks[n]
                p[dropped] = logits[dropped]
                for k, t in state.alpha_optimizer.state.get(p, {}).items():
                    if t.shape == p.shape:
                        t[dropped] = moments[k][dropped] if k in moments else 0.0


@torch.no_grad()
def adjust_kept(logits: Mapping[str, Tensor], masks: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    """Shift the kept logits, in place, so that dropped options have the probabilities that they had.

    Args:
        before: logits before the step, of the rows in which something was dropped.

    Raises:
        UsageError: there are no masks: nothing was mixed yet.
    """
    if not masks:
        raise UsageError("The logits are adjusted to the masks of a forward pass, but there was none yet. Mix first.")
    for n, old in before.items():
        kept = masks[n]
        logits[n][kept] += torch.logsumexp(old[kept], 0) - torch.logsumexp(logits[n][kept], 0)


# Reference code, config.py.
SCHEDULE = Schedule(
    epochs=76, batch_size=96, lr=0.0375, lr_min=0.0015, weight_decay=0.0, clip=3.0, alpha_decay=0.0, alpha_share=0.0
)


@register(
    "dropnas",
    card=28,
    family="search.differentiable",
    slots=["mix", "arch-gradient"],
    paper=Paper(
        "DropNAS: Grouped Operation Dropout for Differentiable Architecture Search",
        2020,
        "https://www.ijcai.org/proceedings/2020/322",
    ),
)
def dropnas(
    r: float = 3e-5,
    dropout_warmup: int = 0,
    decay: float = 3e-4,
    alpha_decay: float = 1e-3,
    schedule: Schedule | None = None,
    **slots: Any,
) -> DifferentiableSearch:
    """One-level differentiable search with grouped operation dropout.

    Args:
        r: drop path rate; see :class:`GroupedDropout`. 0 is DARTS on one level.
        dropout_warmup: first epochs without dropout (in which the architecture does learn).
        decay, alpha_decay: see :class:`DecoupledSteps`.
        schedule: that of the reference code by default: 76 epochs on all training data, batches of 96.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    >>> dropnas(r=1e-4).mix.r
    0.0001
    """
    slots.setdefault("mix", GroupedDropout(r, dropout_warmup))
    slots.setdefault("arch_gradient", DecoupledSteps(decay, alpha_decay))
    return DifferentiableSearch(schedule=schedule or SCHEDULE, **slots)
