"""Mini-batches by indexing tensors, and vectorised augmentations of image batches.

Data that fits in memory needs no loader processes: a permutation and ``index_select`` feed a small network faster.
Every augmentation is a function (images [B, C, H, W], generator) -> images of the same shape, with an own draw for each
image; :func:`compose` chains them.

    cutout        DeVries, Taylor. Improved Regularization of Convolutional Neural Networks with Cutout. 2017.
                  https://arxiv.org/abs/1708.04552
    random crop, horizontal flip   the usual ones of CIFAR-10 training: pad by 4 with zeros, cut back, mirror half
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.data.dataset import Split

Augment = Callable[[Tensor, torch.Generator | None], Tensor]


def batches(
    split: Split,
    batch_size: int,
    generator: torch.Generator | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    augment: Augment | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a split.

    Args:
        split: to take examples from.
        batch_size: examples a batch; the last one may be smaller.
        generator: of the order and the augmentation; None uses torch's global one. The order is drawn when the pass
            starts.
        shuffle: draw the order; otherwise as stored.
        drop_last: leave a smaller last batch out.
        augment: applied to each batch of inputs.

    Raises:
        UsageError: batch size below 1, or nothing would be yielded.

    >>> split = Split(torch.arange(5.), torch.arange(5))
    >>> [x.tolist() for x, y in batches(split, 2, shuffle=False)]
    [[0.0, 1.0], [2.0, 3.0], [4.0]]
    """
    n = len(split)
    if batch_size < 1 or n == 0 or (drop_last and n < batch_size):
        raise UsageError(f"{n} examples give no batch of {batch_size}{' without the last, smaller one' * drop_last}.")
    return _batches(split, batch_size, generator, shuffle, drop_last, augment)


def _batches(
    split: Split,
    batch_size: int,
    generator: torch.Generator | None,
    shuffle: bool,
    drop_last: bool,
    augment: Augment | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    n = len(split)
    order = torch.randperm(n, generator=generator) if shuffle else None
    for start in range(0, n - batch_size + 1 if drop_last else n, batch_size):
        stop = min(start + batch_size, n)
        if order is None:
            x, y = split.x[start:stop], split.y[start:stop]
        else:
            index = order[start:stop]
            x, y = split.x.index_select(0, index), split.y.index_select(0, index)
        yield (augment(x, generator) if augment else x), y


def compose(*augments: Augment) -> Augment:
    """One after the other."""

    def apply(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        for augment in augments:
            x = augment(x, generator)
        return x

    return apply


def cutout(size: int) -> Augment:
    """Set a square of ``size`` pixels, centred anywhere in the image and cut off at its edges, to zero.

    Zero is the mean of normalised images.
    """

    def apply(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        B, _, H, W = x.shape
        rows = _within(torch.randint(H, (B, 1), generator=generator), size, H)
        columns = _within(torch.randint(W, (B, 1), generator=generator), size, W)
        return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)

    return apply


def _within(centre_B1: Tensor, size: int, length: int) -> Tensor:
    """Which of ``length`` positions lie in the interval of ``size`` around the centre, bool [B, length]."""
    first = centre_B1 - size // 2
    position = torch.arange(length)
    return (position >= first) & (position < first + size)


def random_crop(padding: int) -> Augment:
    """Pad with zeros on all sides, then cut the original size out at a random place."""

    def apply(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        B, _, H, W = x.shape
        places = F.pad(x, (padding, padding, padding, padding)).unfold(2, H, 1).unfold(3, W, 1)  # a view
        top = torch.randint(2 * padding + 1, (B,), generator=generator)
        left = torch.randint(2 * padding + 1, (B,), generator=generator)
        return places[torch.arange(B), :, top, left]

    return apply


def horizontal_flip(probability: float = 0.5) -> Augment:
    """Mirror each image left to right with this probability."""

    def apply(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mirrored = torch.rand(len(x), generator=generator) < probability
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x)

    return apply


def gaussian_noise(std: float) -> Augment:
    """Add independent N(0, std²) to every value; inputs of any shape."""

    def apply(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return x + std * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    return apply
