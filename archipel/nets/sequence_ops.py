"""Operations on sequences, all ``[B, T, C] -> [B, T, C]``: what can stand in a node of a searched Transformer.

Zhao, Dong, Shen, Zhang, Wei, Chen. Memory-Efficient Differentiable Transformer Architecture Search. 2021.
https://arxiv.org/abs/2105.14669  (the set)
Wu, Fan, Baevski, Dauphin, Auli. Pay Less Attention with Lightweight and Dynamic Convolutions. 2019.
https://arxiv.org/abs/1901.10430  (dynamic convolution)

    conv_k          convolution over time
    dynamic_conv_k  v = GLU(W h);  y_t = W' Σ_j softmax_j(U h_t)_j · v_{t+j}, a kernel for each position and head
    attention       self-attention; cross_attention: keys and values from the encoder's output
    glu, ffn        a ⊙ sigmoid(b) with (a, b) = W h;  W' relu(W h) with 4C inside
    zero, identity

All but the last two are wrapped as õ(h) = LayerNorm(h + dropout(o(h))). Causal ones see no later position.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.errors import ShapeError

CONVS, DYNAMIC_CONVS = (3, 5, 7, 11), (3, 7, 11, 15)


class SequenceConv(nn.Module):
    """Convolution over time that keeps the length.

    Args:
        kernel: odd.
        causal: whether it reaches back only.
    """

    def __init__(self, C: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(C, C, kernel)
        self.pad = (kernel - 1, 0) if causal else (kernel // 2, kernel // 2)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.pad(h.transpose(1, 2), self.pad)).transpose(1, 2)


class DynamicConv(nn.Module):
    """Depthwise convolution whose normalised kernels are computed from each position.

    Raises:
        ShapeError: heads that do not divide the channels.
    """

    def __init__(self, C: int, kernel: int, heads: int, causal: bool) -> None:
        super().__init__()
        check_heads(C, heads)
        self.heads, self.kernel = heads, kernel
        self.pad = (kernel - 1, 0) if causal else (kernel // 2, kernel // 2)
        self.inside, self.kernels, self.out = nn.Linear(C, 2 * C), nn.Linear(C, heads * kernel), nn.Linear(C, C)

    def forward(self, h: Tensor) -> Tensor:
        v = F.glu(self.inside(h), -1)
        # Heads come last: a softmax over a short last axis takes twice as long.
        w_BTKH = torch.softmax(self.kernels(h).unflatten(-1, (self.kernel, self.heads)), -2)
        windows_BTHDK = F.pad(v, (0, 0, *self.pad)).unfold(1, self.kernel, 1).unflatten(2, (self.heads, -1))
        return self.out(torch.einsum("btkh,bthdk->bthd", w_BTKH, windows_BTHDK).flatten(2))


class SequenceAttention(nn.Module):
    """Multi-head attention, to itself or to a memory ``[B, S, memory]``.

    Raises:
        ShapeError: heads that do not divide the channels.
    """

    def __init__(self, C: int, heads: int, causal: bool = False, memory: int | None = None) -> None:
        super().__init__()
        check_heads(C, heads)
        self.heads, self.causal = heads, causal
        source = C if memory is None else memory
        self.query, self.key, self.value = nn.Linear(C, C), nn.Linear(source, C), nn.Linear(source, C)
        self.out = nn.Linear(C, C)

    def forward(self, h: Tensor, memory: Tensor | None = None) -> Tensor:
        source = h if memory is None else memory
        triple = (self.query(h), self.key(source), self.value(source))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in triple)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal and memory is None)
        return self.out(mixed.transpose(1, 2).flatten(2))


class GatedLinear(nn.Module):
    def __init__(self, C: int) -> None:
        super().__init__()
        self.linear = nn.Linear(C, 2 * C)

    def forward(self, h: Tensor) -> Tensor:
        return F.glu(self.linear(h), -1)


def feed_forward(C: int, expand: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(C, expand * C), nn.ReLU(), nn.Linear(expand * C, C))


class Residual(nn.Module):
    """õ(h) = LayerNorm(h + dropout(o(h))).

    Args:
        reads_memory: whether the operation takes the encoder's output, too.
    """

    def __init__(self, C: int, op: nn.Module, dropout: float = 0.0, reads_memory: bool = False) -> None:
        super().__init__()
        self.op, self.norm, self.dropout = op, nn.LayerNorm(C), nn.Dropout(dropout)
        self.reads_memory = reads_memory

    def forward(self, h: Tensor, memory: Tensor | None = None) -> Tensor:
        y = self.op(h, memory) if self.reads_memory else self.op(h)
        return self.norm(h + self.dropout(y))


class Same(nn.Module):
    """The identity."""

    def forward(self, h: Tensor, memory: Tensor | None = None) -> Tensor:
        return h


def check_heads(C: int, heads: int) -> None:
    if C % heads:
        raise ShapeError(
            f"{heads} heads cannot share {C} channels equally. Take a multiple of {heads}, or fewer heads."
        )


def sequence_operations(
    C: int, heads: int = 8, causal: bool = False, dropout: float = 0.0, memory: int | None = None
) -> dict[str, Callable[[], nn.Module]]:
    """The 12 operations of an encoder (13 of a decoder) but ``zero``, by name.

    Args:
        C: channels.
        memory: features of the encoder's output; adds ``cross_attention``.

    >>> len(sequence_operations(16)), len(sequence_operations(16, memory=32))
    (12, 13)
    """
    made: dict[str, Callable[[], nn.Module]] = {
        **{f"conv_{k}": lambda k=k: SequenceConv(C, k, causal) for k in CONVS},
        **{f"dynamic_conv_{k}": lambda k=k: DynamicConv(C, k, heads, causal) for k in DYNAMIC_CONVS},
        "attention": lambda: SequenceAttention(C, heads, causal),
        "glu": lambda: GatedLinear(C),
        "ffn": lambda: feed_forward(C),
    }
    out: dict[str, Callable[[], nn.Module]] = {
        name: lambda make=make: Residual(C, make(), dropout) for name, make in made.items()
    }
    if memory is not None:
        out["cross_attention"] = lambda: cross_attention(C, heads, memory, dropout)
    return {**out, "identity": Same}


def cross_attention(C: int, heads: int, memory: int, dropout: float = 0.0) -> nn.Module:
    """Attention to the encoder's output, wrapped."""
    return Residual(C, SequenceAttention(C, heads, memory=memory), dropout, reads_memory=True)
