"""The claim about small temperatures: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import micro
from archipel.claims import small_temperature_darts as claim
from archipel.claims.harness import Table
from archipel.search.training import Recipe


def test_arms_are_measured(monkeypatch):
    for name, value in {"EPOCHS": 2, "TIMED": 2}.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(micro, "RECIPE", Recipe(epochs=1, batch_size=200))
    micro._retrained.cache_clear()
    found = {arm: claim.measure(arm, {"lr": 0.1}, 0).figures for arm in (claim.DARTS, claim.SCALED)}
    micro._retrained.cache_clear()
    assert all(0 <= f["test"] <= 1 for f in found.values())
    assert found[claim.SCALED]["options skip"] <= found[claim.SCALED]["options all"] == 30
    assert 0 <= found[claim.SCALED]["saturation"] <= 1
    assert "saturation" not in found[claim.DARTS]


GAPS = {claim.DARTS: 0.3, claim.COOLED: 0.2, claim.NOISY: 0.1, claim.FULL: 0.05, claim.SCALED: 0.04}


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: figure -> value by arm."""
    arms = {}
    for arm in (claim.DARTS, *claim.TEMPERED):
        figures = {
            "test": 0.6 if arm == claim.DARTS else 0.65,
            "gap": GAPS.get(arm, 0.05),
            "skip": 1.0 if arm == claim.DARTS else 0.0,
            "range of α": 2.0 if arm == claim.UNDECAYED else 1.0,
            "saturation": 0.1 if arm == claim.SCALED else 0.3,
            "ms all": 10.0,
            "ms skip": 6.0,
            "options all": 30.0,
            "options skip": 14.0,
        }
        figures |= {name: by[arm] for name, by in changed.items() if arm in by}
        arms[arm] = [{**figures, "test": figures["test"] + d} for d in (-0.01, 0.0, 0.01)]
    arms[claim.RANDOM] = [{"test": 0.4 + d, "between cells": 0.15} for d in (-0.02, 0.0, 0.02)]
    return Table({**arms, claim.CONV: [{"test": 0.55}] * 3})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"gap": {claim.FULL: 0.15}}, [0, 6]),
        ({"gap": {claim.COOLED: 0.35}}, [1]),
        ({"test": {claim.FULL: 0.41}}, [2, 10, 11]),
        ({"options skip": {claim.FULL: 30.0}}, [3]),
        ({"ms skip": {claim.FULL: 11.0}}, [4]),
        ({"gap": {claim.NOISY: 0.25}}, [5]),
        ({"gap": {claim.SCALED: 0.2}}, [7]),
        ({"saturation": {claim.SCALED: 0.5}}, [8]),
        ({"range of α": {claim.UNDECAYED: 0.5}}, [9]),
        ({"skip": {claim.FULL: 4.0}}, [12]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)


def test_the_checks_that_carry_the_verdict_come_first():
    assert [c.asserted for c in claim.CLAIM.checks] == [True] * 5 + [False] * 8
