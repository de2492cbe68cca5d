"""Training a supernet: single paths, one knob for each factor that is known to change how well its networks rank.

Guo et al. Single Path One-Shot Neural Architecture Search with Uniform Sampling. 2019.
https://arxiv.org/abs/1904.00420
Yu, Ranftl, Salzmann. How to Train Your Super-Net. 2020. https://arxiv.org/abs/2003.04276   (the factors)

    each step:  a ~ sampler,   W <- W - lr dL(N(a, W_a)) / dW

Only what the drawn path uses is changed, bit for bit: momentum and weight decay do not move the rest
(:mod:`archipel.search.live_update`). With several paths a step their gradients are summed before the one update.

Every epoch draws its randomness from (seed, epoch) alone and ends in a checkpoint, so an interrupted training continues
to the same weights. Gradients are clipped at norm 5, which the paper of single paths does not do: spaces here need not
have batch norm.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

import torch
from torch import nn

from archipel.core.errors import RunError, UsageError
from archipel.core.storage import Checkpoints
from archipel.core.supernet import Supernet
from archipel.data.dataset import Split
from archipel.search.live_update import LiveUpdate
from archipel.search.oneshot.factors import BASELINE, Factors
from archipel.search.oneshot.samplers import Sampler, make_sampler
from archipel.search.training import Diverged, Recipe, augment, loss_of, shuffled

# Seconds between checkpoints, so that saving never dominates short epochs.
SAVE_EVERY_SECONDS = 1.0


def configure_batch_norm(net: nn.Module, batch_norm: str, affine: bool) -> None:
    """Take scale and shift (``affine=False``) and running statistics (``"batch"``) away from every batch norm."""
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            if not affine:
                m.affine, m.weight, m.bias = False, None, None  # type: ignore[assignment]
            if batch_norm == "batch":
                m.track_running_stats = False
                m.running_mean = m.running_var = m.num_batches_tracked = None


@dataclass
class TrainingLog:
    """What a training did: mean loss of each epoch, steps taken, and how many epochs it was to have."""

    losses: list[float] = field(default_factory=list)
    steps: int = 0
    epochs: int = 0
    paths: int = 0


def train_supernet(
    supernet: Supernet,
    data: Split,
    task: str,
    factors: Factors = BASELINE,
    seed: int = 0,
    *,
    sampler: Sampler | None = None,
    augmentation: Recipe | None = None,
    checkpoints: Checkpoints | None = None,
    name: str = "supernet",
    progress: Callable[[float], None] = lambda fraction: None,
    deadline: float | None = None,
) -> TrainingLog:
    """Train a supernet in place, or go on where a checkpoint left off.

    Args:
        supernet: its batch norms as :func:`configure_batch_norm` made them.
        data: training split; with ``factors.data`` below 1 a fixed random part of it is used.
        sampler: replaces the one that ``factors.sampling`` names.
        augmentation: a recipe whose crops, flips and cutout are applied.
        checkpoints: where the state is kept under ``name``.
        deadline: on the monotonic clock; after each epoch the number of epochs is cut to what fits before it, and the
            learning rate falls accordingly. An epoch in which it passes is the last, and ends there.

    Raises:
        UsageError: no data, or the loss is no longer finite; says what to change.
        RunError: the checkpoint belongs to other settings.
    """
    if factors.data < 1.0:
        data = data.take(shuffled(len(data), seed, -1)[: round(factors.data * len(data))])
    if len(data) < 2:
        raise UsageError(f"A supernet cannot be trained on {len(data)} examples; it needs at least 2.")
    job = _Job(supernet, data, task, factors, seed, sampler or make_sampler(factors.sampling, supernet), augmentation)
    with torch.random.fork_rng(devices=[]):
        job.run(checkpoints or Checkpoints(), name, progress, deadline)
    return job.log


class _Job:
    """One training of a supernet."""

    def __init__(
        self,
        supernet: Supernet,
        data: Split,
        task: str,
        factors: Factors,
        seed: int,
        sampler: Sampler,
        augmentation: Recipe | None,
    ) -> None:
        self.supernet, self.data, self.task, self.factors, self.seed = supernet, data, task, factors, seed
        self.sampler, self.augmentation = sampler, augmentation
        self.parameters = list(supernet.parameters())
        self.optimizer = torch.optim.SGD(
            self.parameters, factors.lr, momentum=factors.momentum, weight_decay=factors.weight_decay
        )
        self.update = LiveUpdate(supernet, self.optimizer)
        self.steps = max(1, len(data) // factors.batch_size)
        self.log = TrainingLog(epochs=factors.epochs)
        settings = {**asdict(factors), "seed": seed, "examples": len(data), "space": supernet.space.name}
        self.key = json.dumps(settings, sort_keys=True)

    # --- training --------------------------------------------------------------------------------------------------

    def run(
        self, checkpoints: Checkpoints, name: str, progress: Callable[[float], None], deadline: float | None
    ) -> None:
        self.restore(checkpoints, name)
        self.supernet.train()
        saved = time.monotonic()
        epoch = len(self.log.losses)
        while epoch < self.log.epochs:
            began = time.monotonic()
            self.log.losses.append(self.epoch(epoch, deadline))
            epoch += 1
            now = time.monotonic()
            if deadline is not None:
                fitting = int(max(0.0, deadline - now) / (now - began))
                self.log.epochs = min(self.log.epochs, epoch + fitting)
            if now - saved >= SAVE_EVERY_SECONDS or epoch >= self.log.epochs:
                checkpoints.save(name, self.state(copy=checkpoints.folder is None))
                saved = now
            progress(epoch / self.log.epochs)

    def epoch(self, epoch: int, deadline: float | None) -> float:
        """Train for one epoch; returns the mean loss of its steps."""
        f, data = self.factors, self.data
        torch.manual_seed(self.seed * 100_003 + epoch)  # dropout, augmentation, random channels
        rng = Random(f"paths of epoch {epoch} under seed {self.seed}")
        total, done = 0.0, 1
        order = shuffled(len(data), self.seed, epoch)
        for step, index in enumerate(order[: self.steps * f.batch_size].split(f.batch_size)):
            for group in self.optimizer.param_groups:
                group["lr"] = f.lr * (1.0 - (epoch + step / self.steps) / self.log.epochs)
            x, y = data.x[index], data.y[index]
            if self.augmentation is not None:
                x = augment(self.augmentation, x)
            total += self.step(x, y, rng, epoch)
            done = step + 1
            if deadline is not None and time.monotonic() > deadline:
                break
        return total / done

    def step(self, x: torch.Tensor, y: torch.Tensor, rng: Random, epoch: int) -> float:
        """One update: the summed gradients of the drawn paths; returns their mean loss."""
        self.optimizer.zero_grad(set_to_none=True)  # what no path of this step uses must have no gradient at all
        deciders = self.sampler(rng)
        losses = 0.0
        for decider in deciders:
            self.supernet.decider = decider
            loss = loss_of(self.task, self.supernet(x), y, self.factors.label_smoothing)
            losses += float(loss.detach())
            loss.backward()
            self.update.mark()
        if not math.isfinite(losses):
            raise UsageError(
                f"The supernet's loss became {losses} in epoch {epoch}: training diverged. Use a smaller lr than "
                f"{self.factors.lr:g}, or batch norm in the space."
            ) from Diverged()
        if self.factors.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.factors.clip)
        self.update.step()
        self.log.steps += 1
        self.log.paths += len(deciders)
        return losses / len(deciders)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state(self, copy: bool) -> dict[str, Any]:
        state = {
            "key": self.key,
            "log": asdict(self.log),
            "model": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return _copied(state) if copy else state

    def restore(self, checkpoints: Checkpoints, name: str) -> None:
        state = checkpoints.load(name)
        if state is None:
            return
        if state["key"] != self.key:
            raise RunError(
                f"The checkpoint {name!r} was made with {state['key']}, but now asked is {self.key}. Use the settings "
                f"of the interrupted run, or a fresh folder."
            )
        self.supernet.load_state_dict(state["model"])
        self.optimizer.load_state_dict(_copied(state["optimizer"]))
        self.log = TrainingLog(**state["log"])


def _copied(value: Any) -> Any:
    """Nested containers with their tensors cloned: a checkpoint in memory must not change as training goes on."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_copied(v) for v in value]
    return value
