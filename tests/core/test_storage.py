"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch

from archipel.core import storage
from archipel.core.errors import RunError
from archipel.core.storage import Checkpoints, finite, read_json, write_atomically, write_json


def failing(code):
    def fail(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    return fail


def contents(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_written_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    write_atomically(path, lambda f: f.write(b"content"))
    assert path.read_bytes() == b"content"
    assert contents(path.parent) == ["c.bin"]
    assert path.stat().st_mode & 0o444 == 0o444  # others may read it


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, where):
    path = tmp_path / "state.json"
    write_json(path, {"epoch": 1})
    monkeypatch.setattr(os, where, failing(errno.ENOSPC))
    with pytest.raises(RunError, match=r"The disk is full: .*state\.json .*what was saved is intact"):
        write_json(path, {"epoch": 2})
    assert read_json(path) == {"epoch": 1}
    assert contents(tmp_path) == ["state.json"]


def test_a_disk_that_fills_while_writing_is_told_apart_too(tmp_path, monkeypatch):
    real = tempfile.NamedTemporaryFile

    class Full:
        def __init__(self, *args, **kwargs):
            self.file = real(*args, **kwargs)
            self.name = self.file.name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, _):
            failing(errno.ENOSPC)()

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(storage.tempfile, "NamedTemporaryFile", Full)
    with pytest.raises(RunError, match="The disk is full"):
        Checkpoints(tmp_path).save("supernet", {"w": torch.zeros(100)})
    assert contents(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_cannot_be_written_says_so(tmp_path, monkeypatch, code):
    monkeypatch.setattr(storage.tempfile, "NamedTemporaryFile", failing(code))
    with pytest.raises(RunError, match=r"cannot be written .*Choose another folder with --out"):
        write_json(tmp_path / "x.json", {})


def test_other_failures_keep_their_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", failing(errno.EIO))
    with pytest.raises(RunError, match=r"x\.json could not be written: Input/output error"):
        write_json(tmp_path / "x.json", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="cannot be written"):
            write_json(tmp_path / "x.json", {})
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not be written"):
        write_json(tmp_path / "file" / "x.json", {})


def test_an_exception_while_writing_is_passed_on_and_leaves_nothing(tmp_path):
    def broken(f):
        f.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x", broken)
    assert contents(tmp_path) == []


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, list(range(20_000)))
    code = (
        "import sys, pathlib; from archipel.core.storage import write_json\n"
        f"path = pathlib.Path({str(path)!r}); n = 0\n"
        "print('ready', flush=True)\n"
        "while True: n += 1; write_json(path, list(range(n, n + 20_000)))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    values = read_json(path)
    assert len(values) == 20_000
    assert values[-1] - values[0] == 19_999


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.5], "c": (1, -math.inf)})
    assert read_json(tmp_path / "x.json") == {"a": None, "b": [None, 1.5], "c": [1, None]}
    assert finite("nan") == "nan"


def test_text_beyond_ascii_survives(tmp_path):
    write_json(tmp_path / "x.json", {"name": "größe × 3"})
    assert read_json(tmp_path / "x.json") == {"name": "größe × 3"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": ', r"x\.json is not valid JSON: .*line 1"),
        (b"\xff\xfe", r"x\.json is not valid JSON"),
        (b"", r"x\.json is not valid JSON"),
    ],
)
def test_damaged_json_names_the_place(tmp_path, data, message):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(RunError, match=message):
        read_json(tmp_path / "x.json")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(RunError, match=r"x\.json is missing"):
        read_json(tmp_path / "x.json")
    with pytest.raises(RunError, match="could not be read"):
        read_json(tmp_path)


STATE = {"epoch": 3, "loss": 0.5, "weights": {"w": torch.arange(3.0)}, "names": ["a", "b"], "done": False}


@pytest.mark.parametrize("folder", [True, False])
def test_checkpoints_come_back_as_they_were(tmp_path, folder):
    store = Checkpoints(tmp_path / "deep" if folder else None)
    assert store.load("supernet") is None
    store.save("supernet", STATE)
    again = store.load("supernet")
    assert torch.equal(again["weights"].pop("w"), torch.arange(3.0))
    assert again["epoch"] == 3
    store.save("supernet", {"epoch": 4})
    assert store.load("supernet") == {"epoch": 4}
    store.delete("supernet")
    store.delete("supernet")
    assert store.load("supernet") is None


class Evil:
    def __reduce__(self):
        return os.system, ("echo never",)


FOREIGN = {
    "empty": b"",
    "text": b"not a checkpoint",
    "pickle": pickle.dumps({"a": 1}, protocol=2)[:-3],
    "code": pickle.dumps(Evil(), protocol=2),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_a_damaged_or_foreign_checkpoint_is_an_error_and_runs_nothing(tmp_path, data, capfd):
    (tmp_path / "supernet.pt").write_bytes(data)
    with pytest.raises(RunError, match=r"supernet\.pt is damaged.*Delete it") as caught:
        Checkpoints(tmp_path).load("supernet")
    assert "weights_only" not in str(caught.value)  # no advice to load it unsafely
    assert "never" not in capfd.readouterr().out


def test_a_truncated_checkpoint_is_an_error(tmp_path):
    store = Checkpoints(tmp_path)
    store.save("supernet", STATE)
    path = store.path("supernet")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RunError, match="is damaged"):
        store.load("supernet")


def test_a_checkpoint_in_memory_does_not_change_with_the_network():
    """What is saved is the state at that moment, as it is with a folder."""
    store = Checkpoints()
    net = torch.nn.Linear(2, 2)
    store.save("net", {"model": net.state_dict()})
    before = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1.0)
    loaded = store.load("net")
    assert torch.equal(loaded["model"]["weight"], before)
    loaded["model"]["weight"].zero_()  # nor with what is loaded
    assert torch.equal(store.load("net")["model"]["weight"], before)


def test_written_json_is_readable_by_others(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, 2]})
    text = (tmp_path / "x.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": [1, 2]}
