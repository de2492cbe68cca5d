"""Exact counting and uniform drawing of conditional assignments, against brute force."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from archipel.core.counting import ALWAYS, AssignmentCounter, simplify
from archipel.core.decision import Decision, Real
from archipel.core.errors import SpaceError
from archipel.core.space import Space, when

CLOSED = None


@st.composite
def problems(draw, most=6):
    """Decisions, some of them under a disjunction of clauses over earlier ones."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=most))
    decisions = [Decision(f"d{i}", list(range(n))) for i, n in enumerate(sizes)]
    conditions = {}
    for i, d in enumerate(decisions):
        if i and draw(st.booleans()):
            clauses = []
            for _ in range(draw(st.integers(1, 3))):
                parents = draw(st.lists(st.integers(0, i - 1), min_size=1, max_size=2, unique=True))
                clauses.append(
                    when(
                        **{
                            f"d{p}": draw(st.lists(st.integers(0, sizes[p] - 1), min_size=1, max_size=2, unique=True))
                            for p in parents
                        }
                    )
                )
            conditions[d.name] = clauses
    return decisions, conditions


def brute_force(decisions, conditions):
    """Every combination of options and 'closed' that is consistent: an independent, slow definition."""
    found = []
    for values in itertools.product(*[(*d.options, CLOSED) for d in decisions]):
        arch = dict(zip((d.name for d in decisions), values))
        consistent = True
        for d in decisions:
            clauses = conditions.get(d.name)
            is_open = clauses is None or any(all(arch[n] in allowed for n, allowed in c) for c in clauses)
            consistent &= is_open == (arch[d.name] is not CLOSED)
        if consistent:
            found.append({n: v for n, v in arch.items() if v is not CLOSED})
    return found


def key(arch):
    return json.dumps(arch, sort_keys=True)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problem=problems())
def test_count_and_enumeration_agree_with_brute_force(problem):
    decisions, conditions = problem
    space = Space(decisions, conditions)
    expected = {key(a) for a in brute_force(decisions, conditions)}
    assert space.size == len(expected)
    assert {key(a) for a in space.enumerate()} == expected


@settings(max_examples=25, deadline=None, derandomize=True)
@given(problem=problems(most=5), seed=st.integers(0, 999))
def test_draws_are_uniform_over_all_assignments(problem, seed):
    decisions, conditions = problem
    space = Space(decisions, conditions)
    rng = Random(seed)
    counts = {key(a): 0 for a in brute_force(decisions, conditions)}
    for _ in range(min(4000, 25 * len(counts))):
        counts[key(space.sample(rng))] += 1
    assert len(counts) == 1 or chisquare(list(counts.values())).pvalue > 1e-5


def test_deciding_step_by_step_favours_options_that_leave_little_open():
    space = Space([Decision("op", ["conv", "skip"]), Decision("k", [3, 5, 7])], {"k": [when(op=["conv"])]})
    rng = Random(0)
    uniform = Counter(space.sample(rng)["op"] for _ in range(4000))
    stepwise = Counter(space.sample_choices(rng)["op"] for _ in range(4000))
    assert uniform["conv"] / 4000 == pytest.approx(3 / 4, abs=0.03)
    assert stepwise["conv"] / 4000 == pytest.approx(1 / 2, abs=0.03)


def test_counts_are_exact_far_beyond_floating_point():
    depth = 60
    decisions, conditions = [], {}
    for i in range(depth):
        decisions.append(Decision(f"op{i}", ["conv", "skip"]))
        decisions.append(Decision(f"k{i}", [3, 5]))
        conditions[f"k{i}"] = [when(**{f"op{i}": ["conv"]})]
    assert Space(decisions, conditions).size == 3**depth


def test_a_long_chain_of_conditions_is_counted_quickly():
    decisions = [Decision("d0", [0, 1])]
    conditions = {}
    for i in range(1, 80):
        decisions.append(Decision(f"d{i}", [0, 1]))
        conditions[f"d{i}"] = [when(**{f"d{i - 1}": [1]})]
    started = time.perf_counter()
    space = Space(decisions, conditions)
    assert space.size == 81  # the first 0 ends the chain
    lengths = Counter(len(space.sample(Random(s))) for s in range(400))
    assert max(lengths) > 60  # uniform over chains, not halving at each step
    assert time.perf_counter() - started < 5


def test_a_draw_takes_microseconds_once_components_are_known():
    decisions, conditions = [], {}
    for i in range(20):
        decisions += [Decision(f"depth{i}", [1, 2, 3]), *(Decision(f"k{i}{b}", [3, 5, 7]) for b in range(3))]
        conditions |= {f"k{i}{b}": [when(**{f"depth{i}": list(range(b + 1, 4))})] for b in range(3)}
    space = Space(decisions, conditions)
    assert space.size == (3 + 9 + 27) ** 20
    rng = Random(0)
    space.sample(rng)
    started = time.perf_counter()
    for _ in range(100):
        space.sample(rng)
    assert (time.perf_counter() - started) / 100 < 2e-3  # 80 decisions; about 0.1 ms on an idle machine


def test_implied_clauses_are_dropped():
    weak, strong = when(a=[1]), when(a=[1], b=[2])
    assert simplify([strong, weak]) == frozenset([weak])
    assert simplify([strong, frozenset()]) == ALWAYS


def test_a_draw_is_reproducible_whatever_the_hash_seed():
    decisions = [Decision("a", [0, 1]), Decision("b", [0, 1]), Decision("c", [0, 1, 2])]
    counter = AssignmentCounter(decisions, {"c": frozenset([when(a=[1]), when(b=[1])])})
    rng = Random(12)
    drawn = [counter.draw(rng) for _ in range(4)]
    # Fixed numbers: a change here breaks the resuming of old runs.
    assert [(d["a"], d["b"], d["c"]) for d in drawn] == [(0, 1, 1), (0, 1, 0), (0, 1, 1), (1, 1, 1)]
    assert counter.count() == 1 + 3 * 3


def test_real_decisions_make_the_size_infinite_but_can_be_drawn():
    space = Space([Decision("op", ["a", "b"]), Real("lr", 0.1, 1.0)], {"lr": [when(op=["a"])]})
    assert space.size == float("inf")
    rng = Random(0)
    for _ in range(20):
        arch = space.validate(space.sample(rng))
        assert ("lr" in arch) == (arch["op"] == "a")
    with pytest.raises(SpaceError, match="cannot be enumerated"):
        list(space.enumerate())


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"zz": [when(a=[0])]}, "Conditions for unknown decisions"),
        ({"a": [when(b=[0])]}, "'a' depends on 'b', which must be declared before"),
        ({"b": [when(a=[9])]}, "'b' depends on 'a' being one of"),
        ({"b": [when(q=[0])]}, "depends on 'q'"),
        ({"b": [when(r=[0.5])]}, "'b' depends on 'r'"),
    ],
)
def test_impossible_conditions_are_refused(conditions, message):
    with pytest.raises(SpaceError, match=message):
        Space([Real("r", 0, 1), Decision("a", [0, 1]), Decision("b", [0, 1])], conditions)


def test_two_decisions_of_one_name_are_refused():
    with pytest.raises(SpaceError, match="named twice: a"):
        Space([Decision("a", [0]), Decision("a", [1])])
