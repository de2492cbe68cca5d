"""Trials in flight: what happens when a worker dies, or hangs beyond its trial's limit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait

from archipel.core.errors import RunError
from archipel.search.executors import Crew
from archipel.search.strategy import Trial
from archipel.search.worker import Job, Outcome

# A worker that dies takes its trial with it; the trial is tried again this often before it counts as failed.
ATTEMPTS = 3
# Beyond its time limit a trial gets this long (its worker may still have to start) before the worker is ended.
HANG_GRACE_SECONDS = 20.0


class Flights:
    """Trials in flight, and what to do when a worker dies or hangs."""

    def __init__(self, crew: Crew, make_job: Callable[[Trial], Job]) -> None:
        self.crew = crew
        self.make_job = make_job
        self.futures: dict[Future[Outcome], Trial] = {}
        self.limits: dict[int, float] = {}
        self.attempts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.futures)

    def launch(self, trial: Trial) -> None:
        job = self.make_job(trial)
        try:
            future = self.crew.submit(job)
        except Exception:  # the pool broke since we last looked
            if not self.crew.replaceable:
                raise
            self.crew.replace()
            future = self.crew.submit(job)
        self.futures[future] = trial
        if job.seconds is not None:
            # The worker ends its trial itself; if it cannot even do that, we end the worker.
            self.limits[trial.id] = time.monotonic() + 1.5 * job.seconds + HANG_GRACE_SECONDS

    def landed(self) -> list[tuple[Trial, Outcome]]:
        """Wait for at least one trial; finished ones in the order of their ids."""
        while True:
            done, _ = wait(self.futures, timeout=1.0, return_when=FIRST_COMPLETED)
            out, lost = [], []
            for future in done:
                trial = self.futures.pop(future)
                error = future.exception()
                if error is None:
                    outcome = future.result()
                    if outcome.fatal:
                        raise RunError(outcome.fatal)
                    out.append((trial, outcome))
                else:
                    lost.append((trial, error))
            if lost:
                out += self._recover(lost)
            out += self._end_hanging()
            if out:
                return sorted(out, key=lambda pair: pair[0].id)

    def _recover(self, lost: list[tuple[Trial, BaseException]]) -> list[tuple[Trial, Outcome]]:
        """Try trials again whose worker died; give up on one after a few attempts."""
        if self.crew.replaceable:
            lost += [(trial, RuntimeError("its pool broke")) for trial in self.futures.values()]
            self.futures.clear()
            self.crew.replace()
        failed = []
        for trial, error in sorted(lost, key=lambda pair: pair[0].id):
            self.attempts[trial.id] = self.attempts.get(trial.id, 0) + 1
            if self.attempts[trial.id] >= ATTEMPTS:
                reason = f"worker died {ATTEMPTS} times ({type(error).__name__}: {error}); out of memory?"
                failed.append((trial, Outcome(failure=reason)))
            else:
                self.launch(trial)
        return failed

    def _end_hanging(self) -> list[tuple[Trial, Outcome]]:
        now = time.monotonic()
        hanging = {f: t for f, t in self.futures.items() if self.limits.get(t.id, math.inf) < now}
        if not hanging:
            return []
        out = [(t, Outcome(failure="timeout: the trial hung and its worker was ended")) for t in hanging.values()]
        others = [t for f, t in self.futures.items() if f not in hanging]
        self.futures.clear()
        if self.crew.replaceable:
            self.crew.replace()
        for trial in others:
            self.launch(trial)
        return out
