"""GOLD-NAS: the penalty, the pruning, the price, the series of networks."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import torch

from archipel.core.errors import UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import DifferentiableSearch, Schedule
from archipel.search.differentiable.arch_gradient import OneLevel
from archipel.search.differentiable.gold_nas import ParetoSet, gold_nas
from archipel.search.differentiable.parameters import Moment
from archipel.search.differentiable.pruned_gates import PrunedGates, removals
from archipel.search.differentiable.resource_penalty import Pressure, ResourcePenalty, resource_penalty
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.subsets import MicroSubsets

torch.set_num_threads(1)

ONE_LEVEL = Schedule(epochs=4, batch_size=16, lr=0.05, lr_min=0.05, alpha_lr=0.3, alpha_decay=0.0, alpha_share=0.0)
HARD = {"lam0": 0.5, "n0": 2, "t0": 1}  # prunes within a few steps


def images(seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(32) % 2
    x = torch.randn(32, 1, 4, 4, generator=g)
    x[:, 0, :2] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    return Context(Dataset("bars", images(), images(1), None, "classification", 2), Recipe(epochs=1), **kw)


def space(cells: int = 1) -> MicroSubsets:
    return MicroSubsets((1, 4, 4), 2, C=2, cells=cells)


def prepared(search: DifferentiableSearch, ctx: Context | None = None, made=None) -> DifferentiableSearch:
    search.setup(Problem(made or space(), rng=Random(0)))
    search.prepare(ctx or context())
    return search


def started(search: DifferentiableSearch, made=None):
    search.setup(Problem(made or space()))
    state = search.start(context())
    state.supernet.train()
    return state


# --- the penalty ------------------------------------------------------------------------------------------------------


def test_smaller_gates_get_the_larger_push_and_the_mean_is_a_constant():
    sigma = torch.tensor([0.1, 0.3, 0.8, 0.0], dtype=torch.double, requires_grad=True)
    cost = torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.double)
    resource_penalty(sigma, cost).backward()
    expected = cost / (0.4 + sigma.detach())  # the mean over those that are left
    torch.testing.assert_close(sigma.grad, expected)
    assert sigma.grad[0] > sigma.grad[1]


def pushes(mu: float):
    state = started(gold_nas(schedule=ONE_LEVEL, mu=mu))
    state.objective.pressure.lam = 1.0
    state.objective.penalty(state.mixture_weights(), state.moment).backward()
    return {n: p.grad for n, p in state.logits.items()}, state.parameters.rows


def test_every_operation_is_pushed_and_without_mu_skip_connections_are_not():
    for g in pushes(1.0)[0].values():
        assert (g > 0).all()
    gradients, rows = pushes(0.0)
    for n, g in gradients.items():
        for label, push in zip(rows[n].labels, g.tolist()):
            assert (push > 0) == label.startswith("conv"), label


def test_pruned_gates_are_neither_pushed_nor_counted_in_the_mean():
    state = started(gold_nas(schedule=ONE_LEVEL))
    state.objective.pressure.lam = 1.0
    state.mix.live["cell0.n3"][2] = False
    weights = state.mixture_weights()
    found = state.objective.penalty(weights, state.moment)
    found.backward()
    assert state.logits["cell0.n3"].grad[2] == 0.0
    flat = torch.cat([w.detach() for w in weights.values()])
    live = flat[flat > 0]
    prices = torch.cat(list(state.objective._prices.values()))[flat > 0]
    torch.testing.assert_close(found.detach(), (torch.log1p(live / live.mean()) * prices).sum())


def test_costs_are_divided_by_their_mean_and_count_more_than_operations_alone():
    state = started(gold_nas(schedule=ONE_LEVEL))
    prices = torch.cat(list(state.objective._prices.values()))
    assert float(prices.mean()) == pytest.approx(2.0)  # FLOPs over their mean, and μ = 1
    assert set(prices.tolist()) == {1.0, 3.0}  # half of the operations cost nothing


# --- the pruning ------------------------------------------------------------------------------------------------------


def test_what_must_go_goes_beyond_n0_and_the_rest_up_to_n0():
    gates = {"a": {0: 0.004, 1: 0.02, 2: 0.9}, "b": {0: 0.003, 1: 0.002, 2: 0.03, 3: 0.5}}
    assert removals(gates, 0.05, 0.01, 4) == [("b", 1), ("b", 0), ("a", 0), ("a", 1)]
    assert removals(gates, 0.05, 0.01, 1) == [("b", 1), ("b", 0), ("a", 0)]
    assert removals(gates, 0.05, 0.0, 1) == [("b", 1)]


def test_a_node_never_loses_its_last_input():
    assert removals({"a": {0: 0.001, 1: 0.002}, "b": {0: 0.001}}, 0.05, 0.01, 9) == [("a", 0)]


def test_removing_an_operation_whose_gate_is_zero_leaves_outputs_bitwise_unchanged():
    state = started(gold_nas(schedule=ONE_LEVEL))
    state.logits["cell0.n3"].data[1] = -200.0
    x = images().x
    with torch.no_grad():
        before = state.output(x, state.mixture_weights())
        state.mix.live["cell0.n3"][1] = False
        assert torch.equal(state.output(x, state.mixture_weights()), before)


def test_what_was_pruned_is_never_computed_again():
    state = started(gold_nas(schedule=ONE_LEVEL))
    node = next(n for n in state.supernet.net.modules() if getattr(n, "name", "") == "cell0.n3")
    state.mix.live["cell0.n3"][1] = False
    calls = []
    for i, op in enumerate(node.blended):
        op.register_forward_hook(lambda *_, i=i: calls.append(i))
    state.joint_step((images().x, images().y))
    assert calls == [0, 2, 3, 4, 5]


# --- the price --------------------------------------------------------------------------------------------------------


def test_the_price_rises_faster_and_faster_and_falls_after_a_successful_epoch():
    p = Pressure(1.0, 2.0)
    seen = []
    for enough in (False, False, False, True, False):
        p.update(enough)
        seen.append((p.lam, p.stale))
    assert seen == [(2.0, 1), (6.0, 2), (14.0, 3), (7.0, 0), (9.0, 1)]


def test_without_a_price_it_is_plain_one_level_training():
    priced = prepared(gold_nas(lam0=0.0, schedule=ONE_LEVEL))
    plain = prepared(DifferentiableSearch(mix=PrunedGates(), arch_gradient=OneLevel(), schedule=ONE_LEVEL))
    assert [e["alpha"] for e in priced.log] == [e["alpha"] for e in plain.log]
    for n, t in plain.state.supernet.state_dict().items():
        assert torch.equal(t, priced.state.supernet.state_dict()[n])
    assert all(m.all() for m in priced.state.mix.live.values())


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned():
    search = gold_nas(schedule=ONE_LEVEL, epochs=16, **HARD)
    return prepared(search, made=space(2))


def test_one_search_gives_a_nested_series_of_networks(pruned):
    trials = []
    while (trial := pruned.ask()) is not None:
        trials.append(trial)
    assert pruned.finished
    points = pruned.selection.points
    assert len(trials) == len(points) >= 2
    made = pruned.problem.space
    pairs = [{(n, p) for n, ps in made.pairs(t.arch).items() for p in ps} for t in trials]
    assert all(later < earlier for earlier, later in pairwise(pairs))
    assert [len(p) for p in pairs] == [p["ops"] for p in points]
    assert [sum(w > 0 for row in p["gates"].values() for w in row) for p in points] == [p["ops"] for p in points]


def test_costs_never_rise_and_each_epoch_removes_no_more_than_it_may(pruned):
    ops = 24
    for entry in pruned.log:
        gates = [1 / (1 + 2.718281828**-a) for row in entry["alpha"].values() for a in row]
        assert len(entry["removed"]) <= max(2, sum(g < 0.01 for g in gates))
        ops -= len(entry["removed"])
    assert ops == sum(int(m.sum()) for m in pruned.state.mix.live.values()) < 24
    assert all(m.any() for m in pruned.state.mix.live.values())
    macs = pruned.problem.space.cost.macs
    spent = [macs(p["arch"]) for p in pruned.selection.points]
    assert spent == sorted(spent, reverse=True)


def test_weights_of_what_is_left_are_kept_and_the_discretisation_is_what_is_left(pruned):
    live = {(n, i) for n, m in pruned.state.mix.live.items() for i, alive in enumerate(m.tolist()) if alive}
    arch = pruned.selection(pruned.state)
    one_hot = pruned.state.parameters.one_hot(arch)
    assert live == {(n, i) for n, w in one_hot.items() for i, v in enumerate(w.tolist()) if v}
    assert pruned.log[-1]["one_hot"] == pruned.state.metrics(images(1), arch=arch)["accuracy"]


def test_the_search_ends_at_the_minimum_of_costs():
    whole = space().cost.macs(space().from_pairs({n: s.labels for n, s in space().nodes.items()}))
    search = prepared(gold_nas(schedule=ONE_LEVEL, epochs=30, minimum=0.8 * whole, **HARD))
    assert len(search.log) < 30
    assert space().cost.macs(search.selection(search.state)) <= 0.8 * whole


def test_a_search_that_ends_before_anything_stood_still_proposes_what_is_there():
    search = prepared(gold_nas(schedule=ONE_LEVEL, epochs=1))
    trial = search.ask()
    assert search.finished
    assert sum(map(len, space().pairs(trial.arch).values())) == 12


def test_an_interrupted_search_ends_the_same(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction >= 0.5:
            raise Killed

    make = {"schedule": ONE_LEVEL, "epochs": 10, **HARD}
    whole = prepared(gold_nas(**make))
    with pytest.raises(Killed):
        prepared(gold_nas(**make), context(checkpoints=Checkpoints(tmp_path), progress=kill))
    resumed = prepared(gold_nas(**make), context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.log == whole.log
    assert resumed.selection.points == whole.selection.points


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minimum": 1e9}, "nothing to prune"),
        ({"minimum": 1.0}, "No network of micro-subsets costs as little as 1 macs"),
        ({"xi_min": 0.2}, "xi_min <= xi_max"),
        ({"n0": 0}, "n0, the removals of an epoch"),
        ({"mu": 2.0}, "mu is from 0 to 1"),
        ({"t0": 0}, "t0 is a number of epochs"),
        ({"c0": 1.0}, "c0 must be above 1"),
        ({"lam0": -1.0}, "lam0 must not be negative"),
        ({"costs": {"skip": 1.0}}, "Operation 'conv3x3' of node 'cell0.n1' has no cost"),
        ({"costs": {"skip": 0.0, "conv3x3": 0.0}}, "no operation costs anything"),
        ({"schedule": Schedule(epochs=2)}, "alpha_share=0"),
    ],
)
def test_what_cannot_work_is_refused_before_training(settings, message):
    with pytest.raises(UsageError, match=message):
        started(gold_nas(**{"schedule": ONE_LEVEL, **settings}))


def test_costs_of_your_own_price_the_operations():
    state = started(gold_nas(schedule=ONE_LEVEL, mu=0.0, costs={"skip": 1.0, "conv3x3": 3.0}))
    assert set(torch.cat(list(state.objective._prices.values())).tolist()) == {0.5, 1.5}


def test_parts_that_do_not_fit_together_say_why():
    with pytest.raises(UsageError, match=r"'e01' is one choice among .* take any subset"):
        started(gold_nas(schedule=ONE_LEVEL), MicroNB201((1, 4, 4), 2, C=2, cells=1))
    with pytest.raises(UsageError, match=r"needs mix=PrunedGates\(\)"):
        started(DifferentiableSearch(objective=ResourcePenalty(), schedule=ONE_LEVEL))
    with pytest.raises(UsageError, match=r"needs objective=ResourcePenalty\(\)"):
        prepared(DifferentiableSearch(mix=PrunedGates(), select=ParetoSet(), schedule=ONE_LEVEL))


def test_gates_start_near_one_half():
    state = started(gold_nas(schedule=ONE_LEVEL))
    row = state.parameters.rows["cell0.n1"]
    gates = state.mix.coefficients(state.logits["cell0.n1"], row, Moment(0, 1, 0, 1))
    assert gates.tolist() == pytest.approx([0.5, 0.5], abs=2e-3)
