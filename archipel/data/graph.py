"""One graph whose nodes are to be classified, and Planetoid's raw files of citation graphs.

Yang, Cohen, Salakhutdinov. Revisiting Semi-Supervised Learning with Graph Embeddings. 2016.
https://arxiv.org/abs/1603.08861 — files ``ind.{name}.{x, tx, allx, y, ty, ally, graph, test.index}``:

    allx, ally   features and one-hot labels of nodes 0, 1, ...; x, y are the first of them: the training nodes
    tx, ty       the same of the test nodes, in the order of test.index, which is not sorted
    graph        node -> list of neighbours, each link in both lists, some more than once, some to itself

Citeseer's test.index has gaps: 15 nodes without links, features or labels, which keep their numbers here (label -1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.core.errors import DataError, UsageError
from archipel.core.safe_pickle import (
    CONTAINER_GLOBALS,
    NUMPY_GLOBALS,
    SPARSE_GLOBALS,
    as_array,
    as_matrix,
    restricted_load,
)
from archipel.data.dataset import Dataset, Split

FILES = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
PUBLIC_VAL = 500  # nodes after the training nodes that Planetoid validates on
NODES_PER_CLASS = 20  # training nodes of a random split, as many as in the published one
SPLITS = {
    "public": "published",
    "random": f"{NODES_PER_CLASS} training nodes a class and {PUBLIC_VAL} validation nodes by seed; published test",
    "full": "published validation and test; all other nodes with a class train",
}


@dataclass
class GraphData(Dataset):
    """A graph whose nodes are classified; a :class:`Dataset` whose inputs are node numbers.

    ``train.x`` and ``val.x`` are node indices int64 [n], ``train.y`` their classes. All nodes' features and links are
    known to a search (the transductive setting), the test nodes' classes only through :meth:`open_test`.

    Args:
        nodes: features float32 [N, F].
        edge_index: links int64 [2, E], source above target; each undirected link stands in both directions.
    """

    nodes: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    edge_index: Tensor = field(default_factory=lambda: torch.empty(2, 0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if self.edge_index.numel() and not 0 <= int(self.edge_index.min()) <= int(self.edge_index.max()) < len(
            self.nodes
        ):
            raise DataError(f"{self.name}: a link leads to a node outside 0 … {len(self.nodes) - 1}.")

    def _mask(self, split: Split | None) -> Tensor:
        mask = torch.zeros(len(self.nodes), dtype=torch.bool)
        if split is not None:
            mask[split.x] = True
        return mask

    @property
    def train_mask(self) -> Tensor:
        """Which nodes are training nodes, bool [N]."""
        return self._mask(self.train)

    @property
    def val_mask(self) -> Tensor:
        return self._mask(self.val)

    @property
    def test_mask(self) -> Tensor:
        """Which nodes are test nodes, bool [N]; none in a copy without test split."""
        return self._mask(self.sealed_test)

    @property
    def y(self) -> Tensor:
        """Classes int64 [N] of training and validation nodes, -1 elsewhere."""
        y = torch.full((len(self.nodes),), -1)
        for split in (self.train, self.val):
            y[split.x] = split.y
        return y

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a node's features."""
        return tuple(self.nodes.shape[1:])

    def example(self, batch: int = 2) -> Tensor:
        """Features of ``batch`` nodes, all zero, float32 [batch, F]."""
        return torch.zeros(batch, *self.input_shape)

    def without_test(self) -> GraphData:
        """A copy for those who must not see the test nodes' classes."""
        return GraphData(
            self.name, self.train, self.val, None, self.task, self.classes, self.info, [], self.nodes, self.edge_index
        )


def read_planetoid(
    name: str, files: list[Path], seed: int = 0, split: str = "public", normalise: bool = False
) -> GraphData:
    """A Planetoid citation graph.

    Args:
        name: such as ``"cora"``.
        files: the eight files, in the order of :data:`FILES`.
        seed: of the random split.
        split: ``"public"``: the published training, validation and test nodes, whatever the seed; ``"random"``: 20
            training nodes a class and 500 validation nodes drawn by the seed, published test nodes; ``"full"``:
            published validation and test nodes, all other nodes with a class train.
        normalise: divide each node's features by their sum.

    Raises:
        DataError: malformed or mismatched files; names file and place.
        UsageError: an unknown split.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(map(repr, SPLITS))}, not {split!r}.")
    path = dict(zip(FILES, files, strict=True))
    allx, tx = (as_matrix(_load(path[k]), str(path[k])) for k in ("allx", "tx"))
    ally, ty, y = (_classes(path[k]) for k in ("ally", "ty", "y"))
    test_index = _test_index(path["test.index"], len(ally))
    if allx.shape[0] != len(ally) or tx.shape[0] != len(ty) or tx.shape[1] != allx.shape[1] or len(y) > len(ally):
        raise DataError(
            f"{path['allx']}: features {allx.shape} with {len(ally)} labels and test features {tx.shape} with "
            f"{len(ty)} labels do not belong together."
        )
    if len(test_index) != len(ty):
        raise DataError(f"{path['test.index']}: {len(test_index)} lines for {len(ty)} test nodes.")
    n = int(test_index.max()) + 1  # gaps below it are nodes without links or features
    nodes = torch.zeros(n, allx.shape[1])
    nodes[: len(ally)] = torch.from_numpy(allx.toarray().astype(np.float32))
    nodes[test_index] = torch.from_numpy(tx.toarray().astype(np.float32))
    if not torch.isfinite(nodes).all():
        raise DataError(f"{path['allx']}: holds features that are NaN or infinite.")
    if normalise:
        nodes /= nodes.sum(1, keepdim=True).clamp(min=1e-12)
    labels = torch.from_numpy(ally)
    train, val = _train_val(labels, len(y), split, seed, path["ally"])
    edge_index, links = _edges(path["graph"], n)
    info: dict[str, Any] = {
        "nodes": n,
        "links": links,
        "isolated_test_nodes": n - len(ally) - len(test_index),
        "split": {"rule": SPLITS[split], "seed": seed if split == "random" else None},
        "normalisation": {"rows": normalise},
    }
    return GraphData(
        name,
        Split(train, labels[train]),
        Split(val, labels[val]),
        Split(test_index, torch.from_numpy(ty)),
        "node-classification",
        int(max(ally.max(), ty.max())) + 1,
        info,
        nodes=nodes,
        edge_index=edge_index,
    )


def _train_val(labels: Tensor, published_train: int, split: str, seed: int, where: Path) -> tuple[Tensor, Tensor]:
    known = torch.nonzero(labels >= 0).flatten()
    if split != "random":
        index = torch.arange(min(published_train + PUBLIC_VAL, len(labels)))
        train, val = index[:published_train], index[published_train:]
        train = known[~torch.isin(known, val)] if split == "full" else train
    else:
        classes = int(labels.max()) + 1
        generator = torch.Generator().manual_seed(seed)
        shuffled = known[torch.randperm(len(known), generator=generator)]
        train = torch.cat([shuffled[labels[shuffled] == c][:NODES_PER_CLASS] for c in range(classes)]).sort().values
        rest = shuffled[~torch.isin(shuffled, train)]
        val = rest[:PUBLIC_VAL].sort().values
    if not len(train) or not len(val) or bool((labels[torch.cat([train, val])] < 0).any()):
        raise DataError(f"{where}: {len(labels)} labelled nodes give no training and validation nodes with classes.")
    return train, val


def _load(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return restricted_load(file, {**NUMPY_GLOBALS, **SPARSE_GLOBALS, **CONTAINER_GLOBALS}, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error


def _classes(path: Path) -> np.ndarray:
    """Classes int64 [N] of one-hot rows; -1 where a row is all zeros."""
    one_hot = as_array(_load(path), str(path))
    if one_hot.ndim != 2 or one_hot.shape[1] < 2 or not len(one_hot) or not np.isin(one_hot, (0, 1)).all():
        raise DataError(
            f"{path}: labels must be one-hot rows [N, classes], not {list(one_hot.shape)} of {one_hot.dtype}."
        )
    several = np.flatnonzero(one_hot.sum(1) > 1)
    if len(several):
        raise DataError(f"{path}: row {several[0]} has more than one class.")
    return np.where(one_hot.any(1), one_hot.argmax(1), -1).astype(np.int64)


def _test_index(path: Path, start: int) -> Tensor:
    """Numbers of the test nodes, in the order of the file.

    Raises:
        DataError: not one whole number a line, one twice, or one that is not above the other nodes'.
    """
    try:
        lines = path.read_text("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    bad = next((i for i, line in enumerate(lines) if not line.isdecimal() or len(line) > 9), None)
    if bad is not None or not lines:
        got = repr(lines[bad]) if bad is not None else "nothing"
        raise DataError(f"{path}: line {(bad or 0) + 1}: expected a node number, found {got}.")
    index = np.array(lines, dtype=np.int64)
    if index.min() < start or index.max() >= start + 100 * len(index) or len(np.unique(index)) < len(index):
        raise DataError(
            f"{path}: test nodes must be different numbers from {start} on (after the other nodes), not "
            f"{index.min()} … {index.max()} with {len(index) - len(np.unique(index))} repeated."
        )
    return torch.from_numpy(index)


def _edges(path: Path, n: int) -> tuple[Tensor, dict[str, int]]:
    """Links in both directions, without repetitions and self-links, sorted; and how many there were."""
    graph = _load(path)
    if not isinstance(graph, dict):
        raise DataError(f"{path}: expected a dictionary of neighbours, found {type(graph).__name__}.")
    for node, neighbours in graph.items():
        if not isinstance(node, int) or not isinstance(neighbours, list):
            raise DataError(f"{path}: entry {node!r} should be a node number with a list of neighbours.")
        for other in (node, *neighbours):
            if not isinstance(other, int) or not 0 <= other < n:
                raise DataError(f"{path}: node {node!r}: {other!r} is not a node from 0 to {n - 1}.")
    listed = [(node, other) for node, neighbours in graph.items() for other in neighbours]
    pairs = np.array(listed, dtype=np.int64).reshape(-1, 2)
    loop = pairs[:, 0] == pairs[:, 1]
    proper = pairs[~loop]
    both = np.unique(np.concatenate([proper, proper[:, ::-1]]), axis=0)
    counts = {
        "listed": len(pairs) // 2,
        "undirected": len(both) // 2,
        "self": len(np.unique(pairs[loop])),
    }
    return torch.from_numpy(both.T.copy()), counts
