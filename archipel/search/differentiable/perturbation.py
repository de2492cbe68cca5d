"""Selection by perturbation: what is kept is that whose removal hurts the supernet most.

Wang, Cheng, Chen, Tang, Hsieh. Rethinking Architecture Selection in Differentiable NAS. 2021.
https://arxiv.org/abs/2108.04392

    edge e (random order)   o* = argmin_o A(W with W_eo = 0)        W = all mixture weights; nothing is renormalised
                            e becomes one-hot(o*); then the supernet, α included, is trained on for n epochs
    node (random order)     while it has more than k sources: leave out i* = argmax_i A(without source i); then train on

A is the accuracy (or minus the loss) on the architecture's half of the training data, by batch statistics. What is
already decided stays one-hot, what is not keeps the weights of the search's own mix. See
:mod:`archipel.search.differentiable.darts_pt` for the method and what it departs in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.choice import Choice, Inputs
from archipel.core.decision import Arch
from archipel.core.errors import DataError, UsageError, suggest
from archipel.search.differentiable.parameters import Moment, Row
from archipel.search.differentiable.projected import Projected
from archipel.search.differentiable.select import Select
from archipel.search.training import Diverged
from archipel.spaces.operations import CellSpace

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

CRITERIA = ("accuracy", "loss")


class Perturbation(Select):
    """Decide edge by edge, then node by node; train on in between.

    Cells of different kinds are decided side by side, one edge of each in a round; ``tune`` epochs follow each round
    and one the last. If the deadline cuts the training short, what is left is still measured, without it.

    Args:
        tune: epochs between rounds; the paper's 10 for DARTS cells and 5 for NAS-Bench-201.
        criterion: ``"accuracy"`` (R² for regressions; equals are told apart by their loss) or ``"loss"``.
        lr: learning rate of the weights when training on begins; a tenth of the search's by default.

    Attributes:
        record: for each measured removal, what was asked, what was found for each option or source, and what was kept.
        evaluations: forward passes over the architecture's half.

    Raises:
        UsageError: another criterion, or a number out of range.
    """

    def __init__(self, tune: int = 10, criterion: str = "accuracy", lr: float | None = None) -> None:
        if isinstance(tune, bool) or not isinstance(tune, int) or tune < 1:
            raise UsageError(f"Perturbation: tune, the epochs between two decisions, is at least 1, not {tune!r}.")
        if criterion not in CRITERIA:
            raise UsageError(f"Perturbation: criterion {criterion!r} is unknown. {suggest(str(criterion), CRITERIA)}")
        if lr is not None and not (math.isfinite(lr) and lr > 0):
            raise UsageError(f"Perturbation: lr must be positive, not {lr!r}.")
        self.tune, self.criterion, self.lr = tune, criterion, lr
        self.rounds: list[list[str]] | None = None
        self.decided: dict[str, int] = {}
        self.sources: dict[str, list[int]] = {}
        self.record: list[dict[str, Any]] = []
        self.tuned = 0

    @property
    def evaluations(self) -> int:
        return sum(len(entry["accuracy"]) for entry in self.record)

    # --- the slot --------------------------------------------------------------------------------------------------

    def started(self, state: SearchState) -> None:
        """
        Raises:
            UsageError: rows that are neither edges nor nodes of a given number of sources.
        """
        for name, row in state.parameters.rows.items():
            alone = name in state.supernet.space.by_name if row.is_choice else isinstance(row.modules[0], Inputs)
            if not alone:
                raise UsageError(
                    f"Perturbation decides edges and nodes one by one, but {name!r} of {state.supernet.space.name} is "
                    f"made of several decisions. Use the selection that goes with this space."
                )

    def further(self, state: SearchState) -> int:
        rounds = self._begin(state)
        total = self.tune * (len(rounds) - 1) + 1
        if self.tuned < total:
            if self.tuned % self.tune == 0:
                self._decide(state, rounds[self.tuned // self.tune])
            self.tuned += 1
            return total - self.tuned + 1
        return 0

    def __call__(self, state: SearchState) -> Arch:
        for names in self._begin(state):
            self._decide(state, names)
        picked: Arch = dict(state.parameters.fixed)
        for name, option in self.decided.items():
            choice = state.parameters.rows[name].modules[0]
            assert isinstance(choice, Choice)
            picked[name] = choice.decision.options[option]
        for name, inputs in state.parameters.inputs.items():
            picked[name] = ",".join(map(str, self.sources.get(name, range(inputs.k))))
        arch: Arch = {}
        for d in state.supernet.space.decisions:
            if state.supernet.space.is_open(d.name, arch):
                arch[d.name] = picked[d.name]
        return arch

    def figures(self) -> dict[str, Any]:
        """What was measured just before the epoch that has ended."""
        new = [entry for entry in self.record if entry["epoch"] == self.tuned - 1]
        return {"perturbation": new} if new else {}

    def state_dict(self) -> dict[str, Any]:
        names = ("rounds", "decided", "sources", "record", "tuned")
        end = {} if self.rounds is None else {"moment": list(astuple(self.moment))}
        return {name: getattr(self, name) for name in names} | end

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, Moment(*value) if name == "moment" else value)

    def restored(self, state: SearchState) -> None:
        if self.rounds is not None:
            self._attach(state)

    # --- deciding --------------------------------------------------------------------------------------------------

    def project(self, state: SearchState, name: str) -> str:
        """Decide one edge by leaving out each of its options in turn; returns the label of the one kept.

        Raises:
            UsageError: no such edge, one that is decided, or one whose mixture is a single option.
            DataError: there is nothing to measure on.
            Diverged: a loss is not finite.
        """
        self._begin(state)
        row = state.parameters.rows.get(name)
        if row is None or not row.is_choice:
            edges = [n for n, r in state.parameters.rows.items() if r.is_choice]
            raise UsageError(f"Perturbation sets the weights of edges, and {name!r} has none. {suggest(name, edges)}")
        if name in self.decided:
            raise UsageError(f"Edge {name!r} is already projected, to {row.labels[self.decided[name]]!r}.")
        mixture = state.mixture_weights()
        found = [
            self._measure(state, {**mixture, name: _without(mixture[name], o, name)}) for o in range(len(row.labels))
        ]
        candidates = _candidates(row)
        best = max(candidates, key=lambda o: self._harm(found[o]))
        self.decided[name] = best
        self._note(name, row.labels, found, row.labels[best], weights=mixture[name].tolist())
        return row.labels[best]

    def cut(self, state: SearchState, name: str) -> list[int]:
        """Leave out the least useful source of a node until ``k`` are left; returns their positions.

        Raises:
            UsageError: no such node, or one that has only k sources.
        """
        self._begin(state)
        inputs = state.parameters.inputs.get(name)
        if inputs is None:
            raise UsageError(f"No node {name!r}. {suggest(name, state.parameters.inputs)}")
        kept = self.sources.get(name, list(range(len(inputs.edges))))
        if len(kept) <= inputs.k:
            raise UsageError(f"Node {name!r} has only the {inputs.k} source(s) that it keeps.")
        self.sources[name] = kept
        while len(kept) > inputs.k:
            mixture = state.mixture_weights()
            found = [self._measure(state, {**mixture, name: _without(mixture[name], i, name)}) for i in kept]
            worst = min(range(len(kept)), key=lambda i: self._harm(found[i]))
            left_out = kept[worst]
            self._note(name, [str(i) for i in kept], found, [i for i in kept if i != left_out])
            kept.remove(left_out)
        return kept

    def _decide(self, state: SearchState, names: Sequence[str]) -> None:
        for name in names:
            if name in state.parameters.inputs:
                if name not in self.sources:
                    self.cut(state, name)
            elif name not in self.decided:
                self.project(state, name)

    def _measure(self, state: SearchState, mixture: Mapping[str, Tensor]) -> dict[str, float]:
        found = state.metrics(state.halves[1], mixture=mixture)
        if not math.isfinite(found["loss"]):
            raise Diverged(f"the loss of the supernet is {found['loss']} with an option left out")
        return found

    def _harm(self, found: Mapping[str, float]) -> tuple[float, float]:
        score = found.get("accuracy", found.get("r2", 0.0))
        return (-score, found["loss"]) if self.criterion == "accuracy" else (found["loss"], -score)

    def _note(self, name: str, labels: Sequence[str], found: Sequence[Mapping[str, float]], kept: Any, **more: Any):
        entry = {"what": name, "kept": kept, "epoch": self.tuned, **more}
        entry["accuracy"] = {label: f.get("accuracy", f.get("r2")) for label, f in zip(labels, found)}
        entry["loss"] = {label: f["loss"] for label, f in zip(labels, found)}
        self.record.append(entry)

    # --- beginning -------------------------------------------------------------------------------------------------

    def _begin(self, state: SearchState) -> list[list[str]]:
        """The rounds; at the first call, draws them and begins a new descent of the weights."""
        if self.rounds is None:
            if len(state.halves[1]) == 0:
                raise DataError(
                    "Perturbation measures on the architecture's part of the training data, which is empty."
                )
            self.rounds = _rounds(state)
            self.moment = state.moment
            self._attach(state)
            state.weight_optimizer = state.schedule.weight_optimizer(state.weights.values())
        return self.rounds

    def _attach(self, state: SearchState) -> None:
        assert self.rounds is not None
        s = state.schedule
        lr = s.lr / 10 if self.lr is None else self.lr
        epochs = self.tune * (len(self.rounds) - 1) + 1
        state.schedule = replace(s, epochs=epochs, warmup=0, lr=lr, lr_min=min(s.lr_min, lr))
        state.mix = Projected(state.mix, state.parameters, self.moment, self.decided, self.sources)


def _rounds(state: SearchState) -> list[list[str]]:
    """Names in the random order in which they are decided: all edges, then all nodes with a choice of sources."""
    parameters = state.parameters
    edges = [name for name, row in parameters.rows.items() if row.is_choice]
    nodes = [name for name, node in parameters.inputs.items() if len(node.edges) > node.k]
    rounds: list[list[str]] = []
    for names in (edges, nodes):
        cells: dict[str, list[str]] = {}
        for name in names:
            cell = name.rpartition(".")[0] if isinstance(state.supernet.space, CellSpace) else ""
            cells.setdefault(cell, []).append(name)
        orders = [[members[i] for i in torch.randperm(len(members)).tolist()] for members in cells.values()]
        rounds += [[name for name in side_by_side if name is not None] for side_by_side in zip_longest(*orders)]
    return rounds


def _without(weights: Tensor, position: int, name: str) -> Tensor:
    """The weights of an edge or node with one of them zero and the others as they were."""
    out = weights.clone()
    out[position] = 0.0
    if not out.any():
        raise UsageError(
            f"Perturbation leaves one option of {name!r} out of the mixture, but the mix gives all the weight to that "
            f"one. Use a mix that blends several options (Softmax), or select by Argmax."
        )
    return out


def _candidates(row: Row) -> list[int]:
    """Positions of what may stand on an edge in the end; a zero operation too, where the space lets it be chosen."""
    choice = row.modules[0]
    assert isinstance(choice, Choice)
    return [i for i in range(len(choice.decision.options)) if row.allowed is None or i in row.allowed]
