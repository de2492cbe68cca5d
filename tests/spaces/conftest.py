"""Small real data for the spaces' tests."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from archipel.data.dataset import Dataset, Split


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The 1,797 images of scikit-learn's digits, ``[N, 1, 8, 8]``: 1,000 to train, 400 to validate."""
    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    parts = [Split(x[i], y[i]) for i in (order[:1000], order[1000:1400], order[1400:])]
    return Dataset("digits", *parts, "classification", 10)
