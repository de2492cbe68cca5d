"""The claim about DropNAS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import dropnas as claim
from archipel.claims import micro
from archipel.claims.harness import Table
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    for name, value in {"EPOCHS": 1, "BATCH": 100, "TIMED": 1}.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(micro, "RECIPE", Recipe(epochs=1, batch_size=200))
    monkeypatch.setattr(micro, "RANDOM_CELLS", 2)
    micro._retrained.cache_clear()
    yield
    micro._retrained.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured_and_steps_are_watched():
    drop, one, random = (claim.measure(arm, {}, 0).figures for arm in (claim.DROP, claim.ONE, claim.RANDOM))
    assert 2 <= drop["kept"] < one["kept"] == 5
    assert drop["starved"] == one["moved"] == 0
    assert drop["moved"] <= 1e-6
    assert all(0 <= f["test"] <= 1 for f in (drop, one, random))
    assert -1 <= drop["similarity"] <= 1


def table(drop=None, one=None):
    """Three seeds in which everything holds, but for what is changed."""
    common = {"test": 0.6, "kept": 5.0, "moved": 0.0, "starved": 0.0, "gap": 0.1, "ms": 20.0, "similarity": 0.4}
    common["parameter-free"] = 0.5
    better = {"test": 0.65, "kept": claim.expected_kept(0.045, (2, 3)), "moved": 1e-7, "ms": 18.0, "gap": 0.05}
    better |= {"similarity": 0.3, "parameter-free": 0.2}

    def rows(figures):
        return [figures | {"test": figures["test"] + e} for e in (-0.01, 0.0, 0.01)]

    arms = {claim.DROP: rows(common | better | (drop or {})), claim.ONE: rows(common | (one or {}))}
    arms[claim.RANDOM] = rows({"test": 0.4, "between cells": 0.1})
    return Table({**arms, claim.CONV: [{"test": 0.6, "parameter-free": 0.0}] * 3})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"drop": {"kept": 4.5}}, [0]),
        ({"drop": {"starved": 1.0}}, [0]),
        ({"drop": {"moved": 1e-4}}, [1]),
        ({"drop": {"ms": 25.0}}, [2]),
        ({"drop": {"test": 0.41}}, [3, 5, 9]),
        ({"one": {"test": 0.41}}, [4]),
        ({"one": {"test": 0.7}}, [5]),
        ({"drop": {"parameter-free": 0.6}}, [6]),
        ({"drop": {"similarity": 0.5}}, [7]),
        ({"drop": {"gap": 0.2}}, [8]),
    ],
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
    assert [c.asserted for c in claim.CLAIM.checks].count(True) == 4
