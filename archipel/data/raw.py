"""What readers hand to :func:`archipel.data.load`: rows as they were in the file, and how to fit them for training.

A reader never splits and never normalises. It returns :class:`Raw`; ``load`` draws the splits and then calls ``fit``
with the training rows alone, so that statistics of validation or test rows cannot leak into what a network sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.core.errors import DataError

# (rows, labels) of a split -> its tensors
Transform = Callable[[Any, Any], tuple[Tensor, Tensor]]
# (training rows, training labels) -> the transform and what to record about it
Fit = Callable[[Any, Any], tuple[Transform, dict[str, Any]]]


def as_they_are(x: Tensor, y: Tensor) -> tuple[Transform, dict[str, Any]]:
    """Rows that need no preparation."""
    return lambda x, y: (x, y), {}


@dataclass
class Raw:
    """The content of a data set before it is split.

    Args:
        parts: ``"pool"`` (from which train and validation, and test if there is no such part, are drawn) and perhaps
            the published ``"val"`` and ``"test"``; each a pair of rows and labels that can be indexed by a tensor.
        task: as in :class:`archipel.data.Dataset`.
        classes: as there.
        where: for error messages: the file or folder.
        fit: see :data:`Fit`.
        counts: fixed numbers of training and validation rows, instead of fractions.
        contiguous: the rows are in an order that matters (text): splits are consecutive blocks.
        files: what was read, for the record.
        info: what else to record.
    """

    parts: dict[str, tuple[Any, Any]]
    task: str
    classes: int
    where: str
    fit: Fit = as_they_are
    counts: tuple[int, int] | None = None
    contiguous: bool = False
    files: list[Path] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of axis 1 (channels, or columns of a table), exact for bytes."""
    if x.dtype != torch.uint8:
        axes = [d for d in range(x.ndim) if d != 1]
        var, mean = torch.var_mean(x.double() if x.numel() < 10_000_000 else x, axes, correction=0)
        return mean.double(), var.double().sqrt()
    levels = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(x[:, c].reshape(-1), minlength=256) for c in range(x.shape[1])]).double()
    p = counts / counts.sum(1, keepdim=True)
    mean = p @ levels
    return mean, ((p * (levels - mean[:, None]) ** 2).sum(1)).sqrt()


def scaled(scale: float = 1.0, normalise: bool = True) -> Fit:
    """Rows to float32: multiply by ``scale``, then bring axis 1 to mean 0 and deviation 1 by training statistics.

    A channel that is constant in the training rows is only centred.
    """

    def fit(x: Tensor, y: Tensor) -> tuple[Transform, dict[str, Any]]:
        info: dict[str, Any] = {"scale": scale, "mean": None, "std": None, "fitted_on": None}
        mean = std = None
        if normalise:
            mean, std = (m * scale for m in moments(x))
            std = torch.where(std > 1e-12, std, 1.0)
            info |= {"mean": mean.tolist(), "std": std.tolist(), "fitted_on": "train"}

        def transform(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            out = x.to(torch.float32, copy=True)
            if scale != 1.0:
                out.mul_(scale)
            if mean is not None and std is not None:
                shape = (1, -1, *[1] * (x.ndim - 2))
                out.sub_(mean.float().view(shape)).div_(std.float().view(shape))
            return out, y

        return transform, {"normalisation": info}

    return fit


def class_ids(values: np.ndarray, where: str) -> tuple[Tensor, list[str]]:
    """Labels of any kind -> int64 ids in sorted order, and the classes' names."""
    names, ids = np.unique(values, return_inverse=True)
    return torch.from_numpy(ids.reshape(-1).astype(np.int64)), [str(n) for n in names]


def ids_among(values: np.ndarray, names: list[str], where: str) -> Tensor:
    """Labels of a published test split -> ids of the training classes.

    Raises:
        DataError: a label that the training files do not have.
    """
    position = {n: i for i, n in enumerate(names)}
    unknown = sorted({str(v) for v in values.tolist()} - set(names))
    if unknown:
        raise DataError(
            f"{where}: class {unknown[0]!r} does not occur among the training examples ({', '.join(names[:20])})."
        )
    return torch.tensor([position[str(v)] for v in values.tolist()], dtype=torch.int64)
