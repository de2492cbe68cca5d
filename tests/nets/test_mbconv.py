"""MBConv: its sizes by hand, its residual, squeeze-and-excitation and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from archipel.core.errors import ShapeError
from archipel.nets.mbconv import MBConv, SqueezeExcite, divisible

torch.set_num_threads(1)


def weights(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_a_block_has_the_weights_of_its_three_convolutions_and_norms(kernel):
    c, o, e = 8, 12, 3
    mid = e * c
    expected = c * mid + 2 * mid + kernel**2 * mid + 2 * mid + mid * o + 2 * o
    assert weights(MBConv(c, o, kernel, e)) == expected


def test_an_expansion_of_one_leaves_the_first_convolution_out():
    assert weights(MBConv(8, 12, 3, 1)) == 9 * 8 + 2 * 8 + 8 * 12 + 2 * 12


def test_squeeze_and_excitation_has_biases_and_a_rounded_middle():
    mid = 3 * 24  # a quarter of it is 18, of which the nearest multiple of 8 would be more than a tenth too small
    reduced = divisible(mid / 4)
    assert reduced == 24
    assert weights(MBConv(24, 24, 3, 3, se=0.25)) - weights(MBConv(24, 24, 3, 3)) == 2 * mid * reduced + reduced + mid


def test_squeeze_and_excitation_multiplies_each_channel_by_a_number_from_its_averages():
    torch.manual_seed(0)
    layer, x = SqueezeExcite(4, 8), torch.randn(3, 4, 5, 5)
    first, last = layer.gate[0], layer.gate[2]
    hidden = torch.relu(x.mean((2, 3)) @ first.weight[:, :, 0, 0].T + first.bias)
    gate = torch.clamp((hidden @ last.weight[:, :, 0, 0].T + last.bias) / 6 + 0.5, 0, 1)
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


def test_the_input_is_added_where_shapes_match_and_only_there():
    assert MBConv(8, 8, 3, 3).residual
    assert not MBConv(8, 8, 3, 3, stride=2).residual
    assert not MBConv(8, 12, 3, 3).residual
    block, x = MBConv(8, 8, 3, 3).eval(), torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(block(x), x + block.body(x))
    plain = MBConv(8, 8, 3, 3, residual=False).eval()
    assert torch.equal(plain(x), plain.body(x))


def test_a_stride_halves_the_plane():
    assert MBConv(8, 12, 5, 6, stride=2)(torch.randn(2, 8, 7, 8)).shape == (2, 12, 4, 4)


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("swish", nn.SiLU), ("hard-swish", nn.Hardswish)])
def test_activations_by_name(name, kind):
    assert sum(type(m) is kind for m in MBConv(4, 4, 3, 2, act=name).modules()) == 2


@pytest.mark.parametrize("wrong", [{"kernel": 4}, {"stride": 3}, {"expansion": 0.5}])
def test_impossible_blocks_say_what_a_block_takes(wrong):
    with pytest.raises(
        ShapeError, match="an odd kernel, a stride of 1 or 2 and an expansion of at least 1, not kernel="
    ):
        MBConv(**{"c_in": 4, "c_out": 4, "kernel": 3, "expansion": 3} | wrong)


def test_an_unknown_activation_is_named():
    with pytest.raises(ShapeError, match=r"No activation 'swsh'\. Did you mean: swish"):
        MBConv(4, 4, 3, 3, act="swsh")
