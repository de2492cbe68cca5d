"""RARTS: the split update, its model with a known end, and the search of widths."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.choice import Kernel, Width
from archipel.core.errors import InfeasibleError, ShapeError, SpaceError, UsageError
from archipel.core.registry import get_method
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import Argmax, DifferentiableSearch, FirstOrder, Schedule, SecondOrder
from archipel.search.differentiable.arch_gradient import OneLevel
from archipel.search.differentiable.hessian import norm, plus
from archipel.search.differentiable.rarts import rarts
from archipel.search.differentiable.rarts_width import WidthSearch
from archipel.search.differentiable.solvable import NO_BATCH, SolvableModel, follow, split_stationary_point
from archipel.search.differentiable.split_weights import SplitWeights
from archipel.search.strategy import Context, Problem
from archipel.search.training import Diverged, Recipe
from archipel.spaces.layers import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.module_space import ModuleSpace

torch.set_num_threads(1)

QUICK = Schedule(epochs=2, batch_size=8, alpha_lr=0.05)
PLAIN = Schedule(epochs=2, batch_size=8, alpha_lr=0.05, momentum=0.0, weight_decay=0.0, clip=0.0, alpha_decay=0.0)


def images(n: int = 32, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    return Context(Dataset("bars", images(), images(seed=1), None, "classification", 2), Recipe(epochs=1), **kw)


def micro() -> MicroNB201:
    return MicroNB201((1, 8, 8), 2, C=2, cells=1)


def started(gradient: SplitWeights, schedule: Schedule = PLAIN):
    search = DifferentiableSearch(schedule=schedule)
    search.setup(Problem(micro()))
    state = search.start(context())
    state.supernet.double().train()
    for name, p in state.logits.items():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)), dtype=torch.double)
    gradient.started(state)
    return state


def prepared(search, space=None, **kw):
    search.setup(Problem(space or micro()))
    search.prepare(context(**kw))
    return search


def pair():
    data = images()
    return (data.x[:8].double(), data.y[:8]), (data.x[8:16].double(), data.y[8:16])


def snapshot(tensors):
    return {n: t.detach().clone() for n, t in tensors.items()}


# --- the model whose end is known ------------------------------------------------------------------------------------

ZERO = {"w": torch.zeros(1, dtype=torch.double)}


def ended(gradient, eta: float, **kw) -> tuple[float, float]:
    model = SolvableModel(eta)
    follow(gradient, model, steps=1_000, rest=1e-6, **kw)
    return model.point


@pytest.mark.parametrize(("order", "lam", "beta", "eta"), [("strict", 10, 10, 0.03), ("two-backward", 2, 5, 0.05)])
def test_split_weights_end_where_the_formula_says_and_the_lagrangian_falls_monotonically(order, lam, beta, eta):
    split, model = SplitWeights(lam, beta, order, y=ZERO), SolvableModel(eta)
    watch = partial(split.lagrangian, model, NO_BATCH, NO_BATCH)
    seen = follow(split, model, steps=1_000, rest=1e-6, watch=watch)
    α, w, y = split_stationary_point(lam, beta)
    assert (*model.point, split.copy["w"].item()) == pytest.approx((α, w, y), abs=1e-4)
    assert all(after <= before + 1e-12 for before, after in pairwise(seen))
    assert seen[-1] < seen[0] - 1


@pytest.mark.parametrize(
    ("gradient", "end"),
    [
        (FirstOrder(), (2.0, 2.0)),
        (SecondOrder(0.1, "exact"), (2 / 1.2, 2 / 1.2)),
        (SecondOrder(0.5, "exact"), (1.0, 1.0)),
        (SecondOrder(0.7, "exact"), (2 / 2.4, 2 / 2.4)),
        (OneLevel(), (4 / 3, 2 / 3)),
    ],
    ids=["first", "second .1", "second .5", "second .7", "joint"],
)
def test_other_searches_end_elsewhere(gradient, end):
    assert ended(gradient, 0.1) == pytest.approx(end, abs=1e-4)


def test_golden_stationary_points():
    assert split_stationary_point(10, 10) == pytest.approx((40 / 37, 38 / 37, 34 / 37))
    assert split_stationary_point(10, 10)[0] == pytest.approx(1.081081, abs=1e-6)
    assert split_stationary_point(100, 100)[0] == pytest.approx(1.007557, abs=1e-6)
    assert split_stationary_point(1e9, 1e9) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(("lam", "beta"), [(10.0, 10.0), (0.7, 3.0)])
def test_the_stationary_point_is_a_strict_minimum_with_the_known_determinant(lam, beta):
    def lagrangian(p):
        y, w, α = p
        return α * y - 2 * α + 1 + lam * (w - α) ** 2 + beta / 2 * (y - w) ** 2

    α, w, y = split_stationary_point(lam, beta)
    point = torch.tensor([y, w, α], dtype=torch.double)
    assert torch.autograd.functional.jacobian(lagrangian, point).abs().max() < 1e-12
    H = torch.autograd.functional.hessian(lagrangian, point)
    minors = [float(torch.linalg.det(H[:k, :k])) for k in (1, 2, 3)]
    assert minors[2] == pytest.approx(2 * lam * beta * (2 - 1 / (2 * lam) - 1 / beta))
    assert min(minors) > 0
    if lam == 10:
        assert minors == pytest.approx([10, 200, 370])


@pytest.mark.parametrize(("lam", "beta"), [(0.2, 0.5), (0.0, 1.0), (0.25, 100.0)])
def test_penalties_that_are_too_small_have_no_minimum(lam, beta):
    with pytest.raises(UsageError, match="penalties are too small"):
        split_stationary_point(lam, beta)


def test_steps_that_are_too_large_are_named():
    with pytest.raises(Diverged, match=r"steps of 1\.0; take smaller ones"):
        ended(SplitWeights(10, 10, y=ZERO), 1.0)


# --- one iteration on a supernet -------------------------------------------------------------------------------------


def by_hand(order: str, lam: float, beta: float):
    """Weights, copy and α's gradient after a step, from the equations."""
    state = started(SplitWeights(lam, beta))
    train, val = pair()
    η, w, y = state.step_size, state.weights, snapshot(state.weights)
    y = {n: t + 0.01 for n, t in y.items()}

    def g(loss, weights, of):
        inside = {n: t.detach().clone().requires_grad_() for n, t in weights.items()}
        value = loss(train if loss == state.train_loss else val, weights=inside)
        return dict(
            zip(of, torch.autograd.grad(value, [(inside if of is state.weights else state.logits)[n] for n in of]))
        )

    g_w = g(state.train_loss, w, state.weights)
    w_new = {n: w[n].detach() - η * (lam * g_w[n] + beta * (w[n].detach() - y[n])) for n in w}
    g_y = g(state.val_loss, y, state.weights)
    y_new = {n: y[n] - η * (g_y[n] + beta * (y[n] - (w[n].detach() if order == "jacobi" else w_new[n]))) for n in w}
    at_w, at_y = (w_new, y_new) if order == "strict" else (w, y)
    a = plus(g(state.val_loss, at_y, state.logits), lam, g(state.train_loss, at_w, state.logits))
    return w_new, y_new, a


@pytest.mark.parametrize("order", ["two-backward", "strict", "jacobi"])
def test_an_iteration_is_the_equations(order, monkeypatch):
    w_new, y_new, a = by_hand(order, 0.7, 2.0)
    split = SplitWeights(0.7, 2.0, order)
    state = started(split)
    for y in split.copy.values():
        y.data += 0.01
    received = {}
    monkeypatch.setattr(state, "alpha_step", received.update)
    split.update(state, *pair())
    for found, expected in ((state.weights, w_new), (split.copy, y_new), (received, a)):
        assert set(found) == set(expected)
        for n in expected:
            torch.testing.assert_close(found[n].detach(), expected[n])


@pytest.mark.parametrize(("order", "passes"), [("two-backward", 2), ("jacobi", 2), ("strict", 4)])
def test_backward_passes_are_counted_and_never_differentiated_again(order, passes, monkeypatch):
    calls, real = [], torch.autograd.grad

    def counted(*args, create_graph=False, **kw):
        calls.append(create_graph)
        return real(*args, create_graph=create_graph, **kw)

    split = SplitWeights(order=order)
    state = started(split)
    monkeypatch.setattr(torch.autograd, "grad", counted)
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: pytest.fail("one more backward pass"))
    split.update(state, *pair())
    assert calls == [False] * passes


def alpha_gradient(order: str, lr: float):
    split = SplitWeights(1.0, 1.0, order)
    state = started(split, Schedule(**{**PLAIN.__dict__, "lr": lr, "lr_min": lr}))
    for y in split.copy.values():
        y.data += 0.01
    received = {}
    state.alpha_step = received.update
    split.update(state, *pair())
    return received


def test_the_orders_differ_in_the_step_of_the_architecture_by_the_square_of_the_learning_rate():
    # The gradients differ by O(η), and so the steps, which are η times them, by O(η²).
    gaps = [norm(plus(alpha_gradient("strict", η), -1.0, alpha_gradient("two-backward", η))) for η in (2e-5, 1e-5)]
    assert gaps[0] / gaps[1] == pytest.approx(2.0, rel=0.1)


def test_without_penalties_the_weights_rest_and_the_architecture_follows_the_other_half_alone():
    split = SplitWeights(0.0, 0.0)
    state = started(split)
    before, received = snapshot(state.weights), {}
    state.alpha_step = received.update
    first = FirstOrder().gradient(state, *pair())
    split.update(state, *pair())
    assert all(torch.equal(state.weights[n], t) for n, t in before.items())
    assert norm(plus(snapshot(split.copy), -1.0, before)) > 0
    torch.testing.assert_close(received, first)


def test_a_large_coupling_holds_the_copies_together():
    distances = []
    for beta in (0.0, 1.0, 30.0):
        split = SplitWeights(1.0, beta)
        state = started(split)
        for _ in range(8):
            split.update(state, *pair())
        distances.append(split.distance(state))
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.3 * distances[0]


def test_swapping_the_halves_and_the_copies_leaves_the_architecture_as_it_is():
    ends = []
    for swap in (False, True):
        split = SplitWeights(1.0, 2.0, "jacobi")
        state = started(split)
        for n, y in split.copy.items():
            (state.weights[n] if swap else y).data += 0.01
        halves = pair()[::-1] if swap else pair()
        for _ in range(3):
            split.update(state, *halves)
        ends.append((snapshot(state.logits), snapshot(state.weights), snapshot(split.copy)))
    (α, w, y), (α_swapped, w_swapped, y_swapped) = ends
    torch.testing.assert_close(α_swapped, α)
    torch.testing.assert_close(w_swapped, y)
    torch.testing.assert_close(y_swapped, w)


def test_no_batch_norm_statistics_are_shared():
    split = SplitWeights()
    state = started(split)
    before = copy.deepcopy(dict(state.supernet.named_buffers()))
    split.update(state, *pair())
    assert all(torch.equal(t, before[n]) for n, t in state.supernet.named_buffers())
    assert not any("running" in n for n in split.copy)
    addresses = {t.data_ptr() for t in split.copy.values()}
    assert not addresses & {t.data_ptr() for t in [*state.supernet.parameters(), *state.supernet.buffers()]}


def test_the_answer_is_read_off_the_architecture_and_not_off_weights():
    split = SplitWeights()
    state = started(split)
    arch = Argmax()(state)
    for y in [*split.copy.values(), *state.weights.values()]:
        y.data.normal_()
    assert Argmax()(state) == arch


# --- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["two-backward", "strict"])
def test_a_search_lowers_the_lagrangian_on_all_data(order):
    schedule = Schedule(epochs=5, batch_size=8, alpha_lr=0.05, lr=0.1, warmup=1)
    search = prepared(rarts(order=order, schedule=schedule))
    seen = [entry["lagrangian"] for entry in search.log]
    assert seen[-1] < 0.9 * seen[0]
    assert all(entry["distance"] > 0 for entry in search.log)
    assert search.log[0]["alpha"] != search.log[-1]["alpha"]
    assert micro().validate(search.ask().arch)


def test_the_architecture_rests_while_warming_up():
    search = rarts(schedule=Schedule(epochs=2, warmup=1, batch_size=8, alpha_lr=0.05))
    search.setup(Problem(micro()))
    initial = {n: p.detach().tolist() for n, p in search.start(context()).logits.items()}
    search.prepare(context())
    assert search.log[0]["alpha"] == initial
    assert search.log[0]["distance"] > 0  # the weights do not


class Killed(Exception):
    pass


def kill(what, fraction):
    raise Killed


def test_an_interrupted_search_ends_bit_identical(tmp_path):
    whole = prepared(rarts(schedule=QUICK))
    with pytest.raises(Killed):
        prepared(rarts(schedule=QUICK), checkpoints=Checkpoints(tmp_path), progress=kill)
    resumed = prepared(rarts(schedule=QUICK), checkpoints=Checkpoints(tmp_path))
    assert resumed.log == whole.log


# --- widths ----------------------------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    """Two convolutions of decided widths; the last channels of the first are made useless by the test."""

    def __init__(self, kernel: bool = False) -> None:
        super().__init__()
        a, b = Width("a", range(1, 9)), Width("b", [2, 4, 8])
        size = Kernel("k", [1, 3]) if kernel else 3
        self.layers = nn.Sequential(
            ElasticConv2d(1, a, size, bias=False), ElasticBatchNorm2d(a), nn.ReLU(),
            ElasticConv2d(a, b, 3, bias=False), ElasticBatchNorm2d(b), nn.ReLU(),
        )  # fmt: skip
        self.head = ElasticLinear(b, 2)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


def widths(net=Convolutions) -> ModuleSpace:
    return ModuleSpace(net, torch.zeros(2, 1, 8, 8))


def test_widths_are_what_pruning_the_smallest_factors_leaves():
    search = prepared(WidthSearch(prune=0.5, schedule=QUICK), widths())
    state = search.state
    state.logits["net.layers.1.weight"].data = torch.tensor([1.0, 0.2, -0.9, 0.01, 0.3, 0.0, -0.8, 0.7])
    state.logits["net.layers.4.weight"].data = torch.tensor([0.5, -0.6, 0.4, 0.1, 0.05, 0.02, 0.03, 0.04])
    arch = search.ask().arch  # the eight largest: 1, .9, .8, .7 of a and, with .3 fifth there, .6, .5, .4 of b
    assert arch == {"a": 5, "b": 4}
    assert search.ask() is None
    net = search.problem.space.build(arch)
    assert net.layers[0].out_channels == 5
    assert search.pruned(0.0) == {"a": 8, "b": 8}


def test_the_penalty_shrinks_factors_and_all_losses_descend():
    schedule = Schedule(epochs=8, batch_size=8, alpha_lr=0.02, lr=0.05, alpha_decay=0.0)
    plain, sparse = (prepared(rarts(widths=True, l1=l1, schedule=schedule), widths()) for l1 in (0.0, 0.3))
    assert sparse.log[-1]["scale"] < 0.95 * plain.log[-1]["scale"]
    assert plain.log[-1]["lagrangian"] < plain.log[0]["lagrangian"]
    assert set(plain.state.logits) == {"net.layers.1.weight", "net.layers.4.weight"}
    assert "net.layers.1.weight" not in plain.state.weights
    assert "net.layers.1.bias" in plain.state.weights


def test_limits_raise_the_pruned_share_until_they_are_kept():
    space = widths()
    search = WidthSearch(prune=0.1, schedule=QUICK)
    search.setup(Problem(space, feasible=lambda arch: space.cost.params(arch) <= 100))
    search.prepare(context())
    trial = search.ask()
    assert space.cost.params(trial.arch) <= 100
    assert trial.info["pruned"] > 0.1
    impossible = WidthSearch(schedule=QUICK)
    impossible.setup(Problem(space, feasible=lambda arch: False))
    impossible.prepare(context())
    with pytest.raises(InfeasibleError, match="Even the smallest widths"):
        impossible.ask()


def test_an_interrupted_search_of_widths_ends_bit_identical(tmp_path):
    whole = prepared(WidthSearch(schedule=QUICK), widths())
    with pytest.raises(Killed):
        prepared(WidthSearch(schedule=QUICK), widths(), checkpoints=Checkpoints(tmp_path), progress=kill)
    resumed = prepared(WidthSearch(schedule=QUICK), widths(), checkpoints=Checkpoints(tmp_path))
    assert resumed.log == whole.log
    assert resumed.ask().arch == whole.ask().arch


def test_decisions_that_no_factor_can_make_must_be_fixed():
    space = widths(partial(Convolutions, kernel=True))
    with pytest.raises(SpaceError, match=r"'k' .* is no width that an affine batch norm scales.*Fix it"):
        prepared(WidthSearch(schedule=QUICK), space)
    arch = prepared(WidthSearch(schedule=QUICK, fixed={"k": 1}), space).ask().arch
    assert arch["k"] == 1


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SplitWeights(lam=-1.0), "must not be negative, got lam=-1.0"),
        (lambda: SplitWeights(beta=-0.1), "must not be negative, got lam=1.0, beta=-0.1"),
        (lambda: SplitWeights(beta=float("nan")), "must not be negative"),
        (lambda: SplitWeights(order="strictly"), r"no order 'strictly'\. Did you mean: strict"),
        (lambda: WidthSearch(prune=1.0), "at least 0 and below 1, not 1.0"),
        (lambda: WidthSearch(l1=-1.0), "l1 must not be negative"),
        (lambda: WidthSearch().ask(), r"call prepare\(context\) before ask"),
        (lambda: rarts(widths=True, mix=None), "has no slot 'mix'; it blends nothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_copy_that_does_not_fit_the_weights_is_refused():
    state = started(SplitWeights())
    y = snapshot(state.weights)
    y["net.classifier.weight"] = torch.zeros(3)
    with pytest.raises(
        ShapeError, match=r"copy y has \(3,\) for 'net\.classifier\.weight', whose weights are \(2, 2\)"
    ):
        SplitWeights(y=y).started(state)
    del y["net.classifier.weight"]
    with pytest.raises(ShapeError, match=r"has nothing for 'net\.classifier\.weight'"):
        SplitWeights(y=y).started(state)


def test_the_method_is_registered_and_samples_of_its_space_are_its_answers():
    assert get_method("rarts").obj is rarts
    assert rarts().arch_gradient.order == "two-backward"
    assert micro().sample(Random(0)).keys() == prepared(rarts(schedule=QUICK)).ask().arch.keys()
