"""The claim about PC-DARTS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import micro
from archipel.claims import pc_darts as claim
from archipel.claims.harness import Table
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    for name, value in {"EPOCHS": 2, "WARMUP": 1, "TIMED": 3, "C": 4, "BATCH": 20}.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(micro, "RECIPE", Recipe(epochs=1, batch_size=200))
    monkeypatch.setattr(micro, "RANDOM_CELLS", 2)
    micro._retrained.cache_clear()
    yield
    micro._retrained.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured_and_keep_less_the_more_parts_there_are():
    found = {arm: claim.measure(arm, {"lr": 0.1}, 0) for arm in ("K=1, β", "K=4, β", claim.RANDOM, claim.CONV)}
    assert all(0 <= m.figures["test"] <= 1 for m in found.values())
    one, four = (found[a].figures for a in ("K=1, β", "K=4, β"))
    assert one["kB"] > four["kB"]
    assert one["mixed kB"] == pytest.approx(4 * four["mixed kB"], rel=0.1)
    assert four["ms"] > 0


def test_what_is_retrained_depends_on_cell_and_seed_alone(monkeypatch):
    monkeypatch.setattr(micro, "RECIPE", Recipe(epochs=1, batch_size=200))
    results = []
    for _ in range(2):
        micro._retrained.cache_clear()
        results.append([micro.retrained(micro.ALL_CONV, seed) for seed in (0, 1)])
    micro._retrained.cache_clear()
    assert results[0] == results[1]
    assert results[0][0] != results[0][1]


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: figure -> value by (K, weighed)."""
    arms = {}
    for arm, (K, weighed) in claim.SEARCHES.items():
        figures = {
            "test": 0.6 + 0.01 * weighed * K,
            "kB": 10 + 90 / K,
            "mixed kB": 80 / K,
            "ms": 5 + 5 / K,
            "gap": 0.3 / K,
        }
        figures |= {name: f(K, weighed) for name, f in changed.items()}
        arms[arm] = [{**figures, "test": figures["test"] + d} for d in (-0.01, 0.0, 0.01)]
    arms[claim.RANDOM] = [{"test": 0.4 + d, "between cells": 0.15} for d in (-0.02, 0.0, 0.02)]
    return Table({**arms, claim.CONV: [{"test": 0.55}] * 3})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"kB": lambda K, β: 100.0}, [0]),
        ({"mixed kB": lambda K, β: 80 / K + 10}, [1]),
        ({"ms": lambda K, β: 10 + K * β}, [2]),
        ({"test": lambda K, β: 0.6 - 0.02 * β * K}, [3, 4, 8, 9]),
        ({"test": lambda K, β: 0.41}, [5, 6, 7, 8, 9]),
        ({"gap": lambda K, β: 0.1 * K}, [10]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)


def test_every_arm_gets_the_same_settings_and_darts_is_one_part_without_weights():
    assert claim.CLAIM.grid == [{"lr": 0.025}, {"lr": 0.1}]
    assert claim.SEARCHES[claim.DARTS] == (1, False)
    assert {a.name for a in claim.CLAIM.arms} == {*claim.SEARCHES, claim.RANDOM, claim.CONV}
