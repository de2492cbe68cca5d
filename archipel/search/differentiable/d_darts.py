"""D-DARTS: every cell is searched on its own, by gates, and learns how much it contributes.

Heuillet, Tabia, Arioui, Youcef-Toumi. D-DARTS: Distributed Differentiable Architecture Search. 2021.
https://arxiv.org/abs/2108.09306

    gates      σ(α_i), α_i = 0 at the start, for each cell i
    push       L_01 = −mean((σ(α_i) − ½)²)                                      gates go to 0 or 1
    ablation   M_i = CE(all) − CE(cell i with gates drawn from U(0, 1)),   L_AB,i = −(M_i − M̄)/M̄   (0 if M̄ = 0)
    cell       L_i = CE + w_01 L_01(α_i) + w_AB L_AB,i
    keep       by a threshold on the gates; see :mod:`archipel.search.differentiable.thresholds`

L_AB is a number without a graph in the reference code, so it adds nothing to any gradient there. Both are here:
``ablation="reported"`` does the same and logs it; ``"gradient"`` scales cell i's gradient of the cross entropy by
1 + w_AB (M_i − M̄)/|M̄|, clipped to [0, 3], which is our way to give the term an effect. A disabled cell is mixed at
random, not silenced, as its output is the only path.

Cells have logits of their own if the space ties nothing (``tie="cell"``). Adam treats every logit alone, so one Adam is
an Adam for each cell; L_01 separates over cells, so one backward pass gives what C passes give.

Fills `mix`, `arch-gradient`, `objective` and `select`. Departures: named above; starting from a hand-made network
(DARTOpti) and deeper networks are in :mod:`archipel.search.differentiable.nested_cells`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.decision import Arch
from archipel.core.errors import UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.nets.batch_norm import batch_norms, frozen_statistics
from archipel.search.differentiable.arch_gradient import ArchGradient, Batch, Tensors, gradients
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Sigmoid
from archipel.search.differentiable.objective import SearchObjective
from archipel.search.differentiable.parameters import Moment
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.thresholds import Threshold

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

ABLATIONS = ("off", "reported", "gradient")
BASELINE_LOGIT = 10.0  # σ(10) = 0.99995: what a hand-made network holds (reference code)
MOST = 3.0  # largest factor by which ablation scales a cell's gradient


def cell_of(row: str) -> str:
    """The cell that a row of logits belongs to: what stands before the first dot of its name.

    >>> cell_of("normal3.e02"), cell_of("e02")
    ('normal3', '')
    """
    return row.rpartition(".")[0].split(".")[0]


def push(sigma: Tensor) -> Tensor:
    """L_01 of one cell's gates; 0 where all are one half, −1/4 where all are 0 or 1.

    >>> push(torch.tensor([0.5, 1.0]))
    tensor(-0.1250)
    """
    return -((sigma - 0.5) ** 2).mean()


def ablation_losses(M: Tensor) -> Tensor:
    """L_AB of every cell ``[C]`` from the marginal contributions; 0 if these average to 0."""
    mean = M.mean()
    return torch.zeros_like(M) if float(mean) == 0.0 else -(M - mean) / mean


def ablation_factors(M: Tensor, w_ab: float) -> Tensor:
    """By what each cell's gradient is scaled: 1 + w_AB (M_i − M̄)/|M̄| in [0, 3]; 1 if M̄ = 0."""
    mean = M.mean()
    return torch.ones_like(M) if float(mean) == 0.0 else (1 + w_ab * (M - mean) / mean.abs()).clamp(0.0, MOST)


class CellGates(Sigmoid):
    """σ(α) for every option, all α the same at the start: 0, or 10 where a hand-made network has its operations.

    Args:
        baseline: an architecture to start from, or None.
    """

    def __init__(self, baseline: Arch | None = None) -> None:
        self.baseline = baseline

    def started(self, state: SearchState) -> None:
        space, parameters = state.supernet.space, state.parameters
        taken = {} if self.baseline is None else parameters.one_hot(space.validate(self.baseline))
        with torch.no_grad():
            for name, logits in state.logits.items():
                logits.copy_(BASELINE_LOGIT * taken[name].to(logits) if name in taken else torch.zeros_like(logits))


class ZeroOne(SearchObjective):
    """Cross entropy and w_01 L_01 of every cell.

    Raises:
        UsageError: a negative weight.
    """

    def __init__(self, w_01: float = 9.0) -> None:
        if not w_01 >= 0:
            raise UsageError(f"ZeroOne: the weight w_01 must not be negative, not {w_01!r}.")
        self.w_01 = w_01

    def penalty(self, weights: Mapping[str, Tensor], moment: Moment) -> Tensor | float:
        if self.w_01 == 0.0:
            return 0.0
        cells: dict[str, list[Tensor]] = {}
        for name, sigma in weights.items():
            cells.setdefault(cell_of(name), []).append(sigma)
        return self.w_01 * torch.stack([push(torch.cat(rows)) for rows in cells.values()]).sum()


class CellAblation(ArchGradient):
    """First-order gradients of all cells by one backward pass, each scaled by what its cell contributes.

    Args:
        ablation: ``"off"``, ``"reported"`` (measured and logged, gradients unchanged) or ``"gradient"``.
        w_ab: weight of the ablation.
        lr_min: the logits' learning rate ends here, by a cosine over the epochs; None to keep it.

    Attributes:
        contributions: M_i by cell, of the last step.

    Raises:
        UsageError: another ``ablation``, or a weight that is not above 0.
    """

    def __init__(self, ablation: str = "gradient", w_ab: float = 0.5, lr_min: float | None = None) -> None:
        if ablation not in ABLATIONS:
            raise UsageError(f"CellAblation: ablation {ablation!r} is unknown. {suggest(ablation, ABLATIONS)}")
        if not w_ab > 0:
            raise UsageError(f"CellAblation: w_ab must be positive, not {w_ab!r}; to do without, ablation='off'.")
        self.ablation, self.w_ab, self.lr_min = ablation, w_ab, lr_min
        self.contributions: dict[str, float] = {}
        self._figures: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._steps = 0

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        if self.lr_min is not None:
            s = state.schedule
            rate = self.lr_min + (s.alpha_lr - self.lr_min) * 0.5 * (
                1 + math.cos(math.pi * state.moment.epoch / s.epochs)
            )
            for group in state.alpha_optimizer.param_groups:
                group["lr"] = rate
        return super().update(state, train, val)

    def gradient(self, problem: SearchState, train: Batch, val: Batch) -> Tensors:  # type: ignore[override]
        """
        Raises:
            UsageError: a single cell, whose contribution cannot be told from the whole.
        """
        total = gradients(problem.val_loss(val), problem.logits)
        if self.ablation == "off":
            return total
        self.contributions = marginal_contributions(problem, val)
        if len(self.contributions) < 2:
            raise UsageError(
                "All cells share their decisions, so none can be told from the others by leaving it out. Use a space "
                "with tie='cell', or ablation='off'."
            )
        M = torch.tensor(list(self.contributions.values()))
        self._log(M)
        if self.ablation == "reported":
            return total
        factors = dict(zip(self.contributions, ablation_factors(M, self.w_ab).tolist()))
        penalty = problem.objective.penalty(problem.mixture_weights(training=True), problem.moment)
        pushed = gradients(penalty, problem.logits) if isinstance(penalty, Tensor) else {}
        return {n: (g - pushed[n]) * factors[cell_of(n)] + pushed[n] if n in pushed else g * factors[cell_of(n)]
                for n, g in total.items()}  # fmt: skip

    def _log(self, M: Tensor) -> None:
        self._steps += 1
        for cell, loss in zip(self.contributions, ablation_losses(M).tolist()):
            self._sums[cell] = self._sums.get(cell, 0.0) + loss

    def epoch_ended(self, state: SearchState) -> None:
        self._figures = {c: s / self._steps for c, s in self._sums.items()}
        self._sums, self._steps = {}, 0

    def figures(self) -> dict[str, Any]:
        """Each cell's mean L_AB over the steps of the epoch, and its contribution in the last one."""
        return {"ablation": self._figures, "contributions": dict(self.contributions)} if self.contributions else {}


@torch.no_grad()
def marginal_contributions(state: SearchState, batch: Batch) -> dict[str, float]:
    """M_i of each cell, by C + 1 forward passes that leave batch-norm statistics and weights as they are."""
    x, y = batch
    mixture = state.mixture_weights()
    cells: dict[str, list[str]] = {}
    for name in mixture:
        cells.setdefault(cell_of(name), []).append(name)

    def loss(weights: Tensors) -> float:
        return float(state.objective.arch_loss(state, state.output(x, weights), x, y))

    with frozen_statistics(batch_norms(state.supernet)):
        whole = loss(mixture)
        return {
            cell: whole - loss(mixture | {n: torch.rand_like(mixture[n]) for n in names})
            for cell, names in cells.items()
        }


SCHEDULE = Schedule(epochs=50, batch_size=72, lr=0.005, lr_min=0.001, alpha_lr=3e-3)


@register(
    "d-darts",
    card=6,
    family="search.differentiable",
    slots=["mix", "arch-gradient", "objective", "select"],
    paper=Paper("D-DARTS: Distributed Differentiable Architecture Search", 2021, "https://arxiv.org/abs/2108.09306"),
)
def d_darts(
    ablation: str = "gradient", w_ab: float = 0.5, w_01: float = 9.0, threshold: float = 0.85, parse: str = "sparse",
    baseline: Arch | None = None, epochs: int | None = None, schedule: Schedule | None = None, **slots: Any,
) -> DifferentiableSearch:  # fmt: skip
    """Differentiable search in which every cell has gates, and a gradient, of its own.

    Args:
        ablation, w_ab: see :class:`CellAblation`.
        w_01: see :class:`ZeroOne`.
        threshold, parse: see :class:`~archipel.search.differentiable.thresholds.Threshold`.
        baseline: a hand-made architecture to start from (DARTOpti); weights are then trained alone for 5 epochs.
        epochs: instead of the schedule's.
        schedule: the paper's by default.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    >>> d_darts(parse="edge").select.parse
    'edge'
    """
    plan = schedule or (SCHEDULE if baseline is None else replace(SCHEDULE, warmup=5))
    slots.setdefault("mix", CellGates(baseline))
    slots.setdefault("arch_gradient", CellAblation(ablation, w_ab, None if schedule else 1e-3))
    slots.setdefault("objective", ZeroOne(w_01))
    slots.setdefault("select", Threshold(threshold, parse))
    return DifferentiableSearch(schedule=plan if epochs is None else plan.over(epochs), **slots)
