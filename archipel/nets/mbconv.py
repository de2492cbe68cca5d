"""Inverted residual blocks of fixed size (MBConv), with squeeze-and-excitation if wanted.

Sandler et al. MobileNetV2: Inverted Residuals and Linear Bottlenecks. 2018. https://arxiv.org/abs/1801.04381
Squeeze-and-excitation as in Howard et al. Searching for MobileNetV3. 2019. https://arxiv.org/abs/1905.02244

    widen 1x1 (left out for expansion 1) -> filter each channel k x k -> perhaps reweight -> narrow 1x1, linear
    x is added where the stride is 1 and the channels stay

Convolutions have no bias, and batch norm follows each; the two of the squeeze-and-excitation have biases and no norm.
The blocks whose sizes are themselves decisions are those of :mod:`archipel.spaces.mobile`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from archipel.core.errors import ShapeError, suggest

Norm = Callable[[int], nn.Module]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "swish": nn.SiLU,
    "hard-swish": nn.Hardswish,
}


def activation(name: str) -> nn.Module:
    """
    Raises:
        ShapeError: an unknown name.
    """
    if name not in ACTIVATIONS:
        raise ShapeError(f"No activation {name!r}. {suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple (ties up), at least one of it and never more than a tenth below (MobileNetV2's rule).

    >>> [divisible(c) for c in (3, 12, 20, 18, 36)]
    [8, 16, 24, 24, 40]
    """
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def conv_norm(
    c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: str | None = None,
    norm: Norm = nn.BatchNorm2d,
) -> nn.Sequential:  # fmt: skip
    """Convolution with "same" padding and no bias, norm, and the activation unless None."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, norm(c_out), *([activation(act)] if act else []))


class SqueezeExcite(nn.Module):
    """Channels reweighted by a gate that sees their averages; ``[B, C, H, W] -> [B, C, H, W]``.

    Args:
        channels: C.
        reduced: channels between the two 1x1 convolutions.
        act: between them.
    """

    def __init__(self, channels: int, reduced: int, act: str = "relu") -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(channels, reduced, 1), activation(act), nn.Conv2d(reduced, channels, 1), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class MBConv(nn.Module):
    """Widen, filter each channel, perhaps reweight, narrow; ``[B, c_in, H, W] -> [B, c_out, H/stride, W/stride]``.

    Args:
        c_in, c_out: channels.
        kernel: odd side of the depthwise filters.
        expansion: between ``c_in`` and the channels that are filtered (rounded); 1 leaves the first convolution out.
        stride: 1 or 2.
        se: share of the filtered channels that squeeze-and-excitation keeps, rounded by :func:`divisible`; 0 for none.
        act: of :data:`ACTIVATIONS`; after widening and after filtering.
        norm: makes the norm of so many channels.
        residual: False leaves the addition of ``x`` out where it would be possible.

    Raises:
        ShapeError: an even kernel, another stride, or an expansion below 1.

    >>> block = MBConv(8, 8, kernel=3, expansion=3, se=0.25)
    >>> sum(p.numel() for p in block.parameters()), block.residual
    (1128, True)
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        expansion: float,
        stride: int = 1,
        se: float = 0.0,
        act: str = "relu6",
        norm: Norm = nn.BatchNorm2d,
        residual: bool = True,
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0 or stride not in (1, 2) or expansion < 1:
            raise ShapeError(
                f"MBConv takes an odd kernel, a stride of 1 or 2 and an expansion of at least 1, not kernel={kernel}, "
                f"stride={stride}, expansion={expansion}."
            )
        mid = round(c_in * expansion)
        self.residual = residual and stride == 1 and c_in == c_out
        self.body = nn.Sequential(
            *([conv_norm(c_in, mid, act=act, norm=norm)] if expansion != 1 else []),
            conv_norm(mid, mid, kernel, stride, groups=mid, act=act, norm=norm),
            *([SqueezeExcite(mid, divisible(se * mid))] if se else []),
            conv_norm(mid, c_out, norm=norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)
