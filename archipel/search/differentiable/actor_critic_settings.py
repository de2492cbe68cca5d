"""Settings of the actor and the critic of L²NAS, and the loss that makes a critic predict a quantile.

The check loss: Koenker, Bassett. Regression Quantiles. 1978. https://doi.org/10.2307/1913643
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch  # noqa: F401  (doctest)
from torch import Tensor

from archipel.core.errors import UsageError


def check_loss(u: Tensor, tau: float) -> Tensor:
    """ρ_τ(u), whose mean is least where Q is a τ-quantile of r.

    >>> check_loss(torch.tensor([1.0, -1.0]), 0.9)
    tensor([0.9000, 0.1000])
    """
    return u * (tau - (u < 0).to(u.dtype))


@dataclass(frozen=True)
class Settings:
    """Of the learner. Sizes and rates are ours where the paper names none.

    Args:
        tau: quantile of the critic, or None for squared errors (the expected reward).
        k: architectures that the state summarises.
        noise: ξ.
        hidden: units of the two hidden layers of both networks.
        batch: of an update.
        updates: of each network after every evaluation.
        start: evaluations before the first update.
        critic_lr, actor_lr: of Adam.
        sharpen: β of rewards exp(β z), which stretches the differences between good ones; 0 for z itself.
        epsilon: of random actions in the end.

    Raises:
        UsageError: a number out of range.
    """

    tau: float | None = 0.9
    k: int = 64
    noise: float = 0.1
    hidden: int = 128
    batch: int = 64
    updates: int = 8
    start: int = 16
    critic_lr: float = 1e-3
    actor_lr: float = 1e-4
    sharpen: float = 0.0
    epsilon: float = 0.05

    def __post_init__(self) -> None:
        if self.tau is not None and not 0.0 < self.tau < 1.0:
            raise UsageError(f"The quantile tau lies between 0 and 1 (exclusive), or is None; got {self.tau!r}.")
        for name in ("k", "hidden", "batch", "updates", "start"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"{name} must be a positive integer, not {getattr(self, name)!r}.")
        for name, low, high in (("noise", 0.0, 1.0), ("epsilon", 0.0, 1.0), ("sharpen", 0.0, math.inf)):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} must be at least {low} and at most {high}, not {getattr(self, name)!r}.")


def fitting(settings: Settings, k: int | None, queries: int) -> Settings:
    """The settings with the given k, or else with one that so many queries can fill: at most a quarter of them.

    Raises:
        UsageError: a given k above the number of queries.

    >>> fitting(Settings(), None, 100).k, fitting(Settings(), 80, 100).k
    (25, 80)
    """
    if k is None:
        return replace(settings, k=min(settings.k, max(1, queries // 4)))
    if k > queries:
        raise UsageError(f"The state summarises the k={k} best architectures, but there are only {queries} queries.")
    return replace(settings, k=k)
