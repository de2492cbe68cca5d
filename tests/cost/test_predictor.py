"""Latency predicted from few measurements."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from archipel.core.choice import Depth, Width
from archipel.core.errors import UsageError
from archipel.cost.predictor import KINDS, LatencyPredictor, layer_features
from archipel.spaces.layers import ElasticLinear
from archipel.spaces.module_space import ModuleSpace


def factory():
    w = Width("w", [16, 32, 64, 128])
    body = Depth("d", [nn.Sequential(ElasticLinear(w, w), nn.ReLU()) for _ in range(6)], min=1)
    return nn.Sequential(ElasticLinear(8, w), body, ElasticLinear(w, 4))


SPACE = ModuleSpace(factory, torch.zeros(1, 8), name="net")
ARCHS = list(SPACE.enumerate())


def roofline_ms(arch):
    """A made-up device: a fixed time for each layer, and one for each multiply-accumulate."""
    layers = 2 * arch["d"] + 2
    return 0.01 * layers + SPACE.cost.macs(arch) * 1e-6


def test_a_device_that_is_linear_in_layers_and_macs_is_learned_exactly():
    fit, rest = ARCHS[::2], ARCHS[1::2]
    predictor = LatencyPredictor.fit(SPACE, fit, [roofline_ms(a) for a in fit], folds=3)
    predicted = predictor.predict(rest)
    assert np.abs(predicted / [roofline_ms(a) for a in rest] - 1).max() < 0.02
    assert predictor.error.mape < 0.05
    assert predictor.error.spearman > 0.95
    assert predictor(rest[0]) == pytest.approx(predicted[0])


@pytest.mark.parametrize("model", ["ridge", "gbm"])
@pytest.mark.parametrize("features", ["encoding", "layers"])
def test_the_reported_error_is_that_on_architectures_left_out(model, features):
    rng = np.random.default_rng(0)
    archs = [SPACE.sample(Random(s)) for s in range(60)]
    noise = rng.permutation(np.linspace(0.5, 2.0, 60))  # nothing to learn
    predictor = LatencyPredictor.fit(SPACE, archs, noise, model=model, features=features, folds=5)
    fitted = np.mean(np.abs(predictor.predict(archs) - noise) / noise)
    assert predictor.error.mape > 0.25  # an honest error, also where the fit itself looks better
    assert fitted <= predictor.error.mape
    assert predictor.error.folds == 5
    assert "5-fold cross-validation" in str(predictor.error)


@pytest.mark.parametrize("model", ["ridge", "gbm"])
def test_encodings_are_enough_to_rank(model):
    predictor = LatencyPredictor.fit(SPACE, ARCHS, [roofline_ms(a) for a in ARCHS], model=model, features="encoding")
    assert predictor.error.spearman > 0.8
    assert (predictor.predict(ARCHS) >= 0).all()


def test_real_measurements_are_predicted_better_than_by_their_mean():
    from archipel.cost.latency import measure_latency

    archs = [a for a in ARCHS if a["w"] in (16, 128)]
    measured = [measure_latency(SPACE.build(a), SPACE.example, batch=64, runs=15, warmup=3).median_ms for a in archs]
    predictor = LatencyPredictor.fit(SPACE, archs, measured, folds=3)
    assert predictor.error.rmse_ms < np.std(measured)
    assert predictor.error.spearman > 0.5


def test_features_tell_operations_apart():
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 3),
    )
    table = layer_features(net.to("meta"), torch.zeros(1, 4, 6, 6)).reshape(len(KINDS), 3)
    rows = dict(zip(KINDS, table.tolist()))
    assert rows["convolution"] == [1, 4 * 8 * 9 * 36, 4 * 8 * 36]
    assert rows["depthwise"] == [1, 8 * 9 * 36, 4 * 8 * 36]
    assert rows["norm"][:2] == [1, 0]
    assert rows["pointwise"] == [1, 0, 4 * 8 * 36]
    assert rows["matrix"] == [1, 8 * 36 * 3, 4 * 3]
    assert rows["other"] == [0, 0, 0]  # flattening is a view


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "forest"}, r"model 'forest' is unknown\. .*gbm, ridge"),
        ({"features": "layer"}, r"features 'layer' is unknown\. Did you mean: layers"),
        ({"latencies_ms": [1.0] * 9}, "10 architectures with 9 latencies"),
        ({"folds": 6}, "6 folds need at least 12"),
        ({"folds": 1}, "1 folds need"),
        ({"latencies_ms": [1.0] * 9 + [float("nan")]}, "positive, finite"),
        ({"latencies_ms": [1.0] * 9 + [0.0]}, "positive, finite"),
    ],
)
def test_bad_requests_are_refused(change, message):
    arguments = {"archs": ARCHS[:10], "latencies_ms": [1.0] * 10, **change}
    with pytest.raises(UsageError, match=message):
        LatencyPredictor.fit(SPACE, **arguments)
