"""Elastic layers against the plain layers whose first channels they use."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from archipel.core.choice import Fixed, Kernel, Seat, Width
from archipel.core.errors import ShapeError
from archipel.core.extract import extract
from archipel.spaces.language import CausalConv1d, ElasticEmbedding
from archipel.spaces.layers import (
    ElasticBatchNorm1d,
    ElasticBatchNorm2d,
    ElasticConv1d,
    ElasticConv2d,
    ElasticLayerNorm,
    ElasticLinear,
    reset_parameters,
)
from archipel.spaces.mlp import Exits

I, O, K = Width("i", [2, 4]), Width("o", [3, 6]), Kernel("k", [1, 3, 5])


def decided(layer, **arch):
    layer.seat = Seat(Fixed(arch))
    return layer


def live_numel(layer, arch):
    live = layer.live(Fixed(arch))
    return sum(p[live[n]].numel() if live.get(n) else p.numel() for n, p in layer.named_parameters())


def check(layer, x, arch, plain, expected):
    """The layer under an architecture, what is extracted, and an expected result all agree."""
    torch.testing.assert_close(decided(layer, **arch)(x), expected)
    extracted = extract(layer, Fixed(arch))
    assert type(extracted) is plain
    torch.testing.assert_close(extracted(x), expected)
    assert sum(p.numel() for p in extracted.parameters()) == live_numel(layer, arch)
    assert type(pickle.loads(pickle.dumps(extracted))) is plain


@pytest.mark.parametrize(("i", "o", "bias"), itertools.product(I.options, O.options, [True, False]))
def test_a_smaller_linear_layer_is_the_top_left_of_the_largest(i, o, bias):
    layer = ElasticLinear(I, O, bias)
    x = torch.randn(5, 7, i)
    expected = F.linear(x, layer.weight[:o, :i], layer.bias[:o] if bias else None)
    check(layer, x, {"i": i, "o": o}, nn.Linear, expected)


@pytest.mark.parametrize(("i", "o", "k"), itertools.product(I.options, O.options, K.options))
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_smaller_convolution_is_the_centre_of_the_largest(i, o, k, stride, dilation):
    layer = ElasticConv2d(I, O, K, stride, dilation)
    x = torch.randn(2, i, 9, 8)
    start = (5 - k) // 2
    weight = layer.weight[:o, :i, start : start + k, start : start + k]
    expected = F.conv2d(x, weight, layer.bias[:o], stride, dilation * (k // 2), dilation)
    check(layer, x, {"i": i, "o": o, "k": k}, nn.Conv2d, expected)
    assert expected.shape[-2:] == (-(-9 // stride), -(-8 // stride))  # "same" padding, whatever the kernel


@pytest.mark.parametrize(("c", "k"), itertools.product(I.options, K.options))
def test_depthwise_convolutions_have_one_filter_for_each_channel(c, k):
    layer = ElasticConv1d(I, I, K, depthwise=True, bias=False)
    x = torch.randn(2, c, 9)
    start = (5 - k) // 2
    expected = F.conv1d(x, layer.weight[:c, :, start : start + k], padding=k // 2, groups=c)
    check(layer, x, {"i": c, "k": k}, nn.Conv1d, expected)
    assert live_numel(layer, {"i": c, "k": k}) == c * k


def test_a_depthwise_convolution_keeps_its_channels():
    with pytest.raises(ShapeError, match="keeps its channels"):
        ElasticConv2d(I, O, depthwise=True)
    assert ElasticConv2d(I * 2, I * 2, depthwise=True).groups == 8  # equal, though not the same object


@pytest.mark.parametrize("n", O.options)
@pytest.mark.parametrize(
    ("kind", "plain", "shape"),
    [
        (ElasticBatchNorm1d, nn.BatchNorm1d, ()),
        (ElasticBatchNorm1d, nn.BatchNorm1d, (5,)),
        (ElasticBatchNorm2d, nn.BatchNorm2d, (4, 3)),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_uses_and_moves_the_first_statistics(n, kind, plain, shape, training):
    layer = decided(kind(O), o=n).train(training)
    with torch.no_grad():
        layer.weight.normal_(), layer.bias.normal_(), layer.running_mean.normal_(), layer.running_var.uniform_(0.5, 2)
    before = layer.running_mean.clone()
    reference = extract(layer, Fixed({"o": n}))
    assert type(reference) is plain
    x = torch.randn(8, n, *shape)
    torch.testing.assert_close(layer(x), reference(x))
    torch.testing.assert_close(layer.running_mean[:n], reference.running_mean)
    torch.testing.assert_close(layer.running_var[:n], reference.running_var)
    assert int(layer.num_batches_tracked) == int(reference.num_batches_tracked) == int(training)
    assert torch.equal(layer.running_mean[n:], before[n:])  # the others are left alone
    assert live_numel(layer, {"o": n}) == 2 * n


def test_batch_norm_with_cumulative_averages_matches_plain_batch_norm():
    layer, plain = decided(ElasticBatchNorm1d(O, momentum=None), o=6), nn.BatchNorm1d(6, momentum=None)
    for _ in range(3):
        x = torch.randn(5, 6)
        torch.testing.assert_close(layer(x), plain(x))
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)


@pytest.mark.parametrize(("affine", "track"), [(False, True), (True, False), (False, False)])
def test_batch_norm_without_weights_or_statistics(affine, track):
    layer = decided(ElasticBatchNorm1d(O, affine=affine, track=track), o=3).eval()
    plain = extract(layer, Fixed({"o": 3}))
    x = torch.randn(6, 3)
    torch.testing.assert_close(layer(x), plain(x))
    assert len(list(plain.parameters())) == (2 if affine else 0)
    assert len(list(plain.buffers())) == (3 if track else 0)


def test_batch_norm_names_inputs_of_the_wrong_rank():
    with pytest.raises(ValueError, match="expected 4D input"):
        decided(ElasticBatchNorm2d(O), o=3)(torch.zeros(2, 3))


@pytest.mark.parametrize("n", O.options)
def test_layer_norm_normalises_the_features_that_are_there(n):
    layer = ElasticLayerNorm(O)
    with torch.no_grad():
        layer.weight.normal_(), layer.bias.normal_()
    x = torch.randn(4, 5, n)
    check(layer, x, {"o": n}, nn.LayerNorm, F.layer_norm(x, (n,), layer.weight[:n], layer.bias[:n]))


@pytest.mark.parametrize("n", O.options)
def test_an_embedding_uses_the_first_features(n):
    layer = decided(ElasticEmbedding(11, O), o=n)
    ids = torch.randint(0, 11, (3, 4))
    plain = extract(layer, Fixed({"o": n}))
    assert layer(ids).shape == (3, 4, n)
    assert torch.equal(layer(ids), plain(ids))
    assert isinstance(plain, nn.Embedding)
    assert live_numel(layer, {"o": n}) == 11 * n == plain.weight.numel()


@pytest.mark.parametrize(("c", "k"), itertools.product(I.options, K.options))
def test_a_causal_convolution_sees_the_present_and_the_past_only(c, k):
    layer = decided(CausalConv1d(I, K), i=c, k=k)
    x = torch.randn(2, c, 9)
    y = layer(x)
    assert y.shape == x.shape
    later = x.clone()
    later[..., 5:] += 1.0
    assert torch.equal(layer(later)[..., :5], y[..., :5])
    weight = layer.weight[:c, 0, -k:]
    by_hand = sum(weight[:, -1 - back, None] * F.pad(x, (back, 0))[..., :9] for back in range(k)) + layer.bias[:c, None]
    torch.testing.assert_close(y, by_hand)
    plain = extract(layer, Fixed({"i": c, "k": k}))
    torch.testing.assert_close(plain(x), y)
    assert sum(p.numel() for p in plain.parameters()) == live_numel(layer, {"i": c, "k": k})


def test_gradients_reach_only_the_part_in_use():
    layer = decided(ElasticLinear(I, O), i=2, o=3)
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad[:3, :2].abs().min() > 0
    assert not layer.weight.grad[3:].any()
    assert not layer.weight.grad[:, 2:].any()


def test_without_a_decider_layers_have_their_largest_size():
    assert ElasticLinear(I, O)(torch.zeros(1, 4)).shape == (1, 6)
    assert ElasticConv2d(I, O, K)(torch.zeros(1, 4, 7, 7)).shape == (1, 6, 7, 7)


def test_own_decisions_are_listed_once():
    assert [d.name for d in ElasticConv2d(I, I, K).own_decisions()] == ["i", "k"]
    assert [d.name for d in ElasticLinear(I + O, O).own_decisions()] == ["i", "o"]
    assert ElasticLinear(3, 4).own_decisions() == []


def test_every_depth_has_an_exit_of_its_own_shape():
    blocks, exits = [nn.Linear(4, 3), nn.Linear(3, 2)], [nn.Linear(3, 5), nn.Linear(2, 5)]
    stack = Exits("d", blocks, exits)
    x = torch.randn(2, 4)
    for depth, expected in ((1, exits[0](blocks[0](x))), (2, exits[1](blocks[1](blocks[0](x))))):
        torch.testing.assert_close(decided(stack, d=depth)(x), expected)
        torch.testing.assert_close(extract(stack, Fixed({"d": depth}))(x), expected)
    assert len(extract(stack, Fixed({"d": 1}))) == 2


def test_resetting_follows_each_layers_own_rule_and_reports_the_others():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(3))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def reset_parameters(self):
            nn.init.constant_(self.inner.weight, 7.0)

    net = nn.Sequential(nn.Linear(2, 2), Table(), Own(), nn.ReLU())
    before = copy.deepcopy(net[0].weight.data)
    assert reset_parameters(net) == ["1"]
    assert not torch.equal(net[0].weight, before)
    assert net[2].inner.weight.eq(7.0).all()  # the whole's rule comes after its parts'
    assert net[1].table.eq(1).all()
