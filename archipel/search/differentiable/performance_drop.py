"""Dropping operations by measurement: what α likes least is sampled, measured, and the worst of it dropped.

The selection of BNAS; see :mod:`archipel.search.differentiable.bnas` for its equations and departures. It acts at the
ends of epochs, shared out evenly among the rounds, and any mix may be blended meanwhile: what is dropped weighs exactly
zero from then on and is not computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from archipel.core.choice import Choice, Inputs
from archipel.core.decision import Arch
from archipel.core.errors import SpaceError, UsageError
from archipel.search.differentiable.loop import batch
from archipel.search.differentiable.select import Select
from archipel.search.differentiable.splitting import Restricted

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

Scores = dict[str, dict[int, float]]


def measured_half(alpha: Sequence[float], remaining: Sequence[int]) -> list[int]:
    """W: the ⌈K/2⌉ remaining options with the smallest logits.

    >>> measured_half([0.3, 0.1, 0.9, 0.2], [0, 2, 3])
    [3, 0]
    """
    return sorted(remaining, key=lambda o: alpha[o])[: -(-len(remaining) // 2)]


def drawn_networks(halves: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """A pass of sampling without replacement: networks in which every option of W stands once on its edge."""
    size = max(map(len, halves.values()))
    orders: dict[str, list[int]] = {}
    for name, options in halves.items():
        order: list[int] = []
        while len(order) < size:
            order += [options[i] for i in torch.randperm(len(options)).tolist()]
        orders[name] = order[:size]
    return [{name: order[r] for name, order in orders.items()} for r in range(size)]


def new_scores(accuracy: Mapping[int, float], remaining: Sequence[int]) -> dict[int, float]:
    """s' of all remaining options, from the mean accuracies of those measured.

    Raises:
        UsageError: accuracies outside [0, 1]; of percentages the softmax would be all or nothing.

    >>> new_scores({0: 0.5, 1: 0.5}, [0, 1, 2])
    {0: 0.5, 1: 0.5, 2: 0.5}
    """
    bad = [y for y in accuracy.values() if not 0.0 <= y <= 1.0]
    if bad:
        raise UsageError(f"Scores are a softmax of accuracies in [0, 1], not of {bad[0]!r}. Divide percentages by 100.")
    y = torch.tensor(list(accuracy.values()), dtype=torch.float64)
    measured = dict(zip(accuracy, torch.softmax(y, 0).tolist()))
    others = 0.5 * (max(measured.values()) + sum(measured.values()) / len(measured))
    return {o: measured.get(o, others) for o in remaining}


class PerformanceDrop(Select):
    """Drop one option of every edge at a time, by history and measurement; what is left is the answer.

    Args:
        tests: T, passes of sampling in each round.
        sample_epochs: passes over the weights' data that each drawn network trains the shared weights for.

    Attributes:
        remaining: edge -> positions of the options that are left.
        scores: edge -> option -> s, of all that ever were.
        networks: how many were measured.

    Raises:
        UsageError: a number below 1.
    """

    def __init__(self, tests: int = 3, sample_epochs: int = 1) -> None:
        for name, value in {"tests": tests, "sample_epochs": sample_epochs}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"PerformanceDrop: {name} must be at least 1, not {value!r}.")
        self.tests, self.sample_epochs = tests, sample_epochs
        self.networks = self.epochs = self.rounds_done = 0
        self.remaining: dict[str, list[int]] = {}
        self.scores: Scores = {}

    # --- the slot --------------------------------------------------------------------------------------------------

    def started(self, state: SearchState) -> None:
        """
        Raises:
            SpaceError: an edge with fewer than two options, or a node whose choice is not one of edges.
            UsageError: a regression, which has no accuracy, or fewer epochs than rounds.
        """
        rows = state.parameters.rows
        edges = {n: r for n, r in rows.items() if r.is_choice}
        for name, row in rows.items():
            if not row.is_choice and not isinstance(row.modules[0], Inputs):
                raise SpaceError(f"PerformanceDrop drops operations of edges; {name!r} takes any subset of pairs.")
            if row.is_choice and len(row.labels) < 2:
                raise SpaceError(f"Edge {name!r} has {len(row.labels)} option(s); there is nothing to drop.")
        if not edges:
            raise SpaceError(f"{state.supernet.space.name} has no edge with operations to drop.")
        if state.task == "regression":
            raise UsageError("PerformanceDrop weighs accuracies in [0, 1], which a regression does not have.")
        self.rounds = max(len(row.labels) for row in edges.values()) - 1
        if state.schedule.epochs < self.rounds:
            raise UsageError(
                f"To drop all but one of {self.rounds + 1} options, one in a round, takes at least {self.rounds} "
                f"epochs, not {state.schedule.epochs}."
            )
        self.remaining = {name: list(range(len(row.labels))) for name, row in edges.items()}
        self.scores = {name: dict.fromkeys(options, 0.0) for name, options in self.remaining.items()}
        self._restrict(state)

    def epoch_ended(self, state: SearchState) -> None:
        self.epochs += 1
        while (
            self.rounds_done < self.rounds
            and self.epochs * self.rounds >= (self.rounds_done + 1) * state.schedule.epochs
        ):
            self.drop(state)

    @property
    def finished(self) -> bool:
        return bool(self.remaining) and all(len(options) == 1 for options in self.remaining.values())

    def figures(self) -> dict[str, Any]:
        left = {name: len(options) for name, options in self.remaining.items()}
        size = sum(math.log10(k) for k in left.values())
        return {"options left": max(left.values()), "log10 size": size, "measured": self.networks}

    def __call__(self, state: SearchState) -> Arch:
        parameters = state.parameters
        picked: Arch = dict(parameters.fixed)
        strength: dict[str, tuple[float, float]] = {}
        for name in self.remaining:
            choice, alpha = parameters.rows[name].modules[0], parameters.logits[name].tolist()
            assert isinstance(choice, Choice)
            ranked = {o: (self.scores[name][o], alpha[o]) for o in self._choosable(state, name)}
            best = max(ranked, key=lambda o: ranked[o])
            picked[name], strength[name] = choice.decision.options[best], ranked[best]
        for name, node in parameters.inputs.items():

            def of_edge(i: int, node: Inputs = node) -> tuple[float, float]:
                names = [m.decision.name for m in node.edges[i].modules() if isinstance(m, Choice)]
                return max((strength[n] for n in names if n in strength), default=(0.0, 0.0))

            kept = sorted(sorted(range(len(node.edges)), key=of_edge, reverse=True)[: node.k])
            picked[name] = ",".join(map(str, kept))
        arch: Arch = {}
        for d in state.supernet.space.decisions:
            if state.supernet.space.is_open(d.name, arch):
                arch[d.name] = picked[d.name]
        return arch

    def state_dict(self) -> dict[str, Any]:
        names = ("remaining", "scores", "networks", "epochs", "rounds_done")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def restored(self, state: SearchState) -> None:
        self._restrict(state)

    # --- a round ---------------------------------------------------------------------------------------------------

    def drop(self, state: SearchState) -> None:
        """Measure the weaker half of each edge's options, and drop the worst of each."""
        open_ = {name: options for name, options in self.remaining.items() if len(options) > 1}
        alpha = {name: state.logits[name].tolist() for name in open_}
        halves = {name: measured_half(alpha[name], options) for name, options in open_.items()}
        found: dict[str, dict[int, list[float]]] = {n: {o: [] for o in options} for n, options in halves.items()}
        for _ in range(self.tests):
            for network in drawn_networks(halves):
                y = self._measured(state, network)
                for name, option in network.items():
                    found[name][option].append(y)
        for name, options in open_.items():
            fresh = new_scores({o: sum(ys) / len(ys) for o, ys in found[name].items()}, options)
            s = self.scores[name]
            s.update({o: s[o] / 2 + fresh[o] for o in options})
            worst = min(self._droppable(state, name), key=lambda o: (s[o], alpha[name][o]))
            options.remove(worst)
        self.rounds_done += 1
        self._restrict(state)

    def _measured(self, state: SearchState, network: Mapping[str, int]) -> float:
        """Accuracy on the architecture's half of a network, after its weights were trained for a pass."""
        mixture = {n: w.detach().clone() for n, w in state.mixture_weights().items()}  # of nodes that weigh edges
        for name, options in self.remaining.items():
            mixture[name] = torch.zeros_like(mixture[name])
            mixture[name][network.get(name, options[0])] = 1.0
        ours, size = state.halves[0], state.schedule.batch_size
        state.supernet.train()
        for _ in range(self.sample_epochs):
            order = torch.randperm(len(ours))
            for step in range(state.steps_per_epoch):
                state.weight_step(batch(ours, order[step * size : (step + 1) * size]), mixture)
        self.networks += 1
        return state.metrics(state.halves[1], mixture=mixture)["accuracy"]

    def _choosable(self, state: SearchState, name: str) -> list[int]:
        """Remaining options that the space lets stand there in the end."""
        choice = state.parameters.rows[name].modules[0]
        assert isinstance(choice, Choice)
        return [o for o in self.remaining[name] if o < choice.decision.size]

    def _droppable(self, state: SearchState, name: str) -> list[int]:
        """Remaining options but for the last one that can be chosen."""
        last = self._choosable(state, name)
        return [o for o in self.remaining[name] if len(last) > 1 or o not in last]

    def _restrict(self, state: SearchState) -> None:
        """Let the mix and the rows see only what is left."""
        rows = state.parameters.rows
        for name, options in self.remaining.items():
            rows[name] = replace(rows[name], allowed=tuple(options))
        if isinstance(state.mix, Restricted):
            state.mix.encoding = {name: list(options) for name, options in self.remaining.items()}
        else:
            state.mix = Restricted(state.mix, {n: tuple(options) for n, options in self.remaining.items()})
