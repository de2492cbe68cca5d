"""The claim of NeuralArTS is well-formed, and its checks tell right from wrong."""

from __future__ import annotations

from archipel.claims import neuralarts
from archipel.claims.harness import Table
from archipel.claims.neuralarts import ARMS, CLAIM


def table(**changes):
    row = {"test of best": 0.7, "best": 0.7, "mean": 0.5, "broken": 0.0, "badly typed": 0.0, "type errors": 0.0}
    figures = {a: [dict(row) for _ in range(3)] for a in ARMS}
    for arm, name, value in changes.values():
        figures[arm][1][name] = value
    return Table(figures)


def test_the_checks_hold_where_nothing_breaks_and_fail_where_something_does():
    right, runs = (c.test for c in CLAIM.checks if c.asserted)
    assert right(table())[0]
    assert runs(table())[0]
    assert not right(table(a=("base space, random", "type errors", 1.0)))[0]
    assert not runs(table(a=("typed space, REINFORCE", "broken", 1.0)))[0]
    assert not runs(table(a=("typed space, REINFORCE", "badly typed", 1.0)))[0]


def test_one_arm_measures_what_the_checks_read(monkeypatch):
    monkeypatch.setattr(neuralarts, "EVALUATIONS", 2)
    monkeypatch.setattr(neuralarts, "PAIRS", 20)
    monkeypatch.setattr(neuralarts, "RECIPE", neuralarts.RECIPE.with_hyper({"epochs": 1}))
    for arm in ("typed space, REINFORCE", "base space, random"):
        figures = neuralarts.measure(arm, {}, 0).figures
        assert set(figures) == {"test of best", "best", "mean", "broken", "badly typed", "type errors"}
        assert figures["type errors"] == 0
