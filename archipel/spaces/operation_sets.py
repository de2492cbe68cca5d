"""Sets of operations by name: what the edges, the inputs and the classifier of cell networks are made of.

darts, sharp, sharp-darts      :mod:`archipel.spaces.operations`, :mod:`archipel.spaces.sharp_operations`
binary, binary-projected       :mod:`archipel.spaces.binary_operations`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from archipel.spaces.binary_operations import (
    binary_edge_operations,
    binary_inputs,
    binary_operations,
    projected_inputs,
    projected_operations,
)
from archipel.spaces.nb201 import edge_operations
from archipel.spaces.operations import FactorizedReduce, OpFactory, relu_conv_bn
from archipel.spaces.sharp_operations import OPERATIONS, Operations
from archipel.spaces.sparse_operations import sparse_classifier, sparse_edge_operations, sparse_operations


def plain_inputs(c_in: int, c_out: int, reduce: bool, affine: bool) -> nn.Module:
    """How a cell brings an input to its number of channels, and to half its side where ``reduce``."""
    return FactorizedReduce(c_in, c_out, affine) if reduce else relu_conv_bn(c_in, c_out, affine=affine)


def plain_classifier(features: int, classes: int, searching: bool) -> nn.Module:
    """The layer after the mean over positions."""
    return nn.Linear(features, classes)


@dataclass(frozen=True)
class OperationSet:
    """What networks of DARTS cells are made of.

    Args:
        operations: (searching, drop-path) -> label -> factory.
        inputs: (channels, new channels, halve, affine) -> module in front of a cell.
        classifier: (features, classes, searching) -> module.
    """

    operations: Operations
    inputs: Callable[[int, int, bool, bool], nn.Module] = plain_inputs
    classifier: Callable[[int, int, bool], nn.Module] = plain_classifier


@dataclass(frozen=True)
class EdgeSet:
    """What networks of NAS-Bench-201 cells are made of: (affine) -> label -> factory, and the classifier."""

    operations: Callable[[bool], dict[str, OpFactory]]
    classifier: Callable[[int, int, bool], nn.Module] = plain_classifier


DARTS_SETS = {
    **{name: OperationSet(operations) for name, operations in OPERATIONS.items()},
    "binary": OperationSet(binary_operations, binary_inputs),
    "binary-projected": OperationSet(projected_operations, projected_inputs),
    "sparse": OperationSet(sparse_operations, classifier=sparse_classifier),
}
DARTS_SET = DARTS_SETS["darts"]
EDGE_SETS = {
    "plain": EdgeSet(edge_operations),
    "binary": EdgeSet(binary_edge_operations),
    "sparse": EdgeSet(sparse_edge_operations, sparse_classifier),
}
