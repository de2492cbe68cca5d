"""The claim about judging search policies: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import importlib.util
from functools import partial

import pytest

from archipel.claims import eval_nas as claim
from archipel.claims.harness import Table
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    if importlib.util.find_spec("analognasbench") is None:
        pytest.skip("the table of NAS-Bench-201 is not installed (extra 'tables')")
    cached = (claim._host, claim._truth, claim._short)
    short = Recipe(epochs=1, batch_size=200)
    for name, value in {"LAYERS": 1, "RECIPE": short, "SHORT": short, "TRIALS": 3, "REPEATS": 1}.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(claim, "SUPERNET", partial(claim.SUPERNET, epochs=1))
    monkeypatch.setattr(claim, "SOFTMAX", partial(claim.darts, 1, schedule=Schedule(epochs=1, batch_size=40)))
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_every_arm_is_judged_by_true_ranks_and_gives_the_same_again():
    for arm in claim.CLAIM.arms:
        first = claim.measure(arm.name, {}, 0)
        assert first.figures["percentile"] in (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # of 4, ties at their mean
        assert ("tau" in first.figures) == (arm.name in (claim.SHARED, claim.ALONE))
    assert claim.measure(arm.name, {}, 0) == first


def table(planted=1.0, random=0.0, tau=0.1, percentile=0.5):
    """Figures of ten seeds; taus and percentiles spread by .02 around what is given, accuracies with them."""
    offsets = [0.02 * (-1) ** s for s in range(10)]
    ranked = {"ceiling": 0.5, "lowest pair": 0.45, "std of truth": 0.01}

    def rows(flagged, middle, tau):
        common = ranked | {"cells: flagged": flagged, "cells: percentile": middle}
        return [common | {"tau": tau + d, "tau single": tau + d, "percentile": middle + d, "test": 0.9 + d / 10
                          + (middle - 0.5) / 10} for d in offsets]  # fmt: skip

    arms = {claim.SHARED: rows(0, percentile, tau), claim.ALONE: rows(0, 0.5, 0.4), claim.GRADIENT: rows(0, 0.5, 0)}
    chance = {claim.RANDOM: rows(0, 0.5, 0), claim.AGAIN: rows(random, 0.5, 0)}
    return Table({**arms, **chance, claim.PLANTED: rows(planted, 0.9, 0)})


def held(t):
    results = [c.test(t) for c in claim.CLAIM.checks]
    assert all(text for _, text in results)
    return [bool(holds) for holds, _ in results]


def test_checks_hold_where_the_protocol_tells_good_from_random_and_sharing_disorders():
    assert held(table()) == [True] * 8 + [False, True]  # the planted policy's interval is far from .5
    assert [c.asserted for c in claim.CLAIM.checks] == [True] * 3 + [False] * 7


@pytest.mark.parametrize(
    ("change", "broken"), [({"planted": 0.7}, 0), ({"random": 0.2}, 1), ({"tau": 0.44}, 2), ({"percentile": 0.8}, 5)]
)
def test_each_check_can_fail(change, broken):
    assert not held(table(**change))[broken]
