"""The claim about HardCoRe-NAS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from archipel.claims import hardcore_nas as claim
from archipel.claims.harness import Table
from archipel.search.differentiable.stage_costs import StageCosts
from archipel.search.training import Recipe

CACHES = (claim.space, claim.one_shot, claim._trained)


def test_arms_are_measured_at_every_limit(monkeypatch):
    small = {"HEAVY_EPOCHS": 1, "EPOCHS": 0, "STEPS": 1, "JUDGED": 1, "RETRAINED": 1, "LIMITS": (0.5,), "BATCH": 80}
    for name, value in small.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(claim, "RECIPE", Recipe(epochs=1, batch_size=400))
    for cached in CACHES:
        cached.cache_clear()
    found = {a: claim.measure(a, {}, 0).figures for a in (claim.HARD, "penalty w=1", claim.REPAIRED, claim.RANDOM)}
    for cached in CACHES:
        cached.cache_clear()
    assert found[claim.HARD]["during 50%"] <= 1 + 1e-6
    assert found[claim.HARD]["cost 50%"] <= 1.0
    assert found[claim.REPAIRED]["cost 50%"] <= 1.0
    assert found["penalty w=1"]["cost 50%"] > 0.0
    assert 0.0 <= found[claim.RANDOM]["test 50%"] <= 1.0


def test_the_repair_changes_what_gives_up_least_for_what_it_saves():
    costs = StageCosts([np.array([[1.0, 5.0], [1.0, 5.0]])], [(1, 2)])
    alpha, beta = [np.array([0.4, 0.6]), np.array([0.1, 0.9])], [np.array([0.3, 0.7])]
    assert claim.repaired(costs, 10.0, alpha, beta) == [[1, 1]]
    assert claim.repaired(costs, 6.0, alpha, beta) == [[0, 1]]  # ln 1.5 for 4
    assert claim.repaired(costs, 5.0, alpha, beta) == [[0]]  # then ln 7/3 for 5, before ln 9 for 4


def table(**changed):
    arms = {claim.HARD: {}, claim.REPAIRED: {}, claim.RANDOM: {}, **{a: {} for a in claim.PENALISED}}
    for s in claim.LIMITS:
        at = f"{s:.0%}"
        arms[claim.HARD] |= {
            f"during {at}": 1.0, f"cost {at}": 0.9, f"test {at}": 0.6, f"shared {at}": 0.5, f"searching {at}": 0.2
        }  # fmt: skip
        arms[claim.REPAIRED] |= {f"test {at}": 0.6}
        arms[claim.RANDOM] |= {f"test {at}": 0.5, f"best {at}": 0.4}
        for a, w in claim.PENALISED.items():
            arms[a] |= {f"cost {at}": 1.2 if w < 1 else 0.9}
    for arm, figures in changed.items():
        arms[{"hard": claim.HARD, "repaired": claim.REPAIRED, "random": claim.RANDOM}.get(arm, arm)] |= figures
    return Table({a: [f] * 3 for a, f in arms.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"hard": {"during 30%": 1.01}}, [0]),
        ({"hard": {"cost 70%": 1.01}}, [1]),
        ({a: {"cost 50%": 0.95} for a in claim.PENALISED}, [2]),
        ({"random": {"test 30%": 0.7}}, [3]),
        ({"random": {"test 50%": 0.7}}, [4]),
        ({"random": {"test 70%": 0.7}}, [5]),
        ({"random": {"best 70%": 0.7}}, [6]),
        ({"repaired": {"test 50%": 0.7}}, [7]),
        ({"hard": {"cost 30%": 0.5}}, [8]),
        ({"hard": {"searching 30%": 1.5}}, [9]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
