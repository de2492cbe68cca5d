"""Peak activation memory, against counts by hand."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from archipel.cost.memory import inference_bytes, training_bytes

FLOAT = 4


def on_meta(*layers):
    return nn.Sequential(*layers).to("meta")


def test_inference_of_a_perceptron_by_hand():
    net = on_meta(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    # The caller holds the input throughout. At the ReLU, its input and its output are alive: 8 + 16 + 16.
    assert inference_bytes(net, torch.zeros(1, 8)) == FLOAT * (8 + 16 + 16)
    assert inference_bytes(net, torch.zeros(1, 8), batch=5) == FLOAT * 5 * (8 + 16 + 16)


def test_operations_in_place_need_no_second_tensor():
    net = on_meta(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 4))
    assert inference_bytes(net, torch.zeros(1, 8)) == FLOAT * (8 + 16 + 4)


def test_views_cost_nothing():
    class Views(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, 2:].unsqueeze(1)

    assert inference_bytes(Views().to("meta"), torch.zeros(1, 3, 4)) == FLOAT * 12


def test_what_is_no_longer_needed_is_gone():
    class Wide(nn.Module):
        def forward(self, x):
            for _ in range(10):
                x = x.repeat(1, 100).sum(1, keepdim=True)
            return x

    once = FLOAT * (1 + 1 + 100 + 1)  # the caller's input, x, the wide one, its sum
    assert inference_bytes(Wide().to("meta"), torch.zeros(1, 1)) == once


def test_a_shortcut_keeps_its_source_alive():
    class Residual(nn.Module):
        def __init__(self, shortcut):
            super().__init__()
            self.shortcut = shortcut

        def forward(self, x):
            start = x * 2
            y = start + 0 if self.shortcut else start
            if not self.shortcut:
                del start
            y = y.exp()
            y = y.exp()
            return y + start if self.shortcut else y

    plain, residual = (inference_bytes(Residual(s).to("meta"), torch.zeros(1, 10)) for s in (False, True))
    assert (plain, residual) == (FLOAT * 30, FLOAT * 40)


def test_types_have_their_sizes():
    net = on_meta(nn.Embedding(5, 3))
    assert inference_bytes(net, torch.zeros(1, 6, dtype=torch.int64)) == 8 * 6 + FLOAT * 6 * 3


def test_training_keeps_what_the_backward_pass_needs():
    net = on_meta(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    # Saved: the input (8), the ReLU's output (16). At the largest moment of the backward pass the gradient of the
    # hidden layer after the ReLU (16) and before it (16) are alive too, and the output's values and gradient (4 + 4)
    # are held by the caller; gradients of the weights do not count.
    assert training_bytes(net, torch.zeros(1, 8), batch=1) == FLOAT * (8 + 16 + 16 + 16 + 4 + 4)


def test_a_deeper_network_trains_in_more_memory_but_infers_in_the_same():
    def net(depth):
        return on_meta(*[layer for _ in range(depth) for layer in (nn.Linear(16, 16), nn.Tanh())])

    shallow, deep = net(3), net(12)
    x = torch.zeros(1, 16)
    assert inference_bytes(shallow, x) == inference_bytes(deep, x)
    # Each layer saves its input for the weights' gradient and the tanh its output: the same tensor.
    assert training_bytes(deep, x, 1) - training_bytes(shallow, x, 1) == FLOAT * 16 * 9


def test_gradients_of_weights_are_left_out():
    wide = on_meta(nn.Linear(1000, 2))
    assert training_bytes(wide, torch.zeros(1, 1000), batch=1) == FLOAT * (1000 + 2 + 2)


def test_nothing_of_the_network_changes():
    net = on_meta(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    net[0].weight.grad = marker = torch.empty(4, 4, device="meta")
    training_bytes(net, torch.zeros(1, 4), batch=3)
    inference_bytes(net, torch.zeros(1, 4))
    assert net[0].weight.grad is marker
    assert net[0].bias.grad is None
    assert not net.training
    assert gc.isenabled()


def test_several_outputs_are_counted_and_trained_through():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(3, 7)

        def forward(self, x):
            return {"first": self.a(x), "second": [self.b(x)]}

    net = Two().to("meta")
    assert inference_bytes(net, torch.zeros(1, 3)) == FLOAT * (3 + 5 + 7)
    assert training_bytes(net, torch.zeros(1, 3), 1) >= FLOAT * (3 + 2 * (5 + 7))


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_repeated_counts_are_equal_whatever_ran_between(batch):
    net = on_meta(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    x = torch.zeros(1, 1, 9, 9)
    first = training_bytes(net, x, batch)
    garbage = [[] for _ in range(1000)]
    for g in garbage:
        g.append(g)  # cycles, which the collector may free at any time
    del garbage
    assert {training_bytes(net, x, batch) for _ in range(3)} == {first}
