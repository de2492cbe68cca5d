"""Images of two classes that a network tells apart at once: a bright or a dark upper half under noise."""

from __future__ import annotations

import torch

from archipel.data.dataset import Dataset, Split


def bars(n: int, seed: int, side: int = 6) -> Split:
    """``[n, 1, side, side]``; the two classes in turn."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, side, side, generator=g)
    x[:, 0, : side // 2] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def bars_dataset(test: bool = True) -> Dataset:
    """32 images for training, 16 each for validation and test."""
    return Dataset("bars", bars(32, 0), bars(16, 1), bars(16, 2) if test else None, "classification", 2)
