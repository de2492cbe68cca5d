"""Trials per second with two local workers against one, and what a trial costs outside its training.

Real trials, as ``archipel search`` runs them: random architectures of the elastic convolutional space, each trained on
the digits for an epoch, judged, checkpointed if best, recorded. The same architectures with one and with two
workers. Workers are started, and have run a trial, before the clock starts; their start is reported by itself.

    overhead per trial = (wall-clock seconds of the search - seconds its trials took in their worker) / trials

with one worker: proposal, costs, sending the job, waiting for and receiving its outcome, the journal on disk.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measure import Figures, side_by_side

from archipel.core.run import RunFolder
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.config import Budget, SearchConfig
from archipel.search.driver import Search, make_parts
from archipel.search.training import Recipe
from archipel.search.worker import Job

TRIALS, EPOCHS, ROUNDS = 32, 1, 5


@dataclass(frozen=True)
class Measured:
    """One search."""

    workers: int
    start_seconds: float
    search_seconds: float
    trial_seconds: float


def search_with(workers: int) -> Measured:
    """Evaluate the same random architectures with so many local workers."""
    config = SearchConfig(
        data="digits",
        space="mobile",
        strategy="random",
        budget=Budget(trials=TRIALS),
        recipe=Recipe(epochs=EPOCHS),
        workers=workers,
        executor="local",
        baseline=0.0,
    )
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(Path(folder) / "run", config.as_dict()) as run:
        search = Search(config, run, make_parts(config, strategy=RandomSearch()))
        problem = search.problem("benchmark")
        strategy = search.parts.strategy
        strategy.setup(problem)
        started = time.perf_counter()
        arch = problem.sample()
        jobs = [search.crew.submit(Job(f"warm-{i}", arch, epochs=EPOCHS)) for i in range(workers)]
        outcomes = [job.result() for job in jobs]
        start = time.perf_counter() - started - max(o.seconds for o in outcomes)
        started = time.perf_counter()
        arm = search.run_arm("search", strategy, problem, config.budget)
        spent = time.perf_counter() - started
        search.crew.close()
    failures = [o.failure for o in outcomes if o.failure] + [t.failure for t in arm.trials if t.failure]
    assert not failures, failures
    assert len(arm.trials) == TRIALS, f"{len(arm.trials)} trials instead of {TRIALS}"
    assert not arm.ledger.cached, "a repeated architecture would be no trial"
    return Measured(workers, start, spent, arm.ledger.trial_seconds)


def main() -> None:
    settings = {"trials": TRIALS, "epochs": EPOCHS, "data": "digits", "space": "mobile", "threads": 1}
    figures = Figures("workers", __doc__.splitlines()[0], settings)
    _, found = side_by_side({"one": lambda: search_with(1), "two": lambda: search_with(2)}, ROUNDS, warm_up=False)
    one, two = found["one"], found["two"]
    for name, runs in (("one worker", one), ("two workers", two)):
        figures.row(name, [TRIALS / m.search_seconds for m in runs], "trials/s")
        figures.row(f"{name}: a trial", [1e3 * m.trial_seconds / TRIALS for m in runs], "ms")
        figures.row(f"{name}: start, once one was started before", [m.start_seconds for m in runs[1:]] or [0.0], "s")
    figures.row("start of the first worker", [one[0].start_seconds], "s")
    overhead = [1e3 * (m.search_seconds - m.trial_seconds) / TRIALS for m in one]
    figures.row("overhead per trial outside training", overhead, "ms")
    figures.ratio("two workers / one worker", [a.search_seconds / b.search_seconds for a, b in zip(one, two)], ">= 1.7")
    figures.ratio("ms of overhead per trial", overhead, "<= 20")
    if (os.cpu_count() or 1) < 2:
        figures.record["settings"]["note"] = "fewer than two cores"
    figures.save()


if __name__ == "__main__":
    main()
