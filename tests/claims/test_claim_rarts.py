"""The claim about RARTS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import micro
from archipel.claims import rarts as claim
from archipel.claims.harness import Table
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    small = {"EPOCHS": 1, "BATCH": 200, "TIMED": 1, "MODEL_STEPS": 3, "PENALTIES": {10: 0.01}, "XIS": (0.5,)}
    for name, value in small.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(micro, "RECIPE", Recipe(epochs=1, batch_size=200))
    monkeypatch.setattr(micro, "RANDOM_CELLS", 2)
    micro._retrained.cache_clear()
    claim.model_figures.cache_clear()
    yield
    micro._retrained.cache_clear()
    claim.model_figures.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured():
    found = {arm: claim.measure(arm, {}, 0).figures for arm in (claim.MODEL, claim.TWO, claim.ONE, claim.RANDOM)}
    assert found[claim.MODEL]["RARTS 10: rises"] == 0
    assert found[claim.MODEL]["RARTS 10: off"] > 1e-4  # three steps do not suffice
    assert all(0 <= f["test"] <= 1 for arm, f in found.items() if arm != claim.MODEL)
    assert found[claim.TWO]["ms"] > 0
    assert "L fell by" not in found[claim.ONE]


TIMES = {claim.TWO: 20.0, claim.STRICT: 40.0, claim.FIRST: 20.0, claim.SECOND: 50.0, claim.ONE: 12.0}


def table(model=None, tests=None, times=None):
    """Three seeds in which everything holds, but for what is changed."""
    names = ("RARTS 10", "RARTS 100", "first order", "joint descent")
    figures = {f"{n}: off": 1e-6 for n in names} | {f"{n}: α": 2.0 for n in names}
    figures |= {"RARTS 10: α": 1.08, "RARTS 100: α": 1.0076, "RARTS 10: rises": 0.0, "RARTS 100: rises": 0.0}
    arms = {claim.MODEL: [figures | (model or {})] * 3}
    tests = {claim.TWO: 0.65, claim.STRICT: 0.65} | (tests or {})
    for arm, ms in (TIMES | (times or {})).items():
        rows = [{"test": tests.get(arm, 0.6) + e, "ms": ms, "gap": 0.1} for e in (-0.01, 0.0, 0.01)]
        arms[arm] = rows
    arms[claim.RANDOM] = [{"test": 0.4 + e, "between cells": 0.1} for e in (-0.01, 0.0, 0.01)]
    return Table({**arms, claim.CONV: [{"test": 0.6}] * 3})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"model": {"joint descent: off": 1e-3}}, [0]),
        ({"model": {"RARTS 100: rises": 1.0}}, [1]),
        ({"model": {"RARTS 10: α": 3.0}}, [2]),
        ({"times": {claim.TWO: 31.0}}, [3]),
        ({"tests": {claim.TWO: 0.58, claim.STRICT: 0.59}}, [4, 6, 7, 8, 11]),
        ({"times": {claim.STRICT: 51.0}}, [5]),
        ({"tests": {claim.STRICT: 0.6}}, [9]),
        ({"tests": {claim.TWO: 0.41, claim.STRICT: 0.41}}, [4, 6, 7, 8, 10, 11]),
    ],
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
    assert [c.asserted for c in claim.CLAIM.checks].count(True) == 5
