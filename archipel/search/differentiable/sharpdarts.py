"""sharpDARTS: the strongest option of every mixture counts whole, and the learning rate falls by a power of a cosine.

Hundt, Jain, Hager. sharpDARTS: Faster and More Accurate Differentiable Architecture Search. 2019.
https://arxiv.org/abs/1903.09900

    Max-W          w = softmax(α),  ō(x) = Σ_o (1 − max w + w_o) · o(x)
    cosine power   c_e = (1 + cos(πe/E))/2,  q_e = p^(c_e + 1) for p > 1, c_e for p = 1,  e = 1 … E
                   lr_e = lr_min + (lr_max − lr_min) (q_e − q_E)/(q_1 − q_E)

The coefficients are not normalised again: equal logits give all options 1, their sum and not their mean. As the best
coefficient is 1 on every edge, options are ranked by w when an architecture is read off. In the authors' code the
gradient flows through the maximum, so that the best option's own coefficient has none; their comment means otherwise.
``detach_max`` gives either.

Fills the `mix` and `schedule` slots; the operations are in :mod:`archipel.spaces.sharp_operations`, the grid of
channels and its longest path in :mod:`archipel.spaces.hyper_cuboid` and :mod:`~archipel.search.differentiable.paths`.
Departure: an option is skipped where the coefficient that multiplies it is below 1/N², for Max-W as for scalar weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from archipel.core.errors import UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.parameters import Moment, Row
from archipel.search.differentiable.paths import GreedyPath, LongestPath
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Argmax, Select

# --- mixtures --------------------------------------------------------------------------------------------------------


def max_w(w: Tensor, detach_max: bool = False) -> Tensor:
    """1 − max w + w, ``[..., O] -> [..., O]``; the largest is exactly 1.

    >>> [round(c, 6) for c in max_w(torch.softmax(torch.tensor([1.0, 0.0, -1.0]), 0)).tolist()]
    [1.0, 0.579488, 0.42479]
    """
    top = w.max(-1, keepdim=True).values
    return 1.0 - ((top.detach() if detach_max else top) - w)


class ScalarWeights(Mix):
    """Softmax weights, as in DARTS.

    Args:
        skip: whether options with a coefficient below 1/N² are left out, for N options in the softmax.
    """

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip

    def mixed(self, w: Tensor) -> Tensor:
        """Coefficients for softmax weights, ``[O] -> [O]``."""
        return w

    def coefficients(self, logits: Tensor, row: Row, moment: Moment) -> Tensor:
        c = self.mixed(torch.softmax(logits, 0))
        return torch.where(c < 1.0 / len(c) ** 2, 0.0, c) if self.skip else c

    def scores(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        return {name: torch.softmax(logits[name], 0) for name in rows}


class MaxW(ScalarWeights):
    """Max-W regularised weights; options are ranked by their softmax.

    Args:
        detach_max: whether no gradient flows through the maximum.
        skip: see :class:`ScalarWeights`.
    """

    def __init__(self, detach_max: bool = False, skip: bool = False) -> None:
        super().__init__(skip)
        self.detach_max = detach_max

    def mixed(self, w: Tensor) -> Tensor:
        return max_w(w, self.detach_max)


# --- learning rates --------------------------------------------------------------------------------------------------


class ExponentError(UsageError, ValueError):
    """A cosine power schedule that makes no sense."""


def cosine_power(
    epochs: Sequence[int] | None = None,
    max_epoch: int | None = None,
    exponent_order: float = 2.0,
    lr_max: float = 0.025,
    lr_min: float = 1e-4,
) -> list[float]:
    """Learning rates of cosine power annealing.

    Args:
        epochs: counted from 1; all up to ``max_epoch`` if left out.
        max_epoch: E; the last of ``epochs`` if left out.
        exponent_order: p; 1 is the cosine itself, rescaled.
        lr_max, lr_min: in the first and in the last epoch.

    Raises:
        ExponentError: p below 1, no epochs at all, or epochs outside 1 … E (a ``ValueError``).

    >>> [round(lr, 6) for lr in cosine_power([1, 5, 10], 10, 10.0, 0.1, 1e-4)]
    [0.1, 0.025657, 0.0001]
    """
    if not exponent_order >= 1:
        raise ExponentError(f"Cosine power annealing: exponent_order must be at least 1, not {exponent_order!r}.")
    if epochs is None and max_epoch is None:
        raise ExponentError("Cosine power annealing: give epochs, max_epoch, or both; got neither.")
    E = max(epochs) if max_epoch is None else max_epoch  # type: ignore[arg-type]
    wanted = range(1, E + 1) if epochs is None else epochs
    if E < 1 or any(not 1 <= e <= E for e in wanted):
        raise ExponentError(f"Cosine power annealing: epochs are counted from 1 to max_epoch, but got {list(wanted)}.")

    def q(e: int) -> float:
        c = (1 + math.cos(math.pi * e / E)) / 2
        return c if exponent_order == 1 else exponent_order ** (c + 1)

    high, low = q(1), q(E)
    return [lr_max if E == 1 else lr_min + (lr_max - lr_min) * (q(e) - low) / (high - low) for e in wanted]


@dataclass(frozen=True)
class CosinePower(Schedule):
    """A schedule whose weights' learning rate falls by cosine power annealing.

    Args:
        power: p.
        rise: first epochs, in which the learning rate rises linearly instead; the curve has the others.

    Raises:
        ExponentError: a power below 1, or a rise that leaves no epoch.
    """

    epochs: int = 120
    batch_size: int = 48
    lr_min: float = 1e-4
    power: float = 2.0
    rise: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rise < self.epochs:
            raise ExponentError(f"CosinePower: a rise of {self.rise} leaves no epoch of {self.epochs} for the curve.")
        cosine_power(max_epoch=1, exponent_order=self.power)

    def over(self, epochs: int) -> Schedule:
        rise = min(epochs - 1, round(self.rise * epochs / self.epochs))
        # Both numbers change at once: either alone could leave the curve no epoch.
        warmup = min(epochs - 1, round(self.warmup * epochs / self.epochs))
        return self if epochs == self.epochs else replace(self, epochs=epochs, warmup=warmup, rise=rise)

    def learning_rate(self, epoch: int) -> float:
        """Of an epoch counted from 0."""
        if epoch < self.rise:
            return self.lr_min + (self.lr - self.lr_min) * (epoch + 1) / (self.rise + 1)
        E = self.epochs - self.rise
        return cosine_power([min(epoch - self.rise + 1, E)], E, self.power, self.lr, self.lr_min)[0]


# --- the recipe ------------------------------------------------------------------------------------------------------

WEIGHTINGS = ("scalar", "max_w")
PATHS = {
    "argmax": Argmax,
    "longest": LongestPath,
    "bottom-up": lambda: GreedyPath("bottom-up"),
    "top-down": lambda: GreedyPath("top-down"),
}


@register(
    "sharpdarts",
    card=32,
    family="search.differentiable",
    slots=["mix", "schedule", "select"],
    paper=Paper(
        "sharpDARTS: Faster and More Accurate Differentiable Architecture Search",
        2019,
        "https://arxiv.org/abs/1903.09900",
    ),
)
def sharpdarts(
    weighting: str = "max_w",
    detach_max: bool = False,
    skip: bool = False,
    power: float | None = None,
    path: str = "argmax",
    schedule: Schedule | None = None,
    **slots: Any,
) -> DifferentiableSearch:
    """Differentiable search with Max-W regularised mixtures and cosine power annealing.

    Args:
        weighting: ``"max_w"``, or ``"scalar"`` for the softmax of DARTS.
        detach_max, skip: see :class:`MaxW`.
        power: p of the paper's schedule, 2 by default.
        path: how the answer is read off: ``"argmax"`` edge by edge; in a hyper-cuboid ``"longest"``, or for
            comparison ``"bottom-up"`` or ``"top-down"``.
        schedule: :class:`CosinePower` by default: 120 epochs, batches of 48, 0.025 to 0.0001.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    Raises:
        UsageError: an unknown weighting or path, or a setting that would have no effect.

    >>> sharpdarts(power=10).schedule.power
    10
    """
    if weighting not in WEIGHTINGS:
        raise UsageError(f"Unknown weighting {weighting!r}: expected scalar or max_w.")
    if weighting == "scalar" and detach_max:
        raise UsageError("Scalar weights have no maximum that could be detached; detach_max needs weighting='max_w'.")
    if path not in PATHS:
        raise UsageError(f"There is no path {path!r}. {suggest(path, PATHS)}")
    if schedule is not None and power is not None:
        raise UsageError("Give the power in the schedule, as CosinePower(power=...), or give no schedule.")
    select: Select = slots.pop("select", None) or PATHS[path]()
    mix = MaxW(detach_max, skip) if weighting == "max_w" else ScalarWeights(skip)
    chosen = schedule or CosinePower(power=2.0 if power is None else power)
    return DifferentiableSearch(mix=mix, schedule=chosen, select=select, **slots)
