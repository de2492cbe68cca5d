"""The tabular benchmarks: what their undocumented codes mean, and that files cannot do anything but be read."""

from __future__ import annotations

import importlib.metadata
import itertools
import pickle
import sys
import time
from functools import cache
from random import Random

import numpy as np
import pytest

from archipel.core.errors import DataError, MissingExtraError, SpaceError, UsageError
from archipel.search import tables
from archipel.search.blackbox.evolution import RegularizedEvolution
from archipel.search.strategy import Problem
from archipel.search.tables import GRAPHS, GraphTable, NB201Table
from archipel.spaces.nas_bench_graph_codec import MACROS, GraphNASCodes, canonical_form, decode_key
from archipel.spaces.nb201_codec import EDGE_NAMES, EDGES, OPS, arch_of, from_string
from archipel.spaces.nb201_codec import canonical_form as nb201_form


def installed(distribution):
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_tables = pytest.mark.skipif(
    not (installed("analog-nasbench") and installed("nas-bench-graph")), reason="needs the extra 'tables'"
)


@cache
def nb201():
    return NB201Table()


@cache
def graph(name):
    return GraphTable(name)


def disconnected(genome):
    reached = {0}
    for (i, j), op in zip(EDGES, genome):  # edges are grouped by target, so sources come first
        if op != "none" and i in reached:
            reached.add(j)
    return 3 not in reached


# --- NAS-Bench-201 -------------------------------------------------------------------------------------------------


@needs_tables
def test_every_cell_is_in_the_table_and_the_package_was_never_imported():
    table = nb201()
    assert len(table) == table.space.size == 15_625
    assert all(set(table.evaluate(a)) == set(table.metrics) for a in itertools.islice(table.space.enumerate(), 500))
    assert "analognasbench" not in sys.modules
    assert "nas_bench_graph" not in sys.modules


@needs_tables
def test_exactly_the_cells_without_a_path_from_input_to_output_are_constant_networks():
    accuracy = dict(zip(nb201().keys(), nb201().column("accuracy")))
    assert sum(disconnected(g) for g in accuracy) == 341
    for genome, value in accuracy.items():
        assert (value == 0.1) == disconnected(genome)
        assert value >= 0.1
        if value == 0.1:
            assert genome[EDGE_NAMES.index("e03")] == "none"


@needs_tables
def test_no_other_reading_of_the_edges_or_of_none_fits_but_the_mirror_image():
    genomes = np.array(list(nb201().keys()))
    constant = nb201().column("accuracy") == 0.1
    fitting = []
    for none in OPS:
        is_none = genomes == none
        for order in itertools.permutations(range(6)):
            e01, e02, e12, e03, e13, e23 = (~is_none[:, k] for k in order)
            if not ((e03 | (e01 & e13) | (e02 & e23) | (e01 & e12 & e23)) == constant).any():
                fitting.append((none, order))
    mirrored = (5, 4, 2, 3, 1, 0)  # input and output, and the inner nodes, exchanged
    assert sorted(fitting) == [("none", (0, 1, 2, 3, 4, 5)), ("none", mirrored)]


@needs_tables
def test_equal_cells_have_nearly_equal_accuracies_only_if_skip_is_read_as_skip():
    genomes, accuracy = list(nb201().keys()), nb201().column("accuracy")

    def spread(rename):
        """Root mean square deviation from the mean of all cells with the same canonical form."""
        _, group = np.unique(
            [nb201_form(tuple(rename.get(op, op) for op in g), "live") for g in genomes], return_inverse=True
        )
        size = np.bincount(group)
        mean = np.bincount(group, accuracy) / size
        many = size[group] > 1
        return np.sqrt(np.mean((accuracy - mean[group])[many] ** 2))

    right = spread({})
    assert right < 0.004
    for other in ("conv1x1", "conv3x3", "avgpool3x3"):
        assert spread({"skip": other, other: "skip"}) > 4 * right


@needs_tables
def test_operations_rank_as_they_must():
    mean = {op: np.mean([v for g, v in zip(nb201().keys(), nb201().column("accuracy")) if g[3] == op]) for op in OPS}
    assert mean["conv3x3"] > mean["conv1x1"] > mean["skip"] > mean["avgpool3x3"] > mean["none"]
    best = from_string(
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_1x1~1|nor_conv_3x3~2|"
    )
    assert nb201().value(best, "accuracy") == nb201().column("accuracy").max() == pytest.approx(0.940664)


@needs_tables
def test_a_row_as_the_package_has_it():
    metrics = nb201().evaluate(arch_of(("skip",) * 6))
    assert metrics["accuracy"] == pytest.approx(0.607836)
    assert metrics["ptq_accuracy"] == pytest.approx(0.592256)
    assert metrics["qat_accuracy"] == pytest.approx(0.375616)
    assert metrics["noisy_accuracy"] == pytest.approx(0.1)
    assert metrics["analog_accuracy"] == pytest.approx(0.5749)
    assert metrics["analog_drift_3600"] == pytest.approx(0.5379)
    assert metrics["analog_drift_3600_uncertainty"] == pytest.approx(0.0282)
    assert len(metrics) == 5 + 2 * 8


@needs_tables
def test_columns_and_fewer_metrics_agree_with_rows():
    table = nb201().only("noisy_accuracy", "accuracy")
    arch = table.space.sample(Random(3))
    assert table.evaluate(arch) == {m: nb201().evaluate(arch)[m] for m in ("noisy_accuracy", "accuracy")}
    i = list(table.keys()).index(tuple(arch.values()))
    assert table.column("accuracy")[i] == nb201().column("accuracy")[i] == table.value(arch, "accuracy")
    assert nb201().evaluate(dict(reversed(arch.items()))) == nb201().evaluate(arch)  # the order of keys is no matter


@needs_tables
def test_evolution_over_the_table_finds_a_cell_among_the_best_hundred():
    table, search = nb201().only("accuracy"), RegularizedEvolution(50, 10)
    search.setup(Problem(table.space, rng=Random(0)))
    best = 0.0
    for _ in range(1000):
        trial = search.ask()
        trial.metrics = table.evaluate(trial.arch)
        search.tell(trial)
        best = max(best, trial.metrics["accuracy"])
    assert (table.column("accuracy") > best).sum() < 100


@needs_tables
def test_loading_takes_less_than_two_seconds():
    for load in (NB201Table, lambda: GraphTable("cora")):
        start = time.process_time()
        load()
        assert time.process_time() - start < 2


# --- NAS-Bench-Graph -----------------------------------------------------------------------------------------------


@needs_tables
@pytest.mark.parametrize("name", ["cora", "proteins"])
def test_canonical_forms_and_table_rows_are_one_to_one(name):
    table = graph(name)
    assert len(table) == {"cora": 26_206, "proteins": 2_021}[name]
    forms = {table.space.canonical(a) for a in table.space.enumerate()}
    assert forms == set(table.keys())


@needs_tables
@pytest.mark.parametrize("name", [g for g in GRAPHS if g not in ("cora", "proteins")])
def test_all_graphs_load(name):
    table = GraphTable(name)
    assert len(table) == 26_206
    metrics = table.evaluate(table.space.sample(Random(0)))
    assert set(metrics) == {"accuracy", "test_accuracy", "latency", "params"}
    assert 0 < metrics["accuracy"] < 1
    assert metrics["params"] > 1000


@needs_tables
def test_a_graph_network_as_the_package_has_it():
    arch = {"macro": "0111", "op1": "gat", "op2": "gat", "op3": "gat", "op4": "gat"}  # the package's key 50000
    metrics = graph("cora").evaluate(arch)
    assert metrics["accuracy"] == pytest.approx(0.7840000000000001)
    assert metrics["test_accuracy"] == pytest.approx(0.811)
    assert metrics["params"] == pytest.approx(767_239)
    chain = {"macro": "0123", "op1": "skip", "op2": "gat", "op3": "skip", "op4": "gcn"}
    other = {"macro": "0112", "op1": "skip", "op2": "gat", "op3": "skip", "op4": "gcn"}
    assert graph("cora").space.canonical(chain) == graph("cora").space.canonical(other) == "gat(gcn)"
    assert graph("cora").evaluate(chain) == graph("cora").evaluate(other)


def test_canonical_graph_forms_are_invariant_under_relabelling():
    rng = Random(0)
    for _ in range(500):
        arch = GraphNASCodes().sample(rng)
        sources, ops = [int(s) for s in arch["macro"]], [arch[f"op{i}"] for i in range(1, 5)]
        order = [0]
        while len(order) < 5:  # any order in which every node follows its source
            order.append(rng.choice([i for i in range(1, 5) if i not in order and sources[i - 1] in order]))
        macro = "".join(str(order.index(sources[i - 1])) for i in order[1:])
        assert canonical_form(macro, tuple(ops[i - 1] for i in order[1:])) == GraphNASCodes().canonical(arch)


def test_skips_that_change_nothing_are_contracted_and_residual_ones_are_kept():
    assert canonical_form("0123", ("gcn", "skip", "skip", "gat")) == "gcn(gat)"
    assert canonical_form("0111", ("gcn", "skip", "gat", "skip")) == "gcn(gat+skip+skip)"
    assert canonical_form("0112", ("gcn", "skip", "gat", "skip")) == "gcn(gat+skip)"
    assert canonical_form("0001", ("gcn", "skip", "gat", "skip")) == "gat+gcn"
    assert canonical_form("0000", ("skip",) * 4) == ""


def test_the_graph_space_holds_all_but_the_empty_networks():
    space, rng = GraphNASCodes(), Random(0)
    assert space.size == 9 * 9**4 - 9
    assert sum(1 for _ in GraphNASCodes(("gcn", "sage", "skip")).enumerate()) == 9 * 3**4 - 9
    empty = {"macro": "0012", **{f"op{i}": "skip" for i in range(1, 5)}}
    with pytest.raises(SpaceError, match="leaves no network"):
        space.validate(empty)
    assert space.complete(empty, rng) != empty
    lonely = {**empty, "op2": "gat"}
    for _ in range(300):
        for arch in (space.mutate(lonely, rng), space.crossover(lonely, {**empty, "op1": "gcn"}, rng)):
            assert space.validate(arch) == arch
    small = GraphNASCodes(("gcn", "skip"))
    counts = np.bincount([int(small.sample(rng)["macro"], 4) for _ in range(4500)], minlength=28)
    assert (counts[[int(m, 4) for m in MACROS]] > 400).all()
    with pytest.raises(SpaceError, match="must include 'skip'"):
        GraphNASCodes(("gcn", "gat"))


def test_the_drawn_graph_feeds_the_output_from_all_leaves():
    g = GraphNASCodes().graph({"macro": "0112", "op1": "gcn", "op2": "gat", "op3": "fc", "op4": "gin"})
    assert set(g.predecessors("output")) == {3, 4}
    assert g.nodes[4]["label"] == "gin"


def test_keys_that_are_no_networks_are_named():
    for key in (-1, 100_000, 99_999, 90_000, "50000", 1.0):
        with pytest.raises(SpaceError, match="five digits from 0 to 8"):
            decode_key(key)


# --- errors --------------------------------------------------------------------------------------------------------


@needs_tables
def test_what_is_not_in_the_table_is_named():
    cell = arch_of(("skip",) * 6)
    with pytest.raises(SpaceError, match=r"Decision 'e01' is one of .* not 'conv5x5'"):
        nb201().evaluate({**cell, "e01": "conv5x5"})
    with pytest.raises(SpaceError, match="Decision 'e23' is missing"):
        nb201().evaluate({n: cell[n] for n in EDGE_NAMES[:-1]})
    with pytest.raises(SpaceError, match="'e01' is one of"):
        nb201().evaluate({**cell, "e01": ["skip"]})
    with pytest.raises(SpaceError, match="leaves no network"):
        graph("cora").evaluate({"macro": "0000", "op1": "skip", "op2": "skip", "op3": "skip", "op4": "skip"})
    with pytest.raises(SpaceError, match="not 'gin'"):
        graph("proteins").evaluate({"macro": "0000", "op1": "gin", "op2": "skip", "op3": "skip", "op4": "skip"})
    with pytest.raises(SpaceError, match=r"Decision 'macro' is one of .* not '0002'"):
        graph("cora").evaluate({"macro": "0002", "op1": "gin", "op2": "skip", "op3": "skip", "op4": "skip"})


@needs_tables
def test_unknown_metrics_and_graphs_suggest_close_ones():
    with pytest.raises(UsageError, match=r"no metric 'analog_acc'. Did you mean: analog_accuracy"):
        nb201().column("analog_acc")
    with pytest.raises(UsageError, match="no metric 'acc'"):
        nb201().only("acc")
    with pytest.raises(UsageError, match="at least one metric"):
        nb201().only()
    with pytest.raises(UsageError, match=r"no graph 'coral'. Did you mean: cora"):
        GraphTable("coral")


def test_a_missing_package_names_the_extra(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    for load in (NB201Table, lambda: GraphTable("cora")):
        with pytest.raises(MissingExtraError, match=r"pip install 'archipel\[tables\]'"):
            load()
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(DataError, match="has no file 'analognasbench/data"):
        NB201Table()


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable pickle"),
        (pickle.dumps([1, 2]), "holds a list, not a table"),
        (pickle.dumps({}), "has 0 different architectures, not 15625"),
        (pickle.dumps({(0,) * 6: 3.0}), r"entry \(0, 0, 0, 0, 0, 0\) is no cell"),
        (pickle.dumps({7: 3.0}), "entry 7 is no cell"),
        (pickle.dumps({(0, 0, 0, 0, 0, 9): 3.0}), "is no cell"),
        (pickle.dumps(Evil()), "builtins.print"),
    ],
    ids=["empty", "list", "no rows", "no record", "no tuple", "unknown code", "evil"],
)
def test_files_that_are_no_cell_table_are_refused_unexecuted(tmp_path, capsys, content, message):
    path = tmp_path / "data.anb"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        NB201Table(path)
    assert str(path) in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({0: {"perf": 1.0}}), "entry 0 is no network with metrics"),
        (pickle.dumps({99999: {"valid_perf": 1, "perf": 1, "latency": 1, "para": 1}}), "five digits"),
        (pickle.dumps({0: np.ones(3)}), "this pickle asks for"),
        (pickle.dumps({0: {"perf": np.float32(1)}}, protocol=3).replace(b"numpy._core", b"numpy.core"), "of type 'f4'"),
    ],
    ids=["metric missing", "unknown key", "array", "wrong type"],
)
def test_files_that_are_no_graph_table_are_refused(tmp_path, content, message):
    path = tmp_path / "cora.bench"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        GraphTable("cora", path)
    assert str(path) in str(error.value)


@needs_tables
def test_a_truncated_or_incomplete_table_is_refused(tmp_path):
    path = tmp_path / "cut.anb"
    whole = tables._package_file("analog-nasbench", "analognasbench/data.anb").read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(DataError, match="truncated"):
        NB201Table(path)
    with pytest.raises(DataError, match="cannot be read"):
        NB201Table(tmp_path / "absent.anb")
    with pytest.raises(DataError, match="NaN or infinite"):
        tables._check_rows(path, {0: (0.5, float("nan"))}, 1)
