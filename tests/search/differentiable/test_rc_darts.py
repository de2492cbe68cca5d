"""RC-DARTS: projections onto budgets, and derived networks that keep them."""

from __future__ import annotations

import json
import math
from random import Random

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from archipel.core.errors import InfeasibleError, SpaceError, UsageError
from archipel.cost.limits import Limits
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import DifferentiableSearch, Mix, Schedule
from archipel.search.differentiable.budget import Budget
from archipel.search.differentiable.costs import expected_cost
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.loop import make_supernet
from archipel.search.differentiable.mix import Softmax
from archipel.search.differentiable.parameters import ArchParameters, Moment
from archipel.search.differentiable.pc_darts import PartialChannels
from archipel.search.differentiable.projection import Bound, SoftmaxCosts, penalise, project
from archipel.search.differentiable.rc_darts import HardCost, RCDarts, expected_costs
from archipel.search.differentiable.within_budget import Repair, WithinBudget
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)

QUICK = Schedule(epochs=2, batch_size=8, alpha_lr=0.3)
MOMENT = Moment(0, 1, 0, 1)


def images(seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(32) % 2
    return Split(torch.randn(32, 1, 8, 8, generator=g) + y[:, None, None, None], y)


DATA = Dataset("bars", images(0), images(1), None, "classification", 2)
MICRO = MicroNB201((1, 8, 8), 2, C=2, tie="cell")
CELLS = DartsSpace((1, 4, 4), 2, C=2, layers=3, nodes=2, tie="level")
ALL_CONV = MICRO.cost.params({d.name: "conv3x3" for d in MICRO.decisions})


def parameters_of(space, mix=None) -> ArchParameters:
    mix = mix or Softmax()
    return ArchParameters.of(make_supernet(space, mix, 0), mix.weigh_edges)


def run(search: DifferentiableSearch, space, limits=None):
    search.setup(Problem(space, feasible=limits, rng=Random(0)))
    search.prepare(Context(DATA, Recipe(epochs=1)))
    return search.ask().arch


# --- the projection ------------------------------------------------------------------------------------------------


def cases(count: int, seed: int = 0):
    """Random costs of ragged rows, logits from nearly equal to nearly decided, and a bound that these break."""
    rng = np.random.default_rng(seed)
    for t in range(count):
        lengths = rng.integers(2, 6, 5)
        c = rng.uniform(0, 600, lengths.sum()) * (rng.random(lengths.sum()) < 0.7)
        costs = SoftmaxCosts([c], lengths, [100.0])
        alpha = (0.01, 0.5, 1.5, 3.0)[t % 4] * rng.standard_normal(len(c))
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        now = costs(alpha)[0][0]
        upper = t % 3 > 0
        end = 100.0 + (np.minimum if upper else np.maximum).reduceat(c, starts).sum()
        yield costs, alpha, Bound(0, "params", end + rng.uniform(0.05, 0.95) * (now - end), upper)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_broken_bound_is_met_from_the_feasible_side_and_projecting_twice_is_projecting_once(dtype):
    for costs, alpha, bound in cases(16):
        a = project(costs, alpha.astype(dtype), [bound])
        assert a.dtype == dtype
        excess = bound.excess(costs(a.astype(float))[0][0])
        assert -1e-3 < excess <= 0.0
        assert project(costs, a, [bound]) is a


def test_logits_that_keep_the_bounds_are_returned_as_they_are():
    for costs, alpha, bound in cases(6):
        kept = Bound(0, "params", bound.limit, not bound.upper)  # the other side of it
        assert project(costs, alpha, [kept]) is alpha
        assert penalise(costs, alpha, [kept]) is alpha


def test_no_feasible_point_nearby_is_nearer_to_the_logits():
    rng = np.random.default_rng(1)
    for costs, alpha, bound in cases(9, seed=2):
        a = project(costs, alpha, [bound])
        distance = np.linalg.norm(a - alpha)
        for _ in range(100):
            u = rng.standard_normal(len(a))
            b = a + 1e-2 * u / np.linalg.norm(u)
            if bound.excess(costs(b)[0][0]) <= 0.0:
                assert np.linalg.norm(b - alpha) > distance - 1e-3


def bisected(costs, alpha, limit):
    """The minimiser of |a - α|² + λ(Φ - C)/C for the smallest λ that keeps the bound, by doubling and halving."""

    def at(lam, start):
        def value(a):
            phi, g = costs(a)
            return (a - alpha) @ (a - alpha) + lam * (phi[0] - limit) / limit, 2 * (a - alpha) + lam * g[0] / limit

        return minimize(value, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10}).x

    low, high = 0.0, 1.0
    a = at(high, alpha)
    while costs(a)[0][0] > limit:
        low, high = high, 2 * high
        a = at(high, a)
    for _ in range(30):
        middle = (low + high) / 2
        b = at(middle, a)
        low, high, a = (low, middle, b) if costs(b)[0][0] <= limit else (middle, high, a)
    return a


def test_the_projection_equals_the_bisected_multiplier_where_one_attains_the_bound():
    costs = SoftmaxCosts([np.array([0.0, 4.0, 8.0, 0.0, 9.0])], [3, 2], [1.0])
    alpha = np.array([0.1, 0.2, 0.3, 0.0, 0.5])
    np.testing.assert_allclose(project(costs, alpha, [Bound(0, "params", 6.0)]), bisected(costs, alpha, 6.0), atol=1e-4)


def test_the_bound_is_met_where_no_multiplier_attains_it():
    # Two options of costs 0 and 1: Φ is the sigmoid of the difference d. Nearest to α = (0, 6) under Φ <= 0.8 is
    # d = ln 4, half of the way by each logit. There |a - α|² + λΦ has a maximum in d, so no λ leads to it.
    costs = SoftmaxCosts([np.array([0.0, 1.0])], [2], [0.0])
    alpha, half = np.array([0.0, 6.0]), (6 - math.log(4)) / 2
    a = project(costs, alpha, [Bound(0, "params", 0.8)])
    np.testing.assert_allclose(a, [half, 6 - half], atol=1e-4)
    other = bisected(costs, alpha, 0.8)
    assert costs(other)[0][0] < 0.3
    assert np.linalg.norm(other - alpha) > 1.5 * np.linalg.norm(a - alpha)


def test_several_bounds_hold_at_once_and_those_that_cannot_are_named():
    rng = np.random.default_rng(3)
    c = rng.uniform(0, 9, (2, 12))
    costs = SoftmaxCosts(list(c), [4, 4, 4], [0.0, 0.0])
    alpha = rng.standard_normal(12)
    first, second = costs(alpha)[0]
    bounds = [Bound(0, "params", 0.9 * first), Bound(1, "macs", 1.05 * second, False), Bound(1, "macs", 1.1 * second)]
    a = project(costs, alpha, bounds)
    values = costs(a)[0]
    assert all(b.excess(values[b.resource]) <= 0.0 for b in bounds)
    assert values[0] > 0.9 * first * (1 - 1e-4)
    same = SoftmaxCosts([c[0], c[0]], [4, 4, 4], [0.0, 0.0])
    contrary = [Bound(0, "params", 0.9 * first), Bound(1, "macs", first, False)]
    with pytest.raises(InfeasibleError, match=r"params <= .* and macs >= .* together"):
        project(same, alpha, contrary)


def test_the_penalty_is_farther_than_the_projection_and_depends_on_its_step():
    ratios = []
    for costs, alpha, bound in cases(8, seed=4):
        exact = np.sum((project(costs, alpha, [bound]) - alpha) ** 2)
        for step in (0.02, 0.1):
            a = penalise(costs, alpha, [bound], step)
            assert bound.excess(costs(a)[0][0]) <= 1e-3
            ratios.append(np.sum((a - alpha) ** 2) / exact)
    assert min(ratios) > 0.99  # its bound is looser by 1e-3
    assert max(ratios) > 1.001
    assert not np.allclose(ratios[::2], ratios[1::2], rtol=1e-4)


# --- expected costs ------------------------------------------------------------------------------------------------


class Tempered(Mix):
    """A mix of somebody else: the closed form of a softmax is not for it."""

    def coefficients(self, logits, row, moment):
        return torch.softmax(logits / 1.0, 0)


@pytest.mark.parametrize("space", [MICRO, CELLS], ids=["micro", "darts"])
def test_the_expected_cost_is_that_of_one_hots_is_differentiable_and_ignores_shifts(space):
    parameters = parameters_of(space)
    expected = [expected_cost(space, parameters, m) for m in ("params", "macs")]
    closed = expected_costs(expected, Softmax(), parameters, MOMENT)
    automatic = expected_costs(expected, Tempered(), parameters, MOMENT)
    rng = np.random.default_rng(0)
    lengths = [len(parameters.logits[n]) for n in expected[0].table]
    a = rng.standard_normal(sum(lengths))
    (value, gradient), (same, slope) = closed(a), automatic(a)
    np.testing.assert_allclose(value, same, rtol=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-9 * np.abs(slope).max())
    u = rng.standard_normal(len(a))
    difference = (closed(a + 1e-5 * u)[0] - closed(a - 1e-5 * u)[0]) / 2e-5
    np.testing.assert_allclose(difference, gradient @ u, rtol=1e-5)
    shifted = a + np.repeat(rng.standard_normal(len(lengths)), lengths)
    np.testing.assert_allclose(closed(shifted)[0], value, rtol=1e-12)
    if space is MICRO:  # every edge is kept
        arch = space.sample(Random(0))
        hot = parameters.one_hot(arch)
        one = np.concatenate([200.0 * hot[n].numpy() for n in expected[0].table])
        assert closed(one)[0].tolist() == [space.cost.params(arch), space.cost.macs(arch)]


def test_levels_have_parameters_of_their_own_and_their_gradients_stay_apart():
    space = DartsSpace((1, 8, 8), 2, C=2, layers=5, nodes=1, tie="level")
    search = DifferentiableSearch(schedule=QUICK)
    search.setup(Problem(space))
    state = search.start(Context(DATA, Recipe(epochs=1)))
    levels = {name.split(".")[0] for name in state.logits}
    assert levels == {"normal0", "normal1", "normal2", "reduce"}
    first = {}
    state.supernet.net.cells[0].register_forward_hook(lambda m, args, out: first.update(out=out))
    state.output(DATA.val.x[:4], state.mixture_weights())
    first["out"].square().sum().backward()
    touched = {n.split(".")[0] for n, p in state.logits.items() if p.grad is not None}
    assert touched == {"normal0"}


# --- the search ----------------------------------------------------------------------------------------------------


def test_without_bounds_it_is_darts_step_for_step():
    free = RCDarts(upper={"params": math.inf}, lower={"params": 0}, every=1, schedule=QUICK)
    plain = darts(schedule=QUICK)
    assert run(free, MICRO) == run(plain, MICRO)
    for name, logits in plain.state.logits.items():
        assert torch.equal(free.state.logits[name], logits)
    assert free.state.objective.active == 0


@pytest.mark.parametrize(
    ("mix", "share"),
    [(None, 0.15), (None, 0.4), (PartialChannels(2), 0.15), (Tempered(), 0.15)],
    ids=["softmax", "softmax with room", "partial channels", "other"],
)
def test_mixture_and_answer_keep_the_budget_with_any_mix(mix, share):
    limit = share * ALL_CONV
    slots = {} if mix is None else {"mix": mix}
    search = RCDarts(upper={"params": limit}, every=1, schedule=QUICK, **slots)
    arch = run(search, MICRO)
    state = search.state
    assert MICRO.cost.params(arch) <= limit
    phi = state.objective.expected[0]
    logits = {n: t.detach().double() for n, t in state.logits.items()}
    expected = float(phi(state.mix.weights(logits, state.parameters.rows, MOMENT)))
    assert expected <= limit * (1 + 1e-9)
    assert (state.objective.active > 0) == (share == 0.15)


def test_projections_come_every_so_many_steps_and_at_the_end():
    parameters = parameters_of(MICRO)
    objective = HardCost({"params": 0.15 * ALL_CONV}, every=3)
    objective.mix, objective.expected = Softmax(), [expected_cost(MICRO, parameters, "params")]
    moved = []
    for step in range(8):
        with torch.no_grad():
            for t in parameters.logits.values():
                t.zero_()
        objective.project(parameters, Moment(0, 1, step, 8))
        moved.append(bool(parameters.logits["cell0.e01"].any()))
    assert [i for i, m in enumerate(moved) if m] == [2, 5, 7]
    assert objective.active == 3


def test_limits_of_the_search_are_the_budget_if_none_is_given():
    limits = Limits({"params": int(0.3 * ALL_CONV)}, MICRO)
    search = RCDarts(schedule=QUICK)
    assert limits(run(search, MICRO, limits))
    assert str(search.objective.budget.bounds[0]) == f"params <= {int(0.3 * ALL_CONV)}"
    with pytest.raises(UsageError, match=r"was given none: limit the search"):
        RCDarts(schedule=QUICK).setup(Problem(MICRO))


def test_settings_are_plain_data():
    search = RCDarts(
        **json.loads('{"upper": {"params": "0.2k"}, "lower": {"macs": 5}, "every": 3, "method": "penalty"}')
    )
    assert [str(b) for b in search.objective.budget.bounds] == ["params <= 200", "macs >= 5"]


# --- the repair ----------------------------------------------------------------------------------------------------


def even(parameters, **rows):
    weights = {n: [1 / len(r.labels)] * len(r.labels) for n, r in parameters.rows.items()}
    return weights | rows


def test_the_change_that_gives_up_least_likelihood_for_its_cost_comes_first():
    # C = 2: a 3x3 convolution has 40 parameters, a 1x1 convolution 8. Options: none, skip, conv1x1, conv3x3, avgpool.
    parameters = parameters_of(MICRO)
    arch = {d.name: "skip" for d in MICRO.decisions} | {"cell0.e01": "conv3x3", "cell1.e23": "conv3x3"}
    cost = MICRO.cost.params(arch)
    weights = even(
        parameters,
        **{"cell0.e01": [0.0, 0.1, 0.3, 0.6, 0.0], "cell1.e23": [0.0, 0.29, 0.01, 0.7, 0.0]},
    )
    repaired = {
        saved: Repair(Budget({"params": cost - saved}), MICRO, parameters)(arch, weights) for saved in (0, 10, 40, 41)
    }
    assert repaired[0] == arch
    # log(.7/.29)/40 = .0220 beats log(.6/.3)/32 = .0217 not: the 1x1 convolution on e01 is the cheaper loss.
    assert repaired[10] == {**arch, "cell0.e01": "conv1x1"}
    assert repaired[40] == {**arch, "cell0.e01": "conv1x1", "cell1.e23": "skip"}
    assert repaired[41] == repaired[40]


@pytest.mark.parametrize("space", [MICRO, CELLS], ids=["micro", "darts"])
def test_repaired_networks_keep_every_budget(space):
    parameters = parameters_of(space)
    everything = Repair(Budget({"params": math.inf, "macs": math.inf}), space, parameters).attainable()
    rng = Random(0)
    for _ in range(4):
        arch = space.sample(rng)
        weights = {n: [rng.random() for _ in r.labels] for n, r in parameters.rows.items()}
        upper = {m: lo + rng.uniform(0.0, 0.6) * (hi - lo) for m, (lo, hi) in zip(("params", "macs"), everything)}
        fixed = Repair(Budget(upper), space, parameters)(arch, weights)
        assert space.validate(fixed) == fixed
        assert space.cost.params(fixed) <= upper["params"]
        assert space.cost.macs(fixed) <= upper["macs"]
        if all(getattr(space.cost, m)(arch) <= v for m, v in upper.items()):
            assert fixed == arch


def test_what_can_be_attained_is_what_the_cheapest_and_dearest_networks_cost():
    space = DartsSpace((1, 8, 8), 2, C=2, layers=3, nodes=1)
    parameters, rng = parameters_of(space), Random(0)
    table = {n: {label: rng.uniform(1, 9) for label in r.labels} for n, r in parameters.rows.items()}
    repair = Repair(Budget({"ms": 1.0}, tables={"ms": table}), space, parameters)
    costs = [repair.cost(arch)[0] for arch in space.enumerate()]
    assert repair.attainable() == [(pytest.approx(min(costs)), pytest.approx(max(costs)))]


def test_sources_are_exchanged_where_no_other_option_helps():
    parameters = parameters_of(CELLS)
    table = {n: dict.fromkeys(r.labels, 1.0) for n, r in parameters.rows.items()}
    table["normal0.e02"] = dict.fromkeys(table["normal0.e02"], 5.0)
    table["normal0.e03"] = dict.fromkeys(table["normal0.e03"], 9.0)
    arch = CELLS.complete({d.name: "0,2" for d in CELLS.decisions if d.name == "normal0.n3"}, Random(0))
    few = len([n for n in arch if n in table])  # two edges of each node; e02 is among them, and e03
    assert Repair(Budget({"ms": 1.0}, tables={"ms": table}), CELLS, parameters).cost(arch) == [few + 4 + 8]
    for limit, sources in ((few + 12, "0,2"), (few + 11, "1,2")):
        fixed = Repair(Budget({"ms": limit}, tables={"ms": table}), CELLS, parameters)(arch, even(parameters))
        assert CELLS.validate(fixed)["normal0.n3"] == sources
        assert (
            fixed.items() >= {n: v for n, v in arch.items() if not n.startswith(("normal0.n3", "normal0.e03"))}.items()
        )


def test_a_lower_bound_is_kept_too():
    parameters = parameters_of(MICRO)
    arch = {d.name: "skip" for d in MICRO.decisions}
    low, high = 0.3 * ALL_CONV, 0.4 * ALL_CONV
    fixed = Repair(Budget({"params": high}, {"params": low}), MICRO, parameters)(arch, even(parameters))
    assert low <= MICRO.cost.params(fixed) <= high


def test_an_answer_can_be_held_to_a_budget_without_a_constraint_on_the_search():
    search = DifferentiableSearch(schedule=QUICK, select=WithinBudget({"params": 0.3 * ALL_CONV}))
    arch = run(search, MICRO)
    assert MICRO.cost.params(arch) <= 0.3 * ALL_CONV
    with pytest.raises(UsageError, match=r"WithinBudget needs a budget.*objective is CrossEntropy"):
        run(DifferentiableSearch(schedule=QUICK, select=WithinBudget()), MICRO)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"upper": {"params": 90}, "lower": {"params": 100}}, UsageError, r"100, is above the upper, 90\. "),
        ({"upper": {"params": 10}}, InfeasibleError, r"upper bound .* is 10, which leaves no choice.* \d+ to \d+"),
        ({"upper": {"params": math.inf}, "lower": {"params": 1e6}}, InfeasibleError, r"lower bound .* is 1e\+06"),
        ({"upper": {"macs": "5G"}}, UsageError, r"5e\+09, which nothing can break\. .* to [\d,]+ macs"),
        ({"upper": {"params": 150}, "lower": {"params": 150}}, UsageError, r"Between 150 and 150 params"),
    ],
)  # fmt: skip
def test_budgets_that_cannot_be_or_do_nothing_say_what_can_be_attained(settings, error, message):
    with pytest.raises(error, match=message):
        run(RCDarts(**settings, schedule=QUICK), MICRO)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upper": {"joules": 5}}, r"params or macs, or a cost that a table is given for, not 'joules'"),
        ({"upper": {"params": "5MB"}}, r"unit 'MB' does not fit params"),
        ({"upper": {"params": math.nan}}, r"A bound of params is not a number"),
        ({"upper": {"params": 500}, "method": "clip"}, r"no method 'clip'"),
        ({"upper": {"params": 500}, "every": 0}, r"every is a number of steps from 1 on, not 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        RCDarts(**settings)


def test_a_table_without_an_option_is_refused_by_name():
    table = {n: dict.fromkeys(r.labels, 1.0) for n, r in parameters_of(MICRO).rows.items()}
    del table["cell1.e12"]["conv1x1"]
    with pytest.raises(SpaceError, match=r"gives None for option 'conv1x1' of 'cell1\.e12'"):
        run(RCDarts(upper={"ms": 5.0}, tables={"ms": table}, schedule=QUICK), MICRO)


class OneHot(Mix):
    def coefficients(self, logits, row, moment):
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).to(logits)


def test_a_mix_without_a_gradient_for_costs_is_refused():
    with pytest.raises(UsageError, match=r"OneHot takes one option .* cannot be projected"):
        run(RCDarts(upper={"params": 0.3 * ALL_CONV}, every=1, mix=OneHot(), schedule=QUICK), MICRO)
