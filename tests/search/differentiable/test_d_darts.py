"""D-DARTS: cells of their own, gates, ablation; thresholds; deeper networks, hand-made ones and distances."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from archipel.core.errors import SpaceError, UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import Argmax, DifferentiableSearch, Schedule
from archipel.search.differentiable.arch_gradient import FirstOrder
from archipel.search.differentiable.d_darts import (
    CellAblation,
    CellGates,
    ZeroOne,
    ablation_factors,
    ablation_losses,
    cell_of,
    d_darts,
    marginal_contributions,
    push,
)
from archipel.search.differentiable.nested_cells import (
    OPERATION_ACCURACY,
    architecture_distance,
    cells_of,
    deepen,
    deeper_positions,
    distance,
    hausdorff,
    resnet18_space,
)
from archipel.search.differentiable.thresholds import Threshold, kept_pairs
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.operations import DARTS_OPS
from archipel.spaces.plain_operations import ALL_OPS
from archipel.spaces.subsets import MicroSubsets, SubsetSpace

torch.set_num_threads(1)

QUICK = Schedule(epochs=2, batch_size=8, alpha_lr=0.05)
OPS = ("skip", "conv1x1", "avgpool3x3")


def images(seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(32) % 2
    x = torch.randn(32, 1, 4, 4, generator=g)
    x[:, 0, :2] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    return Context(Dataset("bars", images(), images(1), None, "classification", 2), Recipe(epochs=1), **kw)


def micro(**kw) -> MicroSubsets:
    return MicroSubsets((1, 4, 4), 2, **{"C": 2, "cells": 3, "ops": OPS, **kw})


def prepared(search: DifferentiableSearch, space=None, ctx: Context | None = None) -> DifferentiableSearch:
    search.setup(Problem(space or micro(), rng=Random(0)))
    search.prepare(ctx or context())
    return search


def started(search: DifferentiableSearch | None = None, space=None):
    search = search or d_darts(schedule=QUICK)
    search.setup(Problem(space or micro()))
    state = search.start(context())
    state.supernet.train()
    return state


def a_batch(n: int = 8):
    return images().x[:n], images().y[:n]


@pytest.fixture(scope="module")
def resnet18():
    return resnet18_space((1, 8, 8), 2, C=4)


# --- gates and cells -------------------------------------------------------------------------------------------------


def test_gates_start_at_one_half_and_are_independent():
    state = started()
    for w in state.mixture_weights().values():
        assert torch.equal(w, torch.full_like(w, 0.5))
    state.logits["cell1.n1"].data[0] = 2.0
    moved = state.mixture_weights()["cell1.n1"].tolist()
    assert moved == pytest.approx([1 / (1 + math.exp(-2.0)), 0.5, 0.5])  # a softmax would have lowered the others


def test_eight_cells_have_four_times_the_logits_of_two_kinds_of_cells():
    def logits(tie):
        space = SubsetSpace((3, 8, 8), 10, C=2, layers=8, ops=DARTS_OPS, tie=tie)
        return sum(len(node.labels) for node in space.nodes.values())

    assert logits("cell") == 8 * 14 * 7 == 784
    assert logits("kind") == 2 * 14 * 7 == 196


def test_stepping_one_cell_leaves_the_others_bitwise_equal():
    state = started()
    g = CellAblation("off").gradient(state, a_batch(), a_batch())
    assert set(g) == set(state.logits)
    before = {n: p.detach().clone() for n, p in state.logits.items()}
    state.alpha_step({n: t for n, t in g.items() if cell_of(n) == "cell1"})
    for n, p in state.logits.items():
        assert torch.equal(p.detach(), before[n]) == (cell_of(n) != "cell1")


def test_one_optimizer_for_all_logits_steps_as_one_for_each_cell():
    state = started()
    cells = {c: {n: p.detach().clone() for n, p in state.logits.items() if cell_of(n) == c} for c in ("cell0", "cell2")}
    own = {c: torch.optim.Adam(rows.values(), 0.05, (0.5, 0.999), weight_decay=1e-3) for c, rows in cells.items()}
    for _ in range(3):
        g = CellAblation("off").gradient(state, a_batch(), a_batch())
        state.alpha_step(g)
        for c, rows in cells.items():
            for n, p in rows.items():
                p.grad = g[n]
            own[c].step()
    for rows in cells.values():
        for n, p in rows.items():
            assert torch.equal(p, state.logits[n].detach())


# --- the push to zero or one -----------------------------------------------------------------------------------------


def test_the_push_is_zero_at_the_start_and_a_quarter_at_the_ends():
    assert push(torch.full((7,), 0.5)).item() == 0.0
    assert push(torch.tensor([0.0, 1.0, 1.0])).item() == -0.25
    sigma = torch.tensor([0.4, 0.7], requires_grad=True)
    push(sigma).backward()
    assert sigma.grad[0] > 0 > sigma.grad[1]  # descending moves gates away from one half


def test_the_pushes_of_cells_are_means_that_add_up():
    state = started()
    for p in state.logits.values():
        p.data.normal_()
    weights = state.mixture_weights()
    expected = 0.0
    for cell in ("cell0", "cell1", "cell2"):
        expected += push(torch.cat([w for n, w in weights.items() if cell_of(n) == cell])).item()
    assert ZeroOne(9.0).penalty(weights, state.moment).item() == pytest.approx(9.0 * expected)
    assert ZeroOne(0.0).penalty(weights, state.moment) == 0.0


# --- ablation --------------------------------------------------------------------------------------------------------


def test_ablation_losses_and_factors_by_hand():
    M = torch.tensor([-3.0, -1.0, -2.0])
    assert ablation_losses(M).tolist() == [-0.5, 0.5, 0.0]
    assert ablation_factors(M, 0.5).tolist() == [0.75, 1.25, 1.0]
    assert ablation_factors(torch.tensor([9.0, -7.0]), 0.9).tolist() == [3.0, 0.0]  # clipped
    zero = torch.tensor([1.0, -1.0])
    assert ablation_losses(zero).tolist() == [0.0, 0.0]
    assert ablation_factors(zero, 0.5).tolist() == [1.0, 1.0]


def test_contributions_are_differences_of_the_loss_with_one_cell_mixed_at_random():
    state = started()
    for p in state.logits.values():
        p.data.normal_()
    torch.manual_seed(3)
    found = marginal_contributions(state, a_batch())
    torch.manual_seed(3)
    assert marginal_contributions(state, a_batch()) == found
    torch.manual_seed(3)
    mixture = state.mixture_weights()
    x, y = a_batch()
    whole = nn.functional.cross_entropy(state.output(x, mixture), y)
    for cell, M in found.items():
        drawn = {n: torch.rand_like(w) if cell_of(n) == cell else w for n, w in mixture.items()}
        assert pytest.approx((whole - nn.functional.cross_entropy(state.output(x, drawn), y)).item(), abs=1e-6) == M
    assert len(set(found.values())) == 3


def test_contributions_take_one_forward_more_than_there_are_cells_and_leave_no_trace():
    state = started()
    before = {n: t.clone() for n, t in state.supernet.state_dict().items()}
    passes = []
    state.supernet.register_forward_hook(lambda *_: passes.append(1))
    marginal_contributions(state, a_batch())
    assert len(passes) == 3 + 1
    assert all(torch.equal(t, before[n]) for n, t in state.supernet.state_dict().items())
    assert all(p.grad is None for p in state.logits.values())


def test_a_reported_ablation_changes_no_gradient_and_is_logged():
    state = started()
    plain = FirstOrder().gradient(state, a_batch(), a_batch())
    gradient = CellAblation("reported")
    found = gradient.gradient(state, a_batch(), a_batch())
    assert all(torch.equal(found[n], g) for n, g in plain.items())
    assert set(gradient.contributions) == {"cell0", "cell1", "cell2"}
    search = prepared(d_darts("reported", schedule=QUICK))
    assert set(search.log[-1]["ablation"]) == set(search.log[-1]["contributions"]) == {"cell0", "cell1", "cell2"}
    assert "ablation" not in prepared(d_darts("off", schedule=QUICK)).log[-1]


def test_a_gradient_ablation_scales_each_cells_cross_entropy_and_not_its_push():
    state = started()
    for p in state.logits.values():
        p.data.normal_()
    total = FirstOrder().gradient(state, a_batch(), a_batch())
    gradient = CellAblation("gradient", 0.7)
    found = gradient.gradient(state, a_batch(), a_batch())
    names = list(gradient.contributions)
    factors = dict(zip(names, ablation_factors(torch.tensor(list(gradient.contributions.values())), 0.7).tolist()))
    assert len(set(factors.values())) == 3
    x, y = a_batch()
    loss = nn.functional.cross_entropy(state.output(x, state.mixture_weights()), y)
    of_loss = dict(zip(state.logits, torch.autograd.grad(loss, list(state.logits.values()))))
    for n, g in found.items():
        pushed = total[n] - of_loss[n]
        torch.testing.assert_close(g, factors[cell_of(n)] * of_loss[n] + pushed)


def test_ablation_needs_cells_that_can_be_told_apart():
    with pytest.raises(UsageError, match="All cells share their decisions"):
        prepared(d_darts(select=Argmax(), schedule=QUICK), MicroNB201((1, 4, 4), 2, C=2, cells=2))
    shared = prepared(d_darts("off", schedule=QUICK), micro(tie="kind"))  # FairDARTS
    assert len(shared.state.logits) == 3


# --- thresholds ------------------------------------------------------------------------------------------------------


GATES, SOURCES = [0.9, 0.95, 0.97, 0.86, 0.99, 0.1, 0.8, 0.84], [0, 0, 0, 1, 2, 2, 3, 3]


def test_sparse_keeps_one_operation_of_the_two_best_sources():
    assert kept_pairs(GATES, SOURCES, 0.85, "sparse") == [2, 4]
    assert kept_pairs(GATES, SOURCES, 0.98, "sparse") == [4]  # a node may keep fewer
    assert kept_pairs(GATES, SOURCES, 0.999, "sparse") == []


def test_edge_keeps_two_operations_of_every_source():
    assert kept_pairs(GATES, SOURCES, 0.85, "edge") == [1, 2, 3, 4]
    assert kept_pairs(GATES, SOURCES, 0.05, "edge") == [1, 2, 3, 4, 5, 6, 7]


def test_a_node_without_a_gate_at_the_threshold_keeps_its_best_or_is_named():
    state = started()
    state.logits["cell2.n2"].data[4] = 0.3
    arch = Threshold()(state)
    pairs = state.supernet.space.pairs(arch)
    assert pairs["cell2.n2"] == [state.parameters.rows["cell2.n2"].labels[4]]
    assert all(len(p) == 1 for p in pairs.values())
    with pytest.raises(SpaceError, match=r"'cell0\.n1' has no gate of 0\.85 or more"):
        Threshold(keep_best=False)(state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 0.0}, "between 0 and 1"),
        ({"threshold": 1.0}, "between 0 and 1"),
        ({"parse": "dense"}, "parse 'dense' is unknown"),
        ({"ablation": "strong"}, "ablation 'strong' is unknown"),
        ({"w_ab": 0.0}, "w_ab must be positive"),
        ({"w_01": -1.0}, "w_01 must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        d_darts(**wrong)


def test_thresholds_need_nodes_that_may_keep_fewer():
    with pytest.raises(UsageError, match=r"is one choice among .* take any subset"):
        prepared(d_darts(schedule=QUICK), MicroNB201((1, 4, 4), 2, C=2, cells=2, tie="cell"))


# --- the search ------------------------------------------------------------------------------------------------------


def test_a_search_finds_cells_of_their_own():
    search = prepared(d_darts(schedule=Schedule(epochs=3, batch_size=8, alpha_lr=0.5)))
    trial = search.ask()
    pairs = micro().pairs(trial.arch)
    assert search.finished
    cells = cells_of(pairs)
    assert len(cells) == 3
    assert any(a != b for a in cells for b in cells)
    assert all(2 >= len(ps) >= 1 for ps in pairs.values())


def test_single_choices_with_cells_of_their_own_are_searched_too():
    space = DartsSpace((1, 4, 4), 2, C=2, layers=3, nodes=1, tie="cell")
    search = prepared(d_darts(select=Argmax(), schedule=QUICK), space)
    assert space.validate(search.ask().arch)
    assert set(search.log[-1]["contributions"]) == {"normal0", "reduce1", "reduce2"}


def test_the_logits_learning_rate_falls_by_a_cosine():
    state = started()
    gradient = CellAblation("off", lr_min=0.01)
    rates = []
    for epoch in range(2):
        state.move_to(epoch, 0)
        gradient.update(state, a_batch(), a_batch())
        rates.append(state.alpha_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.03])
    assert d_darts().arch_gradient.lr_min == 1e-3


def test_an_interrupted_search_ends_the_same(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        raise Killed

    whole = prepared(d_darts(schedule=QUICK))
    with pytest.raises(Killed):
        prepared(d_darts(schedule=QUICK), ctx=context(checkpoints=Checkpoints(tmp_path), progress=kill))
    resumed = prepared(d_darts(schedule=QUICK), ctx=context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.log == whole.log
    assert resumed.ask().arch == whole.ask().arch


# --- deeper networks -------------------------------------------------------------------------------------------------


def test_deeper_networks_cycle_the_cells_of_each_stretch():
    assert deeper_positions(14, 8) == [0, 1, 0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 6, 7]
    assert deeper_positions(14, 8) != [0, 0, 0, 1, 2, 4, 3, 4, 3, 5, 6, 7, 6, 7]  # the reference's formula


@pytest.mark.parametrize("cells", range(3, 21))
def test_as_many_cells_as_were_searched_keep_their_order(cells):
    assert deeper_positions(cells, cells) == list(range(cells))


def test_a_deepened_network_has_the_cells_of_the_searched_one():
    spaces = [SubsetSpace((1, 4, 4), 2, C=2, layers=n, nodes=2) for n in (6, 9)]
    arch = spaces[0].sample(Random(0))
    deep = deepen(spaces[0], arch, spaces[1])
    ours, theirs = (cells_of(s.pairs(a)) for s, a in zip(spaces, (arch, deep)))
    assert theirs == [ours[i] for i in deeper_positions(9, 6)]
    assert deepen(spaces[0], arch, spaces[0]) == arch


def test_what_cannot_be_deepened_is_refused(resnet18):
    space, arch = resnet18
    with pytest.raises(UsageError, match="only defined for two reductions"):
        deepen(space, arch, space)
    tied = SubsetSpace((1, 4, 4), 2, C=2, layers=3, nodes=1, tie="kind")
    with pytest.raises(UsageError, match="share their decisions"):
        deepen(tied, tied.sample(Random(0)), tied)
    with pytest.raises(UsageError, match="none stands between the reductions"):
        deeper_positions(6, 3)
    with pytest.raises(UsageError, match="at least 3 cells"):
        deeper_positions(2, 8)


# --- hand-made networks ----------------------------------------------------------------------------------------------


def test_gates_started_from_a_network_are_parsed_to_exactly_that_network(resnet18):
    space, arch = resnet18
    search = d_darts(baseline=arch, schedule=QUICK)
    search.setup(Problem(space))
    data = Split(torch.zeros(8, 1, 8, 8), torch.arange(8) % 2)
    state = search.start(Context(Dataset("blank", data, data, None, "classification", 2), Recipe(epochs=1)))
    gates = torch.cat(list(state.mixture_weights().values()))
    assert sorted(set(gates.tolist())) == pytest.approx([0.5, 0.99995], abs=1e-5)
    assert Threshold(parse="sparse")(state) == Threshold(parse="edge")(state) == arch
    assert len(state.logits) == 4  # four cells that decide alike
    assert {len(r.modules) for r in state.parameters.rows.values()} == {4}
    assert d_darts(baseline=arch).schedule.warmup == 5


def test_cells_as_a_baseline_move_while_the_search_runs():
    space = micro()
    arch = space.sample(Random(1))
    search = prepared(d_darts("off", baseline=arch, schedule=QUICK), space)
    assert isinstance(search.mix, CellGates)
    assert search.log[0]["alpha"] != search.log[1]["alpha"]


# --- distances -------------------------------------------------------------------------------------------------------


def test_weights_of_operations_sum_to_the_golden_number():
    assert sum(OPERATION_ACCURACY.values()) == pytest.approx(990.972, abs=1e-3)
    assert set(OPERATION_ACCURACY) == set(ALL_OPS)


def test_a_residual_cell_with_one_other_operation_is_at_the_golden_distance(resnet18):
    space, arch = resnet18
    first = space.pairs(arch)
    second = {**first, "cell0.n2": ["sep_conv_3x3<0"]}
    assert architecture_distance(first, second) == pytest.approx(0.0841555, abs=1e-7)


def random_cells(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, 2, (5, 4)) for _ in range(rng.integers(1, 4))]


def test_the_distance_is_a_metric_on_random_networks():
    rng = np.random.default_rng(0)
    omega = [1.0, 2.0, 0.5, 3.0]
    for _ in range(60):
        a, b, c = (random_cells(rng) for _ in range(3))
        d_ab, d_bc, d_ac = distance(a, b, omega), distance(b, c, omega), distance(a, c, omega)
        assert distance(a, a, omega) == 0.0
        assert d_ab == distance(b, a, omega)
        assert 0.0 <= d_ab <= 1.0
        if len(a) == len(b) == len(c):
            assert d_ac <= d_ab + d_bc + 1e-12


def test_a_missing_cell_counts_one_and_rows_are_matched_to_the_nearest():
    A, B = np.array([[1, 0], [0, 0]]), np.array([[0, 1], [0, 0]])
    assert hausdorff(A, B, [1.0, 3.0]) == 0.75  # by hand: rows to rows, each to its nearest, the worst of them
    assert distance([A, A, A], [A], [1.0, 1.0]) == pytest.approx(2 / 3)
    with pytest.raises(UsageError, match="2 and 2 operations, but 3 weights"):
        hausdorff(A, B, [1.0, 1.0, 1.0])
    with pytest.raises(UsageError, match="Operation 'conv1x1' has no weight"):
        architecture_distance({"cell0.n1": ["conv1x1<0"]}, {"cell0.n1": ["conv1x1<0"]})
