"""ProxylessNAS: one sampled path at a time, and a gate rule that turns it into a gradient for every option.

Cai, Zhu, Han. ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware. 2018.
https://arxiv.org/abs/1812.00332

    g ~ one-hot(p),  p = softmax(α),  y = Σ_j g_j o_j(x)            a weight step computes the one path
    G_j = ∂L/∂g_j = ⟨∂L/∂y, o_j(x)⟩
    ∂L/∂α_i = Σ_j G_j p_j (δ_ij − p_i) = p_i (G_i − Σ_j p_j G_j)    on validation data, weights frozen

    two       only two options a layer, drawn from p without replacement; p, gate and rule within the pair. After the
              step both α are shifted by −ln(Σ_pair e^α_new / Σ_pair e^α_old), so that no other option's p changes
    full      all options; the others are computed without a graph, their outputs are kept
    full_v2   the others are computed in the backward pass, from the input of the layer; nothing of them is kept
    reinforce no rule, but a reward; see :mod:`~archipel.search.differentiable.reinforce`

The expected cost in the loss is :class:`~archipel.search.differentiable.cost_loss.CostLoss`; its gradient sees the p
that the rule sees, within the pair for ``two``. A layer that was sampled as zero (or skipped) does not learn in that
step. Fills the `mix` and `arch-gradient` slots. Differs from the reference code in that options outside the pair are
held exactly, whatever Adam's momentum and decay would do to them, and that architecture steps leave batch-norm
statistics alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.errors import UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.nets.batch_norm import batch_norms, frozen_statistics
from archipel.search.differentiable.arch_gradient import ArchGradient, Batch, Bilevel, Tensors
from archipel.search.differentiable.cost_loss import CostLoss
from archipel.search.differentiable.gates import GatedPaths, Gates, frozen, gate_rule, rescaled, sample_pair, within
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.objective import CrossEntropy
from archipel.search.differentiable.reinforce import BinaryGates, Reinforce, check_gates
from archipel.search.differentiable.schedule import Schedule

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

PATHS = ("two", "full", "full_v2")


# --- arch-gradient -------------------------------------------------------------------------------------------------


class GateGradient(ArchGradient):
    """The gate rule, every so many weight steps.

    Args:
        paths: ``"two"``, ``"full"`` or ``"full_v2"``; see the module's docstring.
        every: weight steps to one architecture step.

    Raises:
        UsageError: another value.
    """

    def __init__(self, paths: str = "two", every: int = 5) -> None:
        if paths not in PATHS:
            raise UsageError(f"GateGradient: paths={paths!r} is unknown. {suggest(paths, PATHS)}")
        if not isinstance(every, int) or every < 1:
            raise UsageError(f"GateGradient: every must be a positive number of steps, not {every!r}.")
        self.paths, self.every = paths, every

    def started(self, state: SearchState) -> None:
        check_gates(state, self)

    def sample(self, state: SearchState) -> dict[str, Gates]:
        """Gates for every row, drawn from the current p."""
        out = {}
        for name, alpha in state.logits.items():
            p = torch.softmax(alpha.detach(), 0)
            involved = sample_pair(p) if self.paths == "two" else list(range(len(p)))
            active = involved[int(torch.multinomial(p[involved].clamp_min(1e-20), 1))]
            leaf = torch.zeros_like(p)
            leaf[active] = 1.0
            out[name] = Gates(involved, active, leaf.requires_grad_())
        return out

    def gradient(self, problem: Bilevel, train: Batch, val: Batch) -> Tensors:
        state: SearchState = problem  # type: ignore[assignment]
        return self.gradient_for(state, self.sample(state), val)

    def gradient_for(self, state: SearchState, gates: Mapping[str, Gates], val: Batch) -> Tensors:
        """∂L/∂α for given gates; rows whose open option is zero are absent."""
        x, y = val
        p = {n: within(state.logits[n], g.involved) for n, g in gates.items()}
        with frozen(state.supernet), frozen_statistics(batch_norms(state.supernet)):
            state.supernet.decider = GatedPaths(gates, self.paths == "full_v2", state.parameters.fixed)
            loss = state.objective.arch_loss(state, state.supernet(x), x, y)
            loss = state.objective.total(loss, p, state.moment)
            if not loss.requires_grad:  # every layer was sampled as zero
                return {}
            leaves = [*(g.leaf for g in gates.values()), *(state.logits[n] for n in gates)]
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        out = {}
        for name, G, direct in zip(gates, found, found[len(gates) :]):
            if G is not None:
                g = gate_rule(p[name].detach(), G)
                out[name] = g if direct is None else g + direct
        return out

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        loss = state.weight_step(train)
        if state.moment.epoch >= state.schedule.warmup and (state.moment.step + 1) % self.every == 0:
            gates = self.sample(state)
            gradient = self.gradient_for(state, gates, val)
            before = {n: p.detach().clone() for n, p in state.logits.items()}
            state.alpha_step(gradient)
            if self.paths == "two":
                with torch.no_grad():
                    for name in gradient:
                        alpha = state.logits[name]
                        alpha.copy_(rescaled(alpha, before[name], gates[name].involved))
        return loss


# --- the recipe ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoCosines(Schedule):
    """A cosine over the warm-up, another over the rest; SGD with Nesterov's momentum."""

    def learning_rate(self, epoch: int) -> float:
        begin, length = (0, self.warmup) if epoch < self.warmup else (self.warmup, self.epochs - self.warmup)
        return self.lr_min + (self.lr - self.lr_min) * 0.5 * (1 + math.cos(math.pi * (epoch - begin) / length))

    def weight_optimizer(self, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            weights, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.momentum > 0
        )


# Reference code: 40 epochs of warm-up, then 120; no first momentum in Adam, so that zero gradients move nothing.
SCHEDULE = TwoCosines(
    epochs=160, warmup=40, batch_size=256, lr=0.025, lr_min=0.0, weight_decay=4e-5, clip=0.0, alpha_lr=1e-3,
    alpha_betas=(0.0, 0.999), alpha_decay=0.0,
)  # fmt: skip


@register(
    "proxylessnas",
    card=50,
    family="search.differentiable",
    slots=["mix", "arch-gradient", "objective"],
    paper=Paper(
        "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware",
        2018,
        "https://arxiv.org/abs/1812.00332",
    ),
)
def proxylessnas(
    paths: str = "two",
    target: float | None = None,
    cost: str | Mapping[str, Mapping[str, float]] = "macs",
    form: str = "add-linear",
    weight: float | None = None,
    every: int = 5,
    label_smoothing: float = 0.1,
    schedule: Schedule | None = None,
    **slots: Any,
) -> DifferentiableSearch:
    """Search by sampled paths: the memory and time of one network, and a gradient for every option.

    Args:
        paths: ``"two"``, ``"full"``, ``"full_v2"`` or ``"reinforce"``.
        target: T, the cost to aim at; None leaves cost out.
        cost, form: see :class:`~archipel.search.differentiable.cost_loss.CostLoss`.
        weight: λ; the reference's 0.2 for ``mul-log`` and 0.1 for ``add-linear`` by default.
        every: weight steps to one architecture step.
        label_smoothing: of the weights' cross entropy.
        schedule: the reference's by default: 40 epochs of warm-up and 120 of search, batches of 256.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    Raises:
        UsageError: another value of ``paths``, or no target where the reward or loss needs one.

    >>> proxylessnas("full_v2", target=2e6).objective.form
    'add-linear'
    """
    if paths not in (*PATHS, "reinforce"):
        raise UsageError(f"ProxylessNAS: paths={paths!r} is unknown. {suggest(paths, (*PATHS, 'reinforce'))}")
    slots.setdefault("mix", BinaryGates())
    slots.setdefault("arch_gradient", Reinforce(every=every) if paths == "reinforce" else GateGradient(paths, every))
    if "objective" not in slots:
        weight = weight if weight is not None else {"mul-log": 0.2}.get(form, 0.1)
        slots["objective"] = (
            CrossEntropy(label_smoothing)
            if target is None
            else CostLoss(cost, form, target, weight, label_smoothing=label_smoothing)
        )
    return DifferentiableSearch(schedule=schedule or SCHEDULE, **slots)
