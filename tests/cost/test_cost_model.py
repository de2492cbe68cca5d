"""Counting on the meta device: quick, exact, and free of what was remembered before."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from archipel.cost import meta
from archipel.cost.meta import MetaMode
from archipel.cost.model import count_macs, count_params, with_values


class Everything(nn.Module):
    """Views, in-place operations, several outputs, type promotion, attention, grouped and dilated convolutions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2)
        self.group = nn.Conv2d(8, 8, 3, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.lin = nn.Linear(16, 6)
        self.rnn = nn.GRU(6, 5, batch_first=True)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        x = self.up(self.group(x) * 2)
        a, b = x.chunk(2, dim=1)
        y = (a + b.mul_(0.5)).flatten(2)[..., :16]
        y = F.gelu(self.lin(y))
        y = F.scaled_dot_product_attention(y, y, y) + torch.arange(6, device=y.device) / 3
        values, _ = y.topk(4, dim=-1)
        return self.rnn(F.pad(values, (1, 1)))[0].sum(1)


def macs_by_pytorch(net, x):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("side", [16, 21, 33])
def test_counts_equal_those_of_pytorch_and_are_the_same_again(side):
    net = Everything()
    x = torch.randn(4, 3, side, side)
    expected = macs_by_pytorch(net, x[:1])
    assert [count_macs(net.to("meta"), x) for _ in range(3)] == [expected] * 3


def test_a_convolution_and_a_linear_layer_by_hand():
    assert count_macs(nn.Conv2d(3, 8, 3, padding=1).to("meta"), torch.zeros(5, 3, 10, 7)) == 3 * 8 * 9 * 70
    assert count_macs(nn.Conv1d(4, 4, 5, groups=4).to("meta"), torch.zeros(1, 4, 20)) == 4 * 5 * 16
    assert count_macs(nn.Linear(7, 3).to("meta"), torch.zeros(2, 9, 7)) == 9 * 7 * 3
    assert count_macs(nn.ReLU().to("meta"), torch.zeros(1, 3)) == 0


def test_remembered_shapes_carry_types_strides_and_views():
    with MetaMode():
        for _ in range(2):  # the second time from memory
            i = torch.empty(3, dtype=torch.int64, device="meta")
            assert (i * 2).dtype == torch.int64
            assert (i * 2.0).dtype == torch.float32
            assert (i * True).dtype == torch.int64
            x = torch.empty(4, 6, device="meta")
            assert x.t().relu().stride() == (1, 6)
            view = x[:2]
            assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
            largest, where = torch.empty(4, 6, device="meta").max(dim=1)
            assert (largest.shape, where.dtype) == ((4,), torch.int64)
            assert x.add_(1) is x


def test_real_tensors_are_computed_as_usual():
    with MetaMode():
        assert torch.relu(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
        assert torch.arange(3).sum().item() == 3


def test_the_memory_of_shapes_is_bounded(monkeypatch):
    monkeypatch.setattr(meta, "_KNOWN_LIMIT", 4)
    meta._KNOWN.clear()
    with MetaMode():
        for n in range(1, 20):
            torch.relu(torch.empty(n, device="meta"))
    assert len(meta._KNOWN) <= 4


def test_parameters_that_are_frozen_or_shared_are_not_counted_twice():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert count_params(net) == 9 + 3 + 3
    net[0].bias.requires_grad_(False)
    assert count_params(net) == 9 + 3


def test_counting_is_faster_than_the_counter_of_pytorch():
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish()) for _ in range(20)]
    net = nn.Sequential(*blocks).to("meta").eval()
    x = torch.zeros(1, 8, 8, 8)
    count_macs(net, x)
    ours, theirs = [], []
    for _ in range(3):
        started = time.perf_counter()
        count_macs(net, x)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        macs_by_pytorch(net, x.to("meta"))
        theirs.append(time.perf_counter() - started)
    assert min(theirs) > 2 * min(ours)  # about ten times


def test_networks_get_harmless_values_for_timing():
    net = with_values(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to("meta"), torch.device("cpu"))
    assert all(torch.isfinite(t).all() for t in [*net.parameters(), *net.buffers()])
    assert torch.isfinite(net.eval()(torch.ones(2, 2))).all()
