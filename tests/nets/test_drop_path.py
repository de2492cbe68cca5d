"""Drop-path keeps expectations, drops whole examples, and is scheduled over depth and training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from archipel.core.errors import UsageError
from archipel.nets.drop_path import DropPath, ScheduledDropPath, drop_path


def test_probability_zero_is_the_identity():
    x = torch.randn(3, 2)
    assert drop_path(x, 0.0) is x


def test_evaluation_mode_is_the_identity_whatever_the_probability():
    x = torch.randn(3, 2)
    assert DropPath(p=0.9).eval()(x) is x


def test_the_expectation_is_preserved_within_three_standard_errors():
    torch.manual_seed(0)
    n, p = 10_000, 0.3
    y = drop_path(torch.ones(n, 1), p)
    standard_error = math.sqrt(p / (1 - p) / n)  # variance of Bernoulli(1 - p) / (1 - p)
    assert abs(float(y.mean()) - 1) < 3 * standard_error
    assert abs(float((y == 0).float().mean()) - p) < 3 * math.sqrt(p * (1 - p) / n)


def test_whole_examples_are_dropped_and_the_rest_is_scaled():
    torch.manual_seed(1)
    y = drop_path(torch.ones(50, 3, 4, 4), 0.5)
    per_example = y.flatten(1)
    assert set(per_example.unique().tolist()) == {0.0, 2.0}
    assert (per_example == per_example[:, :1]).all()


def test_the_gradient_flows_only_through_examples_that_were_kept():
    torch.manual_seed(2)
    x = torch.ones(20, 2, requires_grad=True)
    y = drop_path(x, 0.4)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def network():
    return nn.Sequential(DropPath(0.25), nn.ReLU(), DropPath(0.5), nn.Sequential(DropPath(1.0)))


def probabilities(net):
    return [m.p for m in net.modules() if isinstance(m, DropPath)]


def test_nothing_is_dropped_at_step_zero():
    net = network()
    ScheduledDropPath(net, p_final=0.4, total_steps=100)
    x = torch.randn(5, 3).abs()
    assert probabilities(net) == [0, 0, 0]
    assert torch.equal(net.train()(x), x)


def test_the_probability_grows_linearly_with_depth_and_step_and_then_stays():
    net = network()
    schedule = ScheduledDropPath(net, p_final=0.4, total_steps=4)
    for step in range(1, 7):
        schedule()
        progress = min(step / 4, 1.0)
        assert probabilities(net) == pytest.approx([0.4 * f * progress for f in (0.25, 0.5, 1.0)])


def test_a_schedule_goes_on_where_interrupted_training_left_it():
    whole, resumed = network(), network()
    schedule = ScheduledDropPath(whole, 0.3, 10)
    for _ in range(4):
        schedule()
    ScheduledDropPath(resumed, 0.3, 10, step=3)()
    assert probabilities(whole) == probabilities(resumed)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_probability_that_leaves_nothing_or_makes_no_sense_is_refused(p):
    with pytest.raises(UsageError, match=r"the probability is in \[0, 1\), not"):
        DropPath(p=p)
    with pytest.raises(UsageError, match=r"the probability is in \[0, 1\), not"):
        ScheduledDropPath(network(), p, 10)


@pytest.mark.parametrize("fraction", [0.0, 1.1])
def test_a_layer_fraction_outside_the_network_is_refused(fraction):
    with pytest.raises(UsageError, match=r"in \(0, 1\]"):
        DropPath(fraction)


def test_a_network_without_paths_to_drop_is_refused():
    with pytest.raises(UsageError, match="Linear has no drop-path modules"):
        ScheduledDropPath(nn.Linear(1, 1), 0.2, 10)


def test_a_schedule_without_steps_is_refused():
    with pytest.raises(UsageError, match="total_steps=0 must be positive"):
        ScheduledDropPath(network(), 0.2, 0)
