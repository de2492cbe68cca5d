"""Mini-batches and augmentations."""

import pytest
import torch

from archipel.core.errors import UsageError
from archipel.data import Split
from archipel.data.batches import batches, compose, cutout, gaussian_noise, horizontal_flip, random_crop


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


SPLIT = Split(torch.arange(10.0)[:, None], torch.arange(10))


def test_a_pass_visits_every_example_once_with_its_own_label():
    seen = list(batches(SPLIT, 4, generator()))
    assert [len(y) for _, y in seen] == [4, 4, 2]
    assert sorted(torch.cat([y for _, y in seen]).tolist()) == list(range(10))
    assert all(torch.equal(x[:, 0], y.float()) for x, y in seen)
    assert [len(y) for _, y in batches(SPLIT, 4, generator(), drop_last=True)] == [4, 4]


def test_the_order_follows_the_generator():
    def order(g):
        return torch.cat([y for _, y in batches(SPLIT, 3, g)]).tolist()

    g = generator(1)
    assert order(generator(1)) == order(g)
    assert order(g) != order(generator(1))  # the second pass has another order
    assert torch.cat([y for _, y in batches(SPLIT, 3, shuffle=False)]).tolist() == list(range(10))


def test_what_gives_no_batch_is_an_error_at_once():
    for bad in (
        lambda: batches(SPLIT, 0),
        lambda: batches(SPLIT, 11, drop_last=True),
        lambda: batches(SPLIT.take(torch.tensor([], dtype=torch.int64)), 1),
    ):
        with pytest.raises(UsageError, match="give no batch"):
            bad()


X = torch.rand(64, 3, 9, 7, generator=generator()) + 0.1


def test_a_random_crop_is_a_window_of_the_padded_image():
    padded = torch.nn.functional.pad(X, (2, 2, 2, 2))
    windows = [padded[:, :, i : i + 9, j : j + 7] for i in range(5) for j in range(5)]
    out = random_crop(2)(X, generator())
    matches = torch.stack([(w == out).flatten(1).all(1) for w in windows])
    assert matches.any(0).all()
    assert (matches.sum(1) > 0).sum() > 15  # many different places
    assert torch.equal(random_crop(0)(X, generator()), X)


def test_cutout_erases_one_square_in_all_channels_and_is_cut_off_at_edges():
    out = cutout(4)(X, generator())
    erased = out == 0
    assert torch.equal(erased, erased[:, :1].expand_as(erased))
    assert torch.equal(out[~erased], X[~erased])
    counts = erased[:, 0].flatten(1).sum(1)
    assert int(counts.max()) == 16
    assert 4 <= int(counts.min()) < 16
    for mask in erased[:, 0]:  # a rectangle: rows times columns
        assert mask.sum() == mask.any(0).sum() * mask.any(1).sum()
    assert torch.equal(cutout(0)(X, generator()), X)


def test_flips_mirror_about_half_of_the_images():
    out = horizontal_flip()(X, generator())
    flipped = (out == X.flip(-1)).flatten(1).all(1)
    kept = (out == X).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert 16 < int(flipped.sum()) < 48


def test_noise_has_the_deviation_it_says():
    assert abs(float((gaussian_noise(0.5)(X, generator()) - X).std()) - 0.5) < 0.02


def test_augmentations_compose_and_leave_the_stored_data_alone():
    split = Split(X.clone(), torch.zeros(64))
    augment = compose(random_crop(2), horizontal_flip(), cutout(3), gaussian_noise(0.1))
    a = [x for x, _ in batches(split, 16, generator(3), augment=augment)]
    b = [x for x, _ in batches(split, 16, generator(3), augment=augment)]
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert a[0].shape == (16, 3, 9, 7)
    assert torch.equal(split.x, X)
