"""The claim about BNAS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import bnas as claim
from archipel.claims.harness import Table
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    monkeypatch.setattr(claim, "SCHEDULE", Schedule(epochs=4, batch_size=200, optimizer="adam"))
    monkeypatch.setattr(claim, "RECIPE", Recipe(epochs=1, batch_size=200))
    monkeypatch.setattr(claim, "C", 4)
    claim._retrained.cache_clear()
    yield
    claim._retrained.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured():
    found = claim.measure(claim.BNAS, {}, 0).figures
    assert 0 <= found["test"] <= 1
    assert found["networks"] == 24
    assert found["bits"] <= found["twin bits"]
    assert claim.measure(claim.CONV, {}, 0).figures["bits"] > 0


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: (arm, figure) -> value."""
    figures = {
        claim.BNAS: {"test": 0.52, "bits": 1e4, "twin bits": 9e4, "twin test": 0.65, "networks": 24, "seconds": 5},
        claim.ARGMAX: {"test": 0.5, "bits": 1e4, "seconds": 9},
        claim.RANDOM: {"test": 0.36, "bits": 9e3},
        claim.CONV: {"test": 0.5, "bits": 2e4},
    }
    for key, value in changed.items():
        arm, figure = key.split("__")
        figures[getattr(claim, arm)][figure.replace("_", " ")] = value
    return Table({a: [{**f, "test": f["test"] + d} for d in (-0.01, 0.0, 0.01)] for a, f in figures.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"RANDOM__test": 0.51}, [0, 4]),
        ({"BNAS__networks": 30}, [1]),
        ({"BNAS__twin_bits": 3e4}, [2]),
        ({"ARGMAX__test": 0.55}, [3]),
        ({"CONV__test": 0.6}, [5]),
        ({"BNAS__twin_test": 0.5}, [6]),
        ({"BNAS__seconds": 10}, [7]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
