"""BMTAS: trees of tasks, their exact expected cost, the supernet, and the search."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import UsageError
from archipel.data.multitask import MISSING, MultiTaskDataset, Task, TaskSplit
from archipel.nets.branched import BranchedNet
from archipel.search.differentiable.bmtas import BMTAS, BranchingSupernet, Plan
from archipel.search.differentiable.branching import (
    blocks,
    expected_branches,
    lattice,
    normal,
    random_tree,
    refine,
    tree_of,
)
from archipel.search.multitask import measure_tasks, train_tasks

torch.set_num_threads(1)

TASKS = (Task("a", "classification", 2), Task("b", "classification", 2), Task("c", "regression", 1))


def plan(layers=2, C=3):
    return Plan(
        lambda: nn.Linear(4, C),
        lambda index: nn.Sequential(nn.ReLU(), nn.Linear(C, C), nn.BatchNorm1d(C)),
        lambda task: nn.Linear(C, task.classes),
        (1.0,) * layers,
    )


def dataset(n=24):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g)
    split = TaskSplit(x, {"a": (x[:, 0] > 0).long(), "b": (x[:, 1] > 0).long(), "c": x[:, 2:3].clone()})
    return MultiTaskDataset("toy", TASKS, split, split, split)


def search(**settings):
    return BMTAS(**({"epochs": 2, "batch_size": 8, "alpha_share": 0.5} | settings))


def random_rows(L, T, seed=0, dtype=torch.float64):
    return torch.softmax(2 * torch.randn(L, T, T, generator=torch.Generator().manual_seed(seed), dtype=dtype), -1)


# --- trees ---------------------------------------------------------------------------------------------------------


def test_partitions_are_counted_by_bell_numbers_and_refinement_is_their_meet():
    assert [len(lattice(T).partitions) for T in (2, 3, 4, 5)] == [2, 5, 15, 52]
    of = lattice(4)
    assert of.partitions[0] == (0, 0, 0, 0)
    assert of.partitions[-1] == (0, 1, 2, 3)
    for a in of.partitions:
        assert refine(a, a) == a
        for b in of.partitions:
            assert refine(a, b) == refine(b, a)
            assert blocks(refine(a, b)) >= max(blocks(a), blocks(b))


def test_uniform_choices_have_the_published_expected_branches():
    uniform = {T: torch.full((3, T, T), 1 / T, dtype=torch.float64) for T in (2, 3)}
    torch.testing.assert_close(expected_branches(uniform[2]).tolist(), [1.5, 1.75, 1.875])
    torch.testing.assert_close(expected_branches(uniform[2], "paper").tolist(), [1.5, 1.75, 1.875])
    exact = [2.111111, 2.679012, 2.890261]
    paper = [2.111111, 2.753086, 2.939643]
    torch.testing.assert_close(expected_branches(uniform[3]).tolist(), exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(expected_branches(uniform[3], "paper").tolist(), paper, atol=1e-6, rtol=0)


@pytest.mark.parametrize("T", [2, 3, 4])
def test_the_exact_expectation_is_the_mean_over_sampled_trees_and_the_shortcut_is_not(T):
    p, n = random_rows(3, T), 4000
    g = torch.Generator().manual_seed(1)
    drawn = torch.stack([torch.multinomial(row, n, True, generator=g) for row in p.flatten(0, 1)]).view(3, T, n)
    counts = torch.tensor([[blocks(k) for k in tree_of(drawn[:, :, i].tolist())] for i in range(n)]).double()
    exact, error = expected_branches(p), counts.std(0) / n**0.5
    assert bool(((counts.mean(0) - exact).abs() <= 4 * error + 1e-12).all())
    shortcut = expected_branches(p, "paper")
    if T == 2:
        torch.testing.assert_close(shortcut, exact)
    else:
        assert bool((shortcut[1:] > exact[1:] + 1e-3).all())


def test_probabilities_of_partitions_sum_to_one_and_branches_never_get_fewer():
    p = random_rows(5, 4, 3)
    of = lattice(4)
    P = torch.zeros(15, dtype=torch.float64)
    P[0] = 1.0
    for row in p:
        P = of.after(P, of.grouping(row))
        assert abs(float(P.sum()) - 1) < 1e-12
    branches = expected_branches(p)
    assert bool((branches[1:] >= branches[:-1] - 1e-12).all())


def test_permuting_the_copies_of_a_layer_changes_no_expectation():
    p = random_rows(3, 4, 4)
    permuted = p.clone()
    permuted[1] = p[1][:, torch.tensor([2, 0, 3, 1])]
    torch.testing.assert_close(expected_branches(permuted), expected_branches(p))


def test_one_hot_choices_cost_exactly_what_their_tree_costs():
    rng = Random(0)
    for _ in range(20):
        choices = [[rng.randrange(4) for _ in range(4)] for _ in range(3)]
        one_hot = nn.functional.one_hot(torch.tensor(choices), 4).double()
        assert expected_branches(one_hot).tolist() == [float(blocks(k)) for k in tree_of(choices)]


def test_tasks_with_the_same_choices_never_split_and_split_ones_never_merge():
    tree = tree_of([[0, 0, 1], [2, 2, 2], [1, 1, 0]])
    assert tree == [(0, 0, 1)] * 3
    assert tree_of([[0, 1], [0, 0]]) == [(0, 1), (0, 1)]


def test_random_trees_are_uniform_among_all_that_can_be_reached():
    trees = [
        (a, b) for a in lattice(3).partitions for b in lattice(3).partitions if refine(a, b) == b
    ]  # fmt: skip
    rng = Random(0)
    counts = dict.fromkeys(trees, 0)
    for _ in range(6000):
        counts[tuple(random_tree(3, 2, rng))] += 1
    assert min(counts.values()) > 6000 / len(trees) * 0.8
    assert max(counts.values()) < 6000 / len(trees) * 1.2


# --- networks ------------------------------------------------------------------------------------------------------


def test_the_branched_network_has_a_copy_for_each_group_and_groups_share_it():
    tree = [(0, 0, 0), (0, 0, 1)]
    net = plan().branched(tree, TASKS)
    assert net.branches == [1, 2]
    assert plan().cost(tree) == 3.0
    seen = []
    for copies in net.layers:
        for copy in copies:
            copy.register_forward_hook(lambda m, a, o: seen.append(id(m)))
    outputs = net.eval()(torch.randn(5, 4))
    assert len(seen) == len(set(seen)) == 3  # nothing is computed twice
    assert {n: tuple(o.shape) for n, o in outputs.items()} == {"a": (5, 2), "b": (5, 2), "c": (5, 1)}


def test_a_tree_that_merges_again_is_refused():
    with pytest.raises(UsageError, match="merges tasks that have split"):
        plan().branched([(0, 1, 1), (0, 0, 0)], TASKS)
    with pytest.raises(UsageError, match="groups 2 tasks, but there are 3"):
        BranchedNet([(0, 1)], ["a", "b", "c"], nn.Identity(), lambda i: nn.Identity(), {})
    with pytest.raises(UsageError, match="1 layers, but there are costs for 2"):
        plan().branched([(0, 0, 0)], TASKS)


def test_under_one_hot_weights_the_supernet_is_the_branched_network_and_nothing_else_is_computed():
    choices = [[0, 0, 1], [2, 2, 0]]
    tree = tree_of(choices)
    supernet, net = BranchingSupernet(plan(), TASKS), plan().branched(tree, TASKS)
    net.stem.load_state_dict(supernet.stem.state_dict())
    net.heads.load_state_dict(supernet.heads.state_dict())
    for l, (groups, row) in enumerate(zip(tree, choices)):
        for t in range(3):
            net.layers[l][groups[t]].load_state_dict(supernet.layers[l][row[t]].state_dict())
    x, seen = torch.randn(6, 4), []
    for copies in supernet.layers:
        for copy in copies:
            copy.register_forward_hook(lambda m, a, o: seen.append(id(m)))
    outputs = net.eval()(x)
    for t, task in enumerate(TASKS):
        z = nn.functional.one_hot(torch.tensor([row[t] for row in choices]), 3).float()
        torch.testing.assert_close(supernet.eval()(x, task.name, z), outputs[task.name], rtol=0, atol=1e-6)
    assert len(seen) == 2 * 3


# --- the search ----------------------------------------------------------------------------------------------------


def test_a_heavy_cost_makes_all_tasks_share_and_the_cost_touches_no_weight():
    found = search(cost_weight=50.0, epochs=25, alpha_lr=0.1)
    result = found.search(plan(), dataset())
    assert result.tree == [(0, 0, 0)] * 2
    assert result.expected < 2.3
    loss = found.resource_loss()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(loss, list(found.supernet.parameters()))


def test_the_warm_up_gives_every_task_its_own_copy_and_leaves_the_logits_alone():
    method = search(epochs=20)
    method.logits, method.tasks, method._warm, method._tau = nn.Parameter(torch.zeros(2, 3, 3)), TASKS, False, 1.0
    assert method.mixture(1).tolist() == [[0.0, 1.0, 0.0]] * 2
    one = search(epochs=1)
    one.search(plan(), dataset())
    assert not bool(one.logits.any())


def test_the_temperature_falls_from_five_to_a_tenth(monkeypatch):
    taus, method = [], search(epochs=5)
    original = BMTAS._epoch

    def spy(self, *args):
        out = original(self, *args)
        taus.append(self._tau)
        return out

    monkeypatch.setattr(BMTAS, "_epoch", spy)
    method.search(plan(), dataset())
    torch.testing.assert_close(taus, [5.0, 3.775, 2.55, 1.325, 0.1])


def test_a_task_without_labels_in_a_batch_is_skipped():
    data = dataset()
    y = dict(data.train.y) | {"a": torch.full((24,), MISSING)}
    data = MultiTaskDataset("toy", TASKS, TaskSplit(data.train.x, y), data.val, None)
    found = search().search(plan(), data)
    assert all(e["loss"] == e["loss"] for e in found.log)


def test_searches_of_one_seed_are_equal():
    first, second = (search(epochs=3).search(plan(), dataset(), seed=4) for _ in range(2))
    assert first.log[-1] == second.log[-1]
    assert all(refine(a, b) == b for a, b in pairwise(first.tree))


def test_a_derived_network_learns_its_tasks():
    net = plan(C=8).branched([(0, 0, 1), (0, 1, 2)], TASKS)
    train_tasks(net, dataset(64), 30, 16, 0.05, 0)
    found = measure_tasks(net, dataset(64).val, TASKS)
    assert found["a"] > 0.85
    assert found["b"] > 0.85
    assert found["c"] > 0.7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cost_weight": -0.1}, "must not be negative"),
        ({"rule": "approximate"}, "'exact' or that of the 'paper'"),
        ({"alpha_share": 0.0}, "alpha_share between 0 and 1"),
        ({"tau": 0.05}, "falls from tau"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        search(**settings)


def test_too_few_and_too_many_tasks_are_refused():
    with pytest.raises(UsageError, match="at least two tasks, not 1"):
        lattice(1)
    with pytest.raises(UsageError, match="too many groupings"):
        lattice(8)
    with pytest.raises(UsageError, match="cost of one copy of each layer"):
        Plan(nn.Identity, lambda i: nn.Identity(), lambda t: nn.Identity(), (-1.0,))
    assert normal("xyx") == (0, 1, 0)
