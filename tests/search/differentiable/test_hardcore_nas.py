"""HardCoRe-NAS: exact expected latency, Frank-Wolfe steps that stay feasible, and networks that keep the limit."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pytest
import torch

from archipel.core.errors import InfeasibleError, SpaceError, UsageError
from archipel.core.storage import Checkpoints
from archipel.cost.latency import Latency
from archipel.cost.limits import Limits
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import stage_blend
from archipel.search.differentiable.frank_wolfe import (
    Point,
    balanced,
    linear_minimiser,
    rounded,
    sparsified,
    starting_point,
    step,
    step_size,
)
from archipel.search.differentiable.hardcore_nas import HardCoReNAS
from archipel.search.differentiable.sandwiched import OneShot, SandwichedTraining
from archipel.search.differentiable.stage_blend import blended, counted_costs, given_costs, measured_costs
from archipel.search.differentiable.stage_costs import StageCosts
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.hardcore import HardCoReSpace
from archipel.spaces.mlp import mlp_space

torch.set_num_threads(1)


def images(seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(40) % 2
    return Split(torch.randn(40, 1, 4, 4, generator=g) + 2.0 * y[:, None, None, None], y)


DATA = Dataset("bright", images(0), images(1), None, "classification", 2)
SPACE = HardCoReSpace(
    (1, 4, 4), 2, stem=2, widths=(2, 4), strides=(1, 2), head=(4, 4), depth=(1, 2), expand=(2, 3), kernels=(1, 3)
)
COSTS = counted_costs(SPACE, "macs")
QUICK = {"heavy_epochs": 1, "epochs": 1, "batch_size": 8, "paths": 2, "steps": 6}


def random_costs(rng: np.random.Generator, integers: bool = False) -> StageCosts:
    tables = [rng.uniform(1, 9, (rng.integers(1, 4), rng.integers(2, 5))) for _ in range(rng.integers(1, 4))]
    tables = [t.round() if integers else t for t in tables]
    return StageCosts(tables, [tuple(range(int(rng.integers(1, len(t) + 1)), len(t) + 1)) for t in tables], 3.0)


def random_point(costs: StageCosts, rng: np.random.Generator) -> Point:
    return Point(*[[rng.dirichlet(np.ones(len(x))) for x in rows] for rows in costs.uniform()])


# --- the expected latency ------------------------------------------------------------------------------------------


def test_the_worked_example():
    costs = StageCosts([np.array([[1.0, 3.0], [2.0, 4.0], [1.0, 5.0]])], [(1, 2, 3)])
    alpha = [np.array([0.5, 0.5]), np.array([0.2, 0.8]), np.array([1.0, 0.0])]
    beta = [np.array([0.2, 0.3, 0.5])]
    np.testing.assert_allclose(costs.of_depths(alpha)[0], [2.0, 2.0 + 3.6, 2.0 + 3.6 + 1.0])
    assert costs(alpha, beta) == pytest.approx(5.38)


def test_the_expectation_is_the_mean_over_drawn_networks():
    rng = np.random.default_rng(0)
    costs = random_costs(rng)
    point = random_point(costs, rng)
    drawn = []
    for _ in range(4000):
        rows, total = iter(point.alpha), costs.fixed
        for t, depths, b in zip(costs.tables, costs.depths, point.beta):
            ops = [rng.choice(t.shape[1], p=next(rows)) for _ in t]
            total += sum(t[i, c] for i, c in enumerate(ops[: rng.choice(depths, p=b)]))
        drawn.append(total)
    assert abs(np.mean(drawn) - costs(point.alpha, point.beta)) < 3 * np.std(drawn) / len(drawn) ** 0.5


def test_it_is_bilinear_and_its_coefficients_are_those_of_either_block():
    rng = np.random.default_rng(1)
    costs = random_costs(rng)
    a, b = random_point(costs, rng), random_point(costs, rng)
    for point in (a, b):
        by_alpha = sum(x @ c for x, c in zip(point.alpha, costs.of_operations(point.beta)))
        by_beta = sum(x @ c for x, c in zip(point.beta, costs.of_depths(point.alpha)))
        assert costs.fixed + by_alpha == pytest.approx(costs.fixed + by_beta) == costs(point.alpha, point.beta)
    # Depth says how many of the blocks there are, from the first: it is not one more factor of each block.
    mixed = costs([(x + y) / 2 for x, y in zip(a.alpha, b.alpha)], a.beta)
    assert mixed == pytest.approx((costs(a.alpha, a.beta) + costs(b.alpha, a.beta)) / 2)


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_counted_costs_are_exact_for_every_network(metric):
    costs = counted_costs(SPACE, metric)
    for seed in range(8):
        arch = SPACE.sample(Random(seed))
        assert costs(*costs.one_hot(SPACE.blocks_of(arch))) == getattr(SPACE.cost, metric)(arch)
    every = SPACE.heaviest()
    assert costs.range[1] == getattr(SPACE.cost, metric)(every)


# --- linear programs -----------------------------------------------------------------------------------------------


def brute_force(gradient, costs, budget):
    """The best value over all vertices: one option a simplex, but for one in which two share to meet the budget."""
    best = np.inf
    for options in itertools.product(*[range(len(g)) for g in gradient]):
        value = sum(g[i] for g, i in zip(gradient, options))
        cost = sum(c[i] for c, i in zip(costs, options))
        if cost <= budget:
            best = min(best, value)
        for g, c, i in zip(gradient, costs, options):
            for j in range(len(g)):
                if cost > budget >= cost - c[i] + c[j]:
                    share = (cost - budget) / (c[i] - c[j])
                    best = min(best, value + share * (g[j] - g[i]))
    return best


def test_linear_programs_equal_brute_force_and_leave_one_simplex_shared_by_two_at_most():
    rng = np.random.default_rng(2)
    shared = 0
    for _ in range(12):
        sizes = rng.integers(1, 4, 4)
        gradient = [rng.standard_normal(n) for n in sizes]
        costs = [rng.uniform(0, 5, n) for n in sizes]
        low, high = (sum(f(c) for c in costs) for f in (np.min, np.max))
        budget = low + rng.uniform(0.05, 1.0) * (high - low)
        x = linear_minimiser(gradient, costs, budget)
        assert sum(a @ c for a, c in zip(x, costs)) <= budget * (1 + 1e-6)
        assert sum(a @ g for a, g in zip(x, gradient)) == pytest.approx(brute_force(gradient, costs, budget), abs=1e-5)
        support = [int((a > 0).sum()) for a in x]
        assert max(support) <= 2
        assert support.count(2) <= 1
        shared += support.count(2)
    assert shared > 2


@pytest.mark.parametrize("budget", [np.inf, 100.0], ids=["no bound", "a bound above all"])
def test_without_a_bound_that_binds_each_simplex_takes_its_own_best(budget):
    rng = np.random.default_rng(3)
    gradient = [rng.standard_normal(n) for n in (2, 5, 3)]
    for x, g in zip(linear_minimiser(gradient, [np.ones(len(g)) for g in gradient], budget), gradient):
        assert x.argmax() == g.argmin()
        assert x.max() == 1.0


def test_the_least_budget_leaves_the_cheapest_and_less_is_refused():
    costs = [np.array([3.0, 1.0]), np.array([0.1, 0.2, 0.3])]
    x = linear_minimiser([np.array([0.0, 1.0]), np.array([1.0, 0.0, 0.0])], costs, 1.1)
    assert [a.argmax() for a in x] == [1, 0]
    with pytest.raises(InfeasibleError, match=r"cost 1\.1 at least, more than the 1\.05"):
        linear_minimiser([np.zeros(2), np.zeros(3)], costs, 1.05)


def test_a_balanced_point_is_smoothest_among_feasible_ones():
    rng = np.random.default_rng(4)
    costs = [rng.uniform(0, 5, n) for n in (4, 3, 5)]

    def roughness(x):
        return sum(float((np.diff(a) ** 2).sum()) for a in x)

    def total(x):
        return sum(float(a @ c) for a, c in zip(x, costs))

    low, even = sum(c.min() for c in costs), sum(c.mean() for c in costs)
    np.testing.assert_allclose(
        np.concatenate(balanced(costs, 1.01 * even)), np.repeat([1 / 4, 1 / 3, 1 / 5], (4, 3, 5))
    )
    for share in (0.1, 0.5, 0.9):
        budget = low + share * (even - low)
        x = balanced(costs, budget)
        assert budget * 0.999 < total(x) <= budget
        for _ in range(100):  # the problem is convex, so no way towards another feasible point may lead down
            y = linear_minimiser([rng.standard_normal(len(c)) for c in costs], costs, budget)
            ahead = [a + 1e-3 * (b - a) for a, b in zip(x, y)]
            assert roughness(ahead) > roughness(x) - 1e-7
    assert balanced(costs, 0.99 * low) is None


# --- the steps -----------------------------------------------------------------------------------------------------


def test_every_iterate_and_the_network_keep_the_limit_for_a_hundred_limits():
    rng = np.random.default_rng(5)
    slack = []
    for n in range(100):
        costs = random_costs(rng, integers=n % 2 == 0)
        low, high = costs.range
        limit = low + (0.0, 1.0, rng.uniform(0, 0.1), rng.uniform())[n % 4] * (high - low)
        point, decide = starting_point(costs, limit), Random(n)
        slopes = [[rng.standard_normal(len(x)) for x in rows] for rows in (point.beta, point.alpha)]
        for _ in range(2):
            moved = step(costs, limit, point, lambda a, b, of_alpha, s=slopes: s[of_alpha], 0.5, decide)
            for x in [*moved.alpha, *moved.beta]:
                assert x.min() >= -1e-9
                assert x.sum() == pytest.approx(1.0, abs=1e-6)
            assert costs(moved.alpha, moved.beta) <= limit * (1 + 1e-6)
            point = moved
        sparse = sparsified(costs, limit, point)
        assert costs(sparse.alpha, sparse.beta) <= limit * (1 + 1e-6)
        for rows in (sparse.alpha, sparse.beta):
            assert sum(int((x > 0).sum()) for x in rows) <= len(rows) + 1
        blocks = rounded(costs, limit, sparse)
        assert all(len(ops) in d for ops, d in zip(blocks, costs.depths))
        slack.append(costs(*costs.one_hot(blocks)) / limit)
    assert max(slack) <= 1.0
    assert min(slack) < 0.95  # what rounding may leave unused is worth a report


def test_a_step_is_a_convex_combination_of_one_block_and_a_vertex():
    assert [step_size(k, 0.5) for k in (0, 4, 12)] == [0.5, 0.25, 0.125]
    costs = StageCosts([np.array([[1.0, 3.0], [2.0, 4.0]])], [(1, 2)])
    start = Point(*costs.uniform())
    slopes = ([np.array([1.0, 0.0])], [np.array([1.0, 0.0]), np.array([0.0, 1.0])])
    seen = set()
    for seed in range(8):
        moved = step(costs, 100.0, start, lambda a, b, of_alpha: slopes[of_alpha], 0.5, Random(seed))
        of_alpha = moved.beta is start.beta
        seen.add(of_alpha)
        if of_alpha:
            np.testing.assert_allclose(moved.alpha, [[0.25, 0.75], [0.75, 0.25]])
        else:
            assert moved.alpha is start.alpha
            np.testing.assert_allclose(moved.beta, [[0.25, 0.75]])
        assert moved.step == 1
    assert seen == {True, False}


def test_where_no_depth_is_open_all_steps_are_of_operations():
    costs = StageCosts([np.array([[1.0, 3.0]])], [(1,)])
    asked = []

    def slope(alpha, beta, of_alpha):
        asked.append(of_alpha)
        return [np.array([0.0, -1.0])]

    point = starting_point(costs, 2.0)
    for seed in range(4):
        point = step(costs, 2.0, point, slope, 0.5, Random(seed))
    assert asked == [True] * 4
    assert rounded(costs, 2.0, sparsified(costs, 2.0, point)) == [[0]]  # 3 is likelier than its share allows


def test_limits_that_no_network_keeps_name_the_minimum():
    with pytest.raises(InfeasibleError, match=r"No network costs at most 1\.5 ms: the minimum attainable is 4 ms"):
        starting_point(StageCosts([np.array([[1.0, 3.0]])], [(1,)], 3.0, " ms"), 1.5)
    least = COSTS.range[0]
    assert rounded(COSTS, least, starting_point(COSTS, least)) == [[0], [0]]


# --- the blended network -------------------------------------------------------------------------------------------


def tensors(rows, requires_grad=False):
    return [torch.tensor(x, dtype=torch.float64, requires_grad=requires_grad) for x in rows]


def test_one_hot_weights_compute_the_network_and_nothing_that_is_not_in_it():
    supernet = SPACE.supernet().double().eval()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    for seed in range(4):
        arch = SPACE.sample(Random(seed))
        alpha, beta = COSTS.one_hot(SPACE.blocks_of(arch))
        ran = []
        hooks = [
            b.register_forward_hook(lambda *_, ran=ran: ran.append(1))
            for stage in supernet.net.stages
            for b in stage.blocks
        ]
        out = blended(supernet, SPACE, tensors(alpha), tensors(beta), x)
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(out, supernet.extract(arch)(x))
        assert len(ran) == sum(map(len, SPACE.blocks_of(arch)))


def test_the_gradient_for_operations_and_depths_is_that_of_differences():
    supernet = SPACE.supernet().double().eval()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    rng = np.random.default_rng(6)
    point = random_point(COSTS, rng)
    point.alpha[1][2] = 0.0  # what has no weight has a gradient
    a, b = tensors(point.alpha, True), tensors(point.beta, True)
    out = blended(supernet, SPACE, a, b, x, everything=True).square().sum()
    g = torch.autograd.grad(out, [*a, *b])
    for row, place in ((1, 2), (2, 0), (len(a), 1)):
        values = []
        for epsilon in (1e-5, -1e-5):
            rows = [r.detach().clone() for r in (*a, *b)]
            rows[row][place] += epsilon
            with torch.no_grad():
                values.append(float(blended(supernet, SPACE, rows[: len(a)], rows[len(a) :], x, True).square().sum()))
        assert float(g[row][place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_tables_are_taken_entry_by_entry_and_a_missing_one_is_named():
    labels = [o.label for o in SPACE.operations]
    table = {f"stage{s}.{b}": {n: float(i + s) for i, n in enumerate(labels)} for s in range(2) for b in range(2)}
    costs = given_costs(SPACE, {**table, "fixed": 7.0})
    assert costs(*costs.one_hot([[1, 2], [3]])) == 7.0 + 1 + 2 + 4
    del table["stage1.0"]["e3k1se"]
    with pytest.raises(SpaceError, match=r"no number for operation 'e3k1se' of block 'stage1\.0'"):
        given_costs(SPACE, table)


def test_measured_tables_add_up_to_the_heaviest_network(monkeypatch):
    def fake(net, example, **_):
        ms = sum(p.numel() for p in net.parameters()) + float(example[0].numel())
        return Latency(ms, 0.0, ms, 1, 1, 1)

    monkeypatch.setattr(stage_blend, "measure_latency", fake)
    costs = measured_costs(SPACE)
    blocks = SPACE.blocks_of(SPACE.heaviest())
    whole = SPACE.cost.params(SPACE.heaviest()) + 16.0
    assert costs(*costs.one_hot(blocks)) == pytest.approx(whole)
    assert costs.tables[0][0, 0] < costs.tables[0][0, -1]


# --- one-shot training ---------------------------------------------------------------------------------------------


def trained(settings: OneShot, epochs: int):
    training = SandwichedTraining(SPACE.supernet(), SPACE, DATA.train, "classification", settings, 0)
    return training, [training.run_epoch() for _ in range(epochs)]


def test_the_heaviest_is_trained_first_and_then_every_part_of_a_batch_has_its_own_network():
    settings = OneShot(1, 1, paths=4, batch_size=8)
    training = SandwichedTraining(SPACE.supernet(), SPACE, DATA.train, "classification", settings, 0)
    seen = []
    activate = training.supernet.activate
    training.supernet.activate = lambda arch, validate=True: (seen.append(arch), activate(arch, validate))[1]
    training.run_epoch()
    assert seen == [training.heaviest] * 5
    seen.clear()
    training.run_epoch()
    assert len(seen) == 5 * (1 + 4)
    assert seen[::5] == [training.heaviest] * 5
    assert len({str(a) for a in seen}) > 6


def test_training_lowers_the_loss_and_goes_on_where_it_stopped():
    settings = OneShot(2, 2, paths=2, batch_size=8)
    whole, losses = trained(settings, 4)
    assert losses[1] < losses[0]
    first, _ = trained(settings, 3)
    second, _ = trained(settings, 0)
    second.load_state_dict(first.state_dict())
    second.run_epoch()
    for a, b in zip(whole.supernet.parameters(), second.supernet.parameters()):
        assert torch.equal(a, b)


# --- the search ----------------------------------------------------------------------------------------------------


def searched(strategy: HardCoReNAS, limits=None, checkpoints=None) -> HardCoReNAS:
    strategy.setup(Problem(SPACE, feasible=limits))
    strategy.prepare(Context(DATA, Recipe(epochs=1), checkpoints=checkpoints or Checkpoints()))
    return strategy


def test_the_search_keeps_its_limit_and_needs_no_more_training_for_another():
    limit = 0.5 * sum(COSTS.range)
    strategy = searched(HardCoReNAS({"macs": limit}, **QUICK))
    weights = {n: p.clone() for n, p in strategy.training.supernet.state_dict().items()}
    trial = strategy.ask()
    assert SPACE.cost.macs(trial.arch) <= limit
    assert trial.info["cost"] == SPACE.cost.macs(trial.arch)
    assert trial.info["rounded"] == trial.info["cost"] / limit  # what the network has, not what was expected
    assert strategy.finished
    assert strategy.ask() is None
    for share in (0.0, 0.3, 1.0):
        tighter = COSTS.range[0] + share * (COSTS.range[1] - COSTS.range[0])
        blocks, log = strategy.within(tighter)
        assert SPACE.cost.macs(SPACE.arch_of(blocks)) <= tighter
        assert max(entry["latency"] for entry in log) <= 1 + 1e-6
    for name, p in strategy.training.supernet.state_dict().items():
        assert torch.equal(p, weights[name]), name  # w is held while α and β are searched
    assert len(strategy.shared_scores([trial.arch])) == 1


def test_an_interrupted_search_ends_the_same():
    limit = {"macs": 0.5 * sum(COSTS.range)}
    whole = searched(HardCoReNAS(limit, **QUICK))
    checkpoints = Checkpoints()
    searched(HardCoReNAS(limit, **QUICK), checkpoints=checkpoints)
    again = searched(HardCoReNAS(limit, **QUICK), checkpoints=checkpoints)
    assert again.log == whole.log
    assert again.losses == whole.losses
    assert again.ask().arch == whole.ask().arch


def test_the_limit_of_the_search_is_kept_if_none_is_given():
    limits = Limits({"params": 600}, SPACE)
    strategy = searched(HardCoReNAS(**QUICK), limits)
    assert strategy.budget == 600
    assert limits(strategy.ask().arch)


def test_the_network_found_is_tuned_from_the_one_shot_weights():
    strategy = searched(HardCoReNAS({"macs": sum(COSTS.range)}, **QUICK))
    arch = strategy.ask().arch
    before = strategy.training.supernet.extract(arch).state_dict()
    net = strategy.fine_tuned(arch, epochs=2, lr=1e-6)
    assert {n: t.shape for n, t in net.state_dict().items()} == {n: t.shape for n, t in before.items()}
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=1e-3)
    moved = strategy.fine_tuned(arch, epochs=2, lr=0.1)
    assert not torch.equal(next(moved.parameters()), next(net.parameters()))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, UsageError, r"searches within a limit: give one"),
        ({"limit": {"macs": 1}}, InfeasibleError, r"minimum attainable is [\d,]+ macs"),
        ({"limit": {"joules": 1}}, UsageError, r"give a table for joules"),
        ({"limit": {"joules": 1}, "table": {}}, SpaceError, r"no number for operation 'e2k1'"),
        ({"limit": {"macs": 1e6, "params": 1e6}}, UsageError, r"keeps one limit, not 2: macs, params"),
        ({"limit": {"macs": "5MB"}}, UsageError, r"unit 'MB' does not fit macs"),
        ({"limit": {"macs": 1e6}, "gamma": 0.0}, UsageError, r"gamma in \(0, 1\]"),
        ({"limit": {"macs": 1e6}, "paths": 40}, UsageError, r"2 examples for each of 40 paths"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_trained(settings, error, message):
    with pytest.raises(error, match=message):
        HardCoReNAS(**settings).setup(Problem(SPACE))


def test_other_spaces_are_refused():
    with pytest.raises(SpaceError, match=r"mlp has none\. Search the space 'hardcore'"):
        HardCoReNAS({"macs": 1e6}).setup(Problem(mlp_space((4,), 2)))
