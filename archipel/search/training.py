"""Training and judging one network: the common recipe under which architectures are compared.

Every epoch draws its randomness from (seed, epoch) alone, so training that is interrupted and continued gives the
same weights as training that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.errors import UsageError, suggest
from archipel.data.augment import random_operation
from archipel.data.batches import cutout, horizontal_flip, random_crop
from archipel.data.dataset import Dataset, Split

AUXILIARY_WEIGHT = 0.4  # of an auxiliary classifier's loss (NASNet, DARTS)
AUGMENTATIONS = ("none", "random-operation")


class TrialTimeout(Exception):
    """A trial ran past its time limit."""


class Diverged(Exception):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Recipe:
    """How networks are trained; the same for all networks of a comparison.

    Args:
        epochs: of a full training.
        batch_size: examples a step.
        optimizer: ``"adamw"`` or ``"sgd"`` (Nesterov momentum).
        lr: peak learning rate; ``schedule`` is ``"cosine"`` (to zero over the epochs) or ``"constant"``.
        momentum: of SGD; first beta of AdamW.
        weight_decay: L2 (SGD) or decoupled (AdamW).
        label_smoothing: of the cross entropy.
        clip: largest gradient norm, or 0.
        cutout: side of the square that is erased from each training image, or 0.
        mixup: parameter of the Beta distribution of mix-up, or 0.
        crop: pixels of padding for random crops, or 0.
        flip: whether images are mirrored at random.
        augmentation: ``"none"``, or ``"random-operation"``: one random image operation of random strength for each
            image, after crop and flip; see :mod:`archipel.data.augment`.
    """

    epochs: int = 8
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 3e-3
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    clip: float = 5.0
    cutout: int = 0
    mixup: float = 0.0
    crop: int = 0
    flip: bool = False
    augmentation: str = "none"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"Recipe: {name} must be a positive integer, not {getattr(self, name)!r}.")
        if self.optimizer not in ("adamw", "sgd"):
            raise UsageError(
                f"Recipe: optimizer {self.optimizer!r} is unknown. {suggest(self.optimizer, ('adamw', 'sgd'))}"
            )
        if self.schedule not in ("cosine", "constant"):
            raise UsageError(f"Recipe: schedule {self.schedule!r} is unknown. Known: constant, cosine.")
        if self.augmentation not in AUGMENTATIONS:
            raise UsageError(
                f"Recipe: augmentation {self.augmentation!r} is unknown. {suggest(self.augmentation, AUGMENTATIONS)}"
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"Recipe: lr must be positive, not {self.lr!r}.")

    def with_hyper(self, hyper: Mapping[str, Any]) -> Recipe:
        """This recipe with the hyperparameters that an architecture decided.

        Raises:
            UsageError: a name that is no setting of a recipe.
        """
        known = {f.name for f in fields(self)}
        for name in hyper:
            if name not in known:
                raise UsageError(f"{name!r} is no training hyperparameter. {suggest(name, known)}")
        return replace(self, **dict(hyper))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_optimizer(recipe: Recipe, parameters: Any) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
    return torch.optim.AdamW(parameters, recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=recipe.weight_decay)


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Learning rate after a fraction ``progress`` of the training."""
    if recipe.schedule == "constant":
        return recipe.lr
    return 0.5 * recipe.lr * (1 + math.cos(math.pi * progress))


def loss_of(task: str, output: Tensor | tuple[Tensor, Tensor], y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy over examples or tokens, or mean squared error for regression.

    Of a pair (output, auxiliary classifier's output), which some networks give while training, the second counts
    ``AUXILIARY_WEIGHT`` times.
    """
    if isinstance(output, tuple):
        main, auxiliary = (loss_of(task, o, y, label_smoothing) for o in output)
        return main + AUXILIARY_WEIGHT * auxiliary
    if task == "regression":
        return F.mse_loss(output, y)
    return F.cross_entropy(output.flatten(0, -2), y.flatten(), label_smoothing=label_smoothing)


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """The order of examples in an epoch."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))


def augment(recipe: Recipe, x: Tensor) -> Tensor:
    """A batch of images ``[B, C, H, W]``, cropped, flipped, changed and erased at random as the recipe says."""
    if recipe.crop:
        x = random_crop(recipe.crop)(x, None)
    if recipe.flip:
        x = horizontal_flip()(x, None)
    if recipe.augmentation == "random-operation":
        x = random_operation(x)
    return cutout(recipe.cutout)(x, None) if recipe.cutout else x


def train(
    net: nn.Module,
    data: Split,
    task: str,
    recipe: Recipe,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    each_step: Callable[[], None] | None = None,
    deadline: float | None = None,
) -> torch.optim.Optimizer:
    """Train a network in place for epochs ``start`` to ``stop`` of the recipe's schedule.

    Args:
        net: maps ``[B, *input_shape]`` to logits ``[B, classes]`` (``[B, T, classes]`` for text) or values.
        optimizer: of the earlier epochs when training is continued.
        each_step: called after the gradients of a step were computed, before they are applied.
        deadline: on the monotonic clock.

    Returns:
        the optimizer, to continue with.

    Raises:
        Diverged: the loss is not finite.
        TrialTimeout: the deadline has passed.
    """
    updater = make_optimizer(recipe, net.parameters()) if optimizer is None else optimizer
    stop = recipe.epochs if stop is None else stop
    steps = max(1, len(data) // recipe.batch_size)
    net.train()
    for epoch in range(start, stop):
        torch.manual_seed(seed * 100_003 + epoch)  # dropout, augmentation
        order = shuffled(len(data), seed, epoch)
        for step, index in enumerate(order[: steps * recipe.batch_size].split(recipe.batch_size)):
            for group in updater.param_groups:
                group["lr"] = learning_rate(recipe, (epoch + step / steps) / recipe.epochs)
            x, y = data.x[index], data.y[index]
            if recipe.crop or recipe.flip or recipe.cutout or recipe.augmentation != "none":
                x = augment(recipe, x)
            if recipe.mixup:
                loss = _mixed_loss(net, x, y, task, recipe)
            else:
                loss = loss_of(task, net(x), y, recipe.label_smoothing)
            if not torch.isfinite(loss):
                raise Diverged(f"loss is {float(loss.detach())} in epoch {epoch}, step {step}")
            updater.zero_grad(set_to_none=True)
            loss.backward()
            if each_step:
                each_step()
            if recipe.clip:
                nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
            updater.step()
            if deadline is not None and time.monotonic() > deadline:
                raise TrialTimeout(f"time limit reached in epoch {epoch}, step {step}")
    return updater


def _mixed_loss(net: nn.Module, x: Tensor, y: Tensor, task: str, recipe: Recipe) -> Tensor:
    """Mix-up (Zhang et al. 2017): convex combinations of pairs of examples and of their losses."""
    share = float(torch.distributions.Beta(recipe.mixup, recipe.mixup).sample())
    partner = torch.randperm(len(x))
    output = net(share * x + (1 - share) * x[partner])
    first = loss_of(task, output, y, recipe.label_smoothing)
    return share * first + (1 - share) * loss_of(task, output, y[partner], recipe.label_smoothing)


@torch.no_grad()
def evaluate(net: nn.Module, data: Split, task: str, batch_size: int = 512) -> dict[str, float]:
    """Mean loss, and accuracy (classes, tokens) or R² (regression), in evaluation mode."""
    was_training = net.training
    net.eval()
    outputs = torch.cat([net(x) for x in data.x.split(batch_size)])
    net.train(was_training)
    metrics = {"loss": float(loss_of(task, outputs, data.y))}
    if task == "regression":
        residual = float(((outputs - data.y) ** 2).sum())
        metrics["r2"] = 1.0 - residual / float(((data.y - data.y.mean(0)) ** 2).sum())
    else:
        metrics["accuracy"] = float((outputs.argmax(-1) == data.y).double().mean())
    return metrics


@torch.no_grad()
def recalibrate(net: nn.Module, x: Tensor, batch_size: int = 256) -> None:
    """Set every batch norm's running statistics to those of ``x`` (cumulative average), whatever they were before.

    Raises:
        UsageError: ``x`` has fewer than two examples.
    """
    if len(x) < 2:
        raise UsageError(f"Batch-norm calibration needs at least one batch of two training inputs, but got {len(x)}.")
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    was_training = net.training
    try:
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # cumulative average
        net.train()
        for batch in x.split(batch_size):
            if len(batch) > 1:  # a single example has no variance
                net(batch)
    finally:
        for m, momentum in zip(norms, momenta):
            m.momentum = momentum
        net.train(was_training)


def main_metric(dataset: Dataset) -> str:
    """The validation metric that a search maximises: accuracy, or R² for regression."""
    return "r2" if dataset.task == "regression" else "accuracy"
