"""The claim about D-DARTS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from archipel.claims import d_darts as claim
from archipel.claims.harness import Table
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    monkeypatch.setattr(claim, "SCHEDULE", replace(claim.SCHEDULE, epochs=1, batch_size=200))
    monkeypatch.setattr(claim, "RECIPE", Recipe(epochs=1, batch_size=400))
    monkeypatch.setattr(claim, "operation_accuracy", lambda: (0.2, 0.3, 0.6, 0.2))


@pytest.mark.usefixtures("_shrunken")
def test_shared_cells_are_alike_and_others_have_gates_of_their_own():
    found = {arm: claim.measure(arm, {}, 0).figures for arm in (claim.SHARED, claim.GRADIENT)}
    assert found[claim.SHARED]["distance"] == 0.0
    assert found[claim.GRADIENT]["gates"] > found[claim.SHARED]["gates"]
    assert all(0 <= f["test"] <= 1 and f["ms"] > 0 for f in found.values())


def test_random_networks_have_two_inputs_a_node_where_there_are_two():
    cells = claim.random_cells(Random(0))
    assert [[len(ps) for ps in c.values()] for c in cells] == [[1, 2, 2]] * 3
    assert claim.random_cells(Random(0)) == cells != claim.random_cells(Random(1))


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: arm__figure -> value."""
    base = {"test": 0.6, "distance": 0.3, "decided": 0.8, "gates": 7.0}
    arms = {a: dict(base) for a in claim.ABLATION}
    arms[claim.GRADIENT] |= {"gates": 8.0, "test": 0.62}
    arms[claim.SHARED] |= {"distance": 0.0, "test": 0.5}
    arms[claim.RANDOM] = {"test": 0.4, "distance": 0.5}
    for key, value in changed.items():
        arm, figure = key.split("__")
        arms[getattr(claim, arm)][figure] = value
    return Table({a: [f | {"test": f["test"] + d} for d in (-0.01, 0.0, 0.01)] for a, f in arms.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"OFF__distance": 0.0}, [0]),
        ({"GRADIENT__distance": 0.0}, [1]),
        ({"REPORTED__gates": 7.1}, [2]),
        ({"GRADIENT__gates": 7.0}, [3]),
        ({"OFF__test": 0.4, "REPORTED__test": 0.4}, [4, 7]),
        ({"GRADIENT__test": 0.45}, [5, 6]),
        ({"GRADIENT__decided": 0.1}, [8]),
    ],
    ids=str,
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
