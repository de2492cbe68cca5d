"""Temperatures of a softmax over a search: their schedule, edges' own pace by entropy, and the scaled logits.

    schedule    τ_i = τ_0 (τ_T/τ_0)^(i/N)                        i counts steps, the first is 0 and the last is N
    adaptation  τ_e,i = clip(τ_i exp(κ (h*_i − h_e)), τ_T, τ_0)  h_e = H(p_e)/ln K; h* falls linearly

See :mod:`archipel.search.differentiable.small_temperature_darts`, which uses both. Axes: R rows, K options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from archipel.core.errors import ShapeError, UsageError


@dataclass(frozen=True)
class ExponentialTemperature:
    """τ_i = τ_0 (τ_T/τ_0)^(i/N).

    Raises:
        UsageError: a temperature that is not positive, or an end above the start.

    >>> tau = ExponentialTemperature(1.0, 0.05)
    >>> [round(tau(i, 10), 5) for i in (0, 1, 5, 10)]
    [1.0, 0.74113, 0.22361, 0.05]
    """

    start: float = 1.0
    end: float = 0.05

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"Temperature: {name} must be positive, not {getattr(self, name)!r}.")
        if self.end > self.start:
            raise UsageError(
                f"Temperature: the end {self.end} is above the start {self.start}, so the mixture would get softer. "
                f"Exchange them."
            )

    def __call__(self, i: int, N: int) -> float:
        return self.start * (self.end / self.start) ** (i / N if N else 1.0)


@dataclass(frozen=True)
class EntropyAdaptation:
    """Keeps every edge's normalised entropy near a target that falls linearly.

    Args:
        kappa: κ, how strongly an edge is warmed or cooled; 0 leaves the schedule alone.
        first, last: h* at the first and the last step.
        momentum: of the average of h_e.

    Raises:
        UsageError: a negative κ, or targets or a momentum outside [0, 1].
    """

    kappa: float = 1.0
    first: float = 1.0
    last: float = 0.1
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not self.kappa >= 0:
            raise UsageError(f"Entropy adaptation: kappa must not be negative, got {self.kappa!r}.")
        for name in ("first", "last", "momentum"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"Entropy adaptation: {name} must be from 0 to 1, not {getattr(self, name)!r}.")

    def target(self, i: int, N: int) -> float:
        """h*_i."""
        return self.first + (self.last - self.first) * (i / N if N else 1.0)

    def temperature(self, tau: float, h: float, target: float, bounds: ExponentialTemperature) -> float:
        """τ_e of an edge with entropy ``h`` when the schedule says ``tau``."""
        return min(bounds.start, max(bounds.end, tau * math.exp(self.kappa * (target - h))))


def row_entropy(p_RK: Tensor) -> Tensor:
    """H(p)/ln K of each row, ``[R, K] -> [R]``.

    Raises:
        ShapeError: rows with a single option, whose entropy has no scale (ln 1 = 0).
    """
    K = p_RK.shape[-1]
    if K < 2:
        raise ShapeError("The entropy of a row is relative to ln K, but the row has K = 1 option. Fix that decision.")
    return torch.special.entr(p_RK).sum(-1) / math.log(K)


def tempered(logits_RK: Tensor, tau_R: Tensor) -> Tensor:
    """z = (α − max α)/τ, in single precision at least: half precision would overflow at small τ.

    Raises:
        UsageError: a temperature that is not positive.
    """
    if not bool((tau_R > 0).all()):
        raise UsageError(f"Temperatures must be positive, not {float(tau_R.min())!r}.")
    a = logits_RK if logits_RK.dtype == torch.float64 else logits_RK.float()
    return (a - a.max(-1, keepdim=True).values.detach()) / tau_R.to(a)[:, None]
