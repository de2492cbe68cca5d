"""DARTS and the loop that it shares with every differentiable search."""

from __future__ import annotations

import copy
import time
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from archipel.core.choice import Choice, Inputs, Width
from archipel.core.errors import DataError, InfeasibleError, RunError, SpaceError, UsageError
from archipel.core.space import Space
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import DifferentiableSearch, FirstOrder, Schedule, SecondOrder, Softmax
from archipel.search.differentiable.arch_gradient import exact_mixed_product, mixed_product
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.diagnostics import discretisation_gap, normalised_entropy, saved_bytes
from archipel.search.differentiable.loop import halves
from archipel.search.differentiable.mix import Mixture, weighted_sum
from archipel.search.differentiable.parameters import ArchParameters
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.layers import ElasticLinear
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.operations import Zero

torch.set_num_threads(1)

QUICK = Schedule(epochs=2, batch_size=8, alpha_lr=0.05)


def images(n: int = 32, classes: int = 2, side: int = 8, seed: int = 0) -> Split:
    """Bright or dark halves, with noise: learnable in a few steps."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(n, 1, side, side, generator=g)
    x[:, 0, : side // 2] += (2.0 * y - classes + 1)[:, None, None]
    return Split(x, y)


def dataset(**kw) -> Dataset:
    return Dataset("bars", images(seed=0, **kw), images(seed=1, **kw), None, "classification", kw.get("classes", 2))


def micro(C: int = 2) -> MicroNB201:
    return MicroNB201((1, 8, 8), 2, C=C, cells=1)


def cells() -> DartsSpace:
    return DartsSpace((1, 8, 8), 2, C=2, layers=3, nodes=2)


def context(**kw) -> Context:
    return Context(**{"dataset": dataset(), "recipe": Recipe(epochs=1), **kw})


def prepared(search: DifferentiableSearch, space: Space, ctx: Context | None = None, **problem) -> DifferentiableSearch:
    search.setup(Problem(space, **problem))
    search.prepare(ctx or context())
    return search


def state_of(space: Space, search: DifferentiableSearch | None = None):
    search = search or DifferentiableSearch(schedule=QUICK)
    search.setup(Problem(space))
    state = search.start(context())
    state.supernet.train()
    return state


# --- the architecture gradient -------------------------------------------------------------------------------------


class Quadratic:
    """L_train = w'Hw/2 + w'Pα,  L_val = |w - a|²/2 + b'α + w'Qα, with a plain gradient step."""

    def __init__(self, n: int = 6, m: int = 4, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        r = torch.randn(n, n, generator=g, dtype=torch.double)
        self.H = r @ r.T / n + torch.eye(n, dtype=torch.double)
        self.P, self.Q = torch.randn(2, n, m, generator=g, dtype=torch.double)
        self.a, self.b = (
            torch.randn(n, generator=g, dtype=torch.double),
            torch.randn(m, generator=g, dtype=torch.double),
        )
        self.weights = {"w": torch.randn(n, generator=g, dtype=torch.double).requires_grad_()}
        self.logits = {"α": torch.randn(m, generator=g, dtype=torch.double).requires_grad_()}
        self.step_size = 0.1

    def at(self, weights, logits):
        return (weights or self.weights)["w"], (logits or self.logits)["α"]

    def train_loss(self, batch, weights=None, logits=None):
        w, α = self.at(weights, logits)
        return w @ self.H @ w / 2 + w @ self.P @ α

    def val_loss(self, batch, weights=None, logits=None):
        w, α = self.at(weights, logits)
        return ((w - self.a) ** 2).sum() / 2 + self.b @ α + w @ self.Q @ α

    def descent(self, gradient):
        return dict(gradient)


BATCH = (torch.zeros(1), torch.zeros(1))


def test_first_order_is_the_partial_derivative():
    q = Quadratic()
    g = FirstOrder().gradient(q, BATCH, BATCH)["α"]
    torch.testing.assert_close(g, (q.b + q.Q.T @ q.weights["w"]).detach())


@pytest.mark.parametrize("hessian", ["finite", "exact"])
def test_second_order_equals_the_dense_matrices_on_a_quadratic(hessian):
    q, ξ = Quadratic(), 0.3
    w, α = q.weights["w"].detach(), q.logits["α"].detach()
    ahead = w - ξ * (q.H @ w + q.P @ α)
    v = ahead - q.a + q.Q @ α
    expected = q.b + q.Q.T @ ahead - ξ * q.P.T @ v
    found = SecondOrder(ξ, hessian).gradient(q, BATCH, BATCH)["α"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_both_mixed_products_equal_the_dense_matrix():
    q = Quadratic()
    v = {"w": torch.randn(6, dtype=torch.double)}
    for product in (mixed_product(q, BATCH, v), exact_mixed_product(q, BATCH, v)):
        torch.testing.assert_close(product["α"], q.P.T @ v["w"], rtol=0, atol=1e-6)
    assert mixed_product(q, BATCH, {"w": torch.zeros(6, dtype=torch.double)}) == {}  # no division by zero


def test_second_order_without_a_step_is_first_order():
    q = Quadratic()
    torch.testing.assert_close(SecondOrder(0.0).gradient(q, BATCH, BATCH), FirstOrder().gradient(q, BATCH, BATCH))


class Solvable(Quadratic):
    """The paper's example: L_val = αw - 2α + 1, L_train = w² - 2αw + α²; the optimum is α = w = 1."""

    def __init__(self) -> None:
        self.weights = {"w": torch.tensor([-2.0], dtype=torch.double).requires_grad_()}
        self.logits = {"α": torch.tensor([2.0], dtype=torch.double).requires_grad_()}
        self.step_size = 0.1

    def train_loss(self, batch, weights=None, logits=None):
        w, α = self.at(weights, logits)
        return (w * w - 2 * α * w + α * α).sum()

    def val_loss(self, batch, weights=None, logits=None):
        w, α = self.at(weights, logits)
        return (α * w - 2 * α + 1).sum()


@pytest.mark.parametrize(
    ("gradient", "end"), [(FirstOrder(), 2.0), (SecondOrder(0.1), 2 / 1.2), (SecondOrder(0.5), 1.0)]
)
def test_the_solvable_example_ends_where_the_step_says(gradient, end):
    problem = Solvable()
    w, α = problem.weights["w"], problem.logits["α"]
    for _ in range(800):
        g = gradient.gradient(problem, BATCH, BATCH)["α"]
        (g_w,) = torch.autograd.grad(problem.train_loss(BATCH), w)
        with torch.no_grad():
            α -= 0.05 * g
            w -= 0.05 * g_w
    assert (α.item(), w.item()) == pytest.approx((end, end), abs=1e-3)


def double_state():
    state = state_of(micro())
    state.supernet.double()
    for p in state.logits.values():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p)), dtype=torch.double)
    state.weight_step(as_batch(0))  # gives the optimiser its momentum
    return state


def as_batch(start: int):
    data = images()
    return data.x[start : start + 8].double(), data.y[start : start + 8]


def test_second_order_on_a_supernet_equals_differences_of_the_loss_after_the_step():
    state = double_state()
    train, val = as_batch(8), as_batch(16)

    def after_step(name, k, ε):
        logits = {n: p.detach().clone() for n, p in state.logits.items()}
        logits[name][k] += ε
        loss = state.train_loss(train, logits=logits)
        g = dict(zip(state.weights, torch.autograd.grad(loss, list(state.weights.values()), allow_unused=True)))
        step = state.descent({n: t for n, t in g.items() if t is not None})
        ahead = {n: state.weights[n].detach() - state.step_size * d for n, d in step.items()}
        return float(state.val_loss(val, weights=ahead, logits=logits).detach())

    exact = SecondOrder(hessian="exact").gradient(state, train, val)
    # The paper's r = 0.01 crosses kinks of the ReLUs, which cost a few percent here; this r crosses none.
    finite = SecondOrder(r=1e-7).gradient(state, train, val)
    first = FirstOrder().gradient(state, train, val)
    for name, k in [("e01", 3), ("e23", 1)]:
        slope = (after_step(name, k, 1e-5) - after_step(name, k, -1e-5)) / 2e-5
        assert float(exact[name][k]) == pytest.approx(slope, rel=1e-5)
        assert float(finite[name][k]) == pytest.approx(slope, rel=1e-4)
        assert float(first[name][k]) != pytest.approx(slope, rel=1e-3)


def test_the_step_ahead_is_the_step_that_the_optimiser_takes():
    state = double_state()
    train = as_batch(8)
    loss = state.train_loss(train)
    g = dict(zip(state.weights, torch.autograd.grad(loss, list(state.weights.values()))))
    expected = {n: state.weights[n].detach() - state.step_size * d for n, d in state.descent(g).items()}
    object.__setattr__(state.schedule, "clip", 0.0)
    state.weight_step(train)
    for n, w in expected.items():
        torch.testing.assert_close(state.weights[n].detach(), w)


def test_looking_at_losses_changes_neither_weights_nor_statistics_nor_randomness():
    state = state_of(micro())
    before, random = copy.deepcopy(state.supernet.state_dict()), torch.get_rng_state()
    data = images()
    for gradient in (FirstOrder(), SecondOrder(), SecondOrder(hessian="exact")):
        gradient.gradient(state, (data.x[:8], data.y[:8]), (data.x[8:16], data.y[8:16]))
    state.metrics(data)
    for name, t in state.supernet.state_dict().items():
        assert torch.equal(t, before[name]), name
    assert torch.equal(random, torch.get_rng_state())
    state.weight_step((data.x[:8], data.y[:8]))
    assert not torch.equal(state.supernet.state_dict()["net.norm.running_mean"], before["net.norm.running_mean"])


# --- the mixture ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [cells(), micro()], ids=["darts", "micro"])
def test_one_hot_weights_compute_the_extracted_network(space):
    state = state_of(space)
    x = torch.randn(3, 1, 8, 8)
    for seed in range(3):
        arch = space.sample(Random(seed))
        with torch.no_grad():
            blended = state.output(x, state.parameters.one_hot(arch))
            torch.testing.assert_close(blended, state.supernet.extract(arch)(x), rtol=0, atol=1e-6)


def test_options_of_weight_zero_are_never_computed():
    state = state_of(cells())
    arch = state.supernet.space.sample(Random(0))
    computed = []
    for m in state.supernet.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(lambda m, *_: computed.append(m))
    state.output(torch.randn(2, 1, 8, 8), state.parameters.one_hot(arch))
    assert len(computed) == sum(isinstance(m, nn.Conv2d) for m in state.supernet.extract(arch).modules())


def test_an_edge_is_the_weighted_sum_of_its_options():
    options = [nn.Identity(), nn.Conv2d(2, 2, 3, padding=1), Zero(), nn.AvgPool2d(3, 1, 1)]
    w, x = torch.tensor([0.1, 0.4, 0.3, 0.2]), torch.randn(2, 2, 4, 4)
    expected = sum(p * op(x) for p, op in zip(w, options))
    torch.testing.assert_close(weighted_sum(options, w, x), expected)
    assert torch.equal(weighted_sum([Zero(2)], w[:1], x), torch.zeros(2, 2, 2, 2))


def test_the_gradient_for_logits_is_that_of_finite_differences():
    state = double_state()
    val = as_batch(0)
    g = FirstOrder().gradient(state, val, val)
    for name, k in [("e01", 0), ("e13", 4)]:
        sides = []
        for ε in (1e-5, -1e-5):
            logits = {n: p.detach().clone() for n, p in state.logits.items()}
            logits[name][k] += ε
            sides.append(state.val_loss(val, logits=logits).item())
        assert float(g[name][k]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4)


def test_weights_that_are_nan_or_all_zero_are_refused():
    choice = Choice("op", {"a": nn.Identity(), "b": nn.Identity()})
    with pytest.raises(SpaceError, match=r"'op' hold NaN"):
        Mixture({"op": torch.tensor([float("nan"), 1.0])})
    with pytest.raises(SpaceError, match=r"All options of 'op' have weight zero"):
        Mixture({"op": torch.zeros(2)}).choose(choice, torch.ones(1))
    with pytest.raises(SpaceError, match=r"'n' has no incoming edge left"):
        Mixture({"n": torch.zeros(2)}).gather(Inputs("n", [nn.Identity(), nn.Identity()]), [torch.ones(1)] * 2)


def test_logits_that_are_nan_are_named():
    state = state_of(micro())
    state.logits["e12"].data[3] = float("nan")
    with pytest.raises(SpaceError, match=r"'e12' are not finite for conv3x3"):
        state.parameters.check_finite()


# --- which parameters ----------------------------------------------------------------------------------------------


def test_darts_has_one_row_of_eight_logits_for_each_edge_of_each_kind_of_cell():
    supernet = DartsSpace((1, 8, 8), 2, C=2, layers=3).supernet()
    rows = ArchParameters.of(supernet).rows
    assert len(rows) == 2 * 14
    assert {len(r.labels) for r in rows.values()} == {8}
    assert rows["normal.e02"].labels[-1] == "none"
    assert len(rows["reduce.e02"].modules) == 2  # tied over both reduction cells


class TwoWays(nn.Module):
    """A user's own module: a choice, a decided width, and a choice of inputs without operations."""

    def __init__(self, width=None) -> None:
        super().__init__()
        w = Width("width", [4, 8]) if width is None else width
        self.first = ElasticLinear(4, w)
        self.act = Choice("act", {"relu": nn.ReLU(), "tanh": nn.Tanh()})
        self.source = Inputs("source", [nn.Identity(), nn.Identity()])
        self.head = ElasticLinear(w, 2)

    def forward(self, x):
        h = self.first(x.flatten(1)[:, :4])
        return self.head(self.source([h, self.act(h)]))


def test_sizes_cannot_be_blended_and_the_error_says_what_to_do():
    space = ModuleSpace(TwoWays, torch.zeros(2, 1, 8, 8))
    with pytest.raises(SpaceError, match=r"'width' \(one of \[4, 8\]\) sets a size.*fixed=\{'width': 8\}"):
        prepared(darts(schedule=QUICK), space)
    with pytest.raises(SpaceError, match=r"'width' is one of \[4, 8\], not 5"):
        prepared(darts(schedule=QUICK, fixed={"width": 5}), space)
    with pytest.raises(SpaceError, match=r"no decision 'with'.*Did you mean: width"):
        prepared(darts(schedule=QUICK, fixed={"with": 4}), space)


def test_a_users_own_module_is_searched_with_its_sizes_fixed():
    space = ModuleSpace(TwoWays, torch.zeros(2, 1, 8, 8))
    search = prepared(darts(schedule=QUICK, fixed={"width": 4}), space)
    assert sorted(search.state.logits) == ["act", "source"]  # edges without operations are weighed: nothing else tells
    assert search.ask().arch["width"] == 4


def test_a_space_with_nothing_to_blend_or_no_supernet_is_refused():
    fixed = {"width": 4, "act": "relu", "source": "0"}
    with pytest.raises(SpaceError, match="no choice that is open"):
        prepared(darts(fixed=fixed), ModuleSpace(TwoWays, torch.zeros(2, 1, 8, 8)))
    from archipel.spaces.nb201_codec import NB201Codes

    with pytest.raises(SpaceError, match="no supernet"):
        prepared(darts(), NB201Codes())


# --- selection -----------------------------------------------------------------------------------------------------


def with_logits(space: Space, **rows):
    state = state_of(space)
    for name, p in state.logits.items():
        p.data = torch.tensor(rows.get(name.replace(".", "_"), [0.0] * len(p)))
    return state


def test_nodes_keep_the_two_edges_with_the_strongest_operation():
    row = [0.0] * 8
    strong = [0.0, 0, 0, 3.0, 0, 0, 0, 0]  # sep_conv_3x3
    state = with_logits(cells(), normal_e03=row, normal_e13=strong, normal_e23=[0.0, 0, 1.0, 0, 0, 0, 0, 0])
    arch = DifferentiableSearch().select(state)
    assert (arch["normal.n3"], arch["normal.e13"], arch["normal.e23"]) == ("1,2", "sep_conv_3x3", "skip_connect")
    assert "normal.e03" not in arch


def test_none_takes_mass_in_the_mixture_and_is_never_chosen():
    heavy = [0.0, 0.1, 0, 0, 0, 0, 0, 5.0]  # none
    light = [0.0, 0.0, 0.2, 0, 0, 0, 0, 0.0]
    state = with_logits(cells(), normal_e03=heavy, normal_e13=light, normal_e23=light)
    arch = DifferentiableSearch().select(state)
    assert state.mixture_weights()["normal.e03"][-1].item() > 0.9
    assert arch["normal.n3"] == "1,2"  # the mass of none counts against the edge
    assert "none" not in arch.values()
    assert DifferentiableSearch().select(with_logits(micro(), e01=[9.0, 0, 0, 0, 1]))["e01"] == "avgpool3x3"


def test_selection_does_not_change_when_a_row_is_shifted():
    state = state_of(cells())
    arch = DifferentiableSearch().select(state)
    for i, p in enumerate(state.logits.values()):
        p.data += 0.1 * i
    assert DifferentiableSearch().select(state) == arch


def test_an_answer_beyond_the_limits_is_replaced_by_a_near_one_and_marked():
    def cheap(arch):
        return sum(op.startswith("conv") for op in arch.values()) <= 1

    search = prepared(darts(schedule=QUICK), micro(), feasible=cheap)
    for p in search.state.logits.values():
        p.data = torch.tensor([0.0, 0.0, 0.0, 2.0, 1.0])
    search._answers = [dict.fromkeys(search._answers[0], "conv3x3")]
    trial = search.ask()
    assert trial.info["repaired"]
    assert cheap(trial.arch)
    assert "none" not in trial.arch.values()
    impossible = prepared(darts(schedule=QUICK), micro(), feasible=lambda arch: False)
    with pytest.raises(InfeasibleError, match="breaks the limits"):
        impossible.ask()


# --- the loop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
def test_a_search_proposes_one_trial_and_is_finished(order):
    search = prepared(darts(order, schedule=QUICK), micro())
    assert not search.finished
    trial = search.ask()
    assert micro().validate(trial.arch) == trial.arch
    assert search.finished
    assert search.ask() is None
    assert trial.info["epochs"] == 2
    assert not trial.info["repaired"]
    assert 0.0 < trial.info["entropy"] < 1.0
    assert trial.info["gap"] == pytest.approx(trial.info["mixture"] - trial.info["one_hot"])
    assert [entry["epoch"] for entry in search.log] == [0, 1]
    assert set(search.log[0]["alpha"]) == set(search.state.logits)


def test_a_search_learns_its_task_and_its_architecture():
    search = prepared(darts(schedule=Schedule(epochs=6, batch_size=8, alpha_lr=0.05, lr=0.1)), micro(4))
    assert search.log[-1]["train_loss"] < 0.8 * search.log[0]["train_loss"]
    assert search.log[-1]["mixture"] > 0.9
    assert search.log[-1]["entropy"] < search.log[0]["entropy"] < 1.0


def test_architecture_rests_while_warming_up():
    search = darts(schedule=Schedule(epochs=3, warmup=2, batch_size=8, alpha_lr=0.05))
    search.setup(Problem(micro()))
    initial = {n: p.detach().tolist() for n, p in search.start(context()).logits.items()}
    search.prepare(context())
    first, second, third = (entry["alpha"] for entry in search.log)
    assert first == second == initial
    assert all(third[n] != initial[n] for n in third)


def test_an_interrupted_search_ends_bit_identical(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction >= 0.5:
            raise Killed

    schedule = Schedule(epochs=3, batch_size=8, alpha_lr=0.05)
    whole = prepared(darts(2, schedule=schedule), micro())
    store = Checkpoints(tmp_path)
    with pytest.raises(Killed):
        prepared(darts(2, schedule=schedule), micro(), context(checkpoints=store, progress=kill))
    torch.rand(7)  # another process has another generator
    resumed = prepared(darts(2, schedule=schedule), micro(), context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.log == whole.log
    assert resumed.ask().arch == whole.ask().arch
    for n, t in whole.state.supernet.state_dict().items():
        assert torch.equal(t, resumed.state.supernet.state_dict()[n]), n
    again = prepared(darts(2, schedule=schedule), micro(), context(checkpoints=Checkpoints(tmp_path)))
    assert again.ask().arch == resumed.problem.space.validate(resumed._answers[0])
    with pytest.raises(RunError, match="Resume with the settings"):
        prepared(darts(schedule=schedule), cells(), context(checkpoints=Checkpoints(tmp_path)))


def test_validation_data_take_no_part_in_the_search():
    data = dataset()
    other = Dataset("bars", data.train, Split(-data.val.x, 1 - data.val.y), None, "classification", 2)
    first = prepared(darts(schedule=QUICK), micro(), context(dataset=data))
    second = prepared(darts(schedule=QUICK), micro(), context(dataset=other))
    assert first.log[-1]["alpha"] == second.log[-1]["alpha"]


def test_the_halves_of_the_training_data_are_disjoint_and_balanced():
    data = Split(torch.arange(40.0)[:, None], torch.arange(40) % 4)
    ours, theirs = halves(data, 0.5, "classification", seed=0)
    assert set(ours.x.flatten().tolist()) | set(theirs.x.flatten().tolist()) == set(map(float, range(40)))
    assert len(ours) == len(theirs) == 20
    assert torch.equal(ours.y.bincount(), theirs.y.bincount())
    assert not torch.equal(halves(data, 0.5, "classification", seed=1)[0].x, ours.x)
    assert halves(data, 0.0, "classification", seed=0) == (data, data)


def test_a_class_that_cannot_be_in_both_halves_is_named():
    with pytest.raises(DataError, match=r"Class 1 has 1 training example"):
        halves(Split(torch.zeros(3, 1), torch.tensor([0, 0, 1])), 0.5, "classification", 0)


def test_shared_scores_are_those_of_the_extracted_networks_with_batch_statistics():
    search = prepared(darts(schedule=QUICK), micro())
    archs = [micro().sample(Random(s)) for s in range(3)]
    val = dataset().val
    for arch, score in zip(archs, search.shared_scores(archs)):
        plain = search.state.supernet.extract(arch).train()
        with torch.no_grad():
            assert score == pytest.approx(float((plain(val.x).argmax(1) == val.y).double().mean()))


def test_the_gap_is_between_the_mixture_and_its_discretisation():
    search = prepared(darts(schedule=QUICK), micro())
    arch = search.ask().arch
    gap = discretisation_gap(search.state, arch, dataset().val)
    assert gap["one_hot"] == search.shared_scores([arch])[0]
    assert gap["mixture"] == search.log[-1]["mixture"]


def test_a_deadline_ends_a_search_cleanly():
    search = prepared(darts(schedule=QUICK), micro(), context(deadline=time.monotonic() - 1))
    trial = search.ask()
    assert trial.info["epochs"] == 0
    assert micro().validate(trial.arch) == trial.arch


def test_a_budget_of_epochs_stretches_the_schedule():
    search = prepared(darts(schedule=Schedule(epochs=10, warmup=3, batch_size=8)), micro(), context(epochs=3))
    assert len(search.log) == 3
    assert search.state.schedule.warmup == 1


def test_a_mixture_that_changes_with_time_is_read_off_at_the_end_even_after_a_resume(tmp_path):
    class Sharpening(Softmax):
        def coefficients(self, logits, row, moment):
            return torch.softmax(logits * (1 + moment.step), 0)

    store = Checkpoints(tmp_path)
    whole = prepared(darts(schedule=QUICK, mix=Sharpening()), micro(), context(checkpoints=store))
    assert whole.state.moment.step == whole.state.moment.steps - 1
    resumed = prepared(darts(schedule=QUICK, mix=Sharpening()), micro(), context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.ask().info == whole.ask().info


def test_settings_are_not_touched_by_a_search():
    mix = Softmax()
    search = prepared(darts(schedule=QUICK, mix=mix), micro())
    assert search.state.mix is not mix


def test_regression_is_searched_by_its_own_loss():
    x = images().x
    y = x.mean((1, 2, 3), keepdim=False)[:, None]
    data = Dataset("means", Split(x, y), Split(x, y), None, "regression", 1)
    space = MicroNB201((1, 8, 8), 1, C=2, cells=1)
    search = prepared(darts(schedule=QUICK), space, context(dataset=data))
    val = search.state.val_loss((x[:8], y[:8]))
    output = search.state.output(x[:8], search.state.mixture_weights())
    torch.testing.assert_close(val, F.mse_loss(output, y[:8]))
    assert search.log[-1]["mixture"] <= 1.0


# --- settings and diagnostics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: darts(order=3), "order 1 or 2, not 3"),
        (lambda: SecondOrder(hessian="dense"), "'finite' or 'exact', not 'dense'"),
        (lambda: SecondOrder(xi=-1.0), "must not be negative"),
        (lambda: Schedule(epochs=0), "epochs must be a positive integer"),
        (lambda: Schedule(epochs=5, warmup=5), "would never be trained"),
        (lambda: Schedule(alpha_lr=float("nan")), "alpha_lr must be positive"),
        (lambda: Schedule(alpha_share=1.0), "at least 0 and below 1"),
        (lambda: DifferentiableSearch().ask(), r"call prepare\(context\) before ask"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_the_schedule_is_that_of_the_paper():
    s = darts().schedule
    assert (s.epochs, s.batch_size, s.alpha_lr, s.alpha_betas, s.alpha_decay) == (50, 64, 3e-4, (0.5, 0.999), 1e-3)
    assert s.learning_rate(0) == 0.025
    assert s.learning_rate(25) == pytest.approx(0.013)
    assert s.learning_rate(50) == pytest.approx(0.001)


def test_entropy_by_hand():
    assert normalised_entropy({"a": [0.25] * 4}) == pytest.approx(1.0)
    assert normalised_entropy({"a": [0.5, 0.5, 0.0, 0.0]}) == pytest.approx(0.5)


def test_saved_bytes_count_shared_memory_once_and_no_parameters():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    x = torch.ones(3, 4)
    assert saved_bytes(lambda: net(x), net) == 2 * 3 * 4 * 4  # the two inputs, float32
    assert saved_bytes(lambda: net[0](x) + net[1](x), net) == 3 * 4 * 4
