"""L²NAS: an actor network updates continuous architecture hyperparameters, towards the best of what was seen.

Mills, Han, Salameh, Changiz Rezaei, Kong, Lu, Lian, Jui, Niu. L²NAS: Learning to Optimize Neural Architectures via
Continuous-Action Reinforcement Learning. 2021. https://arxiv.org/abs/2109.12425

    each step   the actor reads a summary of the k best architectures and writes α ∈ [0, 1]^{E x K}, one row a decision
                the architecture is the largest entry of each row; its reward is its accuracy
                the critic is fitted to the τ-quantile of rewards (check loss), the actor ascends the critic

in place of gradient descent on α. Evaluations are validation batches through the shared weights of a supernet, which
learns on uniform paths (or on those of the actor) beside it, or whatever evaluates trials: training, or a table. The
learner is :mod:`~archipel.search.differentiable.actor_critic`. Fills the slots mix (α), arch-gradient and select.

Known differences: sizes, rates, ε, ξ and the number of updates are ours. The answer is the best evaluated architecture;
in a supernet, where weights have changed since, the ten best by their mean are evaluated again in the end, on the whole
architecture's half of the data. Within limits, the noise is doubled after every 50 proposals that break them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.data.dataset import Split
from archipel.search.differentiable.actor_critic import ActorCritic
from archipel.search.differentiable.actor_critic_settings import Settings, fitting
from archipel.search.differentiable.arch_gradient import Batch
from archipel.search.differentiable.l2nas_trials import L2NASQueries
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.parameters import Moment, Row
from archipel.search.differentiable.sampling import SampledPaths, path_score
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Select
from archipel.search.differentiable.state import SearchState
from archipel.search.strategy import Strategy

PATHS = ("uniform", "actions")


class ContinuousActions(Mix):
    """Holds the actor; the mixture is the architecture that it found best so far (all options alike before).

    Args:
        settings: of the learner.
        k: architectures that the state summarises; by default as many as the evaluations can fill, up to 64.
    """

    def __init__(self, settings: Settings | None = None, k: int | None = None) -> None:
        self.settings, self.k = settings or Settings(), k
        self.learner: ActorCritic | None = None

    def started(self, state: SearchState) -> None:
        """
        Raises:
            SpaceError: a decision without finitely many options.
            UsageError: fixed decisions, which an action would decide, or k above the number of evaluations.
        """
        fixed = [n for n in state.parameters.fixed if state.supernet.space.by_name[n].mutable]
        if fixed:
            raise UsageError(f"The actor decides everything; {fixed[0]!r} cannot be fixed. Fix it in the space.")
        steps = state.moment.steps - state.schedule.warmup * state.steps_per_epoch
        settings = fitting(self.settings, self.k, steps)
        # The logits are random numbers of the search's own seed, and have no other use here.
        seed = int(torch.cat(list(state.logits.values())).detach().view(torch.int32).long().sum() % 2**31)
        self.learner = ActorCritic(state.supernet.space, settings, explore=steps // 2, seed=seed)
        self._one_hot = state.parameters.one_hot

    def weights(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        """
        Raises:
            UsageError: asked while training, by another arch-gradient than :class:`CriticAscent`.
        """
        if moment.training:
            raise UsageError("ContinuousActions has nothing to differentiate; it needs arch_gradient=CriticAscent().")
        best = self.learner.top(1) if self.learner is not None else []
        if best:
            return self._one_hot(best[0])
        return {name: torch.full_like(logits[name], 1.0 / len(row.labels)).detach() for name, row in rows.items()}

    def figures(self) -> dict[str, Any]:
        """Queries, repeats, the best by whom, and what the actor would answer."""
        return {} if self.learner is None else {f"l2nas {name}": v for name, v in self.learner.report().items()}

    def state_dict(self) -> dict[str, Any]:
        return {} if self.learner is None else self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.learner is not None
        self.learner.load_state_dict(state)


class CriticAscent(SampledPaths):
    """After the warm-up, one evaluation and its updates a step; then a step of the weights.

    Args:
        paths: whose weights learn: ``"uniform"`` paths or those of the ``"actions"``.

    Raises:
        UsageError: others.
    """

    restrictable = False  # an action has entries for all options

    def __init__(self, paths: str = "uniform") -> None:
        if paths not in PATHS:
            raise UsageError(f"Weights learn on paths that are {' or '.join(PATHS)}, not {paths!r}.")
        self.paths = paths

    def started(self, state: SearchState) -> None:
        """
        Raises:
            UsageError: there is no actor in the mix.
        """
        if not isinstance(state.mix, ContinuousActions):
            raise UsageError(f"CriticAscent needs mix=ContinuousActions(), not {type(state.mix).__name__}.")

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        learner = learner_of(state)
        path = None
        if state.moment.epoch >= state.schedule.warmup:
            proposal = learner.propose()
            # The mode of the network and its statistics are as before: evaluations leave no trace.
            found = state.metrics(Split(*val), arch=proposal.arch)
            learner.observe(proposal, found["r2" if state.task == "regression" else "accuracy"])
            path = state.parameters.one_hot(proposal.arch) if self.paths == "actions" else None
        return state.weight_step(train, self.draw(state) if path is None else path)


class BestEvaluated(Select):
    """The best of the history, after its best were evaluated once more on the whole architecture's half.

    Args:
        candidates: how many of the best.
    """

    def __init__(self, candidates: int = 10) -> None:
        if not isinstance(candidates, int) or candidates < 1:
            raise UsageError(f"candidates must be a positive integer, not {candidates!r}.")
        self.candidates = candidates

    def glance(self, state: SearchState) -> Arch:
        learner = learner_of(state)
        return (learner.top(1) or [learner.decode(learner.act(learner.state()))])[0]

    def __call__(self, state: SearchState) -> Arch:
        found = learner_of(state).top(self.candidates) or [self.glance(state)]
        return max(found, key=lambda arch: path_score(state, arch))


def learner_of(state: SearchState) -> ActorCritic:
    """The actor and critic of a search.

    Raises:
        UsageError: it has none.
    """
    if not isinstance(state.mix, ContinuousActions) or state.mix.learner is None:
        raise UsageError(f"This part needs mix=ContinuousActions(), not {type(state.mix).__name__}.")
    return state.mix.learner


EVALUATIONS = ("supernet", "trials")


@register(
    "l2nas",
    card=33,
    family="search.differentiable",
    slots=["mix", "arch-gradient", "select"],
    paper=Paper(
        "L²NAS: Learning to Optimize Neural Architectures via Continuous-Action Reinforcement Learning",
        2021,
        "https://arxiv.org/abs/2109.12425",
    ),
)
def l2nas(
    evaluation: str = "supernet",
    tau: float | None = 0.9,
    k: int | None = None,
    noise: float = 0.1,
    updates: int = 8,
    sharpen: float = 0.0,
    queries: int | None = None,
    paths: str = "uniform",
    candidates: int = 10,
    schedule: Schedule | None = None,
    **slots: Any,
) -> Strategy:
    """Search by an actor that learns from a quantile critic.

    Args:
        evaluation: ``"supernet"`` (shared weights, trained beside), or ``"trials"`` (training or a table).
        tau, k, noise, updates, sharpen: see
            :class:`~archipel.search.differentiable.actor_critic_settings.Settings`; k is 64, or a quarter of the
            evaluations if these are fewer than 256.
        queries: for trials, how many are planned.
        paths, candidates: for a supernet, see :class:`CriticAscent` and :class:`BestEvaluated`.
        schedule: for a supernet; 50 epochs of DARTS by default, the first half without evaluations.
        slots: for a supernet, other slots of :class:`DifferentiableSearch`.

    Raises:
        UsageError: a setting out of range, or of the other kind of evaluation.

    >>> l2nas(tau=0.8).mix.settings.tau, type(l2nas("trials")).__name__
    (0.8, 'L2NASQueries')
    """
    if evaluation not in EVALUATIONS:
        raise UsageError(f"Architectures are evaluated by {' or '.join(EVALUATIONS)}, not {evaluation!r}.")
    settings = Settings(tau=tau, noise=noise, updates=updates, sharpen=sharpen)
    if k is not None:
        replace(settings, k=k)  # checked now, and against the number of evaluations once that is known
    if evaluation == "trials":
        if schedule is not None or slots:
            raise UsageError(f"With evaluation='trials' there is no supernet for {', '.join(slots) or 'schedule'}.")
        return L2NASQueries(settings, k, queries)
    if queries is not None:
        raise UsageError("A supernet is evaluated once a step; its number of queries follows from the schedule.")
    slots.setdefault("mix", ContinuousActions(settings, k))
    slots.setdefault("arch_gradient", CriticAscent(paths))
    slots.setdefault("select", BestEvaluated(candidates))
    return DifferentiableSearch(schedule=schedule or Schedule(epochs=50, warmup=25), **slots)
