"""The claim about GOLD-NAS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from archipel.claims import gold_nas as claim
from archipel.claims.harness import Table
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    for name in ("ONE_LEVEL", "TWO_LEVELS"):
        monkeypatch.setattr(claim, name, replace(getattr(claim, name), epochs=1, batch_size=200))
    monkeypatch.setattr(claim, "RECIPE", Recipe(epochs=1, batch_size=200))
    claim.series.cache_clear()
    yield
    claim.series.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured_at_equal_numbers_of_operations():
    found = {arm.name: claim.measure(arm.name, {"lr": 0.1}, 0) for arm in claim.CLAIM.arms}
    assert all(0 <= m.figures["test"] <= 1 for m in found.values())
    assert found[claim.RANDOM].figures["convs"] == found[claim.GOLD].figures["convs"]
    assert found[claim.GOLD].figures["points"] == 0.0


def test_random_and_cut_networks_have_the_size_that_is_asked_for():
    arch = claim.random_like(claim.space().sample(Random(1)), Random(0))
    again = claim.random_like(arch, Random(2))
    assert claim.kinds(again) == claim.kinds(arch)
    assert again != arch
    weights = {n: [0.1 * (i + 1) for i in range(len(s.labels))] for n, s in claim.space().nodes.items()}
    assert sum(claim.kinds(claim.strongest(weights, 12))) == 12
    assert sum(claim.kinds(claim.strongest(weights, 1))) == 9  # a node keeps one


def table(**changed):
    gold = {
        "test": 0.7, "macs": 1e5, "points": 9.0, "nested": 1.0, "median drop": 0.002, "largest drop": 0.03,
        "speed-up": 3.0,
    } | changed  # fmt: skip
    others = {claim.CUT: (0.6, 1e5), claim.RANDOM: (0.6, 1e5), claim.FULL: (0.65, 3e5)}
    rows = {claim.GOLD: [{**gold, "test": gold["test"] + d} for d in (-0.01, 0.0, 0.01)]}
    return Table(rows | {a: [{"test": v + d, "macs": m} for d in (-0.01, 0, 0.01)] for a, (v, m) in others.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"points": 3.0}, [0]),
        ({"nested": 0.0}, [1]),
        ({"test": 0.6}, [2, 5, 7]),
        ({"median drop": 0.02}, [3]),
        ({"speed-up": 1.0}, [4]),
        ({"largest drop": 0.4}, [6]),
        ({"macs": 4e5}, [7]),
    ],
    ids=str,
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
