"""Single-Path NAS: every choice is a part of one superkernel, and its norm against a learnt threshold decides.

Stamoulis, Ding, Wang, Lymberopoulos, Priyantha, Liu, Marculescu. Single-Path NAS: Designing Hardware-Efficient ConvNets
in less than 4 Hours. 2019. https://arxiv.org/abs/1904.02877

    d5, d100, d50 by :mod:`archipel.spaces.superkernel`: 5x5 or 3x3, large or small expansion, kept or skipped
    L = CE + λ ln R,   R = c_0 + Σ_layers ch · (ratio + (1 − ratio) d5)
    ch = d50 (R_5,s + d100 (R_5,l − R_5,s)),  ratio = R_3,l / R_5,l           R_k,e: profiled, s and l the expansions

Weights and thresholds are trained together, by the same optimiser on the same batches. Thresholds start at 0, where
everything is on. During the warm-up R takes no part, and each indicator is dropped with probability 0.4.

R is linear in the one-hot weights of the options: it is their expectation under a table that has R_5,s R_3,l / R_5,l
in place of R_3,s, the one entry that the formula does not reproduce. ``exact=True`` keeps the entry. Fills the `mix`,
`arch-gradient` and `objective` slots. Differs from the reference code in that dropped indicators are exactly 0 and kept
ones exactly 1 (not scaled up), and from the paper as the superkernel's module says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archipel.core.errors import SpaceError, UsageError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.arch_gradient import Batch, OneLevel
from archipel.search.differentiable.cost_loss import CostLoss
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.parameters import Moment, Row
from archipel.search.differentiable.schedule import Schedule
from archipel.spaces.operations import OpFactory
from archipel.spaces.superkernel import INDICATORS, Superkernel

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


class Superkernels(Mix):
    """Superkernels for edges, and indicators for weights; the parameters of a layer are its three thresholds.

    Args:
        keep: probability with which an indicator is kept in a step of the warm-up.

    Raises:
        UsageError: a probability outside (0, 1].
    """

    def __init__(self, keep: float = 0.6) -> None:
        if not 0 < keep <= 1:
            raise UsageError(f"Superkernels: keep is a probability above 0, not {keep!r}.")
        self.keep = keep
        self._warmup = 0

    def edge(  # type: ignore[override]
        self, name: str, ops: Mapping[str, OpFactory], C: int, stride: int, blend_only: Sequence[str] = ()
    ) -> nn.Module:
        """
        Raises:
            SpaceError: a layer whose options are not the parts of one block.
        """
        return Superkernel(name, ops, C, stride)

    def started(self, state: SearchState) -> None:
        state.reparametrise({name: torch.zeros(3) for name in state.parameters.rows})
        self._warmup = state.schedule.warmup

    def weights(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        """One-hot weights of the options, and beside them the indicators ``[3]`` that they come from."""
        out = {}
        for name, row in rows.items():
            layer = row.modules[0]
            assert isinstance(layer, Superkernel)  # made by `edge`
            d = layer.decide(logits[name], self.keep if moment.training and moment.epoch < self._warmup else 1.0)
            out[name], out[name + INDICATORS] = layer.weights(d), d
        return out


class Together(OneLevel):
    """Weights and thresholds step together from the start, at the same learning rate."""

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        for group in state.alpha_optimizer.param_groups:
            group["lr"] = state.step_size
        return state.joint_step(train)


class RuntimeLoss(CostLoss):
    """L + λ ln R, with R by the paper's formula.

    Args:
        cost: ``"params"``, ``"macs"`` or a table: layer -> option -> cost; that of ``skip`` is 0 if left out.
        weight: λ.
        constant: what the rest of the network takes, for a table.
        exact: whether the small 3x3 block costs what the table says, and not what the formula makes of the others.
    """

    def __init__(
        self,
        cost: str | Mapping[str, Mapping[str, float]] = "macs",
        weight: float = 0.1,
        constant: float = 0.0,
        exact: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        if not isinstance(cost, str):
            cost = {name: {"skip": 0.0, **entries} for name, entries in cost.items()}
        super().__init__(cost, "add-log", None, weight, constant=constant, label_smoothing=label_smoothing)
        self.exact = exact

    def started(self, state: SearchState) -> None:
        """
        Raises:
            SpaceError: layers that are no superkernels, an entry that is missing or not positive, or a free network.
        """
        super().started(state)
        assert self.expected is not None  # just made
        table = {}
        for name, costs in self.expected.table.items():
            layer = state.parameters.rows[name].modules[0]
            if not isinstance(layer, Superkernel):
                raise SpaceError(f"RuntimeLoss is for superkernels, but {name!r} is none. Give mix=Superkernels().")
            for label, c in zip(layer.blend_labels, costs.tolist()):
                if label != "skip" and not c > 0:
                    raise SpaceError(f"The runtime table has {c} for {label!r} of {name!r}; runtimes must be positive.")
            table[name] = costs if self.exact else bilinear(costs, layer.order)
        self.expected = replace(self.expected, table=table)


def bilinear(costs: Tensor, order: Sequence[int] = (0, 1, 2, 3, 4)) -> Tensor:
    """Costs ``[O]`` with the small 3x3 block's replaced by what the formula makes of the other three.

    Args:
        order: what each stands for: 0 to 3 by kernel and then expansion, 4 for skip.

    >>> bilinear(torch.tensor([4.4905, 9.2015, 5.9248, 11.5892, 0.0]))[0]
    tensor(4.7041)
    """
    at = {kind: place for place, kind in enumerate(order)}
    out = costs.clone()
    out[at[0]] = costs[at[2]] * costs[at[1]] / costs[at[3]]
    return out


@dataclass(frozen=True)
class OneOptimizer(Schedule):
    """RMSProp for weights and thresholds alike (MnasNet's settings)."""

    def weight_optimizer(self, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(
            weights, self.lr, alpha=0.9, eps=1e-3, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def alpha_optimizer(self, logits: Iterable[Tensor]) -> torch.optim.Optimizer:
        return self.weight_optimizer(logits)


# Reference code: 10 epochs, of which 6,255 steps of batches of 1,024 (5 epochs) are warm-up; 0.016 a batch of 256.
SCHEDULE = OneOptimizer(
    epochs=10, warmup=5, batch_size=1024, lr=0.064, lr_min=0.0, weight_decay=1e-5, clip=0.0, alpha_share=0.0
)


@register(
    "single-path-nas",
    card=167,
    family="search.differentiable",
    slots=["mix", "arch-gradient", "objective"],
    paper=Paper(
        "Single-Path NAS: Designing Hardware-Efficient ConvNets in less than 4 Hours",
        2019,
        "https://arxiv.org/abs/1904.02877",
    ),
)
def single_path_nas(
    weight: float = 0.1,
    cost: str | Mapping[str, Mapping[str, float]] = "macs",
    constant: float = 0.0,
    exact: bool = False,
    keep: float = 0.6,
    schedule: Schedule | None = None,
    **slots: Any,
) -> DifferentiableSearch:
    """Search within one superkernel a layer, by thresholds on the norms of its parts.

    Args:
        weight: λ of the logarithm of the runtime.
        cost, constant, exact: see :class:`RuntimeLoss`.
        keep: see :class:`Superkernels`.
        schedule: the reference's by default: 10 epochs with 5 of warm-up, batches of 1,024.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    Raises:
        UsageError: a negative λ, or a probability outside (0, 1].

    >>> single_path_nas(weight=1.0).objective.weight
    1.0
    """
    slots.setdefault("mix", Superkernels(keep))
    slots.setdefault("arch_gradient", Together())
    slots.setdefault("objective", RuntimeLoss(cost, weight, constant, exact))
    return DifferentiableSearch(schedule=schedule or SCHEDULE, **slots)
