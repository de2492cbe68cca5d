"""The `select` slot: how the answer is read off a trained search.

    score(i → j, o) = p_o                     (edges not weighed)        o that may be chosen
                    = β̂_ij · p_o              (edges weighed)
    node j keeps the k edges with the highest best score, and on each the best operation

The mass that a mixture puts on the zero operation counts in p but is never chosen (DARTS, section 2.4). Where limits
rule the answer out, a near architecture within them is taken instead, and the trial says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Any

from archipel.core.choice import Choice, Inputs
from archipel.core.decision import Arch
from archipel.core.errors import InfeasibleError, UsageError
from archipel.core.space import Space
from archipel.core.subset import Subset
from archipel.search.differentiable.mix import Slot
from archipel.search.differentiable.parameters import ArchParameters

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

Scores = dict[str, dict[Any, float]]

FLATTENINGS, DRAWS = 12, 50  # how far and how densely the neighbourhood of an infeasible answer is searched


class Select(Slot):
    """From a search's state to one architecture, or to several (a Pareto set)."""

    def __call__(self, state: SearchState) -> Arch:
        raise NotImplementedError

    def further(self, state: SearchState) -> int:
        """Called when the schedule's epochs are over, before each further one: how many more the selection wants.

        The epoch is trained by the search's own slots with whatever schedule and mix are then in the state.
        """
        return 0

    def restored(self, state: SearchState) -> None:
        """Called once this slot and the state have been loaded from a checkpoint."""

    def glance(self, state: SearchState) -> Arch:
        """What each epoch's entry of the log takes for the discretisation: cheap; the largest weights by default."""
        return Argmax()(state)

    def nearest(self, state: SearchState, feasible: Callable[[Arch], bool], rng: Random) -> Arch:
        """An architecture within the limits, for an answer that is not.

        Raises:
            InfeasibleError: none was found.
        """
        scores = option_scores(state.parameters, {n: w.detach().tolist() for n, w in state.scores().items()})
        return nearest_feasible(state.supernet.space, scores, state.parameters.fixed, feasible, rng)

    def answers(self, state: SearchState) -> list[Arch]:
        """What the search proposes, the best first; one architecture unless overridden."""
        return [self(state)]


class Argmax(Select):
    """The options with the largest weights."""

    def started(self, state: SearchState) -> None:
        """
        Raises:
            UsageError: choices that several decisions make together.
        """
        for name, row in state.parameters.rows.items():
            if row.is_choice and name not in state.supernet.space.by_name:
                raise UsageError(
                    f"Argmax takes the best option of each choice alone, but {name!r} of {state.supernet.space.name} "
                    f"must match its neighbours. Read it off as a path: select=LongestPath()."
                )

    def __call__(self, state: SearchState) -> Arch:
        weights = {n: w.detach().tolist() for n, w in state.scores().items()}
        return strongest(state.supernet.space, state.parameters, weights)


def strongest(space: Space, parameters: ArchParameters, weights: Mapping[str, list[float]]) -> Arch:
    """The architecture with the highest scores; among equals, the option that comes first."""
    picked: Arch = dict(parameters.fixed)
    for name, scores in option_scores(parameters, weights).items():
        picked[name] = max(scores, key=lambda value: scores[value])
    for subset in (m for row in parameters.rows.values() if isinstance(m := row.modules[0], Subset)):
        w = weights[subset.name]
        at_least_half = [label for label, p in zip(subset.labels, w) if p >= 0.5]
        picked |= subset.arch(at_least_half or [subset.labels[w.index(max(w))]])
    for name, inputs in parameters.inputs.items():
        # Directly, not as the best sum: adding rounds, and could confuse nearly equal edges.
        strength = edge_strengths(inputs, parameters, weights)
        best = sorted(range(len(strength)), key=lambda i: (-strength[i], i))[: inputs.k]
        picked[name] = ",".join(map(str, sorted(best)))
    arch: Arch = {}
    for d in space.decisions:
        if space.is_open(d.name, arch):
            arch[d.name] = picked[d.name]
    return arch


def option_scores(parameters: ArchParameters, weights: Mapping[str, list[float]]) -> Scores:
    """Score of every value of every decision; of a node's sources: the sum over the edges taken."""
    scores: Scores = {}
    for name, row in parameters.rows.items():
        choice = row.modules[0]
        if isinstance(choice, Choice):
            scores[name] = {choice.decision.options[i]: weights[name][i] for i in row.derivable}
        elif isinstance(choice, Subset):
            scores |= {d.name: {True: w, False: max(0.0, 1 - w)} for d, w in zip(choice.decisions, weights[name])}
    for name, inputs in parameters.inputs.items():
        strength = edge_strengths(inputs, parameters, weights)
        scores[name] = {label: sum(strength[i] for i in taken) for label, taken in inputs.sources.items()}
    return scores


def edge_strengths(inputs: Inputs, parameters: ArchParameters, weights: Mapping[str, list[float]]) -> list[float]:
    """The best score on each candidate edge of a node."""
    beta = weights.get(inputs.decision.name)
    out = []
    for i, edge in enumerate(inputs.edges):
        names = [
            m.decision.name for m in edge.modules() if isinstance(m, Choice) and m.decision.name in parameters.rows
        ]
        best = max(weights[names[0]][o] for o in parameters.rows[names[0]].derivable) if names else 1.0
        out.append(best if beta is None else beta[i] * best)
    return out


def nearest_feasible(space: Space, scores: Scores, fixed: Arch, feasible: Callable[[Arch], bool], rng: Random) -> Arch:
    """A likely architecture that keeps the limits.

    Draws from the searched distribution p^(1/T), flattened step by step (T doubles) until some draw keeps the limits;
    of the draws at that T which do, the one with the highest Σ log p.

    Raises:
        InfeasibleError: none was found even where all options are nearly equal.
    """
    logs = {n: {v: math.log(max(p, 1e-30)) for v, p in values.items()} for n, values in scores.items()}
    for step in range(FLATTENINGS):
        found: list[tuple[float, Arch]] = []
        for _ in range(DRAWS):
            arch: Arch = {}
            for d in space.decisions:
                if space.is_open(d.name, arch):
                    arch[d.name] = fixed[d.name] if d.name in fixed else _draw(logs[d.name], 0.125 * 2.0**step, rng)
            if feasible(arch):
                found.append((sum(logs[n][v] for n, v in arch.items() if n in logs), arch))
        if found:
            return max(found, key=lambda pair: pair[0])[1]
    raise InfeasibleError(
        f"The searched architecture of {space.name} breaks the limits, and so do {FLATTENINGS * DRAWS} others around "
        f"it. Relax the limits, or use an objective that constrains the search itself."
    )


def _draw(logs: Mapping[Any, float], temperature: float, rng: Random) -> Any:
    top = max(logs.values())
    weights = [math.exp((v - top) / temperature) for v in logs.values()]
    return rng.choices(list(logs), weights)[0]
