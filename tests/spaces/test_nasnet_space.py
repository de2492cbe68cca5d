"""The NASNet search space: exact size, genotypes, canonical forms, networks and costs."""

from __future__ import annotations

import itertools
import time
from random import Random

import networkx as nx
import pytest
import torch

from archipel.core.errors import ShapeError, SpaceError, UsageError
from archipel.cost.model import count_macs, count_params
from archipel.nets.nasnet_genotype import COMBINE, NASNET_A, Block, CellGenotype, Genotype, canonical_cell, parse
from archipel.nets.nasnet_ops import OPS
from archipel.spaces.nasnet import NASNetSpace

torch.set_num_threads(1)
FULL = NASNetSpace(torch.zeros(2, 1, 8, 8), filters=4, repeats=1)
TINY = NASNetSpace(torch.zeros(2, 1, 8, 8), B=2, ops=["identity", "sep3x3"], filters=4, repeats=1)


def archs(space, n, seed=0):
    rng = Random(seed)
    return [space.sample(rng) for _ in range(n)]


# --- the set -------------------------------------------------------------------------------------------------------


def test_the_size_of_a_cell_is_2_287e18_and_of_the_space_its_square():
    cell = 1
    for b in range(5):
        cell *= (b + 2) ** 2 * 13**2 * 2
    assert cell == 2_286_906_949_584_691_200
    assert FULL.size == cell**2


def test_a_reduced_space_counts_its_own_operations_and_blocks():
    space = NASNetSpace(torch.zeros(1, 1, 8, 8), B=1, ops=["identity", "max3x3", "conv1x1"], combine=["add"], repeats=1)
    assert space.size == (2**2 * 3**2 * 1) ** 2
    assert len(list(space.enumerate())) == space.size


def test_decisions_come_in_the_controllers_order_normal_cell_first():
    names = [d.name for d in FULL.decisions]
    assert len(names) == 2 * 5 * 5
    assert names[:6] == [
        "normal.0.in1",
        "normal.0.in2",
        "normal.0.op1",
        "normal.0.op2",
        "normal.0.combine",
        "normal.1.in1",
    ]
    assert names[25] == "reduction.0.in1"


def test_samples_refer_only_to_earlier_states_and_use_two_different_cells():
    samples = archs(FULL, 300)
    for arch in samples:
        genotype = FULL.genotype(arch)
        for cell in (genotype.normal, genotype.reduction):
            assert all(max(block.inputs) < b + 2 for b, block in enumerate(cell.blocks))
    assert sum(FULL.genotype(a).normal == FULL.genotype(a).reduction for a in samples) == 0
    assert {a["normal.4.in1"] for a in samples} == {0, 1, 2, 3, 4, 5}
    assert {a["reduction.0.op2"] for a in samples} == set(OPS)
    assert {a["normal.2.combine"] for a in samples} == set(COMBINE)


# --- genotypes -----------------------------------------------------------------------------------------------------


def test_architecture_genotype_and_text_are_inverse_to_each_other():
    for arch in archs(FULL, 50):
        genotype = FULL.genotype(arch)
        assert FULL.arch_of(genotype) == arch
        assert FULL.arch_of(parse(str(genotype))) == arch


def test_the_blocks_of_nasnet_a_are_in_the_space_but_its_published_outputs_are_not():
    blocks = Genotype(CellGenotype(NASNET_A.normal.blocks), CellGenotype(NASNET_A.reduction.blocks))
    assert FULL.genotype(FULL.arch_of(blocks)) == blocks
    with pytest.raises(SpaceError, match=r"normal cell puts out states \(0, 2, 3, 4, 5, 6\); its unused"):
        FULL.arch_of(NASNET_A)


def test_the_output_width_is_the_number_of_unused_states_and_networks_have_it():
    for arch in archs(FULL, 12, seed=1):
        genotype = FULL.genotype(arch)
        net = FULL.build_meta(arch)
        doubled = sum(cell_state_is_concatenated(genotype.normal, i) for i in genotype.normal.unused)
        assert net.out_channels == 4 * 4 * (len(genotype.normal.unused) + doubled)  # F = 4, four times as wide at last


def cell_state_is_concatenated(cell, i):
    return i >= 2 and cell.blocks[i - 2].combine == "concat"


# --- canonical form ------------------------------------------------------------------------------------------------


def relabelled(cell, rng):
    """The same cell with its blocks in another order that respects their dependencies, and operands swapped."""
    g = nx.DiGraph()
    g.add_nodes_from(range(2, len(cell.blocks) + 2))
    g.add_edges_from((i, b + 2) for b, block in enumerate(cell.blocks) for i in block.inputs if i >= 2)
    weight = {node: rng.random() for node in g}
    order = list(nx.lexicographical_topological_sort(g, key=weight.__getitem__))
    new = {0: 0, 1: 1, **{old: k + 2 for k, old in enumerate(order)}}
    blocks = []
    for old in order:
        block = cell.blocks[old - 2]
        operands = [(new[i], op) for i, op in zip(block.inputs, block.ops)]
        if rng.random() < 0.5:
            operands.reverse()
        blocks.append(Block(tuple(i for i, _ in operands), tuple(op for _, op in operands), block.combine))
    return CellGenotype(tuple(blocks))


def test_canonical_is_invariant_under_relabelling_and_idempotent():
    rng = Random(0)
    changed = 0
    for arch in archs(FULL, 150, seed=2):
        genotype = FULL.genotype(arch)
        other = Genotype(relabelled(genotype.normal, rng), relabelled(genotype.reduction, rng))
        changed += other != genotype
        assert FULL.canonical(FULL.arch_of(other)) == FULL.canonical(arch)
        assert FULL.canonical(FULL.arch_of(parse(FULL.canonical(arch)))) == FULL.canonical(arch)
    assert changed > 100


def isomorphic(a, b):
    """Brute force over all renumberings of blocks: an independent slow version."""
    n = len(a.blocks)
    target = sorted((2 + k, *sorted(zip(x.inputs, x.ops)), x.combine) for k, x in enumerate(b.blocks))
    for permutation in itertools.permutations(range(n)):
        new = {0: 0, 1: 1, **{2 + old: 2 + permutation[old] for old in range(n)}}
        mapped = sorted((new[2 + k], *sorted(zip((new[i] for i in x.inputs), x.ops)), x.combine)
                        for k, x in enumerate(a.blocks))  # fmt: skip
        if mapped == target:
            return True
    return False


def test_canonical_forms_are_equal_exactly_for_isomorphic_cells():
    pairs = [list(itertools.product(range(b + 2), repeat=2)) for b in range(3)]
    cells = [
        CellGenotype(tuple(Block(inputs, ("identity", "identity")) for inputs in chosen))
        for chosen in itertools.product(*pairs)
    ]
    assert len(cells) == 576
    forms = {}
    for cell in cells:
        forms.setdefault(canonical_cell(cell), []).append(cell)
    assert 50 < len(forms) < 576
    for cell in cells:
        assert isomorphic(cell, forms[canonical_cell(cell)][0])
    representatives = [group[0] for group in forms.values()]
    assert not any(isomorphic(a, b) for a, b in itertools.combinations(representatives, 2))


def test_canonical_forms_of_architectures_are_fast_enough_for_a_cache():
    samples = archs(FULL, 100, seed=3)
    start = time.perf_counter()
    for arch in samples:
        FULL.canonical(arch)
    assert (time.perf_counter() - start) / 100 < 5e-3


# --- networks ------------------------------------------------------------------------------------------------------


def test_networks_have_the_parameters_and_macs_that_the_cost_model_says():
    for arch in archs(FULL, 3, seed=4):
        net = FULL.build(arch)
        assert count_params(net) == FULL.cost.params(arch)
    arch = archs(TINY, 1, seed=4)[0]
    assert TINY.cost.macs(arch) == count_macs(TINY.build_meta(arch), TINY.example) > 0


@pytest.mark.parametrize("arch", archs(FULL, 6, seed=5), ids=range(6))
def test_any_architecture_computes_and_learns_on_odd_sizes_too(arch):
    net = FULL.build(arch)
    net(torch.randn(3, 1, 8, 8)).sum().backward()
    assert net.eval()(torch.randn(2, 1, 7, 5)).shape == (2, 10)


def test_the_same_seed_builds_the_same_network_and_the_global_stream_is_left_alone():
    arch, x = archs(TINY, 1)[0], torch.randn(2, 1, 8, 8)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    a, b, c = (TINY.build(arch, seed=s).eval() for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(a(x), b(x))
    assert not torch.equal(a(x), c(x))


def test_a_network_is_exported_with_plain_pytorch():
    arch = archs(TINY, 1, seed=6)[0]
    net, x = TINY.build(arch).eval(), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))


def test_the_graph_shows_both_cells_with_their_operations_and_outputs():
    for arch in archs(FULL, 10, seed=7):
        g, genotype = FULL.graph(arch), FULL.genotype(arch)
        assert nx.is_directed_acyclic_graph(g)
        assert len(g) == 2 * (2 + 5 * 3 + 1)
        assert all("label" in data for _, data in g.nodes(data=True))
        assert sorted(g.predecessors("normal.output")) == [f"normal.{i}" for i in genotype.normal.unused]
        assert g.nodes["reduction.3.op2"]["label"] == arch["reduction.3.op2"]
        assert list(g.predecessors("reduction.3.op2")) == [f"reduction.{arch['reduction.3.in2']}"]


def test_mutations_and_crossovers_stay_in_the_space():
    rng = Random(8)
    a, b = archs(FULL, 2, seed=8)
    for _ in range(100):
        child = FULL.mutate(FULL.crossover(a, b, rng), rng)
        FULL.genotype(child)
        a, b = b, child


# --- bad input -----------------------------------------------------------------------------------------------------


def test_an_architecture_that_refers_to_a_future_state_is_refused():
    arch = {**archs(FULL, 1)[0], "normal.0.in2": 2}
    for use in (FULL.validate, FULL.genotype, FULL.build, FULL.canonical):
        with pytest.raises(SpaceError, match=r"'normal.0.in2' is one of \[0, 1\], not 2"):
            use(arch)


def test_a_genotype_with_other_blocks_or_operations_is_refused():
    genotype = FULL.genotype(archs(FULL, 1)[0])
    with pytest.raises(SpaceError):
        TINY.arch_of(genotype)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"B": 0}, SpaceError, "at least one block, not B=0"),
        ({"ops": ["sep3x3", "sep9x9"]}, SpaceError, "no operation 'sep9x9'"),
        ({"ops": []}, SpaceError, "no options"),
        ({"combine": ["add", "max"]}, SpaceError, "combine by some of"),
        ({"example": torch.zeros(2, 64)}, ShapeError, "take images"),
        ({"stack": "mnist"}, UsageError, "a stack is one of"),
        ({"filters": 6, "stack": "imagenet"}, UsageError, "multiple of 4"),
    ],
)
def test_spaces_that_cannot_be_are_refused_when_they_are_made(wrong, error, message):
    with pytest.raises(error, match=message):
        NASNetSpace(**{"example": torch.zeros(1, 1, 8, 8), "B": 2, "filters": 4, **wrong})


def test_there_is_no_supernet_and_the_error_says_so():
    with pytest.raises(SpaceError, match="nasnet has no supernet"):
        TINY.supernet()
