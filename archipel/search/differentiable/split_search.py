"""The search over a tree of supernets: train, split, train the parts, and take the best answer of all leaves.

See :mod:`archipel.search.differentiable.splitting` for what a split is. Every supernet saves its own progress, so that
an interrupted search goes on in the supernet and epoch where it was.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.search.differentiable.loop import CHECKPOINT, FURTHER_SEED, DifferentiableSearch, run_epoch
from archipel.search.differentiable.sampling import SampledPaths, path_score
from archipel.search.differentiable.split_part import DIGITS, Part
from archipel.search.differentiable.splitting import (
    Encoding,
    Restricted,
    Splitter,
    encodings_of_children,
    holds,
    scaled_splits,
)
from archipel.search.strategy import Context, Trial

RESTARTS = ("none", "final")


class SplitSearch(DifferentiableSearch):
    """Differentiable search whose supernet is split at some epochs.

    Args:
        splitter: says how.
        split_epochs: after which epochs, in those of the schedule.
        restart: ``"final"`` to begin the last level with new weights and a new schedule; ``"none"``.
        proposals: how many leaves propose their answer, the best on the architecture's half of the data first.
        slots: of :class:`DifferentiableSearch`. A budget of epochs is that of one path from the whole to a leaf.

    Attributes:
        parts: all supernets of the tree, after ``prepare``, level by level; a split one keeps its last state.
        leaves: the last level.

    Raises:
        UsageError: no split, another ``restart``, or no proposal.
    """

    def __init__(
        self, splitter: Splitter, split_epochs: Sequence[int], restart: str = "none", proposals: int = 1, **slots: Any
    ) -> None:
        if restart not in RESTARTS:
            raise UsageError(f"restart is one of {', '.join(RESTARTS)}, not {restart!r}.")
        if not isinstance(proposals, int) or proposals < 1:
            raise UsageError(f"proposals must be a positive integer, not {proposals!r}.")
        self.splitter, self.split_epochs = splitter, list(split_epochs)
        self.restart, self.proposals = restart, proposals
        super().__init__(**slots)
        if isinstance(self.arch_gradient, SampledPaths) and not self.arch_gradient.restrictable:
            raise UsageError(
                f"{type(self.arch_gradient).__name__} draws from all options, so its supernet cannot be split. Split "
                f"uniformly sampled paths (SampledPaths) or mixtures."
            )
        if not self.split_epochs:
            raise UsageError("split_epochs is empty; without a split this is the plain search.")
        scaled_splits(self.split_epochs, self.schedule.epochs, self.schedule.epochs)

    def _reset(self) -> None:
        super()._reset()
        self.parts: list[Part] = []
        self.leaves: list[Part] = []
        self._sources: list[Part] = []  # the leaf of each answer

    def prepare(self, context: Context) -> None:
        """Grow the tree; see :meth:`DifferentiableSearch.prepare`.

        Raises:
            UsageError: the splits do not fit into the epochs, or no edge can be split.
        """
        epochs = self.schedule.epochs if context.epochs is None else context.epochs
        ends = [*scaled_splits(self.split_epochs, self.schedule.epochs, epochs), epochs]
        saved = context.checkpoints.load(CHECKPOINT)
        self._validation = context.dataset.val
        with torch.random.fork_rng(devices=[]):
            self._grow(context, ends, None if saved is None else saved["depth"])
            if saved is None:
                answers = self._answer(context)
                states = {
                    p.path: [p.state.state_dict(), p.gradient.state_dict(), p.select.state_dict(), p.retrained]
                    for p in self.leaves
                    if p.retrained
                }
                context.checkpoints.save(
                    CHECKPOINT, {"depth": len(self.leaves[0].path) + 1, "answers": answers, "states": states}
                )
            else:
                answers = saved["answers"]
        by_path = {leaf.path: leaf for leaf in self.leaves}
        for path, (state, gradient, select, retrained) in ({} if saved is None else saved["states"]).items():
            part = by_path[path]
            part.retrained = retrained
            part.state.load_state_dict(state)
            part.gradient.load_state_dict(gradient)
            part.select.load_state_dict(select)
            part.select.restored(part.state)
        self._sources = [by_path[path] for path, _ in answers]
        self._answers = [arch for _, arch in answers]
        self._look_at(self._sources[0])

    def ask(self) -> Trial | None:
        if not self.finished and self._answers is not None:
            self._look_at(self._sources[self._asked])
        return super().ask()

    def _look_at(self, leaf: Part) -> None:
        self.state, self.log, self.selection = leaf.state, leaf.log, leaf.select

    def shared_scores(self, archs: Sequence[Arch]) -> list[float] | None:
        """Accuracy (or R²) on the validation data of each architecture in the leaf that holds it."""
        if self.state is None:
            return None
        metric = "r2" if self.state.task == "regression" else "accuracy"
        checked = [self.problem.space.validate(a) for a in archs]
        return [self.leaf_of(a).state.metrics(self._validation, arch=a)[metric] for a in checked]

    def leaf_of(self, arch: Arch) -> Part:
        """The one leaf that holds an architecture."""
        return next(p for p in self.leaves if holds(p.encoding, p.state.parameters.rows, arch))

    @property
    def trained_epochs(self) -> int:
        """Epochs of all supernets together."""
        return sum(part.trained + part.retrained for part in self.parts)

    # --- growing ---------------------------------------------------------------------------------------------------

    def _grow(self, context: Context, ends: Sequence[int], depth: int | None) -> None:
        """Train and split, level by level, up to the epochs ``ends``; or load ``depth`` levels of a finished search."""
        self.parts = []
        self.leaves = [self._begin(context, "", {})]
        self.parts += self.leaves
        for level, end in enumerate(ends):
            if depth is None:
                for k, part in enumerate(self.leaves):
                    if not self._train(part, end, context):
                        return  # out of time: what there is are the leaves
                    context.progress(f"{len(self.leaves)} supernets", (level + (k + 1) / len(self.leaves)) / len(ends))
            if level + 1 == (len(ends) if depth is None else depth):
                return
            children = self._divide(context, last=level + 2 == len(ends))
            if children is None:
                return
            self.leaves = children
            self.parts += children

    def _begin(self, context: Context, path: str, encoding: Encoding, parent: Part | None = None) -> Part:
        """A supernet as it was saved last, or as its parent is, or a new one."""
        seed = context.seed if parent is not None or not path else context.seed + 7919 * int("1" + path, 36)
        state = self.start(replace(context, seed=seed))
        if self.parts:  # the same division of the data for all supernets, whatever their seeds
            state.halves = self.parts[0].state.halves
        state.mix = Restricted(state.mix, encoding)
        rows = state.parameters.rows
        state.parameters.rows = {n: replace(row, allowed=encoding.get(n)) for n, row in rows.items()}
        part = Part(path, encoding, state, copy.deepcopy(self.arch_gradient), copy.deepcopy(self.select))
        for slot in (part.gradient, part.select):
            slot.started(state)
        if not part.restore(context.checkpoints) and parent is not None:
            part.inherit(parent)
        state.move_to(max(0, part.epoch - 1), state.steps_per_epoch - 1)
        state.supernet.train()
        return part

    def _train(self, part: Part, end: int, context: Context) -> bool:
        """Train up to an epoch; False if the deadline came first."""
        slots = part.slots[:3]
        for epoch in range(part.epoch, end):
            if any(slot.finished for slot in slots):
                break
            losses = run_epoch(part.state, part.gradient, epoch, context.seed, context.deadline, slots)
            if losses is None:
                return False
            part.log.append(
                {"epoch": epoch, **losses, **(part.seen(self._validation, slots) if epoch + 1 == end else {})}
            )
            part.epoch, part.trained = epoch + 1, part.trained + 1
            part.save(context.checkpoints)
        return True

    def _divide(self, context: Context, last: bool) -> list[Part] | None:
        """The children of all leaves, or None if the deadline came first."""
        for part in self.leaves:
            if part.split is None:
                if context.deadline is not None and time.monotonic() > context.deadline:
                    return None
                seed = context.seed * 100_003 + int("1" + part.path, 36)
                torch.manual_seed(seed)
                part.split = self.splitter.split(part.state, part.gradient, seed, context.deadline)
                if part.split is None:
                    return None
                part.save(context.checkpoints)
        children = []
        for part in self.leaves:
            assert part.split is not None
            row = part.state.parameters.rows[part.split.row]
            new = last and self.restart == "final"
            for k, encoding in enumerate(encodings_of_children(part.encoding, part.split, row)):
                path = part.path + DIGITS[k]
                children.append(self._begin(context, path, encoding, None if new else part))
        return children

    def _answer(self, context: Context) -> list[list[Any]]:
        """Pairs of a leaf's path and its answer, the best on the architecture's half first."""
        found = []
        for leaf in self.leaves:
            select = leaf.select
            slots = leaf.slots
            if not leaf.log or "gap" not in leaf.log[-1]:  # training ended early
                leaf.log.append({**(leaf.log.pop() if leaf.log else {}), **leaf.seen(self._validation, slots)})
            torch.manual_seed(context.seed)
            while select.further(leaf.state):
                seed = context.seed + FURTHER_SEED
                if run_epoch(leaf.state, leaf.gradient, leaf.retrained, seed, context.deadline, slots) is None:
                    break
                leaf.retrained += 1
            for arch in select.answers(leaf.state):
                found.append((path_score(leaf.state, arch), leaf.path, arch))
        found.sort(key=lambda one: -one[0])
        return [[path, arch] for _, path, arch in found[: self.proposals]]
