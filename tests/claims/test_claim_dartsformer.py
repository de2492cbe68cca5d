"""The claim about DARTSformer: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import dartsformer as claim
from archipel.claims.harness import Table
from archipel.search.differentiable.dartsformer import InverseSqrt
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    small = {
        "RECIPE": Recipe(epochs=1, batch_size=16),
        "SEARCH": InverseSqrt(epochs=1, batch_size=16, rise=1),
        **{"TRAIN": 32, "VAL": 8, "TEST": 8, "LENGTH": 4, "RANDOM_ARCHS": 2},
        **{"DEPTHS": (2, 4), "WIDE": 16, "LONG": 4, "BATCH": 2, "TIMED": 1},
    }
    for name, value in small.items():
        monkeypatch.setattr(claim, name, value)
    claim._strings.cache_clear()
    yield
    claim._strings.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured():
    found = {arm.name: claim.measure(arm.name, {}, 0).figures for arm in claim.CLAIM.arms}
    assert all(0 <= found[a]["test"] <= 1 for a in (claim.SEARCHED, claim.BLOCK, claim.RANDOM))
    flat, ordinary, checkpoints = (found[a] for a in (claim.FLAT, claim.ORDINARY, claim.CHECKPOINTS))
    assert flat["kB L=2"] == flat["kB L=4"] < checkpoints["kB L=4"] < ordinary["kB L=4"]
    assert all(f["ms"] > 0 for f in (flat, ordinary, checkpoints))


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: arm -> figures."""
    arms = {
        claim.FLAT: {**{f"kB L={d}": 10.0 for d in claim.DEPTHS}, "ms": 13.0},
        claim.ORDINARY: {**{f"kB L={d}": 5.0 + 100.0 * d for d in claim.DEPTHS}, "ms": 10.0},
        claim.CHECKPOINTS: {**{f"kB L={d}": 5.0 + 10.0 * d for d in claim.DEPTHS}, "ms": 14.0},
        claim.SEARCHED: {"test": 0.9},
        claim.BLOCK: {"test": 0.8},
        claim.RANDOM: {"test": 0.5, "between": 0.2},
    }
    for arm, figures in changed.items():
        arms[arm] |= figures
    return Table({a: [{**f, "test": f.get("test", 0.0) + d} for d in (-0.01, 0.0, 0.01)] for a, f in arms.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({claim.FLAT: {"kB L=16": 11.0}}, [0]),
        ({claim.ORDINARY: {"kB L=16": 900.0}}, [1]),
        ({claim.SEARCHED: {"test": 0.7}}, [2]),
        ({claim.SEARCHED: {"test": 0.505}}, [2, 3]),
        ({claim.CHECKPOINTS: {"kB L=16": 90.0}}, [4]),
        ({claim.FLAT: {"ms": 30.0}}, [5]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
