"""The controller's probabilities, and the policy gradients, against slow versions and by hand."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch

from archipel.core.decision import Decision, Real
from archipel.core.errors import SpaceError, UsageError
from archipel.core.space import Space, when
from archipel.search.policy import Controller, MovingBaseline, ppo_loss, reinforce_loss

torch.set_num_threads(1)
FLAT = Space([Decision("a", ["x", "y", "z"]), Decision("b", [1, 2]), Decision("c", ["p", "q", "r", "s"])])
NESTED = Space(
    [Decision("kind", ["conv", "skip"]), Decision("kernel", [3, 5, 7]), Decision("act", ["relu", "gelu"])],
    {"kernel": [when(kind=["conv"])], "act": [when(kernel=[5, 7])]},
)


def controller(space, hidden=6, seed=0):
    return Controller(space, hidden, torch.Generator().manual_seed(seed))


def slow_distributions(c, arch):
    """Probabilities of every open decision, by a hand-written LSTM, one step at a time."""
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    w = {name: p.detach().numpy().astype(float) for name, p in c.named_parameters()}
    hidden = len(w["start_H"])
    h, cell, x = np.zeros(hidden), np.zeros(hidden), w["start_H"]
    out = {}
    for i, d in enumerate(c.decisions):
        if d.name not in arch:
            continue
        gates = w["lstm.weight_ih_l0"] @ x + w["lstm.bias_ih_l0"] + w["lstm.weight_hh_l0"] @ h + w["lstm.bias_hh_l0"]
        i_, f, g, o = np.split(gates, 4)
        cell = sigmoid(f) * cell + sigmoid(i_) * np.tanh(g)
        h = sigmoid(o) * np.tanh(cell)
        scores = (w["weight_DKH"][i] @ h + w["bias_DK"][i])[: d.size]
        out[d.name] = np.exp(scores) / np.exp(scores).sum()
        x = w["embedding_DKH"][i, d.index(arch[d.name])]
    return out


@pytest.mark.parametrize("space", [FLAT, NESTED], ids=["flat", "nested"])
def test_log_probabilities_are_those_of_a_hand_written_lstm(space):
    c = controller(space)
    archs = list(space.enumerate())
    log_p_BT, entropy_BT = c(c.encode(archs))
    for arch, log_p_T, entropy_T in zip(archs, log_p_BT.tolist(), entropy_BT.tolist()):
        p = slow_distributions(c, arch)
        expected = [math.log(p[n][space.by_name[n].index(arch[n])]) for n in arch]
        assert log_p_T == pytest.approx([*expected, *[0] * (len(log_p_T) - len(arch))], abs=1e-5)
        assert entropy_T[: len(arch)] == pytest.approx([-(p[n] * np.log(p[n])).sum() for n in arch], abs=1e-5)


@pytest.mark.parametrize("space", [FLAT, NESTED], ids=["flat", "nested"])
def test_the_probabilities_of_all_architectures_sum_to_one(space):
    c = controller(space)
    for p in c.parameters():
        p.data.mul_(8)  # far from uniform
    p_B = c(c.encode(list(space.enumerate())))[0].detach().sum(-1).exp()
    assert float(p_B.sum()) == pytest.approx(1, abs=1e-5)
    assert float(p_B.max()) > 1.5 / space.size


@pytest.mark.parametrize("space", [FLAT, NESTED], ids=["flat", "nested"])
def test_samples_follow_the_log_probabilities(space):
    c = controller(space)
    for p in c.parameters():
        p.data.mul_(8)
    archs = list(space.enumerate())
    p_B = c(c.encode(archs))[0].sum(-1).exp().tolist()
    n = 4000
    drawn = c.sample(n, torch.Generator().manual_seed(1))
    assert all(space.validate(a) == a for a in drawn)
    for arch, p in zip(archs, p_B):
        assert abs(drawn.count(arch) / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_closed_decisions_take_no_step_and_padding_changes_nothing():
    c = controller(NESTED)
    short, long = {"kind": "skip"}, {"kind": "conv", "kernel": 5, "act": "gelu"}
    both = c.encode([short, long])
    assert both.mask_BT.tolist() == [[1, 0, 0], [1, 1, 1]]
    for a, b in zip(c(both), c(c.encode([short]))):
        torch.testing.assert_close(a[0], torch.cat([b[0], torch.zeros(2)]))
    for a, b in zip(c(both), c(c.encode([long]))):
        torch.testing.assert_close(a[1], b[0])


def test_weights_start_uniform_within_a_tenth_and_gradients_are_finite():
    c = controller(FLAT, hidden=30)
    values = torch.cat([p.detach().flatten() for p in c.parameters()])
    assert -0.1 <= float(values.min()) < -0.09
    assert 0.09 < float(values.max()) <= 0.1
    log_p, entropy = c(c.encode(list(FLAT.enumerate())))
    (reinforce_loss(log_p, torch.randn(24)) - entropy.mean()).backward()
    assert all(p.grad.isfinite().all() for p in c.parameters())


def test_sampling_depends_on_the_generator_only():
    c = controller(FLAT)
    draws = [c.sample(20, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_a_real_valued_decision_is_refused():
    with pytest.raises(SpaceError, match=r"'lr' is a number in \[0.1, 1.0\]"):
        Controller(Space([Decision("a", [1, 2]), Real("lr", 0.1, 1.0)]))


# --- gradients -----------------------------------------------------------------------------------------------------


def gradient(c, loss):
    c.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in c.parameters()])


def test_reinforce_averaged_over_all_architectures_is_the_gradient_of_the_expected_reward():
    c = controller(NESTED)
    archs = list(NESTED.enumerate())
    reward_B = torch.tensor([Random(i).random() for i in range(len(archs))])
    p_B = c(c.encode(archs))[0].sum(-1).exp()
    exact = gradient(c, -(p_B * reward_B).sum())
    weighted = (p_B * reward_B).detach() * len(archs)  # expectation instead of a sample mean
    estimated = gradient(c, reinforce_loss(c(c.encode(archs))[0], weighted))
    torch.testing.assert_close(estimated, exact, rtol=1e-4, atol=1e-7)


def test_a_baseline_does_not_change_the_expected_gradient():
    c = controller(FLAT)
    archs = list(FLAT.enumerate())
    p_B = c(c.encode(archs))[0].sum(-1).exp().detach()
    constant = gradient(c, reinforce_loss(c(c.encode(archs))[0], p_B * 3.0 * len(archs)))
    assert float(constant.abs().max()) < 1e-5


def test_at_the_old_policy_ppo_has_the_gradient_of_reinforce():
    c = controller(NESTED)
    sequences, advantage = c.encode(list(NESTED.enumerate())), torch.linspace(-1, 1, 6)
    old = c(sequences)[0].detach()
    a = gradient(c, ppo_loss(c(sequences)[0], old, advantage))
    b = gradient(c, reinforce_loss(c(sequences)[0], advantage))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [(1.1, 1, -1.1, True), (1.5, 1, -1.2, False), (0.5, 1, -0.5, True),
     (1.5, -1, 1.5, True), (0.5, -1, 0.8, False), (0.9, -1, 0.9, True)],
)  # fmt: skip
def test_ppo_clips_what_has_moved_far_enough_in_the_favoured_direction(ratio, advantage, loss, moves):
    log_p = torch.tensor([[math.log(ratio)]], requires_grad=True)
    value = ppo_loss(log_p, torch.zeros(1, 1), torch.tensor([float(advantage)]), clip=0.2)
    assert value.item() == pytest.approx(loss, abs=1e-6)
    value.backward()
    assert (float(log_p.grad) != 0) == moves


def test_the_baseline_is_an_exponential_moving_average_that_starts_at_the_first_reward():
    baseline = MovingBaseline(0.95)
    assert baseline.value is None
    assert [baseline.update(r) for r in (1.0, 2.0, 0.0)] == pytest.approx([1.0, 1.05, 0.9975])
    with pytest.raises(UsageError, match=r"in \[0, 1\), not 1.0"):
        MovingBaseline(1.0)
