"""The claim of BMTAS: checks that can hold and fail, and one measurement at a smaller scale."""

from __future__ import annotations

from archipel.claims import bmtas
from archipel.claims.bmtas import CLAIM, WEIGHTS, arm_of
from archipel.claims.harness import Table


def table(costs, expected):
    rows = {a.name: [{"test": 0.5, "cost": 10.0, "expected": 9.0, "coin alone from": 4.0}] * 3 for a in CLAIM.arms}
    for w, c, e in zip(WEIGHTS, costs, expected):
        rows[arm_of(w)] = [{"test": 0.5, "cost": c, "expected": e, "coin alone from": 4.0}] * 3
    return Table(rows)


def test_asserted_checks_hold_and_fail():
    asserted = [c.test for c in CLAIM.checks if c.asserted]
    assert all(test(table([12, 11, 8, 4], [14, 13, 10, 4]))[0] for test in asserted)
    assert not any(test(table([4, 4, 4, 5], [14, 10, 13, 4]))[0] for test in asserted)


def test_a_measurement(monkeypatch):
    monkeypatch.setattr(bmtas, "EPOCHS", 1)
    monkeypatch.setattr(bmtas, "RETRAIN", 1)
    figures = bmtas.measure(arm_of(0.1), {}, 0).figures
    assert {"test", "cost", "expected", "coin alone from"} <= set(figures)
    assert 4 <= figures["cost"] <= 16
