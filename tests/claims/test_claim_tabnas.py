"""The claim about rejection: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest
import torch

from archipel.claims import tabnas as claim
from archipel.claims.harness import TUNING_SEED, Table
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    threads = torch.get_num_threads()
    for name, value in (("TOY_STEPS", 10), ("STEPS", 10), ("DRAWN", 2), ("ALONE", Recipe(epochs=1, batch_size=64))):
        monkeypatch.setattr(claim, name, value)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_shrunken")
def test_a_measurement_is_reproducible_and_tuning_leaves_the_test_split_closed():
    claim.digits.cache_clear()
    tuned = claim.measure(claim.MILD, {"lr": 0.05}, TUNING_SEED)
    assert "test" not in tuned.figures
    assert "test" not in claim.measure(claim.RANDOM, {"lr": 0.05}, TUNING_SEED).figures
    assert claim.digits().openings == []
    first = claim.measure(claim.EXACT, {"lr": 0.05}, 0)
    assert claim.measure(claim.EXACT, {"lr": 0.05}, 0) == first
    assert first.figures["feasible"] == first.figures["toy feasible"] == 1
    random = claim.measure(claim.RANDOM, {"lr": 0.05}, 0).figures
    assert random["feasible"] == 1
    assert random["best drawn"] >= random["test"]
    assert claim.digits().openings


def test_the_task_is_the_one_of_the_claim():
    space, limits = claim.digits_space()
    assert limits.feasible({"width0": 32, "width1": 16, "width2": 16})  # 3,050
    assert not limits.feasible({"width0": 32, "width1": 16, "width2": 32})  # 3,482
    assert space.cost.params({"width0": 64, "width1": 64, "width2": 64}) == 13_130
    assert [len(claim.digits().train), len(claim.digits().val)] == [800, 400]
    kept = [a for a in claim.TOY.enumerate() if claim.TOY_LIMITS.feasible(a)]
    assert max(kept, key=claim.oracle) == claim.BEST


def table(feasible: float, found: float, gain: float) -> Table:
    row = {"toy 4-2": found, "toy kept 4-2": found, "toy feasible": 1.0, "feasible": feasible, "params": 3000.0}
    rows = {arm: [{**row, "test": 0.4 + gain}] * 3 for arm in claim.ARMS}
    return Table({**rows, claim.RANDOM: [{**row, "test": 0.4, "best drawn": 0.8}] * 3})


@pytest.mark.parametrize(
    ("feasible", "found", "gain", "expected"),
    [
        (1.0, 1.0, 0.25, [True, True, True]),
        (0.0, 1.0, 0.25, [False, True, True]),
        (1.0, 0.75, 0.25, [True, False, True]),
        (1.0, 1.0, 0.15, [True, True, False]),
    ],
)
def test_feasibility_the_toy_and_twenty_points_carry_the_verdict(feasible, found, gain, expected):
    results = [c.test(table(feasible, found, gain)) for c in claim.CLAIM.checks]
    assert [c.asserted for c in claim.CLAIM.checks] == [True] * 3 + [False] * 8
    assert [holds for holds, _ in results[:3]] == expected
    assert all(text for _, text in results)
