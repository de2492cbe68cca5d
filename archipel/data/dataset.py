"""What every loader returns: three splits, of which the test split is sealed.

A search sees ``train`` and ``val`` only. The test split is opened by name of a purpose, and each opening is recorded,
so that a run can show that it was touched once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from archipel.core.errors import DataError


@dataclass(frozen=True)
class Split:
    """Inputs and labels of one split.

    ``x`` has shape ``[N, *input_shape]``: float32 for images ``[N, C, H, W]``, signals ``[N, C, T]`` and tables
    ``[N, F]``; int64 token ids ``[N, T]`` for text. ``y`` is int64 ``[N]`` for classes, float32 ``[N, 1]`` for
    regression, int64 ``[N, T]`` (the next tokens) for text.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> Split:
        return Split(self.x[index], self.y[index])


@dataclass
class Dataset:
    """A data set, split once and for all.

    Args:
        name: as it was asked for.
        train, val: what a search may use.
        sealed_test: see :meth:`open_test`; None where the test split was removed (in worker processes).
        task: ``"classification"``, ``"regression"`` or ``"language"``.
        classes: number of classes, of output values, or of tokens.
        info: where it came from, checksums, normalisation, class or column names; JSON.
    """

    name: str
    train: Split
    val: Split
    sealed_test: Split | None
    task: str
    classes: int
    info: dict[str, Any] = field(default_factory=dict)
    openings: list[str] = field(default_factory=list)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.x.shape[1:])

    def example(self, batch: int = 2) -> Tensor:
        """A batch of zeros of the right shape and type, for counting costs and exporting."""
        return torch.zeros(batch, *self.input_shape, dtype=self.train.x.dtype)

    def open_test(self, purpose: str) -> Split:
        """The test split; the purpose is recorded in ``openings``.

        Raises:
            DataError: this copy of the data set has no test split.
        """
        if self.sealed_test is None:
            raise DataError(f"{self.name}: this copy has no test split; a search only gets train and validation data.")
        self.openings.append(purpose)
        return self.sealed_test

    def without_test(self) -> Dataset:
        """A copy for those who must not see the test split."""
        return Dataset(self.name, self.train, self.val, None, self.task, self.classes, self.info)
