"""The claim about Single-Path NAS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from archipel.claims import chains
from archipel.claims import single_path_nas as claim
from archipel.claims.harness import Table
from archipel.search.training import Recipe


@pytest.fixture
def _shrunken(monkeypatch):
    monkeypatch.setattr(claim, "SCHEDULE", replace(claim.SCHEDULE, epochs=2, warmup=1, batch_size=200))
    monkeypatch.setattr(claim, "RIVAL", replace(claim.RIVAL, epochs=2, warmup=1, batch_size=100))
    monkeypatch.setattr(claim, "WEIGHTS", {"λ=0": 0.0})
    monkeypatch.setattr(claim, "LAYERS", 1)
    monkeypatch.setattr(claim, "TIMED", 1)
    monkeypatch.setattr(claim, "BATCH", 20)
    monkeypatch.setattr(chains, "RECIPE", Recipe(epochs=1, batch_size=200))
    caches = (claim._space, claim._found)
    for cached in caches:
        cached.cache_clear()
    yield
    chains._done.clear()
    for cached in caches:
        cached.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured():
    ours, two, soft, random = (claim.measure(a, {}, 0) for a in ("λ=0", claim.TWO, claim.SOFT, claim.RANDOM))
    assert 0 <= ours.validation <= 1
    assert ours.figures["weights"] < two.figures["weights"] == soft.figures["weights"]
    assert 0 <= random.figures["test λ=0"] <= 1


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: figure -> value by arm."""
    base = {
        a: {"test": 0.7 - 0.01 * i, "kMACs": 600 - 150 * i, "weights": 100, "ms": 20, "kB": 100}
        for i, a in enumerate(claim.WEIGHTS)
    }
    base[claim.TWO] = {"test": 0.6, "kMACs": 500, "weights": 250, "ms": 30, "kB": 150}
    base[claim.SOFT] = {"weights": 250, "ms": 80, "kB": 400}
    base[claim.RANDOM] = {"between": 0.05, **{f"test {a}": 0.6 for a in claim.WEIGHTS}}
    for name, values in changed.items():
        for arm, value in values.items():
            base[arm][name] = value
    return Table({arm: [{k: v + d for k, v in row.items()} for d in (-0.01, 0, 0.01)] for arm, row in base.items()})


def test_checks_hold_where_everything_holds():
    found = [check.test(table()) for check in claim.CLAIM.checks]
    assert all(holds for holds, _ in found)
    assert all(isinstance(text, str) for _, text in found)


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        (0, {"kMACs": {"λ=30": 700}}),
        (1, {"weights": {claim.SOFT: 190}}),
        (2, {"ms": {claim.SOFT: 10}}),
        (3, {"between": {claim.RANDOM: 0.0}, "test": dict.fromkeys(claim.WEIGHTS, 0.55)}),
        (4, {"kB": {claim.SOFT: 50}}),
        (5, {"ms": {claim.TWO: 10}}),
        (6, {"test": {"λ=3": 0.5}}),
        (7, {"kMACs": {claim.TWO: 10}}),
    ],
)
def test_each_check_fails_where_its_statement_does(number, changed):
    assert not claim.CLAIM.checks[number].test(table(**changed))[0]
