"""The claim about MANAS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import manas as claim
from archipel.claims.harness import Table
from archipel.search.differentiable import Schedule
from archipel.spaces.micro_nb201 import MicroNB201


@pytest.fixture
def _shrunken(monkeypatch):
    monkeypatch.setattr(claim, "SCHEDULE", Schedule(epochs=1, batch_size=100, lr=0.1))
    monkeypatch.setattr(claim, "ROUNDS", 100)
    monkeypatch.setattr(claim, "_space", lambda: MicroNB201((1, 8, 8), 10, C=4, tie="cell"))
    monkeypatch.setattr(claim, "_trained", lambda text, seed: (0.1, text.count("conv3x3") / 12))
    claim._search.cache_clear()
    yield
    claim._search.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured_and_a_path_keeps_less_than_the_mixture():
    found = {a: claim.measure(a, {}, 0).figures for a in (claim.EXP3, claim.DARTS, claim.RANDOM, claim.BEST)}
    assert found[claim.EXP3]["kB"] < found[claim.DARTS]["kB"]
    assert 0 < found[claim.EXP3]["game"] < 1
    assert set(found[claim.RANDOM]) == {"test", "between", "game"}
    assert found[claim.BEST]["test"] in [a.count("conv3x3") / 12 for a in map(str, claim._random(0))]
    assert claim.measure(claim.CONV, {}, 0).figures["test"] == 1.0


def test_uniform_agents_play_the_game_as_badly_as_expected():
    assert claim._game(claim.RANDOM, 0) == pytest.approx(0.78, abs=0.04)


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: arm -> figures."""
    arms = {
        claim.EXP3: {"test": 0.7, "game": 0.15, "kB": 20.0, "entropy": 0.7},
        claim.LS: {"test": 0.7, "game": 0.2, "kB": 20.0, "entropy": 0.8},
        claim.DARTS: {"test": 0.6, "kB": 100.0, "entropy": 0.5},
        claim.RANDOM: {"test": 0.4, "between": 0.1, "game": 0.78},
        claim.BEST: {"test": 0.5},
        claim.CONV: {"test": 0.6},
    }
    for arm, figures in changed.items():
        arms[getattr(claim, arm)] |= figures
    return Table({arm: [{**f, "test": f["test"] + d} for d in (-0.01, 0.0, 0.01)] for arm, f in arms.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"EXP3": {"game": 0.4}}, [0]),
        ({"LS": {"game": 0.4}}, [1]),
        ({"EXP3": {"kB": 40.0}}, [2]),
        ({"EXP3": {"test": 0.41}}, [3, 5, 6, 7]),
        ({"LS": {"test": 0.41}}, [4, 5, 6, 7]),
        ({"DARTS": {"test": 0.75}}, [6]),
        ({"CONV": {"test": 0.75}}, [7]),
        ({"LS": {"entropy": 0.95}}, [8]),
    ],
    ids=str,
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
