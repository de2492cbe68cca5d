"""Random image operations: what each does, and that a batch gets one of them for each image."""

from __future__ import annotations

import pytest
import torch

from archipel.core.errors import ShapeError, UsageError
from archipel.data.augment import OPERATIONS, equalize, posterize, random_operation, rotate, solarize
from archipel.search.training import Recipe, augment


def apply(name: str, x: torch.Tensor, strength: float) -> torch.Tensor:
    return OPERATIONS[name][0](x, torch.full((len(x),), strength))


X = torch.rand(3, 2, 9, 9, generator=torch.Generator().manual_seed(0))


STRENGTHS = ["translate x", "translate y", "shear x", "shear y", "rotate", "brightness", "contrast", "colour"]


@pytest.mark.parametrize("name", [*STRENGTHS, "identity"])
def test_strength_zero_changes_nothing(name):
    torch.testing.assert_close(apply(name, X, 0.0), X, atol=1e-5, rtol=0)


def test_a_translation_moves_by_up_to_a_third_of_the_side_and_uncovers_zeros():
    moved = apply("translate x", X, -1.0)  # to the right by 3 of 9 pixels
    torch.testing.assert_close(moved[..., 3:], X[..., :-3], atol=1e-5, rtol=0)
    assert bool((moved[..., :3] == 0).all())
    up = apply("translate y", X, 1.0)
    torch.testing.assert_close(up[:, :, :-3], X[:, :, 3:], atol=1e-5, rtol=0)


def test_a_rotation_keeps_the_centre_and_its_inverse_undoes_it_there():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4], x[0, 0, 4, 7] = 2.0, 1.0
    turned = rotate(x, torch.ones(1))  # 30 degrees: the second point leaves the middle row by 3 sin 30 = 1.5 pixels
    assert turned[0, 0, 4, 4] == pytest.approx(2.0)
    rows = turned[0, 0, :, 6:].sum(1)
    height = (rows * (torch.arange(9) - 4)).sum() / rows.sum()
    assert abs(float(height)) == pytest.approx(1.5, abs=0.3)


def test_colour_operations_do_what_their_names_say():
    assert torch.equal(apply("invert", X, 0.3), 1 - X)
    assert torch.equal(solarize(X, torch.full((3,), 0.5)), torch.where(X > 0.5, 1 - X, X))
    assert len(posterize(X, torch.zeros(3)).unique()) <= 4  # two bits are left
    torch.testing.assert_close(posterize(X, torch.ones(3)), (X * 255).round() / 255)  # all eight
    torch.testing.assert_close(apply("brightness", X, 1.0), 1.9 * X)
    darker = apply("contrast", X, -1.0)
    torch.testing.assert_close(darker.mean((1, 2, 3)), X.mean((1, 2, 3)))
    torch.testing.assert_close(darker.std((1, 2, 3)), 0.1 * X.std((1, 2, 3)))


def test_equalizing_spreads_values_evenly_and_leaves_constant_channels():
    dark = 0.1 * torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    spread = equalize(dark, torch.zeros(1))
    assert spread.min() == 0
    assert spread.max() == 1
    assert spread.mean() == pytest.approx(0.5, abs=0.05)
    assert bool(((dark[0, 0, 0, :-1] < dark[0, 0, 0, 1:]) <= (spread[0, 0, 0, :-1] <= spread[0, 0, 0, 1:])).all())
    constant = torch.full((1, 1, 4, 4), 0.3)
    assert torch.equal(equalize(constant, torch.zeros(1)), constant)


def test_every_image_gets_an_operation_of_its_own_and_normalised_images_stay_in_their_range():
    torch.manual_seed(0)
    x = 3 * torch.randn(1, 1, 8, 8).repeat(400, 1, 1, 1)
    y = random_operation(x)
    changed = (y != x).flatten(1).any(1).float().mean()
    assert 0.7 < changed < 0.95  # identity and, for grey images, colour change nothing
    assert len({tuple(v.flatten().tolist()) for v in y.round(decimals=3)}) > 250
    assert float(y.min()) >= float(x.min()) - 1e-4
    assert float(y.max()) <= float(x.max()) + 1e-4


def test_operations_repeat_under_a_seed_and_reach_training_through_the_recipe():
    recipe = Recipe(augmentation="random-operation")
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(augment(recipe, X))
    assert torch.equal(*results)
    assert not torch.equal(results[0], X)
    assert torch.equal(augment(Recipe(), X), X)


def test_other_inputs_and_unknown_augmentations_are_refused():
    with pytest.raises(ShapeError, match=r"batch \[B, C, H, W\], not \(3, 5\)"):
        random_operation(torch.zeros(3, 5))
    with pytest.raises(UsageError, match="augmentation 'auto' is unknown"):
        Recipe(augmentation="auto")
