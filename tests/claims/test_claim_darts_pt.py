"""The claim about DARTS-PT: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from archipel.claims import darts_pt as claim
from archipel.claims import micro
from archipel.claims.harness import Table
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    monkeypatch.setattr(claim, "SCHEDULE", Schedule(epochs=1, batch_size=200))
    monkeypatch.setattr(claim, "TUNE", 1)
    monkeypatch.setattr(micro, "RECIPE", Recipe(epochs=1, batch_size=200))
    monkeypatch.setattr(micro, "RANDOM_CELLS", 2)
    micro._retrained.cache_clear()
    yield
    micro._retrained.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured():
    found = {arm: claim.measure(arm, {}, 0).figures for arm in (claim.PT, claim.RANDOM)}
    assert all(0 <= f["test"] <= 1 for f in found.values())
    assert found[claim.PT]["evaluations"] == 30
    assert -1 <= found[claim.PT]["rho"] <= 1
    assert 0 <= found[claim.PT]["supernet"] <= 1


def test_agreement_is_one_where_weights_order_removals_and_zero_where_all_are_equal():
    def record(accuracy, loss):
        labels = "abc"
        entry = {"weights": [0.2, 0.3, 0.5], "accuracy": dict(zip(labels, accuracy)), "loss": dict(zip(labels, loss))}
        return SimpleNamespace(record=[entry])

    assert claim.agreement(record([0.9, 0.8, 0.1], [1.0, 2.0, 3.0])) == {"rho": 1.0, "rho of loss": 1.0}
    assert claim.agreement(record([0.5, 0.5, 0.5], [3.0, 2.0, 1.0])) == {"rho": 0.0, "rho of loss": -1.0}


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: (arm, figure) -> value."""
    figures = {
        claim.PT: {"test": 0.6, "supernet": 0.5, "without weights": 1, "seconds": 9, "rho": 0.3, "rho of loss": 0.2},
        claim.BLANK: {"test": 0.6, "supernet": 0.5, "without weights": 1, "seconds": 9},
        claim.ARGMAX: {"test": 0.55, "supernet": 0.4, "without weights": 3, "seconds": 5},
        claim.RANDOM: {"test": 0.35, "between cells": 0.15},
        claim.CONV: {"test": 0.59, "seconds": 1},
    }
    figures[claim.PT]["evaluations"] = 30
    for key, value in changed.items():
        arm, figure = key.split("__")
        figures[getattr(claim, arm)][figure.replace("_", " ")] = value
    return Table({a: [{**f, "test": f["test"] + d} for d in (-0.01, 0.0, 0.01)] for a, f in figures.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"PT__rho": 1.0}, [0]),
        ({"ARGMAX__test": 0.65}, [1]),
        ({"ARGMAX__without_weights": 1}, [2]),
        ({"RANDOM__test": 0.6}, [3, 7]),
        ({"PT__rho_of_loss": 1.0}, [4]),
        ({"PT__supernet": 0.3}, [5]),
        ({"BLANK__test": 0.4}, [6]),
        ({"CONV__test": 0.7}, [8]),
        ({"PT__seconds": 50}, [9]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
