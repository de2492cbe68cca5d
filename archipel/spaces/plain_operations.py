"""Operations of hand-made networks, for cells that start from one: plain, factorised and bottleneck convolutions.

Heuillet, Tabia, Arioui, Youcef-Toumi. D-DARTS: Distributed Differentiable Architecture Search. 2021.
https://arxiv.org/abs/2108.09306   (which operations, and their names)

All keep ``[B, C, H, W]`` but for a stride of 2, start with a ReLU and end with a batch norm, and have no bias.
"""

from __future__ import annotations

from torch import nn

from archipel.spaces.operations import DARTS_OPS, OpFactory, relu_conv_bn

BOTTLENECK = 4  # channels are divided by this inside (ResNet, https://arxiv.org/abs/1512.03385)


def factorised(c: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """A convolution along the width, then one along the height."""
    pad = kernel // 2
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c, c, (1, kernel), (1, stride), (0, pad), bias=False),
        nn.Conv2d(c, c, (kernel, 1), (stride, 1), (pad, 0), bias=False),
        nn.BatchNorm2d(c, affine=affine),
    )


def bottleneck(c: int, stride: int, affine: bool) -> nn.Sequential:
    """1x1 to fewer channels, 3x3, 1x1 back."""
    inner = max(1, c // BOTTLENECK)
    return nn.Sequential(
        *relu_conv_bn(c, inner, 1, affine=affine),
        *relu_conv_bn(inner, inner, 3, stride, affine),
        *relu_conv_bn(inner, c, 1, affine=affine),
    )


def plain_operations(affine: bool) -> dict[str, OpFactory]:
    """The five operations, by name.

    >>> sum(p.numel() for p in plain_operations(False)["conv_3x1_1x3"](4, 1).parameters())
    96
    """
    return {
        "conv_3x1_1x3": lambda c, s: factorised(c, 3, s, affine),
        "conv_7x1_1x7": lambda c, s: factorised(c, 7, s, affine),
        "simple_conv_1x1": lambda c, s: relu_conv_bn(c, c, 1, s, affine),
        "simple_conv_3x3": lambda c, s: relu_conv_bn(c, c, 3, s, affine),
        "bottleneck_1x3x1": lambda c, s: bottleneck(c, s, affine),
    }


ALL_OPS = (*DARTS_OPS, *plain_operations(True))
