"""The factors of supernet training: fourteen knobs that are known to change how well a supernet ranks its networks.

Yu, Ranftl, Salzmann. How to Train Your Super-Net: An Analysis of Training Heuristics in Weight-Sharing NAS. 2020.
https://arxiv.org/abs/2003.04276
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from archipel.core.errors import UsageError, suggest
from archipel.search.oneshot.samplers import SAMPLING
from archipel.spaces.sharing import Sharing

BATCH_NORM = ("batch", "tracked", "recalibrated")


@dataclass(frozen=True)
class Factors:
    """The fourteen factors of Yu et al. 2020 at their recommended values (the profile ``baseline``), by their number.

    Args:
        batch_norm: (1) statistics at evaluation: of the ``"batch"`` itself, ``"tracked"`` while training, or
            ``"recalibrated"`` for each network (as single path one-shot does).
        affine: (2) whether batch norm has a learned scale and shift.
        channels: (3), ``kernels``: (4), ``weights_on``: (5), ``path_dropout`` and ``global_dropout``: (6); see
            :class:`~archipel.spaces.sharing.Sharing`.
        lr: (7) peak learning rate; falls linearly to zero.
        epochs: (8).
        weight_decay: (9).
        batch_size: (10) examples a step; as a proxy, a small one.
        sampling: (11) ``"uniform"``, ``"fairnas"``, ``"random-nas"``, or ``"all-paths"`` as the untreated arm.
        layers: (12) fraction of the cells, ``width``: (13) of the channels, ``data``: (14) of the training examples.
        momentum, label_smoothing, clip: held fixed in the paper's study.

    Raises:
        UsageError: a value that makes no sense.

    >>> Factors().sharing == Sharing(), Factors().changed(), Factors(lr=0.3).changed()
    (True, [], ['lr'])
    """

    batch_norm: str = "batch"
    affine: bool = False
    channels: str = "fixed"
    kernels: str = "separate"
    weights_on: str = "edge"
    path_dropout: float = 0.0
    global_dropout: float = 0.0
    lr: float = 0.1
    epochs: int = 100
    weight_decay: float = 4e-5
    batch_size: int = 64
    sampling: str = "uniform"
    layers: float = 1.0
    width: float = 1.0
    data: float = 1.0
    momentum: float = 0.9
    label_smoothing: float = 0.1
    clip: float = 5.0

    def __post_init__(self) -> None:
        for name, known in (("batch_norm", BATCH_NORM), ("sampling", SAMPLING)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name}={getattr(self, name)!r} is unknown. {suggest(getattr(self, name), known)}")
        for name, least in (("epochs", 1), ("batch_size", 2)):  # batch norm cannot train on single examples
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise UsageError(f"{name} must be an integer of at least {least}, not {getattr(self, name)!r}.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr must be positive, not {self.lr!r}.")
        for name in ("weight_decay", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UsageError(f"{name} must not be negative, not {getattr(self, name)!r}.")
        for name in ("momentum", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UsageError(f"{name} must be in [0, 1), not {getattr(self, name)!r}.")
        if not 0.0 < self.data <= 1.0:
            raise UsageError(f"data is a fraction in (0, 1], not {self.data!r}.")
        _ = self.sharing  # checks its own options

    @property
    def sharing(self) -> Sharing:
        """The factors that a host needs to make its supernet."""
        return Sharing(**{f.name: getattr(self, f.name) for f in fields(Sharing)})

    def changed(self) -> list[str]:
        """Names of the factors that differ from the baseline."""
        return [f.name for f in fields(self) if getattr(self, f.name) != f.default]

    def vary(self, factor: str, value: Any) -> Factors:
        """These factors with another value for one of them.

        Raises:
            UsageError: an unknown factor, or a bad value.
        """
        known = [name for names in FACTORS.values() for name in names]
        if factor not in known:
            raise UsageError(f"There is no factor {factor!r}. {suggest(factor, known)}")
        return replace(self, **{factor: value})


BASELINE = Factors()

# The factors by their number in the study.
FACTORS: dict[int, tuple[str, ...]] = {
    1: ("batch_norm",),
    2: ("affine",),
    3: ("channels",),
    4: ("kernels",),
    5: ("weights_on",),
    6: ("path_dropout", "global_dropout"),
    7: ("lr",),
    8: ("epochs",),
    9: ("weight_decay",),
    10: ("batch_size",),
    11: ("sampling",),
    12: ("layers",),
    13: ("width",),
    14: ("data",),
}
