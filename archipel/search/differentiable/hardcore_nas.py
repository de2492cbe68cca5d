"""HardCoRe-NAS: operations and depths are searched by Frank-Wolfe steps that never leave the latency constraint.

Nayman, Aflalo, Noy, Zelnik-Manor. HardCoRe-NAS: Hard Constrained diffeRentiable Neural Architecture Search. 2021.
https://arxiv.org/abs/2102.11646

    1  w      one-shot training: the heaviest network, then many in one batch, which learn from it
    2  α, β   min E[L_val(w, α, β)]  s.t.  LAT(α, β) <= T, w held: block-coordinate stochastic Frank-Wolfe from a
              feasible, balanced point; LAT is the exact expectation over networks of operations α and depths β
    3  cut    to the vertices with most of the probability, then to one network, which never costs more than T
    4  tune   the network found, from the one-shot weights, learning from the heaviest (:meth:`HardCoReNAS.fine_tuned`)

1 is in :mod:`~archipel.search.differentiable.sandwiched`, 2 and 3 in
:mod:`~archipel.search.differentiable.frank_wolfe`, L_val(w, α, β) in
:mod:`~archipel.search.differentiable.stage_blend`. Another T needs 2 and 3 alone (:meth:`HardCoReNAS.within`).

Fills the slots `arch-gradient`, `objective` and `select` in a loop of its own: the weights are not trained beside the
architecture. Known differences: in 1 a part of a batch, not each image, has its own network; of two options that share
a simplex the cheaper is taken where the likelier would break the constraint, which the paper allows to break.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

from archipel.core.choice import Fixed
from archipel.core.decision import Arch
from archipel.core.errors import InfeasibleError, SpaceError, UsageError
from archipel.core.registry import Paper, register
from archipel.cost.limits import METRICS, limits_behind, parse_limit
from archipel.data.dataset import Split
from archipel.nets.batch_norm import batch_statistics
from archipel.search.differentiable.arch_gradient import gradients
from archipel.search.differentiable.frank_wolfe import (
    Point,
    rounded,
    sparsified,
    starting_point,
    step,
)
from archipel.search.differentiable.loop import batch, halves
from archipel.search.differentiable.sandwiched import OneShot, SandwichedTraining, distilled
from archipel.search.differentiable.stage_blend import Table, blended, counted_costs, given_costs, measured_costs
from archipel.search.differentiable.stage_costs import Rows, StageCosts
from archipel.search.strategy import Context, Problem, Strategy, Trial
from archipel.search.training import evaluate, loss_of, main_metric, recalibrate
from archipel.spaces.hardcore import HardCoReSpace

CHECKPOINT = "hardcore-nas"


@register(
    "hardcore-nas",
    card=168,
    family="search.differentiable",
    slots=["arch-gradient", "objective", "select"],
    paper=Paper(
        "HardCoRe-NAS: Hard Constrained diffeRentiable Neural Architecture Search",
        2021,
        "https://arxiv.org/abs/2102.11646",
    ),
)
class HardCoReNAS(Strategy):
    """Search of the space ``hardcore`` within one hard limit.

    Args:
        limit: cost -> limit, as ``{"macs": "2M"}`` or ``{"latency_ms": 3}``; by default the limit of the search
            (``--limit``).
        table: what operations cost, if it is neither counted nor to be measured; see
            :func:`~archipel.search.differentiable.stage_blend.given_costs`. The limit then names any cost.
        heavy_epochs, epochs, paths, distil, batch_size, lr, weight_decay: of the one-shot training; see
            :class:`~archipel.search.differentiable.sandwiched.OneShot`.
        steps: of α or β.
        gamma: γ_max, the share of the first step that goes to the vertex.
        alpha_share: share of the training data that α and β learn from.

    Attributes:
        log: for each step, LAT / T and the loss.
        losses: of the one-shot training, by epoch.

    Raises:
        UsageError: numbers out of range, or more than one limit; at the start of a search, none at all.

    >>> HardCoReNAS({"macs": "2M"}, steps=50).limit
    {'macs': 2000000.0}
    """

    def __init__(
        self,
        limit: Mapping[str, float | str] | None = None,
        table: Table | None = None,
        heavy_epochs: int = 30,
        epochs: int = 30,
        paths: int = 4,
        distil: float = 0.5,
        batch_size: int = 64,
        lr: float = 0.1,
        weight_decay: float = 1e-4,
        steps: int = 100,
        gamma: float = 0.5,
        alpha_share: float = 0.2,
    ) -> None:
        self.one_shot = OneShot(heavy_epochs, epochs, paths, distil, batch_size, lr, weight_decay=weight_decay)
        self.limit = _read(limit, table) if limit else None
        if not isinstance(steps, int) or steps < 1 or not 0 < gamma <= 1 or not 0 < alpha_share < 1:
            raise UsageError(
                f"hardcore-nas takes at least one step, gamma in (0, 1] and alpha_share in (0, 1), not "
                f"steps={steps!r}, gamma={gamma!r}, alpha_share={alpha_share!r}."
            )
        self.table, self.steps, self.gamma, self.alpha_share = table, steps, gamma, alpha_share
        self._reset()

    def _reset(self) -> None:
        self.log: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.training: SandwichedTraining | None = None
        self._answer: Arch | None = None
        self._asked = False

    def setup(self, problem: Problem) -> None:
        """
        Raises:
            SpaceError: another space than ``hardcore``.
            UsageError: no limit.
            InfeasibleError: no network keeps it; says what the cheapest costs.
        """
        super().setup(problem)
        self._reset()
        if not isinstance(problem.space, HardCoReSpace):
            raise SpaceError(
                f"hardcore-nas decides the operations and depths of stages; {problem.space.name} has none. Search the "
                f"space 'hardcore'."
            )
        self.space = problem.space
        limits = limits_behind(problem.feasible)
        limit = self.limit or (_read(limits.by_metric, None) if limits and limits.by_metric else None)
        if limit is None:
            raise UsageError(
                "hardcore-nas searches within a limit: give one, as --limit macs=2M or limit={'macs': 2e6}."
            )
        ((self.metric, self.budget),) = limit.items()
        self.costs = self._costs(self.metric)
        self.costs.check(self.budget)

    def _costs(self, metric: str) -> StageCosts:
        if self.table is not None:
            return given_costs(self.space, self.table, f" {metric}")
        if metric == "latency_ms":
            return measured_costs(self.space)
        if metric not in ("params", "macs"):
            raise UsageError(f"hardcore-nas counts params and macs and measures latency; give a table for {metric}.")
        return counted_costs(self.space, metric)

    def prepare(self, context: Context) -> None:
        """
        Raises:
            DataError: a class is missing in a part of the training data.
            Diverged: a loss is not finite.
        """
        settings = self.one_shot if context.epochs is None else self.one_shot.over(context.epochs)
        self.task, self.seed, data = context.dataset.task, context.seed, context.dataset
        self.metric_name, self._validation = main_metric(data), data.val
        ours, self.theirs = halves(data.train, self.alpha_share, data.task, context.seed)
        supernet = self.space.supernet(context.seed)
        training = self.training = SandwichedTraining(supernet, self.space, ours, data.task, settings, context.seed)
        saved = context.checkpoints.load(CHECKPOINT)
        if saved is not None:
            training.load_state_dict(saved["training"])
            self.losses = list(saved["losses"])
            tables, fixed = saved["costs"]  # a table that was measured is not measured again
            self.costs = replace(self.costs, tables=[np.array(t) for t in tables], fixed=fixed)
        costs = [t.tolist() for t in self.costs.tables], self.costs.fixed
        with torch.random.fork_rng(devices=[]):
            while training.epoch < training.epochs:
                loss = training.run_epoch(context.deadline)
                if loss is None:
                    break
                self.losses.append(loss)
                state = {"training": copy.deepcopy(training.state_dict()), "losses": list(self.losses), "costs": costs}
                context.checkpoints.save(CHECKPOINT, state)
                context.progress("one-shot", training.epoch / training.epochs)
        blocks, self.log = self.within(self.budget)
        self._answer = self.space.arch_of(blocks)

    # --- the search of α and β -------------------------------------------------------------------------------------

    def within(self, limit: float) -> tuple[list[list[int]], list[dict[str, float]]]:
        """The network within a limit by the weights as they are: the operations of each stage's blocks, and a log.

        Raises:
            UsageError: before :meth:`prepare`.
            InfeasibleError: no network keeps the limit.
        """
        self._trained()
        rng, log = Random(self.seed), []
        point = starting_point(self.costs, limit)
        with torch.random.fork_rng(devices=[]):
            for k in range(self.steps):
                log.append({"step": k, "latency": self.costs(point.alpha, point.beta) / limit})
                index = torch.tensor(
                    rng.sample(range(len(self.theirs)), min(len(self.theirs), self.one_shot.batch_size))
                )

                def of(alpha: Rows, beta: Rows, of_alpha: bool, index: torch.Tensor = index) -> Rows:
                    found, loss = self.gradient(alpha, beta, of_alpha, index)
                    log[-1]["loss"] = loss
                    return found

                point = step(self.costs, limit, point, of, self.gamma, rng)
        log.append({"step": self.steps, "latency": self.costs(point.alpha, point.beta) / limit})
        self.point: Point = point
        sparse = sparsified(self.costs, limit, point)
        blocks = rounded(self.costs, limit, sparse)
        for name, at in {"sparse": (sparse.alpha, sparse.beta), "rounded": self.costs.one_hot(blocks)}.items():
            log[-1][name] = self.costs(*at) / limit
        return blocks, log

    def gradient(self, alpha: Rows, beta: Rows, of_alpha: bool, index: torch.Tensor) -> tuple[Rows, float]:
        """∂L_val for α or for β on some of their examples, and L_val; the weights and their statistics stay."""
        training = self._trained()
        x, y = batch(self.theirs, index)
        a = {i: torch.tensor(v, dtype=x.dtype, requires_grad=of_alpha) for i, v in enumerate(alpha)}
        b = {i: torch.tensor(v, dtype=x.dtype, requires_grad=not of_alpha) for i, v in enumerate(beta)}
        with batch_statistics(training.supernet):
            output = blended(training.supernet, self.space, list(a.values()), list(b.values()), x, everything=True)
        loss = loss_of(self.task, output, y)
        leaves, found = (a, alpha) if of_alpha else (b, beta)
        g = gradients(loss, leaves)
        return [g[i].double().numpy() if i in g else 0.0 * v for i, v in enumerate(found)], float(loss.detach())

    # --- the answer ------------------------------------------------------------------------------------------------

    def ask(self) -> Trial | None:
        """
        Raises:
            UsageError: before :meth:`prepare`.
            InfeasibleError: the network keeps the limit by its table, but breaks one of the search.
        """
        if self._asked:
            return None
        self._trained()
        arch = self._answer
        assert arch is not None  # prepared
        cost = self.costs(*self.costs.one_hot(self.space.blocks_of(arch)))
        if self.problem.feasible is not None and not self.problem.feasible(arch):
            raise InfeasibleError(
                f"The network found has {cost:,.6g}{self.costs.unit} by the table, within {self.budget:,.6g}, but "
                f"breaks a limit of the search: {self.problem.describe_limits()}. Lower the strategy's own limit."
            )
        self._asked = True
        info = {"cost": cost, "limit": self.budget, "metric": self.metric, **self.log[-1], "one_shot": self.losses}
        return self.new_trial(arch, info=info)

    def tell(self, trial: Trial) -> None:
        pass

    @property
    def finished(self) -> bool:
        return self._asked

    def shared_scores(self, archs: Any) -> list[float] | None:
        """Accuracy (or R²) on the validation data with the one-shot weights and batch statistics."""
        return None if self.training is None else [self.judged(self.space.validate(a), self._validation) for a in archs]

    def judged(self, arch: Arch, data: Split) -> float:
        supernet = self._trained().supernet
        supernet.decider = Fixed(arch)
        with batch_statistics(supernet):
            return evaluate(supernet, data, self.task, len(data))[self.metric_name]

    def fine_tuned(self, arch: Arch, epochs: int = 50, lr: float = 0.01) -> nn.Module:
        """The network with the one-shot weights, trained on with the heaviest network as its teacher.

        Raises:
            UsageError: before :meth:`prepare`.
        """
        training = self._trained()
        student = training.supernet.extract(arch)
        recalibrate(student, training.data.x)
        teacher = training.supernet.extract(training.heaviest)
        recalibrate(teacher, training.data.x)
        settings = training.settings
        recipe = settings.recipe(epochs).with_hyper({"lr": lr})
        return distilled(student, teacher.eval(), training.data, self.task, recipe, settings.distil, self.seed)

    def _trained(self) -> SandwichedTraining:
        if self.training is None:
            raise UsageError("hardcore-nas searches with weights that it has trained: call prepare(context) first.")
        return self.training


def _read(limit: Mapping[str, float | str], table: Table | None) -> dict[str, float]:
    if len(limit) != 1:
        raise UsageError(f"hardcore-nas keeps one limit, not {len(limit)}: {', '.join(limit) or 'none'}.")
    ((name, value),) = limit.items()
    if isinstance(value, str):
        name, value = parse_limit(f"{name}={value}")
    elif table is None and name in METRICS:
        name = METRICS[name]
    return {name: float(value)}
