"""BMTAS: where should the tasks of a network stop sharing layers?

Bruggemann, Kanakis, Georgoulis, Van Gool. Automated Search for Resource-Efficient Branched Multi-Task Networks. 2020.
https://arxiv.org/abs/2008.10292

    layer ℓ of task t    x_ℓ = Σ_j z_j · op_ℓj(x_{ℓ-1}),   z = GumbelSoftmax(α_ℓ[t], τ), soft;  T copies of every layer
    architecture         min_α Σ_t w_t L_t + λ Σ_ℓ c_ℓ E[branches_ℓ]
    weights              min_w L_t, task by task, without the cost
    answer               the largest α of every row, refined to a tree; trained anew

Trees and their expected cost are in :mod:`archipel.search.differentiable.branching`.
Every epoch first trains α on its share of the training data, then w on the rest. Adam's state of α, and after the α
phase that of w and the running batch statistics, begin anew. In the first twentieth of the epochs every task uses the
copy of its own; τ falls linearly from 5 to 0.1.

Fills the `mix` and `objective` slots, for several tasks. Differs from the reference code in that the cost is added once
a step, not once a task, and that its exact value is the default (the paper's shortcut, too large for more than two
tasks, is ``rule="paper"``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.data.multitask import MultiTaskDataset, Task, TaskSplit
from archipel.nets.batch_norm import batch_norms, frozen_statistics
from archipel.nets.branched import BranchedNet, Partition
from archipel.search.differentiable.branching import RULES, expected_branches, lattice, tree_of
from archipel.search.training import Diverged, shuffled


@dataclass(frozen=True)
class Plan:
    """What the networks are made of.

    Args:
        stem: makes what all tasks share in any case.
        layer: ``layer(index)`` makes one copy of a layer that may branch.
        head: ``head(task)`` makes a task's last module.
        costs: of one copy of each layer (say, GFLOPs); their number is that of the layers.

    Raises:
        UsageError: no layer, or a cost that is negative or not finite.
    """

    stem: Callable[[], nn.Module]
    layer: Callable[[int], nn.Module]
    head: Callable[[Task], nn.Module]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.costs or not all(math.isfinite(c) and c >= 0 for c in self.costs):
            raise UsageError(f"A plan needs the cost of one copy of each layer, 0 or more, not {self.costs}.")

    def branched(self, tree: Sequence[Partition], tasks: Sequence[Task], seed: int = 0) -> BranchedNet:
        """The network of a tree, freshly initialised.

        Raises:
            UsageError: a tree of another number of layers.
        """
        if len(tree) != len(self.costs):
            raise UsageError(f"The tree has {len(tree)} layers, but there are costs for {len(self.costs)}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads = {t.name: self.head(t) for t in tasks}
            return BranchedNet(tree, [t.name for t in tasks], self.stem(), self.layer, heads)

    def cost(self, tree: Sequence[Partition]) -> float:
        """Of all copies that a tree computes."""
        return sum(c * len(set(groups)) for c, groups in zip(self.costs, tree))


class BranchingSupernet(nn.Module):
    """All trees at once: T copies of every layer, mixed for each task; ``(x, task, z [L, T]) -> output``."""

    def __init__(self, plan: Plan, tasks: Sequence[Task]) -> None:
        super().__init__()
        T = len(tasks)
        self.stem = plan.stem()
        self.layers = nn.ModuleList(
            nn.ModuleList(plan.layer(index) for _ in range(T)) for index in range(len(plan.costs))
        )
        self.heads = nn.ModuleDict({t.name: plan.head(t) for t in tasks})

    def forward(self, x: Tensor, task: str, z_LT: Tensor) -> Tensor:
        x = self.stem(x)
        for copies, z_T in zip(self.layers, z_LT):
            total: Tensor | None = None
            for copy, z in zip(copies, z_T):
                if float(z.detach()) != 0.0:  # an exact zero is never computed
                    y = copy(x)
                    total = z * y if total is None else torch.addcmul(total, z, y)
            assert total is not None  # the weights of a row sum to one
            x = total
        return self.heads[task](x)


@dataclass
class Found:
    """What a search came to.

    Attributes:
        tree: partitions of the tasks, a layer each.
        expected: cost that the logits expect, Σ c E[branches].
        log: for each epoch the losses, the expected cost and the tree.
    """

    tree: list[Partition]
    expected: float
    log: list[dict[str, Any]] = field(default_factory=list)


@register(
    "bmtas",
    card=21,
    family="search.differentiable",
    slots=["mix", "objective"],
    paper=Paper(
        "Automated Search for Resource-Efficient Branched Multi-Task Networks", 2020, "https://arxiv.org/abs/2008.10292"
    ),
)
class BMTAS:
    """Search a tree of tasks.

    Args:
        cost_weight: λ.
        rule: ``"exact"`` or ``"paper"``: how the expected number of branches is computed.
        epochs, batch_size: of the search.
        alpha_share: of the training data, for the architecture.
        alpha_lr, lr: Adam's learning rates (decays 5e-5 and 1e-4).
        tau, tau_end: temperature, at the start and after the last epoch.
        task_weights: task -> weight of its loss; 1 by default.

    Raises:
        UsageError: a setting out of its range.

    Attributes:
        logits: α ``[L, T, T]``; row: task, column: copy; after :meth:`search`.
        supernet: after :meth:`search`.
    """

    def __init__(
        self,
        cost_weight: float = 0.1,
        rule: str = "exact",
        epochs: int = 160,
        batch_size: int = 16,
        alpha_share: float = 0.2,
        alpha_lr: float = 0.01,
        lr: float = 1e-3,
        tau: float = 5.0,
        tau_end: float = 0.1,
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        if not cost_weight >= 0:
            raise UsageError(f"The weight of the cost, lambda, must not be negative, got {cost_weight!r}.")
        if rule not in RULES:
            raise UsageError(f"The expected number of branches is 'exact' or that of the 'paper', not {rule!r}.")
        if not (0 < alpha_share < 1 and epochs >= 1 and batch_size >= 1 and min(alpha_lr, lr) > 0):
            raise UsageError("BMTAS needs alpha_share between 0 and 1 and positive epochs, batch_size, alpha_lr, lr.")
        if not 0 < tau_end <= tau:
            raise UsageError(f"The temperature falls from tau to tau_end above 0, not from {tau!r} to {tau_end!r}.")
        self.cost_weight, self.rule, self.epochs, self.batch_size = cost_weight, rule, epochs, batch_size
        self.alpha_share, self.alpha_lr, self.lr = alpha_share, alpha_lr, lr
        self.tau, self.tau_end, self.task_weights = tau, tau_end, dict(task_weights or {})

    def search(self, plan: Plan, dataset: MultiTaskDataset, seed: int = 0) -> Found:
        """Train the supernet and its logits on the training split; the other splits are not looked at.

        Raises:
            UsageError: fewer than two tasks or more than seven.
            Diverged: a loss is not finite.
        """
        tasks, L = dataset.tasks, len(plan.costs)
        self._weight_optimizer = None
        lattice(len(tasks))  # refuses a number of tasks that it cannot do
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.supernet = BranchingSupernet(plan, tasks)
            self.logits = nn.Parameter(torch.zeros(L, len(tasks), len(tasks)))
            self.tasks, self.plan = tasks, plan
            theirs, ours = self._parts(dataset.train, seed)
            log = [self._epoch(epoch, ours, theirs, seed) for epoch in range(self.epochs)]
        return Found(self.tree(), self.expected_cost(), log)

    # --- what the logits say ---------------------------------------------------------------------------------------

    def tree(self) -> list[Partition]:
        return tree_of(self.logits.argmax(-1).tolist())

    def expected_cost(self) -> float:
        """Exactly, whatever the search descended on."""
        with torch.no_grad():
            return float(self.resource_loss("exact"))

    def resource_loss(self, rule: str | None = None) -> Tensor:
        """Σ_ℓ c_ℓ E[branches_ℓ] of the present logits; a function of them alone."""
        branches_L = expected_branches(torch.softmax(self.logits, -1), rule or self.rule)
        return (branches_L * torch.tensor(self.plan.costs, dtype=branches_L.dtype)).sum()

    # --- training --------------------------------------------------------------------------------------------------

    def _parts(self, data: TaskSplit, seed: int) -> tuple[TaskSplit, TaskSplit]:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        cut = round(self.alpha_share * len(data))
        if not 0 < cut < len(data):
            raise UsageError(f"{len(data)} training examples cannot be divided by alpha_share={self.alpha_share}.")
        return data.take(order[:cut]), data.take(order[cut:])

    def _epoch(self, epoch: int, ours: TaskSplit, theirs: TaskSplit, seed: int) -> dict[str, Any]:
        self._warm = epoch >= math.ceil(self.epochs / 20)
        self._tau = self.tau + (self.tau_end - self.tau) * epoch / max(1, self.epochs - 1)
        alpha_loss = self._alpha_phase(theirs, seed, epoch) if self._warm else math.nan
        weight_loss = self._weight_phase(ours, seed, epoch)
        return {
            "alpha loss": alpha_loss, "loss": weight_loss, "expected cost": self.expected_cost(), "tree": self.tree()
        }  # fmt: skip

    def _alpha_phase(self, data: TaskSplit, seed: int, epoch: int) -> float:
        optimizer = torch.optim.Adam([self.logits], self.alpha_lr, weight_decay=5e-5)
        self.supernet.train()
        total, batches = 0.0, list(shuffled(len(data), seed, epoch).split(self.batch_size))
        for index in batches:
            batch = data.take(index)
            with frozen_statistics(batch_norms(self.supernet)):
                losses = [
                    loss for loss in (self._loss(t, i, batch) for i, t in enumerate(self.tasks)) if loss is not None
                ]
            loss = torch.stack([*losses, self.cost_weight * self.resource_loss()]).sum()
            (self.logits.grad,) = torch.autograd.grad(loss, [self.logits])  # the weights get no gradient
            optimizer.step()
            total += float(loss.detach())
        for norm in batch_norms(self.supernet):
            norm.reset_running_stats()
        self._weight_optimizer = None
        return total / len(batches)

    _weight_optimizer: torch.optim.Optimizer | None = None

    def _weight_phase(self, data: TaskSplit, seed: int, epoch: int) -> float:
        optimizer = self._weight_optimizer or torch.optim.Adam(self.supernet.parameters(), self.lr, weight_decay=1e-4)
        self._weight_optimizer = optimizer
        self.supernet.train()
        total, steps = 0.0, 0
        for index in shuffled(len(data), seed + 1, epoch).split(self.batch_size):
            if len(index) < 2:  # batch norms need two
                continue
            batch, value = data.take(index), 0.0
            optimizer.zero_grad(set_to_none=True)
            for i, task in enumerate(self.tasks):  # task by task, so that one graph is alive at a time
                loss = self._loss(task, i, batch, self.logits.detach())
                if loss is not None:
                    loss.backward()
                    value += float(loss.detach())
            optimizer.step()
            if not math.isfinite(value):
                raise Diverged(f"the search's training loss is {value} in epoch {epoch}")
            total, steps = total + value, steps + 1
        return total / max(1, steps)

    def _loss(self, task: Task, i: int, batch: TaskSplit, logits: Tensor | None = None) -> Tensor | None:
        """One task's weighted loss; None if no example of the batch is labelled for it."""
        y = batch.y[task.name]
        if not bool(task.labelled(y).any()):
            return None
        loss = task.loss(self.supernet(batch.x, task.name, self.mixture(i, logits)), y)
        return None if loss is None else self.task_weights.get(task.name, 1.0) * loss

    def mixture(self, i: int, logits: Tensor | None = None) -> Tensor:
        """Weights ``[L, T]`` of the copies for task number i: its own copy in the warm-up, then Gumbel-softmax."""
        alpha_LTT = self.logits if logits is None else logits
        if not self._warm:
            own = F.one_hot(torch.tensor(i), len(self.tasks)).to(alpha_LTT.dtype)
            return own.expand(len(alpha_LTT), -1)
        return F.gumbel_softmax(alpha_LTT[:, i], self._tau, hard=False)
