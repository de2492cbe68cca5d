"""One loop for all differentiable searches; a method fills one or two of its five slots.

    mix             how options are blended                    :mod:`archipel.search.differentiable.mix`
    arch-gradient   how the architecture learns                :mod:`archipel.search.differentiable.arch_gradient`
    objective       what for, and within which limits          :mod:`archipel.search.differentiable.objective`
    schedule        how long, with which optimisers            :mod:`archipel.search.differentiable.schedule`
    select          how the answer is read off                 :mod:`archipel.search.differentiable.select`

The training data are cut in two: weights learn from one part, the architecture from the other. The validation data of
the data set take no part in the search; they judge its mixture, its answer and the networks trained afterwards.
Every epoch draws its randomness from (seed, epoch) alone and is saved, so an interrupted search ends the same.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch

from archipel.core.decision import Arch
from archipel.core.errors import DataError, SpaceError, UsageError
from archipel.core.space import Space
from archipel.core.supernet import Supernet
from archipel.data.batches import cutout
from archipel.data.dataset import Split
from archipel.search.differentiable.arch_gradient import ArchGradient, FirstOrder
from archipel.search.differentiable.diagnostics import discretisation_gap, normalised_entropy
from archipel.search.differentiable.mix import Mix, Slot, Softmax
from archipel.search.differentiable.objective import CrossEntropy, SearchObjective
from archipel.search.differentiable.parameters import ArchParameters
from archipel.search.differentiable.parts import as_part
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Argmax, Select
from archipel.search.differentiable.state import SearchState
from archipel.search.strategy import Context, Problem, Strategy, Trial
from archipel.search.training import shuffled
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.operations import CellSpace, choice_edge
from archipel.spaces.type_check import check_types

CHECKPOINT = "differentiable"
_TYPED: WeakSet[Space] = WeakSet()  # spaces whose options were found to fit: once is enough
FURTHER_SEED = 7_919  # epochs of a selection see the data in other orders than those of the search


class DifferentiableSearch(Strategy):
    """Trains a supernet and its architecture together, then proposes the one architecture that comes out.

    Args:
        mix, arch_gradient, objective, schedule, select: the slots, as parts or by name (such as ``"second-order"`` or
            ``"partial-channels:K=2"``, see :mod:`~archipel.search.differentiable.parts`); first-order DARTS by default.
        fixed: values of decisions that are not searched (those that set sizes cannot be).

    Attributes:
        log: for each epoch, losses, mean normalised entropy of the mixture weights, accuracy of the mixture and of its
            discretisation on the validation data, their gap, the logits, and what slots measure.
        state: supernet and logits, after ``prepare``.
        selection: the select slot with what it has recorded, after ``prepare``.

    >>> DifferentiableSearch(schedule=Schedule(epochs=2)).schedule.alpha_lr
    0.0003
    """

    def __init__(
        self,
        mix: Mix | str | None = None,
        arch_gradient: ArchGradient | str | None = None,
        objective: SearchObjective | str | None = None,
        schedule: Schedule | Mapping[str, Any] | str | None = None,
        select: Select | str | None = None,
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        self.mix: Mix = as_part("mix", mix) or Softmax()
        self.arch_gradient: ArchGradient = as_part("arch_gradient", arch_gradient) or FirstOrder()
        self.objective: SearchObjective = as_part("objective", objective) or CrossEntropy()
        self.schedule: Schedule = as_part("schedule", schedule) or Schedule()
        self.select: Select = as_part("select", select) or Argmax()
        self.fixed = dict(fixed or {})
        self._reset()

    # --- the strategy ----------------------------------------------------------------------------------------------

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self._reset()

    def _reset(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.state: SearchState | None = None
        self.selection: Select | None = None
        self._answers: list[Arch] | None = None
        self._asked = 0

    def prepare(self, context: Context) -> None:
        """
        Raises:
            SpaceError: the space has no supernet, none with the edges that the mix needs, or decisions that cannot be
                blended.
            DataError: a part of the training data would lack a class.
            Diverged: a loss is not finite.
        """
        state = self.state = self.start(context)
        gradient, select = copy.deepcopy(self.arch_gradient), copy.deepcopy(self.select)
        for slot in (gradient, select):
            slot.started(state)
        saved = context.checkpoints.load(CHECKPOINT)
        begin = further = 0
        if saved is not None:
            state.load_state_dict(saved["state"])
            gradient.load_state_dict(saved["arch_gradient"])
            select.load_state_dict(saved["select"])
            begin, self.log, self._answers = saved["epoch"], list(saved["log"]), saved["answers"]
            further = saved["further"]
            select.restored(state)
            # As at the end of the last epoch.
            state.move_to(max(0, (further or begin) - 1), state.steps_per_epoch - 1)

        def save() -> None:
            context.checkpoints.save(
                CHECKPOINT,
                {
                    "epoch": len(self.log) - further,
                    "further": further,
                    "state": state.state_dict(),
                    "arch_gradient": gradient.state_dict(),
                    "select": select.state_dict(),
                    "log": copy.deepcopy(self.log),
                    "answers": self._answers,
                },
            )

        epochs = state.schedule.epochs
        slots = (state.mix, gradient, state.objective, select)
        with torch.random.fork_rng(devices=[]):  # the generator of the process is left as it was found
            for epoch in range(begin, epochs if self._answers is None and not further else 0):
                if any(slot.finished for slot in slots):
                    break
                losses = run_epoch(state, gradient, epoch, context.seed, context.deadline, slots)
                if losses is None:
                    break
                self.log.append({"epoch": epoch, **losses, **self._look(state, context.dataset.val, slots)})
                save()
                context.progress("search", (epoch + 1) / epochs)
            if self._answers is None:
                torch.manual_seed(context.seed)
                while wanted := select.further(state):
                    losses = run_epoch(state, gradient, further, context.seed + FURTHER_SEED, context.deadline, slots)
                    if losses is None:
                        break
                    look = self._look(state, context.dataset.val, slots)
                    self.log.append({"epoch": len(self.log), **losses, **look})
                    further += 1
                    save()
                    context.progress("selection", further / (further - 1 + wanted))
                self._answers = select.answers(state)
                save()
        self.selection = select
        self._validation = context.dataset.val

    def start(self, context: Context) -> SearchState:
        """The state before the first epoch."""
        schedule = self.schedule if context.epochs is None else self.schedule.over(context.epochs)
        mix, objective = copy.deepcopy(self.mix), copy.deepcopy(self.objective)
        supernet = make_supernet(self.problem.space, mix, context.seed)
        parameters = ArchParameters.of(supernet, mix.weigh_edges, self.fixed, context.seed)
        data = context.dataset
        parts = halves(data.train, schedule.alpha_share, data.task, context.seed)
        state = SearchState(supernet, parameters, mix, objective, schedule, data.task, parts)
        for slot in (mix, objective):
            slot.started(state)
        return state

    def ask(self) -> Trial | None:
        if self.finished:
            return None
        if self.state is None or self._answers is None:
            raise UsageError(
                "A differentiable search proposes what it has trained: call prepare(context) before ask()."
            )
        arch, repaired = self._answers[self._asked], False
        self._asked += 1
        if self.problem.feasible is not None and not self.problem.feasible(arch):
            arch = self.select.nearest(self.state, self.problem.feasible, self.problem.rng)
            repaired = True
        info: dict[str, Any] = {"epochs": len(self.log), "repaired": repaired, "weights": self._weights(self.state)}
        if self.log:
            info |= {k: self.log[-1][k] for k in ("entropy", "mixture", "one_hot", "gap")}
        return self.new_trial(self.problem.space.validate(arch), info=info)

    def tell(self, trial: Trial) -> None:
        pass

    @property
    def finished(self) -> bool:
        return self._answers is not None and self._asked == len(self._answers)

    def shared_scores(self, archs: Sequence[Arch]) -> list[float] | None:
        """Accuracy (or R²) on the validation data with the supernet's weights and batch statistics."""
        if self.state is None:
            return None
        metric = "r2" if self.state.task == "regression" else "accuracy"
        return [self.state.metrics(self._validation, arch=self.problem.space.validate(a))[metric] for a in archs]

    # --- looking ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _weights(state: SearchState) -> dict[str, list[float]]:
        return {n: w.detach().tolist() for n, w in state.scores().items()}

    def _look(self, state: SearchState, data: Split, slots: Sequence[Slot]) -> dict[str, Any]:
        arch = next((s for s in slots if isinstance(s, Select)), Argmax()).glance(state)
        return {
            "entropy": normalised_entropy(self._weights(state)),
            **discretisation_gap(state, arch, data),
            "alpha": {n: p.detach().tolist() for n, p in state.logits.items()},
            **{k: v for slot in slots for k, v in slot.figures().items()},
        }


def make_supernet(space: Space, mix: Mix, seed: int) -> Supernet:
    """A space's supernet with the edges that a mix needs.

    Raises:
        SpaceError: the space has no supernet, its edges cannot be replaced, or options of a choice differ in type.
    """
    if isinstance(space, ModuleSpace) and space not in _TYPED:
        check_types(space)
        _TYPED.add(space)
    if isinstance(space, CellSpace):
        return space.supernet(seed=seed, edge=mix.edge or choice_edge)
    if mix.edge is not None:
        raise SpaceError(
            f"{type(mix).__name__} makes the edges of a cell in its own way, but {space.name} has no edges that can be "
            f"replaced. Use a cell space (such as DartsSpace), or a mix that keeps the space's own modules, as Softmax."
        )
    return space.supernet(seed=seed) if isinstance(space, ModuleSpace) else space.supernet()


def run_epoch(
    state: SearchState,
    gradient: ArchGradient,
    epoch: int,
    seed: int,
    deadline: float | None = None,
    slots: Sequence[Slot] = (),
) -> dict[str, float] | None:
    """One pass over the weights' half; the architecture's half is cycled through beside it.

    Args:
        slots: told when a step or the epoch has ended.

    Returns:
        mean training loss, or None if the deadline (on the monotonic clock) passed before the end.
    """
    torch.manual_seed(seed * 100_003 + epoch)
    state.supernet.train()
    ours, theirs = state.halves
    size = state.schedule.batch_size
    order = shuffled(len(ours), seed, epoch)
    other = shuffled(len(theirs), seed + 1, epoch)
    steps = state.steps_per_epoch
    total = 0.0
    for step in range(steps):
        if deadline is not None and time.monotonic() > deadline:
            return None
        state.move_to(epoch, step)
        index = order[step * size : (step + 1) * size]
        place = (torch.arange(min(size, len(theirs))) + step * size) % len(theirs)
        pair = [batch(ours, index), batch(theirs, other[place])]
        if state.schedule.cutout:
            erase = cutout(state.schedule.cutout)
            pair = [(erase(x, None), y) for x, y in pair]
        total += gradient.update(state, *pair)
        for slot in slots:
            slot.step_ended(state)
    for slot in slots:
        slot.epoch_ended(state)
    state.parameters.check_finite()
    return {"train_loss": total / steps}


def batch(data: Split, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return data.x[index], data.y[index]


def halves(data: Split, alpha_share: float, task: str, seed: int) -> tuple[Split, Split]:
    """The weights' and the architecture's part of the training data; classes are shared out evenly.

    With a share of 0, both are all of it.

    Raises:
        DataError: a class that has too few examples to be in both; names it.
    """
    if alpha_share == 0.0:
        return data, data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    if task != "classification":
        cut = round(alpha_share * len(data))
        if not 0 < cut < len(data):
            raise DataError(f"{len(data)} training examples cannot be divided; a search needs at least two.")
        return data.take(order[cut:]), data.take(order[:cut])
    theirs, ours = [], []
    for label in data.y.unique().tolist():
        members = order[data.y[order] == label]
        cut = round(alpha_share * len(members))
        if not 0 < cut < len(members):
            raise DataError(
                f"Class {label} has {len(members)} training example(s), too few to be in both parts of the training "
                f"data (a share of {alpha_share} is for the architecture). Add examples or leave the class out."
            )
        theirs.append(members[:cut])
        ours.append(members[cut:])
    return data.take(torch.cat(ours)), data.take(torch.cat(theirs))
