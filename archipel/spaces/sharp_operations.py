"""Operations of sharpDARTS: one general block for all separable convolutions, and pools that change channels.

Hundt, Jain, Hager. sharpDARTS: Faster and More Accurate Differentiable Architecture Search. 2019.
https://arxiv.org/abs/1903.09900

    SharpSepConv    ReLU -> depthwise k×k (stride, dilation) -> 1×1 to C_mid -> BN
                 -> ReLU -> depthwise k×k -> 1×1 to C_out -> BN
    ResizablePool   3×3 pool -> 1×1 to C_out -> BN

C_mid is C_out for separable and dilated convolutions, 4 C_out for "flood" and 32 for "choke" ones, so that all have the
same depth; in DARTS a dilated convolution has half of a separable one's. Sets by name, each for any cell of edges with
the signature of :func:`~archipel.spaces.operations.darts_operations`:

    sharp           none, max pool, skip, and {sep, dil, flood, dil_flood, choke, dil_choke}_conv_3x3
    sharp-darts     the eight operations of DARTS with SharpSepConv inside

Differs from the reference code in that pools with equal channels are those of DARTS, without a convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from archipel.core.errors import ShapeError
from archipel.spaces.operations import (
    DropPath,
    FactorizedReduce,
    OpFactory,
    Zero,
    darts_operations,
    pool,
)

FLOOD = 4  # times as many channels between the two halves
CHOKE = 32  # channels between the two halves, whatever the edge has

# label -> (factor of C_out or None for CHOKE, kernel, dilation)
SHARP_CONVS: dict[str, tuple[int | None, int, int]] = {
    "sep_conv_3x3": (1, 3, 1),
    "dil_conv_3x3": (1, 3, 2),
    "flood_conv_3x3": (FLOOD, 3, 1),
    "dil_flood_conv_3x3": (FLOOD, 3, 2),
    "choke_conv_3x3": (None, 3, 1),
    "dil_choke_conv_3x3": (None, 3, 2),
}
SHARP_PRIMITIVES = ("none", "max_pool_3x3", "skip_connect", *SHARP_CONVS)
DARTS_CONVS: dict[str, tuple[int | None, int, int]] = {
    "sep_conv_3x3": (1, 3, 1),
    "sep_conv_5x5": (1, 5, 1),
    "dil_conv_3x3": (1, 3, 2),
    "dil_conv_5x5": (1, 5, 2),
}


class SharpSepConv(nn.Sequential):
    """Two separable convolutions with a width of their own between; ``[B, C_in, H, W] -> [B, C_out, H/stride, …]``.

    Args:
        c_in, c_out: channels.
        kernel: odd, so that padding keeps the size.
        stride, dilation: of the first half.
        mult: C_mid = mult · C_out.
        c_mid: C_mid itself, instead of ``mult``.
        affine: whether batch norms scale and shift.

    Raises:
        ShapeError: an even kernel.

    >>> [sum(p.numel() for p in SharpSepConv(16, c, 3).parameters()) for c in (16, 32)]
    [864, 2096]
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        mult: int = 1,
        c_mid: int | None = None,
        affine: bool = True,
    ) -> None:
        if kernel % 2 == 0:
            raise ShapeError(f"SharpSepConv keeps the size by padding, so its kernel must be odd, not {kernel}.")
        mid = mult * c_out if c_mid is None else c_mid
        super().__init__(
            *_half(c_in, mid, kernel, stride, dilation, affine),
            *_half(mid, c_out, kernel, 1, 1, affine),
        )


def _half(c_in: int, c_out: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    pad = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(c_in, c_in, kernel, stride, pad, dilation, groups=c_in, bias=False),
        nn.Conv2d(c_in, c_out, 1, bias=False),
        nn.BatchNorm2d(c_out, affine=affine),
    ]


def resizable_pool(
    kind: type[nn.MaxPool2d] | type[nn.AvgPool2d], c_in: int, c_out: int, stride: int, affine: bool = True
) -> nn.Module:
    """3×3 pooling that may change the number of channels; where it does not, a pool as in DARTS cells."""
    if c_in == c_out:
        return pool(kind, c_in, stride, norm=not affine)
    layer = pool(kind, c_in, stride, norm=False)
    return nn.Sequential(layer, nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out, affine=affine))


def _sharp(table: Mapping[str, tuple[int | None, int, int]], affine: bool) -> dict[str, OpFactory]:
    def make(factor: int | None, kernel: int, dilation: int) -> OpFactory:
        def op(c: int, stride: int) -> nn.Module:
            mid = CHOKE if factor is None else factor * c
            return SharpSepConv(c, c, kernel, stride, dilation, c_mid=mid, affine=affine)

        return op

    return {label: make(*spec) for label, spec in table.items()}


def sharp_operations(searching: bool, drop_path: float = 0.0) -> dict[str, OpFactory]:
    """The nine primitives of sharpDARTS, ``none`` last.

    Args:
        searching: no affine parameters, pools are normalised.
        drop_path: if positive, every operation but the identity ends in a drop-path.
    """
    affine = not searching

    def skip(c: int, stride: int) -> nn.Module:
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine)

    plain: dict[str, OpFactory] = {
        "max_pool_3x3": lambda c, s: pool(nn.MaxPool2d, c, s, searching),
        "skip_connect": skip,
        **_sharp(SHARP_CONVS, affine),
    }
    return {**_dropping(plain, drop_path), "none": lambda c, s: Zero(s)}


def sharp_darts_operations(searching: bool, drop_path: float = 0.0) -> dict[str, OpFactory]:
    """The eight operations of DARTS whose convolutions are :class:`SharpSepConv`; see :func:`sharp_operations`."""
    sharp = _dropping(_sharp(DARTS_CONVS, not searching), drop_path)
    return {**darts_operations(searching, drop_path), **sharp}


def _dropping(plain: Mapping[str, OpFactory], p: float) -> dict[str, OpFactory]:
    def wrap(make: OpFactory) -> OpFactory:
        def wrapped(c: int, stride: int) -> nn.Module:
            op = make(c, stride)
            return op if isinstance(op, nn.Identity) else nn.Sequential(op, DropPath(p))

        return wrapped

    return {label: wrap(make) for label, make in plain.items()} if p else dict(plain)


Operations = Callable[[bool, float], Mapping[str, OpFactory]]

OPERATIONS: dict[str, Operations] = {
    "darts": darts_operations,
    "sharp": sharp_operations,
    "sharp-darts": sharp_darts_operations,
}
