"""Limits: read, kept, described, and recognised as impossible."""

from __future__ import annotations

import contextlib
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from archipel.core.decision import Decision
from archipel.core.errors import InfeasibleError, SpaceError, UsageError
from archipel.core.space import Space, when
from archipel.cost.limits import METRICS, Limits, cheapest, limits_behind, parse_limit
from archipel.cost.table import index_matrix
from archipel.spaces.mlp import mlp_space
from archipel.spaces.mobile import mobile_space

SPACE = mlp_space((2,), 1, widths=[2, 3, 4], depth=2, activations=["relu"], norms=["none"])


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        ("macs=5e6", "macs", 5e6),
        ("macs = 5M", "macs", 5e6),
        ("params=1M", "params", 1e6),
        ("params<=12k", "params", 12e3),
        ("PARAMS=1_000", "params", 1000),
        ("latency=3ms", "latency_ms", 3),
        ("latency=3", "latency_ms", 3),
        ("latency=0.5s", "latency_ms", 500),
        ("latency=250us", "latency_ms", 0.25),
        ("memory=2MB", "memory_bytes", 2e6),
        ("memory=2MiB", "memory_bytes", 2 * 2**20),
        ("memory=64 kB", "memory_bytes", 64e3),
        ("memory_bytes=100", "memory_bytes", 100),
        ("training=1G", "training_bytes", 1e9),
        ("macs=.5G", "macs", 5e8),
        ("macs=5.", "macs", 5),
    ],
)
def test_limits_are_read_with_their_units(text, metric, value):
    assert parse_limit(text) == (metric, value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("macs", "should read COST=NUMBER"),
        ("=5", "should read COST=NUMBER"),
        ("macs=", "should read COST=NUMBER"),
        (7, "should read COST=NUMBER"),
        ("macs>5", "should read COST=NUMBER"),
        ("mac=5", r"no cost 'mac'\. Did you mean: macs"),
        ("flops=5", "no cost 'flops'"),
        ("macs=5ms", "unit 'ms' does not fit macs. Known: none, k, m, g"),
        ("latency=5MB", "unit 'MB' does not fit latency"),
        ("params=5Mi", "unit 'Mi' does not fit"),
        ("macs=five", "'five' is not a number"),
        ("macs=nan", "'nan' is not a number"),
        ("macs=inf", "'inf' is not a number"),
        ("macs=1e999", "positive, finite"),
        ("macs=0", "positive, finite"),
        ("macs=-3", "positive, finite"),
        ("macs=1,000", "'1,000' is not a number"),
        ("macs=5e6 M M", "is not a number"),
    ],
)
def test_mistakes_in_limits_are_explained(text, message):
    with pytest.raises(UsageError, match=message):
        parse_limit(text)


near_limits = st.from_regex(r"[a-z]{0,8}[<=]{0,2}[-+0-9.e_]{0,8}[a-zA-Z ]{0,4}", fullmatch=True)


@given(text=st.text(max_size=20) | near_limits)
def test_no_text_leads_to_anything_but_a_limit_or_a_clear_error(text):
    with contextlib.suppress(UsageError):
        metric, value = parse_limit(text)
        assert metric in METRICS.values()
        assert 0 < value < float("inf")


def test_a_limit_is_inclusive_and_all_must_hold():
    limits = Limits.parse(["params=25", "macs=18"], SPACE)
    costs = {(a, b): (3 * a + (a + 1) * b + b + 1, 2 * a + a * b + b) for a in (2, 3, 4) for b in (2, 3, 4)}
    for (a, b), (params, macs) in costs.items():
        assert limits.feasible({"width0": a, "width1": b}) == (params <= 25 and macs <= 18)
    assert limits.metrics == ("params", "macs")
    assert limits({"width0": 2, "width1": 2})


def test_limits_are_described_in_words():
    assert Limits.parse(["latency=3ms", "params=1M", "memory=1.5"], SPACE).describe() == (
        "params <= 1,000,000, memory_bytes <= 1.5, latency_ms <= 3"
    )
    assert Limits.parse([], SPACE).describe() == "no limits"
    assert Limits.parse([], SPACE).feasible({})


def test_one_cost_has_one_limit():
    with pytest.raises(UsageError, match="memory_bytes is limited twice"):
        Limits.parse(["memory=1MB", "memory_bytes=2MB"], SPACE)


def test_the_excess_is_the_largest_share_of_a_limit():
    limits = Limits.parse(["params=10", "macs=24"], SPACE)
    assert limits.excess({"width0": 4, "width1": 4}) == 37 / 10
    assert limits.excess_batch(index_matrix(SPACE, [{"width0": 2, "width1": 2}])).tolist() == [1.5]


@pytest.mark.parametrize("tabulated", [True, False])
def test_many_architectures_are_judged_at_once(tabulated):
    space = mlp_space((5,), 3, widths=[4, 8], depth=(1, 3))
    limits = Limits.parse(["params=150", "macs=100"], space)
    archs = list(space.enumerate())
    batch = limits.tabulated() if tabulated else limits
    good = batch.feasible_batch(index_matrix(space, archs))
    assert good.tolist() == [limits.feasible(a) for a in archs]
    assert 0 < good.sum() < len(archs)
    assert ((batch.excess_batch(index_matrix(space, archs)) <= 1) == good).all()


def test_what_cannot_be_tabulated_says_so_and_own_costs_can():
    with pytest.raises(SpaceError, match="no exact table for memory_bytes"):
        Limits.parse(["memory=1MB"], SPACE).tabulated()
    own = Limits({"latency_ms": 5}, SPACE, {"latency_ms": lambda a: a["width0"] + a["width1"]}).tabulated()
    assert own.feasible_batch(np.array([[0, 1], [2, 2]])).tolist() == [True, False]
    assert not own.feasible({"width0": 4, "width1": 4})


def test_memory_and_latency_can_be_limited():
    arch = {"width0": 2, "width1": 2}
    # In the second layer: the input, held by the caller (2), the first layer's output, held by the row of layers (2),
    # and the input and the output of the activation (2 + 2).
    assert SPACE.cost.memory_bytes(arch) == 4 * (2 + 2 + 2 + 2)
    assert Limits.parse(["memory=32B"], SPACE).feasible(arch)
    assert not Limits.parse(["memory=31B"], SPACE).feasible(arch)
    assert Limits.parse(["latency=10s"], SPACE).feasible(arch)
    assert not Limits.parse(["latency=1e-6us"], SPACE).feasible(arch)


# --- the cheapest --------------------------------------------------------------------------------------------------


def test_the_cheapest_of_a_small_space_is_exact():
    found = Limits.parse([], SPACE).cheapest("params")
    assert (found.arch, found.value, found.exact) == ({"width0": 2, "width1": 2}, 15, True)


def test_the_cheapest_of_a_large_space_is_labelled_as_found():
    space = mobile_space((1, 8, 8), 10)
    found = cheapest(space, space.cost.params)
    assert not found.exact
    assert "coordinate descent" in found.how
    assert all(found.value <= space.cost.params(space.sample(Random(s))) for s in range(20))
    assert space.cost.params(found.arch) == found.value


def test_descent_passes_conditions_and_ends():
    space = Space(
        [Decision(f"d{i}", list(range(12))) for i in range(5)], {"d3": [when(d0=[0, 1])], "d4": [when(d3=[2, 3])]}
    )
    assert space.size > 4096
    found = cheapest(space, lambda a: sum((v - 3) ** 2 for v in a.values()) + 5 * ("d3" in a))
    assert (found.value, found.exact) == (0, False)


def test_a_cost_that_is_low_enough_ends_the_search():
    asked = []
    found = cheapest(SPACE, lambda a: asked.append(1) or 10, enough=10)
    assert (len(asked), found.exact) == (1, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("params=14", r"mlp keeps params <= 14\. The smallest possible has 15 \(all 9 compared\): \{'width0': 2"),
        ("macs=9", r"No network of mlp keeps macs <= 9\. The smallest possible has 10"),
        ("memory=20", r"memory_bytes <= 20\. The smallest possible has 32"),
        ("latency=1e-6us", r"latency_ms <= 1e-09\. The smallest found has .*the network with fewest MACs"),
    ],
)  # fmt: skip
def test_impossible_limits_name_the_smallest_network(text, message):
    with pytest.raises(InfeasibleError, match=message):
        Limits.parse([text], SPACE).check_possible()


def test_possible_limits_pass_and_cost_little():
    space = mobile_space((1, 8, 8), 10)
    calls = []
    build = space.build_meta
    space.cost.build_meta = lambda arch: calls.append(1) or build(arch)
    Limits.parse(["params=1M", "macs=100M"], space).check_possible()
    assert len(calls) <= 4


def test_a_large_space_admits_that_its_smallest_was_only_found():
    space = mobile_space((1, 8, 8), 10)
    with pytest.raises(InfeasibleError, match=r"The smallest found has [\d,]+ \(coordinate descent"):
        Limits.parse(["params=100"], space).check_possible()


def test_limits_are_recognised_behind_a_test_of_feasibility():
    limits = Limits.parse(["params=20"], SPACE)
    assert limits_behind(limits) is limits
    assert limits_behind(limits.feasible) is limits
    assert limits_behind(lambda arch: True) is None
    assert limits_behind(None) is None


def test_networks_within_a_limit_are_that_small():
    limits = Limits.parse(["params=20"], SPACE)
    for arch in SPACE.enumerate():
        size = sum(p.numel() for p in SPACE.build(arch).parameters())
        assert limits.feasible(arch) == (size <= 20)
    assert isinstance(SPACE.build(arch), nn.Module)
    assert torch.isfinite(SPACE.build(arch)(torch.zeros(1, 2))).all()
