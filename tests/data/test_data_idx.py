"""IDX files and folders of them."""

import gzip

import numpy as np
import pytest
import torch
from data_files import idx_bytes, write_idx_folder

from archipel.core.errors import DataError
from archipel.data import load
from archipel.data.idx import parse_idx, read_idx


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_every_value_type_of_the_format_is_read(dtype):
    array = np.arange(24).astype(dtype).reshape(2, 3, 4)
    np.testing.assert_array_equal(parse_idx(idx_bytes(array), "x"), array)


def test_gzipped_and_plain_files_are_the_same(tmp_path):
    array = np.arange(10, dtype=np.uint8)
    (tmp_path / "a").write_bytes(idx_bytes(array))
    (tmp_path / "b.gz").write_bytes(gzip.compress(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), read_idx(tmp_path / "b.gz"))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_keeps_its_published_test_split_and_normalises_by_training_images(tmp_path, zipped):
    data = load(write_idx_folder(tmp_path / "mine", zipped=zipped))
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (48, 12, 20)
    assert data.input_shape == (1, 5, 4)
    assert data.train.x.dtype == torch.float32
    assert abs(float(data.train.x.mean())) < 1e-6
    assert abs(float(data.train.x.std(correction=0)) - 1) < 1e-6
    assert abs(float(data.val.x.mean())) > 1e-4  # not fitted on
    mean, std = data.info["normalisation"]["mean"][0], data.info["normalisation"]["std"][0]
    pixel = (data.sealed_test.x[:, 0, 0, 0] * std + mean) * 255
    torch.testing.assert_close(pixel, 10.0 * data.sealed_test.y, atol=1e-3, rtol=0)
    assert len(data.info["files"]) == 4
    assert all(len(f["sha256"]) == 64 for f in data.info["files"])


def test_without_a_test_pair_a_test_split_is_drawn(tmp_path):
    data = load(write_idx_folder(tmp_path, test=0))
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (36, 12, 12)


def test_unnormalised_values_lie_between_0_and_1(tmp_path):
    data = load(write_idx_folder(tmp_path), normalise=False)
    assert float(data.train.x.min()) >= 0
    assert 0.9 < float(data.train.x.max()) <= 1
    assert data.info["normalisation"]["mean"] is None


def test_labels_with_gaps_become_consecutive_classes(tmp_path):
    write_idx_folder(tmp_path)
    for part, n in (("train", 60), ("t10k", 20)):
        labels = np.array([3, 7, 9], np.uint8)[np.arange(n) % 3]
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    data = load(tmp_path)
    assert data.info["class_names"] == ["3", "7", "9"]
    assert sorted(data.train.y.unique().tolist()) == [0, 1, 2]


def rewrite(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    return path


FAULTS = {
    "truncated": (
        "train-images-idx3-ubyte",
        lambda b: b[:-5],
        r"truncated: the header announces 60 x 5 x 4 values \(1200 bytes\) from byte 16, but 1195 bytes follow",
    ),
    "too long": ("train-images-idx3-ubyte", lambda b: b + b"xx", "longer than its header says"),
    "wrong magic": ("train-images-idx3-ubyte", lambda b: b"\x89PNG" + b[4:], r"byte 0: magic number 0x89504e47"),
    "header cut": ("train-labels-idx1-ubyte", lambda b: b[:6], "truncated in the header"),
    "empty": ("train-labels-idx1-ubyte", lambda b: b"", "only 0 bytes"),
    "labels as images": ("train-images-idx3-ubyte", lambda b: idx_bytes(np.zeros(60, np.uint8)), "in 3 dimensions"),
    "counts differ": (
        "train-labels-idx1-ubyte",
        lambda b: idx_bytes(np.zeros(59, np.uint8)),
        "59 labels, but train-images-idx3-ubyte has 60 images",
    ),
    "test size differs": (
        "t10k-images-idx3-ubyte",
        lambda b: idx_bytes(np.zeros((20, 6, 4), np.uint8)),
        "images of 6 x 4, but the training images are 5 x 4",
    ),
    "unknown test class": (
        "t10k-labels-idx1-ubyte",
        lambda b: idx_bytes(np.full(20, 8, np.uint8)),
        "class '8' does not occur among the training examples",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_file_gives_one_error_naming_file_and_place(tmp_path, fault):
    name, change, message = FAULTS[fault]
    path = rewrite(write_idx_folder(tmp_path), name, change)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert str(path) in str(caught.value)


def test_a_broken_gzip_file_is_named(tmp_path):
    folder = write_idx_folder(tmp_path, zipped=True)
    rewrite(folder, "train-images-idx3-ubyte.gz", lambda b: b[: len(b) // 2])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        load(folder)


def test_a_missing_partner_is_named(tmp_path):
    (write_idx_folder(tmp_path) / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="train-images-idx3-ubyte is there, but no file with the labels"):
        load(tmp_path)


def test_a_single_class_is_an_error(tmp_path):
    with pytest.raises(DataError, match="all 60 examples are of one class"):
        load(write_idx_folder(tmp_path, classes=1))
