"""Transformers of reversible layers whose nodes are undecided: the space of DARTSformer.

Zhao, Dong, Shen, Zhang, Wei, Chen. Memory-Efficient Differentiable Transformer Architecture Search. 2021.
https://arxiv.org/abs/2105.14669

    node       G_k = õ(pool of the n − 1 other parts): one of 13 operations in an encoder, 14 in a decoder
    block      s layers with decisions of their own, repeated with the same decisions and weights of their own
    encoder    n = 2 parts;  decoder  m = 3 parts, the last node always cross-attention
    network    factorised embedding (e, then d) + positions -> encoder (-> decoder) -> layer norm -> linear

There are |O|^(s(n + m − 1)) networks, 13^4 · 14^4 with s = 2. Decisions: ``enc0.g0`` is the first node of the first
encoder layer of a block. The searched network reconstructs its activations (see :mod:`archipel.nets.reversible`), an
extracted or built one is trained by ordinary backpropagation.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from archipel.core.choice import Blend, Choice, Decider, Extract, Undecided
from archipel.core.counting import Clause
from archipel.core.decision import Decision
from archipel.core.errors import SpaceError, suggest
from archipel.nets.reversible import Bind, ReversibleStack
from archipel.nets.sequence_ops import cross_attention, sequence_operations
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.operations import Zero

POOLS = ("max", "mean")
LONGEST_WAVE = 10_000  # in positions, over 2π (Transformer)


class ZeroUpdate(Zero):
    """Leaves the part as it is."""

    def forward(self, h: Tensor, memory: Tensor | None = None) -> Tensor:
        return torch.zeros_like(h)


class PooledNode(nn.Module):
    """G_k: an operation on the other parts, pooled element by element; n − 1 times ``[B, T, C] -> [B, T, C]``."""

    def __init__(self, op: nn.Module, pool: str) -> None:
        super().__init__()
        self.op, self.pool = op, pool

    def forward(self, inputs: Sequence[Tensor], *extras: Tensor) -> Tensor:
        h = inputs[0]
        for x in inputs[1:]:
            h = torch.maximum(h, x) if self.pool == "max" else h + x
        if self.pool == "mean" and len(inputs) > 1:
            h = h / len(inputs)
        return self.op(h, *extras)


class SearchedStack(Undecided, ReversibleStack):
    """A reversible stack with undecided nodes; mixture weights are ordinary inputs of its autograd function."""

    def own_decisions(self) -> list[Decision]:
        return []

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        for layer in self.layers:
            yield layer, frozenset()

    def outside(self) -> tuple[tuple[Tensor, ...], Bind]:
        decider = self.seat.decider
        nodes = [node for layer in self.layers for node in layer.nodes]  # type: ignore[union-attr]
        choices = dict.fromkeys(node.op.decision.name for node in nodes if isinstance(node.op, Choice))
        names = [n for n in choices if isinstance(decider, Blend) and n in decider.weights]

        @contextmanager
        def bind(tensors: Sequence[Tensor]) -> Iterator[None]:
            """Who decided in the forward pass decides again, with other tensors for the same weights."""
            seat, present = self.seat, self.seat.decider
            seat.decider = decider
            if isinstance(decider, Blend):
                seat.decider = type(decider)(dict(zip(names, tensors)), decider.mix, decider.arch)
            try:
                yield
            finally:
                seat.decider = present

        return tuple(decider.weights[n] for n in names) if isinstance(decider, Blend) else (), bind

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        nodes = [[inner(node) for node in layer.nodes] for layer in self.layers]  # type: ignore[union-attr]
        return ReversibleStack(nodes, self.width, self.splits, reconstruct=False)


class Positions(nn.Module):
    """Sines and cosines of each position are added; ``[B, T, d] -> [B, T, d]``.

    Vaswani et al. Attention Is All You Need. 2017. https://arxiv.org/abs/1706.03762
    """

    table: Tensor

    def __init__(self, length: int, d: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.empty(length, d), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        length, d = self.table.shape
        t = torch.arange(length, dtype=torch.float64)[:, None]
        angle = t * LONGEST_WAVE ** (-2 * torch.arange((d + 1) // 2, dtype=torch.float64) / d)
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :d]
        with torch.no_grad():
            self.table.copy_(waves)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


def searched_stack(
    name: str,
    d: int,
    splits: int,
    layers: int,
    repeats: int,
    heads: int,
    pool: str,
    dropout: float,
    causal: bool,
    reconstruct: bool,
    memory: int | None = None,
) -> SearchedStack:
    """``repeats`` blocks of ``layers`` layers; with a memory, the last node of each layer is cross-attention."""
    C = d // splits
    ops = sequence_operations(C, heads, causal, dropout, memory)

    def node(i: int, k: int) -> nn.Module:
        if memory is not None and k == splits - 1:
            return PooledNode(cross_attention(C, heads, memory, dropout), pool)
        made = {label: make() for label, make in ops.items()}
        return PooledNode(Choice(f"{name}{i}.g{k}", {**made, "zero": ZeroUpdate()}), pool)

    blocks = [[node(i, k) for k in range(splits)] for _ in range(repeats) for i in range(layers)]
    return SearchedStack(blocks, d, splits, reconstruct)


class ReversibleTransformer(nn.Module):
    """Token ids ``[B, T]`` to logits ``[B, T, tokens]``; with a decoder, of the positions after the source."""

    def __init__(
        self,
        length: int,
        tokens: int,
        d: int,
        embed: int,
        splits: int,
        layers: int,
        repeats: int,
        heads: int,
        pool: str,
        dropout: float,
        causal: bool,
        reconstruct: bool,
        source: int | None,
        decoder_splits: int,
    ) -> None:
        super().__init__()
        common = (layers, repeats, heads, pool, dropout)
        self.source = source
        self.embed = nn.Sequential(nn.Embedding(tokens, embed), nn.Linear(embed, d, bias=False))
        self.position = Positions(length if source is None else source, d)
        self.encoder = searched_stack("enc", d, splits, *common, causal, reconstruct)
        self.decoder = None
        if source is not None:
            self.target_position = Positions(length - source, d)
            self.decoder = searched_stack("dec", d, decoder_splits, *common, True, reconstruct, memory=d)
        self.out = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, tokens))

    def forward(self, ids: Tensor) -> Tensor:
        if self.decoder is None:
            return self.out(self.encoder(self.position(self.embed(ids))))
        memory = self.encoder(self.position(self.embed(ids[:, : self.source])))
        return self.out(self.decoder(self.target_position(self.embed(ids[:, self.source :])), memory))


def reversible_transformer_space(
    input_shape: Sequence[int],
    classes: int,
    d: int = 96,
    embed: int = 32,
    splits: int = 2,
    layers: int = 2,
    repeats: int = 1,
    heads: int = 8,
    pool: str = "max",
    dropout: float = 0.1,
    causal: bool = False,
    source: int | None = None,
    decoder_splits: int = 3,
    reconstruct: bool = True,
) -> ModuleSpace:
    """The space of reversible Transformers.

    Args:
        input_shape: ``(T,)``, the length of the token sequences.
        classes: number of different tokens.
        d, embed: width of the layers (the paper's 960) and of the embedding (256).
        splits: n, parts of the encoder's features; must divide ``d``.
        layers, repeats: s layers are decided, and repeated so many times.
        heads: of attention and of dynamic convolutions; must divide ``d/n``.
        pool: ``"max"`` or ``"mean"`` of the inputs of a node.
        dropout: of every operation.
        causal: whether the encoder must not look ahead, as for predicting the next token.
        source: with a decoder, how many tokens of the input are the source; the others are the target, shifted by one.
        decoder_splits: m, at least 2.
        reconstruct: whether the searched network reconstructs its activations.

    Raises:
        SpaceError: the input is no text, or settings that make no network.
        ShapeError: widths that parts or heads do not divide.

    >>> space = reversible_transformer_space((10,), 20, d=48, source=6)
    >>> space.size == 13**4 * 14**4 == 1_097_199_376
    True
    """
    if len(input_shape) != 1:
        raise SpaceError(f"A reversible Transformer takes token ids (T,), not inputs of shape {tuple(input_shape)}.")
    if source is not None and not 1 <= source < input_shape[0]:
        raise SpaceError(f"The source takes 1 to {input_shape[0] - 1} of {input_shape[0]} tokens, not {source}.")
    if source is not None and causal:
        raise SpaceError("With a decoder, it is the decoder that must not look ahead; leave causal out.")
    if pool not in POOLS:
        raise SpaceError(f"Inputs of a node are pooled by max or mean, not {pool!r}. {suggest(pool, POOLS)}")
    if layers < 1 or repeats < 1:
        raise SpaceError(f"A Transformer has at least one layer, once; got {layers} layers, {repeats} times.")
    factory = functools.partial(
        ReversibleTransformer, input_shape[0], classes, d, embed, splits, layers, repeats, heads, pool, dropout,
        causal, reconstruct, source, decoder_splits,
    )  # fmt: skip
    example = torch.zeros(2, *input_shape, dtype=torch.int64)
    return ModuleSpace(factory, example, name="reversible-transformer")
