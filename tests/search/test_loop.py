"""The ask/tell loop: budgets, replay, dying and hanging workers."""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from random import Random

import pytest

from archipel.core.decision import Decision
from archipel.core.errors import RunError
from archipel.core.run import Journal
from archipel.core.space import Space
from archipel.search import flights
from archipel.search.blackbox.evolution import RegularizedEvolution
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.config import Budget
from archipel.search.loop import Arm, run_crew, run_table
from archipel.search.strategy import Problem
from archipel.search.worker import Job, Outcome

SPACE = Space([Decision(f"d{i}", [0, 1, 2, 3]) for i in range(5)])


def fitness(arch):
    return {"accuracy": sum(arch.values()) / 15, "epochs": 1.0}


class FakeCrew:
    """A crew over any executor whose jobs run ``evaluate``."""

    replaceable = True

    def __init__(self, evaluate, workers=1):
        self.evaluate, self.workers = evaluate, workers
        self.executor: Executor = ThreadPoolExecutor(workers)
        self.replaced = 0

    def submit(self, job: Job) -> Future:
        return self.executor.submit(self.evaluate, job)

    def replace(self):
        self.replaced += 1
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.executor = ThreadPoolExecutor(self.workers)


def make_arm(path, budget=None, strategy=None, seed=0, key=None):
    problem = Problem(SPACE, rng=Random(seed))
    strategy = strategy or RegularizedEvolution(population=6, sample=3)
    strategy.setup(problem)
    return Arm("search", strategy, problem, budget or Budget(trials=30), Journal(path / "t.sqlite"), key)


def job_of(trial, seconds=None):
    return Job(str(trial.id), trial.arch, seconds=seconds)


def archs(arm):
    return [t.arch for t in sorted(arm.trials, key=lambda t: t.id)]


def test_a_budget_of_trials_epochs_or_seconds_ends_the_loop(tmp_path):
    for i, (budget, low, high) in enumerate(
        [(Budget(trials=7), 7, 7), (Budget(epochs=9), 9, 9), (Budget(seconds=0.2), 1, 10**9)]
    ):
        (tmp_path / str(i)).mkdir()
        arm = make_arm(tmp_path / str(i), budget)
        started = time.monotonic()
        run_table(arm, fitness)
        assert low <= len(arm.trials) <= high
        assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("stop", range(0, 30, 3))
def test_an_interrupted_loop_goes_on_to_the_same_trials_as_an_undisturbed_one(tmp_path, stop):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = make_arm(tmp_path / "a")
    run_table(whole, fitness)

    calls = 0

    def breaks(arch):
        nonlocal calls
        calls += 1
        if calls > stop:
            raise SystemExit
        return fitness(arch)

    first = make_arm(tmp_path / "b")
    with pytest.raises(SystemExit):
        run_table(first, breaks)
    first.journal.close()
    second = make_arm(tmp_path / "b")
    second.replay()
    assert len(second.trials) == stop
    run_table(second, fitness)
    assert archs(second) == archs(whole)
    assert second.best.arch == whole.best.arch
    assert len(list(second.journal.trials("search"))) == 30


def test_unsaved_asks_are_asked_again_and_pending_trials_are_finished_after_a_kill(tmp_path):
    arm = make_arm(tmp_path)
    for _ in range(3):
        trial = arm.ask()
        arm.tell(trial, Outcome(fitness(trial.arch), seconds=1.0))  # over the quick limit: on disk at once
    pending = arm.ask()
    arm.journal.flush()
    unsaved = arm.ask()  # never reaches the disk
    again = make_arm(tmp_path)
    again.replay()
    assert list(again.pending) == [pending.id]
    assert again.pending[pending.id].arch == pending.arch
    assert again.ask().arch == unsaved.arch


def test_resuming_with_another_seed_is_refused_and_names_the_trial(tmp_path):
    arm = make_arm(tmp_path)
    run_table(arm, fitness)
    arm.journal.close()
    other = make_arm(tmp_path, seed=1)
    with pytest.raises(RunError, match="Cannot resume: trial 0 was"):
        other.replay()


def test_equal_networks_are_trained_once(tmp_path):
    seen = []

    def evaluate(job):
        seen.append(tuple(job.arch.values()))
        return Outcome(fitness(job.arch), seconds=0.1)

    arm = make_arm(tmp_path, Budget(trials=60), key=SPACE.canonical)
    run_crew(arm, FakeCrew(evaluate), job_of)
    assert len(arm.trials) == 60
    assert len(seen) == len(set(seen)) == 60 - arm.ledger.cached
    assert arm.ledger.cached > 0


def test_what_can_be_done_meanwhile_is_done_once_for_each_launched_trial_before_it_is_told(tmp_path):
    arm = make_arm(tmp_path, Budget(trials=60), key=SPACE.canonical)
    done = []
    arm.on_told = lambda trial: done.append(("told", trial.id))
    crew = FakeCrew(lambda job: Outcome(fitness(job.arch), seconds=0.1), workers=2)
    run_crew(arm, crew, job_of, meanwhile=lambda trial: done.append(("meanwhile", trial.id)))
    meanwhile = [i for what, i in done if what == "meanwhile"]
    assert len(meanwhile) == len(set(meanwhile)) == 60 - arm.ledger.cached
    assert all(done.index(("meanwhile", i)) < done.index(("told", i)) for i in meanwhile)


def test_a_trial_whose_worker_dies_is_tried_again_and_nothing_else_changes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    calm = make_arm(tmp_path / "a")
    run_crew(calm, FakeCrew(lambda job: Outcome(fitness(job.arch))), job_of)
    died = set()

    def deadly(job):
        if job.name in ("3", "11") and job.name not in died:
            died.add(job.name)
            raise RuntimeError("killed")
        return Outcome(fitness(job.arch))

    arm = make_arm(tmp_path / "b")
    crew = FakeCrew(deadly)
    run_crew(arm, crew, job_of)
    assert crew.replaced == 2
    assert archs(arm) == archs(calm)
    assert arm.ledger.failures == 0


def test_a_trial_that_always_kills_its_worker_fails_with_a_reason_and_the_search_goes_on(tmp_path):
    def deadly(job):
        if job.name == "4":
            raise RuntimeError("killed")
        return Outcome(fitness(job.arch))

    arm = make_arm(tmp_path)
    run_crew(arm, FakeCrew(deadly, workers=2), job_of)
    failed = [t for t in arm.trials if t.failure]
    assert 4 in [t.id for t in failed]
    assert all("worker died 3 times" in t.failure for t in failed)
    assert len(arm.trials) == 30


def test_a_hanging_worker_is_ended_and_its_trial_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(flights, "HANG_GRACE_SECONDS", 0.0)

    def hangs(job):
        if job.name == "2":
            time.sleep(5.0)
        return Outcome(fitness(job.arch))

    arm = make_arm(tmp_path, Budget(trials=5), RandomSearch())
    started = time.monotonic()
    run_crew(arm, FakeCrew(hangs, workers=2), lambda t: job_of(t, seconds=0.2))
    assert time.monotonic() - started < 4.5
    assert [t.id for t in arm.trials if t.failure] == [2]
    assert "hung" in next(t.failure for t in arm.trials if t.failure)


def test_only_fully_trained_trials_compete_for_being_the_best(tmp_path):
    arm = make_arm(tmp_path, strategy=RandomSearch())
    arm.problem.max_resource = 9
    small, full = arm.ask(), arm.ask()
    small.resource = 3
    arm.tell(small, Outcome({"accuracy": 0.9}))
    arm.tell(full, Outcome({"accuracy": 0.5}))
    assert arm.best is full


def test_failures_are_told_recorded_and_never_the_best(tmp_path):
    arm = make_arm(tmp_path, strategy=RandomSearch())
    trial = arm.ask()
    arm.tell(trial, Outcome(failure="NaN: loss is nan", seconds=0.2))
    assert arm.best is None
    assert arm.ledger.failures == 1
    row = next(iter(arm.journal.trials("search")))
    assert row["failure"] == "NaN: loss is nan"
    assert row["metrics"] == {}
