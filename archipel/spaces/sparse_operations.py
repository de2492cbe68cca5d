"""Layers with learned masks, and operations of cells made of them.

Mousavi, Loni, Alibeigi, Daneshtalab. DASS: Differentiable Architecture Search for Sparse Neural Networks. 2022.
https://arxiv.org/abs/2207.06968
Sehwag, Wang, Mittal, Jana. HYDRA: Pruning Adversarially Robust Neural Networks. 2020.
https://arxiv.org/abs/2002.10509   (scores as large as a fresh layer's weights)

    forward    W ⊙ m,   m = 1 on the K = ⌈k n⌉ entries of largest |S|, of equals on the first
    backward   ∂L/∂W = ∂L/∂(W ⊙ m) ⊙ m,     ∂L/∂S = ∂L/∂(W ⊙ m) ⊙ W ⊙ sign(S)       (straight through to |S|)
    start      S = √(6 / fan-in) W / max|W|

The factor sign(S) makes a score step raise |S| of a masked weight that would lower the loss, whatever its sign; without
it, useful weights with negative scores would lose importance. Scores are buffers: they are no weights of the network
and take steps of their own. A mask spares no time in PyTorch, whose kernels are dense; count non-zeros instead.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.errors import UsageError
from archipel.cost.model import count_params
from archipel.spaces.nb201 import edge_operations
from archipel.spaces.operations import DropPath, OpFactory, darts_operations

SPARSE = "sparse_"  # what the label of a sparse operation begins with


def kept(n: int, k: float) -> int:
    """⌈k n⌉, at least 1; the fraction that floating point adds to a whole number does not count.

    Raises:
        UsageError: k is outside (0, 1].

    >>> kept(20, 1 - 0.95), kept(8, 0.25), kept(9, 0.25)
    (1, 2, 3)
    """
    if not 0.0 < k <= 1.0:
        raise UsageError(f"A keep ratio is above 0 and at most 1, not {k!r}; for a sparsity of 95 % it is 0.05.")
    return max(1, math.ceil(k * n - 1e-9))


def top_mask(score: Tensor, k: float) -> Tensor:
    """1 on exactly ⌈k n⌉ entries of largest magnitude, ties by index; the shape of ``score``.

    >>> top_mask(torch.tensor([[0.5, -1.0, 0.25, 0.0], [2.0, -0.5, 1.0, -0.1]]), 0.25)
    tensor([[0., 1., 0., 0.],
            [1., 0., 0., 0.]])
    """
    order = torch.argsort(score.detach().abs().flatten(), descending=True, stable=True)
    mask = torch.zeros(score.numel(), dtype=score.dtype, device=score.device)
    mask[order[: kept(score.numel(), k)]] = 1.0
    return mask.view_as(score)


class _Sparse(nn.Module):
    """What sparse layers share; mixed into a layer with a ``weight``.

    Attributes:
        score, mask: buffers of the weight's shape.
        keep: k, or None as long as there is no mask.
    """

    weight: nn.Parameter
    score: Tensor
    mask: Tensor
    keep: float | None

    def begin(self) -> None:
        """Scores from the weights as they are; no mask."""
        with torch.no_grad():
            if not hasattr(self, "score"):
                self.register_buffer("score", torch.zeros_like(self.weight))
                self.register_buffer("mask", torch.ones_like(self.weight))
            self.keep = None
            self.mask.fill_(1.0)
            fan_in = self.weight[0].numel()
            if not self.weight.is_meta:
                self.score.copy_(math.sqrt(6 / fan_in) * self.weight / self.weight.abs().max().clamp_min(1e-12))

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]
        self.begin()

    def set_keep(self, k: float) -> None:
        """Mask all but the ``⌈k n⌉`` weights of largest score.

        Raises:
            UsageError: k is outside (0, 1].
        """
        self.mask.copy_(top_mask(self.score, k))
        if k == self.keep:
            return
        self.keep = k
        n = self.weight.numel()
        if k * n < 1 - 1e-9:
            warnings.warn(f"layer n={n}, k={k:g} keeps 1: a share of k would be less than one weight.", stacklevel=2)
        groups = getattr(self, "groups", 1)
        empty = int((self.mask.flatten(1).sum(1) == 0).sum()) if groups > 1 else 0
        if empty:
            warnings.warn(f"layer n={n}, k={k:g} leaves {empty} of {len(self.mask)} channels empty.", stacklevel=2)

    def effective_weight(self) -> Tensor:
        """W ⊙ m; where scores learn, with their straight-through gradient."""
        w = self.weight if self.keep in (None, 1.0) else self.weight * self.mask
        if self.score.requires_grad:
            magnitude = self.score.abs()
            w = w + self.weight.detach() * (magnitude - magnitude.detach())
        return w

    def get_extra_state(self) -> dict[str, float | None]:
        return {"keep": self.keep}

    def set_extra_state(self, state: dict[str, float | None]) -> None:
        self.keep = state["keep"]

    @property
    def nonzeros(self) -> int:
        return int(self.mask.sum())


class SparseConv2d(_Sparse, nn.Conv2d):
    """Convolution with a masked weight; ``[B, c_in, H, W] -> [B, c_out, H', W']``."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective_weight()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]


class SparseLinear(_Sparse, nn.Linear):
    """Linear layer with a masked weight; ``[..., in] -> [..., out]``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight(), self.bias)


def sparse_layers(net: nn.Module) -> dict[str, _Sparse]:
    """The sparse layers of a network by name."""
    return {name: m for name, m in net.named_modules() if isinstance(m, _Sparse)}


def sparsified(module: nn.Module) -> nn.Module:
    """Every convolution and linear layer of a module becomes a sparse one with the same tensors, in place; no mask yet.

    Returns:
        the module, or the layer that takes its place.
    """
    for name, child in list(module.named_children()):
        setattr(module, name, sparsified(child))
    kind = {nn.Conv2d: SparseConv2d, nn.Linear: SparseLinear}.get(type(module))  # type: ignore[call-overload]
    if kind is None:
        return module
    module.__class__ = kind
    module.begin()  # type: ignore[operator]
    return module


def dense_label(label: str) -> str:
    """The operation that a sparse one becomes in the network that is built.

    >>> dense_label("sparse_sep_conv_3x3"), dense_label("skip_connect")
    ('sep_conv_3x3', 'skip_connect')
    """
    return label.removeprefix(SPARSE)


# --- operations ----------------------------------------------------------------------------------------------------


def _sparse_version(make: OpFactory, searching: bool, drop_path: float = 0.0) -> OpFactory:
    def op(c: int, stride: int) -> nn.Module:
        made = sparsified(make(c, stride)) if searching else make(c, stride)
        return nn.Sequential(made, DropPath(drop_path)) if drop_path else made

    return op


def sparse_operations(searching: bool, drop_path: float = 0.0) -> dict[str, OpFactory]:
    """Pools, the skip and four convolutions, these dense and sparse; dense all of them in the network that is built."""
    dense = {label: make for label, make in darts_operations(searching, drop_path).items() if label != "none"}
    plain = darts_operations(searching)
    sparse = {f"{SPARSE}{n}": _sparse_version(plain[n], searching, drop_path) for n in dense if "conv" in n}
    return {**dense, **sparse}


def sparse_edge_operations(affine: bool) -> dict[str, OpFactory]:
    """The operations of NAS-Bench-201 and a sparse 3x3 convolution; a supernet's norms are not affine."""
    plain = edge_operations(affine)
    return {**plain, f"{SPARSE}conv3x3": _sparse_version(plain["conv3x3"], searching=not affine)}


def sparse_classifier(features: int, classes: int, searching: bool) -> nn.Module:
    """The layer after the mean over positions."""
    return SparseLinear(features, classes) if searching else nn.Linear(features, classes)


# --- counting ------------------------------------------------------------------------------------------------------


def nonzero_params(net: nn.Module) -> int:
    """Trainable parameters that a mask does not set to zero."""
    zeros = sum(m.weight.numel() - m.nonzeros for m in sparse_layers(net).values())
    return count_params(net) - zeros


@torch.no_grad()
def nonzero_macs(net: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates for one input with weights that are not zero, of convolutions and linear layers."""
    total = 0

    def count(m: Any, args: Any, output: Tensor) -> None:
        nonlocal total
        weights = m.nonzeros if isinstance(m, _Sparse) else m.weight.numel()
        total += weights * (output[0].numel() // len(m.weight))  # every weight once at each position

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    was_training = net.training
    try:
        net.eval()(example[:1])
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    return total
