"""Small causal language models over characters or bytes: decided depth, width, and how each block mixes its tokens.

Pre-norm residual blocks (Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762), each

    x = x + mix(norm(x));  x = x + mlp(norm(x))

where ``mix`` is causal self-attention, or a causal depthwise convolution between two linear maps with a gate (the
gated convolutions of Dauphin et al., 2016, https://arxiv.org/abs/1612.08083, with the depthwise filters of Wu et al.,
2019, https://arxiv.org/abs/1901.10430, here without the softmax over their taps). Positions are a learned table.
Smaller networks use the first channels and the most recent taps of the largest one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.choice import Choice, Decider, Depth, Extract, Kernel, Size, Undecided, Width, largest, size_at
from archipel.core.decision import Decision
from archipel.core.errors import SpaceError, suggest
from archipel.spaces.layers import ElasticConv1d, ElasticLayerNorm, ElasticLinear
from archipel.spaces.module_space import ModuleSpace


class ElasticEmbedding(Undecided, nn.Embedding):
    """Table of vectors with a decided number of features; ids ``[...] -> [..., width]``."""

    def __init__(self, count: int, width: Size) -> None:
        nn.Embedding.__init__(self, count, largest(width))
        self.size = width

    def own_decisions(self) -> list[Decision]:
        return [self.size] if isinstance(self.size, Decision) else []

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)  # unit variance would drown what the blocks add

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight[:, : size_at(self.size, self.seat.decider)])

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        width = size_at(self.size, decider)
        new = SmallEmbedding(self.num_embeddings, width, device="meta")
        new.weight = nn.Parameter(self.weight[:, :width].detach().clone())
        return new

    def live(self, decider: Decider) -> dict[str, tuple[slice, ...]]:
        return {"weight": (slice(self.num_embeddings), slice(size_at(self.size, decider)))}


class SmallEmbedding(nn.Embedding):
    """An embedding that starts small."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)


class CausalConv1d(ElasticConv1d):
    """Depthwise convolution over the present and the past; ``[B, C, T] -> [B, C, T]``.

    A smaller kernel is the most recent taps of the largest, not its centre.
    """

    def __init__(self, channels: Size, kernel: Size) -> None:
        super().__init__(channels, channels, kernel, depthwise=True)

    def _slices(self, decider: Decider) -> tuple[slice, ...]:
        channels, _, k = (size_at(s, decider) for s in self.sizes)
        full = self.weight.shape[-1]
        return (slice(channels), slice(1), slice(full - k, full))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, _, groups = self._now(self.seat.decider)
        return F.conv1d(F.pad(x, (weight.shape[-1] - 1, 0)), weight, bias, groups=groups)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        conv = super().extract(decider, inner)
        assert isinstance(conv, nn.Conv1d)
        past = conv.kernel_size[0] - 1
        conv.padding = (0,)
        conv._reversed_padding_repeated_twice = [0, 0]
        return nn.Sequential(nn.ConstantPad1d((past, 0), 0.0), conv)


class ConvMixer(nn.Module):
    """``W_out (conv(W_in x) * sigmoid(W_gate x))``; ``[B, T, C] -> [B, T, C]``."""

    def __init__(self, width: Size, kernel: Size) -> None:
        super().__init__()
        self.inside = ElasticLinear(width, width)
        self.gate = ElasticLinear(width, width)
        self.conv = CausalConv1d(width, kernel)
        self.out = ElasticLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.conv(self.inside(x).transpose(1, 2)).transpose(1, 2)
        return self.out(mixed * torch.sigmoid(self.gate(x)))


class Attention(nn.Module):
    """Causal self-attention with heads of a fixed size; ``[B, T, C] -> [B, T, C]``."""

    def __init__(self, width: Size, head: int) -> None:
        super().__init__()
        self.head = head
        self.query = ElasticLinear(width, width)
        self.key = ElasticLinear(width, width)
        self.value = ElasticLinear(width, width)
        self.out = ElasticLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, heads, T, head]
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Mix the tokens, then the features of each; ``[B, T, C] -> [B, T, C]``."""

    def __init__(self, width: Size, mixer: nn.Module, expand: Size) -> None:
        super().__init__()
        hidden: Size = width * expand  # type: ignore[operator]
        self.norm1, self.norm2 = ElasticLayerNorm(width), ElasticLayerNorm(width)
        self.mixer = mixer
        self.mlp = nn.Sequential(ElasticLinear(width, hidden), nn.GELU(), ElasticLinear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    """The largest model of the space; see :func:`language_space`. ids ``[B, T] ->`` logits ``[B, T, tokens]``."""

    def __init__(
        self,
        length: int,
        tokens: int,
        widths: Sequence[int],
        depth: tuple[int, int],
        mixers: Sequence[str],
        expand: Sequence[int],
        kernels: Sequence[int],
        head: int,
    ) -> None:
        super().__init__()
        width = Width("width", widths)

        def mixer(i: int) -> nn.Module:
            made = {
                "attention": lambda: Attention(width, head),
                "conv": lambda: ConvMixer(width, Kernel(f"block{i}.kernel", kernels)),
            }
            return Choice(f"block{i}.mixer", {m: made[m]() for m in mixers})

        self.embed = ElasticEmbedding(tokens, width)
        self.position = ElasticEmbedding(length, width)
        self.blocks = Depth(
            "depth", [Block(width, mixer(i), Width(f"block{i}.expand", expand)) for i in range(depth[1])], depth[0]
        )
        self.norm = ElasticLayerNorm(width)
        self.out = ElasticLinear(width, tokens)

    def forward(self, ids: Tensor) -> Tensor:
        position = self.position(torch.arange(ids.size(1), device=ids.device))
        return self.out(self.norm(self.blocks(self.embed(ids) + position)))


def language_space(
    input_shape: Sequence[int],
    classes: int,
    widths: Sequence[int] = (32, 48, 64),
    depth: tuple[int, int] = (1, 4),
    mixers: Sequence[str] = ("attention", "conv"),
    expand: Sequence[int] = (2, 4),
    kernels: Sequence[int] = (3, 5, 9),
    head: int = 16,
) -> ModuleSpace:
    """The space of small causal language models.

    Args:
        input_shape: ``(T,)``, the longest text.
        classes: number of different tokens.
        widths: options of the model's width; multiples of ``head``.
        depth: smallest and largest number of blocks.
        mixers: of "attention" and "conv", for each block.
        expand: options of each block's expansion in its MLP.
        kernels: options of each convolution's length, in tokens.
        head: features of an attention head.

    Raises:
        SpaceError: the input is no text, a width that heads do not divide, or an unknown mixer.

    >>> space = language_space((16,), 50)
    >>> space.build(space.sample(__import__("random").Random(0)))(space.example).shape
    torch.Size([2, 16, 50])
    """
    if len(input_shape) != 1:
        raise SpaceError(f"language: needs token ids (T,), not inputs of shape {tuple(input_shape)}.")
    if any(w % head for w in widths):
        raise SpaceError(f"language: widths {list(widths)} must be multiples of the head size {head}.")
    for m in mixers:
        if m not in ("attention", "conv"):
            raise SpaceError(f"language: mixer {m!r} is unknown. {suggest(m, ('attention', 'conv'))}")
    if not 0 <= depth[0] <= depth[1]:
        raise SpaceError(f"language: depth must be (smallest, largest), not {depth!r}.")
    factory = functools.partial(
        LanguageModel, input_shape[0], classes, tuple(widths), (depth[0], depth[1]), tuple(mixers), tuple(expand),
        tuple(kernels), head,
    )  # fmt: skip
    return ModuleSpace(factory, torch.zeros(2, *input_shape, dtype=torch.int64), name="language")
