"""TabNAS: a factorised policy learns under a hard limit by rejecting, not by penalising, what breaks it.

Yang, Bender, Liu, Kindermans, Udell, Lu, Le, Huang. TabNAS: Rejection Sampling for Neural Architecture Search on
Tabular Datasets. 2022. https://arxiv.org/abs/2204.07615

    each step      y ~ p = prod_i p_i.  y breaks the limit: nothing at all is updated.  Else
    weights        W <- W - Adam gradient of L_train(y, W_y)        W_y: the first units of every layer
    controller     l <- l - Adam gradient of -A log[p(y) / P(V)],   A = Q(y) - Qbar,  Q: validation metric of a batch
    in the end     a* = argmax_{y in V} p(y), trained alone from new weights

The first quarter of the steps trains only the weights, each step on a uniform feasible architecture. P(V), the
probability of keeping the limit, is summed exactly for spaces of up to 100,000 architectures or estimated from 3,072
draws; either way its gradient flows. Qbar is a moving average (momentum 0.9, corrected for its start) that includes the
present Q. Fills the slots propose, constraint and evaluator.

Also here, for comparison: the absolute reward of TuNAS and the one-sided penalty (``reward="abs"``, ``"max"``), the
update without P(V) (``correction=False``), no baseline (``momentum=None``), and uniform feasible architectures
(``policy="random"``). What penalties find may break the limit; proposals never do (see :attr:`TabNAS.favourite`).

Departures: the policy has a softmax for each decision of any space, conditional ones included, not only for widths;
accuracy (or R², no lower than -1) stands for the paper's metrics; with an up-to-date baseline the correction
contributes little, as the mean of -A grad log P(V) vanishes with the mean of A.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch

from archipel.core.choice import Fixed
from archipel.core.decision import Arch
from archipel.core.errors import RunError, UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.cost.table import archs_of
from archipel.data.dataset import Dataset
from archipel.search.oneshot.child_quality import check_inputs, quality, random_batch
from archipel.search.oneshot.feasible_policy import FactorisedPolicy, FeasibleSet
from archipel.search.oneshot.rejection import PolicySearch, check_policy_settings
from archipel.search.oneshot.shared_evaluation import SharedEvaluator
from archipel.search.strategy import Context, Strategy, Trial
from archipel.search.training import loss_of

POLICIES = ("learned", "random")
SAVE_EVERY_SECONDS = 1.0
# Of a time limit, what the supernet may use; the rest is for training what was found alone.
TRAINING_SHARE = 0.7


class InactiveLimit(UserWarning):
    """A limit that every architecture keeps."""


@register(
    "tabnas",
    card=82,
    family="search.oneshot",
    slots=["propose", "constraint", "evaluator"],
    paper=Paper(
        "TabNAS: Rejection Sampling for Neural Architecture Search on Tabular Datasets",
        2022,
        "https://arxiv.org/abs/2204.07615",
    ),
)
class TabNAS(Strategy):
    """Rejection-sampling reinforcement learning on a supernet, under hard limits.

    Args:
        steps: of the supernet; a budget of epochs replaces it.
        warmup: share of the steps that trains only weights.
        lr, batch_size: of the weights (Adam).
        controller_lr: of the policy (Adam).
        reward, correction, probability, samples, beta, momentum: see
            :class:`~archipel.search.oneshot.rejection.PolicySearch`.
        policy: ``"learned"``, or ``"random"``: uniform feasible architectures.
        proposals: how many of the most likely architectures are proposed.

    Attributes:
        favourite: after ``prepare``: the most likely architecture whether or not it keeps the limits.

    Raises:
        UsageError: a setting that makes no sense.

    >>> TabNAS(steps=500).reward
    'rejection'
    """

    def __init__(
        self,
        steps: int = 1500,
        warmup: float = 0.25,
        lr: float = 3e-3,
        batch_size: int = 128,
        controller_lr: float = 0.02,
        reward: str = "rejection",
        correction: bool = True,
        probability: str = "auto",
        samples: int = 3072,
        beta: float = -1.0,
        momentum: float | None = 0.9,
        policy: str = "learned",
        proposals: int = 1,
    ) -> None:
        check_policy_settings(controller_lr, reward, probability, samples, beta, momentum)
        if policy not in POLICIES:
            raise UsageError(f"policy {policy!r} is unknown. {suggest(policy, POLICIES)}")
        for name, value in (("steps", steps), ("batch_size", batch_size), ("proposals", proposals)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} must be a positive integer, not {value!r}.")
        if not 0.0 <= warmup <= 1.0:
            raise UsageError(f"warmup is a share of the steps, in [0, 1], not {warmup!r}.")
        if not (math.isfinite(lr) and lr > 0):
            raise UsageError(f"lr must be positive, not {lr!r}.")
        self.steps, self.warmup, self.lr, self.batch_size = steps, warmup, lr, batch_size
        self.controller_lr, self.reward, self.correction = controller_lr, reward, correction
        self.probability, self.samples, self.beta, self.momentum = probability, samples, beta, momentum
        self.policy, self.proposals = policy, proposals
        self.search: PolicySearch | None = None
        self.favourite: Arch | None = None
        self._queue: list[tuple[Arch, dict[str, Any]]] = []
        self._asked = 0

    # --- before the first ask --------------------------------------------------------------------------------------

    def prepare(self, context: Context) -> None:
        """Train the supernet and the policy; goes on where a checkpoint left off.

        Raises:
            InfeasibleError: no architecture keeps the limits; names the smallest.
            DataError: inputs that are not finite numbers, such as columns of categories.
            SpaceError: the space has no supernet, or a decision without options.
            UsageError: a penalised reward without limits that can be exceeded by degrees.
        """
        data = context.dataset
        check_inputs(data)
        space = self.problem.space
        policy = FactorisedPolicy(space)
        feasible = FeasibleSet(policy, self.problem.feasible, self.problem.describe_limits)
        if feasible.inactive and self.problem.feasible is not None:
            warnings.warn(
                f"Every architecture of {space.name} keeps {self.problem.describe_limits()}: the limit does nothing.",
                InactiveLimit,
                stacklevel=2,
            )
        if self.reward != "rejection":
            feasible.excess(feasible.draw(Random(0)))
        self.search = PolicySearch(
            policy, feasible, self.controller_lr, self.reward, self.correction, self.probability, self.samples,
            self.beta, self.momentum,
        )  # fmt: skip
        self.supernet = space.supernet()
        self._train(context)
        self.evaluator = SharedEvaluator(self.supernet, data.val, data.task, "batch")
        self._fill_queue(context.seed)

    def _train(self, context: Context) -> None:
        assert self.search is not None
        data, checkpoints = context.dataset, context.checkpoints
        steps = self.steps
        if context.epochs is not None:
            steps = context.epochs * max(1, len(data.train) // self.batch_size)
        optimizer = torch.optim.Adam(self.supernet.parameters(), self.lr)
        settings = {"steps": steps, **self._settings()}
        start, done = 0, False
        saved = checkpoints.load("tabnas")
        if saved is not None:
            if saved["settings"] != settings:
                raise RunError(
                    f"The checkpoint of this search belongs to other settings ({saved['settings']}, not {settings}). "
                    f"Use another folder, or delete it."
                )
            self.supernet.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            self.search.load_state(saved["search"])
            start, done = saved["step"], saved["done"]

        def save(step: int, done: bool) -> None:
            state = {"model": self.supernet.state_dict(), "optimizer": optimizer.state_dict()}
            search = self.search.state() if self.search else {}
            checkpoints.save("tabnas", {"step": step, "done": done, "settings": settings, "search": search, **state})

        deadline = context.deadline
        if deadline is not None:
            now = time.monotonic()
            deadline = now + TRAINING_SHARE * max(0.0, deadline - now)
        last = time.monotonic()
        step = start
        while step < steps and not done:
            self._step(step, steps, optimizer, data, context.seed)
            step += 1
            done = deadline is not None and time.monotonic() > deadline
            if time.monotonic() - last > SAVE_EVERY_SECONDS:
                save(step, done)
                last = time.monotonic()
            if step % 20 == 0:
                context.progress("training the supernet and its policy", step / steps)
        save(step, True)

    def _step(self, step: int, steps: int, optimizer: torch.optim.Optimizer, data: Dataset, seed: int) -> None:
        """One step; all its randomness comes from (seed, step)."""
        assert self.search is not None
        rng = np.random.default_rng([seed, step])
        warming = step < self.warmup * steps or self.policy == "random"
        y = self.search.feasible.draw(Random(f"{seed}/{step}")) if warming else self.search.draw(rng)
        if y is None:
            return
        self.supernet.seat.decider = Fixed(archs_of(self.problem.space, y)[0])
        torch.manual_seed(seed * 100_003 + step)  # dropout
        batch = random_batch(data.train, self.batch_size, rng)
        self.supernet.train()
        loss = loss_of(data.task, self.supernet(batch.x), batch.y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if not warming:
            self.search.learn(y, quality(self.supernet, random_batch(data.val, self.batch_size, rng), data.task), rng)

    def _settings(self) -> dict[str, Any]:
        names = (
            "warmup", "lr", "batch_size", "controller_lr", "reward", "correction", "probability", "samples", "beta",
            "momentum", "policy",
        )  # fmt: skip
        return {n: getattr(self, n) for n in names}

    def _fill_queue(self, seed: int) -> None:
        assert self.search is not None
        search = self.search
        rng = np.random.default_rng([seed, 2**31])
        with torch.no_grad():
            log_mass = search.log_mass(rng)
        mass = 0.0 if log_mass is None else float(log_mass.exp())
        self.favourite = search.most_likely(rng, within=False)[0][0]
        keeps = self.problem.feasible is None or self.problem.feasible(self.favourite)
        info = {
            "feasible_mass": mass,
            "rejected": search.rejected,
            "learned": search.learned,
            "skipped": search.skipped,
            "favourite": self.favourite,
            "favourite_feasible": bool(keeps),
        }
        if self.policy == "random":
            picked = [(self.problem.sample(), None) for _ in range(self.proposals)]
        else:
            picked = search.most_likely(rng, self.proposals)
            if (
                not picked
            ):  # a policy that never draws what is feasible: only with penalties, in spaces too large to list
                picked = [(archs_of(self.problem.space, search.feasible.draw(self.problem.rng))[0], None)]
        self._queue = [(a, info if p is None else {**info, "probability": math.exp(p)}) for a, p in picked]
        self._asked = 0

    # --- proposals -------------------------------------------------------------------------------------------------

    def ask(self) -> Trial | None:
        """The most likely feasible architecture that was not proposed yet.

        Raises:
            UsageError: ``prepare`` was not called.
        """
        if self.search is None:
            raise UsageError("TabNAS trains a supernet first: call prepare(context) before ask().")
        if self._asked >= len(self._queue):
            return None
        arch, info = self._queue[self._asked]
        self._asked += 1
        return self.new_trial(arch, info=info)

    def tell(self, trial: Trial) -> None:
        pass

    @property
    def finished(self) -> bool:
        return self.search is not None and self._asked >= len(self._queue)

    def shared_scores(self, archs: Sequence[Arch]) -> list[float] | None:
        return None if self.search is None else self.evaluator.scores(archs)
