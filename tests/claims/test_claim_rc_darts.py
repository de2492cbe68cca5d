"""The claim about RC-DARTS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import rc_darts as claim
from archipel.claims.harness import Table
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import Recipe


def test_arms_are_measured_at_every_budget(monkeypatch):
    monkeypatch.setattr(claim, "SCHEDULE", Schedule(epochs=1, batch_size=100, alpha_lr=0.1))
    monkeypatch.setattr(claim, "RECIPE", Recipe(epochs=1, batch_size=200))
    monkeypatch.setattr(claim, "RANDOM_NETWORKS", 1)
    monkeypatch.setattr(claim, "BUDGETS", (0.2,))
    claim._trained.cache_clear()
    found = {a: claim.measure(a, {}, 0).figures for a in (claim.RC, "penalty λ=1", claim.RANDOM)}
    claim._trained.cache_clear()
    assert found[claim.RC]["over 20%"] <= 1.0
    assert found[claim.RC]["expected 20%"] <= 1.0 + 1e-6
    assert found[claim.RC]["projecting"] > 0.0
    assert 0.5 <= found[claim.RANDOM]["over 20%"] <= 1.0
    assert found["penalty λ=1"]["over 20%"] > 0.0


def table(**changed):
    rows = {}
    for b in claim.BUDGETS:
        rows |= {f"test {b:.0%}": 0.6, f"over {b:.0%}": 0.9, f"expected {b:.0%}": 1.0, f"before {b:.0%}": 1.2}
        rows[f"active {b:.0%}"] = float(b < 0.5)
    arms = {claim.RC: rows | {"projecting": 0.01}, claim.DARTS: {"test": 0.6, "params": 1e5}}
    for a, w in claim.PENALISED.items():
        arms[a] = {f"over {b:.0%}": 1 / (b * (1 + w)) for b in claim.BUDGETS}
    arms[claim.RANDOM] = {f"test {b:.0%}": 0.5 for b in claim.BUDGETS}
    for arm, figures in changed.items():
        arms[{"RC": claim.RC, "random": claim.RANDOM}.get(arm, arm)] |= figures
    return Table({a: [f] * 3 for a, f in arms.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"RC": {"over 40%": 1.01}}, [0]),
        ({"RC": {"expected 70%": 1.01}}, [1]),
        ({a: {"over 20%": 1.0, "over 40%": 0.9, "over 70%": 0.6} for a in claim.PENALISED}, [2]),
        ({"random": {"test 20%": 0.7}}, [3]),
        ({"random": {"test 40%": 0.7}}, [4]),
        ({"random": {"test 70%": 0.7}}, [5]),
        ({"DARTS": {"params": 100.0}}, [6]),
        ({"RC": {f"before {b:.0%}": 0.9 for b in claim.BUDGETS}}, [7]),
        ({"RC": {"active 70%": 2.0}}, [8]),
        ({"RC": {"projecting": 0.2}}, [9]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
