"""Routes through a central network: flow, reduction, squeeze, and the stages of the search."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from archipel.core.errors import SpaceError, UsageError
from archipel.data.multitask import MultiTaskDataset, Task, TaskSplit
from archipel.nets.batch_norm import SwitchableBatchNorm
from archipel.nets.central import CentralNetwork, ResidualBlock
from archipel.search.differentiable.dynamic_mtl_topology import DynamicTopology, Trunk
from archipel.search.differentiable.flows import Route, band, by_weight, reduce_route

torch.set_num_threads(1)

TASKS = (Task("a", "classification", 2), Task("b", "classification", 2))


def route(N=5, M=3, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    A, B = (torch.softmax(torch.randn(N, generator=g, dtype=dtype), 0) for _ in range(2))
    return Route(A, B, torch.rand(N, N, generator=g, dtype=dtype) * band(N, M))


def paths(r):
    """All routes: read-in node, nodes on the way, read-out node, with the product of the weights."""
    N = len(r.A_N)
    for length in range(1, N + 1):
        for nodes in itertools.combinations(range(N), length):
            w = float(r.A_N[nodes[0]]) * float(r.B_N[nodes[-1]])
            for i, j in itertools.pairwise(nodes):
                w *= float(r.gamma_NN[i, j])
            yield nodes, w


def dataset(n=48):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    split = TaskSplit(x, {"a": (x[:, 0] > 0).long(), "b": (x[:, 1] > 0).long()})
    return MultiTaskDataset("toy", TASKS, split, split, split)


def trunk():
    return Trunk.perceptron(4, 8, nodes=4, reach=2)


def quick(**settings):
    return DynamicTopology(**({"edges": 3, "warmup": 1, "epochs": 2, "tune": 1, "batch_size": 8} | settings))


# --- flow ----------------------------------------------------------------------------------------------------------


def test_the_total_is_the_sum_over_all_paths_from_either_side():
    for seed in range(5):
        r = route(seed=seed)
        brute = math.fsum(w for _, w in paths(r))
        assert abs(r.total() - brute) < 1e-12
        assert abs(float((r.forward_flow() * r.B_N).sum()) - brute) < 1e-12


def test_an_edge_carries_the_paths_that_use_it_and_a_cut_carries_all_that_cross_it():
    r = route(seed=1)
    phi = r.importance()
    for i, j in r.edges:
        through = math.fsum(w for nodes, w in paths(r) if (i, j) in set(itertools.pairwise(nodes)))
        assert abs(float(phi[i, j]) - through) < 1e-12
    for c in range(4):
        crossing = float(phi[: c + 1, c + 1 :].sum())
        beside = math.fsum(w for nodes, w in paths(r) if nodes[-1] <= c or nodes[0] > c)
        assert abs(crossing + beside - r.total()) < 1e-12


def test_the_number_of_candidate_edges():
    assert [int(band(N, M).sum()) for N, M in ((4, 2), (8, 3), (12, 3), (15, 4))] == [5, 18, 30, 50]
    assert not bool(band(8, 3).tril().any())


# --- reduction -----------------------------------------------------------------------------------------------------


def test_reduction_reaches_its_target_and_never_cuts_the_route():
    for seed, target in itertools.product(range(8), (6, 3, 1, 0)):
        reduced = reduce_route(route(seed=seed), target)
        assert reduced.total() > 0
        assert len(reduced.edges) <= max(target, 1)
        assert abs(float(reduced.A_N.sum()) - 1) < 1e-9
        assert abs(float(reduced.B_N.sum()) - 1) < 1e-9


def test_where_the_target_would_cut_the_route_the_fewest_edges_are_kept():
    A, B = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0, 0, 1.0])
    r = reduce_route(Route(A, B, band(4, 1).float()), 1)
    assert r.edges == [(0, 1), (1, 2), (2, 3)]


def test_a_weak_edge_on_the_only_way_is_kept_where_its_weight_alone_would_go_first():
    A, B = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0.2, 0.8])
    gamma = torch.tensor([[0, 0.9, 0.1], [0, 0, 0.9], [0, 0, 0.0]])
    by_flow, weights = (reduce_route(Route(A, B, gamma), 2, **k) for k in ({}, {"score": by_weight}))
    assert by_flow.edges == weights.edges == [(0, 1), (1, 2)]
    gamma = torch.tensor([[0, 0.2, 0.3], [0, 0, 1.0], [0, 0, 0.0]])
    A, B = torch.tensor([0.9, 0.1, 0]), torch.tensor([0, 0.9, 0.1])
    assert (0, 1) in reduce_route(Route(A, B, gamma), 2).edges  # carries most, though it weighs least
    assert (0, 1) not in reduce_route(Route(A, B, gamma), 2, by_weight).edges


def test_a_share_of_the_flow_stops_the_deletion():
    r = route(seed=3)
    assert len(reduce_route(r, 0, share=1.0).edges) < len(reduce_route(r, 0, share=1e-9).edges) == len(r.edges)


def test_deleting_what_nothing_flows_through_changes_no_output():
    net = central(4, 2)
    g = torch.Generator().manual_seed(1)
    gamma = torch.rand(4, 4, generator=g) * band(4, 2)
    gamma[0, 1] = 0.0
    A, B = torch.tensor([0.5, 0.5, 0, 0]), torch.tensor([0, 0, 1.0, 0])  # nothing behind node 2 is read out
    r, x = Route(A, B, gamma), torch.randn(6, 4)
    with torch.no_grad():
        full = net(x, "a", r.A_N, r.B_N, r.gamma_NN)
        cut = r.without((0, 1)).without((2, 3)).without((1, 3))
        torch.testing.assert_close(net(x, "a", cut.A_N, cut.B_N, cut.gamma_NN), full, rtol=0, atol=0)


# --- the network ---------------------------------------------------------------------------------------------------


def central(N, M):
    torch.manual_seed(0)
    ends = {t.name: nn.Linear(4, 8) for t in TASKS}
    return CentralNetwork(band(N, M), lambda: ResidualBlock(8), ends, {t.name: nn.Linear(8, 2) for t in TASKS}).eval()


def test_equal_routes_and_inputs_have_equal_trunk_features_whatever_the_task():
    net, r, x = central(4, 2), route(4, 2, dtype=torch.float32), torch.randn(5, 4)
    net.adapters["b"].load_state_dict(net.adapters["a"].state_dict())
    a, b = (net.trunk(x, t, r.A_N, r.B_N, r.gamma_NN) for t in ("a", "b"))
    assert torch.equal(a, b)


def test_each_task_has_batch_statistics_of_its_own():
    net, r, x = central(4, 2).train(), route(4, 2, dtype=torch.float32), torch.randn(16, 4)
    net.trunk(x, "a", r.A_N, r.B_N, r.gamma_NN)
    norm = next(m for m in net.modules() if isinstance(m, SwitchableBatchNorm))
    assert bool(norm.norms[0].running_mean.any())
    assert not bool(norm.norms[1].running_mean.any())
    assert norm.norms[0].weight is norm.norms[1].weight


def test_only_blocks_with_weight_are_computed_and_unused_ones_can_go():
    net, x = central(4, 2), torch.randn(3, 4)
    gamma = torch.zeros(4, 4)
    gamma[0, 2] = 1.0
    A, B = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0, 1.0, 0])
    seen = []
    for name, block in net.blocks.items():
        block.register_forward_hook(lambda m, a, o, name=name: seen.append(name))
    before = net(x, "a", A, B, gamma)
    assert seen == ["0-2"]
    net.prune({(0, 2)})
    assert list(net.blocks) == ["0-2"]
    assert torch.equal(net(x, "a", A, B, gamma), before)
    with pytest.raises(UsageError, match="no node that is read out"):
        net(x, "a", A, torch.tensor([0, 0, 0, 1.0]), gamma)
    with pytest.raises(UsageError, match="No task 'z'"):
        net(x, "z", A, B, gamma)


# --- the search ----------------------------------------------------------------------------------------------------


def test_the_warm_up_leaves_all_routes_as_they_are():
    method = quick(warmup=2, epochs=1)
    calls = []
    method._route_step = lambda batch, optimizer: calls.append(1) or False
    method.train(trunk(), dataset(), 0)
    assert len(calls) == 3  # batches of the one epoch of search
    assert not bool(method.g_KNN.any())


def test_a_search_reduces_trains_on_and_keeps_only_what_is_used():
    method = quick(epochs=6, route_lr=0.1, tune=15)
    found = method.search(trunk(), dataset())
    assert set(found.reached.values()) <= {1, 2, 3}
    used = {f"{i}-{j}" for r in found.routes.values() for i, j in r.edges}
    assert set(method.network.blocks) == used
    assert [e["stage"] for e in found.log[:2]] == ["warm-up", "search"]
    assert min(method.measure(dataset().val, found.routes).values()) > 0.8
    assert set(found.as_dict()) == {"a", "b"}


def test_kept_edges_can_weigh_one_from_the_reduction_on():
    found = quick(unit_edges=True).search(trunk(), dataset())
    assert all(set(r.gamma_NN.unique().tolist()) <= {0.0, 1.0} for r in found.routes.values())
    assert all(r.edges for r in found.routes.values())


def test_the_squeeze_loss_shortens_routes():
    depth = {}
    for squeeze in (0.0, 5.0):
        method = quick(epochs=8, route_lr=0.1, squeeze=squeeze, kappa=0.0)
        _, active = method.train(trunk(), dataset(), 0)
        depth[squeeze] = sum(max(0.0, method.route(i, True).depth()) for i in range(2))
        assert 0 <= active <= 1
    assert depth[5.0] <= depth[0.0]
    method = quick(kappa=1.0)
    method.allowed = band(4, 2)
    last, first = torch.tensor([0, 0, 0, 1.0]), torch.tensor([1.0, 0, 0, 0])
    assert float(method.squeeze_loss([Route(first, last, torch.zeros(4, 4))] * 2)) == 4.0
    assert float(method.squeeze_loss([Route(last, first, torch.zeros(4, 4))])) == 0.0


def test_searches_of_one_seed_are_equal():
    first, second = (quick().search(trunk(), dataset(), seed=3) for _ in range(2))
    assert first.log == second.log
    assert first.as_dict() == second.as_dict()


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"squeeze": -1.0}, {"edges": -1}, {"lr": 0.0}, {"batch_size": 1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError):
        quick(**settings)


def test_impossible_routes_are_refused():
    with pytest.raises(UsageError, match="span from 1 to N - 1 = 3"):
        band(4, 4)
    with pytest.raises(UsageError, match="not M=0"):
        band(4, 0)
    ones = torch.ones(3) / 3
    with pytest.raises(SpaceError, match="from earlier to later"):
        Route(ones, ones, torch.ones(3, 3).tril(-1))
    with pytest.raises(SpaceError, match="not finite"):
        Route(ones * math.nan, ones, torch.zeros(3, 3))
    with pytest.raises(SpaceError, match="carries nothing"):
        reduce_route(Route(torch.tensor([0, 0, 1.0]), torch.tensor([1.0, 0, 0]), torch.zeros(3, 3)), 1)
    with pytest.raises(UsageError, match="to -1 edges"):
        reduce_route(route(), -1)
    with pytest.raises(UsageError, match="adapter and a head"):
        CentralNetwork(band(3, 1), nn.Identity, {"a": nn.Identity()}, {})
