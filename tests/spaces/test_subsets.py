"""Spaces whose nodes take any subset of (source, operation) pairs."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.choice import Blend, Seat
from archipel.core.errors import ShapeError, SpaceError
from archipel.core.subset import Subset
from archipel.cost.table import CostTable
from archipel.search.differentiable.costs import expected_cost
from archipel.search.differentiable.mix import Mixture
from archipel.search.differentiable.parameters import ArchParameters
from archipel.spaces.plain_operations import ALL_OPS, plain_operations
from archipel.spaces.subsets import MicroSubsets, SubsetSpace

torch.set_num_threads(1)


def sized(layers: int) -> SubsetSpace:
    return SubsetSpace((3, 32, 32), 10, C=2, layers=layers)


def test_a_cell_of_four_nodes_and_two_operations_has_its_golden_number_of_forms():
    one = SubsetSpace((1, 4, 4), 2, C=2, layers=1, reduce_at=[])
    assert one.size == math.prod(2 ** (2 * n) - 1 for n in range(2, 6)) == 15 * 63 * 255 * 1023 == 246_517_425


def test_fourteen_cells_have_their_golden_number_of_forms():
    space = sized(14)
    assert space.size == 246_517_425**14
    assert math.log10(space.size) == pytest.approx(117.49, abs=0.01)


def test_twenty_cells_have_560_gates_and_their_golden_number_of_forms():
    space = sized(20)
    assert sum(len(n.labels) for n in space.nodes.values()) == 560
    assert math.log10(space.size) == pytest.approx(167.84, abs=0.01)


def test_the_last_pair_is_implied_where_no_other_is_taken():
    space = MicroSubsets((1, 4, 4), 2, C=2, cells=1)
    arch = space.from_pairs({"cell0.n1": ["conv3x3<0"], "cell0.n2": ["skip<0", "conv3x3<1"], "cell0.n3": ["skip<2"]})
    assert "cell0.n1.conv3x3<0" not in arch
    assert arch["cell0.n2.conv3x3<1"]
    assert space.pairs(arch)["cell0.n1"] == ["conv3x3<0"]
    for seed in range(20):
        drawn = space.sample(Random(seed))
        assert space.from_pairs(space.pairs(drawn)) == drawn
        assert all(space.pairs(drawn).values())


def test_a_node_computes_the_sum_or_the_mean_of_what_it_takes():
    pairs = {"double<0": (0, nn.Linear(2, 2)), "same<0": (0, nn.Identity()), "same<1": (1, nn.Identity())}
    states = [torch.randn(3, 2), torch.randn(3, 2)]
    for mean in (False, True):
        node = Subset("n", pairs, mean)
        node.seat = Seat(Blend({}, None, node.arch(["same<0", "same<1"])))
        torch.testing.assert_close(node(states), (states[0] + states[1]) / (2 if mean else 1))


def test_a_blend_is_a_weighted_sum_in_which_zeros_are_never_computed():
    calls = []

    class Counted(nn.Module):
        def __init__(self, label):
            super().__init__()
            self.label = label

        def forward(self, x):
            calls.append(self.label)
            return x

    node = Subset("n", {f"{k}<0": (0, Counted(k)) for k in "abc"}, mean=True)
    x = torch.randn(2, 2)
    for decider in (Mixture({"n": torch.tensor([0.2, 0.0, 0.5])}), Blend({"n": torch.tensor([0.2, 0.0, 0.5])}, None)):
        calls.clear()
        node.seat = Seat(decider)
        torch.testing.assert_close(node([x]), 0.7 * x)
        assert calls == ["a", "c"]
    node.seat = Seat(Mixture({"n": torch.zeros(3)}))
    with pytest.raises(SpaceError, match="'n' has no input left"):
        node([x])


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("mean", [False, True])
def test_gates_of_zero_and_one_cost_and_compute_what_the_discrete_network_does(metric, mean):
    space = SubsetSpace((1, 8, 8), 2, C=2, layers=3, nodes=2, mean=mean)
    net = space.supernet()
    parameters = ArchParameters.of(net)
    phi = expected_cost(space, parameters, metric)
    for seed in range(4):
        arch = space.sample(Random(seed))
        gates = parameters.one_hot(arch)
        assert {n: int(w.sum()) for n, w in gates.items()} == {n: len(p) for n, p in space.pairs(arch).items()}
        assert float(phi(gates)) == getattr(space.cost, metric)(arch)
    if not mean:
        net.decider = Mixture(gates)
        x = torch.randn(2, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(net(x), net.extract(arch)(x), rtol=0, atol=1e-6)


def test_cells_of_the_same_number_decide_alike():
    space = SubsetSpace((1, 8, 8), 2, C=2, layers=3, nodes=1, tie=[0, 1, 0], reduce_at=[1])
    assert space.size == 15**2
    assert {r.name: len(r.modules) for r in ArchParameters.of(space.supernet()).rows.values()} == {
        "cell0.n2": 2,
        "cell1.n2": 1,
    }
    assert MicroSubsets((1, 8, 8), 2, C=2, cells=3, tie="kind").size == 3 * 15 * 63


def test_every_operation_keeps_or_halves_the_plane_and_the_searched_network_is_not_affine():
    for name, make in plain_operations(True).items():
        for stride in (1, 2):
            assert make(8, stride)(torch.zeros(2, 8, 6, 6)).shape == (2, 8, 6 // stride, 6 // stride), name
    space = SubsetSpace((1, 4, 4), 2, C=4, layers=1, nodes=1, ops=ALL_OPS, reduce_at=[0])
    norms = [m for n in space.supernet().modules() if isinstance(n, Subset) for m in n.modules()]
    assert not any(m.affine for m in norms if isinstance(m, nn.BatchNorm2d))
    assert len(ALL_OPS) == 12


def test_pairs_cannot_be_fixed_one_by_one():
    space = MicroSubsets((1, 4, 4), 2, C=2, cells=1)
    with pytest.raises(SpaceError, match="searched together"):
        ArchParameters.of(space.supernet(), fixed={"cell0.n1.skip<0": True})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ops": ["conv9x9"]}, "cannot take operation 'conv9x9'"),
        ({"ops": ["none"]}, "cannot take operation 'none'"),
        ({"ops": []}, "at least one"),
        ({"tie": "level"}, "tied by cell, kind or a list"),
        ({"tie": [0]}, "a number for each of the 3 cells"),
        ({"layers": 2}, "cannot hold two reductions"),
        ({"reduce_at": [7]}, "different cells from 0 to 2"),
        ({"nodes": 0}, "1 to 8 nodes"),
        ({"C": 0}, "C must be a positive integer"),
        ({"input_shape": (1, 6, 6)}, "divisible by 4"),
        ({"input_shape": (6,)}, "take images"),
    ],
)
def test_what_makes_no_network_is_refused(wrong, message):
    with pytest.raises(SpaceError, match=message):
        SubsetSpace(**{"input_shape": (1, 8, 8), "classes": 2, "C": 2, "layers": 3, **wrong})


def test_a_node_needs_a_pair_a_known_one_and_its_sources():
    with pytest.raises(SpaceError, match="no pair"):
        Subset("n", {})
    node = Subset("n", {"same<1": (1, nn.Identity())})
    assert node.own_decisions() == []
    with pytest.raises(SpaceError, match="there is no 'other<0'"):
        node.arch(["other<0"])
    with pytest.raises(SpaceError, match="got none"):
        node.arch([])
    with pytest.raises(ShapeError, match="2 sources but got 1"):
        node([torch.ones(1)])


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_costs_are_read_off_layers_though_the_last_operation_is_taken_in_two_ways(metric):
    space = MicroSubsets((1, 4, 4), 2, C=2, cells=1)
    table = CostTable.from_modules(space, metric)
    for seed in range(30):
        arch = space.sample(Random(seed))
        assert table(arch) == getattr(space.cost, metric)(arch)
