"""NASNet's operations, cells and stacks: published and derived counts, shapes, drop-path, auxiliary classifier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from archipel.core.errors import ShapeError, SpaceError, UsageError
from archipel.cost.model import count_params
from archipel.nets.drop_path import DropPath, ScheduledDropPath
from archipel.nets.nasnet import (
    AuxiliaryHead,
    Cell,
    NASNet,
    State,
    combine,
    filters_of,
    match,
    nasnet_a_large,
    nasnet_a_mobile,
    training_loss,
)
from archipel.nets.nasnet_genotype import NASNET_A, Block, CellGenotype, Genotype, canonical_cell, parse
from archipel.nets.nasnet_ops import OPS, FactorizedReduction, separable

torch.set_num_threads(1)
SMALL = parse(
    "normal: sep3x3(1)+identity(0) max3x3(2)+conv1x1(1); reduction: avg3x3(0)&sep3x3(1) identity(0)+dil3x3(2)"
)


def cell_of(text):
    return parse(f"normal: {text}; reduction: identity(0)+identity(1)").normal


def count_multiplications(net, shape):
    """Multiply-accumulates of the convolutions and the linear layers, by hooks."""
    total = 0

    def hook(layer, _, y):
        nonlocal total
        weights = layer.weight.shape[1:].numel()
        total += weights * y[0].numel()

    handles = [m.register_forward_hook(hook) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.forward = lambda x: x
    with torch.no_grad():
        net.eval()(torch.empty(1, *shape, device="meta"))
    for m in norms:
        del m.forward
    for h in handles:
        h.remove()
    return total


# --- golden numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "params", "millions_of_macs", "size"),
    [(nasnet_a_large, 88_753_150, 23_800, 331), (nasnet_a_mobile, 5_289_978, 564, 224)],
    ids=["large", "mobile"],
)
def test_nasnet_a_has_the_published_parameters_and_multiply_adds(make, params, millions_of_macs, size):
    with torch.device("meta"):
        net = make()
    assert count_params(net) == params
    macs = count_multiplications(net, (3, size, size)) / 1e6
    assert macs == pytest.approx(millions_of_macs, rel=0.002)  # published with three figures


def test_nasnet_a_6_at_768_has_the_published_3_3_million_parameters_on_cifar():
    repeats, filters = filters_of("6@768")
    with torch.device("meta"):
        net = NASNet(NASNET_A, 3, 10, filters, repeats)
    assert net.out_channels == 768
    assert round(count_params(net) / 1e6, 1) == 3.3


@pytest.mark.parametrize(("cell", "total"), [("normal", 27_016), ("reduction", 34_056)])
def test_the_separables_of_a_cell_body_at_44_filters_have_the_derived_parameters(cell, total):
    genotype = getattr(NASNET_A, cell)
    F44 = [State(44, 0)] * 2
    body = Cell(genotype, *F44, 44, stride=1 + (cell == "reduction"))
    ops = [op for block in genotype.blocks for op in block.ops]
    assert sum(count_params(path) for op, path in zip(ops, body.paths) if op.startswith("sep")) == total


@pytest.mark.parametrize("k", [3, 5, 7])
def test_a_separable_convolution_is_applied_twice(k):
    C = 6
    layers = list(separable(C, C, 2, k))
    assert count_params(nn.Sequential(*layers)) == 2 * (C * k * k + C * C + 2 * C)
    assert [type(m).__name__ for m in layers] == ["ReLU", "Conv2d", "Conv2d", "BatchNorm2d"] * 2
    assert [m.stride[0] for m in layers if isinstance(m, nn.Conv2d)] == [2, 1, 1, 1]


def test_penultimate_channels_are_24_filters():
    assert filters_of("6@4032") == (6, 168)
    assert NASNET_A.normal.width == 6
    assert NASNET_A.reduction.width == 4


# --- operations ----------------------------------------------------------------------------------------------------


def test_there_are_thirteen_operations():
    assert len(OPS) == 13


@pytest.mark.parametrize("op", OPS)
def test_an_operation_keeps_or_halves_the_size_rounding_up_and_sets_the_width(op):
    for h, w in ((8, 8), (7, 5), (1, 1)):
        x = torch.randn(2, 4, h, w)
        assert OPS[op](4, 4, 1)(x).shape == (2, 4, h, w)
        assert OPS[op](4, 6, 1)(x).shape == (2, 6, h, w)
        assert OPS[op](4, 6, 2)(x).shape == (2, 6, -(-h // 2), -(-w // 2))


@pytest.mark.parametrize("op", OPS)
def test_an_operation_leaves_its_input_as_it_is(op):
    x = torch.randn(2, 4, 6, 6)
    before = x.clone()
    OPS[op](4, 6, 2)(x)
    assert torch.equal(x, before)  # other operations read the same state: no in-place ReLU


def test_identity_is_free_where_shapes_match_and_pooling_averages_only_the_image():
    assert count_params(OPS["identity"](4, 4, 1)) == 0
    ones = torch.ones(1, 4, 5, 5)
    torch.testing.assert_close(OPS["avg3x3"](4, 4, 2)(ones), torch.ones(1, 4, 3, 3))


def test_factorised_convolutions_are_two_strips_and_the_dilated_one_reaches_two_pixels_far():
    for op, k in (("conv1x3_3x1", 3), ("conv1x7_7x1", 7)):
        kernels = [m.kernel_size for m in OPS[op](4, 4, 2) if isinstance(m, nn.Conv2d)]
        assert kernels == [(1, k), (k, 1)]
    x = torch.zeros(1, 1, 9, 9, requires_grad=True)
    dilated = OPS["dil3x3"](1, 1, 1)[1]
    dilated(x)[0, 0, 4, 4].backward()
    rows, columns = x.grad[0, 0].nonzero().T
    assert sorted(set(rows.tolist())) == sorted(set(columns.tolist())) == [2, 4, 6]


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (1, 1)])
def test_a_factorised_reduction_sees_every_other_pixel_in_either_half(size):
    h, w = size
    reduction = FactorizedReduction(1, 3)
    for conv in (reduction.even, reduction.odd):
        nn.init.ones_(conv.weight)
    reduction.norm = nn.Identity()
    image = torch.arange(1.0, h * w + 1).view(1, 1, h, w)
    y = reduction(image)
    assert y.shape == (1, 3, -(-h // 2), -(-w // 2))
    assert torch.equal(y[0, 0], image[0, 0, ::2, ::2])
    odd = F.pad(image, (0, 1, 0, 1))[0, 0, 1::2, 1::2]
    assert torch.equal(y[0, 1], odd)
    assert torch.equal(y[0, 2], odd)


# --- cells ---------------------------------------------------------------------------------------------------------


def test_a_normal_cell_keeps_the_size_and_puts_out_filters_times_its_unused_states():
    cell = cell_of("sep3x3(1)+identity(0) max3x3(2)+conv1x1(1) avg3x3(0)+avg3x3(0)")  # unused: 3, 4
    net = Cell(cell, State(5, 0), State(7, 0), filters=4)
    y = net(torch.randn(2, 5, 7, 6), torch.randn(2, 7, 7, 6))
    assert cell.unused == (3, 4)
    assert y.shape == (2, 2 * 4, 7, 6)
    assert net.out == State(8, 0)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3)])
def test_a_reduction_cell_halves_the_size_rounding_up(size):
    h, w = size
    cell = cell_of("sep3x3(1)+identity(0) max3x3(2)+conv1x1(1) identity(3)+sep5x5(0)")
    net = Cell(cell, State(5, 0), State(7, 0), filters=4, stride=2)
    y = net(torch.randn(2, 5, h, w), torch.randn(2, 7, h, w))
    assert y.shape == (2, 4, -(-h // 2), -(-w // 2))


def test_only_operations_on_the_cells_inputs_stride_in_a_reduction_cell():
    cell = cell_of("conv3x3(1)+conv3x3(0) conv3x3(2)+conv3x3(1)")
    net = Cell(cell, State(4, 0), State(4, 0), filters=4, stride=2)
    strides = [path[0][1].stride[0] for path in net.paths]
    assert strides == [2, 2, 1, 2]


def test_unused_inputs_of_a_reduction_cell_are_reduced_before_they_are_concatenated():
    cell = cell_of("sep3x3(1)+max3x3(1)")  # state 0 is unused
    net = Cell(cell, State(6, 0), State(6, 0), filters=4, stride=2)
    assert cell.output == (0, 2)
    assert net(torch.randn(2, 6, 5, 5), torch.randn(2, 6, 5, 5)).shape == (2, 8, 3, 3)


def test_concatenation_doubles_a_state_which_operations_bring_back_to_the_filters():
    cell = cell_of("identity(1)&identity(0) identity(2)+max3x3(2) avg3x3(0)&avg3x3(1)")
    net = Cell(cell, State(4, 0), State(4, 0), filters=4)
    x0, x1 = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    assert cell.width == 3  # state 3 once, state 4 twice
    assert net(x0, x1).shape == (2, 12, 6, 6)
    y = combine(net.match_current(x1), x0, "concat")
    assert y.shape == (2, 8, 6, 6)


def test_a_cell_computes_its_blocks_and_concatenates_the_unused_states():
    cell = cell_of("identity(1)+avg3x3(0) identity(2)+max3x3(1)")
    net = Cell(cell, State(3, 0), State(5, 0), filters=3).eval()
    x0, x1 = torch.randn(2, 3, 6, 6), torch.randn(2, 5, 6, 6)
    h1 = net.match_current(x1)
    h2 = h1 + F.avg_pool2d(x0, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(net(x0, x1), h2 + F.max_pool2d(h1, 3, 1, 1))


def test_the_previous_state_is_matched_by_size_width_or_not_at_all():
    assert isinstance(match(State(8, 0), 4, 1), FactorizedReduction)
    assert isinstance(match(State(4, 1), 4, 1), nn.Identity)
    assert [type(m).__name__ for m in match(State(8, 1), 4, 1)] == ["ReLU", "Conv2d", "BatchNorm2d"]
    with pytest.raises(ShapeError, match="halved 0 times cannot meet one halved 2 times"):
        match(State(4, 0), 4, 2)


# --- stacks --------------------------------------------------------------------------------------------------------


def test_the_cifar_stack_is_normal_cells_with_two_reductions_that_double_the_filters():
    net = NASNet(SMALL, 3, 10, filters=4, repeats=2)
    kinds = ["reduction" if c.genotype is SMALL.reduction else "normal" for c in net.cells]
    assert kinds == ["normal"] * 2 + ["reduction"] + ["normal"] * 2 + ["reduction"] + ["normal"] * 2
    assert [c.out.level for c in net.cells] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert [c.out.channels // c.genotype.width for c in net.cells] == [4, 4, 8, 8, 8, 16, 16, 16]
    assert net.stem[0].out_channels == 12
    assert net(torch.randn(2, 3, 9, 7)).shape == (2, 10)


def test_the_imagenet_stack_starts_with_two_reduction_cells_of_a_quarter_and_half_the_filters():
    net = NASNet(SMALL, 3, 10, filters=8, repeats=1, stack="imagenet")
    assert [c.genotype is SMALL.reduction for c in net.cells] == [True, True, False, True, False, True, False]
    assert [c.out.channels // c.genotype.width for c in net.cells] == [2, 4, 8, 16, 16, 32, 32]
    assert net(torch.randn(2, 3, 65, 47)).shape == (2, 10)


def test_the_cell_after_a_reduction_may_skip_the_reductions_input():
    plain, skipping = (NASNet(SMALL, 3, 10, 4, 2, skip_reduction_input=s) for s in (False, True))
    assert plain.back == [0, 1, 1, 1, 1, 1, 1, 1]
    assert skipping.back == [0, 1, 1, 2, 1, 1, 2, 1]
    x = torch.randn(2, 3, 8, 8)
    skipping.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain.eval()(x), skipping.eval()(x))


def test_both_cells_of_the_genotype_matter():
    wide = Genotype(SMALL.normal, cell_of("sep7x7(0)+sep7x7(1)"))
    assert count_params(NASNet(SMALL, 1, 10, 4, 1)) != count_params(NASNet(wide, 1, 10, 4, 1))


def test_drop_path_follows_every_operation_but_identity_and_grows_with_depth():
    net = NASNet(SMALL, 1, 10, filters=4, repeats=1)
    assert not any(isinstance(p, DropPath) for p in net.cells[2].paths[1].modules())  # the identity of block 0
    fractions = [m.layer_fraction for m in net.modules() if isinstance(m, DropPath)]
    assert fractions == sorted(fractions)
    assert {round(f, 3) for f in fractions} == {0.2, 0.4, 0.6, 0.8, 1.0}  # five cells
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8)
    schedule = ScheduledDropPath(net.train(), 0.5, total_steps=1)
    assert torch.equal(net(x), net(x))  # step 0: nothing is dropped
    schedule()
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


def test_the_auxiliary_classifier_sits_before_the_second_reduction_and_weighs_four_tenths():
    torch.manual_seed(0)
    net = NASNet(SMALL, 1, 10, filters=4, repeats=2, image_size=(9, 8))
    assert net.tap == 4  # normal normal reduction normal [normal] reduction normal normal
    x, y = torch.randn(3, 1, 9, 8), torch.tensor([1, 2, 3])
    net.eval()
    logits, auxiliary = net.with_auxiliary(x)
    torch.testing.assert_close(logits, net(x))
    expected = F.cross_entropy(logits, y, label_smoothing=0.1) + 0.4 * F.cross_entropy(
        auxiliary, y, label_smoothing=0.1
    )
    torch.testing.assert_close(training_loss(net, x, y), expected)


def test_the_auxiliary_head_of_nasnet_a_large_ends_in_one_pixel_of_768_channels():
    with torch.device("meta"):
        head = nasnet_a_large(image_size=(331, 331)).auxiliary
    assert isinstance(head, AuxiliaryHead)
    assert head[2].in_channels == 2016
    assert head[5].kernel_size == (6, 6)  # 21 x 21 pooled 5 by 3
    assert AuxiliaryHead(3, (2, 1), 10)(torch.zeros(2, 3, 2, 1)).shape == (2, 10)


def test_a_network_without_auxiliary_classifier_says_how_to_get_one():
    with pytest.raises(UsageError, match="image_size"):
        NASNet(SMALL, 1, 10, 4, 1).with_auxiliary(torch.zeros(1, 1, 8, 8))


def test_the_network_learns_through_all_of_its_live_parameters():
    torch.manual_seed(0)
    net = NASNet(SMALL, 1, 10, filters=4, repeats=1, image_size=(8, 8))
    training_loss(net, torch.randn(8, 1, 8, 8), torch.arange(8)).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


# --- genotypes -----------------------------------------------------------------------------------------------------


def test_nasnet_a_is_the_published_genotype():
    assert [(b.ops, b.inputs) for b in NASNET_A.normal.blocks] == [
        (("sep5x5", "sep3x3"), (1, 0)), (("sep5x5", "sep3x3"), (0, 0)), (("avg3x3", "identity"), (1, 0)),
        (("avg3x3", "avg3x3"), (0, 0)), (("sep3x3", "identity"), (1, 1)),
    ]  # fmt: skip
    assert [(b.ops, b.inputs) for b in NASNET_A.reduction.blocks] == [
        (("sep5x5", "sep7x7"), (1, 0)), (("max3x3", "sep7x7"), (1, 0)), (("avg3x3", "sep5x5"), (1, 0)),
        (("identity", "avg3x3"), (3, 2)), (("sep3x3", "max3x3"), (2, 1)),
    ]  # fmt: skip
    assert (NASNET_A.normal.output, NASNET_A.reduction.output) == ((0, 2, 3, 4, 5, 6), (3, 4, 5, 6))
    # Both concatenate one state more than the rule of unused states gives:
    assert (NASNET_A.normal.unused, NASNET_A.reduction.unused) == ((2, 3, 4, 5, 6), (4, 5, 6))


def test_text_and_genotype_are_inverse_to_each_other():
    for genotype in (NASNET_A, SMALL):
        assert parse(str(genotype)) == genotype


def test_canonical_form_tells_two_uses_of_one_block_from_one_use_of_two_equal_blocks():
    twice = "sep3x3(0)+max3x3(1) sep3x3(0)+max3x3(1) avg3x3(2)+identity(2)"
    both = "sep3x3(0)+max3x3(1) sep3x3(0)+max3x3(1) avg3x3(2)+identity(3)"
    swapped = "max3x3(1)+sep3x3(0) sep3x3(0)+max3x3(1) identity(2)+avg3x3(3)"
    assert canonical_cell(cell_of(twice)) != canonical_cell(cell_of(both))
    assert canonical_cell(cell_of(both)) == canonical_cell(cell_of(swapped))


# --- bad input -----------------------------------------------------------------------------------------------------


def test_a_block_that_refers_to_a_future_state_is_refused():
    with pytest.raises(SpaceError, match=r"Block 0 \(sep3x3\(2\)\+identity\(0\)\) refers to state 2.*states 0 to 1 do"):
        CellGenotype((Block((2, 0), ("sep3x3", "identity")),))
    with pytest.raises(SpaceError, match="refers to state -1"):
        CellGenotype((Block((0, -1), ("sep3x3", "identity")),))


def test_states_of_different_widths_cannot_be_added_nor_of_different_sizes_concatenated():
    with pytest.raises(ShapeError, match=r"\(1, 2, 4, 4\) and \(1, 3, 4, 4\) cannot be combined by 'add'"):
        combine(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), "add")
    assert combine(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4), "concat").shape == (1, 5, 4, 4)
    with pytest.raises(ShapeError, match="cannot be combined by 'concat'"):
        combine(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2), "concat")


@pytest.mark.parametrize("name", ["6@4000", "6@0", "4@25"])
def test_penultimate_channels_that_are_no_multiple_of_24_are_refused(name):
    with pytest.raises(UsageError, match="multiple of 24, not"):
        filters_of(name)


def test_other_malformed_names_and_genotypes_are_refused():
    with pytest.raises(UsageError, match="named N@P"):
        filters_of("large")
    with pytest.raises(SpaceError, match="normal: BLOCKS; reduction: BLOCKS"):
        parse("sep3x3(1)+identity(0)")
    with pytest.raises(SpaceError, match=r"not 'sep3x3\(1\)-identity\(0\)'"):
        parse("normal: sep3x3(1)-identity(0); reduction: identity(0)+identity(1)")
    with pytest.raises(SpaceError, match="Did you mean: sep3x3"):
        parse("normal: sep3x4(1)+identity(0); reduction: identity(0)+identity(1)")
    with pytest.raises(SpaceError, match="output states, as in"):
        parse("normal: sep3x3(1)+identity(0) -> all; reduction: identity(0)+identity(1)")
    with pytest.raises(SpaceError, match=r"distinct states from 0 to 2, not \(3,\)"):
        parse("normal: sep3x3(1)+identity(0) -> 3; reduction: identity(0)+identity(1)")
    with pytest.raises(SpaceError, match="at least one block"):
        parse("normal: ; reduction: identity(0)+identity(1)")
    with pytest.raises(SpaceError, match="combines by one of"):
        Block((0, 1), ("identity", "identity"), "multiply")
    with pytest.raises(SpaceError, match="two inputs and two operations"):
        Block((0, 1, 1), ("identity", "identity"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stack": "mnist"}, "a stack is one of"),
        ({"filters": 6, "stack": "imagenet"}, "a positive multiple of 4"),
        ({"repeats": 0}, "N must be positive"),
        ({"filters": 0}, "F positive"),
    ],
)
def test_stacks_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        NASNet(SMALL, 3, 10, **{"filters": 4, "repeats": 1, **wrong})


def test_a_factorised_reduction_to_one_channel_is_refused():
    with pytest.raises(ShapeError, match="needs 2 channels, not 1"):
        FactorizedReduction(4, 1)
