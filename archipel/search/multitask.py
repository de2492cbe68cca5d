"""Training and judging one network for several tasks: it takes a batch and gives ``{task: output}``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from archipel.data.multitask import MultiTaskDataset, Task, TaskSplit
from archipel.nets.batch_norm import batch_statistics
from archipel.search.training import shuffled


def train_tasks(net: nn.Module, dataset: MultiTaskDataset, epochs: int, batch_size: int, lr: float, seed: int) -> None:
    """Train a network that gives ``{task: output}`` on the sum of its tasks' losses: SGD, cosine, momentum 0.9."""
    optimizer = torch.optim.SGD(net.parameters(), lr, 0.9, weight_decay=3e-4, nesterov=True)
    data = dataset.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            net.train()
            batches = [i for i in shuffled(len(data), seed, epoch).split(batch_size) if len(i) > 1]
            for step, index in enumerate(batches):
                progress = (epoch + step / len(batches)) / epochs
                for group in optimizer.param_groups:
                    group["lr"] = 0.5 * lr * (1 + math.cos(math.pi * progress))
                batch = data.take(index)
                outputs = net(batch.x)
                given = (t.loss(outputs[t.name], batch.y[t.name]) for t in dataset.tasks if t.name in outputs)
                losses = [loss for loss in given if loss is not None]
                if losses:
                    optimizer.zero_grad(set_to_none=True)
                    torch.stack(losses).sum().backward()
                    optimizer.step()


@torch.no_grad()
def measure_tasks(net: nn.Module, split: TaskSplit, tasks: Sequence[Task]) -> dict[str, float]:
    """Each task's metric, with batch statistics."""
    with batch_statistics(net):
        outputs = net(split.x)
    return {t.name: t.measure(outputs[t.name], split.y[t.name]) for t in tasks if t.name in outputs}
