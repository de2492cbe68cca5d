"""The claim about ProxylessNAS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from archipel.claims import chains
from archipel.claims import proxylessnas as claim
from archipel.claims.harness import Table
from archipel.search.training import Recipe
from archipel.spaces.mbconv import digits_space


@pytest.fixture
def _shrunken(monkeypatch):
    monkeypatch.setattr(claim, "SCHEDULE", replace(claim.SCHEDULE, epochs=2, warmup=1, batch_size=100))
    monkeypatch.setattr(claim, "LAYERS", 2)
    monkeypatch.setattr(claim, "TIMED", 1)
    monkeypatch.setattr(claim, "DRAWN", 3)
    monkeypatch.setattr(chains, "RECIPE", Recipe(epochs=1, batch_size=200))
    monkeypatch.setattr(chains, "RANDOM_CHAINS", 2)
    caches = (claim._space, claim._target, claim._found)
    for cached in caches:
        cached.cache_clear()
    yield
    chains._done.clear()
    for cached in caches:
        cached.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured():
    two, matched = (claim.measure(a, {}, 0) for a in (claim.TWO, claim.MATCHED))
    assert 0 <= two.validation <= 1
    assert two.figures["w paths"] < two.figures["α paths, full"] + 2
    assert 0 <= matched.figures["test"] <= 1


def test_matched_chains_have_about_the_macs_asked_for():
    space = digits_space(3, (1, 3), (1, 3))
    cost = chains.macs_of(space)
    for seed in range(5):
        arch = space.sample(Random(seed))
        assert cost(arch) == space.cost.macs(arch)
    wanted = cost({d.name: "k3e1" for d in space.decisions})
    found = chains.random_chains(space, 0, wanted)
    assert len(found) == chains.RANDOM_CHAINS
    assert all(abs(cost(a) / wanted - 1) <= chains.NEAR for a in found)


def table(**changed):
    """Three seeds in which everything holds, but for what is changed: figure -> value by arm."""
    base = {
        claim.TWO: {"test": 0.7, "kMACs": 50, "expected kMACs": 60, "w paths": 1.0, "α paths": 1.5, "ms": 5,
                    "α paths, full": 3.0},
        claim.LATE: {"test": 0.7, "kMACs": 50, "expected kMACs": 60, "w paths": 1.0, "α paths": 0.8, "ms": 8},
        claim.SOFT: {"test": 0.7, "kMACs": 50, "expected kMACs": 60, "w paths": 7.0, "α paths": 7.0, "ms": 30},
        "two, λ=0": {"expected kMACs": 90}, "two, λ=10": {"expected kMACs": 20},
        claim.RANDOM: {"test": 0.5, "kMACs": 100, "between": 0.1}, claim.MATCHED: {"test": 0.4},
    }  # fmt: skip
    for name, values in changed.items():
        for arm, value in values.items():
            base[arm][name] = value
    return Table({arm: [{k: v + d for k, v in row.items()} for d in (-0.01, 0, 0.01)] for arm, row in base.items()})


def verdicts(t):
    return [check.test(t)[0] for check in claim.CLAIM.checks]


def test_checks_hold_where_everything_holds():
    assert all(verdicts(table()))
    assert all(isinstance(check.test(table())[1], str) for check in claim.CLAIM.checks)


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        (0, {"w paths": {claim.TWO: 2.0}}),
        (1, {"α paths": {claim.TWO: 2.5}}),
        (1, {"α paths": {claim.SOFT: 2.0}}),
        (2, {"ms": {claim.TWO: 40}}),
        (3, {"expected kMACs": {"two, λ=10": 70}}),
        (4, {"kMACs": {claim.TWO: 120}}),
        (5, {"test": {claim.LATE: 0.4}}),
        (6, {"test": {claim.MATCHED: 0.695}}),
    ],
)
def test_each_check_fails_where_its_statement_does(number, changed):
    found = verdicts(table(**changed))
    assert not found[number]
