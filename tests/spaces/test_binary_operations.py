"""Binary operations: values, gradients, and what their networks are made of."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import ShapeError, SpaceError
from archipel.cost.model import count_params
from archipel.spaces.binary_operations import (
    BinaryConv2d,
    BinaryReduce,
    BinaryUnit,
    binary_operations,
    projection_loss,
    sign,
    weight_bits,
)
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)


def conv(weight, **kw) -> BinaryConv2d:
    w = torch.tensor(weight)
    layer = BinaryConv2d(w.shape[1], w.shape[0], w.shape[2], **kw)
    layer.weight.data = w
    return layer


def test_weights_take_two_values_by_the_mean_magnitude_of_their_channel():
    layer = conv([[[[0.5, -0.25], [1.0, -0.25]]], [[[0.0, -4.0], [2.0, 2.0]]]])
    first, second = layer.binary_weight().detach().flatten(1)
    assert first.tolist() == [0.5, -0.5, 0.5, -0.5]
    assert second.tolist() == [2.0, -2.0, 2.0, 2.0]  # sign(0) = +1
    torch.manual_seed(0)
    for channel in BinaryConv2d(8, 4, 3).binary_weight().detach():
        assert len(channel.unique()) == 2
        assert channel.unique().sum() == 0


def test_signs_pass_the_gradient_where_the_input_is_at_most_one():
    x = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.7, 1.0, 1.01], requires_grad=True)
    y = sign(x)
    assert y.tolist() == [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0]
    g = torch.arange(1.0, 8.0)
    y.backward(g)
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]


def test_the_gradient_of_the_weights_has_the_scale_as_a_constant():
    layer = conv([[[[0.5, -0.25], [1.5, -0.75]]]])
    w_hat = layer.binary_weight()
    g = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    w_hat.backward(g)
    scale = (0.5 + 0.25 + 1.5 + 0.75) / 4
    assert layer.weight.grad.flatten().tolist() == [scale, 2 * scale, 0.0, 4 * scale]


def test_a_convolution_pads_with_zeros_after_the_sign():
    layer = conv([[[[0.5] * 3] * 3]], padding=1)
    x = torch.full((1, 1, 3, 3), 0.1)
    assert layer(x)[0, 0].tolist() == [[2.0, 3.0, 2.0], [3.0, 4.5, 3.0], [2.0, 3.0, 2.0]]
    assert torch.equal(layer(x), layer(100 * x))  # inputs have one bit


def test_learned_scales_start_at_the_mean_and_learn_with_a_projection_loss():
    torch.manual_seed(0)
    plain, projected = BinaryConv2d(4, 3, 3), BinaryConv2d(4, 3, 3, projected=True)
    projected.weight.data = plain.weight.data.clone()
    projected.scale.data = projected.mean_magnitude()
    assert torch.equal(plain.binary_weight(), projected.binary_weight())
    net = nn.Sequential(projected)
    expected = 0.5 * ((projected.weight - projected.scale * torch.sign(projected.weight)) ** 2).sum()
    torch.testing.assert_close(projection_loss(net), expected)
    projection_loss(net).backward()
    assert projected.scale.grad.abs().max() < 1e-6  # mean|W| is the best scale: its gradient there is zero
    projected.scale.data *= 2
    projected.zero_grad()
    projection_loss(net).backward()
    assert (projected.scale.grad > 0).all()
    assert float(projection_loss(nn.Sequential())) == 0.0


def test_storage_is_a_bit_a_weight_and_a_number_a_channel():
    layer = BinaryConv2d(64, 64, 3)
    assert weight_bits(layer) == 64 * 64 * 9 + 32 * 64
    assert weight_bits(nn.Conv2d(64, 64, 3, bias=False)) == 32 * 64 * 64 * 9  # 32 times the kernel
    projected = BinaryConv2d(64, 64, 3, projected=True)
    assert weight_bits(projected) == weight_bits(layer)
    assert weight_bits(nn.Sequential(layer, nn.Linear(64, 10))) == weight_bits(layer) + 32 * 650


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", sorted(binary_operations(True)))
def test_operations_keep_channels_and_halve_the_plane_at_a_stride(name, stride):
    x = torch.randn(2, 4, 8, 8)
    for searching in (True, False):
        op = binary_operations(searching)[name](4, stride)
        assert op(x).shape == (2, 4, 8 // stride, 8 // stride)
        assert not any(type(m) is nn.Conv2d for m in op.modules())


@pytest.mark.parametrize("operations", ["binary", "binary-projected"])
def test_in_a_network_only_the_first_convolution_and_the_classifier_have_real_weights(operations):
    space = DartsSpace((1, 8, 8), 2, C=4, layers=3, nodes=2, operations=operations)
    arch = space.sample(Random(0))
    net = space.build(arch)
    real = [n for n, m in net.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    assert real == ["stem.0", "classifier"]
    assert any(isinstance(m, BinaryReduce) for m in net.modules())
    assert count_params(net) == space.cost.params(arch)
    supernet = space.supernet().train()
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(supernet.activate(arch)(x), supernet.extract(arch)(x))
    for m in net.modules():
        if isinstance(m, BinaryUnit):
            assert isinstance(m[0], nn.BatchNorm2d)


def test_micro_cells_have_the_operations_of_nas_bench_201_in_one_bit():
    plain, binary = (MicroNB201((1, 8, 8), 2, C=4, operations=o) for o in ("plain", "binary"))
    assert [d.options for d in plain.decisions] == [d.options for d in binary.decisions]
    arch = dict.fromkeys([d.name for d in binary.decisions], "conv3x3")
    net = binary.build(arch)
    assert [n for n, m in net.named_modules() if type(m) is nn.Conv2d] == ["stem.0"]
    assert count_params(net) == count_params(plain.build(arch))
    assert weight_bits(net) < weight_bits(plain.build(arch)) / 4
    y = net(torch.randn(6, 1, 8, 8))
    y.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_binary_network_is_exported_and_drawn_as_any_other():
    space = MicroNB201((1, 8, 8), 2, C=2, cells=1, operations="binary")
    arch = dict.fromkeys([d.name for d in space.decisions], "conv1x1")
    net = space.build(arch).eval()
    exported = torch.export.export(net, (torch.zeros(2, 1, 8, 8),)).module()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(exported(x), net(x))
    assert space.graph(arch).number_of_nodes() > 10


def test_a_convolution_without_a_norm_before_its_sign_is_refused():
    with pytest.raises(ShapeError, match=r"needs a batch norm of 4 features before its sign, not ReLU"):
        BinaryUnit(nn.ReLU(), BinaryConv2d(4, 4, 3))
    with pytest.raises(ShapeError, match="a batch norm of 4"):
        BinaryUnit(nn.BatchNorm2d(8), BinaryConv2d(4, 4, 3))
    with pytest.raises(ShapeError, match="must be even, not 3"):
        BinaryReduce(4, 3)
    with pytest.raises(SpaceError, match="Did you mean: binary"):
        MicroNB201((1, 8, 8), 2, operations="binari")
