"""Planetoid graphs, on a toy one with all of the format's quirks."""

import pickle

import numpy as np
import pytest
import torch
from data_files import write_planetoid

from archipel.core.errors import DataError, UsageError
from archipel.data.graph import FILES, GraphData, read_planetoid


def read(folder, **options):
    return read_planetoid("toy", [folder / f"ind.toy.{part}" for part in FILES], **options)


def test_test_nodes_are_put_where_test_index_says_and_gaps_are_isolated_nodes(tmp_path):
    graph = read(write_planetoid(tmp_path))
    assert graph.nodes.shape == (10, 3)
    expected = torch.eye(3)[torch.arange(10) % 3]
    expected[8] = 0  # missing in test.index
    torch.testing.assert_close(graph.nodes, expected)
    assert graph.sealed_test.x.tolist() == [9, 7]
    assert graph.sealed_test.y.tolist() == [1, 1]
    assert graph.info["isolated_test_nodes"] == 1


def test_links_stand_in_both_directions_without_repetitions_and_self_links(tmp_path):
    graph = read(write_planetoid(tmp_path))
    pairs = {tuple(p) for p in graph.edge_index.T.tolist()}
    links = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 9)]
    assert pairs == {*links, *((b, a) for a, b in links)}
    assert graph.edge_index.shape == (2, 16)
    assert graph.info["links"] == {"listed": 10, "undirected": 8, "self": 1}


def test_a_search_sees_no_class_of_a_test_node(tmp_path):
    graph = read(write_planetoid(tmp_path))
    assert graph.train.x.tolist() == [0, 1]
    assert graph.val.x.tolist() == [2, 3, 4, 5, 6]
    assert graph.y.tolist() == [0, 1, 0, 1, 0, 1, 0, -1, -1, -1]
    assert torch.nonzero(graph.train_mask).flatten().tolist() == [0, 1]
    assert torch.nonzero(graph.test_mask).flatten().tolist() == [7, 9]
    blind = graph.without_test()
    assert isinstance(blind, GraphData)
    assert torch.equal(blind.edge_index, graph.edge_index)
    assert not blind.test_mask.any()
    with pytest.raises(DataError, match="has no test split"):
        blind.open_test("peek")
    assert graph.open_test("final").y.tolist() == [1, 1]
    assert graph.openings == ["final"]
    assert graph.example(4).shape == (4, 3)


def test_random_splits_follow_the_seed_and_leave_the_test_nodes_alone(tmp_path):
    def enlarge(parts):
        import scipy.sparse as sp

        n = 100
        parts["allx"] = sp.csr_matrix(np.eye(n, 3, dtype=np.float32))
        parts["ally"] = np.eye(2, dtype=np.int32)[np.arange(n) % 2]
        parts["test.index"] = f"{n + 1}\n{n}\n"
        parts["graph"] = {i: [(i + 1) % n] for i in range(n)}

    folder = write_planetoid(tmp_path, edit=enlarge)
    a, b, c = (read(folder, split="random", seed=s) for s in (1, 1, 2))
    assert torch.equal(a.train.x, b.train.x)
    assert not torch.equal(a.train.x, c.train.x)
    assert a.train.y.bincount().tolist() == [20, 20]
    assert not set(a.train.x.tolist()) & set(a.val.x.tolist())
    assert a.sealed_test.x.tolist() == c.sealed_test.x.tolist() == [101, 100]
    full = read(folder, split="full")
    assert len(full.train) + len(full.val) == 100
    with pytest.raises(UsageError, match="split must be one of 'public'"):
        read(folder, split="mine")


def set_part(part, value):
    return lambda parts: parts.__setitem__(part, value)


FAULTS = {
    "node out of range": ("graph", lambda p: p["graph"][0].append(99), "node 0: 99 is not a node from 0 to 9"),
    "negative node": ("graph", lambda p: p["graph"][2].append(-1), "node 2: -1 is not a node"),
    "no dictionary": ("graph", set_part("graph", [1, 2]), "expected a dictionary of neighbours, found list"),
    "test index a word": ("test.index", set_part("test.index", "9\nx\n"), "line 2: expected a node number, found 'x'"),
    "test index empty": ("test.index", set_part("test.index", ""), "line 1: expected a node number, found nothing"),
    "test index too low": ("test.index", set_part("test.index", "9\n2\n"), "must be different numbers from 7 on"),
    "test index twice": ("test.index", set_part("test.index", "9\n9\n"), "with 1 repeated"),
    "test index count": ("test.index", set_part("test.index", "9\n8\n7\n"), "3 lines for 2 test nodes"),
    "not one-hot": ("ally", set_part("ally", np.full((7, 2), 3)), "labels must be one-hot rows"),
    "two classes": ("ally", set_part("ally", np.ones((7, 2), np.int32)), "row 0 has more than one class"),
    "rows differ": ("allx", set_part("ally", np.eye(2, dtype=np.int32)[[0, 1, 0]]), "do not belong together"),
    "features are no matrix": ("allx", set_part("allx", np.eye(3)), "expected a sparse matrix, found PickledArray"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_graph_gives_one_error_naming_file_and_place(tmp_path, fault):
    part, edit, message = FAULTS[fault]
    with pytest.raises(DataError, match=message) as caught:
        read(write_planetoid(tmp_path, edit=edit))
    assert f"ind.toy.{part}" in str(caught.value)


def test_a_malicious_graph_file_is_refused(tmp_path):
    write_planetoid(tmp_path)
    (tmp_path / "ind.toy.graph").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"ind\.toy\.graph: this pickle asks for 'os\.system'"):
        read(tmp_path)


def test_features_can_be_normalised_by_row(tmp_path):
    def heavier(parts):
        parts["allx"] = parts["allx"] * 4

    graph = read(write_planetoid(tmp_path, edit=heavier), normalise=True)
    assert graph.nodes.sum(1).tolist() == [1.0] * 8 + [0.0, 1.0]


def test_a_link_out_of_range_is_refused_by_the_graph_itself(tmp_path):
    graph = read(write_planetoid(tmp_path))
    with pytest.raises(DataError, match="toy: a link leads to a node outside 0 … 9"):
        GraphData(
            "toy", graph.train, graph.val, None, graph.task, 2, nodes=graph.nodes, edge_index=torch.tensor([[0], [10]])
        )


def test_pickles_of_newer_pythons_are_read_too(tmp_path):
    folder = write_planetoid(tmp_path)
    import scipy.sparse as sp

    (folder / "ind.toy.x").write_bytes(pickle.dumps(sp.csr_matrix(np.eye(2, 3, dtype=np.float32)), protocol=5))
    assert len(read(folder).train) == 2
