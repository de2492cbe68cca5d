"""Text as bytes and as characters."""

import pytest
import torch

from archipel.core.errors import DataError, UsageError
from archipel.data import load

TEXT = "".join(f"{i}: the quick brown fox\n" for i in range(200))


def write(tmp_path, content=TEXT):
    path = tmp_path / "book.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_targets_are_the_next_bytes_and_splits_are_consecutive(tmp_path):
    data = load(write(tmp_path), length=16)
    assert data.task == "language"
    assert data.classes == 256
    n = (len(TEXT) - 1) // 16
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (n - 2 * round(n * 0.2), *[round(n * 0.2)] * 2)
    x = torch.cat([data.train.x, data.val.x, data.sealed_test.x])
    y = torch.cat([data.train.y, data.val.y, data.sealed_test.y])
    assert x.dtype == y.dtype == torch.int64
    assert bytes(x.flatten().tolist()).decode() == TEXT[: 16 * n]
    assert bytes(y.flatten().tolist()).decode() == TEXT[1 : 16 * n + 1]


def test_characters_have_a_vocabulary_of_the_training_text_and_one_id_for_others(tmp_path):
    data = load(write(tmp_path, "abcä" * 60 + "ωabc" * 20), tokens="characters", length=4)
    assert data.info["vocabulary"] == "abcä"
    assert data.info["unknown"] == 4
    assert data.classes == 5
    assert data.train.x[0].tolist() == [0, 1, 2, 3]
    assert data.sealed_test.x[0].tolist() == [4, 0, 1, 2]
    assert int(data.train.x.max()) == 3


def test_a_limit_keeps_windows_whole(tmp_path):
    data = load(write(tmp_path), length=16, limit=40)
    assert len(data.train) + len(data.val) == 40
    assert torch.equal(data.train.x[:, 1:], data.train.y[:, :-1])


def test_bad_utf8_is_an_error_with_its_line_for_characters_and_no_matter_for_bytes(tmp_path):
    path = write(tmp_path, TEXT.encode()[:600] + b"\n\xff" + TEXT.encode())
    line = TEXT[:600].count("\n") + 2
    with pytest.raises(DataError, match=rf"book\.txt: line {line}: byte 0xff at position 601 is not UTF-8"):
        load(path, tokens="characters")
    assert load(path).classes == 256


@pytest.mark.parametrize(("content", "message"), [(b"", "the file is empty"), (b"short", "5 bytes are too few")])
def test_empty_and_short_files_are_errors(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, content))


@pytest.mark.parametrize("options", [{"tokens": "words"}, {"length": 0}])
def test_wrong_options_are_explained(tmp_path, options):
    with pytest.raises(UsageError, match="must be"):
        load(write(tmp_path), **options)


def test_the_standard_library_is_a_text_that_is_always_there():
    data = load("stdlib-text", length=128, limit=1000)
    assert data.task == "language"
    assert data.input_shape == (128,)
    assert data.info["text_tokens"] > 1_000_000
    everything = bytes(load("stdlib-text").train.x.flatten().tolist())
    assert b"class ArgumentParser" in everything
