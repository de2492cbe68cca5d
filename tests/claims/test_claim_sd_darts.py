"""The claim about SD-DARTS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest

from archipel.claims import micro
from archipel.claims import sd_darts as claim
from archipel.claims.harness import Table
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    monkeypatch.setattr(claim, "SCHEDULE", replace(claim.SCHEDULE, epochs=2, batch_size=200))
    monkeypatch.setattr(claim, "alpha_curvature", partial(claim.alpha_curvature, products=1))
    monkeypatch.setattr(claim, "micro_space", partial(micro.micro_space, C=2))
    monkeypatch.setattr(micro, "RECIPE", Recipe(epochs=1, batch_size=200))
    for cached in (micro._retrained, claim.taught):
        cached.cache_clear()
    yield
    for cached in (micro._retrained, claim.taught):
        cached.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured_and_smoothing_matches_the_entropy_of_the_vote():
    found = {arm: claim.measure(arm, {}, 0).figures for arm in (claim.THREE, claim.SMOOTH)}
    assert all(0 <= f["test"] <= 1 and f["sharpness"] > 0 and math.isfinite(f["curvature"]) for f in found.values())
    s = found[claim.SMOOTH]["smoothing"]
    top, rest = 1 - 0.9 * s, 0.1 * s
    entropy = -top * math.log(top) - 9 * rest * math.log(rest)
    assert entropy == pytest.approx(found[claim.THREE]["target entropy"], rel=1e-6)


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: (arm, figure) -> value."""
    base = {"test": 0.6, "sharpness": 0.05, "curvature": 0.1, "gap": 0.1, "teacher entropy": 1.5}
    arms = {a: dict(base) for a in (claim.THREE, claim.ONE, claim.SHARP)}
    arms[claim.DARTS] = base | {"sharpness": 0.08, "curvature": 0.2, "gap": 0.2}
    arms[claim.SMOOTH] = base | {"sharpness": 0.06}
    arms[claim.RANDOM], arms[claim.CONV] = {"test": 0.4}, {"test": 0.5}
    for key, value in changed.items():
        arm, figure = key.split("__")
        arms[getattr(claim, arm)][figure] = value
    return Table({a: [f | {"test": f["test"] + d} for d in (-0.01, 0.0, 0.01)] for a, f in arms.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"THREE__sharpness": 0.09}, [0, 3]),
        ({"ONE__sharpness": 0.09}, [1]),
        ({"THREE__test": 0.4}, [2, 9]),
        ({"SHARP__sharpness": 0.07}, [4]),
        ({"THREE__gap": 0.3}, [5]),
        ({"THREE__curvature": 0.3}, [6]),
        ({"THREE__teacher entropy": 2.25}, [7]),
        ({"SHARP__teacher entropy": 2.25}, [8]),
    ],
    ids=str,
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
