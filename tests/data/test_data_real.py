"""The published files themselves; ARCHIPEL_DATA names a folder that has them."""

import os

import pytest
import torch

from archipel.data import describe, load
from archipel.data.find import data_root, locate
from archipel.data.sources import SOURCES


def real(name, **options):
    if not os.environ.get("ARCHIPEL_DATA"):
        pytest.skip("ARCHIPEL_DATA is not set")
    if not locate(SOURCES[name].published):
        pytest.skip(f"{name} is not in {data_root()}")
    return load(name, **options)


@pytest.mark.parametrize(("name", "first"), [("mnist", 7), ("fashion-mnist", 9)])
def test_mnist_and_fashion_mnist(name, first):
    data = real(name, limit=6000)
    assert data.input_shape == (1, 28, 28)
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (4800, 1200, 1000)
    assert data.train.y.bincount().tolist() == real(name, limit=6000).train.y.bincount().tolist()
    assert abs(float(data.train.x.mean())) < 1e-4
    full = real(name)
    assert (len(full.train), len(full.val), len(full.sealed_test)) == (48_000, 12_000, 10_000)
    assert int(full.sealed_test.y[0]) == first  # the published order
    mean = full.info["normalisation"]["mean"][0]
    assert abs(mean - {"mnist": 0.1307, "fashion-mnist": 0.2860}[name]) < 0.001  # as is usually quoted


def test_cifar_10_or_a_part_of_it():
    data = real("cifar10", limit=5000)
    assert data.input_shape == (3, 32, 32)
    assert data.classes == 10
    assert data.info["class_names"][0] == "airplane"
    assert data.train.y.bincount(minlength=10).min() > 300
    assert "test_batch" in data.info["batches"]
    assert abs(data.info["normalisation"]["mean"][0] - 0.4914) < 0.01


def test_spoken_digits():
    data = real("spoken-digits")
    assert data.input_shape == (1, 40, 49)
    assert len(data.sealed_test) == 300
    assert data.sealed_test.y.bincount().tolist() == [30] * 10
    assert (len(data.train), len(data.val)) == (2160, 540)
    digest = data.info["files"][0]["sha256"]
    assert digest == "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959"


COUNTS = {
    "cora": {"nodes": 2708, "links": 5429, "undirected": 5278, "features": 1433, "classes": 7, "train": 140},
    "citeseer": {"nodes": 3327, "links": 4732, "undirected": 4552, "features": 3703, "classes": 6, "train": 120},
}


@pytest.mark.parametrize("name", COUNTS)
def test_planetoid_graphs_have_the_published_counts(name):
    graph, counts = real(name), COUNTS[name]
    assert graph.nodes.shape == (counts["nodes"], counts["features"])
    assert graph.info["links"]["listed"] == counts["links"]
    assert graph.info["links"]["undirected"] == counts["undirected"]
    assert graph.edge_index.shape == (2, 2 * counts["undirected"])
    assert graph.classes == counts["classes"]
    assert (len(graph.train), len(graph.val), len(graph.sealed_test)) == (counts["train"], 500, 1000)
    assert graph.train.y.bincount().tolist() == [20] * counts["classes"]
    isolated = counts["nodes"] - len(graph.edge_index.unique())
    empty = int((graph.nodes.sum(1) == 0).sum())
    assert (graph.info["isolated_test_nodes"], isolated, empty) == {"cora": (0, 0, 0), "citeseer": (15, 48, 15)}[name]


@pytest.mark.parametrize("name", COUNTS)
def test_neighbours_of_planetoid_nodes_share_their_class_far_above_chance(name):
    """Only true if features, labels and links are put to the same nodes, test nodes included."""
    graph = real(name)
    y = graph.y.clone()
    y[graph.sealed_test.x] = graph.sealed_test.y
    a, b = graph.edge_index
    known = (y[a] >= 0) & (y[b] >= 0) & graph.test_mask[a]
    assert float((y[a] == y[b])[known].float().mean()) > 0.7
    overlap = (graph.nodes[a] * graph.nodes[b]).sum(1)[graph.test_mask[a]].mean()
    anyone = b[torch.randperm(len(b), generator=torch.Generator().manual_seed(0))]
    chance = (graph.nodes[a] * graph.nodes[anyone]).sum(1)[graph.test_mask[a]].mean()
    assert overlap > 2 * chance


def test_tiny_shakespeare():
    data = real("tiny-shakespeare")
    assert data.info["text_tokens"] == 1_115_394
    assert data.input_shape == (64,)
    assert data.classes in (65, 66)  # 65 characters in all; some may only come after the training text
    text = "".join(data.info["vocabulary"][i] for i in data.train.x[:2].flatten().tolist())
    assert text.startswith("First Citizen:\nBefore we proceed any further")
    assert torch.equal(data.train.x[:, 1:], data.train.y[:, :-1])
    assert real("tiny-shakespeare", tokens="bytes").classes == 256


@pytest.mark.parametrize("name", ["cora", "spoken-digits"])
def test_described_sizes_are_the_loaded_ones(name):
    real(name)
    described = describe(name)
    assert described["status"].startswith("found in")
    declared = SOURCES[name].sizes
    sizes = described["sizes"] | {"train+val": described["sizes"]["train"] + described["sizes"]["val"]}
    assert {k: sizes[k] for k in declared} == declared
    assert tuple(described["shape"]) == SOURCES[name].shape
