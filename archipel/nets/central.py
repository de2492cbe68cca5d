"""A central network of blocks that several tasks travel, each by a route of its own.

    v_j = A_j · in_k(x) + Σ_i Γ_ij · o_ij(v_i),        output_k = head_k(Σ_j B_j · v_j)

Blocks o_ij are shared by all tasks; adapters and heads are a task's own, and so are batch statistics. Nothing is
computed that a route gives the weight zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from archipel.core.errors import UsageError, suggest
from archipel.nets.batch_norm import switch, switchable


class ResidualBlock(nn.Module):
    """x + BN(ReLU(Wx)); ``[B, width] -> [B, width]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.BatchNorm1d(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class CentralNetwork(nn.Module):
    """``(x, task, A [N], B [N], Γ [N, N]) -> output of the task``.

    Args:
        allowed_NN: which edges there are.
        block: makes one.
        adapters, heads: task -> module to and from the width of the blocks.

    Raises:
        UsageError: tasks without an adapter or without a head.
    """

    def __init__(
        self,
        allowed_NN: Tensor,
        block: Callable[[], nn.Module],
        adapters: Mapping[str, nn.Module],
        heads: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        if set(adapters) != set(heads):
            raise UsageError(f"Every task needs an adapter and a head; only one of them: {set(adapters) ^ set(heads)}.")
        self.N = len(allowed_NN)
        self.blocks = nn.ModuleDict({f"{i}-{j}": block() for i, j in allowed_NN.nonzero().tolist()})
        self.adapters, self.heads = nn.ModuleDict(adapters), nn.ModuleDict(heads)
        switchable(self.blocks, list(adapters))

    def forward(self, x: Tensor, task: str, A_N: Tensor, B_N: Tensor, gamma_NN: Tensor) -> Tensor:
        features = self.trunk(x, task, A_N, B_N, gamma_NN)
        return self.heads[task](features)

    def trunk(self, x: Tensor, task: str, A_N: Tensor, B_N: Tensor, gamma_NN: Tensor) -> Tensor:
        """Σ_j B_j v_j.

        Raises:
            UsageError: an unknown task, or no node that is read out gets anything.
        """
        if task not in self.heads:
            raise UsageError(f"No task {task!r}. {suggest(task, self.heads)}")
        switch(self.blocks, task)
        adapted = self.adapters[task](x)
        live = {(i, j) for i, j in gamma_NN.detach().nonzero().tolist()}
        reads, writes = A_N.detach().tolist(), B_N.detach().tolist()
        states: list[Tensor | None] = []
        for j in range(self.N):
            terms = [A_N[j] * adapted] if reads[j] else []
            for i in range(j):
                source = states[i]
                if (i, j) in live and source is not None:
                    terms.append(gamma_NN[i, j] * self.blocks[f"{i}-{j}"](source))
            states.append(torch.stack(terms).sum(0) if terms else None)
        out = [B_N[j] * v for j, v in enumerate(states) if v is not None and writes[j]]
        if not out:
            raise UsageError(f"Task {task!r}: no node that is read out gets any input.")
        return torch.stack(out).sum(0)

    def prune(self, used: set[tuple[int, int]]) -> None:
        """Remove the blocks of edges that no task uses."""
        for name in list(self.blocks):
            i, j = map(int, name.split("-"))
            if (i, j) not in used:
                del self.blocks[name]
