"""NAS-Bench-201 as networks: published sizes, hand formulas, sharing, and isomorphic cells as equal functions."""

from __future__ import annotations

import time
import zlib
from functools import partial
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import ShapeError, SpaceError
from archipel.cost.model import count_macs, count_params
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.pc_darts import pc_darts
from archipel.search.differentiable.schedule import Schedule
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.nb201 import NB201, Cell, NB201Net, Reduction, conv_bn, edge_operations
from archipel.spaces.nb201_codec import EDGE_NAMES, EDGES, OPS, NB201Codes, arch_of, canonical_form, genome_of
from archipel.spaces.operations import Zero, choice_edge

torch.set_num_threads(1)
FULL = NB201()
SMALL = NB201(torch.zeros(2, 1, 8, 8), classes=10, C=4, N=2, stages=2)


def uniform(op):
    return dict.fromkeys(EDGE_NAMES, op)


def by_hand(arch, C=16, N=5, size=32, channels=3, classes=10):
    """Parameters and MACs of the benchmark's network, layer by layer from the paper's figure."""
    conv = lambda i, o, k: i * o * k * k  # noqa: E731
    params, macs = conv(channels, C, 3) + 2 * C, conv(channels, C, 3) * size**2
    for stage in range(3):
        c = C * 2**stage
        if stage:
            size //= 2
            weights = conv(c // 2, c, 3) + conv(c, c, 3) + conv(c // 2, c, 1)
            params, macs = params + weights + 4 * c, macs + weights * size**2
        for op in genome_of(arch):
            weights = {"conv1x1": c * c, "conv3x3": 9 * c * c}.get(op, 0)
            params, macs = params + N * (weights + 2 * c * bool(weights)), macs + N * weights * size**2
    return params + 2 * c + (c + 1) * classes, macs + c * classes


def random_archs(n, seed=0):
    rng = Random(seed)
    return [FULL.sample(rng) for _ in range(n)]


# --- the space -----------------------------------------------------------------------------------------------------


def test_the_decisions_are_those_of_the_codes_space():
    codes = NB201Codes()
    assert isinstance(FULL, NB201Codes)
    assert isinstance(FULL, ModuleSpace)
    assert FULL.decisions == codes.decisions
    assert not FULL.conditions
    assert FULL.size == 15_625
    for arch in random_archs(50):
        assert FULL.canonical(arch) == codes.canonical(arch) == canonical_form(genome_of(arch), "zero")


def test_the_graph_is_the_cell_with_operations_on_its_edges():
    g = FULL.graph(arch_of(("conv3x3", "none", "skip", "conv1x1", "avgpool3x3", "none")))
    assert len(g) == 4
    assert {(i, j): d["label"] for i, j, d in g.edges(data=True)} == {
        (0, 1): "conv3x3", (1, 2): "skip", (0, 3): "conv1x1", (1, 3): "avgpool3x3",
    }  # fmt: skip


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_the_smallest_and_largest_cells_have_the_published_sizes():
    # Published extremes: .073306 to 1.531546 million parameters, 7.78305 to 220.11969 million FLOPs, where the
    # bias of the linear layer counts as one more operation for each of the ten classes.
    assert (FULL.cost.params(uniform("none")), FULL.cost.macs(uniform("none"))) == (73_306, 7_783_050 - 10)
    assert (FULL.cost.params(uniform("conv3x3")), FULL.cost.macs(uniform("conv3x3"))) == (1_531_546, 220_119_690 - 10)


def test_with_a_hundred_classes_sizes_are_the_published_ones_of_cifar_100():
    space = NB201(classes=100)
    assert [count_params(space.build_meta(uniform(op))) for op in ("none", "conv3x3")] == [79_156, 1_537_396]


def test_costs_equal_the_hand_formula_on_random_cells():
    for arch in random_archs(200):
        assert (FULL.cost.params(arch), FULL.cost.macs(arch)) == by_hand(arch)


@pytest.mark.parametrize("arch", random_archs(3, seed=1), ids=lambda a: "-".join(a.values()))
def test_summed_costs_equal_those_counted_on_the_network(arch):
    net = SMALL.build(arch)
    assert SMALL.cost.params(arch) == count_params(net)
    assert SMALL.cost.macs(arch) == count_macs(SMALL.build_meta(arch), SMALL.example)


def test_a_full_size_network_is_built_in_half_a_second():
    FULL.build(uniform("skip"))  # warm-up: the first use of the meta device loads parts of PyTorch
    fastest = min(_seconds(lambda: FULL.build(uniform("conv3x3"))) for _ in range(2))
    assert fastest < 0.5


def _seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


# --- operations ----------------------------------------------------------------------------------------------------


def test_pooling_does_not_count_padding_and_zero_gives_zeros_of_the_same_shape():
    ops = {label: make(3, 1) for label, make in edge_operations().items()}
    assert tuple(ops) == OPS
    ones = torch.ones(2, 3, 4, 4)
    torch.testing.assert_close(ops["avgpool3x3"](ones), ones)
    assert ops["none"](ones).shape == ones.shape
    assert not ops["none"](ones * float("inf")).any()


def test_convolutions_are_relu_then_conv_then_batch_norm():
    for op, kernel in (("conv1x1", 1), ("conv3x3", 3)):
        relu, conv, norm = edge_operations()[op](3, 1)
        assert isinstance(relu, nn.ReLU)
        assert not relu.inplace  # the node is read by other edges too
        assert conv.kernel_size == (kernel, kernel)
        assert conv.bias is None
        assert isinstance(norm, nn.BatchNorm2d)


def test_a_cell_sums_what_its_edges_bring_to_each_node():
    cell = SMALL.build(arch_of(("skip", "avgpool3x3", "skip", "skip", "avgpool3x3", "skip")))[1]
    assert isinstance(cell, Cell)
    x = torch.randn(2, 4, 8, 8)
    pool = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(cell(x), x + pool + (pool + x))  # 0->3, 1->3 (node 1 is x), 2->3 (node 2: pool + x)


def test_the_skeleton_is_stages_of_n_cells_with_reductions_between():
    net = NB201Net(3, 10, C=16, N=5)
    kinds = [type(m) for m in net]
    assert kinds.count(Cell) == 15
    assert [i for i, k in enumerate(kinds) if k is Reduction] == [6, 12]
    assert NB201Net(1, 7, C=4, N=1)(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1), (9, 28)])
def test_odd_sizes_are_rounded_up_at_a_reduction(size):
    h, w = size
    assert Reduction(2, 4)(torch.zeros(2, 2, h, w)).shape == (2, 4, (h + 1) // 2, (w + 1) // 2)


def test_the_stem_can_be_replaced_for_large_images():
    space = NB201(torch.zeros(1, 3, 64, 64), C=4, N=1, stem=partial(conv_bn, stride=2))
    assert space.build(uniform("skip"))[0](torch.zeros(1, 3, 64, 64)).shape == (1, 4, 32, 32)
    plain = NB201(torch.zeros(1, 3, 64, 64), C=4, N=1)
    assert 3.9 < plain.cost.macs(uniform("conv3x3")) / space.cost.macs(uniform("conv3x3")) < 4.1


# --- sharing -------------------------------------------------------------------------------------------------------


def test_all_cells_of_the_supernet_follow_the_same_decisions():
    net = SMALL.supernet()
    assert sum(isinstance(m, Cell) for m in net.modules()) == 4
    assert [d.name for d in SMALL.decisions] == list(EDGE_NAMES)  # six decisions, not 24


def test_activate_computes_what_extract_computes():
    torch.manual_seed(0)
    x, supernet = torch.randn(4, 1, 8, 8), SMALL.supernet(seed=3)
    for arch in random_archs(6, seed=2):
        plain = supernet.extract(arch)
        assert count_params(plain) == SMALL.cost.params(arch)
        for mode in (True, False):
            supernet.train(mode), plain.train(mode)
            torch.testing.assert_close(supernet.activate(arch)(x), plain(x))


def test_the_same_seed_builds_the_same_network():
    arch = random_archs(1)[0]
    a, b, c = SMALL.build(arch, seed=1), SMALL.build(arch, seed=1), SMALL.build(arch, seed=2)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(a(x), b(x))
    assert not torch.equal(a(x), c(x))


def test_a_supernet_with_given_edges_has_them_and_no_affine_norms_in_its_cells():
    made = []

    def edge(name, ops, C, stride, blend_only=()):
        made.append((name, C, stride))
        return choice_edge(name, ops, C, stride, blend_only)

    supernet = SMALL.supernet(edge=edge)
    assert made == [(name, C, 1) for C in (4, 4, 8, 8) for name in EDGE_NAMES]
    cells = [m for m in supernet.modules() if isinstance(m, Cell)]
    norms = [m for cell in cells for m in cell.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 4 * 6 * 2
    assert not any(m.affine for m in norms)
    assert any(m.affine for m in supernet.modules() if isinstance(m, nn.BatchNorm2d))  # of stem, reduction and head
    arch = uniform("conv3x3")  # without them, each of the 24 convolutions lacks a scale and a shift
    assert SMALL.cost.params(arch) - count_params(supernet.extract(arch)) == 2 * 12 * (4 + 8)


@pytest.mark.parametrize("make", [darts, partial(pc_darts, 2)], ids=["darts", "pc-darts"])
def test_a_gradient_finds_a_cell_without_none(make):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(20) % 10
    data = Split(torch.randn(20, 1, 8, 8, generator=g), y)
    search = make(schedule=Schedule(epochs=1, batch_size=10))
    search.setup(Problem(SMALL))
    search.prepare(Context(Dataset("noise", data, data, None, "classification", 10), Recipe(epochs=1)))
    state = search.state
    nodes = {"n2", "n3"} if state.mix.weigh_edges else set()  # node 1 has one edge: nothing to weigh
    assert set(state.logits) == {*EDGE_NAMES, *nodes}
    assert all(state.parameters.rows[name].labels == OPS for name in EDGE_NAMES)
    for name in EDGE_NAMES:
        state.logits[name].data = torch.tensor([9.0, 0.0, 0.0, 1.0, 0.0])
    assert search.select(state) == uniform("conv3x3")
    arch = search.ask().arch
    x = data.x[:4]
    with torch.no_grad():
        blended = state.output(x, state.parameters.one_hot(arch))
        torch.testing.assert_close(blended, state.supernet.extract(arch)(x), rtol=0, atol=1e-6)


# --- canonical forms -----------------------------------------------------------------------------------------------


def give_weights_by_meaning(net, genome):
    """Every operation gets weights that depend only on what it computes: its term in the canonical form."""
    form = {0: "0"}
    terms = {}
    for j in (1, 2, 3):
        incoming = []
        for (i, target), op in zip(EDGES, genome):
            if target == j:
                dead = op == "none" or form[i] == "#"
                terms[i, j] = "#" if dead else form[i] if op == "skip" else f"({form[i]})@{op}"
                incoming.append(terms[i, j])
        form[j] = "+".join(sorted(incoming))
    for number, layer in enumerate(net):
        parts = zip([terms[e] for e in EDGES], layer.edges) if isinstance(layer, Cell) else [("", layer)]
        for term, part in parts:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{number} {term}".encode()))
            for p in part.parameters():
                if p.ndim > 1:
                    p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.2
    return net


def groups_of_isomorphic_cells(n):
    cells = [genome_of(a) for a in NB201Codes().enumerate()]
    by_form = {}
    for genome in cells:
        by_form.setdefault(canonical_form(genome), []).append(genome)
    interesting = [g for form, g in by_form.items() if len(g) > 1 and form.count("conv") > 1]
    return [Random(i).sample(g, 2) for i, g in enumerate(Random(0).sample(interesting, n))]


def test_cells_of_equal_canonical_form_compute_equal_functions_with_equal_surviving_weights():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    outputs = []
    for pair in groups_of_isomorphic_cells(12):
        a, b = (give_weights_by_meaning(SMALL.build(arch_of(g)).double(), g).eval() for g in pair)
        torch.testing.assert_close(a(x), b(x), rtol=1e-9, atol=1e-12)
        outputs.append(a(x))
    assert len({tuple(o.flatten().tolist()) for o in outputs}) > 10  # and cells of other forms compute others


def test_a_convolution_of_zeros_becomes_a_constant_once_its_batch_norm_is_shifted():
    # The zero rule holds at initialisation; the benchmark trains this shift, and so do we.
    arch = arch_of(("none", "none", "none", "skip", "conv1x1", "none"))  # node 1 is zero, 1->3 a convolution of it
    net = SMALL.build(arch).eval()
    assert SMALL.canonical(arch) == SMALL.canonical({**arch, "e13": "none"})
    x = torch.randn(2, 1, 8, 8)
    before = net(x)
    torch.testing.assert_close(before, _with_copied_weights(net, {**arch, "e13": "none"})(x))
    net[1].edges[4][2].bias.data.fill_(1.0)
    assert not torch.allclose(net(x), before)
    assert SMALL.cost.params(arch) > SMALL.cost.params({**arch, "e13": "none"})  # it counts, as in the published sizes


def _with_copied_weights(net, arch):
    other = SMALL.build(arch).eval()
    mine = net.state_dict()
    other.load_state_dict({k: mine[k] for k in other.state_dict()})
    return other


# --- bad input -----------------------------------------------------------------------------------------------------


def test_an_example_that_is_no_batch_of_images_is_refused():
    with pytest.raises(ShapeError, match=r"images \[B, C, H, W\], not \(2, 64\)"):
        NB201(torch.zeros(2, 64))


@pytest.mark.parametrize("wrong", [{"C": 0}, {"N": -1}, {"stages": 0}, {"classes": 0}, {"N": 1.5}])
def test_a_skeleton_without_cells_channels_or_classes_is_refused(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(SpaceError, match=f"{name} to be a positive integer, not {value}"):
        NB201(**wrong)


def test_an_unknown_operation_is_refused_before_anything_is_built():
    with pytest.raises(SpaceError, match=r"'e13' is one of \['none', 'skip', 'conv1x1', 'conv3x3', 'avgpool3x3'\]"):
        FULL.build({**uniform("skip"), "e13": "conv5x5"})


def test_zero_passes_no_gradient():
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    assert not Zero()(x).requires_grad
