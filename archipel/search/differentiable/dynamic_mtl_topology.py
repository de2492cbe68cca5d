"""Dynamic topologies for multi-task learning: every task finds a route of its own through one central network.

Choi, Im. Dynamic Neural Network for Multi-Task Learning Searching across Diverse Network Topologies. 2023.
https://arxiv.org/abs/2303.06856

    central network  N nodes, edges i → j for 1 <= j − i <= M, a shared block on each     :mod:`archipel.nets.central`
    route of task k  Γ^k = σ(logits) on edges, A^k = softmax over read-ins, B^k = softmax over read-outs
    1 warm-up        blocks, adapters and heads with Γ = 1, A and B uniform
    2 search         min_route Σ_k w_k L_val + λ Σ_k relu(E[read-out] − E[read-in] − κ),   min_w Σ_k w_k L_train
    3 reduction      the edges of smallest flow are deleted, never the last way           ``flows.reduce_route``
    4 fine-tuning    the surviving weights on the reduced routes, which are frozen

Fills the `select` and `objective` slots, for several tasks. Batch statistics are kept for each task. The published
description does not fix the learning rates nor λ; the defaults here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.data.multitask import MultiTaskDataset, Task, TaskSplit
from archipel.nets.batch_norm import batch_norms, batch_statistics, frozen_statistics
from archipel.nets.central import CentralNetwork, ResidualBlock
from archipel.search.differentiable.flows import Route, Score, band, by_flow, reduce_route
from archipel.search.training import Diverged, shuffled


@dataclass(frozen=True)
class Trunk:
    """What the network is made of.

    Args:
        nodes, reach: N and M.
        block: makes what stands on an edge.
        adapter, head: make a task's first and last module.
    """

    nodes: int
    reach: int
    block: Callable[[], nn.Module]
    adapter: Callable[[Task], nn.Module]
    head: Callable[[Task], nn.Module]

    @classmethod
    def perceptron(cls, features: int, width: int = 32, nodes: int = 6, reach: int = 3) -> Trunk:
        """Residual linear blocks on flattened inputs of so many ``features``."""
        return cls(
            nodes,
            reach,
            lambda: ResidualBlock(width),
            lambda task: nn.Sequential(nn.Flatten(), nn.Linear(features, width)),
            lambda task: nn.Linear(width, task.classes),
        )


@dataclass
class Found:
    """What a search came to.

    Attributes:
        routes: task -> its reduced route.
        reached: task -> edges left; more than were asked for where fewer would cut the route.
        active: share of the search's steps on which the squeeze loss was not zero.
        log: for each epoch, its stage and loss.
    """

    routes: dict[str, Route]
    reached: dict[str, int]
    active: float
    log: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The routes as JSON."""
        return {
            task: {
                "read in": r.A_N.tolist(), "read out": r.B_N.tolist(),
                "edges": {f"{i}-{j}": float(r.gamma_NN[i, j]) for i, j in r.edges},
            }
            for task, r in self.routes.items()
        }  # fmt: skip


@register(
    "dynamic-mtl-topology",
    card=159,
    family="search.differentiable",
    slots=["select", "objective"],
    paper=Paper(
        "Dynamic Neural Network for Multi-Task Learning: Searching across Diverse Network Topologies",
        2023,
        "https://arxiv.org/abs/2303.06856",
    ),
)
class DynamicTopology:
    """Search a route for each task.

    Args:
        edges: that each task keeps.
        warmup, epochs, tune: of the stages.
        squeeze, kappa: λ and κ of the squeeze loss.
        share: see :func:`~archipel.search.differentiable.flows.reduce_route`.
        unit_edges: whether edges that are kept weigh 1 from the reduction on, instead of what the search gave them.
        lr, route_lr: of the weights' SGD and of the routes' Adam.
        batch_size: of both.
        task_weights: task -> weight of its loss; 1 by default.

    Raises:
        UsageError: a setting out of its range.

    Attributes:
        network: after :meth:`search`, with what the reduced routes use.
    """

    def __init__(
        self,
        edges: int = 8,
        warmup: int = 5,
        epochs: int = 15,
        tune: int = 5,
        squeeze: float = 0.05,
        kappa: float = 1.0,
        share: float | None = None,
        unit_edges: bool = False,
        lr: float = 0.05,
        route_lr: float = 0.01,
        batch_size: int = 40,
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        if min(warmup, epochs, tune, edges) < 0 or batch_size < 2 or epochs < 1:
            raise UsageError("DynamicTopology needs epochs of at least 1, batches of 2, and no negative number.")
        if not (squeeze >= 0 and lr > 0 and route_lr > 0):
            raise UsageError(
                f"squeeze must not be negative and learning rates positive, not {squeeze}, {lr}, {route_lr}."
            )
        self.edges, self.warmup, self.epochs, self.tune = edges, warmup, epochs, tune
        self.squeeze, self.kappa, self.share, self.unit_edges = squeeze, kappa, share, unit_edges
        self.lr, self.route_lr, self.batch_size = lr, route_lr, batch_size
        self.task_weights = dict(task_weights or {})

    def search(self, trunk: Trunk, dataset: MultiTaskDataset, seed: int = 0, score: Score = by_flow) -> Found:
        """All stages, on the training split; routes learn from one half of it and weights from the other.

        Args:
            score: by which edges are deleted.

        Raises:
            UsageError: a trunk whose edges reach too far.
            Diverged: a loss is not finite.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            log, active = self.train(trunk, dataset, seed)
            routes = self.reduced(score)
            self.use(routes)
            log += self.fine_tune(dataset, routes, seed)
        return Found(routes, {t: len(r.edges) for t, r in routes.items()}, active, log)

    # --- stages ----------------------------------------------------------------------------------------------------

    def train(self, trunk: Trunk, dataset: MultiTaskDataset, seed: int) -> tuple[list[dict[str, Any]], float]:
        """Warm-up and search; returns the log and the share of steps on which the squeeze loss was active."""
        self.tasks = dataset.tasks
        self.allowed = band(trunk.nodes, trunk.reach)
        self.network = CentralNetwork(
            self.allowed, trunk.block, {t.name: trunk.adapter(t) for t in self.tasks},
            {t.name: trunk.head(t) for t in self.tasks},
        )  # fmt: skip
        K, N = len(self.tasks), trunk.nodes
        self.a_KN, self.b_KN = (nn.Parameter(torch.zeros(K, N)) for _ in range(2))
        self.g_KNN = nn.Parameter(torch.zeros(K, N, N))
        weights = self._weight_optimizer()
        logits = torch.optim.Adam([self.a_KN, self.b_KN, self.g_KNN], self.route_lr)
        ours, theirs = _halves(dataset.train, seed)
        log, active, steps = [], 0, 0
        for epoch in range(self.warmup + self.epochs):
            warm = epoch < self.warmup
            others = shuffled(len(theirs), seed + 1, epoch)
            loss, batches = 0.0, self._batches(ours, seed, epoch)
            for step, index in enumerate(batches):
                if not warm:
                    place = (torch.arange(self.batch_size) + step * self.batch_size) % len(theirs)
                    active += self._route_step(theirs.take(others[place]), logits)
                    steps += 1
                routes = {t.name: self.uniform() if warm else self.route(i, True) for i, t in enumerate(self.tasks)}
                loss += self._weight_step(ours.take(index), routes, weights)
            log.append({"stage": "warm-up" if warm else "search", "loss": loss / len(batches)})
        return log, active / max(1, steps)

    def reduced(self, score: Score = by_flow) -> dict[str, Route]:
        """The routes with the weakest edges deleted."""
        routes = {}
        for i, task in enumerate(self.tasks):
            route = reduce_route(self.route(i, True), self.edges, score, self.share)
            if self.unit_edges:
                route = replace(route, gamma_NN=(route.gamma_NN > 0).to(route.gamma_NN))
            routes[task.name] = route
        return routes

    def use(self, routes: Mapping[str, Route]) -> None:
        """Remove the blocks that no route uses."""
        self.network.prune({edge for r in routes.values() for edge in r.edges})

    def fine_tune(self, dataset: MultiTaskDataset, routes: Mapping[str, Route], seed: int) -> list[dict[str, Any]]:
        """Train the weights on fixed routes, on all of the training split."""
        optimizer, log = self._weight_optimizer(), []
        for epoch in range(self.tune):
            batches = self._batches(dataset.train, seed + 2, epoch)
            loss = sum(self._weight_step(dataset.train.take(index), routes, optimizer) for index in batches)
            log.append({"stage": "fine-tuning", "loss": loss / len(batches)})
        return log

    # --- routes ----------------------------------------------------------------------------------------------------

    def route(self, i: int, constant: bool = False) -> Route:
        """The present route of task number i."""
        A, B = torch.softmax(self.a_KN[i], 0), torch.softmax(self.b_KN[i], 0)
        gamma = torch.sigmoid(self.g_KNN[i]) * self.allowed
        return Route(A.detach(), B.detach(), gamma.detach()) if constant else Route(A, B, gamma)

    def uniform(self) -> Route:
        N = len(self.allowed)
        return Route(torch.full((N,), 1 / N), torch.full((N,), 1 / N), self.allowed.float())

    def squeeze_loss(self, routes: list[Route]) -> Tensor:
        """Σ_k relu(E[read-out] − E[read-in] − κ)."""
        nodes = torch.arange(len(self.allowed), dtype=torch.float32)
        spans = [(nodes * (r.B_N - r.A_N)).sum() for r in routes]
        return torch.stack([torch.relu(s - self.kappa) for s in spans]).sum()

    # --- steps -----------------------------------------------------------------------------------------------------

    def _route_step(self, batch: TaskSplit, optimizer: torch.optim.Optimizer) -> bool:
        """One step of all routes; whether the squeeze loss was active."""
        routes = [self.route(i) for i in range(len(self.tasks))]
        with frozen_statistics(batch_norms(self.network)):
            losses = [self._loss(t, r, batch) for t, r in zip(self.tasks, routes)]
        squeeze = self.squeeze_loss(routes)
        total = torch.stack([*(loss for loss in losses if loss is not None), self.squeeze * squeeze]).sum()
        parameters = [self.a_KN, self.b_KN, self.g_KNN]
        for p, g in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True)):
            p.grad = g
        optimizer.step()
        return bool(squeeze > 0)

    def _weight_step(self, batch: TaskSplit, routes: Mapping[str, Route], optimizer: torch.optim.Optimizer) -> float:
        self.network.train()
        optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for task in self.tasks:
            loss = self._loss(task, routes[task.name], batch)
            if loss is not None:
                loss.backward()
                value += float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"the search's training loss is {value}")
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        optimizer.step()
        return value

    def _loss(self, task: Task, route: Route, batch: TaskSplit) -> Tensor | None:
        y = batch.y[task.name]
        if not bool(task.labelled(y).any()):
            return None
        loss = task.loss(self.network(batch.x, task.name, route.A_N, route.B_N, route.gamma_NN), y)
        return None if loss is None else self.task_weights.get(task.name, 1.0) * loss

    def _weight_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), self.lr, 0.9, weight_decay=3e-4)

    def _batches(self, data: TaskSplit, seed: int, epoch: int) -> list[Tensor]:
        return [i for i in shuffled(len(data), seed, epoch).split(self.batch_size) if len(i) > 1]

    @torch.no_grad()
    def measure(self, split: TaskSplit, routes: Mapping[str, Route]) -> dict[str, float]:
        """Each task's metric on its route, with batch statistics."""
        with batch_statistics(self.network):
            return {
                t.name: t.measure(self.network(split.x, t.name, r.A_N, r.B_N, r.gamma_NN), split.y[t.name])
                for t in self.tasks
                for r in [routes[t.name]]
            }


def _halves(data: TaskSplit, seed: int) -> tuple[TaskSplit, TaskSplit]:
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.take(order[: len(data) // 2]), data.take(order[len(data) // 2 :])
