"""Decisions: options, encodings, moves and ranges."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from archipel.core.choice import Kernel, Width
from archipel.core.decision import Decision, Real
from archipel.core.errors import SpaceError


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", ["a"], "name must be a non-empty string"),
        (3, ["a"], "name must be a non-empty string"),
        ("op", [], "'op' has no options"),
        ("op", ["a", "a"], "lists an option twice"),
        ("op", ["a", 1], "JSON scalars of one type"),
        ("op", [1, True], "JSON scalars of one type"),
        ("op", [1, 2.0], "JSON scalars of one type"),
        ("op", [None], "JSON scalars of one type"),
        ("op", [(1, 2)], "JSON scalars of one type"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(SpaceError, match=message):
        Decision(name, options)


def test_values_are_told_apart_by_type_as_well():
    sizes = Decision("n", [0, 1])
    assert sizes.contains(1)
    for wrong in (True, 1.0, "1", None, [1], {}):
        assert not sizes.contains(wrong)
    assert not Decision("b", [True, False]).contains(1)


def test_encoding_is_one_hot_or_a_rank():
    op = Decision("op", ["a", "b", "c"])
    assert op.encode("b").tolist() == [0, 1, 0]
    assert op.encode(None).tolist() == [0, 0, 0]
    k = Decision("k", [3, 5, 9], ordered=True)
    assert [k.encode(v).tolist() for v in (3, 5, 9, None)] == [[0], [0.5], [1], [0.5]]
    assert (op.width, k.width) == (3, 1)
    assert Decision("one", [4], ordered=True).encode(4).tolist() == [0.5]


def test_sampling_and_moving_are_uniform():
    d = Decision("d", ["a", "b", "c", "d"])
    rng = Random(0)
    drawn = Counter(d.sample(rng) for _ in range(4000))
    assert chisquare([drawn[o] for o in d.options]).pvalue > 1e-3
    moved = Counter(d.move("b", rng) for _ in range(3000))
    assert "b" not in moved
    assert chisquare([moved[o] for o in ("a", "c", "d")]).pvalue > 1e-3


def test_decisions_compare_hash_and_pickle_by_content():
    assert Decision("d", [1, 2]) == Decision("d", [1, 2])
    assert len({Decision("d", [1, 2]), Decision("d", [1, 2]), Decision("d", [1, 2], ordered=True)}) == 2
    for d in (Decision("d", [1, 2]), Width("w", [4, 8]), Kernel("k", [3]), Real("r", 0, 1)):
        again = pickle.loads(pickle.dumps(d))
        assert again == d
        assert again.contains(d.sample(Random(0)))


def test_widths_and_kernels_are_sorted_and_checked():
    assert Width("w", [8, 2, 4]).options == (2, 4, 8)
    assert Kernel("k", [5, 3]).ordered
    for wrong in ([0], [-1], [2.5], ["a"], [True]):
        with pytest.raises(SpaceError, match="positive integers"):
            Width("w", wrong)
    for wrong in ([2], [0], [-3], [3, 4], [3.0]):
        with pytest.raises(SpaceError, match="odd positive integers"):
            Kernel("k", wrong)


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(1, 1, False), (2, 1, False), (math.nan, 1, False), (0, math.inf, False), (0, 1, True), (-1, 1, True)],
)
def test_bad_ranges_are_refused(low, high, log):
    with pytest.raises(SpaceError, match=r"needs finite low < high|must be positive"):
        Real("lr", low, high, log)


def test_integer_ranges_need_integer_bounds():
    with pytest.raises(SpaceError, match=r"its bounds 0\.5, 3 must be too"):
        Real("n", 0.5, 3, integer=True)


def _ranges(numbers, spans, integer):
    return st.builds(lambda a, d, log: Real("r", a, a + d, log, integer), numbers, spans, st.booleans())


reals = _ranges(st.floats(1e-6, 1e3), st.floats(1e-3, 1e3), False) | _ranges(
    st.integers(1, 99), st.integers(1, 99), True
)


@given(d=reals, seed=st.integers(0, 999))
def test_real_values_stay_in_range_are_json_and_decode_their_encoding(d, seed):
    rng = Random(seed)
    value = d.sample(rng)
    for _ in range(5):
        assert d.contains(value)
        assert type(json.loads(json.dumps(value))) is (int if d.integer else float)
        code = d.encode(value)
        assert code.shape == (1,)
        assert 0 <= code[0] <= 1
        assert d.decode(float(code[0])) == pytest.approx(value, rel=1e-9)
        value = d.move(value, rng)


@given(d=reals)
def test_the_ends_of_a_range_can_be_reached(d):
    assert d.decode(-0.5) == pytest.approx(d.low)
    assert d.decode(1.5) == pytest.approx(d.high)
    for outside in (d.low - 1, d.high + 1, math.nan, math.inf, True, "1", None):
        assert not d.contains(outside)


def test_integers_are_drawn_evenly_also_at_the_ends():
    d = Real("n", 1, 5, integer=True)
    rng = Random(0)
    drawn = Counter(d.sample(rng) for _ in range(5000))
    assert chisquare([drawn[i] for i in range(1, 6)]).pvalue > 1e-3
    assert d.size == 5
    assert Real("r", 0, 1).size == math.inf


def test_a_logarithmic_range_gives_every_decade_the_same_share():
    d = Real("lr", 1e-4, 1e-1, log=True)
    rng = Random(0)
    decades = Counter(int(np.floor(np.log10(d.sample(rng)))) for _ in range(3000))
    assert chisquare([decades[i] for i in (-4, -3, -2)]).pvalue > 1e-3


def test_moves_are_local_and_never_stand_still():
    d = Real("lr", 0.0, 1.0)
    rng = Random(1)
    steps = [abs(d.move(0.5, rng) - 0.5) for _ in range(500)]
    assert min(steps) > 0
    assert np.median(steps) < 0.2
