"""The claim about sharpDARTS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import sharpdarts as claim
from archipel.claims.harness import Table
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    small = {
        "EPOCHS": 1,
        "BATCH": 50,
        "TIMED": 1,
        "CHANNELS": (2, 4),
        "LAYERS": 2,
        "RANDOM_PATHS": 2,
        "POWERS": (2,),
        "CELL_C": 2,
        "CELL_NODES": 1,
    }
    for name, value in {**small, "RECIPE": Recipe(epochs=1, batch_size=200)}.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(claim, "_by_hand", lambda: claim._space().path([2, 4, 4], ["sharp_sep_conv"] * 2))
    claim._space.cache_clear(), claim._once.cache_clear()
    yield
    claim._space.cache_clear(), claim._once.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured():
    found = {arm: claim.measure(arm, {}, 0).figures for arm in (claim.MAX_W, claim.RANDOM, claim.HAND)}
    assert all(0 <= f["test"] <= 1 for f in found.values())
    assert found[claim.MAX_W]["value"] >= found[claim.MAX_W]["value top-down"]
    assert found[claim.HAND]["loss p=2"] > 0
    assert found[claim.HAND]["kMACs sharp-darts"] > found[claim.HAND]["kMACs darts"]  # dilated ones are as deep


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: arm -> figures."""
    searched = {
        "value": 1.0,
        "value bottom-up": 0.9,
        "value top-down": 0.8,
        "test bottom-up": 0.6,
        "test top-down": 0.6,
    }
    arms = {
        claim.MAX_W: {"test": 0.8, **searched},
        claim.DETACHED: {"test": 0.82, **searched},
        claim.SCALAR: {"test": 0.7, **searched},
        claim.RANDOM: {"test": 0.5, "between paths": 0.1},
        claim.HAND: {"test": 0.75, "loss p=1": 0.5, "loss p=2": 0.4, "loss p=10": 0.3},
    }
    costs = {"kMACs": 2.0, "ms": 3.0, "ms/op": 1.0}
    arms[claim.HAND] |= {f"{c} {o}": v * (1 + (o == "darts")) for c, v in costs.items() for o in claim.OPERATIONS}
    for arm, figures in changed.items():
        arms[arm] |= figures
    return Table({a: [{**f, "test": f["test"] + d} for d in (-0.01, 0.0, 0.01)] for a, f in arms.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({claim.MAX_W: {"test": 0.65}}, [0, 5]),
        ({claim.MAX_W: {"test": 0.505, "test top-down": 0.7}}, [0, 1, 5, 7]),
        ({claim.SCALAR: {"test": 0.505}}, [2]),
        ({claim.SCALAR: {"value top-down": 1.1}}, [3]),
        ({claim.SCALAR: {"test": 0.78}}, [4]),
        ({claim.DETACHED: {"test": 0.7}}, [6]),
        ({claim.HAND: {"loss p=10": 0.45}}, [8]),
        ({claim.HAND: {"ms/op sharp": 3.0}}, [9]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
