"""SharpSepConv and the sets of operations that are made of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from archipel.core.errors import ShapeError, SpaceError
from archipel.cost.model import count_params
from archipel.spaces.darts import DartsSpace
from archipel.spaces.operations import Zero, sep_conv
from archipel.spaces.sharp_operations import OPERATIONS, SHARP_PRIMITIVES, SharpSepConv, resizable_pool

torch.set_num_threads(1)


def test_golden_numbers_of_parameters():
    assert count_params(SharpSepConv(16, 16, 3)) == count_params(sep_conv(16, 3, 1)) == 864
    assert count_params(SharpSepConv(16, 32, 3)) == 2096


@pytest.mark.parametrize(("c_in", "c_out", "k", "mult"), [(3, 5, 3, 1), (4, 4, 5, 4), (6, 2, 7, 2)])
def test_parameters_follow_the_formula(c_in, c_out, k, mult):
    mid = mult * c_out
    expected = c_in * k * k + c_in * mid + 2 * mid + mid * k * k + mid * c_out + 2 * c_out
    assert count_params(SharpSepConv(c_in, c_out, k, mult=mult)) == expected
    assert count_params(SharpSepConv(c_in, c_out, k, c_mid=mid)) == expected


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_padding_keeps_the_size_and_a_stride_halves_it(kernel, dilation):
    x = torch.randn(2, 3, 9, 8)
    assert SharpSepConv(3, 5, kernel, 1, dilation)(x).shape == (2, 5, 9, 8)
    assert SharpSepConv(3, 5, kernel, 2, dilation)(x).shape == (2, 5, 5, 4)
    with pytest.raises(ShapeError, match="kernel must be odd, not 4"):
        SharpSepConv(3, 5, 4)


def test_only_the_first_half_has_the_stride_and_the_dilation():
    convs = [m for m in SharpSepConv(4, 6, 3, 2, 2, mult=4) if isinstance(m, nn.Conv2d)]
    assert [(c.stride[0], c.dilation[0], c.groups, c.out_channels) for c in convs] == [
        (2, 2, 4, 4),
        (1, 1, 1, 24),
        (1, 1, 24, 24),
        (1, 1, 1, 6),
    ]


def test_the_nine_primitives_differ_in_their_middle_and_dilation():
    ops = OPERATIONS["sharp"](True, 0.0)
    assert set(ops) == set(SHARP_PRIMITIVES)
    assert len(ops) == 9
    x = torch.randn(2, 4, 8, 8)
    middles = {}
    for label, make in ops.items():
        for stride in (1, 2):
            assert make(4, stride)(x).shape == (2, 4, 8 // stride, 8 // stride)
        op = make(4, 1)
        if isinstance(op, SharpSepConv):
            middles[label] = (op[2].out_channels, op[1].dilation[0])
            assert not any(p.numel() for m in op if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert middles == {
        "sep_conv_3x3": (4, 1),
        "dil_conv_3x3": (4, 2),
        "flood_conv_3x3": (16, 1),
        "dil_flood_conv_3x3": (16, 2),
        "choke_conv_3x3": (32, 1),
        "dil_choke_conv_3x3": (32, 2),
    }
    assert isinstance(ops["none"](4, 1), Zero)


def test_all_convolutions_of_the_darts_variant_have_the_depth_of_a_separable_one():
    sharp, darts = OPERATIONS["sharp-darts"](False, 0.0), OPERATIONS["darts"](False, 0.0)
    assert list(sharp) == list(darts)

    def depth(op: nn.Module) -> int:
        return sum(isinstance(m, nn.Conv2d) for m in op.modules())

    assert [depth(sharp[n](4, 1)) for n in ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")] == [4] * 4
    assert depth(darts["dil_conv_3x3"](4, 1)) == 2


def test_pools_change_channels_by_a_convolution_only_where_they_must():
    x = torch.randn(2, 4, 8, 8)
    assert isinstance(resizable_pool(nn.MaxPool2d, 4, 4, 2), nn.MaxPool2d)
    assert torch.equal(resizable_pool(nn.MaxPool2d, 4, 4, 2)(x), nn.functional.max_pool2d(x, 3, 2, 1))
    changed = resizable_pool(nn.MaxPool2d, 4, 6, 2)
    assert [type(m) for m in changed] == [nn.MaxPool2d, nn.Conv2d, nn.BatchNorm2d]
    assert changed(x).shape == (2, 6, 4, 4)


def test_cells_of_darts_take_the_sharp_sets():
    space = DartsSpace((1, 8, 8), 2, C=4, layers=3, nodes=2, operations="sharp")
    assert space.by_name["normal.e02"].options == (
        "max_pool_3x3",
        "skip_connect",
        *(label for label in SHARP_PRIMITIVES if "conv" in label),
    )
    some = DartsSpace((1, 8, 8), 2, C=4, layers=3, nodes=2, operations="sharp", ops=("skip_connect", "flood_conv_3x3"))
    assert some.by_name["normal.e02"].options == ("skip_connect", "flood_conv_3x3")
    with pytest.raises(SpaceError, match="Did you mean: sharp"):
        DartsSpace((1, 8, 8), 2, operations="shrp")
    with pytest.raises(SpaceError, match="no operation 'flood_conv_3x3'"):
        DartsSpace((1, 8, 8), 2, ops=("flood_conv_3x3",))


def test_drop_path_ends_every_operation_but_the_identity():
    from archipel.spaces.operations import DropPath

    for name in ("sharp", "sharp-darts"):
        ops = OPERATIONS[name](False, 0.2)
        last = {label: list(make(4, 1).modules())[-1] for label, make in ops.items()}
        dropping = {label for label, m in last.items() if isinstance(m, DropPath)}
        assert dropping == set(ops) - {"skip_connect"} - ({"none"} if name == "sharp" else set())
