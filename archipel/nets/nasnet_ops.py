"""The thirteen operations of the NASNet search space, and what makes two hidden states match.

Zoph, Vasudevan, Shlens, Le. Learning Transferable Architectures for Scalable Image Recognition. 2017.
https://arxiv.org/abs/1707.07012, section 3 and appendix A.4

Every convolution is ReLU, convolution, batch norm; a separable one is applied twice, without anything between its
depthwise and its pointwise part (twice k x k depthwise and 1 x 1: 2 (C k^2 + C^2 + 2 C) parameters at equal widths).
An operation maps ``[B, in, H, W]`` to ``[B, out, ceil(H / stride), ceil(W / stride)]``; 1x1 convolutions are inserted
where identity or pooling alone would not do that.

Departures: padding is symmetric (the authors' code pads even sizes at stride 2 more below and to the right), and the
1x1 convolutions after pooling or on unused states have a ReLU before them, as the paper says of all convolutions (the
code leaves it out there). Neither changes a parameter count. The dilation rate, which the paper does not give, is 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.errors import ShapeError

EPS = 1e-3  # of all batch norms, from the authors' ImageNet settings


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPS)


def conv(cin: int, cout: int, kernel: tuple[int, int], stride: tuple[int, int] = (1, 1), dilation: int = 1) -> list:
    """ReLU, convolution with "same" padding, batch norm."""
    padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2))
    layer = nn.Conv2d(cin, cout, kernel, stride, padding, dilation, bias=False)
    return [nn.ReLU(), layer, batch_norm(cout)]


def square(cin: int, cout: int, stride: int, kernel: int, dilation: int = 1) -> nn.Module:
    return nn.Sequential(*conv(cin, cout, (kernel, kernel), (stride, stride), dilation))


def factorised(cin: int, cout: int, stride: int, kernel: int) -> nn.Module:
    """1 x k, then k x 1; each strides along its own axis."""
    first = conv(cin, cout, (1, kernel), (1, stride))
    return nn.Sequential(*first, *conv(cout, cout, (kernel, 1), (stride, 1)))


def separable(cin: int, cout: int, stride: int, kernel: int) -> nn.Module:
    """Twice a depthwise-separable convolution; the first one strides and changes the width."""
    layers: list[nn.Module] = []
    for width, step in ((cin, stride), (cout, 1)):
        depthwise = nn.Conv2d(width, width, kernel, step, kernel // 2, groups=width, bias=False)
        pointwise = nn.Conv2d(width, cout, 1, bias=False)
        layers += [nn.ReLU(), depthwise, pointwise, batch_norm(cout)]
    return nn.Sequential(*layers)


def identity(cin: int, cout: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 and cin == cout else square(cin, cout, stride, kernel=1)


def pool(cin: int, cout: int, stride: int, kind: str, kernel: int) -> nn.Module:
    """Average (of what lies inside the image) or maximum; a 1x1 convolution follows if the width changes."""
    layer: nn.Module
    if kind == "avg":
        layer = nn.AvgPool2d(kernel, stride, kernel // 2, count_include_pad=False)
    else:
        layer = nn.MaxPool2d(kernel, stride, kernel // 2)
    return layer if cin == cout else nn.Sequential(layer, *conv(cin, cout, (1, 1)))


# name -> (channels in, channels out, stride) -> module
OPS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "identity": identity,
    "conv1x3_3x1": partial(factorised, kernel=3),
    "conv1x7_7x1": partial(factorised, kernel=7),
    "dil3x3": partial(square, kernel=3, dilation=2),
    "avg3x3": partial(pool, kind="avg", kernel=3),
    "max3x3": partial(pool, kind="max", kernel=3),
    "max5x5": partial(pool, kind="max", kernel=5),
    "max7x7": partial(pool, kind="max", kernel=7),
    "conv1x1": partial(square, kernel=1),
    "conv3x3": partial(square, kernel=3),
    "sep3x3": partial(separable, kernel=3),
    "sep5x5": partial(separable, kernel=5),
    "sep7x7": partial(separable, kernel=7),
}


class FactorizedReduction(nn.Module):
    """Halves the size (rounding up) by two 1x1 convolutions, side by side, on grids of pixels shifted by one.

    ``[B, in, H, W]`` to ``[B, out, ceil(H / 2), ceil(W / 2)]``; the shifted grid sees zeros beyond the last row.
    """

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        if cout < 2:
            raise ShapeError(f"A factorised reduction puts two halves side by side; it needs 2 channels, not {cout}.")
        self.even = nn.Conv2d(cin, cout // 2, 1, bias=False)
        self.odd = nn.Conv2d(cin, cout - cout // 2, 1, bias=False)
        self.norm = batch_norm(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1::2, 1::2]
        return self.norm(torch.cat([self.even(x[:, :, ::2, ::2]), self.odd(shifted)], dim=1))
