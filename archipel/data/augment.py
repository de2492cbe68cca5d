"""One random operation on each image, of random strength: a policy that nobody learned.

Müller, Hutter. TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation. 2021.
https://arxiv.org/abs/2103.10158

    for each image: an operation, uniformly; a strength, uniformly in its range; done

The operations are those of AutoAugment (Cubuk et al. 2018, https://arxiv.org/abs/1805.09501), but this is **not**
AutoAugment: there, pairs of operations, their probabilities and strengths were found by a search on CIFAR-10, which is
left out here on purpose. Differs from TrivialAugment in its set (no sharpness; inversion, which AutoAugment has) and in
strengths that are not quantised. Images may be normalised: colours are handled in the range [0, 1] to which the
batch's smallest and largest value of each channel are mapped. What a shift uncovers is 0, as what cutout erases.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from archipel.core.errors import ShapeError

LEVELS = 256  # of a channel, where an operation is defined on bytes
Operation = Callable[[Tensor, Tensor], Tensor]  # images [B, C, H, W], strength [B] in [-1, 1] -> images


def random_operation(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Change each image of a batch ``[B, C, H, W]`` by an operation of its own.

    Args:
        generator: of the draws; torch's own if None.

    Raises:
        ShapeError: not a batch of images.

    >>> x = torch.rand(4, 3, 8, 8)
    >>> random_operation(x).shape, bool((random_operation(x) == x).all())
    (torch.Size([4, 3, 8, 8]), False)
    """
    if x.ndim != 4:
        raise ShapeError(f"Image operations need a batch [B, C, H, W], not {tuple(x.shape)}.")
    names = list(OPERATIONS)
    which = torch.randint(0, len(names), (len(x),), generator=generator).to(x.device)
    strength = (2 * torch.rand(len(x), generator=generator) - 1).to(x.device)
    low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
    span = (high - low).clamp_min(1e-12)
    out = x.clone()
    for i in which.unique().tolist():
        at = which == i
        operation, on_colours = OPERATIONS[names[i]]
        if on_colours:
            out[at] = low + span * operation((x[at] - low) / span, strength[at]).clamp(0, 1)
        else:
            out[at] = operation(x[at], strength[at])
    return out


def _warp(x: Tensor, matrix_B23: Tensor) -> Tensor:
    grid = F.affine_grid(matrix_B23, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def _affine(row: int, column: int, scale: float) -> Operation:
    """One entry of the identity map changed by up to ``scale``, in units of half the image."""

    def operation(x: Tensor, s: Tensor) -> Tensor:
        matrix_B23 = torch.eye(2, 3, dtype=s.dtype, device=s.device).repeat(len(s), 1, 1)
        matrix_B23[:, row, column] += scale * s
        return _warp(x, matrix_B23)

    return operation


def rotate(x: Tensor, s: Tensor) -> Tensor:
    """By up to 30 degrees about the centre (of square pixels, whatever the shape of the image)."""
    a, ratio = s * math.radians(30), x.shape[-2] / x.shape[-1]
    zero = torch.zeros_like(a)
    rows = [torch.stack([a.cos(), -a.sin() * ratio, zero], 1), torch.stack([a.sin() / ratio, a.cos(), zero], 1)]
    return _warp(x, torch.stack(rows, 1))


def _blend(x: Tensor, other: Tensor | float, s: Tensor) -> Tensor:
    """From ``other`` (s near -1) over the image itself to its exaggeration (s near 1)."""
    factor = (1 + 0.9 * s)[:, None, None, None]
    return other + factor * (x - other)


def posterize(x: Tensor, s: Tensor) -> Tensor:
    """Keep the 2 to 8 highest bits of each byte."""
    step = 2.0 ** (8 - (2 + (s.abs() * 6).round()))[:, None, None, None]
    return ((x * (LEVELS - 1)).round() / step).floor() * step / (LEVELS - 1)


def solarize(x: Tensor, s: Tensor) -> Tensor:
    """Invert what is brighter than a threshold."""
    return torch.where(x > s.abs()[:, None, None, None], 1 - x, x)


def equalize(x: Tensor, s: Tensor) -> Tensor:
    """Spread each channel's values so that their distribution function becomes a straight line."""
    level = (x.flatten(2) * (LEVELS - 1)).round().long()
    counts = torch.zeros(*x.shape[:2], LEVELS, dtype=x.dtype, device=x.device)
    below = counts.scatter_add_(2, level, torch.ones_like(x.flatten(2))).cumsum(2)
    first = below.gather(2, level.amin(2, keepdim=True))
    spread = (below - first) / (x.shape[-1] * x.shape[-2] - first)
    constant = level.amin(2, keepdim=True) == level.amax(2, keepdim=True)
    return torch.where(constant, x.flatten(2), spread.gather(2, level)).view_as(x)


OPERATIONS: dict[str, tuple[Operation, bool]] = {  # the flag: whether it works on colours in [0, 1]
    "identity": (lambda x, s: x, False),
    "translate x": (_affine(0, 2, 2 / 3), False),  # a third of the side
    "translate y": (_affine(1, 2, 2 / 3), False),
    "shear x": (_affine(0, 1, 0.3), False),
    "shear y": (_affine(1, 0, 0.3), False),
    "rotate": (rotate, False),
    "brightness": (lambda x, s: _blend(x, 0.0, s), True),
    "contrast": (lambda x, s: _blend(x, x.mean((1, 2, 3), keepdim=True), s), True),
    "colour": (lambda x, s: _blend(x, x.mean(1, keepdim=True), s), True),  # nothing happens to grey images
    "invert": (lambda x, s: 1 - x, True),
    "solarize": (solarize, True),
    "posterize": (posterize, True),
    "equalize": (equalize, True),
}
