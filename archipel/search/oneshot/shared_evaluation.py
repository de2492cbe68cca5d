"""Judging architectures by the weights they inherit from a supernet: the `evaluator` slot of one-shot search.

Running statistics that batch norms gathered while paths came and went describe no path at all. Three ways out, of which
the third is there to show the damage:

    recalibrated  reset them, average the statistics of some batches of *training* inputs on the path, then evaluate
                  (Guo et al., Single Path One-Shot, 2019, https://arxiv.org/abs/1904.00420)
    batch         use each evaluation batch's own (Yu et al., How to Train Your Super-Net, 2020,
                  https://arxiv.org/abs/2003.04276)
    tracked       use what training left
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.supernet import Supernet
from archipel.data.dataset import Split
from archipel.search.training import evaluate, recalibrate

EVALUATION_BATCH = 512
CALIBRATION_BATCH = 256


class OverlapWarning(UserWarning):
    """Validation examples that are also training examples."""


@contextlib.contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Within the block, batch norms use the statistics of each batch and leave the running ones alone."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    kept = [(m.running_mean, m.running_var, m.track_running_stats) for m in norms]
    for m in norms:
        m.running_mean, m.running_var, m.track_running_stats = None, None, False
    try:
        yield
    finally:
        for m, (mean, var, track) in zip(norms, kept):
            m.running_mean, m.running_var, m.track_running_stats = mean, var, track


class SharedEvaluator:
    """Scores architectures by inherited weights: accuracy, or R² for regression; each architecture once.

    Args:
        supernet: trained.
        val: the split to be right on.
        task: as in :class:`~archipel.data.dataset.Dataset`.
        batch_norm: ``"recalibrated"``, ``"batch"`` or ``"tracked"``.
        calibration: training inputs ``[N, *input_shape]`` for recalibration.

    Raises:
        UsageError: no validation examples; or recalibration without training inputs.
    """

    def __init__(
        self, supernet: Supernet, val: Split, task: str, batch_norm: str = "batch", calibration: Tensor | None = None
    ) -> None:
        if len(val) == 0:
            raise UsageError("Architectures cannot be scored on an empty validation split.")
        if batch_norm == "recalibrated" and (calibration is None or len(calibration) < 2):
            n = 0 if calibration is None else len(calibration)
            raise UsageError(f"Batch-norm recalibration needs at least 2 training inputs, but got {n}.")
        self.supernet, self.val, self.task, self.batch_norm = supernet, val, task, batch_norm
        self.calibration = calibration
        self.metric = "r2" if task == "regression" else "accuracy"
        # Batches of equal size: with batch statistics a small last one would be judged by other statistics.
        self.batch = math.ceil(len(val) / math.ceil(len(val) / EVALUATION_BATCH))
        self.normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in supernet.modules())
        self.cache: dict[str, float] = {}

    def __call__(self, arch: Arch) -> float:
        key = self.supernet.space.canonical(arch)
        if key not in self.cache:
            self.cache[key] = self._score(arch)
        return self.cache[key]

    def scores(self, archs: Sequence[Arch]) -> list[float]:
        return [self(a) for a in archs]

    def _score(self, arch: Arch) -> float:
        self.supernet.activate(arch)
        if self.batch_norm == "batch":
            with batch_statistics(self.supernet):
                return self._evaluate()
        if self.batch_norm == "recalibrated" and self.normed:
            assert self.calibration is not None
            recalibrate(self.supernet, self.calibration, CALIBRATION_BATCH)
        elif self.batch_norm == "tracked":
            self._check_tracked(arch)
        return self._evaluate()

    def _evaluate(self) -> float:
        value = evaluate(self.supernet, self.val, self.task, self.batch)[self.metric]
        return value if math.isfinite(value) else -math.inf

    def _check_tracked(self, arch: Arch) -> None:
        for name, m in self.supernet.extract(arch).named_modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                mean, var = m.running_mean, m.running_var
                # Exactly as initialised: training updates leave 0.9^k and more of other things.
                if mean is None or var is None or bool(((mean == 0) & (var == 1)).any()):
                    raise UsageError(
                        f"Batch norm {name!r} of {arch} has no tracked statistics (never trained on this path, or not "
                        f"tracking). Train longer, or evaluate with batch_norm='recalibrated' or 'batch'."
                    )


def calibration_inputs(train: Split, examples: int, seed: int) -> Tensor:
    """A fixed random part of the training inputs, for recalibration."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return train.x[order[:examples]]


def overlap(train: Split, val: Split) -> int:
    """How many validation inputs are also training inputs."""
    return int(np.isin(_fingerprints(val.x), _fingerprints(train.x)).sum())


def _fingerprints(x: Tensor, chunk: int = 4096) -> np.ndarray:
    """One float64 for each input, equal for equal inputs and practically never otherwise."""
    weights = torch.rand(x[0].numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Sums of products in a fixed order: a matrix product may differ in the last bit with the number of rows.
    parts = [(part.flatten(1).double() * weights).sum(1) for part in x.split(chunk)]
    return torch.cat(parts).numpy()


def warn_of_overlap(train: Split, val: Split) -> None:
    """Warn if validation examples were trained on: what ranks highest then is what remembers best."""
    if len(train) == 0 or len(val) == 0 or train.x.shape[1:] != val.x.shape[1:]:
        return
    n = overlap(train, val)
    if n:
        warnings.warn(
            f"{n} of {len(val)} validation inputs are also training inputs, so the search rewards memorising them. "
            f"Split the data anew, without duplicates.",
            OverlapWarning,
            stacklevel=3,
        )
