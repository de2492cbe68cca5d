"""The claim about DASS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import dass as claim
from archipel.claims.harness import Table
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    monkeypatch.setattr(claim, "SCHEDULE", Schedule(epochs=2, warmup=1, batch_size=200))
    monkeypatch.setattr(claim, "RECIPE", Recipe(epochs=1, batch_size=200))
    monkeypatch.setattr(claim, "C", 4)
    for f in (claim._trained, claim._sparse):
        f.cache_clear()
    yield
    for f in (claim._trained, claim._sparse):
        f.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured():
    found = claim.measure(claim.DASS, {}, 0).figures
    assert all(0 <= found[f"test {s}%"] <= 1 for s in (0, 95, 98, 99))
    assert found["exact"] == 1.0
    assert found["params"] < found["dense params"]


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: (arm, figure) -> value."""
    figures = {
        claim.DASS: {"t0": 0.71, "t95": 0.65, "t98": 0.59, "t99": 0.55, "macs": 5e4},
        claim.DARTS: {"t0": 0.72, "t95": 0.62, "t98": 0.56, "t99": 0.5, "macs": 5e4},
        claim.CONV: {"t0": 0.74, "t95": 0.65, "t98": 0.6, "t99": 0.47, "macs": 9e4},
        claim.RANDOM: {"t95": 0.51},
    }
    for arm in (claim.DASS, claim.DARTS, claim.CONV):
        figures[arm] |= {"params": 900.0, "dense params": 9e3, "exact": 1.0}
    for key, value in changed.items():
        arm, figure = key.split("__")
        figures[getattr(claim, arm)][figure] = value
    named = {a: {f"test {k[1:]}%" if k[0] == "t" else k: v for k, v in f.items()} for a, f in figures.items()}
    return Table({a: [{**f, "test 95%": f["test 95%"] + d} for d in (-0.01, 0.0, 0.01)] for a, f in named.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"DARTS__t95": 0.7}, [0]),
        ({"RANDOM__t95": 0.64}, [1]),
        ({"DARTS__exact": 0.0}, [2]),
        ({"CONV__t99": 0.6}, [3]),
        ({"DARTS__t98": 0.7}, [4]),
        ({"DARTS__t99": 0.7}, [5]),
        ({"DARTS__t0": 0.6}, [6]),
        ({"CONV__macs": 1e4}, [7]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
