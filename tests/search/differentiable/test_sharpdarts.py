"""sharpDARTS: Max-W mixtures, cosine power annealing, and paths through the hyper-cuboid."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from archipel.core.errors import InfeasibleError, SpaceError, UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import Argmax, DifferentiableSearch, FirstOrder, Schedule
from archipel.search.differentiable.costs import expected_cost
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.parameters import Moment, Row
from archipel.search.differentiable.paths import GreedyPath, LongestPath, layer_scores
from archipel.search.differentiable.sharpdarts import (
    CosinePower,
    ExponentError,
    MaxW,
    ScalarWeights,
    cosine_power,
    max_w,
    sharpdarts,
)
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.hyper_cuboid import HyperCuboid
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)

QUICK = Schedule(epochs=2, batch_size=8, alpha_lr=0.05)
MOMENT = Moment(0, 1, 0, 1)
SEP, POOL = "sharp_sep_conv", "resizable_pool"


def images(n: int = 32, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    return Context(Dataset("bars", images(), images(seed=1), None, "classification", 2), Recipe(epochs=1), **kw)


def cuboid(layers: int = 2) -> HyperCuboid:
    return HyperCuboid((1, 8, 8), 2, channels=(2, 3), layers=layers)


def prepared(search, space, ctx=None, **problem):
    search.setup(Problem(space, **problem))
    search.prepare(ctx or context())
    return search


def state_of(space, mix=None):
    search = DifferentiableSearch(mix=mix, schedule=QUICK)
    search.setup(Problem(space))
    return search.start(context())


def coefficients(mix: ScalarWeights, alpha: torch.Tensor) -> torch.Tensor:
    return mix.coefficients(alpha, Row("e", tuple(map(str, range(len(alpha)))), (nn.Identity(),)), MOMENT)


# --- Max-W ---------------------------------------------------------------------------------------------------------


def test_golden_numbers_of_max_w():
    w = torch.softmax(torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64), 0)
    assert w.tolist() == pytest.approx([0.665241, 0.244728, 0.090031], abs=5e-7)
    assert max_w(w).tolist() == pytest.approx([1, 0.579488, 0.424790], abs=5e-7)
    assert (w / w.max()).tolist() != pytest.approx(max_w(w).tolist(), abs=0.05)  # another method


def test_the_largest_coefficient_is_exactly_one_and_all_are_in_its_range():
    g = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 5.0):
        for _ in range(50):
            c = coefficients(MaxW(), scale * torch.randn(6, generator=g, dtype=torch.float64))
            assert float(c.max()) == 1.0
            assert float(c.min()) > 0.0


def test_equal_logits_give_the_sum_of_all_options_not_their_mean():
    assert coefficients(MaxW(), torch.full((5,), 0.3)).tolist() == [1.0] * 5
    state = state_of(MicroNB201((1, 8, 8), 2, C=2, cells=1), MaxW())
    state.supernet.eval()
    for p in state.logits.values():
        p.data.zero_()
    choice = state.parameters.rows["e01"].modules[0]
    state.output(images(4).x, state.mixture_weights())
    x = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(choice(x), sum(op(x) for op in choice.blended))


def test_coefficients_do_not_change_when_all_logits_are_shifted():
    alpha = torch.randn(5, dtype=torch.float64)
    torch.testing.assert_close(coefficients(MaxW(), alpha + 7.0), coefficients(MaxW(), alpha))


def test_the_gradient_of_the_best_coefficient_is_zero_or_that_of_the_softmax():
    alpha = torch.tensor([0.2, 1.1, -0.4], dtype=torch.float64)
    p = torch.softmax(alpha, 0)
    softmax = p.diag() - torch.outer(p, p)
    flowing = torch.autograd.functional.jacobian(lambda a: coefficients(MaxW(), a), alpha)
    assert flowing[1].tolist() == [0.0] * 3
    torch.testing.assert_close(flowing[0], softmax[0] - softmax[1])
    detached = torch.autograd.functional.jacobian(lambda a: coefficients(MaxW(detach_max=True), a), alpha)
    torch.testing.assert_close(detached, softmax)


def test_small_coefficients_are_skipped_below_one_over_n_squared():
    alpha = torch.tensor([12.0, 0.0, 0.0, 9.0])
    w = torch.softmax(alpha, 0)
    assert float(w[1]) < 1 / 16 < 1
    assert coefficients(ScalarWeights(skip=True), alpha).tolist() == [float(w[0]), 0.0, 0.0, 0.0]
    assert float(w[3]) < 1 / 16
    assert coefficients(ScalarWeights(skip=True), torch.zeros(32)).tolist() == [1 / 32] * 32
    just_below, just_above = (coefficients(ScalarWeights(skip=True), a) for a in (split_at(0.9), split_at(1.1)))
    assert float(just_below[-1]) == 0.0 < float(just_above[-1])
    kept = coefficients(MaxW(skip=True), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert (kept > 0).all()  # what multiplies them is 1 - max w + w


def split_at(share: float) -> torch.Tensor:
    """Logits of 32 options, of which the last has the weight share/1024."""
    last = share / 1024
    return torch.log(torch.tensor([(1 - last) / 31] * 31 + [last]))


def test_edges_are_ranked_by_the_softmax_since_every_best_coefficient_is_one():
    state = state_of(DartsSpace((1, 8, 8), 2, C=2, layers=3, nodes=2), MaxW())
    for name, p in state.logits.items():
        p.data = torch.zeros(8)
        p.data[3] = {"normal.e03": 0.5, "normal.e13": 2.0, "normal.e23": 1.0}.get(name, 0.1)
    assert {float(w.detach().max()) for w in state.mixture_weights().values()} == {1.0}
    assert Argmax()(state)["normal.n3"] == "1,2"


# --- cosine power annealing ----------------------------------------------------------------------------------------


def test_golden_numbers_of_the_schedule():
    golden = [0.1, 0.083146, 0.061815, 0.041627, 0.025657, 0.014468, 0.007278, 0.003007, 0.000785, 0.0001]
    assert cosine_power(max_epoch=10, exponent_order=10, lr_max=0.1, lr_min=1e-4) == pytest.approx(golden, abs=6e-7)


def test_power_one_is_the_cosine_rescaled_to_both_ends():
    rates = cosine_power(max_epoch=10, exponent_order=1, lr_max=0.1, lr_min=1e-3)
    assert rates[0] == 0.1
    assert rates[-1] == 1e-3
    c = [(1 + math.cos(math.pi * e / 10)) / 2 for e in range(1, 11)]
    plain = [1e-3 + 0.099 * (v - c[-1]) / (c[0] - c[-1]) for v in c]
    assert rates == pytest.approx(plain)


def test_the_schedule_falls_strictly_and_a_larger_power_lies_below():
    by_power = [cosine_power(max_epoch=20, exponent_order=p) for p in (1, 1.5, 2, 10, 100)]
    for rates in by_power:
        assert all(a > b for a, b in pairwise(rates))
        assert (rates[0], rates[-1]) == pytest.approx((0.025, 1e-4))
    for smaller, larger in pairwise(by_power[1:]):
        assert all(a > b for a, b in list(zip(smaller, larger))[1:-1])
    assert all(a > b for a, b in list(zip(by_power[0], by_power[2]))[1:-1])


def test_a_search_follows_the_curve_after_a_linear_rise():
    s = CosinePower(epochs=15, rise=5, power=10, lr=0.1, lr_min=1e-4)
    assert [s.learning_rate(e) for e in range(5, 15)] == pytest.approx(
        cosine_power(max_epoch=10, exponent_order=10, lr_max=0.1, lr_min=1e-4)
    )
    rise = [s.learning_rate(e) for e in range(6)]
    assert all(b - a == pytest.approx(rise[1] - rise[0]) for a, b in pairwise(rise))
    assert CosinePower(epochs=1, rise=0).learning_rate(0) == 0.025
    defaults = sharpdarts().schedule
    assert (defaults.epochs, defaults.rise, defaults.batch_size, defaults.power) == (120, 5, 48, 2.0)
    shorter = CosinePower(epochs=120, rise=6, warmup=12).over(20)
    assert (shorter.epochs, shorter.rise, shorter.warmup, shorter.power) == (20, 1, 2, 2.0)
    state = state_of(MicroNB201((1, 8, 8), 2, C=2, cells=1))
    state.schedule = s
    state.move_to(7, 0)
    assert state.step_size == pytest.approx(0.061815, abs=6e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cosine_power(max_epoch=10, exponent_order=0.5), "exponent_order must be at least 1, not 0.5"),
        (lambda: CosinePower(power=0.0), "exponent_order must be at least 1, not 0.0"),
        (lambda: cosine_power(), "got neither"),
        (lambda: cosine_power([0, 1], 10), "counted from 1"),
        (lambda: CosinePower(epochs=5), "rise of 5 leaves no epoch of 5"),
    ],
)
def test_schedules_that_make_no_sense_are_value_errors(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert isinstance(caught.value, ExponentError)


# --- paths ---------------------------------------------------------------------------------------------------------


def value(layers, path) -> float:
    return sum(layer[t] for layer, t in zip(layers, path))


def every_path(layers):
    for path in itertools.product(*layers):
        if all(a[1] == b[0] for a, b in pairwise(path)):
            yield path


@pytest.mark.parametrize("seed", range(6))
def test_the_longest_path_is_the_best_of_all_paths(seed):
    state = state_of(cuboid(), (ScalarWeights(), MaxW())[seed % 2])
    g = torch.Generator().manual_seed(seed)
    for p in state.logits.values():
        p.data = 2 * torch.randn(8, generator=g)
    layers = layer_scores(state)
    best = max(value(layers, p) for p in every_path(layers))
    assert len(list(every_path(layers))) == cuboid().size
    path = LongestPath().best(layers)
    assert value(layers, path) == pytest.approx(best, rel=1e-12)
    for direction in ("bottom-up", "top-down"):
        greedy = GreedyPath(direction).best(layers)
        assert all(a[1] == b[0] for a, b in pairwise(greedy))
        assert value(layers, greedy) <= best
    arch = LongestPath()(state)
    assert [arch[f"c{i}"] for i in range(3)] == [path[0][0], path[0][1], path[1][1]]
    assert [arch["op1"], arch["op2"]] == [path[0][2], path[1][2]]


def set_triples(state, *layers: dict) -> None:
    for (name, row), wanted in zip(state.parameters.rows.items(), layers):
        triples = row.modules[0].triples
        state.logits[name].data = torch.tensor([wanted.get(t, 0.0) for t in triples])


def test_the_best_layers_alone_do_not_make_a_path():
    state = state_of(cuboid())
    set_triples(
        state,
        {(2, 2, SEP): 3.0, (3, 3, POOL): 2.8},
        {(3, 2, SEP): 3.0, (2, 2, SEP): 0.5},
    )
    layers = layer_scores(state)
    assert max(layers[0], key=layers[0].get)[1] != max(layers[1], key=layers[1].get)[0]  # channels do not match
    assert LongestPath().best(layers) == [(3, 3, POOL), (3, 2, SEP)]
    assert GreedyPath("bottom-up").best(layers) == [(2, 2, SEP), (2, 2, SEP)]
    assert GreedyPath("top-down").best(layers) == [(3, 3, POOL), (3, 2, SEP)]


def test_weights_that_vanish_still_leave_a_whole_path():
    layers = [{(2, 2, SEP): 1.0, (2, 3, SEP): 0.0}, {(2, 2, SEP): 0.0, (3, 2, SEP): 0.0}]
    assert len(LongestPath().best(layers)) == 2


def test_limits_are_kept_by_the_best_path_within_them():
    space = cuboid()

    def small(arch):
        return space.cost.params(arch) < 90

    search = prepared(sharpdarts(path="longest", schedule=QUICK), space, feasible=small)
    set_triples(search.state, {(3, 3, SEP): 3.0, (2, 2, SEP): 1.0}, {(3, 3, SEP): 3.0, (2, 2, POOL): 1.0})
    layers = layer_scores(search.state)
    arch = LongestPath().nearest(search.state, small, None)
    assert small(arch)
    allowed = [p for p in every_path(layers) if small(as_arch(space, p))]
    chosen = [(arch["c0"], arch["c1"], arch["op1"]), (arch["c1"], arch["c2"], arch["op2"])]
    assert value(layers, chosen) == pytest.approx(max(value(layers, p) for p in allowed))
    with pytest.raises(InfeasibleError, match="None of the best 32 paths"):
        LongestPath().nearest(search.state, lambda a: False, None)
    search._answers = [as_arch(space, [(3, 3, SEP), (3, 3, SEP)])]
    trial = search.ask()
    assert trial.info["repaired"]
    assert small(trial.arch)


def as_arch(space, path):
    return space.path([path[0][0], *(t[1] for t in path)], [t[2] for t in path])


# --- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["scalar", "max_w"])
def test_a_search_of_the_cuboid_ends_with_a_path(weighting):
    space = cuboid(4)
    search = prepared(sharpdarts(weighting, skip=True, path="longest", schedule=QUICK), space)
    trial = search.ask()
    assert space.validate(trial.arch) == trial.arch
    assert 0 < search.log[-1]["entropy"] <= 1.0
    assert search.log[0]["alpha"] != search.log[1]["alpha"]
    assert all(len(w) == 8 and sum(w) == pytest.approx(1.0) for w in trial.info["weights"].values())


def test_gradients_reach_every_layer_of_the_cuboid():
    state = state_of(cuboid(4), MaxW())
    data = images(8)
    g = FirstOrder().gradient(state, (data.x, data.y), (data.x, data.y))
    assert set(g) == {"layer1", "layer2", "layer3", "layer4"}
    assert all(float(t.abs().max()) > 0 for t in g.values())


@pytest.mark.parametrize("path", ["bottom-up", "top-down"])
def test_greedy_paths_are_of_the_space(path):
    space = cuboid()
    assert space.validate(prepared(sharpdarts(path=path, schedule=QUICK), space).ask().arch)


def test_an_interrupted_search_ends_bit_identical(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction >= 0.5:
            raise Killed

    def make():
        return sharpdarts(path="longest", schedule=CosinePower(epochs=2, rise=0, batch_size=8))

    whole = prepared(make(), cuboid())
    with pytest.raises(Killed):
        prepared(make(), cuboid(), context(checkpoints=Checkpoints(tmp_path), progress=kill))
    resumed = prepared(make(), cuboid(), context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.log == whole.log


@pytest.mark.parametrize("operations", ["sharp", "sharp-darts"])
def test_cells_of_sharp_operations_are_searched(operations):
    space = DartsSpace((1, 8, 8), 2, C=2, layers=3, nodes=1, operations=operations)
    trial = prepared(sharpdarts(schedule=QUICK, detach_max=True), space).ask()
    assert space.validate(trial.arch) == trial.arch
    assert "none" not in trial.arch.values()


def test_plain_settings_make_every_variant():
    search = sharpdarts(**{"weighting": "scalar", "path": "longest", "power": 10})
    assert type(search.mix) is ScalarWeights
    assert isinstance(search.select, LongestPath)
    assert search.schedule.power == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sharpdarts("maxw"), "expected scalar or max_w"),
        (lambda: sharpdarts("scalar", detach_max=True), "no maximum that could be detached"),
        (lambda: sharpdarts(path="longer"), "Did you mean: longest"),
        (lambda: sharpdarts(power=2, schedule=QUICK), "Give the power in the schedule"),
        (lambda: GreedyPath("sideways"), "bottom-up or top-down, not 'sideways'"),
        (lambda: prepared(darts(schedule=QUICK), cuboid()), r"'layer1' of hyper-cuboid must match .*LongestPath"),
        (
            lambda: prepared(sharpdarts(path="longest", schedule=QUICK), MicroNB201((1, 8, 8), 2, C=2, cells=1)),
            r"LongestPath reads paths .* micro-nb201 has none",
        ),
    ],
)
def test_combinations_that_cannot_work_say_why(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_costs_of_layers_that_depend_on_their_neighbours_are_not_added_up():
    state = state_of(cuboid())
    with pytest.raises(SpaceError, match=r"'layer1' is made by several decisions"):
        expected_cost(cuboid(), state.parameters, "params")
