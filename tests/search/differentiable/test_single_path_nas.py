"""Single-Path NAS: superkernels against real convolutions, indicators, runtimes by hand, and errors."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from archipel.core.errors import SpaceError, UsageError
from archipel.cost.model import count_params
from archipel.data.dataset import Dataset, Split
from archipel.nets.mbconv import MBConv
from archipel.search.differentiable import SecondOrder, Softmax
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.loop import run_epoch
from archipel.search.differentiable.single_path_nas import (
    SCHEDULE,
    OneOptimizer,
    RuntimeLoss,
    Superkernels,
    bilinear,
    single_path_nas,
)
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.mbconv import Macro, MBConvSpace, digits_space
from archipel.spaces.operations import choice_edge
from archipel.spaces.superkernel import INDICATORS, Superkernel, indicator, option_weights

torch.set_num_threads(1)

LABELS = ("k3e3", "k3e6", "k5e3", "k5e6", "skip")
DECISIONS = {"k3e3": (0, 0, 1), "k3e6": (0, 1, 1), "k5e3": (1, 0, 1), "k5e6": (1, 1, 1), "skip": (0, 0, 0)}
QUICK = OneOptimizer(epochs=3, warmup=1, batch_size=8, lr=0.01, lr_min=0.0, clip=0.0, alpha_share=0.0)
PIXEL = {"k3e3": 4.4905, "k3e6": 9.2015, "k5e3": 5.9248, "k5e6": 11.5892}  # milliseconds of layer 1 on a Pixel 1


def images(n: int = 24, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context() -> Context:
    return Context(Dataset("bars", images(), images(seed=1), None, "classification", 2), Recipe(epochs=1))


def small_space():
    return digits_space(2, (3, 5), (3, 6), C=4)


def state_of(space=None, **settings):
    search = single_path_nas(**{"schedule": QUICK} | settings)
    search.setup(Problem(space or small_space()))
    state = search.start(context())
    state.supernet.train()
    return state


def layer_of(C: int = 4, expansions=(3, 6), skip: bool = True) -> Superkernel:
    torch.manual_seed(0)
    space = MBConvSpace((1, 8, 8), 2, Macro(C, 1, (C,), (1,), (1,)), (3, 5), expansions, skip=skip)
    return space.cells(Superkernels().edge).layers[0]


# --- indicators ----------------------------------------------------------------------------------------------------


def test_indicators_are_zero_or_one_and_their_derivative_is_that_of_the_sigmoid():
    x = torch.tensor([-3.0, -1e-9, 0.0, 1e-9, 3.0], dtype=torch.float64, requires_grad=True)
    d = indicator(x)
    assert d.tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]
    d.sum().backward()
    s = torch.sigmoid(x.detach())
    torch.testing.assert_close(x.grad, s * (1 - s))


def test_all_is_on_for_thresholds_of_zero_and_nothing_is_ever_off_for_negative_ones():
    layer = layer_of()
    assert layer.decide(torch.zeros(3)).tolist() == [1, 1, 1]
    with torch.no_grad():
        layer.kernel.zero_()
    assert layer.decide(torch.full((3,), -1e-6)).tolist() == [1, 1, 1]


def test_raising_the_first_threshold_can_only_switch_the_ring_off():
    layer = layer_of()
    ring = layer.kernel.detach().clone()
    ring[..., 1:4, 1:4] = 0
    norm = float(ring.norm())
    d5 = [layer.decide(torch.tensor([t, 0.0, 0.0]))[0].item() for t in torch.linspace(-1, 2 * norm, 31)]
    assert d5 == sorted(d5, reverse=True)
    assert {0.0, 1.0} == set(d5)
    below, above = (layer.decide(torch.tensor([norm * f, 0.0, 0.0]))[0] for f in (0.999, 1.001))
    assert (below.item(), above.item()) == (1.0, 0.0)


def test_later_indicators_see_the_kernel_that_earlier_ones_have_left():
    layer = layer_of()
    further = layer.kernel.detach()[layer.narrow :]
    full, inner = float(further.norm()), float(further[..., 1:4, 1:4].norm())
    between = (full + inner) / 2  # the full kernel's norm is above, the inner one's below
    assert layer.decide(torch.tensor([0.0, between, 0.0])).tolist() == [1, 1, 1]
    assert layer.decide(torch.tensor([99.0, between, 0.0])).tolist() == [0, 0, 1]
    first = layer.kernel.detach()[: layer.narrow]
    between = float(first.norm() + first[..., 1:4, 1:4].norm()) / 2
    assert layer.decide(torch.tensor([99.0, 0.0, between])).tolist() == [0, 1, 0]


def test_every_threshold_has_a_gradient_from_the_loss():
    state = state_of(weight=0.0)
    state.move_to(1, 0)  # nothing is dropped any more
    x, y = images(8).x, images(8).y
    mixture = state.mixture_weights(training=True)
    F.cross_entropy(state.output(x, mixture), y).backward()
    for p in state.logits.values():
        assert (p.grad.abs() > 0).all()


def test_a_scale_before_a_norm_has_no_gradient_so_indicators_act_behind_it():
    torch.manual_seed(0)
    x, weight, norm = torch.randn(16, 6, 5, 5), torch.randn(6, 1, 3, 3), nn.BatchNorm2d(6)
    d = torch.ones((), requires_grad=True)
    y = norm(F.conv2d(x, torch.cat([weight[:3], d * weight[3:]]), padding=1, groups=6))
    (g,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), d)
    assert abs(float(g)) < 1e-3  # masked in the kernel, as written
    with torch.no_grad():
        norm.bias.fill_(0.5)
        off = norm(F.conv2d(x, torch.cat([weight[:3], 0 * weight[3:]]), padding=1, groups=6))
        assert (off[:, 3:] == 0.5).all()  # and what is off would not be zero


# --- weights of options --------------------------------------------------------------------------------------------


def test_every_pair_of_decisions_stands_for_its_own_block():
    for label, d in DECISIONS.items():
        weights = option_weights(torch.tensor(d, dtype=torch.float32), True)
        assert LABELS[int(weights.argmax())] == label
        assert sorted(weights.tolist()) == [0, 0, 0, 0, 1]
    assert option_weights(torch.tensor([1.0, 1.0, 0.0]), True).tolist() == [0, 0, 0, 0, 1]


def test_layers_that_change_shape_are_never_skipped():
    layer = layer_of(skip=False)
    assert layer.decide(torch.full((3,), 99.0)).tolist() == [0, 0, 1]
    assert layer.weights(torch.tensor([0.0, 0.0, 1.0])).tolist() == [1, 0, 0, 0]


# --- superkernels against real blocks ------------------------------------------------------------------------------


def test_the_masked_superkernel_is_a_real_three_by_three_convolution():
    layer = layer_of()
    x = torch.randn(2, 24, 7, 7)
    masked = F.conv2d(x, layer.ringed(0.0), padding=2, groups=24)
    real = F.conv2d(x, layer.kernel[..., 1:4, 1:4], padding=1, groups=24)
    torch.testing.assert_close(masked, real, rtol=0, atol=1e-6)
    torch.testing.assert_close(F.conv2d(x, layer.ringed(1.0), padding=2, groups=24), layer.block.body[1][0](x))


@pytest.mark.parametrize("label", LABELS[:4])
def test_indicators_make_the_block_with_fewer_channels_and_a_smaller_kernel(label):
    layer, x = layer_of(), torch.randn(3, 4, 8, 8)
    for norm in (m for m in layer.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    real = layer.options[label].extract(None, None)
    kernel, expansion = int(label[1]), int(label[3])
    assert type(real) is MBConv
    assert real.body[1][0].weight.shape == (4 * expansion, 1, kernel, kernel)
    for training in (True, False):
        layer.train(training), real.train(training)
        torch.testing.assert_close(layer.masked(x, *DECISIONS[label]), real(x), rtol=0, atol=1e-5)


def test_a_skipped_layer_is_the_identity():
    layer, x = layer_of(), torch.randn(3, 4, 8, 8)
    assert torch.equal(layer.masked(x, 1.0, 1.0, 0.0), x)


def test_the_derived_network_with_inherited_weights_has_the_logits_of_the_supernet():
    state, x = state_of(), images(8).x
    for _ in range(3):
        state.joint_step((x, images(8).y))
    layers = {n: r.modules[0] for n, r in state.parameters.rows.items()}
    with torch.no_grad():
        state.logits["layer0"].copy_(torch.tensor([99.0, 0.0, 0.0]))
        state.logits["layer1"].copy_(torch.tensor([0.0, 99.0, 0.0]))
    mixture = state.mixture_weights()
    arch = {n: layers[n].blend_labels[int(mixture[n].argmax())] for n in layers}
    assert arch == {"layer0": "k3e6", "layer1": "k5e3"}
    for training in (False, True):
        state.supernet.train(training)
        with torch.no_grad():
            derived = state.supernet.extract(arch)
            assert count_params(derived) == state.supernet.space.cost.params(arch)
            expected = derived(x)
            torch.testing.assert_close(state.output(x, mixture), expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(state.supernet.activate(arch)(x), expected, rtol=0, atol=1e-5)
            one_hot = state.parameters.one_hot(arch)
            torch.testing.assert_close(state.output(x, one_hot), expected, rtol=0, atol=1e-5)


def test_odd_numbers_of_channels_split_as_the_smaller_block_has_them():
    layer = layer_of(C=5, expansions=(1.5, 3))
    assert (layer.kernel.shape[0], layer.narrow) == (15, 8)  # round(7.5), ties to even
    real = layer.options["k3e1.5"].extract(None, None)
    x = torch.randn(2, 5, 8, 8)
    torch.testing.assert_close(layer.masked(x, 0.0, 0.0, 1.0), real.train()(x), rtol=0, atol=1e-5)


def test_extraction_draws_no_random_numbers():
    state = state_of()
    before = torch.get_rng_state()
    state.supernet.extract({"layer0": "k3e3", "layer1": "k5e6"})
    assert torch.equal(before, torch.get_rng_state())


# --- golden numbers and cost ---------------------------------------------------------------------------------------


def test_the_supernet_has_the_weights_of_its_largest_network():
    space = MBConvSpace((3, 224, 224), 1000, "single-path-nas", kernels=(3, 5))
    with torch.device("meta"):
        ours, multi = space.cells(Superkernels().edge), space.cells(choice_edge)
    assert (count_params(ours), count_params(multi)) == (4_833_768, 9_680_424)
    assert 3 * sum(isinstance(m, Superkernel) for m in ours.modules()) == 60
    skippable = sum(m.skippable for m in ours.modules() if isinstance(m, Superkernel))
    assert (skippable, space.size) == (15, 4**5 * 5**15)


def test_the_runtime_formula_at_its_five_points():
    R = torch.tensor([*PIXEL.values(), 0.0], dtype=torch.float64)
    ratio = PIXEL["k3e6"] / PIXEL["k5e6"]
    table = bilinear(R)
    for label, (d5, d100, d50) in DECISIONS.items():
        ch = d50 * (PIXEL["k5e3"] + d100 * (PIXEL["k5e6"] - PIXEL["k5e3"]))
        by_formula = ch * ratio + ch * (1 - ratio) * d5
        weights = option_weights(torch.tensor([d5, d100, d50], dtype=torch.float64), True)
        assert float((weights * table).sum()) == pytest.approx(by_formula)
        if label not in ("k3e3", "skip"):
            assert by_formula == pytest.approx(PIXEL[label])
    assert float(table[0]) == pytest.approx(4.7041, abs=5e-5)
    assert float(table[4]) == 0.0


def test_derivatives_of_the_runtime_are_those_of_the_formula():
    d = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    R = torch.tensor([*PIXEL.values(), 0.0], dtype=torch.float64)
    (ours,) = torch.autograd.grad((option_weights(d, True) * bilinear(R)).sum(), d)
    ratio = PIXEL["k3e6"] / PIXEL["k5e6"]
    ch = d[2] * (PIXEL["k5e3"] + d[1] * (PIXEL["k5e6"] - PIXEL["k5e3"]))
    (theirs,) = torch.autograd.grad(ch * ratio + ch * (1 - ratio) * d[0], d)
    torch.testing.assert_close(ours, theirs)


def test_the_loss_adds_the_logarithm_of_the_whole_runtime_after_the_warm_up():
    cost = {"layer0": PIXEL, "layer1": PIXEL}
    state = state_of(cost=cost, constant=19.5999, weight=2.0)
    mixture, loss = state.mixture_weights(), torch.tensor(1.0)
    assert state.objective.total(loss, mixture, state.moment).item() == 1.0
    state.move_to(1, 0)
    whole = 19.5999 + 2 * PIXEL["k5e6"]
    assert state.objective.total(loss, mixture, state.moment).item() == pytest.approx(1 + 2 * math.log(whole))
    for exact, small in ((False, 4.7041), (True, 4.4905)):
        expected = state_of(cost=cost, constant=1.0, exact=exact).objective.expected
        assert float(expected.table["layer0"][0]) == pytest.approx(small, abs=5e-5)


def test_a_heavier_weight_switches_more_off():
    costs = []
    for weight in (0.0, 300.0):
        state = state_of(weight=weight, schedule=OneOptimizer(4, 1, 8, lr=0.02, clip=0.0, alpha_share=0.0))
        gradient = single_path_nas().arch_gradient
        for epoch in range(4):
            run_epoch(state, gradient, epoch, 0)
        costs.append(float(state.objective.expected(state.mixture_weights()).detach()))
    assert costs[1] < costs[0]


def test_a_step_keeps_what_its_largest_network_keeps_and_little_more():
    state, x = state_of(), images(8).x
    ours = saved_bytes(partial(state.output, x, state.mixture_weights(training=True)), state.supernet)
    largest = state.supernet.extract({"layer0": "k5e6", "layer1": "k5e6"}).train()
    one = saved_bytes(lambda: largest(x), largest)
    assert one <= ours < 2 * one  # the masked copy of the channels


# --- training ------------------------------------------------------------------------------------------------------


def test_weights_and_thresholds_step_by_the_same_rule_from_the_first_step():
    state = state_of()
    torch.manual_seed(0)
    before = {n: p.detach().clone() for n, p in state.logits.items()}
    single_path_nas().arch_gradient.update(state, (images(8).x, images(8).y), None)
    assert any(not torch.equal(p, before[n]) for n, p in state.logits.items())
    settings = [
        {k: v for k, v in o.param_groups[0].items() if k != "params"}
        for o in (state.weight_optimizer, state.alpha_optimizer)
    ]
    assert settings[0] == settings[1]
    assert isinstance(state.alpha_optimizer, torch.optim.RMSprop)
    assert state.halves[0] is state.halves[1]


def test_indicators_are_dropped_during_the_warm_up_only_and_stay_zero_or_one():
    state = state_of()
    torch.manual_seed(0)
    seen = torch.stack([state.mixture_weights(training=True)["layer0" + INDICATORS].detach() for _ in range(500)])
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    assert seen.mean(0).tolist() == pytest.approx([0.6] * 3, abs=0.09)
    assert state.mixture_weights()["layer0" + INDICATORS].tolist() == [1, 1, 1]
    state.move_to(1, 0)
    assert state.mixture_weights(training=True)["layer0" + INDICATORS].tolist() == [1, 1, 1]


def test_a_search_ends_with_the_network_that_its_indicators_say():
    search = single_path_nas(weight=30.0, schedule=QUICK)
    search.setup(Problem(small_space()))
    search.prepare(context())
    arch = search.ask().arch
    weights = search.state.mixture_weights()
    assert arch == {n: LABELS[int(weights[n].argmax())] for n in arch}
    assert search.log[-1]["gap"] == 0.0  # supernet and network are the same
    assert len(search.log[-1]["alpha"]["layer0"]) == 3


def test_the_schedule_is_that_of_the_reference():
    assert (SCHEDULE.epochs, SCHEDULE.warmup, SCHEDULE.batch_size, SCHEDULE.alpha_share) == (10, 5, 1024, 0.0)
    assert isinstance(SCHEDULE.over(4), OneOptimizer)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernels", "expansions"), [((3, 7), (3, 6)), ((3, 5, 7), (3, 6)), ((3, 5), (3,)), ((3, 5), (1, 3)), ((5,), (3, 6))]
)
def test_other_kernels_or_expansions_are_refused(kernels, expansions):
    with pytest.raises(SpaceError, match=r"kernels 3 and 5 and of two expansions above 1, but layer 'layer0' has k"):
        state_of(digits_space(1, kernels, expansions))


def test_cells_are_refused():
    with pytest.raises(SpaceError, match="superkernel holds MBConv blocks"):
        state_of(DartsSpace((1, 8, 8), 2, C=4, layers=3, nodes=2))


def test_runtimes_must_be_there_and_positive():
    good = {"layer0": PIXEL, "layer1": PIXEL}
    without = {k: v for k, v in PIXEL.items() if k != "k5e3"}
    with pytest.raises(SpaceError, match=r"gives None for option 'k5e3' of 'layer1'"):
        state_of(cost={**good, "layer1": without}, constant=1.0)
    with pytest.raises(SpaceError, match=r"has -1.0 for 'k3e3' of 'layer1'; runtimes must be positive"):
        state_of(cost={**good, "layer1": {**PIXEL, "k3e3": -1.0}}, constant=5.0)
    with pytest.raises(SpaceError, match="add-log needs costs above 0, but the cheapest network of mbconv costs 0"):
        state_of(cost=good)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UsageError, match="λ of the cost must not be negative"):
        single_path_nas(weight=-0.1)
    with pytest.raises(UsageError, match="keep is a probability above 0"):
        single_path_nas(keep=0.0)


def test_combinations_that_cannot_work_say_why():
    state, pair = state_of(), (images(8).x, images(8).y)
    with pytest.raises(UsageError, match="Superkernels decide by their own weights"):
        SecondOrder().gradient(state, pair, pair)
    with pytest.raises(SpaceError, match="RuntimeLoss is for superkernels, but 'layer0' is none"):
        state_of(mix=Softmax(), objective=RuntimeLoss())
