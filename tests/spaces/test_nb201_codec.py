"""NAS-Bench-201 codes: both ways, canonical counts, and canonical forms against the functions that cells compute."""

from __future__ import annotations

import contextlib
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archipel.core.errors import SpaceError
from archipel.spaces.nb201_codec import (
    EDGE_NAMES,
    EDGES,
    EXAMPLE,
    OPS,
    NB201Codes,
    arch_of,
    canonical_form,
    from_string,
    genome_of,
    to_string,
)

SPACE = NB201Codes()
CELLS = [genome_of(a) for a in SPACE.enumerate()]
genomes = st.tuples(*[st.sampled_from(OPS)] * 6)


def compute(genome, x=1.7):
    """The cell as a function with fixed 'weights': each operation another map that keeps zero."""
    maps = {"none": lambda v: 0.0 * v, "skip": lambda v: v, "conv1x1": lambda v: np.sinh(0.3 * v),
            "conv3x3": lambda v: np.tanh(1.3 * v) + v**3, "avgpool3x3": lambda v: 0.61 * v}  # fmt: skip
    value = {0: x, 1: 0.0, 2: 0.0, 3: 0.0}
    for (i, j), op in zip(EDGES, genome):
        value[j] = value[j] + maps[op](value[i])
    return value[3]


@pytest.mark.parametrize(("rule", "count"), [("skip", 12_751), ("zero", 6_466), ("live", 5_390)])
def test_number_of_canonical_forms_of_the_15625_cells(rule, count):
    assert len(CELLS) == SPACE.size == 15_625
    assert len({canonical_form(g, rule) for g in CELLS}) == count


def test_the_space_uses_the_zero_rule():
    assert len({SPACE.canonical(arch_of(g)) for g in CELLS}) == 6_466


@pytest.mark.parametrize("rule", ["skip", "zero", "live"])
def test_cells_with_equal_forms_compute_equal_functions(rule):
    outputs: dict[str, float] = {}
    for g in CELLS:
        assert compute(g) == pytest.approx(outputs.setdefault(canonical_form(g, rule), compute(g)), rel=1e-9)


def test_live_rule_merges_zeros_that_the_published_rule_keeps_apart():
    two_zeros = ("none", "none", "none", "skip", "none", "conv3x3")  # node 2 sums two zeros: '#+#'
    no_edge = ("none", "none", "none", "skip", "none", "none")
    assert compute(two_zeros) == compute(no_edge)
    assert canonical_form(two_zeros, "zero") != canonical_form(no_edge, "zero")
    assert canonical_form(two_zeros, "live") == canonical_form(no_edge, "live") == "0"


def test_canonical_form_worked_by_hand():
    assert canonical_form(genome_of(from_string(EXAMPLE)), "zero") == (
        "(((0)@conv3x3)@conv3x3+(0)@conv3x3)@conv3x3+((0)@conv3x3)@conv3x3+0"
    )


@pytest.mark.parametrize("rule", ["skip", "zero", "live"])
def test_representative_is_idempotent_and_keeps_the_form(rule):
    rng = Random(0)
    for _ in range(300):
        arch = SPACE.sample(rng)
        first = SPACE.representative(arch, rule)
        assert SPACE.representative(first, rule) == first
        assert canonical_form(genome_of(first), rule) == canonical_form(genome_of(arch), rule)


@given(genomes)
def test_string_and_architecture_convert_both_ways(genome):
    arch = arch_of(genome)
    assert from_string(to_string(arch)) == arch
    assert list(arch) == list(EDGE_NAMES)
    assert SPACE.validate(arch) == arch


def test_published_string_places_each_operation_on_its_edge():
    assert from_string(EXAMPLE) == {
        "e01": "conv3x3", "e02": "conv3x3", "e12": "conv3x3", "e03": "skip", "e13": "conv3x3", "e23": "conv3x3"
    }  # fmt: skip


def test_every_cell_has_24_single_edge_neighbours():
    arch, rng = arch_of(CELLS[1234]), Random(1)
    neighbours = {tuple(SPACE.mutate(arch, rng).values()) for _ in range(1000)}
    assert len(neighbours) == 24
    assert all(sum(a != b for a, b in zip(n, CELLS[1234])) == 1 for n in neighbours)


def test_graph_holds_the_edges_that_are_not_none():
    g = SPACE.graph(from_string("|none~0|+|nor_conv_1x1~0|none~1|+|none~0|none~1|skip_connect~2|"))
    assert {(i, j, d["label"]) for i, j, d in g.edges(data=True)} == {(0, 2, "conv1x1"), (2, 3, "skip")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 3 nodes joined by"),
        ("|none~0|+|none~0|none~1|", "not 2"),
        ("|none~0|+|none~0|+|none~0|none~1|none~2|", r"Node 2 .* has 2 inputs, not 1"),
        ("|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", r"Input 1 of node 2 .* must be 'operation~1'"),
        ("|nor_conv_3x4~0|+|none~0|none~1|+|none~0|none~1|none~2|", r"no operation 'nor_conv_3x4'.*Did you mean"),
        ("none~0+|none~0|none~1|+|none~0|none~1|none~2|", r"must stand between two"),
        (17, "not int"),
    ],
)
def test_malformed_strings_name_the_place(text, message):
    with pytest.raises(SpaceError, match=message):
        from_string(text)


@given(st.text(alphabet="|+~0123noneskip_cv ", max_size=80))
@settings(max_examples=200)
def test_any_text_is_a_cell_or_a_clear_error(text):
    with contextlib.suppress(SpaceError):
        assert from_string(to_string(from_string(text))) == from_string(text)


def test_bad_architectures_and_rules_are_named():
    with pytest.raises(SpaceError, match="missing: e23"):
        to_string(dict.fromkeys(EDGE_NAMES[:-1], "skip"))
    with pytest.raises(SpaceError, match=r"Edge e12 has no operation 'conv7x7'"):
        arch_of(("none", "none", "conv7x7", "none", "none", "none"))
    with pytest.raises(SpaceError, match="6 operations, not 2"):
        arch_of(("none", "none"))
    with pytest.raises(SpaceError, match=r"No canonical rule 'zeros'. Did you mean: zero"):
        canonical_form(CELLS[0], "zeros")
    with pytest.raises(SpaceError, match="no modules to build"):
        SPACE.build(arch_of(CELLS[0]))
