"""One supernet of a tree of supernets: what it may take, where it is in its training, and how it is saved.

See :mod:`archipel.search.differentiable.split_search`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from archipel.core.storage import Checkpoints
from archipel.data.dataset import Split as Data
from archipel.search.differentiable.arch_gradient import ArchGradient
from archipel.search.differentiable.diagnostics import discretisation_gap, normalised_entropy
from archipel.search.differentiable.loop import CHECKPOINT
from archipel.search.differentiable.mix import Slot
from archipel.search.differentiable.select import Argmax, Select
from archipel.search.differentiable.splitting import Encoding, Split
from archipel.search.differentiable.state import SearchState

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"  # number the children of a split


@dataclass
class Part:
    """A supernet of the tree.

    Attributes:
        path: the child number at each level; empty for the whole.
        encoding: which options it may take.
        gradient, select: its own slots.
        epoch: where it is in its schedule.
        trained: epochs it was trained itself.
        retrained: further epochs that the selection asked for.
        log: of all epochs since the root.
        split: how it was divided, once it was.
    """

    path: str
    encoding: Encoding
    state: SearchState
    gradient: ArchGradient
    select: Select
    epoch: int = 0
    trained: int = 0
    retrained: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    split: Split | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.state.mix, self.gradient, self.state.objective, self.select

    @property
    def _name(self) -> str:
        return f"{CHECKPOINT}-part{'-' + self.path if self.path else ''}"

    def inherit(self, parent: Part) -> None:
        """Copy weights, logits, optimisers and slots, and the place in the schedule."""
        self.state.load_state_dict(parent.state.state_dict())
        self.gradient.load_state_dict(copy.deepcopy(parent.gradient.state_dict()))
        self.epoch, self.log = parent.epoch, list(parent.log)

    def seen(self, data: Data, slots: Sequence[Slot]) -> dict[str, Any]:
        """What the log holds of it: entropy, discretisation gap on ``data``, logits, and what slots measure."""
        weights = {n: w.detach().tolist() for n, w in self.state.scores().items()}
        return {
            "entropy": normalised_entropy(weights),
            **discretisation_gap(self.state, Argmax()(self.state), data),
            "alpha": {n: p.detach().tolist() for n, p in self.state.logits.items()},
            **{k: v for slot in slots for k, v in slot.figures().items()},
        }

    def save(self, checkpoints: Checkpoints) -> None:
        split = self.split
        checkpoints.save(
            self._name,
            {
                "state": self.state.state_dict(),
                "arch_gradient": self.gradient.state_dict(),
                "epoch": self.epoch,
                "trained": self.trained,
                "log": copy.deepcopy(self.log),
                "split": None if split is None else [split.row, [list(g) for g in split.groups], dict(split.scores)],
            },
        )

    def restore(self, checkpoints: Checkpoints) -> bool:
        """Go back to what was saved last; False if nothing was."""
        saved = checkpoints.load(self._name)
        if saved is None:
            return False
        self.state.load_state_dict(saved["state"])
        self.gradient.load_state_dict(saved["arch_gradient"])
        self.epoch, self.trained, self.log = saved["epoch"], saved["trained"], list(saved["log"])
        if saved["split"] is not None:
            row, groups, scores = saved["split"]
            self.split = Split(row, tuple(tuple(g) for g in groups), scores)
        return True
