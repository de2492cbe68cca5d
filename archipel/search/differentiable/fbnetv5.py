"""FBNetV5: architectures for several tasks from one supernet and one run.

Wu, Li, Zhang, Dai, Zhang, Yu, Wang, Lin, Vajda. FBNetV5: Neural Architecture Search for Multiple Tasks in One Run.
2021. https://arxiv.org/abs/2111.10007

    weights         draw a task s, a mask a ~ P_s, one step on Σ_t L_t(w, a): all heads on one set of labelled images
    distributions   N masks, each for a task's own P; every reward R_t(a_i) teaches every task
                    :class:`~archipel.search.differentiable.mask_policies.MaskPolicies`
    reward          R_t(a) = −L_t(w, a) on held-out data − λ max(0, cost(a) / target − 1)
    answer          the mode of each P_t, or the best of it and n samples on held-out data; trained anew

Fills the `arch-gradient` and `objective` slots, for several tasks. The published description leaves Adam's rate, N and
the entropy bonus open; the defaults are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from archipel.core.errors import DataError, UsageError
from archipel.core.registry import Paper, register
from archipel.data.multitask import MultiTaskDataset, TaskSplit
from archipel.nets.batch_norm import batch_statistics
from archipel.nets.masked_trunk import MaskedNet
from archipel.search.differentiable.mask_policies import MaskPolicies
from archipel.search.training import Diverged, shuffled


@dataclass
class Found:
    """What a search came to.

    Attributes:
        masks: task -> mask ``[blocks]``.
        evaluations: networks that were evaluated in all distribution phases.
        log: for each epoch the training loss and, with a distribution phase, mean reward, effective samples, entropy.
    """

    masks: dict[str, Tensor]
    evaluations: int
    log: list[dict[str, float]] = field(default_factory=list)


@register(
    "fbnetv5",
    card=174,
    family="search.differentiable",
    slots=["arch-gradient", "objective"],
    paper=Paper(
        "FBNetV5: Neural Architecture Search for Multiple Tasks in One Run", 2021, "https://arxiv.org/abs/2111.10007"
    ),
)
class FBNetV5:
    """Search a mask for each task.

    Args:
        epochs, warmup: of the weights; distributions rest for the first ones.
        samples: N, in the distribution phase of an epoch.
        target, penalty: cost that is free, as a share of that of all blocks, and λ.
        candidates: samples of each task that compete with its mode; 0 takes the mode.
        batch_size, lr: of the weights' SGD.
        policy_lr, weighting, entropy: see :class:`~archipel.search.differentiable.mask_policies.MaskPolicies`.

    Raises:
        UsageError: a setting out of its range.

    Attributes:
        policies, net: after :meth:`search`.
    """

    def __init__(
        self,
        epochs: int = 30,
        warmup: int = 5,
        samples: int = 20,
        target: float = 0.5,
        penalty: float = 1.0,
        candidates: int = 0,
        batch_size: int = 40,
        lr: float = 0.05,
        policy_lr: float = 0.1,
        weighting: str = "balance",
        entropy: float = 0.01,
    ) -> None:
        if epochs < 1 or not 0 <= warmup < epochs or samples < 1 or candidates < 0 or batch_size < 2:
            raise UsageError("FBNetV5 needs epochs above its warm-up, one sample, batches of 2 and no negative number.")
        if not (0 < target <= 1 and penalty >= 0 and lr > 0):
            raise UsageError(
                f"target is a share above 0, penalty not negative, lr positive, not {target}, {penalty}, {lr}."
            )
        self.epochs, self.warmup, self.samples, self.candidates = epochs, warmup, samples, candidates
        self.target, self.penalty, self.batch_size, self.lr = target, penalty, batch_size, lr
        self.policy = {"lr": policy_lr, "weighting": weighting, "entropy": entropy}
        MaskPolicies(1, 1, **self.policy)  # refuses what it cannot do

    def search(self, make: Callable[[], MaskedNet], costs_B: Tensor, dataset: MultiTaskDataset, seed: int = 0) -> Found:
        """Train weights and distributions in turns, on two halves of the training split.

        Args:
            make: makes the supernet, with a head for each task.
            costs_B: of each block, say MACs.

        Raises:
            DataError: a task without a label in the training split.
            UsageError: costs for another number of blocks.
            Diverged: a loss is not finite.
        """
        self.tasks, self.costs_B = dataset.tasks, costs_B.double()
        for task in self.tasks:
            if not bool(task.labelled(dataset.train.y[task.name]).any()):
                raise DataError(f"{dataset.name}: no training example is labelled for the task {task.name!r}.")
        order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))
        half = len(order) // 2
        ours, theirs = dataset.train.take(order[:half]), dataset.train.take(order[half:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = make()
            if len(self.net.trunk.blocks) != len(costs_B):
                raise UsageError(f"{len(costs_B)} costs for {len(self.net.trunk.blocks)} blocks.")
            self.policies = MaskPolicies(len(self.tasks), len(costs_B), **self.policy)
            self.evaluations, log = 0, []
            optimizer = torch.optim.SGD(self.net.parameters(), self.lr, 0.9, weight_decay=3e-4)
            generator = torch.Generator().manual_seed(seed)
            for epoch in range(self.epochs):
                figures = {"loss": self._weight_phase(ours, optimizer, generator, seed, epoch)}
                if epoch >= self.warmup:
                    figures |= self._distribution_phase(theirs, generator, epoch)
                log.append(figures)
            masks = self._answers(theirs, generator)
        return Found(masks, self.evaluations, log)

    # --- phases ----------------------------------------------------------------------------------------------------

    def _weight_phase(
        self, data: TaskSplit, optimizer: torch.optim.Optimizer, generator: torch.Generator, seed: int, epoch: int
    ) -> float:
        self.net.train()
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * self.lr * (1 + math.cos(math.pi * epoch / self.epochs))
        total, batches = 0.0, [i for i in shuffled(len(data), seed, epoch).split(self.batch_size) if len(i) > 1]
        for index in batches:
            masks, _ = self.policies.sample(1, generator)
            batch = data.take(index)
            outputs = self.net(batch.x, masks[0])
            losses = [t.loss(outputs[t.name], batch.y[t.name]) for t in self.tasks]
            loss = torch.stack([loss for loss in losses if loss is not None]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise Diverged(f"the search's training loss is {total} in epoch {epoch}")
        return total / len(batches)

    def _distribution_phase(self, data: TaskSplit, generator: torch.Generator, epoch: int) -> dict[str, float]:
        masks, samplers = self.policies.sample(self.samples, generator)
        rewards = torch.stack([self.reward(mask, data) for mask in masks])
        progress = (epoch - self.warmup) / max(1, self.epochs - self.warmup - 1)
        return {"reward": float(rewards.mean()), **self.policies.step(masks, samplers, rewards, progress)}

    def cost(self, mask: Tensor) -> float:
        """Of a mask's blocks, as a share of all blocks'."""
        return float((self.costs_B * mask).sum() / self.costs_B.sum())

    @torch.no_grad()
    def reward(self, mask: Tensor, data: TaskSplit) -> Tensor:
        """R_t ``[T]`` of one network, for all tasks from one pass."""
        self.evaluations += 1
        with batch_statistics(self.net):
            outputs = self.net(data.x, mask)
        losses = [t.loss(outputs[t.name], data.y[t.name]) for t in self.tasks]
        over = max(0.0, self.cost(mask) / self.target - 1.0)
        values = [math.nan if loss is None else -float(loss) - self.penalty * over for loss in losses]
        if any(v != v for v in values):
            names = [t.name for t, v in zip(self.tasks, values) if v != v]
            raise DataError(f"No held-out example gives a loss for {', '.join(names)}; a mask cannot be judged.")
        return torch.tensor(values, dtype=torch.float64)

    def _answers(self, data: TaskSplit, generator: torch.Generator) -> dict[str, Tensor]:
        modes, pi = self.policies.modes(), self.policies.probabilities()
        out = {}
        for t, task in enumerate(self.tasks):
            options = [modes[t]]
            if self.candidates:
                drawn = torch.rand(self.candidates, len(self.costs_B), generator=generator, dtype=torch.float64) < pi[t]
                options += list(drawn)
                options.sort(key=lambda mask, t=t: -float(self.reward(mask, data)[t]))
            out[task.name] = options[0]
        return out
