"""Random search: uniform, within the limits, deaf to outcomes."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from scipy.stats import chisquare

from archipel.core.decision import Decision
from archipel.core.errors import InfeasibleError
from archipel.core.space import Space, when
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.strategy import Problem

SPACE = Space([Decision("op", ["a", "b"]), Decision("k", [3, 5, 7])], {"k": [when(op=["a"])]})


def archs(problem, n, score=lambda arch: 0.0):
    search = RandomSearch()
    search.setup(problem)
    for _ in range(n):
        trial = search.ask()
        trial.metrics = {"accuracy": score(trial.arch)}
        search.tell(trial)
        yield trial.arch


def test_every_architecture_is_equally_likely_conditional_ones_too():
    counts = Counter(SPACE.canonical(a) for a in archs(Problem(SPACE, rng=Random(0)), 4000))
    assert len(counts) == SPACE.size == 4
    assert chisquare(list(counts.values())).pvalue > 0.001


def test_outcomes_change_nothing():
    plain = list(archs(Problem(SPACE, rng=Random(1)), 50))
    scored = list(archs(Problem(SPACE, rng=Random(1)), 50, score=lambda a: float(a["op"] == "a")))
    assert plain == scored


def test_limits_are_kept_and_impossible_ones_named():
    small = Problem(SPACE, rng=Random(2), feasible=lambda a: a.get("k", 0) < 5)
    assert {SPACE.canonical(a) for a in archs(small, 100)} == {'{"op": "a", "k": 3}', '{"op": "b"}'}
    never = Problem(SPACE, rng=Random(2), feasible=lambda a: False, describe_limits=lambda: "k <= 0")
    with pytest.raises(InfeasibleError, match="k <= 0"):
        next(archs(never, 1))
