"""What a policy over a supernet learns from: the quality of the active network on a batch of validation data."""

from __future__ import annotations

import contextlib

import numpy as np
import torch

from archipel.core.errors import DataError
from archipel.core.supernet import Supernet
from archipel.data.dataset import Dataset, Split
from archipel.search.oneshot.shared_evaluation import batch_statistics


def check_inputs(data: Dataset) -> None:
    """Refuse inputs that are no finite numbers.

    Raises:
        DataError: says what they are.
    """
    for name, split in (("training", data.train), ("validation", data.val)):
        if not split.x.is_floating_point():
            raise DataError(
                f"{data.name}: the {name} inputs are {split.x.dtype}, not numbers to compute with. Encode categories, "
                f"for instance one-hot, when the table is loaded."
            )
        if len(split) == 0 or not torch.isfinite(split.x).all():
            raise DataError(f"{data.name}: the {name} inputs are empty or hold NaN or infinity. Fill or drop them.")


def random_batch(data: Split, size: int, rng: np.random.Generator) -> Split:
    """Some examples, without repetition; all of a smaller split."""
    index = rng.choice(len(data), min(size, len(data)), replace=False)
    return data.take(torch.from_numpy(index))


@torch.no_grad()
def quality(net: Supernet, batch: Split, task: str) -> float:
    """Accuracy of the active network on a batch, or R² no lower than -1; batch norms use the batch's statistics."""
    net.eval()
    normed = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in net.modules())
    with batch_statistics(net) if normed else contextlib.nullcontext():
        out = net(batch.x)
    if task == "regression":
        residual = float(((out - batch.y) ** 2).sum())
        return max(-1.0, 1.0 - residual / max(1e-12, float(((batch.y - batch.y.mean(0)) ** 2).sum())))
    return float((out.argmax(-1) == batch.y).double().mean())
