"""The claim of FBNetV5: checks that can hold and fail, and measurements at a smaller scale."""

from __future__ import annotations

from archipel.claims import fbnetv5 as module
from archipel.claims.fbnetv5 import ALONE, CLAIM, COUNTS, FLIPS, JOINT, RANDOM, SHARED_BUDGET
from archipel.claims.harness import Table


def table(values):
    cells = [f"T={T} f={f}" for T in COUNTS for f in FLIPS]
    return Table({a.name: [dict.fromkeys(cells, values.get(a.name, 1.0))] * 3 for a in CLAIM.arms})


def test_asserted_checks_hold_and_fail():
    asserted = [c.test for c in CLAIM.checks if c.asserted]
    right = table({JOINT: 0.3, ALONE: 0.2, SHARED_BUDGET: 2.0, RANDOM: 5.0})
    assert all(test(right)[0] for test in asserted)
    wrong = table({JOINT: 6.0, ALONE: 0.2, SHARED_BUDGET: 2.0, RANDOM: 5.0})
    assert not any(test(wrong)[0] for test in asserted)


def test_measurements(monkeypatch):
    monkeypatch.setattr(module, "EVALUATIONS", 60)
    monkeypatch.setattr(module, "EPOCHS", 6)
    monkeypatch.setattr(module, "RETRAIN", 1)
    monkeypatch.setattr(module, "RANDOM_MASKS", 1)
    module.searched.cache_clear()
    module.retrained.cache_clear()
    try:
        assert "digits test" in module.measure(JOINT, {}, 0).figures
        assert "digits test" in module.measure(RANDOM, {}, 0).figures
        found = module.measure(SHARED_BUDGET, {}, 5).figures
        assert set(found) == {f"T={T} f={f}" for T in COUNTS for f in FLIPS}
    finally:
        module.searched.cache_clear()
        module.retrained.cache_clear()
