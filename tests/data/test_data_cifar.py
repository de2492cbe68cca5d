"""CIFAR-10's python batches, in a folder or a tar archive."""

import pickle

import numpy as np
import pytest
import torch
from data_files import cifar_batch, write_cifar_folder, write_tar

from archipel.core.errors import DataError
from archipel.data import load


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_folder_of_batches_is_read_whichever_pickle_protocol_it_uses(tmp_path, protocol):
    data = load(write_cifar_folder(tmp_path / "c", protocol=protocol), normalise=False)
    assert data.input_shape == (3, 32, 32)
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (48, 12, 20)
    first = np.random.default_rng(99).integers(0, 256, (20, 3072), dtype=np.uint8)
    torch.testing.assert_close(data.sealed_test.x, torch.from_numpy(first.reshape(-1, 3, 32, 32) / np.float32(255)))
    assert data.info["class_names"][3] == "cat"


def test_a_tar_archive_gives_the_same_data_as_the_folder(tmp_path):
    folder = write_cifar_folder(tmp_path / "c")
    files = {f"cifar-10-batches-py/{p.name}": p.read_bytes() for p in folder.iterdir()}
    tar = write_tar(tmp_path / "cifar-10-python.tar.gz", files)
    from_folder, from_tar = load(folder), load(tar)
    assert torch.equal(from_folder.train.x, from_tar.train.x)
    assert torch.equal(from_folder.sealed_test.y, from_tar.sealed_test.y)


def test_python_3_keys_of_bytes_are_read_and_a_part_is_recorded_as_such(tmp_path):
    batch = cifar_batch(30, binary_keys=True, protocol=4)
    tar = write_tar(tmp_path / "part.tar", {"data_batch_2": batch}, mode="w")
    data = load(tar)
    assert data.info["batches"] == ["data_batch_2"]
    assert data.info["note"] == "a part of CIFAR-10: without data_batch_1, data_batch_3, data_batch_4, data_batch_5"
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (10, 10, 10)  # one of each class and split


def test_the_named_source_finds_the_archive_at_a_given_path(tmp_path):
    folder = write_cifar_folder(tmp_path / "cifar-10-batches-py")
    assert len(load("cifar10", path=tmp_path).sealed_test) == 20
    assert len(load("cifar10", path=str(folder.parent)).train) == 48


def bad(**changes):
    content = {"data": np.zeros((30, 3072), np.uint8), "labels": [i % 10 for i in range(30)], **changes}
    return pickle.dumps({k: v for k, v in content.items() if v is not None}, protocol=2)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (bad(data=np.zeros((30, 100), np.uint8)), r"'data' must be bytes \[N, 3072\], not uint8 \[30, 100\]"),
        (bad(data=np.zeros((30, 3072), np.float32)), "not float32"),
        (bad(data="nothing"), "'data': expected an array, found str"),
        (bad(labels=[0, 1]), "2 labels for 30 images"),
        (bad(labels=[0] * 29 + [10]), "label 29 is 10, not a class from 0 to 9"),
        (bad(labels=["cat"] * 30), "label 0 is 'cat'"),
        (bad(labels=None), "has no 'labels', only 'data'"),
        (pickle.dumps([1, 2]), "expected a dictionary, found list"),
        (b"garbage", "not a readable pickle"),
        (cifar_batch(30)[:-100], "not a readable pickle"),
    ],
)
def test_a_malformed_batch_gives_one_error_naming_archive_and_batch(tmp_path, batch, message):
    tar = write_tar(tmp_path / "c.tar.gz", {"x/data_batch_1": batch})
    with pytest.raises(DataError, match=message) as caught:
        load(tar)
    assert f"{tar}: data_batch_1" in str(caught.value)


def test_an_archive_without_batches_or_that_is_none_is_named(tmp_path):
    tar = write_tar(tmp_path / "c.tar.gz", {"readme.txt": b"hello"})
    with pytest.raises(DataError, match=r"c\.tar\.gz: holds no data_batch_1"):
        load(tar)
    (tmp_path / "d.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"d\.tar: not a readable tar archive"):
        load(tmp_path / "d.tar")
    (tmp_path / "e.tar.gz").write_bytes(tar.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"e\.tar\.gz: not a readable tar archive"):
        load(tmp_path / "e.tar.gz")
