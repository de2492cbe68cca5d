"""SD-DARTS: the vote, its loss, the pool of teachers; and how sharpness is measured."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from archipel.core.errors import ShapeError, UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import DifferentiableSearch, Schedule
from archipel.search.differentiable.arch_gradient import FirstOrder
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.sd_darts import (
    SelfDistillation,
    distillation,
    entropy,
    hard_vote,
    sd_darts,
    soft_vote,
)
from archipel.search.differentiable.sharpness import alpha_curvature, rise, sharpness, top_eigenvalue
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)

QUICK = Schedule(epochs=3, batch_size=8, alpha_lr=0.05)


def images(seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(32) % 2
    x = torch.randn(32, 1, 4, 4, generator=g)
    x[:, 0, :2] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    return Context(Dataset("bars", images(), images(1), None, "classification", 2), Recipe(epochs=1), **kw)


def prepared(search: DifferentiableSearch, ctx: Context | None = None) -> DifferentiableSearch:
    search.setup(Problem(MicroNB201((1, 4, 4), 2, C=2, cells=1)))
    search.prepare(ctx or context())
    return search


def started(search: DifferentiableSearch):
    search.setup(Problem(MicroNB201((1, 4, 4), 2, C=2, cells=1)))
    state = search.start(context())
    state.supernet.train()
    return state


def a_batch(n: int = 8):
    return images().x[:n], images().y[:n]


def teaching(**settings):
    """A state after the ramp, with teachers that differ from it and from each other."""
    state = started(sd_darts(**{"schedule": QUICK, "every": 1, **settings}))
    state.move_to(2, 1)
    for _ in range(state.objective.teachers):
        state.weight_step(a_batch())
        state.objective.step_ended(state)
    state.weight_step(a_batch())
    return state


# --- votes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vote", [lambda z: soft_vote(z, 2.0), hard_vote], ids=["soft", "hard"])
def test_a_vote_is_a_distribution_whatever_the_order_and_copies_change_nothing(vote):
    z = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    p = vote(z)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(5))
    torch.testing.assert_close(vote(z[[2, 0, 1]]), p)
    torch.testing.assert_close(vote(z[:1].repeat(3, 1, 1)), vote(z[:1]))


def test_a_hard_vote_counts_first_places_and_splits_ties():
    z = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 2.0, 2.0]], [[3.0, 0.0, 1.0]]])
    torch.testing.assert_close(hard_vote(z), torch.tensor([[2 / 3, 1 / 6, 1 / 6]]))


def test_a_soft_vote_is_the_mean_of_softened_probabilities_not_of_logits():
    z = torch.tensor([[[4.0, 0.0]], [[0.0, 0.0]]])
    expected = (1 / (1 + math.exp(-2.0)) + 0.5) / 2
    assert soft_vote(z, 2.0)[0, 0].item() == pytest.approx(expected)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [0.5, 1.0, 2.0])
def test_the_gradient_for_logits_is_the_difference_of_probabilities_times_the_temperature(T):
    z = torch.randn(6, 4, dtype=torch.double, requires_grad=True)
    p = torch.softmax(torch.randn(6, 4, dtype=torch.double), -1)
    (g,) = torch.autograd.grad(distillation(z, p, T), z)
    torch.testing.assert_close(g, (torch.softmax(z / T, -1) - p).detach() * T / 6, rtol=0, atol=1e-6)


def test_a_hard_vote_with_zeros_has_a_finite_loss_and_gradient():
    z = torch.randn(2, 3, requires_grad=True)
    loss = distillation(z, torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]), 2.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


def test_teachers_equal_to_the_student_add_nothing_at_temperature_one():
    state = started(sd_darts(temperature=1.0, schedule=QUICK, every=1))
    state.move_to(2, 1)
    for _ in range(3):
        state.objective.add({"weights": state.weights, "logits": state.logits})
    x, y = a_batch()
    mixture = state.mixture_weights()
    output = state.output(x, mixture)
    loss = state.objective.weight_loss(state, output, x, y)
    plain = torch.nn.functional.cross_entropy(output, y)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)
    g, g_plain = (torch.autograd.grad(v, output, retain_graph=True)[0] for v in (loss, plain))
    torch.testing.assert_close(g, g_plain, rtol=0, atol=1e-6)


def test_the_weight_grows_linearly_over_the_first_states():
    state = teaching(weight=800.0, every=2)  # full after 6 steps; large, so that differences are exact enough
    x, y = a_batch()
    output = state.output(x, state.mixture_weights())
    plain = torch.nn.functional.cross_entropy(output, y)
    extra = []
    for epoch, step in [(0, 0), (1, 1), (2, 1), (2, 0)]:
        state.move_to(epoch, step)  # two steps an epoch
        extra.append((state.objective.weight_loss(state, output, x, y) - plain).item())
    assert extra[0] == 0.0
    assert extra[1] == pytest.approx(extra[2] * 3 / 5, rel=0.02)
    assert extra[3] == pytest.approx(extra[2] * 4 / 5, rel=0.02)


# --- only the weights learn from it ----------------------------------------------------------------------------------


def same(a: DifferentiableSearch, b: DifferentiableSearch) -> bool:
    weights = zip(a.state.supernet.state_dict().values(), b.state.supernet.state_dict().values())
    return all(torch.equal(s, t) for s, t in weights) and [e["alpha"] for e in a.log] == [e["alpha"] for e in b.log]


def test_without_weight_or_teachers_it_is_bitwise_darts():
    plain = prepared(darts(schedule=QUICK))
    assert same(plain, prepared(sd_darts(weight=0.0, schedule=QUICK)))
    assert same(plain, prepared(sd_darts(every=1000, schedule=QUICK)))
    assert not same(plain, prepared(sd_darts(every=1, schedule=QUICK)))


def test_the_architecture_descends_on_cross_entropy_alone():
    state = teaching()
    x, y = a_batch()
    assert state.objective.pool
    g = FirstOrder().gradient(state, (x, y), (x, y))
    loss = torch.nn.functional.cross_entropy(state.output(x, state.mixture_weights()), y)
    expected = dict(zip(state.logits, torch.autograd.grad(loss, list(state.logits.values()))))
    for n, t in expected.items():
        torch.testing.assert_close(g[n], t)
    assert float(state.train_loss((x, y)).detach()) > float(loss.detach())


def test_teachers_are_copies_that_never_change_and_leave_no_trace():
    state = teaching()
    before = [{n: t.clone() for n, t in teacher["weights"].items()} for teacher in state.objective.pool]
    buffers = {n: b.clone() for n, b in state.supernet.named_buffers()}
    x, y = a_batch()
    seated = state.supernet.decider
    z = state.objective.answers(state, x, torch.Size([8, 2]))
    assert not z.requires_grad
    assert state.supernet.decider is seated
    assert all(torch.equal(b, buffers[n]) for n, b in state.supernet.named_buffers())
    for _ in range(2):
        state.weight_step((x, y))
    for teacher, kept in zip(state.objective.pool, before):
        for n, t in teacher["weights"].items():
            assert torch.equal(t, kept[n])
            assert t.grad is None
            assert t.data_ptr() != state.weights[n].data_ptr()
    assert not torch.allclose(z[0], z[1])  # states of different steps, not one state three times


def test_a_teacher_answers_as_the_supernet_did_when_it_was_taken():
    state = started(sd_darts(schedule=QUICK))
    x, _ = a_batch()
    with torch.no_grad():
        then = state.output(x, state.mixture_weights())
    state.objective.add({"weights": state.weights, "logits": state.logits})
    for p in state.logits.values():
        p.data += torch.randn(p.shape)
    state.weight_step(a_batch())
    torch.testing.assert_close(state.objective.answers(state, x, then.shape)[0], then)


def test_the_oldest_states_leave_first_and_only_so_many_stay():
    objective = SelfDistillation(teachers=2)
    for k in range(4):
        objective.add({"weights": {"w": torch.tensor(float(k))}, "logits": {}})
    assert [t["weights"]["w"].item() for t in objective.pool] == [2.0, 3.0]


def test_states_are_taken_every_so_many_steps_and_reported():
    search = prepared(sd_darts(teachers=2, schedule=QUICK))
    assert [e["teachers"] for e in search.log] == [1, 2, 2]
    assert [e["teacher_entropy"] > 0 for e in search.log] == [False, True, True]
    assert search.log[-1]["teacher_entropy"] <= math.log(2)
    assert len(prepared(sd_darts(every=1, schedule=QUICK)).state.objective.pool) == 3


def test_an_interrupted_search_ends_the_same(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction >= 0.5:
            raise Killed

    whole = prepared(sd_darts(schedule=QUICK))
    with pytest.raises(Killed):
        prepared(sd_darts(schedule=QUICK), context(checkpoints=Checkpoints(tmp_path), progress=kill))
    resumed = prepared(sd_darts(schedule=QUICK), context(checkpoints=Checkpoints(tmp_path)))
    assert same(whole, resumed)
    assert resumed.log == whole.log


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teachers": 0}, "teachers must be a positive integer"),
        ({"every": 0}, "every must be a positive integer"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"weight": -1.0}, "weight must not be negative"),
        ({"vote": "loud"}, "vote 'loud' is unknown"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        sd_darts(**settings)


def test_teachers_of_another_search_are_refused():
    state = teaching()
    state.objective.pool[0]["logits"]["e01"] = torch.zeros(3)
    with pytest.raises(UsageError, match=r"'e01' of shape \(3,\), the search has \(5,\)"):
        state.weight_step(a_batch())
    state = teaching()
    with pytest.raises(ShapeError, match=r"answers \(8, 2\), but the student answers \(8, 7\)"):
        state.objective.answers(state, a_batch()[0], torch.Size([8, 7]))


def test_the_hard_vote_of_one_teacher_is_said_to_be_pseudo_labels():
    with pytest.warns(UserWarning, match="pseudo-labels"):
        SelfDistillation(teachers=1, vote="hard")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SelfDistillation(teachers=1)
        SelfDistillation(teachers=3, vote="hard")


def test_a_regression_has_no_classes_to_vote_for():
    search = sd_darts(schedule=QUICK)
    search.setup(Problem(MicroNB201((1, 4, 4), 1, C=2, cells=1)))
    data = Split(images().x, images().x.mean((1, 2, 3))[:, None])
    with pytest.raises(UsageError, match="classification"):
        search.start(Context(Dataset("means", data, data, None, "regression", 1), Recipe(epochs=1)))


# --- sharpness -------------------------------------------------------------------------------------------------------


def test_the_rise_of_a_quadratic_is_that_of_the_formula():
    H = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.double))
    w = torch.tensor([1.0, -1.0, 0.5], dtype=torch.double)
    g = H @ w
    u = g / g.norm()
    expected = 0.1 * g @ u + 0.005 * u @ H @ u
    assert rise(lambda t: t["w"] @ H @ t["w"] / 2, {"w": w}, 0.1) == pytest.approx(expected.item())
    assert rise(lambda t: t["w"] @ H @ t["w"] / 2, {"w": torch.zeros(3, dtype=torch.double)}, 0.1) == 0.0
    with pytest.raises(UsageError, match="positive distance"):
        rise(lambda t: t["w"].sum(), {"w": w}, 0.0)


def test_power_iteration_finds_the_eigenvalue_of_largest_magnitude_with_its_sign():
    g = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.double))[0]
    for values in ([5.0, 2, 1, 0.5, 0.1, -1], [-7.0, 2, 1, 0.5, 0.1, 3]):
        H = Q @ torch.diag(torch.tensor(values, dtype=torch.double)) @ Q.T

        def loss(t, H=H):
            a = torch.cat([t["x"], t["y"]])
            return a @ H @ a / 2

        start = {"x": torch.ones(2, dtype=torch.double), "y": torch.ones(4, dtype=torch.double)}
        assert top_eigenvalue(loss, start, 60) == pytest.approx(values[0], rel=1e-6)
    assert top_eigenvalue(lambda t: t["a"].sum(), {"a": torch.ones(2)}) == 0.0  # linear
    with pytest.raises(UsageError, match="at least one product"):
        top_eigenvalue(loss, start, 0)


def test_sharpness_of_a_supernet_is_measured_on_weights_and_leaves_no_trace():
    state = started(sd_darts(schedule=QUICK))
    kept = {n: t.clone() for n, t in state.supernet.state_dict().items()}
    found = sharpness(state, images(), 0.05)
    curvature = alpha_curvature(state, images())
    assert found > 0
    assert math.isfinite(curvature)
    assert all(torch.equal(t, kept[n]) for n, t in state.supernet.state_dict().items())
    assert all(p.grad is None for p in [*state.weights.values(), *state.logits.values()])
    loss = state.objective.arch_loss(state, state.output(images().x, state.mixture_weights()), *a_batch(32))
    g = torch.autograd.grad(loss, list(state.weights.values()))
    slope = torch.stack([t.norm() for t in g]).norm().item()
    assert sharpness(state, images(), 1e-3) == pytest.approx(1e-3 * slope, rel=0.05)


def test_the_curvature_in_the_logits_is_that_of_the_dense_hessian():
    state = started(sd_darts(schedule=QUICK))
    state.supernet.double()
    for p in state.logits.values():
        p.data = p.data.double()
    data = Split(images().x[:8].double(), images().y[:8])
    names = list(state.logits)
    sizes = [len(state.logits[n]) for n in names]

    def loss(flat):
        logits = dict(zip(names, flat.split(sizes)))
        return torch.nn.functional.cross_entropy(state.output(data.x, state.mixture_weights(logits)), data.y)

    H = torch.autograd.functional.hessian(loss, torch.cat([state.logits[n].detach() for n in names]))
    values = torch.linalg.eigvalsh(H)
    largest = values[values.abs().argmax()].item()
    assert alpha_curvature(state, data, 60) == pytest.approx(largest, rel=1e-2)


def test_entropy_of_a_uniform_vote_is_the_logarithm_of_the_classes():
    assert entropy(torch.full((3, 4), 0.25)) == pytest.approx(math.log(4))
    assert entropy(torch.eye(4)) == 0.0
