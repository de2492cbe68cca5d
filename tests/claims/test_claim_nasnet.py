"""The claim on NASNet: a tiny search with its transfer, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import nasnet as claim
from archipel.claims.harness import TUNING_SEED, Table
from archipel.search.blackbox.nasnet import PolicyGradientSearch
from archipel.search.training import Recipe


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small = {"CHILDREN": 2, "LAST": 1, "UPDATE": 1, "IMAGES": 50, "RANDOM_CELLS": 1}
    for name, value in {**small, "FINAL": Recipe(epochs=1, batch_size=200)}.items():
        monkeypatch.setattr(claim, name, value)
    space = claim._space(filters=2, repeats=1)
    monkeypatch.setattr(claim, "_space", lambda filters, repeats: space)
    kept = claim._children, claim._transferred
    for cached in kept:
        cached.cache_clear()
    yield
    for cached in kept:
        cached.cache_clear()


def test_a_search_and_its_transfer_give_all_figures_that_the_checks_need():
    measured = claim.measure(claim.PPO, {"lr": 0.01}, 3)
    assert measured.validation == measured.figures["last 15"]
    table = Table({arm.name: [measured.figures] * 2 for arm in claim.CLAIM.arms})
    for check in claim.CLAIM.checks:
        assert isinstance(check.test(table)[0], bool)


def test_the_tuning_seed_never_sees_a_test_split(monkeypatch):
    monkeypatch.setattr(claim, "_transferred", None)  # would fail if called
    assert "test" not in claim.measure(claim.RANDOM, {"lr": 0.01}, TUNING_SEED).figures


def test_random_search_is_not_a_controller_and_the_controllers_learn(monkeypatch):
    updated = []
    real = PolicyGradientSearch._update
    monkeypatch.setattr(PolicyGradientSearch, "_update", lambda self, c: (updated.append(self.rule), real(self, c))[1])
    for arm in (claim.PPO, claim.REINFORCE, claim.RANDOM):
        claim._children(arm, 0.01, 4)
    assert updated == ["ppo", "ppo", "reinforce", "reinforce"]


@pytest.mark.parametrize(("last", "holds"), [((0.8, 0.7), True), ((0.7, 0.6), False)])
def test_the_last_children_must_be_better_than_random_ones_on_average(last, holds):
    rows = {claim.PPO: [{"last 15": x} for x in last], claim.RANDOM: [{"all children": 0.7}] * 2}
    assert claim.CLAIM.checks[0].test(Table(rows))[0] is holds


@pytest.mark.parametrize(("gap", "holds"), [(0.1, True), (0.3, False)])
def test_drop_path_must_narrow_the_gap(gap, holds):
    rows = {claim.PPO: [{"gap": 0.2, "gap drop-path": gap}] * 2}
    assert claim.CLAIM.checks[2].test(Table(rows))[0] is holds
