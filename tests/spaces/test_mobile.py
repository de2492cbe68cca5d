"""The elastic convolutional spaces for images and for signals."""

from __future__ import annotations

from functools import partial
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import SpaceError
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.mobile import SqueezeExcite, even_widths, halvings, mobile_space
from archipel.spaces.signal import signal_space


def shapes_along(space, arch, layer=nn.Conv2d):
    """Spatial shape after each convolution."""
    seen = []
    net = space.build_meta(arch).eval()
    for m in net.modules():
        if isinstance(m, layer):
            m.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[2:])))
    with torch.no_grad():
        net(torch.empty_like(space.example, device="meta"))
    return seen


@pytest.mark.parametrize(
    ("shape", "stages", "first", "last"),
    [
        ((1, 8, 8), 2, (8, 8), (4, 4)),
        ((1, 28, 28), 3, (28, 28), (7, 7)),
        ((3, 32, 32), 4, (32, 32), (4, 4)),
        ((3, 64, 48), 4, (64, 48), (8, 6)),
        ((3, 224, 224), 5, (112, 112), (7, 7)),
        ((3, 4, 4), 1, (4, 4), (4, 4)),
    ],
)
def test_the_number_of_stages_follows_from_the_size_of_the_images(shape, stages, first, last):
    space = mobile_space(shape, 10)
    assert sum(d.name.endswith(".depth") for d in space.decisions) == stages
    seen = shapes_along(space, space.sample(Random(0)))
    assert (seen[0], seen[-1]) == (first, last)


def test_kernels_grow_with_the_images():
    def kernels(shape):
        return next(d.options for d in mobile_space(shape, 10).decisions if d.name.endswith("kernel"))

    assert kernels((1, 8, 8)) == (3, 5)
    assert kernels((1, 28, 28)) == (3, 5, 7)


def test_blocks_after_the_first_of_a_stage_are_residual():
    space = mobile_space((1, 8, 8), 10)
    net = space.supernet().net
    assert [[b.residual for b in stage.blocks] for stage in net.stages] == [[False, True, True]] * 2


def test_closed_blocks_have_no_decisions():
    space = mobile_space((1, 8, 8), 10)
    arch = space.sample(Random(3))
    for stage in range(2):
        for block in range(3):
            is_open = block < arch[f"stage{stage}.depth"]
            assert (f"stage{stage}.{block}.kernel" in arch) == is_open


def test_squeeze_and_excitation_gates_channels_by_their_averages():
    se = SqueezeExcite(2, 8)
    x = torch.randn(3, 8, 5, 4)
    y = se(x)
    gate = (y / x)[..., 0, 0]
    torch.testing.assert_close(y, x * gate[..., None, None])
    assert (gate >= 0).all()
    assert (gate <= 1).all()
    assert torch.allclose(se.gate(x.mean((2, 3))), gate, atol=1e-4)
    assert SqueezeExcite(1, 8)(torch.randn(3, 8, 7)).shape == (3, 8, 7)


def test_the_largest_network_has_all_channels_and_the_smallest_half():
    space = mobile_space((1, 8, 8), 10, width=16, ratios=(0.5, 1.0))
    large = {d.name: d.options[-1] for d in space.decisions}
    small = {d.name: d.options[0] for d in space.decisions}
    small = space.complete(small, Random(0))
    assert large["stem.width"] == 16
    assert small["stem.width"] == 8
    assert space.cost.params(large) > 4 * space.cost.params(small)


@pytest.mark.parametrize("make", [partial(mobile_space, (1, 8, 8), 10), partial(signal_space, (1, 40), 10)])
def test_stages_can_be_chosen_but_must_fit(make):
    assert sum(d.name.endswith(".depth") for d in make(stages=1).decisions) == 1
    for stages in (0, 9):
        with pytest.raises(SpaceError, match=f"{stages} stages do not fit inputs of side"):
            make(stages=stages)
    with pytest.raises(SpaceError, match="1 <= smallest <= largest"):
        make(depth=(0, 2))
    with pytest.raises(SpaceError, match="odd positive integers"):
        make(kernels=(2, 4))


def test_inputs_of_another_kind_are_refused():
    with pytest.raises(SpaceError, match=r"mobile: needs images \(C, H, W\), not inputs of shape \(13,\)"):
        mobile_space((13,), 3)
    with pytest.raises(SpaceError, match=r"signal: needs signals \(C, T\)"):
        signal_space((1, 8, 8), 3)


@pytest.mark.parametrize(("shape", "stages", "last"), [((1, 40), 4, (5,)), ((40, 64), 5, (4,)), ((1, 500), 5, (16,))])
def test_stages_of_a_signal_halve_its_time_axis(shape, stages, last):
    space = signal_space(shape, 10)
    assert sum(d.name.endswith(".depth") for d in space.decisions) == stages
    assert shapes_along(space, space.sample(Random(0)), nn.Conv1d)[-1] == last


def test_widths_are_multiples_of_four_and_distinct():
    assert even_widths(4, (0.25, 0.5, 1.0)) == (4,)
    assert even_widths(40, (0.5, 0.75, 1.0)) == (20, 28, 40)
    assert [halvings(s) for s in (1, 4, 7, 8, 16)] == [0, 0, 0, 1, 2]


def test_a_drawn_network_learns_digits(digits):
    space = mobile_space((1, 8, 8), 10)
    net = space.build(space.sample(Random(1)))
    train(net, digits.train, "classification", Recipe(epochs=3, batch_size=32, lr=1e-2), seed=0)
    assert evaluate(net, digits.val, "classification")["accuracy"] > 0.9
