"""The DARTS space: counts, genotypes, and that its networks are what its architectures say."""

from __future__ import annotations

import itertools
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import ShapeError, SpaceError
from archipel.cost.model import count_params
from archipel.spaces.darts import DartsSpace, cell_names
from archipel.spaces.darts_network import loss_with_auxiliary, set_drop_path
from archipel.spaces.genotypes import DARTS_V2, GENOTYPES, PC_DARTS_CIFAR, Genotype, pairs
from archipel.spaces.operations import DARTS_OPS, DropPath, FactorizedReduce, Zero, choice_edge, darts_operations

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cifar() -> DartsSpace:
    return DartsSpace((3, 32, 32), 10, C=36, layers=20)


@pytest.fixture(scope="module")
def small() -> DartsSpace:
    return DartsSpace((1, 8, 8), 4, C=4, layers=4, nodes=3)


# --- counts --------------------------------------------------------------------------------------------------------


def test_size_is_exact(cifar):
    assert cifar.size == (180 * 7**8) ** 2


def test_size_agrees_with_counting_one_by_one():
    space = DartsSpace((1, 8, 8), 2, nodes=1)
    archs = list(space.enumerate())
    assert len(archs) == space.size == (7**2) ** 2
    assert DartsSpace((1, 8, 8), 2, nodes=2).size == (7**2 * 3 * 7**2) ** 2


@pytest.mark.parametrize(("name", "parameters"), [("DARTS_V2", 3_349_342), ("PC_DARTS_cifar", 3_634_678)])
def test_published_cells_have_the_published_numbers_of_parameters(cifar, name, parameters):
    assert cifar.cost.params(cifar.from_genotype(GENOTYPES[name])) == parameters


def test_the_auxiliary_classifier_brings_pc_darts_to_its_golden_number():
    space = DartsSpace((3, 32, 32), 10, C=36, layers=20, auxiliary=True)
    assert space.cost.params(space.from_genotype(PC_DARTS_CIFAR)) == 4_111_104


def test_the_searched_network_has_its_golden_number_of_weights():
    with torch.device("meta"):
        net = DartsSpace((3, 32, 32), 10, C=16, layers=8).cells(choice_edge)
    assert count_params(net) == 1_930_618


# --- genotypes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("genotype", [DARTS_V2, PC_DARTS_CIFAR])
def test_genotypes_survive_both_ways(cifar, genotype):
    arch = cifar.from_genotype(genotype)
    back = cifar.to_genotype(arch)
    assert cifar.from_genotype(back) == arch
    for kind in ("normal", "reduce"):  # papers list the two edges of a node in any order
        ours, theirs = getattr(back, kind), getattr(genotype, kind)
        assert [sorted(ours[i : i + 2]) for i in range(0, 8, 2)] == [sorted(theirs[i : i + 2]) for i in range(0, 8, 2)]


def test_random_architectures_survive_the_genotype(cifar):
    rng = Random(0)
    for _ in range(20):
        arch = cifar.sample(rng)
        assert cifar.from_genotype(cifar.to_genotype(arch)) == arch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normal": DARTS_V2.normal[:6]}, r"normal cell needs 8 .* not 6"),
        ({"normal": (("sep_conv_3x3", 0), ("sep_conv_3x3", 0), *DARTS_V2.normal[2:])}, r"two different states below 2"),
        ({"reduce": (("max_pool_3x3", 0), ("max_pool_3x3", 2), *DARTS_V2.reduce[2:])}, r"State 2 of the reduce cell"),
        ({"normal": (("sep_conv_3x3", 0), ("none", 1), *DARTS_V2.normal[2:])}, r"no operation 'none'"),
        ({"concat": (3, 4, 5)}, r"put out states 2 to 5, not \[3, 4, 5\]"),
    ],
)
def test_a_genotype_of_other_cells_is_refused(cifar, change, message):
    broken = Genotype(**{"normal": DARTS_V2.normal, "reduce": DARTS_V2.reduce, **change})
    with pytest.raises(SpaceError, match=message):
        cifar.from_genotype(broken)


def test_an_edge_that_is_not_written_as_one_is_refused():
    with pytest.raises(SpaceError, match=r"operation<source, .* not 'sep_conv_3x3'"):
        pairs("sep_conv_3x3 0")


# --- networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_activated_and_extracted_networks_compute_the_same(small, training):
    supernet = small.supernet()
    supernet.train(training)
    x = torch.randn(3, 1, 8, 8)
    for seed in range(3):
        arch = small.sample(Random(seed))
        plain = supernet.extract(arch)
        with torch.no_grad():
            torch.testing.assert_close(supernet.activate(arch)(x), plain(x), rtol=0, atol=0)


def test_only_the_live_path_of_a_supernet_is_computed(small):
    supernet = small.supernet()
    arch = small.sample(Random(1))
    computed = []
    for module in supernet.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, *_: computed.append(id(m)))
    supernet.activate(arch)(torch.randn(2, 1, 8, 8))
    plain = supernet.extract(arch)
    assert len(computed) == sum(isinstance(m, nn.Conv2d) for m in plain.modules())


def test_built_networks_have_the_parameters_that_the_cost_says(small):
    for seed in range(3):
        arch = small.sample(Random(seed))
        net = small.build(arch)
        assert count_params(net) == small.cost.params(arch)
        assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


def test_searched_networks_normalise_without_affine_parameters_and_built_ones_with_them(small):
    norms = [m for m in small.supernet().net.cells.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.affine for m in norms)
    arch = {d.name: d.options[0] for d in small.decisions}  # pools everywhere
    arch = {n: v for n, v in arch.items() if small.is_open(n, arch)}
    built = small.build(arch)
    assert all(m.affine for m in built.modules() if isinstance(m, nn.BatchNorm2d))
    sums = [edge for cell in built.cells for node in cell.sums for edge in node.edges]
    assert all(isinstance(edge, nn.MaxPool2d) for edge in sums)  # plain: not followed by a norm
    assert isinstance(darts_operations(searching=True)["max_pool_3x3"](4, 1)[1], nn.BatchNorm2d)


def test_no_operation_has_a_bias_and_all_halve_the_plane_at_stride_two():
    x = torch.randn(2, 4, 8, 8)
    for make in darts_operations(searching=True).values():
        for stride in (1, 2):
            op = make(4, stride)
            assert op(x).shape == (2, 4, 8 // stride, 8 // stride)
            assert all(m.bias is None for m in op.modules() if isinstance(m, nn.Conv2d))


def test_none_takes_part_in_mixtures_but_cannot_be_chosen(small):
    edge = choice_edge("e", darts_operations(True), 4, 1, ("none",))
    assert edge.blend_labels == (*DARTS_OPS, "none")
    assert edge.decision.options == DARTS_OPS
    with pytest.raises(SpaceError, match="not 'none'"):
        small.validate({**small.sample(Random(0)), "normal.e02": "none", "normal.n2": "0,1"})


def test_an_edge_with_nothing_but_none_has_no_derivable_operation():
    for blend_only in ((), ("none",)):
        with pytest.raises(SpaceError, match=r"Edge 'normal\.e02' has no derivable operation"):
            choice_edge("normal.e02", {"none": lambda c, s: Zero(s)}, 4, 1, blend_only)


def test_tied_decisions_are_shared_by_kind_level_or_not_at_all():
    assert cell_names(8, "kind") == ["normal", "normal", "reduce"] + ["normal"] * 2 + ["reduce"] + ["normal"] * 2
    assert cell_names(8, "level")[0::3] == ["normal0", "normal1", "normal2"]
    per_cell = DartsSpace((1, 8, 8), 2, layers=3, nodes=1, tie="cell")
    assert per_cell.size == 49**3
    net = per_cell.build(per_cell.sample(Random(0)))
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 2)
    with pytest.raises(SpaceError, match="one normal and one reduction cell"):
        per_cell.to_genotype(per_cell.sample(Random(0)))


# --- canonical form ------------------------------------------------------------------------------------------------


def test_canonical_is_blind_to_the_order_of_nodes():
    space = DartsSpace((1, 8, 8), 4, nodes=4)
    base = space.from_genotype(DARTS_V2)
    cell = (
        "sep_conv_3x3<0 skip_connect<1  dil_conv_3x3<0 dil_conv_5x5<1 "
        "avg_pool_3x3<2 skip_connect<3  max_pool_3x3<0 avg_pool_3x3<1"
    )
    same = (
        "max_pool_3x3<0 avg_pool_3x3<1  dil_conv_3x3<0 dil_conv_5x5<1 "
        "sep_conv_3x3<0 skip_connect<1  avg_pool_3x3<4 skip_connect<3"
    )
    other = (
        "max_pool_3x3<0 avg_pool_3x3<1  dil_conv_3x3<0 dil_conv_5x5<1 "
        "sep_conv_3x3<0 skip_connect<1  avg_pool_3x3<3 skip_connect<4"
    )
    archs = [space.from_genotype(Genotype(pairs(text), DARTS_V2.reduce)) for text in (cell, same, other)]
    keys = [space.canonical(a) for a in archs]
    assert keys[0] == keys[1] != keys[2]
    assert len({*keys, space.canonical(base)}) == 3


def test_reordered_cells_compute_the_same_up_to_the_order_of_channels():
    space = DartsSpace((1, 8, 8), 4, C=2, layers=3, nodes=2)
    normal = pairs("sep_conv_3x3<0 dil_conv_3x3<1  sep_conv_5x5<0 dil_conv_5x5<1")
    reduce = pairs("skip_connect<0 skip_connect<1  skip_connect<0 skip_connect<1")
    first, second = (
        space.build(space.from_genotype(Genotype(cell, reduce, (2, 3)))).cells[0]
        for cell in (normal, normal[2:] + normal[:2])
    )
    second.pre0, second.pre1 = first.pre0, first.pre1
    second.sums[0].load_state_dict(first.sums[1].state_dict())
    second.sums[1].load_state_dict(first.sums[0].state_dict())
    x = torch.randn(3, 6, 8, 8)
    torch.testing.assert_close(second(x, x), first(x, x)[:, [2, 3, 0, 1]])


# --- training on its own -------------------------------------------------------------------------------------------


def test_the_auxiliary_classifier_answers_while_training_only():
    space = DartsSpace((3, 32, 32), 5, C=4, layers=3, nodes=1, auxiliary=True)
    net = space.build(space.sample(Random(0)))
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    logits, second = net.train()(x)
    assert logits.shape == second.shape == (2, 5)
    assert net.eval()(x).shape == (2, 5)
    loss = loss_with_auxiliary((logits, second), y)
    cross = nn.functional.cross_entropy
    torch.testing.assert_close(loss, cross(logits, y) + 0.4 * cross(second, y))


def test_drop_path_keeps_the_mean_and_never_drops_an_identity():
    space = DartsSpace((1, 8, 8), 4, C=4, layers=3, nodes=2, drop_path=0.3)
    skips = pairs("skip_connect<0 sep_conv_3x3<1  sep_conv_3x3<0 skip_connect<1")
    net = space.build(space.from_genotype(Genotype(skips, skips, (2, 3))))
    edges = [edge for node in net.cells[0].sums for edge in node.edges]
    assert [isinstance(e, nn.Identity) for e in edges] == [True, False, False, True]
    assert {m.p for m in net.modules() if isinstance(m, DropPath)} == {0.3}
    drop = DropPath(0.3)
    y = drop(torch.ones(20_000, 1, 1, 1)).flatten()
    assert sorted(set(y.tolist())) == pytest.approx([0.0, 1 / 0.7])
    assert float(y.mean()) == pytest.approx(1.0, abs=0.02)
    set_drop_path(net, 0.0)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(net.train()(x), net(x))
    drop.eval()
    assert drop(x) is x


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 2}, "at least 3 cells"),
        ({"nodes": 0}, "1 to 8 nodes, not 0"),
        ({"tie": "kin"}, "Did you mean: kind"),
        ({"tie": "cell", "search_layers": 5}, "5 searched cells than in 8 built ones"),
        ({"auxiliary": True}, "images of 32x32 to 40x40, not 8x8"),
        ({"drop_path": 1.0}, "below 1, not 1.0"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings, message):
    with pytest.raises(SpaceError, match=message):
        DartsSpace((1, 8, 8), 4, **settings)


def test_images_with_odd_sides_are_refused_where_they_enter():
    with pytest.raises(SpaceError, match="divisible by 4, not 30x30"):
        DartsSpace((1, 30, 30), 4)
    with pytest.raises(SpaceError, match=r"not inputs of shape \(8,\)"):
        DartsSpace((8,), 4)


def test_a_reduction_of_an_odd_plane_or_to_odd_channels_says_so():
    with pytest.raises(ShapeError, match="an input of 7x7 at stride 2"):
        FactorizedReduce(4, 4)(torch.zeros(1, 4, 7, 7))
    with pytest.raises(ShapeError, match="even, not 3"):
        FactorizedReduce(4, 3)


# --- the rest of a space -------------------------------------------------------------------------------------------


def test_edits_stay_in_the_space(small):
    rng = Random(3)
    a, b = small.sample(rng), small.sample(rng)
    for _ in range(30):
        child = small.mutate(a, rng)
        assert small.validate(child) == child != a
        assert small.validate(small.crossover(a, b, rng))
        a = child


def test_the_graph_shows_the_chosen_edges(small):
    arch = small.sample(Random(0))
    g = small.graph(arch)
    shown = {(u, v): d["label"] for u, v, d in g.edges(data=True) if not v.endswith("out")}
    assert len(shown) == 2 * 2 * 3
    for prefix, j in itertools.product(("normal", "reduce"), (2, 3, 4)):
        for i in arch[f"{prefix}.n{j}"].split(","):
            assert shown[f"{prefix}.{i}", f"{prefix}.{j}"] == arch[f"{prefix}.e{i}{j}"]
