"""The claim about improvements over random architectures: a shrunken measurement, and its checks on tables by hand."""

from __future__ import annotations

import importlib.util
from functools import partial

import numpy as np
import pytest

from archipel.claims import nas_eval_is_hard as claim
from archipel.claims.harness import Table
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    if importlib.util.find_spec("analognasbench") is None:
        pytest.skip("the table of NAS-Bench-201 is not installed (extra 'tables')")
    tiny = {"epochs": 1, "population": 4, "generations": 1, "top": 2, "crossover": 2, "mutation": 2, "calibration": 100}
    monkeypatch.setattr(claim, "RECIPE", Recipe(epochs=1, batch_size=40))
    monkeypatch.setattr(claim, "NETWORK", claim.NETWORK.changed(cells=2, channels=4, kernels=(1, 3)))
    monkeypatch.setattr(claim, "REPEATS", 2)
    monkeypatch.setattr(claim, "SUPERNET", partial(claim.SUPERNET, **tiny))
    claim._judge.cache_clear()
    yield
    claim._judge.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_every_arm_is_trained_and_gives_the_same_again():
    found = {arm.name: claim.measure(arm.name, {}, 1) for arm in claim.CLAIM.arms}
    assert all(0.0 <= m.figures["test"] <= 1.0 for m in found.values())
    assert claim.measure(claim.METHOD, {}, 1) == found[claim.METHOD]
    assert found[claim.RANDOM] != found[claim.RESEEDED]
    assert 0.0 <= found[claim.AGAIN].figures["welch contains 0"] <= 1.0


@pytest.mark.usefixtures("_shrunken")
def test_tricks_change_the_protocol_and_nothing_else():
    base, hashes = claim._judge(claim.RANDOM), set()
    for arm in (claim.RANDOM, *claim.TRICKS, claim.SHALLOW):
        judge = claim._judge(arm)
        assert judge.space.size == base.space.size
        hashes.add(claim._runs(Table({arm: [{"test": 0.5}] * 2}), arm).protocol_hash)
    assert len(hashes) == len(claim.TRICKS) + 2
    assert claim._judge(claim.RESEEDED).protocol == claim._judge(claim.AGAIN).protocol == base.protocol


def table(again=0.0, covered=0.95, method=0.0):
    """Accuracies of twelve runs around .9: seeds spread them more than architectures do, one cell ranks in reverse."""
    rng = np.random.default_rng(0)
    architectures, noise = np.linspace(-0.02, 0.02, 12), rng.normal(0, 0.02, 12)
    accuracies = {
        claim.METHOD: 0.9 + method + rng.permutation(architectures),
        claim.RANDOM: 0.9 + architectures,
        claim.AGAIN: 0.9 + again + rng.permutation(architectures),
        claim.RESEEDED: 0.9 + architectures * 0.5 + noise,
        **{name: 0.9 + (i - 1) * 0.08 + architectures for i, name in enumerate(claim.TRICKS)},
        claim.SHALLOW: 0.7 - architectures,
    }
    more = {"bootstrap contains 0": covered, "welch contains 0": covered}
    return Table({a: [{"test": float(v), **more} for v in values] for a, values in accuracies.items()})


def held(t):
    results = [c.test(t) for c in claim.CLAIM.checks]
    assert all(text for _, text in results)
    return [bool(holds) for holds, _ in results]


def test_checks_hold_where_random_is_zero_and_everything_else_moves_accuracy():
    assert held(table()) == [True] * 9
    assert [c.asserted for c in claim.CLAIM.checks] == [True] * 4 + [False] * 5


@pytest.mark.parametrize(("change", "broken"), [({"again": 0.05}, 0), ({"covered": 0.8}, 1), ({"method": 0.05}, 4)])
def test_each_check_can_fail(change, broken):
    assert not held(table(**change))[broken]


def test_spreads_need_a_spread():
    flat = Table({a.name: [{"test": 0.9}] * 12 for a in claim.CLAIM.arms})
    with pytest.warns(UserWarning, match="tied"), pytest.raises(TypeError):
        claim.spreads_are_there(flat)


def test_a_protocol_that_is_not_told_apart_is_seen(monkeypatch):
    monkeypatch.setattr(claim, "_judge", lambda arm: claim.StandAlone.on(
        claim.load("noisy-digits", noise=0.25), claim.NETWORK.space(), claim.RECIPE))  # fmt: skip
    assert claim.protocols_stay_apart(table()) == (False, "refused: none")
