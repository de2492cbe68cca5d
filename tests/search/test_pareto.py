"""Pareto fronts and hypervolume against slow definitions and pymoo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archipel.core.errors import UsageError
from archipel.search.pareto import hypervolume, pareto_front

tables = st.integers(1, 4).flatmap(
    lambda m: st.lists(st.lists(st.integers(-3, 3).map(float), min_size=m, max_size=m), min_size=1, max_size=30)
)


def dominates(a, b):
    return all(x >= y for x, y in zip(a, b)) and any(x > y for x, y in zip(a, b))


@given(tables)
def test_the_front_is_what_nothing_dominates(points):
    slow = [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    assert pareto_front(points) == slow


def test_equal_points_and_failures_on_the_front():
    assert pareto_front([[1, 2], [1, 2], [-np.inf, 3], [0, 2], [-np.inf, -np.inf]]) == [0, 1, 2]
    assert pareto_front([]) == []
    assert pareto_front(np.empty((0, 2))) == []


def test_the_front_of_random_points_is_fast_and_mutually_nondominated():
    points = np.random.default_rng(0).normal(size=(5000, 2))
    front = points[pareto_front(points)]
    order = np.argsort(front[:, 0])
    assert (np.diff(front[order, 1]) < 0).all()


def test_hypervolume_worked_by_hand():
    assert hypervolume([[2, 1], [1, 3]], [0, 0]) == 4.0
    assert hypervolume([[2, 1], [1, 3]], [1, 0]) == 1.0  # the second is no better than the reference
    assert hypervolume([[0.9, -5e6]], [0.0, -1e7]) == pytest.approx(0.9 * 5e6)
    assert hypervolume([[3.0], [2.0]], [1.0]) == 2.0
    assert hypervolume([[1, 1, 1], [2, 1, 0.5]], [0, 0, 0]) == 1.5
    assert hypervolume([], [0.0, 0.0]) == 0.0
    assert hypervolume([[-1, 5]], [0, 0]) == 0.0


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_equals_pymoo(objectives):
    hv = pytest.importorskip("pymoo.indicators.hv", reason="needs the extra 'multiobjective'")
    rng = np.random.default_rng(objectives)
    for n in (1, 5, 40):
        points = rng.normal(size=(n, objectives))
        reference = np.full(objectives, -0.7)
        expected = hv.HV(ref_point=-reference)(-points)
        assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(tables)
def test_dominated_points_add_no_volume_and_more_points_never_lose_any(points):
    reference = [-4.0] * len(points[0])
    front = [points[i] for i in pareto_front(points)]
    assert hypervolume(points, reference) == pytest.approx(hypervolume(front, reference))
    assert hypervolume(points[:-1], reference) <= hypervolume(points, reference) + 1e-9


def test_bad_scores_are_named():
    with pytest.raises(UsageError, match=r"points \[1\] are NaN"):
        pareto_front([[1, 2], [np.nan, 0]])
    with pytest.raises(UsageError, match="one row per point"):
        pareto_front([1, 2, 3])
    with pytest.raises(UsageError, match="needs one value per objective"):
        hypervolume([[1, 2]], [0])
    with pytest.raises(UsageError, match="finite scores"):
        hypervolume([[1, np.inf]], [0, 0])
    with pytest.raises(UsageError, match="needs one value per objective"):
        hypervolume([[1, 2]], 0.0)
