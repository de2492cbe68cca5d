"""Exact cost tables: found, verified, refused where the cost is not of their form, and fast."""

from __future__ import annotations

import time
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from archipel.core.choice import Choice, Width
from archipel.core.decision import Decision, Real
from archipel.core.errors import SpaceError
from archipel.core.space import Space, when
from archipel.cost.table import CostTable, Term, archs_of, index_matrix
from archipel.spaces.layers import ElasticLinear
from archipel.spaces.mlp import mlp_space
from archipel.spaces.module_space import ModuleSpace

GRID = Space([Decision(n, [1, 2, 5], ordered=True) for n in "abcd"])


def additive(arch):
    return sum((i + 1) * v for i, v in enumerate(arch.values()))


def pairwise(arch):
    return arch["a"] * arch["b"] + arch["b"] * arch["c"] + 7


def cubic(arch):
    return arch["a"] * arch["b"] * arch["c"] + arch["d"]


@pytest.mark.parametrize(("cost", "order"), [(additive, 1), (pairwise, 2), (cubic, 3)])
def test_a_cost_needs_a_table_of_its_order(cost, order):
    table = CostTable.fit(GRID, cost, order)
    assert all(table(a) == cost(a) for a in GRID.enumerate())
    assert isinstance(table({"a": 1, "b": 1, "c": 1, "d": 1}), int)
    if order > 1:
        with pytest.raises(SpaceError, match=f"is not a sum of terms of order {order - 1}: the table gives .*exact is"):
            CostTable.fit(GRID, cost, order - 1)


def test_a_higher_order_than_needed_finds_the_same_terms():
    table = CostTable.fit(GRID, additive, 2)
    assert [len(t.names) for t in table.terms] == [1] * 4


@pytest.mark.parametrize("order", [0, 4, 1.5])
def test_other_orders_do_not_exist(order):
    with pytest.raises(SpaceError, match="order 1, 2 or 3"):
        CostTable.fit(GRID, additive, order)


def test_real_numbers_have_no_table():
    space = Space([Decision("a", [1, 2]), Real("lr", 0.1, 1.0)])
    with pytest.raises(SpaceError, match="'lr' is a number from a range"):
        CostTable.fit(space, lambda a: 1)


def test_a_fit_that_would_ask_for_too_many_costs_is_refused():
    space = Space([Decision(f"d{i}", list(range(7))) for i in range(40)])
    with pytest.raises(SpaceError, match=r"needs more than 20,000 exact costs"):
        CostTable.fit(space, lambda a: 1, order=2)


def test_costs_that_are_not_integers_are_fitted_up_to_rounding():
    table = CostTable.fit(GRID, lambda a: 0.1 * a["a"] + 0.3 * a["b"], 1)
    assert table({"a": 5, "b": 2, "c": 1, "d": 1}) == pytest.approx(1.1)


@st.composite
def conditional_costs(draw):
    """A conditional space, and a cost that is a sum over pairs of decisions that are open together."""
    sizes = draw(st.lists(st.integers(2, 3), min_size=2, max_size=5))
    decisions = [Decision(f"d{i}", list(range(n))) for i, n in enumerate(sizes)]
    conditions = {}
    for i in range(1, len(sizes)):
        if draw(st.booleans()):
            parent = draw(st.integers(0, i - 1))
            allowed = draw(st.lists(st.integers(0, sizes[parent] - 1), min_size=1, max_size=2, unique=True))
            conditions[f"d{i}"] = [when(**{f"d{parent}": allowed})]
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 50, (5, 5, 3, 3))

    def cost(arch):
        names = list(arch)
        return int(sum(values[int(m[1]), int(n[1]), arch[m], arch[n]] for m in names for n in names if m <= n))

    return Space(decisions, conditions), cost


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problem=conditional_costs())
def test_pairwise_costs_over_conditional_decisions_have_an_exact_table_of_order_two(problem):
    space, cost = problem
    table = CostTable.fit(space, cost, 2)
    archs = list(space.enumerate())
    assert table.batch(index_matrix(space, archs)).tolist() == [cost(a) for a in archs]


def test_decisions_that_exclude_each_other_are_fitted():
    space = Space(
        [Decision("op", ["a", "b"]), Decision("x", [1, 2, 3]), Decision("y", [1, 2])],
        {"x": [when(op=["a"])], "y": [when(op=["b"])]},
    )

    def cost(arch):
        return 100 * (arch["op"] == "a") + 10 * arch.get("x", 0) + 3 * arch.get("y", 0)

    table = CostTable.fit(space, cost, 1)
    assert all(table(a) == cost(a) for a in space.enumerate())


def test_index_matrices_hold_positions_and_mark_what_is_closed():
    space = Space([Decision("op", ["a", "b"]), Decision("x", [5, 6, 7])], {"x": [when(op=["b"])]})
    archs = [{"op": "a"}, {"op": "b", "x": 7}]
    index = index_matrix(space, archs)
    assert index.tolist() == [[0, 3], [1, 2]]
    assert archs_of(space, index) == archs


def test_terms_within_others_are_merged():
    pair = Term(("b", "a"), np.arange(16).reshape(4, 4))
    single = Term(("a",), np.array([1, 2, 3, 0]))
    zero = Term(("c",), np.zeros(4, dtype=int))
    table = CostTable(GRID, "cost", 5, [single, zero, pair])
    assert [t.names for t in table.terms] == [("b", "a")]
    assert table({"a": 2, "b": 5, "c": 1, "d": 1}) == 5 + 2 + 2 * 4 + 1


def test_a_hundred_thousand_architectures_take_less_than_a_second():
    space = mlp_space((13,), 3)
    table = CostTable.of(space, "params")
    rng = Random(0)
    index = np.tile(index_matrix(space, [space.sample(rng) for _ in range(1000)]), (100, 1))
    started = time.perf_counter()
    costs = table.batch(index)
    assert time.perf_counter() - started < 1.0  # about 0.02 s on an idle core
    assert costs[:1000].tolist() == costs[-1000:].tolist()


def test_a_resolution_that_depends_on_a_decision_is_noticed():
    class Stride(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = Choice("pool", {"yes": nn.AvgPool1d(2), "no": nn.Identity()})
            w = Width("w", [2, 3])
            self.a, self.b = ElasticLinear(1, w), ElasticLinear(w, 1)

        def forward(self, x):
            return self.b(self.a(self.pool(x).transpose(1, 2))).mean(1)

    space = ModuleSpace(Stride, torch.zeros(1, 1, 8))
    assert CostTable.from_modules(space, "params")({"pool": "yes", "w": 3}) == 3 + 3 + 3 + 1
    with pytest.raises(SpaceError, match="is not a sum over its layers"):
        CostTable.from_modules(space, "macs")
    table = CostTable.of(space, "macs")  # of order 2
    assert {table(a) for a in space.enumerate()} == {space.cost.macs(a) for a in space.enumerate()}


def test_spaces_without_modules_have_no_table_by_layers():
    with pytest.raises(SpaceError, match=r"not read off layers|has no modules"):
        CostTable.from_modules(GRID, "params")


def test_frozen_and_shared_layers_are_counted_as_their_network_counts_them():
    def factory():
        shared = nn.Linear(4, 4)
        frozen = nn.Linear(4, 4)
        frozen.requires_grad_(False)
        return nn.Sequential(
            Choice("first", {"shared": shared, "frozen": frozen}),
            Choice("second", {"shared": shared, "none": nn.Identity()}),
        )

    space = ModuleSpace(factory, torch.zeros(1, 4))
    table = CostTable.from_modules(space, "params")
    assert [table(a) for a in space.enumerate()] == [space.cost.params(a) for a in space.enumerate()] == [20, 20, 20, 0]
    with pytest.raises(SpaceError, match="stand in several places"):
        CostTable.from_modules(space, "macs")
    assert CostTable.of(space, "macs")({"first": "shared", "second": "shared"}) == 32
