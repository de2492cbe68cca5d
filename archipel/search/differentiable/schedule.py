"""The `schedule` slot: how long, in what portions, and with which optimisers a search trains.

Defaults are those of DARTS (section 3.1 and reference code): weights by SGD with a cosine learning rate, architecture
by Adam with little first momentum and its own weight decay. ``warmup`` epochs leave the architecture alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.search.differentiable.parameters import Moment


@dataclass(frozen=True)
class Schedule:
    """Settings of the two optimisations.

    Args:
        epochs: passes over the weights' share of the training data.
        warmup: first epochs in which only weights are trained.
        batch_size: of each of the two batches of a step.
        lr, lr_min: of the weights, at the start and (by a cosine over the epochs) after the last epoch.
        momentum, weight_decay, clip: of the weights' SGD; ``clip`` is the largest gradient norm, or 0.
        alpha_lr, alpha_betas, alpha_decay: of the architecture's Adam; the decay is L2.
        alpha_share: share of the training data that the architecture is trained on; 0 for methods of one level, which
            train both on all of it.
        cutout: side of the square that is erased from each image of both batches, or 0.
        optimizer: of the weights, ``"sgd"`` or ``"adam"`` (for which ``momentum`` is the first beta).

    Raises:
        UsageError: a number out of range, or a warm-up that leaves no epoch for the architecture.
    """

    epochs: int = 50
    warmup: int = 0
    batch_size: int = 64
    lr: float = 0.025
    lr_min: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0
    alpha_lr: float = 3e-4
    alpha_betas: tuple[float, float] = (0.5, 0.999)
    alpha_decay: float = 1e-3
    alpha_share: float = 0.5
    cutout: int = 0
    optimizer: str = "sgd"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"Search schedule: {name} must be a positive integer, not {getattr(self, name)!r}.")
        if not 0 <= self.warmup < self.epochs:
            raise UsageError(
                f"Search schedule: with {self.warmup} warm-up epochs of {self.epochs} the architecture would never be "
                f"trained. Lower warmup or raise epochs."
            )
        for name in ("lr", "alpha_lr"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UsageError(f"Search schedule: {name} must be positive, not {getattr(self, name)!r}.")
        if self.optimizer not in ("sgd", "adam"):
            raise UsageError(f"Search schedule: the weights' optimizer is 'sgd' or 'adam', not {self.optimizer!r}.")
        if not 0.0 <= self.alpha_share < 1.0:
            raise UsageError(f"Search schedule: alpha_share must be at least 0 and below 1, not {self.alpha_share!r}.")

    def over(self, epochs: int) -> Schedule:
        """This schedule stretched or squeezed to another number of epochs; the warm-up keeps its share.

        >>> Schedule(epochs=50, warmup=15).over(10).warmup
        3
        """
        if epochs == self.epochs:
            return self
        return replace(self, epochs=epochs, warmup=min(epochs - 1, round(self.warmup * epochs / self.epochs)))

    def learning_rate(self, epoch: int) -> float:
        """Of the weights in an epoch."""
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        return self.lr_min + (self.lr - self.lr_min) * cosine

    def rate(self, moment: Moment) -> float:
        """Of the weights in a step; the same throughout an epoch unless overridden."""
        return self.learning_rate(moment.epoch)

    def weight_optimizer(self, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(weights, self.lr, (self.momentum, 0.999), weight_decay=self.weight_decay)
        return torch.optim.SGD(weights, self.lr, self.momentum, weight_decay=self.weight_decay)

    def alpha_optimizer(self, logits: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(logits, self.alpha_lr, self.alpha_betas, weight_decay=self.alpha_decay)
