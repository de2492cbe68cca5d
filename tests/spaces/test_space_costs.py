"""Costs of every space: against PyTorch's FLOP counter, against formulas by hand, and as exact tables."""

from __future__ import annotations

import itertools
import math
from random import Random

import numpy as np
import pytest
import torch
from small_spaces import BUILDS, MODULES, archs, inputs, space
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from archipel.core.errors import SpaceError
from archipel.cost.memory import inference_bytes, training_bytes
from archipel.cost.model import count_macs, count_params
from archipel.cost.predictor import layer_features
from archipel.cost.table import CostTable, archs_of, index_matrix
from archipel.nets.sequence_ops import DynamicConv, SequenceAttention
from archipel.spaces.language import Attention

NAMES = {**MODULES, **BUILDS}
each_built = pytest.mark.parametrize("name", NAMES)


def macs_by_formula(net: nn.Module, x: torch.Tensor) -> int:
    """Multiply-accumulates by hand: weights times positions, and the two products of attention."""
    total = 0

    def convolution(module, args, out):
        nonlocal total
        total += math.prod(out.shape) * module.in_channels // module.groups * math.prod(module.kernel_size)

    def linear(module, args, out):
        nonlocal total
        total += math.prod(out.shape) * module.in_features

    def attention(module, args, out):
        nonlocal total
        B, T, C = out.shape
        total += 2 * B * T * T * C

    def dynamic(module, args, out):
        nonlocal total
        total += out.numel() * module.kernel

    for m in net.modules():
        if isinstance(m, nn.Conv1d | nn.Conv2d):
            m.register_forward_hook(convolution)
        elif isinstance(m, nn.Linear):
            m.register_forward_hook(linear)
        elif isinstance(m, DynamicConv):
            m.register_forward_hook(dynamic)
        elif isinstance(m, Attention | SequenceAttention):
            m.register_forward_hook(attention)
    with torch.no_grad():
        net.eval()(x)
    return total


@each_built
def test_macs_agree_with_a_count_by_hand_on_the_real_network(name):
    made = space(name)
    for arch in archs(name)[:4]:
        assert made.cost.macs(arch) == macs_by_formula(made.build(arch), inputs(made, 1))


@each_built
def test_macs_agree_with_the_flop_counter_of_pytorch(name):
    made = space(name)
    for arch in archs(name)[:4]:
        net = made.build(arch).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(inputs(made, 1))
        assert made.cost.macs(arch) == counter.get_total_flops() // 2


def test_params_and_macs_of_a_perceptron_by_formula():
    made = space("mlp")
    for arch in [made.sample(Random(s)) for s in range(10)]:
        widths = [arch[f"width{i}"] for i in range(arch["depth"])]
        sizes = [5, *widths, 3]
        weights = sum(i * o for i, o in itertools.pairwise(sizes))
        norms = 2 * sum(widths) if arch["norm"] == "batch" else 0
        assert made.cost.macs(arch) == weights
        assert made.cost.params(arch) == weights + sum(sizes[1:]) + norms


def _mobile_by_hand(arch, channels, classes, positions, dims):
    """Parameters and MACs of the mobile and signal spaces; ``positions``: outputs of the stem and of each stage."""
    conv = lambda i, o, k=1: i * o * k**dims  # noqa: E731
    width = arch["stem.width"]
    params = conv(channels, width, 3) + 2 * width
    macs = conv(channels, width, 3) * positions[0]
    before = positions[0]
    for s, after in enumerate(positions[1:]):
        out = arch[f"stage{s}.width"]
        for b in range(arch[f"stage{s}.depth"]):
            hidden = width * arch[f"stage{s}.{b}.expand"]
            k = arch[f"stage{s}.{b}.kernel"]
            params += conv(width, hidden) + hidden * k**dims + conv(hidden, out) + 4 * hidden + 2 * out
            macs += conv(width, hidden) * before + (hidden * k**dims + conv(hidden, out)) * after
            if arch.get(f"stage{s}.attention") == "se":
                params += 2 * hidden * (hidden // 4) + hidden // 4 + hidden
                macs += 2 * hidden * (hidden // 4)
            width, before = out, after
    head = arch["head.width"]
    params += conv(width, head) + 2 * head + (head + 1) * classes
    macs += conv(width, head) * before + head * classes
    return params, macs


@pytest.mark.parametrize(
    ("name", "channels", "classes", "positions", "dims"),
    [("mobile", 1, 3, [64, 64, 16], 2), ("mobile-plain", 3, 4, [99, 99, 30], 2), ("signal", 2, 3, [20, 20, 10, 5], 1)],
)
def test_params_and_macs_of_inverted_residuals_by_formula(name, channels, classes, positions, dims):
    made = space(name)
    for arch in [*archs(name), *(made.sample(Random(s)) for s in range(5))]:
        params, macs = _mobile_by_hand(arch, channels, classes, positions, dims)
        assert (made.cost.params(arch), made.cost.macs(arch)) == (params, macs)


def test_params_and_macs_of_a_language_model_by_formula():
    made = space("language")
    for arch in [*archs("language"), *(made.sample(Random(s)) for s in range(6))]:
        C, T, V = arch["width"], 6, 11
        params, macs = (V + T) * C + 2 * C + (C + 1) * V, T * C * V
        for b in range(arch["depth"]):
            hidden = C * arch[f"block{b}.expand"]
            params += 4 * C + 2 * C * hidden + hidden + C
            macs += 2 * T * C * hidden
            if arch[f"block{b}.mixer"] == "attention":
                params += 4 * (C * C + C)
                macs += 4 * T * C * C + 2 * T * T * C
            else:
                k = arch[f"block{b}.kernel"]
                params += 3 * (C * C + C) + C * k + C
                # The convolution is counted over its padded row, which is as long as the text.
                macs += 3 * T * C * C + T * C * k
        assert (made.cost.params(arch), made.cost.macs(arch)) == (params, macs)


def test_params_and_macs_of_a_cell_add_up_over_its_edges():
    made = space("nb201")
    conv = {"none": 0, "skip": 0, "avgpool3x3": 0, "conv1x1": 1, "conv3x3": 9}
    for arch in [made.sample(Random(s)) for s in range(8)]:
        edges = sum(conv[op] for op in arch.values())
        convs = sum(op.startswith("conv") for op in arch.values())
        stem, reduction = 2 * 9 * 1, 2 * 4 * 9 + 4 * 4 * 9 + 2 * 4
        cells = [(2, 64), (4, 16)]
        macs = stem * 64 + reduction * 16 + 4 * 3 + sum(C * C * edges * n for C, n in cells)
        assert made.cost.macs(arch) == macs
        norms = 2 * 2 + 2 * 2 * 4 + 2 * 4 + sum(2 * C * convs for C, _ in cells)
        assert made.cost.params(arch) == stem + reduction + norms + (4 + 1) * 3 + sum(C * C * edges for C, _ in cells)


# --- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("name", [n for n in MODULES if n not in ("darts", "nested")])
def test_an_exact_table_exists_and_agrees_on_other_random_architectures(name, metric):
    made = space(name)
    table = CostTable.of(made, metric)
    rng = Random(77)
    drawn = [made.sample(rng) for _ in range(25)]
    index = index_matrix(made, drawn)
    assert archs_of(made, index) == drawn
    assert table.batch(index).tolist() == [getattr(made.cost, metric)(a) for a in drawn]
    assert table(drawn[0]) == getattr(made.cost, metric)(drawn[0])


@pytest.mark.parametrize(
    ("name", "metric", "order"),
    [
        ("nb201", "params", 1),
        ("nb201", "macs", 1),
        ("micro-nb201", "params", 1),
        ("mlp", "params", 2),
        ("mlp", "macs", 2),
        ("language", "macs", 2),
    ],
)
def test_the_order_of_a_table_is_that_of_the_space(name, metric, order):
    made = space(name)
    table = CostTable.fit(made, metric, order)
    for seed in range(15):
        arch = made.sample(Random(seed))
        assert table(arch) == getattr(made.cost, metric)(arch)
    if order > 1:
        with pytest.raises(SpaceError, match=f"{metric} of .* is not a sum of terms of order 1: the table gives"):
            CostTable.fit(made, metric, order - 1)


# --- memory and features -------------------------------------------------------------------------------------------


@each_built
def test_activation_memory_does_not_depend_on_weights_or_history_and_grows_with_the_batch(name):
    made = space(name)
    arch = archs(name)[0]
    net = made.cost.build_meta(arch)
    first = inference_bytes(net, made.example)
    assert first == inference_bytes(made.cost.build_meta(arch), made.example) == made.cost.memory_bytes(arch)
    assert first >= made.example[:1].nbytes
    assert inference_bytes(net, made.example, 4) > 2.5 * first  # a language model's positions are there once
    trained = training_bytes(net, made.example, 4)
    assert trained == training_bytes(net, made.example, 4)
    assert trained >= inference_bytes(net, made.example, 4)
    assert all(p.grad is None for p in net.parameters())
    assert net.training


@each_built
def test_layer_features_account_for_all_macs(name):
    made = space(name)
    for arch in archs(name)[:2]:
        net = made.cost.build_meta(arch)
        assert layer_features(net, made.example).reshape(-1, 3)[:, 1].sum() == count_macs(net, made.example)


@each_built
def test_costs_leave_the_network_in_the_mode_it_was_in(name):
    net = space(name).cost.build_meta(archs(name)[0])
    for training in (True, False):
        net.train(training)
        count_macs(net, space(name).example)
        inference_bytes(net, space(name).example)
        assert net.training is training
    assert count_params(net) == space(name).cost.params(archs(name)[0])


def test_equal_architectures_are_counted_once(monkeypatch):
    made = MODULES["mlp"]()
    calls = []
    build = made.build_meta
    made.cost.build_meta = lambda arch: calls.append(1) or build(arch)
    arch = made.sample(Random(0))
    assert len({made.cost.params(dict(reversed(arch.items()))) for _ in range(3)} | {made.cost.params(arch)}) == 1
    assert len(calls) == 1
    assert np.isfinite(made.cost.macs(arch))
    assert len(calls) == 1  # another cost of the same network needs no second one
    assert np.isfinite(made.cost.macs(made.sample(Random(1))))
    assert len(calls) == 2
