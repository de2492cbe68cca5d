"""The claim about GM-NAS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from archipel.claims import gm_nas as claim
from archipel.claims import micro
from archipel.claims.harness import Table
from archipel.spaces.micro_nb201 import MicroNB201


@pytest.fixture
def _shrunken(monkeypatch):
    small = {"PHASE": 1, "FEW_SHOT_PHASE": 1, "BATCHES": 1, "SAMPLES": 5, "CELLS": 4, "SEEDS": 2}
    for name, value in small.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(claim, "micro_space", lambda: MicroNB201((1, 8, 8), 10, C=4, cells=1))
    monkeypatch.setattr(claim, "RATE", {"batch_size": 100, "lr": 0.1})
    monkeypatch.setattr(micro, "_retrained", lambda genome, seed: (0.1, len(set(genome)) / 10 + 0.001 * seed))


@pytest.mark.usefixtures("_shrunken")
@pytest.mark.parametrize("arm", [claim.GM, claim.ONE_SHOT])
def test_arms_train_as_long_as_each_other_and_rank_the_cells(arm):
    figures = claim.measure(arm, {}, 0).figures
    assert figures["epochs"] == 7
    assert -1 <= figures["tau"] <= 1
    assert figures["supernets"] == (4 if arm == claim.GM else 1)
    if arm == claim.GM:
        assert 0 <= figures["within"] <= 2
        assert figures["score s"] > 0


def test_the_four_ways_train_equally_long_at_full_size():
    for arm in claim.SUPERNETS:
        strategy = claim._strategy(arm)
        ends = [0, *getattr(strategy, "split_epochs", []), strategy.schedule.epochs]
        branching = 5 if arm == claim.FEW_SHOT else 2
        assert sum(branching**k * (b - a) for k, (a, b) in enumerate(pairwise(ends))) == 7 * claim.PHASE


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: arm -> figures."""
    arms = {
        claim.GM: {"tau": 0.6, "test": 0.7, "within": 0.3, "between": 0.5, "score s": 1.0, "epoch s": 0.1},
        claim.RANDOM_SPLIT: {"tau": 0.5, "test": 0.6, "within": 0.4, "between": 0.4},
        claim.FEW_SHOT: {"tau": 0.5, "test": 0.6},
        claim.ONE_SHOT: {"tau": 0.4, "test": 0.5},
        claim.RANDOM: {"test": 0.4, "between cells": 0.1},
        claim.CONV: {"test": 0.5},
    }
    for arm in claim.SUPERNETS:
        arms[arm] |= {"epochs": 140.0, "supernets": 4.0}
    for arm, figures in changed.items():
        arms[getattr(claim, arm)] |= figures
    return Table({arm: [{**f, "test": f["test"] + d} for d in (-0.01, 0.0, 0.01)] for arm, f in arms.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"ONE_SHOT": {"epochs": 139.0}}, [0]),
        ({"GM": {"within": 0.6}}, [1]),
        ({"ONE_SHOT": {"tau": 0.7}}, [2]),
        ({"RANDOM_SPLIT": {"tau": 0.7}}, [3]),
        ({"GM": {"test": 0.405}}, [4, 6, 7]),
        ({"FEW_SHOT": {"tau": 0.7}}, [5]),
        ({"GM": {"score s": 5.0}}, [8]),
    ],
    ids=str,
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
