"""The weights that a run keeps on disk while it searches: those that may still be needed, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from archipel.search.loop import Arm
from archipel.search.strategy import Trial
from archipel.search.worker import Job

if TYPE_CHECKING:
    from archipel.search.driver import Search


class Keeper:
    """Makes an arm's jobs, and keeps on disk only the weights that may still be needed.

    Those are the best trial's, and those of the partly trained ones that the strategy may continue. Which are deleted
    follows from the order of asks and tells alone, so a run that is resumed has what an undisturbed one would have.
    """

    def __init__(self, search: Search, arm: Arm) -> None:
        self.search, self.arm = search, arm
        self.kept = arm.best
        self.partial: set[int] = set()  # trials whose weights are kept since they may be continued

    def name(self, trial_id: int) -> str:
        return f"{self.arm.name}-{trial_id}"

    def job(self, trial: Trial) -> Job:
        return Job(
            name=self.name(trial.id),
            arch=trial.arch,
            epochs=trial.resource,
            resume=None if trial.resume is None else self.name(self.arm.weights_of(trial.resume)),
            full_epochs=trial.resource if _from_scratch(trial) else None,
            save_above=float("-inf") if self.continuable(trial) else self.bar(trial),
            metric=self.search.objectives[0].metric,
            seconds=self.search.config.trial_seconds,
        )

    def continuable(self, trial: Trial) -> bool:
        """Whether a later trial may resume this one."""
        return not (self.arm.complete(trial) or _from_scratch(trial))

    def bar(self, trial: Trial) -> float | None:
        """The score from which on a trial would be the best so far; None if it cannot be or nobody wants it."""
        best, first = self.arm.best, self.search.objectives[0]
        if self.arm.name != "search" or (best and self.arm.resource(trial) < self.arm.resource(best)):
            return None
        if best and first.mode == "max" and self.arm.resource(trial) == self.arm.resource(best):
            return best.metrics.get(first.metric, float("-inf"))
        return float("-inf")

    def told(self, trial: Trial) -> None:
        dropped: Trial | None = trial
        if self.arm.best is trial:
            dropped, self.kept = self.kept, trial
        if dropped is not None and not self.continuable(dropped):
            self.search.run.checkpoints.delete(self.name(dropped.id))
        if trial.ok and self.continuable(trial) and self.arm.weights_of(trial.id) == trial.id:
            self.partial.add(trial.id)
        self._drop_what_none_continues()

    def _drop_what_none_continues(self) -> None:
        resumable = self.arm.strategy.resumable() if self.partial else None
        if resumable is None:
            return
        wanted = resumable | {t.resume for t in self.arm.pending.values() if t.resume is not None}
        best = set() if self.arm.best is None else {self.arm.best.id}
        useless = self.partial - {self.arm.weights_of(i) for i in wanted | best}
        if useless:
            self.search.run.journal.flush()  # what is deleted must not be asked for again after a kill
        for i in useless:
            self.search.run.checkpoints.delete(self.name(i))
        self.partial -= useless
        self.arm.gone |= useless


def _from_scratch(trial: Trial) -> bool:
    """Whether it is trained with a schedule over its own epochs, not as the start of a full training."""
    return bool((trial.info or {}).get("from_scratch"))
