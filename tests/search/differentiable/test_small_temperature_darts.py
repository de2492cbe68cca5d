"""Small temperature: invariants, golden numbers and errors of schedule, noise and adaptation, and what is skipped."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import ShapeError, UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import DifferentiableSearch, FirstOrder, Schedule, SecondOrder, Softmax
from archipel.search.differentiable.parameters import Moment, Row
from archipel.search.differentiable.select import Argmax
from archipel.search.differentiable.small_temperature_darts import (
    SparseNoisySoftmax,
    TemperedSteps,
    small_temperature_darts,
    sparse_noise,
)
from archipel.search.differentiable.temperature import EntropyAdaptation, ExponentialTemperature, row_entropy, tempered
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)

ALPHA = torch.tensor([0.3, 0.1, -0.2, 0.0], dtype=torch.float64)
QUICK = Schedule(epochs=3, batch_size=8, alpha_lr=0.05)
ROW = Row("e", ("a", "b", "c", "d"), (nn.Identity(),))
FLAT = ExponentialTemperature(1.0, 1.0)


def images(n: int = 32, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    return Context(Dataset("bars", images(), images(seed=1), None, "classification", 2), Recipe(epochs=1), **kw)


def space() -> MicroNB201:
    return MicroNB201((1, 8, 8), 2, C=2, cells=1)


def prepared(search: DifferentiableSearch, ctx: Context | None = None) -> DifferentiableSearch:
    search.setup(Problem(space()))
    search.prepare(ctx or context())
    return search


def state_of(mix):
    search = DifferentiableSearch(mix=mix, schedule=QUICK)
    search.setup(Problem(space()))
    return search.start(context())


def softmax_at(tau: float, alpha: torch.Tensor = ALPHA) -> torch.Tensor:
    return torch.softmax(tempered(alpha[None], torch.tensor([tau])), -1)[0]


def weights(mix: SparseNoisySoftmax, alpha: torch.Tensor, step: int = 0, training: bool = False) -> torch.Tensor:
    row = Row("e", tuple(map(str, range(len(alpha)))), (nn.Identity(),))
    return mix.coefficients(alpha, row, Moment(0, 1, step, 11, training))


# --- temperature ---------------------------------------------------------------------------------------------------


def test_golden_numbers_of_the_tempered_softmax():
    golden = {
        1.0: ([0.31585, 0.25859, 0.19157, 0.23399], 1.37019),
        0.5: (None, 1.32363),
        0.1: ([0.83902, 0.11355, 0.00565, 0.04177], 0.55620),
    }
    for tau, (p, H) in golden.items():
        ours = softmax_at(tau)
        if p is not None:
            assert ours.tolist() == pytest.approx(p, abs=5e-6)
        assert float(row_entropy(ours[None])) * math.log(4) == pytest.approx(H, abs=5e-6)


def test_golden_numbers_of_the_exponential_schedule():
    tau = ExponentialTemperature(1.0, 0.05)
    assert tau(0, 10) == 1.0
    assert tau(1, 10) == pytest.approx(0.74113, abs=5e-6)
    assert tau(5, 10) == pytest.approx(0.22361, abs=5e-6)
    assert tau(10, 10) == 0.05
    logs = [math.log(tau(i, 10)) for i in range(11)]
    assert all(b - a == pytest.approx(math.log(0.05) / 10) for a, b in pairwise(logs))


def test_a_search_begins_at_the_first_and_ends_at_the_last_temperature():
    mix = SparseNoisySoftmax(ExponentialTemperature(0.8, 0.07))
    assert mix.temperature("e", Moment(0, 3, 0, 6)) == 0.8
    assert mix.temperature("e", Moment(2, 3, 5, 6)) == pytest.approx(0.07, rel=1e-12)
    assert mix.temperature("e", Moment(0, 1, 0, 1)) == 0.07  # of a single step
    search = prepared(small_temperature_darts(adapt=False, schedule=QUICK))
    assert search.state.mix.temperature("e01", search.state.moment) == pytest.approx(0.05, rel=1e-12)


def test_weights_sum_to_one_and_the_temperature_does_not_move_the_largest():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        alpha = torch.randn(5, generator=g, dtype=torch.float64)
        for tau in (10.0, 1.0, 0.1, 0.01):
            p = softmax_at(tau, alpha)
            assert float(p.sum()) == pytest.approx(1.0)
            assert p.argmax() == alpha.argmax()
    torch.testing.assert_close(softmax_at(1e6), torch.full((4,), 0.25, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(softmax_at(1e-3), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))


def test_entropy_never_rises_while_the_temperature_falls():
    g = torch.Generator().manual_seed(0)
    alpha = torch.randn(10, 5, generator=g, dtype=torch.float64)
    h = torch.stack([row_entropy(torch.softmax(tempered(alpha, torch.full((10,), t)), -1)) for t in (2, 1, 0.5, 0.1)])
    assert (h.diff(dim=0) <= 1e-12).all()


def test_the_derivative_is_that_of_the_softmax_over_the_temperature():
    for tau in (1.0, 0.2):
        mix = SparseNoisySoftmax(ExponentialTemperature(tau, tau))
        jacobian = torch.autograd.functional.jacobian(lambda a, m=mix: weights(m, a), ALPHA)
        p = softmax_at(tau)
        torch.testing.assert_close(jacobian, (p.diag() - torch.outer(p, p)) / tau)


def test_half_precision_does_not_overflow_at_a_tiny_temperature():
    alpha = torch.tensor([60.0, 59.0, -60.0], dtype=torch.float16)  # 60 / 1e-4 is beyond half precision
    mix = SparseNoisySoftmax(ExponentialTemperature(1e-4, 1e-4))
    p = weights(mix, alpha)
    assert p.dtype == torch.float16
    assert p.tolist() == [1.0, 0.0, 0.0]
    torch.manual_seed(0)
    for _ in range(50):
        assert torch.isfinite(weights(mix, alpha, training=True)).all()


# --- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [{"sigma": 0.0}, {"q": 0.0}])
def test_without_noise_it_is_the_ordinary_tempered_softmax(off):
    mix = SparseNoisySoftmax(FLAT, **off)
    assert torch.equal(weights(mix, ALPHA, training=True), torch.softmax(ALPHA, 0))
    state, plain = state_of(mix), state_of(Softmax())
    for n, w in state.mixture_weights(training=True).items():
        torch.testing.assert_close(w, plain.mixture_weights()[n], rtol=0, atol=1e-7)


@pytest.mark.parametrize(("noise", "unit"), [("normal", 1.0), ("gumbel", math.pi / math.sqrt(6))])
def test_noise_has_zero_mean_hits_a_share_of_entries_and_grows_with_the_gap(noise, unit):
    torch.manual_seed(0)
    sigma, q, n = 0.7, 0.3, 40_000
    for gap in (6.0, 0.2):
        z = torch.tensor([gap, 0.0, -1.0], dtype=torch.float64).repeat(n, 1)
        drawn = sparse_noise(z, sigma, q, noise)
        sd = sigma * max(1.0, gap) * math.sqrt(q) * unit
        assert float((drawn != 0).double().mean()) == pytest.approx(q, abs=0.006)
        assert float(drawn.mean()) == pytest.approx(0.0, abs=4 * sd / math.sqrt(3 * n))
        assert float(drawn.std()) == pytest.approx(sd, rel=0.03)


def test_noise_in_proportion_to_the_gap_moves_saturated_edges_and_noise_of_fixed_size_does_not():
    torch.manual_seed(0)
    z = torch.tensor([20.0, 0.0, 0.0, 0.0]).repeat(2000, 1)
    moved = torch.softmax(z + sparse_noise(z, 1.0, 0.3), -1)
    fixed = torch.softmax(z + 0.3 * torch.randn_like(z), -1)
    assert float((moved[:, 0] < 0.9).double().mean()) > 0.05
    assert float((fixed[:, 0] < 0.9).double().mean()) == 0.0


def test_the_gap_passes_no_gradient():
    alpha = ALPHA.clone().requires_grad_()
    torch.manual_seed(0)
    noise = sparse_noise(alpha[None] * 10, 1.0, 1.0)
    assert not noise.requires_grad
    torch.manual_seed(1)
    mix = SparseNoisySoftmax(ExponentialTemperature(0.1, 0.1))
    p = weights(mix, alpha, training=True)
    (g,) = torch.autograd.grad(p[0], alpha)
    by_hand = (p[0] * (torch.eye(4, dtype=torch.float64)[0] - p) / 0.1).detach()
    torch.testing.assert_close(g, by_hand)


def test_noise_never_enters_what_is_evaluated_or_read_off():
    mix = SparseNoisySoftmax(q=1.0, sigma=3.0)
    state = state_of(mix)
    first, second = state.mixture_weights(), state.mixture_weights()
    assert all(torch.equal(first[n], second[n]) for n in first)
    noisy = state.mixture_weights(training=True)
    assert any(not torch.equal(first[n], noisy[n]) for n in first)
    data = images()
    assert state.metrics(data) == state.metrics(data)
    assert Argmax()(state) == Argmax()(state)
    torch.manual_seed(0)
    losses = {float(state.val_loss((data.x, data.y)).detach()) for _ in range(3)}
    assert len(losses) == 3  # the architecture's passes see noise


# --- adaptation ----------------------------------------------------------------------------------------------------


def test_an_edge_on_target_has_the_temperature_of_the_schedule_and_all_stay_within_its_bounds():
    adapt, bounds = EntropyAdaptation(kappa=1.0), ExponentialTemperature(1.0, 0.05)
    assert adapt.temperature(0.3, 0.6, 0.6, bounds) == 0.3
    assert adapt.temperature(0.3, 0.2, 0.6, bounds) == pytest.approx(0.3 * math.exp(0.4))  # ahead: warmed
    assert adapt.temperature(0.3, 1.0, 0.6, bounds) == pytest.approx(0.3 * math.exp(-0.4))  # lags: cooled
    strong = EntropyAdaptation(kappa=50.0)
    for h in (0.0, 0.3, 0.9, 1.0):
        for tau in (0.05, 0.2, 1.0):
            assert 0.05 <= strong.temperature(tau, h, 0.5, bounds) <= 1.0
    assert [adapt.target(i, 10) for i in (0, 10)] == pytest.approx([1.0, 0.1])
    assert adapt.target(5, 10) == pytest.approx(0.55)


def test_entropies_are_averaged_over_steps_and_each_edge_has_its_own_temperature():
    mix = SparseNoisySoftmax(ExponentialTemperature(1.0, 0.05), adaptation=EntropyAdaptation(kappa=1.0, momentum=0.9))
    state = state_of(mix)
    mix = state.mix
    state.logits["e01"].data = torch.tensor([4.0, 0, 0, 0, 0])
    mix.step_ended(state)
    first = mix.entropy["e01"]
    assert first == pytest.approx(float(row_entropy(torch.softmax(state.logits["e01"], 0)[None]).detach()), rel=1e-5)
    state.logits["e01"].data.zero_()
    state.move_to(0, 1)
    mix.step_ended(state)
    assert mix.entropy["e01"] == pytest.approx(0.9 * first + 0.1 * 1.0, abs=1e-5)
    state.move_to(1, 0)
    assert mix.temperature("e01", state.moment) > mix.temperature("e02", state.moment)
    logits = {n: torch.zeros(5) for n in state.logits}
    logits["e01"] = torch.tensor([1.0, 0, 0, 0, 0], requires_grad=True)
    p = state.mixture_weights(logits)["e01"]
    tau = mix.temperature("e01", state.moment)
    torch.testing.assert_close(p, torch.softmax(torch.tensor([1.0, 0, 0, 0, 0]) / tau, 0))


def test_saturation_is_counted_in_the_last_third_without_noise():
    mix = SparseNoisySoftmax(FLAT, sigma=5.0)
    state = state_of(mix)
    mix = state.mix
    assert math.isnan(mix.saturation)
    for n, p in state.logits.items():
        p.data = torch.tensor([9.0, 0, 0, 0, 0]) if n in ("e01", "e02") else torch.zeros(5)
    for epoch in range(3):
        state.move_to(epoch, 0)
        mix.step_ended(state)
    assert mix.saturation == pytest.approx(2 / 6)
    assert mix._counted == 6  # one step of three


# --- skipping ------------------------------------------------------------------------------------------------------


def test_small_weights_become_exact_zeros_and_the_others_sum_to_one():
    mix = SparseNoisySoftmax(ExponentialTemperature(0.05, 0.05), skip_below=1e-3)
    p = weights(mix, ALPHA)
    assert (p == 0).tolist() == [False, False, True, False]
    assert float(p.sum()) == pytest.approx(1.0)
    everything = weights(SparseNoisySoftmax(ExponentialTemperature(0.05, 0.05)), ALPHA)
    torch.testing.assert_close(p, everything, rtol=0, atol=1e-3)
    even = weights(SparseNoisySoftmax(FLAT, skip_below=0.4), torch.zeros(4))
    assert even.tolist() == [0.25] * 4  # the largest are never left out


def test_what_is_skipped_is_never_computed():
    state = state_of(SparseNoisySoftmax(ExponentialTemperature(0.05, 0.05), sigma=0.0, skip_below=1e-3))
    for p in state.logits.values():
        p.data = torch.tensor([0.0, 0, 0, 1.0, 0])  # conv3x3
    called = []
    for row in state.parameters.rows.values():
        for choice in row.modules:
            for label, option in zip(row.labels, choice.blended):
                option.register_forward_hook(lambda *_, label=label: called.append(label))
    data = images()
    state.weight_step((data.x, data.y))
    assert set(called) == {"conv3x3"}
    called.clear()
    state.mix.skip_below = 0.0
    state.weight_step((data.x, data.y))
    assert set(called) == {"skip", "conv1x1", "conv3x3", "avgpool3x3"}


# --- the search ----------------------------------------------------------------------------------------------------


def test_a_search_sharpens_its_mixture_and_proposes_an_architecture():
    search = prepared(small_temperature_darts(schedule=QUICK))
    trial = search.ask()
    assert space().validate(trial.arch) == trial.arch
    softer = prepared(DifferentiableSearch(schedule=QUICK))
    assert search.log[-1]["entropy"] < softer.log[-1]["entropy"]
    assert search.log[-1]["saturation"] == search.state.mix.saturation
    assert "saturation" not in search.log[0]
    assert search.log[-1]["row_entropy"] < search.log[0]["row_entropy"] < 1.0


def test_parts_combine_one_by_one():
    for parts in ({"sigma": 0.0, "adapt": False}, {"adapt": False, "noise": "gumbel"}, {"skip_below": 1e-3}):
        assert prepared(small_temperature_darts(schedule=QUICK, **parts)).ask().arch
    search = small_temperature_darts(arch_gradient=SecondOrder(), scale_lr=True, schedule=QUICK)
    assert isinstance(search.arch_gradient.inner, SecondOrder)
    assert prepared(search).ask().arch


def test_the_learning_rate_follows_the_mean_temperature():
    state = state_of(SparseNoisySoftmax(ExponentialTemperature(2.0, 0.1)))
    gradient, data = TemperedSteps(), images(8)
    for epoch, tau in ((0, 2.0), (2, 0.1)):
        state.move_to(epoch, state.steps_per_epoch - 1 if epoch else 0)
        gradient.update(state, (data.x, data.y), (data.x, data.y))
        assert state.alpha_optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * tau / 2.0)
    assert isinstance(gradient.inner, FirstOrder)


def test_an_interrupted_search_ends_bit_identical(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction >= 0.5:
            raise Killed

    make = lambda: small_temperature_darts(scale_lr=True, schedule=QUICK)  # noqa: E731
    whole = prepared(make())
    with pytest.raises(Killed):
        prepared(make(), context(checkpoints=Checkpoints(tmp_path), progress=kill))
    torch.rand(Random(0).randrange(1, 9))
    resumed = prepared(make(), context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.log == whole.log
    assert resumed.state.mix.entropy == whole.state.mix.entropy
    assert resumed.state.mix.saturation == whole.state.mix.saturation


def test_weight_decay_of_the_logits_undoes_the_sharpening_of_a_saturated_edge():
    kept = {}
    for decay in (1e-3, 0.0):
        search = DifferentiableSearch(
            mix=SparseNoisySoftmax(ExponentialTemperature(0.05, 0.05), sigma=0.0),
            schedule=Schedule(epochs=1, batch_size=8, alpha_lr=0.05, alpha_decay=decay),
        )
        search.setup(Problem(space()))
        state = search.start(context())
        for p in state.logits.values():
            p.data = torch.tensor([0.0, 0, 0, 6.0, 0])  # a gap of 120 in z: its gradient is exactly zero
        data = images(8)
        for _ in range(3):
            FirstOrder().update(state, (data.x, data.y), (data.x, data.y))
        kept[decay] = float(state.logits["e01"].detach()[3])
    assert kept[0.0] == 6.0
    assert kept[1e-3] < 5.9


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialTemperature(1.0, 0.0), "end must be positive, not 0.0"),
        (lambda: ExponentialTemperature(-1.0, 0.1), "start must be positive"),
        (lambda: ExponentialTemperature(0.1, 1.0), "end 1.0 is above the start 0.1"),
        (lambda: tempered(torch.zeros(1, 2), torch.zeros(1)), "Temperatures must be positive"),
        (lambda: SparseNoisySoftmax(sigma=-1.0), "sigma must not be negative"),
        (lambda: SparseNoisySoftmax(q=1.5), "from 0 to 1, not 1.5"),
        (lambda: SparseNoisySoftmax(noise="uniform"), "normal or gumbel, not 'uniform'"),
        (lambda: SparseNoisySoftmax(skip_below=0.5), "below 0.5"),
        (lambda: EntropyAdaptation(kappa=-1.0), "kappa must not be negative"),
        (lambda: EntropyAdaptation(last=2.0), "last must be from 0 to 1"),
        (lambda: prepared(DifferentiableSearch(arch_gradient=TemperedSteps(), schedule=QUICK)), "Softmax has none"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_single_option_has_no_normalised_entropy():
    with pytest.raises(ShapeError, match=r"relative to ln K, but the row has K = 1 option"):
        row_entropy(torch.ones(3, 1))
