"""Every delivered space, small: what the laws and the costs are tested on.

``MODULES`` are spaces with a supernet, ``BUILDS`` only build, ``NAMES`` only name architectures.
"""

from __future__ import annotations

import functools
from random import Random

import torch

from archipel.core.choice import Choice, Depth, Inputs, Kernel, Width
from archipel.core.decision import Decision, Real
from archipel.core.space import JointSpace, Space, when
from archipel.spaces.darts import DartsSpace
from archipel.spaces.hardcore import HardCoReSpace
from archipel.spaces.hyper_cuboid import HyperCuboid
from archipel.spaces.language import language_space
from archipel.spaces.layers import ElasticBatchNorm1d, ElasticConv1d, ElasticLinear
from archipel.spaces.mbconv import MBConvSpace
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.mlp import mlp_space
from archipel.spaces.mobile import mobile_space
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.nas_bench_graph_codec import GraphNASCodes
from archipel.spaces.nasnet import NASNetSpace
from archipel.spaces.nb201 import NB201
from archipel.spaces.nb201_codec import NB201Codes
from archipel.spaces.plain_operations import ALL_OPS
from archipel.spaces.reversible_transformer import reversible_transformer_space
from archipel.spaces.sharing import cell_space, elastic_mlp_space
from archipel.spaces.shufflenet import shufflenet_space
from archipel.spaces.signal import signal_space
from archipel.spaces.subsets import MicroSubsets, SubsetSpace


class Nested(torch.nn.Module):
    """A user's module: choices in choices, a name in three places, a depth, inputs, kernels."""

    def __init__(self):
        super().__init__()
        w = Width("w", [3, 4, 6])
        k = Kernel("k", [3, 5])
        inner = Choice("inner", {"tanh": torch.nn.Tanh(), "conv": ElasticConv1d(w, w, k)})
        self.stem = ElasticConv1d(1, w, 3)
        self.norm = ElasticBatchNorm1d(w)
        self.first = Choice(
            "outer", {"plain": torch.nn.Identity(), "deep": torch.nn.Sequential(inner, torch.nn.ReLU())}
        )
        # The same name again, under another condition: open if either place is.
        self.second = Depth(
            "depth", [Choice("inner", {"tanh": torch.nn.Tanh(), "conv": ElasticConv1d(w, w)}), torch.nn.ReLU()]
        )
        self.join = Inputs("join", [torch.nn.Identity(), ElasticConv1d(w, w, k, depthwise=True), torch.nn.Tanh()], k=2)
        self.out = ElasticLinear(w, 3)

    def forward(self, x):
        a = self.norm(self.stem(x))
        b = self.first(a)
        c = self.second(b)
        return self.out(self.join([a, b, c]).mean(-1))


P = functools.partial
MODULES = {
    "mlp": P(mlp_space, (5,), 3, widths=[2, 4, 8], depth=(1, 3), activations=["relu", "gelu"]),
    "mlp-fixed": P(mlp_space, (2,), 1, widths=[2, 3, 4], depth=2, activations=["relu"], norms=["none"]),
    "mlp-residual": P(
        mlp_space, (2, 3), 3, widths=[2, 4], depth=(1, 2), norms=["batch", "layer"], dropout=[0.0, 0.5], residual=True
    ),
    "mobile": P(mobile_space, (1, 8, 8), 3, width=8, ratios=[0.5, 1.0], depth=(1, 2), expand=[1, 2]),
    "mobile-plain": P(
        mobile_space, (3, 9, 11), 4, width=8, depth=(1, 1), expand=[2], kernels=[3], attention=False
    ),
    "signal": P(signal_space, (2, 20), 3, width=8, ratios=[0.5, 1.0], depth=(1, 2), expand=[1, 2], kernels=[3, 5]),
    "language": P(language_space, (6,), 11, widths=[8, 16], depth=(0, 2), kernels=[1, 3], head=8),
    "nb201": P(NB201, torch.zeros(2, 1, 8, 8), classes=3, C=2, N=1, stages=2),
    "micro-nb201": P(MicroNB201, (1, 4, 4), 3, C=2, cells=2),
    "darts": P(DartsSpace, (1, 8, 8), 3, C=2, layers=3, nodes=2),
    "subsets": P(SubsetSpace, (1, 8, 8), 3, C=2, layers=3, nodes=2, mean=False),
    "subsets-tied": P(SubsetSpace, (1, 4, 4), 3, C=2, layers=2, nodes=1, tie=[0, 0], reduce_at=[1], ops=ALL_OPS),
    "micro-subsets": P(MicroSubsets, (1, 4, 4), 3, C=2, cells=1),
    "hyper-cuboid": P(HyperCuboid, (1, 4, 4), 3, channels=(2, 3), layers=2),
    "reversible": P(reversible_transformer_space, (6,), 11, d=8, embed=4, repeats=2, heads=2),
    "shufflenet": P(
        shufflenet_space, 16, 1, 3, stem=4, widths=(8, 16), depths=(2, 1), head=8, stem_stride=1, factors=(0.5, 1.0),
        dropout=0.0,
    ),
    "hardcore": P(
        HardCoReSpace, (1, 8, 8), 3, stem=4, widths=(4, 8), strides=(1, 2), head=(8, 8), depth=(1, 2), expand=(1, 2)
    ),
    "mbconv": P(MBConvSpace, (1, 8, 8), 3, kernels=(1, 3), expansions=(1, 2), width=4, depth=2),
    "cells": P(cell_space, (1, 4, 4), 3, channels=4, cells=2),
    "elastic-mlp": P(elastic_mlp_space, (4,), 3, widths=(2, 4), hidden=2, activations=("relu", "tanh")),
    "nested": P(ModuleSpace, Nested, torch.zeros(2, 1, 7)),
}  # fmt: skip
BUILDS = {
    "nasnet": P(
        NASNetSpace, torch.zeros(2, 1, 8, 8), classes=3, B=2, ops=["identity", "sep3x3", "max3x3"], filters=4, repeats=1
    ),
}


def _conditional() -> Space:
    decisions = [
        Decision("op", ["conv", "skip", "pool"]),
        Decision("k", [3, 5, 7], ordered=True),
        Decision("bias", [True, False]),
    ]
    return Space(decisions, {"k": [when(op=["conv"]), when(op=["pool"])], "bias": [when(op=["conv"], k=[5, 7])]})


def _joint() -> Space:
    hyper = [Real("lr", 1e-4, 1e-1, log=True), Real("batch_size", 8, 64, integer=True)]
    return JointSpace(mlp_space((4,), 2, widths=[2, 4], depth=(1, 2)), hyper)


NAMES = {"nb201-codes": NB201Codes, "graph-codes": GraphNASCodes, "conditional": _conditional, "joint": _joint}
ALL = {**MODULES, **BUILDS, **NAMES}


@functools.cache
def space(name: str) -> Space:
    return ALL[name]()


@functools.cache
def archs(name: str, count: int = 6) -> list[dict]:
    """The last option of everything, the first of everything (if they are valid), and random ones."""
    made = space(name)
    rng = Random(0)
    ends = [_end(made, -1), _end(made, 0)]
    if name == "graph-codes":
        ends = []  # all operations alike leave no network
    return [*ends, *(made.sample(rng) for _ in range(count - len(ends)))]


def _end(made: Space, position: int) -> dict:
    out: dict = {}
    for d in made.decisions:
        if made.is_open(d.name, out):
            out[d.name] = d.decode(-float(position)) if isinstance(d, Real) else d.options[position]
    return out


def inputs(made: Space, batch: int = 5) -> torch.Tensor:
    """A batch of random inputs."""
    example = made.example
    generator = torch.Generator().manual_seed(0)
    if example.is_floating_point():
        return torch.randn(batch, *example.shape[1:], generator=generator)
    return torch.randint(0, 11, (batch, *example.shape[1:]), generator=generator)


__all__ = ["ALL", "BUILDS", "MODULES", "NAMES", "archs", "inputs", "space"]
