"""The ShuffleNet-like space of single path one-shot search: which of four blocks at each of 20 places, and how wide.

Guo, Zhang, Mu, Heng, Liu, Wei, Sun. Single Path One-Shot Neural Architecture Search with Uniform Sampling. 2019.
https://arxiv.org/abs/1904.00420
Blocks after Ma et al., ShuffleNet V2, 2018, https://arxiv.org/abs/1807.11164, and Chollet, Xception, 2016,
https://arxiv.org/abs/1610.02357.

    stem 3x3/2 -> 16 -> stages of 4, 4, 8, 4 blocks at 64, 160, 320, 640 channels -> 1x1 -> 1024 -> mean -> linear

    shuffle3, shuffle5, shuffle7    1x1, depthwise k x k, 1x1
    xception                        depthwise 3x3 and 1x1, three times

A block of stride 1 passes the channels of even index on and works on those of odd index; the first block of a stage has
stride 2 and works on all of them, with a projection (depthwise k x k/2, 1x1) beside. Convolutions have no bias; batch
norm follows each; ReLU follows the stem and the 1x1 convolutions, none the depthwise ones. There is no max-pool.

With ``factors`` the middle channels of every block are decided too (the channel search): half of the block's
output times a factor, rounded down. A narrower block uses the first channels of the widest.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice, Size, Width
from archipel.core.decision import Arch
from archipel.core.errors import SpaceError
from archipel.spaces.layers import ElasticBatchNorm2d, ElasticConv2d
from archipel.spaces.module_space import ModuleSpace

BLOCKS = ("shuffle3", "shuffle5", "shuffle7", "xception")
# Factors of the middle channels in the paper's channel search.
FACTORS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)


def pointwise(i: Size, o: Size) -> list[nn.Module]:
    return [ElasticConv2d(i, o, 1, bias=False), ElasticBatchNorm2d(o), nn.ReLU(inplace=True)]


def depthwise(channels: Size, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        ElasticConv2d(channels, channels, kernel, stride, depthwise=True, bias=False),
        ElasticBatchNorm2d(channels),
    ]


class ShuffleBlock(nn.Module):
    """One option of a place; ``[B, i, H, W] -> [B, o, H/stride, W/stride]``.

    Args:
        kind: of :data:`BLOCKS`.
        i, o: channels of input and output; equal for stride 1.
        middle: channels inside.
    """

    def __init__(self, kind: str, i: int, o: int, middle: Size, stride: int) -> None:
        super().__init__()
        self.stride = stride
        kernel = 3 if kind == "xception" else int(kind[-1])
        inner = i if stride == 2 else i // 2
        out = o - inner
        if kind == "xception":
            layers = [
                *depthwise(inner, 3, stride), *pointwise(inner, middle),
                *depthwise(middle, 3), *pointwise(middle, middle),
                *depthwise(middle, 3), *pointwise(middle, out),
            ]  # fmt: skip
        else:
            layers = [*pointwise(inner, middle), *depthwise(middle, kernel, stride), *pointwise(middle, out)]
        self.main = nn.Sequential(*layers)
        self.side = nn.Sequential(*depthwise(i, kernel, 2), *pointwise(i, i)) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = (x, x) if self.stride == 2 else (x[:, 0::2], x[:, 1::2])
        return torch.cat([self.side(kept), self.main(worked)], 1)


class ShuffleNet(nn.Module):
    """All networks of the space; ``[B, C, H, W] -> [B, classes]``. See :func:`shufflenet_space`."""

    def __init__(
        self,
        in_channels: int,
        classes: int,
        stem: int,
        widths: Sequence[int],
        depths: Sequence[int],
        head: int,
        stem_stride: int,
        factors: Sequence[float],
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        places: list[nn.Module] = []
        i = stem
        for o, depth in zip(widths, depths):
            for position in range(depth):
                n, stride = len(places), 1 if position else 2
                options = {kind: ShuffleBlock(kind, i, o, middle_size(n, o, factors), stride) for kind in BLOCKS}
                places.append(Choice(f"block{n}", options))
                i = o
        self.body = nn.Sequential(*places)
        self.head = nn.Sequential(nn.Conv2d(i, head, 1, bias=False), nn.BatchNorm2d(head), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.body(self.stem(x))).mean((2, 3))
        return self.classifier(self.dropout(x))


def middle_size(place: int, out: int, factors: Sequence[float]) -> Size:
    """Middle channels of the blocks at a place: all four options there share one decision."""
    # 1e-9: 0.6 * 80 may come out a rounding below the integer that it is.
    sizes = sorted({int(out // 2 * f + 1e-9) for f in factors})
    return Width(f"middle{place}", sizes) if len(sizes) > 1 else sizes[0]


def shufflenet_space(
    image: int = 224,
    in_channels: int = 3,
    classes: int = 1000,
    stem: int = 16,
    widths: Sequence[int] = (64, 160, 320, 640),
    depths: Sequence[int] = (4, 4, 8, 4),
    head: int = 1024,
    stem_stride: int = 2,
    factors: Sequence[float] = (1.0,),
    dropout: float = 0.1,
) -> ModuleSpace:
    """The paper's space, or a smaller one of the same make.

    Args:
        image: height and width; halved by a stem of stride 2 and by every stage.
        widths, depths: output channels and number of blocks of every stage.
        factors: of the middle channels; :data:`FACTORS` for the channel search.
        dropout: before the classifier.

    Raises:
        SpaceError: stages that do not fit, channels that cannot be split, or a factor that leaves no channel.

    >>> space = shufflenet_space()
    >>> space.size == 4**20, space.cost.params(from_codes(space, [0] * 20))
    (True, 3154880)
    """
    widths, depths, factors = tuple(widths), tuple(depths), tuple(factors)
    if len(widths) != len(depths) or not widths or min(depths) < 1:
        raise SpaceError(f"shufflenet: one width and one positive depth for each stage, not {widths} and {depths}.")
    for before, o in zip((stem, *widths), widths):
        if o % 2 or o <= before:
            raise SpaceError(f"shufflenet: a stage's channels must be even and more than the {before} before, not {o}.")
    if not factors or min(factors) <= 0 or int(min(widths) // 2 * min(factors) + 1e-9) < 1:
        raise SpaceError(f"shufflenet: every factor must leave at least one of {min(widths) // 2} channels: {factors}.")
    if image < stem_stride * 2 ** len(widths):
        raise SpaceError(f"shufflenet: images of {image}x{image} vanish in {len(widths)} stages; use fewer stages.")
    factory = functools.partial(
        ShuffleNet, in_channels, classes, stem, widths, depths, head, stem_stride, factors, dropout
    )
    return ModuleSpace(factory, torch.zeros(2, in_channels, image, image), name="shufflenet")


def from_codes(space: ModuleSpace, codes: Sequence[int], middles: Sequence[int] | None = None) -> Arch:
    """The architecture that a list of block numbers stands for, as the paper and its code write it.

    Args:
        codes: one index into :data:`BLOCKS` for each place.
        middles: for a channel search, one index into the ascending middle sizes for each place.

    Raises:
        SpaceError: a list of the wrong length, or an index out of range; names the place.
    """
    arch: Arch = {}
    for prefix, list_ in (("block", codes), ("middle", middles)):
        names = [d.name for d in space.decisions if d.name.startswith(prefix)]
        given = [] if list_ is None else list(list_)
        if len(given) != len(names):
            raise SpaceError(
                f"{space.name} has {len(names)} {prefix} decisions, but the list has {len(given)} entries."
            )
        for place, code in enumerate(given):
            options = space.by_name[f"{prefix}{place}"].options  # type: ignore[union-attr]
            if not isinstance(code, int) or isinstance(code, bool) or not 0 <= code < len(options):
                raise SpaceError(f"{prefix}{place}: index {code!r} is not one of 0 to {len(options) - 1}.")
            arch[f"{prefix}{place}"] = options[code]
    return space.validate(arch)
