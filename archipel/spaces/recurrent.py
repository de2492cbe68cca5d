"""Recurrent language models whose cell is decided; with two nodes, a space that can be trained in full.

Liu, Simonyan, Yang. DARTS: Differentiable Architecture Search. 2018. https://arxiv.org/abs/1806.09055   (the cell)
Yu, Sciuto, Jaggi, Musat, Salzmann. Evaluating the Search Phase of Neural Architecture Search. 2020.
https://arxiv.org/abs/1902.08142   (two nodes: 32 cells, all trained alone, as the truth that searches are judged by)

    [c, g] = W_0 [x_t, h_(t-1)]      s_0 = h + sigmoid(c) (tanh(g) - h)
    [c, g] = W_i s_j                 s_i = s_j + sigmoid(c) (f(g) - s_j)      j < i and f decided, for each node i
    h_t = mean of s_1 .. s_N

Every node has one matrix, whatever it reads and applies: that is what cells share in a supernet. Decisions:
``f1``, ``f2`` … and ``from2``, ``from3`` … (node 1 can only read s_0). No known difference from the cell of DARTS but
for dropout, which is left out, and that no batch norm is put in while searching.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice, Inputs
from archipel.core.decision import Arch
from archipel.core.errors import SpaceError, suggest
from archipel.spaces.module_space import ModuleSpace

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


class RecurrentCell(nn.Module):
    """One step; ``x [B, width], h [B, width] -> h [B, width]``."""

    def __init__(self, width: int, nodes: int, activations: Sequence[str]) -> None:
        super().__init__()
        self.first = nn.Linear(2 * width, 2 * width, bias=False)
        self.matrices = nn.ModuleList(nn.Linear(width, 2 * width, bias=False) for _ in range(nodes))
        self.applied = nn.ModuleList(
            Choice(f"f{i}", {a: ACTIVATIONS[a]() for a in activations}) for i in range(1, nodes + 1)
        )
        self.sources = nn.ModuleList(
            Inputs(f"from{i}", [nn.Identity() for _ in range(i)], k=1) for i in range(2, nodes + 1)
        )

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        gate, new = self.first(torch.cat([x, h], -1)).chunk(2, -1)
        states = [h + torch.sigmoid(gate) * (torch.tanh(new) - h)]
        for i, (matrix, f) in enumerate(zip(self.matrices, self.applied)):
            s = self.sources[i - 1](states) if i else states[0]
            gate, new = matrix(s).chunk(2, -1)
            states.append(s + torch.sigmoid(gate) * (f(new) - s))
        return torch.stack(states[1:]).mean(0)


class RecurrentModel(nn.Module):
    """Embedding, cell, linear layer; ids ``[B, T] ->`` logits ``[B, T, tokens]``."""

    def __init__(self, tokens: int, width: int, nodes: int, activations: Sequence[str]) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.cell = RecurrentCell(width, nodes, activations)
        self.out = nn.Linear(width, tokens)

    def forward(self, ids: Tensor) -> Tensor:
        xs = self.embed(ids)
        h = torch.zeros_like(xs[:, 0])
        states = []
        for x in xs.unbind(1):
            h = self.cell(x, h)
            states.append(h)
        return self.out(torch.stack(states, 1))


class RecurrentSpace(ModuleSpace):
    """Language models of one recurrent cell; see the module.

    Args:
        input_shape: ``(T,)``, the length of a text.
        classes: number of different tokens.
        width: features of the state and the embedding.
        nodes: N of the cell; 2 for the space that is small enough to be known in full (DARTS: 8).
        activations: of "tanh", "relu", "sigmoid", "identity".

    Raises:
        SpaceError: the input is no text, no node, or an unknown activation.

    >>> space = RecurrentSpace((16,), 50)
    >>> space.size, len({space.canonical(a) for a in space.enumerate()})
    (32, 26)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        width: int = 32,
        nodes: int = 2,
        activations: Sequence[str] = tuple(ACTIVATIONS),
    ) -> None:
        if len(input_shape) != 1:
            raise SpaceError(f"recurrent: needs token ids (T,), not inputs of shape {tuple(input_shape)}.")
        if nodes < 1 or width < 1:
            raise SpaceError(f"recurrent: width and number of nodes must be positive, not {width} and {nodes}.")
        for a in activations:
            if a not in ACTIVATIONS:
                raise SpaceError(f"recurrent: activation {a!r} is unknown. {suggest(a, ACTIVATIONS)}")
        self.nodes = nodes
        factory = functools.partial(RecurrentModel, classes, width, nodes, tuple(activations))
        super().__init__(factory, torch.zeros(2, *input_shape, dtype=torch.int64), name="recurrent")

    def canonical(self, arch: Arch) -> str:
        """Equal for cells that differ only in the numbering of their nodes: a cell is a tree of activations."""
        read_by: dict[int, list[int]] = {}
        for i in range(1, self.nodes + 1):
            read_by.setdefault(int(arch[f"from{i}"]) if i > 1 else 0, []).append(i)

        def tree(i: int) -> list[Any]:
            return [arch[f"f{i}"] if i else "", sorted((tree(j) for j in read_by.get(i, [])), key=json.dumps)]

        return json.dumps(tree(0))
