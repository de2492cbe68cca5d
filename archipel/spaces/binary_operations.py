"""Operations whose convolutions have one bit for each weight and each input.

Chen, Zhang, Liu, Liu, Doermann, Ji, Guo. Binarized Neural Architecture Search. 2019. https://arxiv.org/abs/1911.10862
Rastegari, Ordonez, Redmon, Farhadi. XNOR-Net. 2016. https://arxiv.org/abs/1603.05279

    x -> BN -> sign(x) -> convolution with Ŵ = mean|W| sign(W)        mean over each output channel, sign(0) = +1
    ∂L/∂x = ∂L/∂sign(x) · 1[|x| ≤ 1]
    ∂L/∂W = ∂L/∂Ŵ · mean|W| · 1[|W| ≤ 1]                              the scale counts as a constant
    projected (PCNN)   Ŵ = C sign(W) with a learned C,   projection loss ½ ‖W − C sign(W)‖²

Padding is with zeros, after the sign. Every convolution of the DARTS cell is replaced in this way, those that bring a
cell's inputs to its number of channels and those of a reducing skip included; ReLUs give way to signs. The first
convolution and the classifier stay in full precision. PCNN projects kernels by matrices; here C is one number for each
output channel, so that both kinds are stored alike. PyTorch has no kernels for bits: nothing here is faster.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.errors import ShapeError
from archipel.spaces.operations import DropPath, OpFactory, Zero, join, pool
from archipel.spaces.quantised import straight_through


def sign(x: Tensor) -> Tensor:
    """−1 or +1 (for 0, too), with the gradient of the identity where ``|x| ≤ 1`` and 0 elsewhere.

    >>> sign(torch.tensor([-2.0, 0.0, 0.5]))
    tensor([-1.,  1.,  1.])
    """
    return straight_through(torch.where(x < 0, -1.0, 1.0).to(x.dtype), x.clamp(-1.0, 1.0))


class BinaryConv2d(nn.Conv2d):
    """Convolution of signs; ``[B, c_in, H, W] -> [B, c_out, H', W']``, without a bias.

    Args:
        projected: whether the scales are learned (PCNN) instead of mean|W|.
        others: as for ``nn.Conv2d``.
    """

    def __init__(self, c_in: int, c_out: int, kernel_size: int, *args: Any, projected: bool = False, **kw: Any) -> None:
        self.projected = projected
        super().__init__(c_in, c_out, kernel_size, *args, bias=False, **kw)
        self.scale = nn.Parameter(self.weight.new_empty(c_out, 1, 1, 1)) if projected else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        scale = getattr(self, "scale", None)  # not there yet when nn.Conv2d calls this
        if scale is not None:
            with torch.no_grad():
                scale.copy_(self.mean_magnitude())

    def mean_magnitude(self) -> Tensor:
        """mean|W| over each output channel, ``[c_out, 1, 1, 1]``, a constant."""
        return self.weight.detach().abs().mean((1, 2, 3), keepdim=True)

    def binary_weight(self) -> Tensor:
        """Ŵ: two values in each output channel."""
        scale = self.mean_magnitude() if self.scale is None else self.scale
        return scale * sign(self.weight)

    def projection_loss(self) -> Tensor:
        """½ ‖W − Ŵ‖²."""
        return 0.5 * ((self.weight - self.binary_weight()) ** 2).sum()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            sign(x), self.binary_weight(), None, self.stride, self.padding, self.dilation, self.groups  # type: ignore[arg-type]
        )  # fmt: skip

    @property
    def bits(self) -> int:
        """Stored: one for each weight, and a 32-bit scale for each output channel."""
        return self.weight.numel() + 32 * self.out_channels


class BinaryUnit(nn.Sequential):
    """Batch norm, then a binary convolution: without the norm, signs of one-sided inputs would all be equal.

    Raises:
        ShapeError: no batch norm of the convolution's input channels.
    """

    def __init__(self, norm: nn.Module, conv: BinaryConv2d) -> None:
        if not isinstance(norm, nn.BatchNorm2d) or norm.num_features != conv.in_channels:
            raise ShapeError(
                f"A binary convolution of {conv.in_channels} channels needs a batch norm of {conv.in_channels} "
                f"features before its sign, not {norm}."
            )
        super().__init__(norm, conv)


def unit(
    c_in: int, c_out: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1,
    affine: bool = True, projected: bool = False,
) -> BinaryUnit:  # fmt: skip
    """A binary convolution that keeps the size at stride 1."""
    pad = dilation * (kernel // 2)
    conv = BinaryConv2d(c_in, c_out, kernel, stride, pad, dilation, groups, projected=projected)
    return BinaryUnit(nn.BatchNorm2d(c_in, affine=affine), conv)


class BinaryReduce(nn.Module):
    """A factorized reduction of signs; see :class:`~archipel.spaces.operations.FactorizedReduce`.

    Raises:
        ShapeError: an odd number of output channels.
    """

    def __init__(self, c_in: int, c_out: int, affine: bool = True, projected: bool = False) -> None:
        super().__init__()
        if c_out % 2:
            raise ShapeError(f"A factorized reduction halves its output channels, so they must be even, not {c_out}.")
        self.norm = nn.BatchNorm2d(c_in, affine=affine)
        self.even = BinaryConv2d(c_in, c_out // 2, 1, 2, projected=projected)
        self.odd = BinaryConv2d(c_in, c_out // 2, 1, 2, projected=projected)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return join(x, 2, self.even(x), self.odd(x[..., 1:, 1:]))


def separable(c: int, kernel: int, stride: int, dilation: int, affine: bool, projected: bool) -> list[nn.Module]:
    """One binary filter for each channel, then a binary pointwise convolution."""
    return [
        unit(c, c, kernel, stride, dilation, groups=c, affine=affine, projected=projected),
        unit(c, c, affine=affine, projected=projected),
    ]


def binary_operations(searching: bool, drop_path: float = 0.0, projected: bool = False) -> dict[str, OpFactory]:
    """The eight operations of the DARTS cell, binarised; see :func:`~archipel.spaces.operations.darts_operations`.

    >>> sum(p.numel() for p in binary_operations(True)["sep_conv_3x3"](16, 1).parameters())
    800
    """
    affine = not searching

    def skip(c: int, stride: int) -> nn.Module:
        return nn.Identity() if stride == 1 else BinaryReduce(c, c, affine, projected)

    def sep(kernel: int) -> OpFactory:
        return lambda c, s: nn.Sequential(
            *separable(c, kernel, s, 1, affine, projected), *separable(c, kernel, 1, 1, affine, projected)
        )

    def dil(kernel: int) -> OpFactory:
        return lambda c, s: nn.Sequential(*separable(c, kernel, s, 2, affine, projected))

    plain: dict[str, OpFactory] = {
        "max_pool_3x3": lambda c, s: pool(nn.MaxPool2d, c, s, searching),
        "avg_pool_3x3": lambda c, s: pool(nn.AvgPool2d, c, s, searching),
        "skip_connect": skip,
        "sep_conv_3x3": sep(3),
        "sep_conv_5x5": sep(5),
        "dil_conv_3x3": dil(3),
        "dil_conv_5x5": dil(5),
    }
    if drop_path:
        plain = {label: _dropping(make, drop_path) for label, make in plain.items()}
    return {**plain, "none": lambda c, s: Zero(s)}


def _dropping(make: OpFactory, p: float) -> OpFactory:
    def wrapped(c: int, stride: int) -> nn.Module:
        op = make(c, stride)
        return op if isinstance(op, nn.Identity) else nn.Sequential(op, DropPath(p))

    return wrapped


def projected_operations(searching: bool, drop_path: float = 0.0) -> dict[str, OpFactory]:
    """The same with learned scales."""
    return binary_operations(searching, drop_path, projected=True)


def binary_inputs(c_in: int, c_out: int, reduce: bool, affine: bool, projected: bool = False) -> nn.Module:
    """How a cell brings an input to its number of channels (and half the side)."""
    return (
        BinaryReduce(c_in, c_out, affine, projected)
        if reduce
        else unit(c_in, c_out, affine=affine, projected=projected)
    )


def projected_inputs(c_in: int, c_out: int, reduce: bool, affine: bool) -> nn.Module:
    """The same with learned scales."""
    return binary_inputs(c_in, c_out, reduce, affine, projected=True)


def binary_edge_operations(affine: bool) -> dict[str, OpFactory]:
    """The five operations of NAS-Bench-201, binarised."""
    return {
        "none": lambda c, s: Zero(s),
        "skip": lambda c, s: nn.Identity(),
        "conv1x1": lambda c, s: unit(c, c, 1, s, affine=affine),
        "conv3x3": lambda c, s: unit(c, c, 3, s, affine=affine),
        "avgpool3x3": lambda c, s: nn.AvgPool2d(3, s, padding=1, count_include_pad=False),
    }


def projection_loss(net: nn.Module) -> Tensor:
    """½ Σ ‖W − C sign(W)‖² over all binary convolutions of a network."""
    terms = [m.projection_loss() for m in net.modules() if isinstance(m, BinaryConv2d)]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def weight_bits(net: nn.Module) -> int:
    """Bits of all stored parameters: binary kernels as they are, everything else 32 a number.

    >>> weight_bits(BinaryConv2d(16, 16, 3)), weight_bits(nn.Conv2d(16, 16, 3, bias=False))
    (2816, 73728)
    """
    binary = {id(p): m for m in net.modules() if isinstance(m, BinaryConv2d) for p in m.parameters()}
    kernels = {id(m): m.bits for m in binary.values()}
    return sum(kernels.values()) + sum(32 * p.numel() for p in net.parameters() if id(p) not in binary)
