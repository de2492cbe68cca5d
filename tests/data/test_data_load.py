"""Named sets, splits, limits, options."""

import json
import random
import time

import numpy as np
import pytest
import torch

from archipel.core.errors import DataError, MissingExtraError, UsageError
from archipel.data import available, describe, load
from archipel.data.sources import SOURCES
from archipel.data.splits import blocks, divide, stratified_counts

EMBEDDED = [n for n, s in SOURCES.items() if s.published is None and s.extra is None]


def rows(split):
    """Each example as hashable bytes."""
    return [x.numpy().tobytes() + y.numpy().tobytes() for x, y in zip(split.x, split.y, strict=True)]


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets_have_the_declared_shape_and_size_and_a_json_record(name):
    data, source = load(name), SOURCES[name]
    assert data.input_shape == source.shape
    assert data.task == source.task
    if source.sizes:
        sizes = {"train": len(data.train), "val": len(data.val), "test": len(data.sealed_test)}
        sizes["train+val"] = sizes["train"] + sizes["val"]
        assert {k: sizes[k] for k in source.sizes} == source.sizes
    assert torch.isfinite(data.train.x.float()).all()
    assert data.openings == []
    info = json.loads(json.dumps(data.info, allow_nan=False))
    assert info["licence"]
    assert info["citation"]
    assert info["split"]["rule"]


@pytest.mark.parametrize("name", ["digits", "noisy-digits", "wine", "diabetes", "moons"])
def test_the_same_seed_gives_the_same_splits_and_another_seed_others(name):
    a, b, c = load(name, seed=5), load(name, seed=5), load(name, seed=6)
    for part in ("train", "val", "sealed_test"):
        assert torch.equal(getattr(a, part).x, getattr(b, part).x)
        assert torch.equal(getattr(a, part).y, getattr(b, part).y)
    assert not torch.equal(a.train.x, c.train.x)


def test_splits_are_disjoint_complete_and_stratified():
    data = load("noisy-digits", seed=2)  # noise makes every example unique
    train, val, test = (set(rows(s)) for s in (data.train, data.val, data.sealed_test))
    assert (len(train), len(val), len(test)) == (400, 400, 997)
    assert not train & val
    assert not (train | val) & test
    assert len(train | val | test) == 1797
    share = torch.stack([s.y.bincount() / len(s) for s in (data.train, data.val, data.sealed_test)])
    assert float((share[0] - share[1]).abs().max()) < 0.01
    assert float((share[0] - share[2]).abs().max()) < 0.01


def test_noisy_digits_are_digits_over_16_plus_fixed_noise():
    from sklearn.datasets import load_digits

    images = load_digits().images / 16
    noise = 0.35 * np.random.default_rng(0).standard_normal(images.shape)
    expected = {x.tobytes() for x in (images + noise).astype(np.float32)}
    for seed in (0, 1):
        data = load("micro-nb201", seed=seed)
        assert {x.numpy().tobytes() for x in data.val.x} <= expected
    other = load("noisy-digits?noise=0.25&train=200&val=100")
    assert (len(other.train), len(other.val), len(other.sealed_test)) == (200, 100, 1497)
    assert 0.24 < float((other.train.x[:, 0, :, 0]).std()) < 0.26  # the left column of digits is empty
    assert not torch.equal(load("noisy-digits", noise_seed=1).train.x, load("noisy-digits").train.x)


def test_digits_are_scikit_learns_and_lie_between_0_and_1():
    from sklearn.datasets import load_digits

    data = load("digits")
    everything = {r for s in (data.train, data.val, data.sealed_test) for r in rows(s)}
    original = load_digits()
    x = torch.from_numpy((original.images / 16).astype(np.float32))[:, None]
    assert everything == {
        a.numpy().tobytes() + b.numpy().tobytes() for a, b in zip(x, torch.from_numpy(original.target))
    }
    assert float(data.train.x.min()) == 0
    assert float(data.train.x.max()) == 1


def test_digits_load_in_less_than_a_third_of_a_second():
    load("digits")
    start = time.perf_counter()
    load("digits", seed=1)
    assert time.perf_counter() - start < 0.3


@pytest.mark.parametrize("name", ["wine", "breast-cancer", "iris", "diabetes"])
def test_tables_are_standardised_by_their_training_rows(name):
    data = load(name)
    torch.testing.assert_close(data.train.x.mean(0), torch.zeros(data.input_shape), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train.x.std(0, correction=0), torch.ones(data.input_shape), atol=1e-4, rtol=0)
    assert float(data.sealed_test.x.mean(0).abs().max()) > 1e-3
    assert data.info["normalisation"]["fitted_on"] == "train"


def test_moons_and_spirals_have_the_geometry_they_promise():
    moons = load("moons", noise=0, n=100, val_fraction=0.1, test_fraction=0.1)
    upper = moons.train.x[moons.train.y == 0]
    torch.testing.assert_close(upper.norm(dim=1), torch.ones(len(upper)))
    torch.testing.assert_close((moons.train.x[moons.train.y == 1] - torch.tensor([1, 0.5])).norm(dim=1), torch.ones(40))
    spirals = load("spirals", noise=0, classes=4, turns=1.0)
    r = spirals.train.x.norm(dim=1)
    angle = torch.atan2(spirals.train.x[:, 1], spirals.train.x[:, 0]) / (2 * torch.pi)
    arm = torch.remainder(angle - r + 1 / 8, 1) * 4  # in units of arms, shifted by half a one
    assert torch.equal(arm.floor().long(), spirals.train.y)


def test_mnist1d_is_its_authors_generator_and_leaves_the_global_streams_alone():
    pytest.importorskip("mnist1d")
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    data = load("mnist1d")
    assert (random.random(), np.random.rand()) == expected
    assert data.input_shape == (1, 40)
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (3200, 800, 1000)
    everything = torch.cat([data.train.x, data.val.x, data.sealed_test.x])
    assert abs(float(everything.mean())) < 1e-5  # the generator standardises all 5000 together
    assert abs(float(everything.std()) - 1) < 1e-3


def test_a_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mnist1d", None)
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'archipel\[mnist1d\]'"):
        load("mnist1d")


@pytest.mark.parametrize("limit", [20, 100, 1000])
def test_a_limit_shrinks_all_splits_in_proportion_and_keeps_all_classes(limit):
    full, small = load("digits", seed=1), load("digits", seed=1, limit=limit)
    assert len(small.train) + len(small.val) == limit
    assert len(small.sealed_test) == max(10, round(359 * limit / 1438))
    for part in ("train", "val", "sealed_test"):
        assert set(rows(getattr(small, part))) <= set(rows(getattr(full, part)))
        assert len(getattr(small, part).y.unique()) == 10
    assert torch.equal(small.train.x, load("digits", seed=1, limit=limit).train.x)


def test_a_limit_above_the_size_changes_nothing_and_one_below_the_classes_is_an_error():
    assert torch.equal(load("digits", limit=99999).train.x, load("digits").train.x)
    with pytest.raises(UsageError, match="limit 19 is too small"):
        load("digits", limit=19)
    assert len(load("diabetes", limit=2).train) == 1


def test_arguments_may_stand_in_the_spec():
    a = load("digits?limit=200&seed=3&val_fraction=0.5&test_fraction=0.1")
    b = load("digits", limit=200, seed=3, val_fraction=0.5, test_fraction=0.1)
    assert torch.equal(a.train.x, b.train.x)
    assert abs(len(a.val) - 200 * 0.5 / 0.9) <= 1


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("digts", {}, "No data set, file or folder is called 'digts'. Did you mean: digits"),
        ("", {}, "Which data"),
        ("digits", {"noise": 1}, "digits has no option 'noise'"),
        ("noisy-digits?nois=1", {}, "no option 'nois'. Did you mean: noise"),
        ("noisy-digits?noise=much", {}, "noise must be a number, not 'much'"),
        ("noisy-digits?noise=nan", {}, "noise must be a number, not 'nan'"),
        ("noisy-digits?noise", {}, "options are written"),
        ("noisy-digits", {"train": 2.5}, "train must be a whole number, not 2.5"),
        ("noisy-digits", {"train": 1000, "val": 1000}, "leave fewer than 10"),
        ("noisy-digits", {"noise": -1}, "noise must be 0 to 100"),
        ("moons", {"n": 1}, "n must be 6"),
        ("digits", {"normalise": "perhaps"}, "normalise must be yes or no"),
        ("digits", {"val_fraction": 0}, "val_fraction must lie between 0 and 1"),
        ("digits", {"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ("digits", {"seed": -1}, "seed must be a whole number"),
        ("digits", {"limit": "all"}, "limit must be a whole number"),
        ("digits", {"path": "/tmp"}, "digits has no option 'path'"),
    ],
)
def test_what_makes_no_sense_is_explained(spec, options, message):
    with pytest.raises(UsageError, match=message):
        load(spec, **options)


def test_files_that_are_not_there_or_not_read_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"no/such/file\.csv: there is no such file or folder"):
        load("no/such/file.csv")
    with pytest.raises(DataError, match="there is no such file or folder"):
        load("x/" * 3000)
    with pytest.raises(DataError, match="~nobody-of-this-name: there is no such file or folder"):
        load("~nobody-of-this-name")
    (tmp_path / "weights.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="files of this kind are not read"):
        load(tmp_path / "weights.pkl")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match="Give the folder that holds the IDX files"):
        load(tmp_path / "train-images-idx3-ubyte")
    (tmp_path / "table.dat").write_text("x,y\n" + "1,a\n2,b\n" * 5)
    assert len(load(tmp_path / "table.dat", kind="table").train) == 6
    with pytest.raises(UsageError, match="is a file; kind=images reads the other"):
        load(tmp_path / "table.dat", kind="images")


def test_every_class_is_in_every_split_however_rare():
    y = torch.tensor([0] * 50 + [1] * 3)
    for fraction in (0.1, 0.45):
        sets = divide(y, [round(53 * fraction)] * 2, seed=0, stratify=True)
        assert [len(y[i].unique()) for i in sets] == [2, 2, 2]
        assert sorted(torch.cat(sets).tolist()) == list(range(53))


def test_counts_are_exact_wherever_classes_allow_it():
    assert stratified_counts(np.array([5, 5]), 3).sum() == 3
    assert stratified_counts(np.array([1000, 3, 3]), 12).tolist() == [10, 1, 1]
    assert stratified_counts(np.array([4, 4]), 8, leave=1).tolist() == [3, 3]
    assert [len(b) for b in blocks(3, 2, 1)] == [1, 1, 1]


def test_all_sets_can_be_listed_and_described_without_network():
    listed = available()
    assert [d["name"] for d in listed] == list(SOURCES)
    described = describe("wine")
    assert described["sizes"] == {"train": 106, "val": 36, "test": 36}
    assert described["classes"] == 3
    json.dumps([listed, described])
