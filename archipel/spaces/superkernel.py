"""Superkernels: one MBConv block of which all others of a layer are parts, and indicators that say which part is on.

Stamoulis, Ding, Wang, Lymberopoulos, Priyantha, Liu, Marculescu. Single-Path NAS: Designing Hardware-Efficient ConvNets
in less than 4 Hours. 2019. https://arxiv.org/abs/1904.02877

    I(x) = 1[x ≥ 0],  backwards as if it were σ(x)
    K = K_3 + K_ring          depthwise weights 5x5 of 6C channels: the inner 3x3, and the ring around it
    d5   = I(‖K_ring‖ − t5)             K' = K_3 + d5 K_ring
    d100 = I(‖K' of the further channels‖ − t100)           further: beyond those of the smaller expansion
    d50  = I(‖K' of the first channels‖ − t50)              1 where a layer cannot be skipped
    y = x + d50 · P(first + d100 · further)

The first channels are as many as the smaller block has: round(C · e), ties to even, so that odd numbers split too.
Differs from the paper in where d100 and d50 act. Multiplied into the kernel, a block's batch norms would turn their
zeros into their shifts, so that a layer could not be skipped and its half would not be the smaller block; and while on,
norms undo any scale, so that the loss would have no gradient for them. Here d100 acts behind the norm and activation of
the depthwise convolution and d50 behind the last norm, which is the same for a convolution alone.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.choice import Blend, Choice, Decider, Extract, Undecided
from archipel.core.decision import Decision
from archipel.core.errors import SpaceError, UsageError
from archipel.nets.mbconv import MBConv
from archipel.spaces.mbconv import SKIP, label_of
from archipel.spaces.operations import OpFactory

INDICATORS = ".indicators"  # of a layer: beside its name in a mixture's weights


class _Indicator(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        s = torch.sigmoid(ctx.saved_tensors[0])
        return grads[0] * s * (1 - s)


def indicator(x: Tensor) -> Tensor:
    """1 where x ≥ 0, else 0; its derivative is that of the sigmoid.

    >>> indicator(torch.tensor([-0.1, 0.0, 2.0]))
    tensor([0., 1., 1.])
    """
    return _Indicator.apply(x)  # type: ignore[return-value]


def option_weights(d: Tensor, skippable: bool) -> Tensor:
    """Indicators (d5, d100, d50) ``[3]`` as weights of the options ``[4]`` or, with skip, ``[5]``.

    Exactly one-hot for zeros and ones; in the order of :func:`labels_of`.

    >>> option_weights(torch.tensor([1.0, 0.0, 1.0]), True).tolist()
    [0.0, 0.0, 1.0, 0.0, 0.0]
    """
    d5, d100, d50 = d.unbind()
    on = [(1 - d5) * (1 - d100), (1 - d5) * d100, d5 * (1 - d100), d5 * d100]
    return torch.stack([d50 * w for w in on] + ([1 - d50] if skippable else []))


def labels_of(narrow: float, wide: float) -> list[str]:
    """The blocks of a layer, by kernel and then by expansion."""
    return [label_of(k, e) for k in (3, 5) for e in (narrow, wide)]


class Part(Undecided, nn.Module):
    """A superkernel with its indicators held: one of the blocks it is made of.

    Args:
        whole: it; not a child, since it belongs to the layer.
        template: that block, on the meta device.
        d: (d5, d100).
    """

    def __init__(self, whole: Superkernel, template: MBConv, d: tuple[float, float]) -> None:
        super().__init__()
        self.whole, self.template = (whole,), (template,)
        self.d = d

    def own_decisions(self) -> list[Decision]:
        return []

    def forward(self, x: Tensor) -> Tensor:
        return self.whole[0].masked(x, *self.d, 1.0)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        weights = self.whole[0].block.state_dict()
        device = next(iter(weights.values())).device
        block = copy.deepcopy(self.template[0]).to_empty(device=device)
        for name, t in block.state_dict().items():
            t.copy_(_part(weights[name], t.shape))
        return block.train(self.whole[0].training)


def _part(t: Tensor, shape: torch.Size) -> Tensor:
    """The first of the channels and the centre of the plane."""
    for axis, n in enumerate(shape):
        t = t.narrow(axis, 0 if axis < 2 else (t.shape[axis] - n) // 2, n)
    return t


class Superkernel(Choice):
    """A layer that chooses among the parts of one block; ``[B, c_in, H, W] -> [B, c_out, H/stride, W/stride]``.

    Args:
        name: of the decision.
        ops: factories of the blocks, by labels ``k{kernel}e{expansion}``, and perhaps of ``skip``.
        C, stride: of the layer.

    Raises:
        SpaceError: other kernels than 3 and 5, not two expansions above 1, or blocks that cannot be parts of one.

    Attributes:
        block: the largest block.
        narrow: number of its channels that the smaller expansion has.
    """

    def __init__(self, name: str, ops: Mapping[str, OpFactory], C: int, stride: int) -> None:
        expansions = _expansions(name, [label for label in ops if label != SKIP])
        labels = labels_of(*expansions)
        block = ops[labels[-1]](C, stride)
        with torch.device("meta"):
            templates = {label: ops[label](C, stride) for label in labels}
        if not isinstance(block, MBConv) or len(block.body) != 3:
            raise SpaceError(f"Layer {name!r} is made of {type(block).__name__}, not of MBConv blocks of three parts.")
        states = [(label, d5, d100) for label, (d5, d100) in zip(labels, ((0, 0), (0, 1), (1, 0), (1, 1)))]
        parts = {label: Part(self, templates[label], (d5, d100)) for label, d5, d100 in states}  # type: ignore[arg-type]
        skip = {SKIP: ops[SKIP](C, stride)} if SKIP in ops else {}
        options = {**parts, **skip}
        super().__init__(name, {label: options[label] for label in ops})
        self.block = block
        self.skippable = SKIP in ops
        self.narrow = templates[labels[0]].body[1][0].weight.shape[0]  # type: ignore[index, union-attr]
        # Where each of this layer's options stands in the weights of `option_weights`.
        order = [*labels, SKIP]
        self.order = [order.index(label) for label in ops]
        inner = torch.zeros(5, 5)
        inner[1:4, 1:4] = 1.0
        self.register_buffer("inner", inner, persistent=False)

    @property
    def kernel(self) -> Tensor:
        """K ``[channels, 1, 5, 5]``."""
        return self.block.body[1][0].weight  # type: ignore[index, return-value]

    def ringed(self, d5: Tensor | float) -> Tensor:
        """K' = K_3 + d5 K_ring."""
        return self.kernel * (self.inner + d5 * (1 - self.inner))  # type: ignore[operator]

    def decide(self, t: Tensor, keep: float = 1.0) -> Tensor:
        """Indicators (d5, d100, d50) ``[3]`` for thresholds (t5, t100, t50) ``[3]``.

        Args:
            keep: probability with which each stays what it is, and is not set to 0.
        """

        def on(weights: Tensor, threshold: Tensor) -> Tensor:
            d = indicator(torch.linalg.vector_norm(weights) - threshold)
            return d * (torch.rand(()) < keep) if keep < 1 else d

        d5 = on(self.kernel * (1 - self.inner), t[0])  # type: ignore[operator]
        K = self.ringed(d5)
        d50 = on(K[: self.narrow], t[2]) if self.skippable else torch.ones_like(d5)
        return torch.stack([d5, on(K[self.narrow :], t[1]), d50])

    def weights(self, d: Tensor) -> Tensor:
        """Weights of this layer's options for indicators."""
        return option_weights(d, self.skippable)[self.order]

    def masked(self, x: Tensor, d5: Tensor | float, d100: Tensor | float, d50: Tensor | float) -> Tensor:
        """The block with parts of it off; computes all of it, whatever is on."""
        widen, filter_, narrow = self.block.body
        conv, norm, act = filter_  # type: ignore[misc]
        y = F.conv2d(widen(x), self.ringed(d5), None, conv.stride, conv.padding, groups=conv.groups)
        y = act(norm(y))
        y = narrow(torch.cat([y[:, : self.narrow], d100 * y[:, self.narrow :]], 1))
        return x + d50 * y if self.block.residual else y

    def forward(self, *args: Any) -> Any:
        """
        Raises:
            UsageError: weights were passed in from outside, of which the indicators do not know.
        """
        decider = self.seat.decider
        d = decider.weights.get(self.decision.name + INDICATORS) if isinstance(decider, Blend) else None
        if d is None:
            return super().forward(*args)
        if not isinstance(self.kernel, nn.Parameter):
            raise UsageError(
                "Superkernels decide by their own weights, so searches that pass other weights in (of second order) do "
                "not go with them. Use arch_gradient=Together()."
            )
        return self.masked(*args, *d.unbind())


def _expansions(name: str, labels: Sequence[str]) -> list[float]:
    found = [re.fullmatch(r"k(\d+)e([\d.]+)", label) for label in labels]
    kernels = sorted({int(m[1]) for m in found if m})
    expansions = sorted({float(m[2]) for m in found if m})
    if (
        not all(found)
        or kernels != [3, 5]
        or len(expansions) != 2
        or expansions[0] <= 1
        or not math.isfinite(expansions[1])
        or len(labels) != 4
    ):
        raise SpaceError(
            f"A superkernel holds MBConv blocks of kernels 3 and 5 and of two expansions above 1, but layer {name!r} "
            f"has {', '.join(labels)}. Make the space with kernels=(3, 5) and, say, expansions=(3, 6)."
        )
    return expansions
