"""Training the shared weights of a network of stages: the heaviest network first, then many that learn from it.

    phase 1    L(y, heaviest(x))
    phase 2    L(y, heaviest(x)) + mean over parts of the batch of  (1 - κ) L(y, f_a(x)) + κ D(heaviest(x), f_a(x))

In phase 2 each part of a batch goes through a network a of its own, drawn uniformly (the paper: each image; batch norms
need more than one), and learns also from what the heaviest gives for it, in place and without a second network. D is
the Kullback-Leibler divergence of the two outputs' softmax, for regressions their squared distance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.errors import UsageError
from archipel.core.supernet import Supernet
from archipel.data.dataset import Split
from archipel.search.training import Diverged, Recipe, learning_rate, loss_of, shuffled
from archipel.spaces.hardcore import HardCoReSpace


@dataclass(frozen=True)
class OneShot:
    """Settings of both phases, each with its own cosine.

    Args:
        heavy_epochs: of phase 1.
        epochs: of phase 2.
        paths: parts of a batch in phase 2.
        distil: κ.
        batch_size, lr, momentum, weight_decay, clip: of SGD.

    Raises:
        UsageError: a number out of range.
    """

    heavy_epochs: int = 30
    epochs: int = 30
    paths: int = 4
    distil: float = 0.5
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float = 5.0

    def __post_init__(self) -> None:
        for name, least in {"heavy_epochs": 0, "epochs": 0, "paths": 1, "batch_size": 2}.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise UsageError(f"One-shot training: {name} is a whole number from {least} on.")
        if self.heavy_epochs + self.epochs < 1 or self.batch_size < 2 * self.paths:
            raise UsageError(
                f"One-shot training needs an epoch and at least 2 examples for each of {self.paths} paths, not batches "
                f"of {self.batch_size}."
            )
        if not 0.0 <= self.distil <= 1.0:
            raise UsageError(f"One-shot training: distil is a share from 0 to 1, not {self.distil!r}.")

    def recipe(self, epochs: int) -> Recipe:
        return Recipe(
            epochs=max(1, epochs), batch_size=self.batch_size, optimizer="sgd", lr=self.lr, momentum=self.momentum,
            weight_decay=self.weight_decay, clip=self.clip,
        )  # fmt: skip

    def over(self, epochs: int) -> OneShot:
        """These settings with another number of epochs in all, shared out as before.

        >>> OneShot(20, 10).over(6).heavy_epochs
        4
        """
        heavy = round(self.heavy_epochs * epochs / (self.heavy_epochs + self.epochs))
        return OneShot(heavy, epochs - heavy, *(getattr(self, n) for n in list(self.__dataclass_fields__)[2:]))


class SandwichedTraining:
    """One training, an epoch at a time.

    Args:
        supernet, space: whose weights.
        data, task: to learn from.
        settings: of both phases.
        seed: each epoch's randomness is drawn from it and the epoch alone.
    """

    def __init__(
        self, supernet: Supernet, space: HardCoReSpace, data: Split, task: str, settings: OneShot, seed: int
    ) -> None:
        self.supernet, self.space, self.data, self.task = supernet, space, data, task
        self.settings, self.seed = settings, seed
        self.heaviest = space.heaviest()
        s = settings
        self.optimizer = torch.optim.SGD(
            supernet.parameters(), s.lr, s.momentum, weight_decay=s.weight_decay, nesterov=s.momentum > 0
        )
        self.epoch = 0

    @property
    def epochs(self) -> int:
        return self.settings.heavy_epochs + self.settings.epochs

    def run_epoch(self, deadline: float | None = None) -> float | None:
        """Mean loss of the next epoch; None if the deadline passed before its end.

        Raises:
            Diverged: the loss is not finite.
        """
        s, size = self.settings, self.settings.batch_size
        heavy = self.epoch < s.heavy_epochs
        done, of = (self.epoch, s.heavy_epochs) if heavy else (self.epoch - s.heavy_epochs, s.epochs)
        recipe, rng = s.recipe(of), Random(self.seed * 100_003 + self.epoch)
        order = shuffled(len(self.data), self.seed, self.epoch)
        steps = max(1, len(order) // size)
        self.supernet.train()
        total = 0.0
        for n in range(steps):
            if deadline is not None and time.monotonic() > deadline:
                return None
            index = order[n * size : (n + 1) * size]
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(recipe, (done + n / steps) / of)
            total += self._step(self.data.x[index], self.data.y[index], heavy, rng)
        self.epoch += 1
        return total / steps

    def _step(self, x: Tensor, y: Tensor, heavy: bool, rng: Random) -> float:
        self.supernet.activate(self.heaviest, validate=False)
        teacher = self.supernet(x)
        loss = loss_of(self.task, teacher, y)
        if not heavy:
            parts = [p for p in torch.arange(len(x)).chunk(self.settings.paths) if len(p) > 1]
            losses = [self._student(x[p], y[p], teacher[p].detach(), rng) for p in parts]
            loss = loss + torch.stack(losses).mean()
        value = float(loss.detach())
        if value - value != 0.0:
            raise Diverged(f"the one-shot training's loss is {value} in epoch {self.epoch}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.supernet.parameters(), self.settings.clip)
        self.optimizer.step()
        return value

    def _student(self, x: Tensor, y: Tensor, teacher: Tensor, rng: Random) -> Tensor:
        self.supernet.activate(self.space.sample_choices(rng), validate=False)
        output, k = self.supernet(x), self.settings.distil
        return (1 - k) * loss_of(self.task, output, y) + k * distance(self.task, output, teacher)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch, "net": self.supernet.state_dict(), "optimizer": self.optimizer.state_dict()
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.supernet.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])


def distance(task: str, output: Tensor, teacher: Tensor) -> Tensor:
    """D(teacher, output): what a network has yet to learn of another's output; mean over the batch."""
    if task == "regression":
        return F.mse_loss(output, teacher)
    return F.kl_div(F.log_softmax(output, -1), F.log_softmax(teacher, -1), log_target=True, reduction="batchmean")


def distilled(
    student: nn.Module,
    teacher: Callable[[Tensor], Tensor],
    data: Split,
    task: str,
    recipe: Recipe,
    kappa: float,
    seed: int,
) -> nn.Module:
    """Train a network on labels and on a teacher's outputs; in place, and returned.

    Args:
        kappa: share of the teacher.
    """
    optimizer = torch.optim.SGD(student.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
    steps = max(1, len(data) // recipe.batch_size)
    student.train()
    for epoch in range(recipe.epochs):
        order = shuffled(len(data), seed, epoch)
        for n, index in enumerate(order[: steps * recipe.batch_size].split(recipe.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, (epoch + n / steps) / recipe.epochs)
            x, y = data.x[index], data.y[index]
            with torch.no_grad():
                target = teacher(x)
            output = student(x)
            loss = (1 - kappa) * loss_of(task, output, y) + kappa * distance(task, output, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if recipe.clip:
                nn.utils.clip_grad_norm_(student.parameters(), recipe.clip)
            optimizer.step()
    return student
