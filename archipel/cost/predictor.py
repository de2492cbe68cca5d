"""Latency predicted from few measurements, with its error by cross-validation.

Two kinds of features. ``"encoding"``: the architecture's decisions (for one space; Cai et al., Once-for-All, 2019,
https://arxiv.org/abs/1908.09791, predict accuracy so). ``"layers"``: for each kind of operation how often it runs, its
multiply-accumulates and the bytes it writes, since small layers are bound by calls, large ones by arithmetic and
element-wise ones by memory (the roofline model; layer-wise predictors: Zhang et al., nn-Meter, 2021,
https://doi.org/10.1145/3458864.3467882). Two kinds of regression: ridge, and gradient-boosted trees on the logarithm.

The error that is reported comes from architectures that the model was not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from archipel.core.decision import Arch
from archipel.core.errors import UsageError, suggest
from archipel.core.space import Space
from archipel.cost.meta import MetaMode

KINDS = ("convolution", "depthwise", "matrix", "norm", "pointwise", "other")
MODELS = ("ridge", "gbm")
FEATURES = ("encoding", "layers")


@dataclass(frozen=True)
class CrossValidation:
    """Errors on architectures left out of the fit.

    Attributes:
        mape: mean of |predicted - measured| / measured.
        rmse_ms: root of the mean squared error.
        spearman: rank correlation of predicted and measured latencies.
        folds: parts, each left out once.
    """

    mape: float
    rmse_ms: float
    spearman: float
    folds: int

    def __str__(self) -> str:
        return (
            f"error {self.mape:.1%}, rmse {self.rmse_ms:.4f} ms, rank correlation {self.spearman:.2f} "
            f"({self.folds}-fold cross-validation)"
        )


class _Profile(MetaMode):
    """Calls, multiply-accumulates and bytes written, for each kind of operation."""

    def __init__(self) -> None:
        super().__init__()
        self.table = np.zeros((len(KINDS), 3))

    def seen(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        first = out[0] if isinstance(out, list | tuple) else out
        if not isinstance(first, Tensor) or any(r.alias_info and not r.alias_info.is_write for r in op._schema.returns):
            return  # views cost nothing
        if first.numel() == 0:
            return  # a placeholder, such as batch norm's reserve
        formula = flop_registry.get(op._overloadpacket)
        macs = formula(*args, **kwargs, out_val=out) / 2 if formula else 0.0
        self.table[KINDS.index(_kind(op, args))] += (1.0, macs, first.numel() * first.element_size())


def _kind(op: Any, args: tuple[Any, ...]) -> str:
    name = op._overloadpacket._qualified_op_name.removeprefix("aten::")
    if "convolution" in name:
        groups = args[8] if len(args) > 8 else 1
        return "depthwise" if groups > 1 else "convolution"
    if name in ("mm", "addmm", "bmm", "baddbmm") or "attention" in name:
        return "matrix"
    if "norm" in name:
        return "norm"
    pointwise = torch.Tag.pointwise in op.tags
    return "pointwise" if pointwise or name.removesuffix("_") in ("hardtanh", "relu", "gelu", "silu") else "other"


def layer_features(net: nn.Module, example: Tensor) -> np.ndarray:
    """Calls, MACs and bytes written for each of :data:`KINDS` in one forward pass for one input; ``[18]``.

    Args:
        net: on the meta device.

    >>> features = layer_features(nn.Linear(8, 4).to("meta"), torch.zeros(1, 8)).reshape(len(KINDS), 3)
    >>> features[KINDS.index("matrix")].tolist()
    [1.0, 32.0, 16.0]
    """
    was_training = net.training
    net.eval()
    profile = _Profile()
    x = torch.empty_like(example[:1], device="meta")
    with torch.no_grad(), profile:
        net(x)
    net.train(was_training)
    return profile.table.reshape(-1)


class LatencyPredictor:
    """A fitted model of latency over a space; use :meth:`fit`.

    Attributes:
        error: what cross-validation found.
    """

    def __init__(self, space: Space, features: str, logarithmic: bool, model: Any, error: CrossValidation) -> None:
        self.space, self.features, self.logarithmic = space, features, logarithmic
        self.model, self.error = model, error

    @classmethod
    def fit(
        cls,
        space: Space,
        archs: Sequence[Arch],
        latencies_ms: Sequence[float],
        model: str = "ridge",
        features: str = "layers",
        folds: int = 5,
        seed: int = 0,
    ) -> LatencyPredictor:
        """Fit to measured architectures.

        Args:
            archs, latencies_ms: what was measured; at least two for each fold.
            model: "ridge" or "gbm".
            features: "encoding" or "layers"; layers need a space with modules.

        Raises:
            UsageError: an unknown model or features, too few measurements, or one that is not positive.
        """
        for what, given, known in (("model", model, MODELS), ("features", features, FEATURES)):
            if given not in known:
                raise UsageError(f"Latency predictor: {what} {given!r} is unknown. {suggest(given, known)}")
        y = np.asarray(latencies_ms, dtype=float)
        if len(archs) != len(y) or len(y) < 2 * folds or folds < 2:
            raise UsageError(
                f"Latency predictor: {len(archs)} architectures with {len(y)} latencies; {folds} folds need at least "
                f"{2 * folds} of both."
            )
        if not (np.isfinite(y).all() and (y > 0).all()):
            raise UsageError("Latency predictor: every latency must be a positive, finite number of milliseconds.")
        X = np.stack([_features(space, a, features) for a in archs])
        logarithmic = model == "gbm"  # trees do not extrapolate anyway, and errors are relative
        error = _cross_validate(X, y, model, logarithmic, folds, seed)
        return cls(space, features, logarithmic, _fitted(X, y, model, logarithmic, seed), error)

    def predict(self, archs: Sequence[Arch]) -> np.ndarray:
        """Latencies in milliseconds ``[N]``."""
        X = np.stack([_features(self.space, a, self.features) for a in archs])
        return _predicted(self.model, X, self.logarithmic)

    def __call__(self, arch: Arch) -> float:
        return float(self.predict([arch])[0])


def _features(space: Space, arch: Arch, kind: str) -> np.ndarray:
    if kind == "encoding":
        return space.encode(arch)
    return layer_features(space.cost.build_meta(arch), space.cost.example)


def _fitted(X: np.ndarray, y: np.ndarray, model: str, logarithmic: bool, seed: int) -> Any:
    target = np.log(y) if logarithmic else y
    if model == "gbm":
        from sklearn.ensemble import GradientBoostingRegressor

        return GradientBoostingRegressor(n_estimators=200, max_depth=3, subsample=0.8, random_state=seed).fit(X, target)
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-4, 3, 15))).fit(X, target)


def _predicted(model: Any, X: np.ndarray, logarithmic: bool) -> np.ndarray:
    out = model.predict(X)
    return np.exp(out) if logarithmic else np.maximum(out, 0.0)


def _cross_validate(
    X: np.ndarray, y: np.ndarray, model: str, logarithmic: bool, folds: int, seed: int
) -> CrossValidation:
    from scipy.stats import spearmanr
    from sklearn.model_selection import KFold

    out = np.empty_like(y)
    for fit, left in KFold(folds, shuffle=True, random_state=seed).split(X):
        out[left] = _predicted(_fitted(X[fit], y[fit], model, logarithmic, seed), X[left], logarithmic)
    rank = float(np.asarray(spearmanr(out, y))[0]) if np.ptp(out) > 0 and np.ptp(y) > 0 else math.nan
    return CrossValidation(float(np.mean(np.abs(out - y) / y)), float(np.sqrt(np.mean((out - y) ** 2))), rank, folds)
