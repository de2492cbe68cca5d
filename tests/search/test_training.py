"""The training recipe: continuing, annealing, augmentation, judging, recalibration."""

from __future__ import annotations

import math
import time

import pytest
import torch
from torch import nn

from archipel.core.errors import UsageError
from archipel.data.dataset import Split
from archipel.search.training import (
    Diverged,
    Recipe,
    TrialTimeout,
    augment,
    evaluate,
    learning_rate,
    make_optimizer,
    recalibrate,
    train,
)

G = torch.Generator().manual_seed(0)
DATA = Split(torch.randn(50, 3, 8, 8, generator=G), torch.randint(0, 4, (50,), generator=G))


def net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(216, 4)
    )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_that_is_continued_gives_the_same_weights_as_training_that_was_not(optimizer):
    recipe = Recipe(epochs=4, batch_size=16, optimizer=optimizer, lr=0.01, crop=1, flip=True, cutout=3, mixup=0.4)
    whole, parts = net(), net()
    train(whole, DATA, "classification", recipe, seed=3)
    state = train(parts, DATA, "classification", recipe, seed=3, stop=2).state_dict()
    torch.rand(17)  # whatever happens in between
    other = make_optimizer(recipe, parts.parameters())
    other.load_state_dict(state)
    train(parts, DATA, "classification", recipe, seed=3, start=2, optimizer=other)
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values()):
        assert torch.equal(a, b)


def test_the_cosine_starts_at_the_peak_passes_its_half_and_ends_at_zero():
    recipe = Recipe(lr=0.2)
    assert [learning_rate(recipe, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.1, 0.0])
    assert learning_rate(Recipe(lr=0.2, schedule="constant"), 0.9) == 0.2


def test_mixup_of_one_class_is_the_plain_loss_and_images_are_convex_combinations():
    ones = Split(torch.ones(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64))
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            seen.append(x)
            return self.w.expand(len(x), 4)

    train(Watch(), ones, "classification", Recipe(epochs=1, batch_size=8, mixup=1.0), seed=0)
    assert torch.allclose(seen[0], torch.ones(8, 1, 4, 4))


def test_cutout_erases_at_most_its_square_and_crops_keep_the_shape():
    torch.manual_seed(0)
    x = torch.ones(64, 2, 8, 8)
    erased = (augment(Recipe(cutout=4), x) == 0).float().flatten(2).sum(-1)
    assert erased.max() == 16
    assert erased.min() >= 4  # a corner's share of the square
    assert augment(Recipe(crop=2), x).shape == x.shape
    ramp = torch.arange(8.0).expand(64, 1, 8, 8)
    flipped = augment(Recipe(flip=True), ramp)
    mirrored = (flipped[:, 0, 0, 0] == 7).float().mean()
    assert 0.3 < mirrored < 0.7


def test_a_loss_that_is_not_finite_and_a_deadline_end_the_training():
    bad = Split(DATA.x * math.inf, DATA.y)
    with pytest.raises(Diverged, match="epoch 0, step 0"):
        train(net(), bad, "classification", Recipe(epochs=1), seed=0)
    with pytest.raises(TrialTimeout, match="time limit"):
        train(net(), DATA, "classification", Recipe(epochs=500), seed=0, deadline=time.monotonic() + 0.05)


def test_metrics_equal_hand_computed_ones():
    class Fixed(nn.Module):
        def forward(self, x):
            return x

    logits = torch.log(torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]]))
    m = evaluate(Fixed(), Split(logits, torch.tensor([0, 1, 1])), "classification")
    assert m["accuracy"] == pytest.approx(2 / 3)
    assert m["loss"] == pytest.approx(-(math.log(0.7) + math.log(0.6) + math.log(0.1)) / 3, rel=1e-6)
    r = evaluate(Fixed(), Split(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]])), "regression")
    assert r["loss"] == pytest.approx(1 / 3)
    assert r["r2"] == pytest.approx(1 - 1 / 2)
    tokens = torch.zeros(2, 3, 5)
    tokens[..., 1] = 1.0
    assert evaluate(Fixed(), Split(tokens, torch.ones(2, 3, dtype=torch.int64)), "language")["accuracy"] == 1.0


def test_recalibration_gives_exact_statistics_whatever_they_were_before():
    a, b = net(), net()
    b[1].running_mean.fill_(1e6)
    b[1].running_var.fill_(math.nan)
    for n in (a, b):
        recalibrate(n, DATA.x, batch_size=50)
    assert torch.equal(a[1].running_mean, b[1].running_mean)
    with torch.no_grad():
        expected = a[0](DATA.x)
    torch.testing.assert_close(a[1].running_mean, expected.mean((0, 2, 3)))
    torch.testing.assert_close(a[1].running_var, expected.var((0, 2, 3)))
    assert a[1].momentum == 0.1
    with pytest.raises(UsageError, match="at least one batch"):
        recalibrate(a, DATA.x[:0])


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"batch_size": 2.5}, {"optimizer": "adm"}, {"schedule": "linear"}, {"lr": math.nan}, {"lr": -1}],
)
def test_recipes_refuse_what_makes_no_sense(bad):
    with pytest.raises(UsageError):
        Recipe(**bad)


def test_hyperparameters_that_are_none_of_a_recipe_are_refused_with_a_suggestion():
    assert Recipe().with_hyper({"lr": 0.5}).lr == 0.5
    with pytest.raises(UsageError, match="weight_decay"):
        Recipe().with_hyper({"weight_decy": 0.1})
