from random import Random

import pytest
import torch
from torch import nn

from archipel.core.choice import Width
from archipel.core.errors import SpaceError
from archipel.search.live_update import LiveUpdate
from archipel.spaces.layers import ElasticBatchNorm2d
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.quantised import (
    PRECISIONS,
    Clip,
    Precision,
    QuantisedConv2d,
    QuantisedLinear,
    bit_operations,
    quantise_activation,
    quantise_weight,
)


def net():
    first, second = Precision("b0"), Precision("b1", [(2, 4), (4, 4), (32, 32)])
    w = Width("w", [2, 4])
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        QuantisedConv2d(2, w, first),
        ElasticBatchNorm2d(w),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        QuantisedLinear(w, 3, second),
    )


@pytest.fixture
def space():
    return ModuleSpace(net, torch.zeros(2, 1, 4, 4))


def test_the_papers_precisions_give_the_space_its_size(space):
    assert PRECISIONS == ((1, 2), (2, 2), (1, 4), (2, 4), (3, 4), (4, 4))
    assert space.size == 6 * 3 * 2
    assert space.by_name["b0"].options == ("w1a2", "w1a4", "w2a2", "w2a4", "w3a4", "w4a4")


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_weights_take_two_to_the_bits_equally_distant_values_within_their_range(bits):
    w = torch.randn(500, generator=torch.Generator().manual_seed(0))
    levels = quantise_weight(w, bits).unique()
    assert len(levels) == 2**bits
    assert levels.abs().max() <= w.abs().max() + 1e-6
    if bits > 1:
        steps = levels.diff()
        torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-4, atol=1e-6)
    assert (quantise_weight(w, 32) - w).abs().max() == 0


def test_more_bits_are_closer_to_the_squashed_weight():
    w = torch.linspace(-1, 1, 201)
    target = torch.tanh(w) / torch.tanh(torch.tensor(1.0))
    errors = [(quantise_weight(w, b) - target).abs().max().item() for b in (2, 3, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 1 / 255 + 1e-6  # half of a step of 2 / 255


def test_activations_are_clipped_rounded_and_their_gradients_go_where_pact_says():
    x = torch.tensor([-1.0, 0.2, 0.4, 2.0, 3.5, 9.0], requires_grad=True)
    clip = torch.tensor(3.0, requires_grad=True)
    y = quantise_activation(x, 2, clip)
    assert y.tolist() == [0.0, 0.0, 0.0, 2.0, 3.0, 3.0]
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert clip.grad.item() == 2.0  # the two that were cut
    signed = quantise_activation(torch.tensor([-9.0, -1.0, 1.0, 9.0]), 2, torch.tensor(3.0), signed=True)
    torch.testing.assert_close(signed, torch.tensor([-3.0, -1.0, 1.0, 3.0]))


def test_all_precisions_share_one_float_weight(space):
    supernet = space.supernet()
    x = torch.randn(4, 1, 4, 4)
    weights = [n for n, p in supernet.named_parameters() if p.ndim > 1]
    assert weights == ["net.0.weight", "net.2.weight", "net.7.weight"]
    with torch.no_grad():
        for m in supernet.modules():
            if isinstance(m, Clip):
                m.clip.fill_(0.5)
    outputs = [supernet.activate({"b0": b, "b1": "w4a4", "w": 4}).eval()(x) for b in ("w1a2", "w2a2", "w4a4")]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


def test_extraction_computes_what_the_supernet_does_and_building_starts_the_clips_anew(space):
    rng, supernet = Random(0), space.supernet().eval()
    with torch.no_grad():
        for m in supernet.modules():
            if isinstance(m, Clip):
                m.clip.fill_(0.5)
    x = torch.randn(4, 1, 4, 4)
    for _ in range(10):
        arch = space.sample(rng)
        torch.testing.assert_close(supernet.activate(arch)(x), supernet.extract(arch)(x), rtol=1e-5, atol=1e-6)
    built = space.build({"b0": "w2a4", "b1": "w2a4", "w": 2})
    assert [m.clip.item() for m in built.modules() if isinstance(m, Clip)] == [6.0, 6.0]
    assert sum(p.numel() for p in built.parameters()) == space.cost.params({"b0": "w2a4", "b1": "w2a4", "w": 2})


def test_only_the_clip_of_the_drawn_bits_and_the_drawn_slice_learn(space):
    supernet = space.supernet()
    update = LiveUpdate(supernet, torch.optim.SGD(supernet.parameters(), 0.1, momentum=0.9, weight_decay=0.1))
    with torch.no_grad():
        for m in supernet.modules():
            if isinstance(m, Clip):
                m.clip.fill_(0.1)
    rng, x = Random(0), torch.randn(8, 1, 4, 4)
    moved = set()
    for _ in range(12):
        arch = space.sample(rng)
        before = {n: p.detach().clone() for n, p in supernet.named_parameters()}
        update.optimizer.zero_grad(set_to_none=True)
        supernet.activate(arch)(x).square().sum().backward()
        update.mark()
        update.step()
        live = supernet.live_slices()
        for n, p in supernet.named_parameters():
            rest = torch.ones_like(p, dtype=torch.bool)
            if n in live:
                rest[live[n]] = False
            assert torch.equal(p[rest], before[n][rest])
            if not torch.equal(p, before[n]):
                moved.add(n)
    assert {n for n in moved if "clip" in n} == {
        "net.2.clips.2.clip", "net.2.clips.4.clip", "net.7.clips.4.clip",
    }  # fmt: skip


def test_bit_operations_are_macs_times_bits_by_hand(space):
    net = space.build_meta({"b0": "w2a4", "b1": "w32a32", "w": 4})
    example = torch.zeros(2, 1, 4, 4, device="meta")
    stem, conv, linear = 16 * 2 * 9, 16 * 4 * 2 * 9, 4 * 3
    assert bit_operations(net, example) == stem * 1024 + conv * 8 + linear * 1024


def test_impossible_precisions_are_refused():
    with pytest.raises(SpaceError, match="pairs of bits from 1 to 32, not \\(0, 4\\)"):
        Precision("b", [(0, 4)])
    with pytest.raises(SpaceError, match="activations need at least 2 bits"):
        Precision("b", [(1, 1)])
