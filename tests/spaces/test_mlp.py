"""The space of perceptrons."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from archipel.core.errors import SpaceError
from archipel.spaces.mlp import mlp_space


def test_parameters_follow_the_formula_of_two_hidden_layers():
    space = mlp_space((2,), 1, widths=[2, 3, 4], depth=2, activations=["relu"], norms=["none"])
    for a, b in itertools.product([2, 3, 4], repeat=2):
        assert space.cost.params({"width0": a, "width1": b}) == 3 * a + (a + 1) * b + b + 1


def test_a_smaller_network_is_the_largest_with_its_last_units_masked():
    space = mlp_space((3,), 2, widths=[2, 5], depth=2, activations=["relu"], norms=["none"])
    net = space.supernet()
    x = torch.randn(7, 3)
    net.activate({"width0": 5, "width1": 5})
    first, second, out = net.net.body[0][0], net.net.body[1][0], net.net.body[2]
    h = F.relu(first(x)) * (torch.arange(5) < 2)
    masked = out(F.relu(second(h)))
    small = net.activate({"width0": 2, "width1": 5})(x)
    torch.testing.assert_close(small, masked)


def test_every_depth_reads_its_own_last_layer():
    space = mlp_space((4,), 3, widths=[2, 6], depth=(1, 3), activations=["tanh"], norms=["none"])
    assert space.size == 2 + 4 + 8
    shapes = [p.shape for p in space.build({"depth": 2, "width0": 6, "width1": 2}).parameters()]
    assert shapes == [(6, 4), (6,), (2, 6), (2,), (3, 2), (3,)]


def test_a_list_with_one_option_is_no_decision():
    space = mlp_space((4,), 3, widths=[8], depth=(1, 2), activations=["relu"], norms=["batch"])
    assert [d.name for d in space.decisions] == ["depth"]
    with pytest.raises(SpaceError, match="Nothing in mlp is undecided"):
        mlp_space((4,), 3, widths=[8], depth=2, activations=["relu"], norms=["batch"])


def test_activation_norm_and_dropout_are_one_decision_for_the_whole_network():
    space = mlp_space((4,), 3, widths=[8], depth=3, norms=["none", "layer"], dropout=[0.0, 0.1])
    assert {d.name: d.options for d in space.decisions} == {
        "norm": ("none", "layer"),
        "activation": ("relu", "gelu", "silu"),
        "dropout": ("0.0", "0.1"),
    }
    net = space.build({"norm": "layer", "activation": "silu", "dropout": "0.1"})
    kinds = [type(m).__name__ for m in net.modules()]
    assert (kinds.count("LayerNorm"), kinds.count("SiLU"), kinds.count("Dropout")) == (3, 3, 3)


def test_residual_blocks_with_zero_output_weights_are_the_identity():
    space = mlp_space((4,), 3, widths=[8], depth=(1, 3), norms=["layer"], activations=["relu"], residual=True)
    net = space.supernet()
    for block in net.net.body[1].blocks:
        torch.nn.init.zeros_(block.body[3].weight)
        torch.nn.init.zeros_(block.body[3].bias)
    x = torch.randn(5, 4)
    torch.testing.assert_close(net.activate({"depth": 1})(x), net.activate({"depth": 3})(x))


def test_inputs_of_any_shape_are_flattened():
    space = mlp_space((1, 8, 8), 10)
    assert space.build(space.sample(__import__("random").Random(0)))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": ["rellu"]}, r"activation 'rellu' is unknown\. Did you mean: relu"),
        ({"norms": ["batchnorm"]}, "norm 'batchnorm' is unknown"),
        ({"widths": []}, "widths is empty"),
        ({"widths": [0, 4]}, "needs positive integers"),
        ({"widths": [4, 4]}, "lists an option twice"),
        ({"activations": []}, "activations is empty"),
        ({"depth": 0}, "1 <= smallest <= largest"),
        ({"depth": (3, 2)}, "1 <= smallest <= largest"),
        ({"dropout": [1.0]}, "rates must be in"),
    ],
)
def test_options_that_make_no_network_are_refused(options, message):
    with pytest.raises(SpaceError, match=message):
        mlp_space((4,), 3, **options)
