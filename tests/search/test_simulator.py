"""The virtual clock: order of events, idling, early stops, resumed trials, failures, budgets."""

from __future__ import annotations

import math
from collections import deque
from random import Random

import numpy as np
import pytest

from archipel.core.decision import Decision, Real
from archipel.core.errors import UsageError
from archipel.core.space import Space
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.schedulers import ReportingStrategy
from archipel.search.simulator import CurveTable, TrialFailure, simulate
from archipel.search.strategy import Objective, Problem, Strategy

LOSS = Objective("loss", "min")


def problem(max_resource=1, seed=0):
    return Problem(Space([Real("x", 0.0, 1.0)]), [LOSS], Random(seed), max_resource=max_resource)


class Script(Strategy):
    """Asks for given (x, resource, resume); None means: wait for the next outcome."""

    def __init__(self, *script):
        self.script = deque(script)

    def setup(self, problem):
        super().setup(problem)
        self.told = []
        self.asked_at = []

    def ask(self):
        self.asked_at.append(len(self.told))
        if self.script and self.script[0] is None:
            if len(self.told) == self._next_id:
                self.script.popleft()
            else:
                return None
        x, resource, resume = self.script.popleft()
        return self.new_trial({"x": x}, resource, resume)

    def tell(self, trial):
        self.told.append(trial)

    @property
    def finished(self):
        return not self.script


class StopAt(ReportingStrategy):
    """Stops each trial after a number of epochs given by its x."""

    def ask(self):
        return self.new_trial(self.problem.sample())

    def setup(self, problem):
        super().setup(problem)
        self.reports, self.told = [], []

    def report(self, trial, resource, metrics):
        self.reports.append((trial.id, resource))
        return resource < 1 + int(4 * trial.arch["x"])

    def tell(self, trial):
        self.told.append(trial)


def x_as_loss(arch, resource):
    return {"loss": arch["x"] + 1 / resource}


def test_two_workers_interleave_as_worked_by_hand():
    run = simulate(
        Script((3.0, 1, None), (1.0, 1, None), (1.5, 1, None), (0.25, 1, None)),
        problem(),
        x_as_loss,
        lambda arch, epoch: arch["x"],
        workers=2,
        max_trials=9,
    )
    assert [(e.time, e.kind, e.worker, e.trial) for e in run.events] == [
        (0.0, "start", 0, 0),
        (0.0, "start", 1, 1),
        (1.0, "finish", 1, 1),
        (1.0, "start", 1, 2),
        (2.5, "finish", 1, 2),
        (2.5, "start", 1, 3),
        (2.75, "finish", 1, 3),
        (3.0, "finish", 0, 0),
    ]
    assert run.seconds == 3.0
    np.testing.assert_allclose(run.busy_seconds(), [3.0, 2.75])
    np.testing.assert_allclose(run.idle_seconds(), [0.0, 0.25])  # the script had no more
    assert [t.seconds for t in run.trials] == [3.0, 1.0, 1.5, 0.25]


@pytest.mark.parametrize("workers", [1, 4, 7])
def test_no_worker_idles_while_the_strategy_has_proposals(workers):
    run = simulate(RandomSearch(), problem(3), x_as_loss, lambda a, r: 0.5 + a["x"] * r, workers=workers, horizon=50)
    np.testing.assert_allclose(run.idle_seconds(), 0, atol=1e-9)
    for event in run.events:  # whoever ends starts again at the same instant
        if event.kind == "finish" and event.time < 50:
            assert any(e.kind == "start" and e.worker == event.worker and e.time == event.time for e in run.events)


def test_a_strategy_that_waits_leaves_workers_idle_until_the_next_outcome():
    strategy = Script((2.0, 1, None), (1.0, 1, None), None, (1.0, 1, None))
    run = simulate(strategy, problem(), x_as_loss, lambda a, r: a["x"], workers=2, max_trials=5)
    assert [(e.time, e.worker) for e in run.events if e.kind == "start"] == [(0.0, 0), (0.0, 1), (2.0, 1)]
    np.testing.assert_allclose(run.idle_seconds(), [1.0, 1.0])


def test_a_resumed_trial_pays_for_its_further_epochs_only():
    run = simulate(
        Script((0.5, 3, None), None, (0.5, 9, 0)), problem(9), x_as_loss, lambda a, r: float(r), max_trials=2
    )
    assert [t.seconds for t in run.trials] == [1 + 2 + 3, sum(range(4, 10))]
    assert run.epochs() == {0: 9}
    assert [(e.kind, e.resource) for e in run.events] == [("start", 0), ("finish", 3), ("start", 3), ("finish", 9)]


def test_a_reporting_strategy_hears_of_every_epoch_and_stops_trials():
    strategy = StopAt()
    run = simulate(strategy, problem(3), x_as_loss, workers=2, horizon=20)
    ends = {e.trial: e for e in run.events if e.kind in ("stop", "finish")}
    assert {e.kind for e in ends.values()} == {"stop", "finish"}
    for trial in strategy.told:
        reached = min(3, 1 + int(4 * trial.arch["x"]))
        assert ends[trial.id].resource == reached
        assert ends[trial.id].kind == ("stop" if reached < 3 else "finish")
        assert [r for i, r in strategy.reports if i == trial.id] == list(range(1, reached + 1))
        assert trial.metrics == x_as_loss(trial.arch, reached)
        assert trial.seconds == reached


def test_asynchronous_evolution_chooses_parents_before_their_siblings_return():
    class Latest(Strategy):
        def setup(self, problem):
            super().setup(problem)
            self.told = 0
            self.known_at_dispatch = {}

        def ask(self):
            trial = self.new_trial(self.problem.sample())
            self.known_at_dispatch[trial.id] = self.told
            return trial

        def tell(self, trial):
            self.told += 1
            trial.info = {"staleness": self.told - 1 - self.known_at_dispatch[trial.id]}

    for workers in (1, 16):
        run = simulate(Latest(), problem(), x_as_loss, workers=workers, max_trials=200)
        staleness = [t.info["staleness"] for t in run.trials[:-workers]]
        assert staleness[workers:] == [workers - 1] * len(staleness[workers:])  # equal durations: W − 1 others finish


def test_equal_seeds_give_equal_events():
    runs = [simulate(RandomSearch(), problem(3, seed=5), x_as_loss, 1.0, workers=4, horizon=30) for _ in range(2)]
    assert runs[0].events == runs[1].events


def test_failures_and_nan_are_recorded_with_their_reason_and_the_search_goes_on():
    def evaluate(arch, resource):
        if arch["x"] < 0.3:
            raise TrialFailure("out of memory")
        return {"loss": math.nan if arch["x"] > 0.7 else arch["x"]} if arch["x"] < 0.9 else {}

    run = simulate(RandomSearch(), problem(), evaluate, workers=2, max_trials=60)
    reasons = {t.failure for t in run.trials}
    assert reasons == {None, "out of memory", "loss is NaN after epoch 1"}
    assert all(bool(t.metrics) == (t.failure is None) for t in run.trials)
    assert sum(e.kind == "fail" for e in run.events) == sum(t.failure is not None for t in run.trials)


def test_at_the_horizon_running_trials_are_left_without_outcome():
    run = simulate(RandomSearch(), problem(), x_as_loss, 2.0, workers=2, horizon=5)
    assert run.seconds == 5
    assert [t.ok for t in run.trials] == [True] * 4 + [False] * 2
    assert max(e.time for e in run.events) == 4.0
    np.testing.assert_allclose(run.busy_seconds(), [5, 5])


def test_best_so_far_uses_only_what_was_reported_by_then():
    run = simulate(Script((0.5, 3, None), (0.0, 3, None)), problem(3), x_as_loss, 1.0, max_trials=2, every_epoch=True)
    best = run.best_so_far(LOSS, [0.5, 1, 2, 3.9, 4, 6])
    np.testing.assert_allclose(best, [-math.inf, -1.5, -1.0, -(0.5 + 1 / 3), -(0.5 + 1 / 3), -1 / 3])
    np.testing.assert_allclose(run.best_so_far(LOSS, [2, 3, 6], min_resource=3), [-math.inf, -0.5 - 1 / 3, -1 / 3])


def test_a_curve_table_serves_values_seconds_and_membership():
    space = Space([Decision("op", ["conv", "skip", "pool"])])
    final = {"conv": 0.1, "skip": 0.4}
    rows = {space.canonical({"op": o}): {"loss": [0.9, c], "seconds": [1.0, 2.0]} for o, c in final.items()}
    table = CurveTable(space, rows)
    p = Problem(space, [LOSS], feasible=table.__contains__, max_resource=2)
    run = simulate(RandomSearch(), p, table.evaluate, table.seconds, max_trials=20)
    assert {t.arch["op"]: t.metrics["loss"] for t in run.trials} == final
    assert run.seconds == 60.0
    with pytest.raises(UsageError, match=r"table of 2 curves has none for .*pool"):
        table.evaluate({"op": "pool"}, 1)
    with pytest.raises(UsageError, match=r"does not reach epoch 3 of .*conv"):
        table.evaluate({"op": "conv"}, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "would never end"),
        ({"workers": 0, "horizon": 1}, "at least one"),
        ({"horizon": 0}, "must be positive"),
        ({"max_trials": 0}, "must be positive"),
        ({"horizon": 9, "seconds": 0.0}, r"Epoch 1 of .* lasts 0.0 seconds"),
        ({"horizon": 9, "seconds": math.nan}, "lasts nan seconds"),
    ],
)
def test_budgets_and_durations_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        simulate(RandomSearch(), problem(), x_as_loss, **settings)


def test_a_strategy_that_resumes_what_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="Trial 0 resumes trial 7, which left no checkpoint"):
        simulate(Script((0.5, 3, 7)), problem(9), x_as_loss, max_trials=1)
    with pytest.raises(UsageError, match="Trial 1 asks for 3 epochs, but resumes after 3"):
        simulate(Script((0.5, 3, None), None, (0.5, 3, 0)), problem(9), x_as_loss, max_trials=2)


def test_a_strategy_that_proposes_nothing_with_nothing_pending_is_a_defect():
    class Silent(Strategy):
        def ask(self):
            return None

    with pytest.raises(RuntimeError, match="Silent proposed nothing"):
        simulate(Silent(), problem(), x_as_loss, max_trials=1)


def test_reports_cannot_be_withheld_from_a_strategy_that_needs_them():
    strategy = StopAt()
    strategy.needs_reports = True
    with pytest.raises(UsageError, match="StopAt stops trials by their reports"):
        simulate(strategy, problem(3), x_as_loss, max_trials=1, every_epoch=False)
