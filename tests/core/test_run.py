"""Run folders: what is saved, locks, damage."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys

import pytest

from archipel.core.errors import RunError
from archipel.core.run import Journal, RunFolder

ROW = {"id": 0, "arch": {"a": 1}, "resource": None, "resume": None, "info": None, "failure": None}


def row(i, seconds=0.0, **metrics):
    return {**ROW, "id": i, "metrics": metrics, "seconds": seconds}


def test_a_slow_trial_is_on_disk_as_soon_as_it_is_told(tmp_path):
    journal = Journal(tmp_path / "t.sqlite")
    journal.asked("search", 0)
    journal.told("search", row(0, seconds=0.2, accuracy=0.5))
    seen = sqlite3.connect(tmp_path / "t.sqlite").execute("SELECT arm, id, arch, metrics FROM trials").fetchall()
    assert seen == [("search", 0, '{"a": 1}', '{"accuracy": 0.5}')]


def test_quick_trials_are_written_together_and_all_by_closing(tmp_path):
    journal = Journal(tmp_path / "t.sqlite")
    for i in range(500):
        journal.asked("search", i)
        journal.told("search", row(i, accuracy=0.5))
    journal.close()
    again = Journal(tmp_path / "t.sqlite")
    assert [t["id"] for t in again.trials("search")] == list(range(500))
    assert again.events("search") == [(kind, i) for i in range(500) for kind in ("ask", "tell")]


def test_notes_are_remembered(tmp_path):
    journal = Journal(tmp_path / "t.sqlite")
    journal.note("x", [1, {"y": None}])
    assert journal.recall("x") == [1, {"y": None}]
    assert journal.recall("z", "default") == "default"


def test_a_damaged_database_is_a_run_error_that_names_it(tmp_path):
    (tmp_path / "t.sqlite").write_bytes(b"not a database at all, but long enough to be read as one" * 20)
    with pytest.raises(RunError, match=r"t\.sqlite"):
        Journal(tmp_path / "t.sqlite")


def test_a_full_disk_is_reported_and_keeps_what_was_saved(tmp_path):
    journal = Journal(tmp_path / "t.sqlite")
    journal.told("search", row(0, seconds=1.0, accuracy=0.5))
    pages = journal.db.execute("PRAGMA page_count").fetchone()[0]
    journal.db.execute(f"PRAGMA max_page_count={pages}")

    def fill():
        for i in range(1, 500):
            journal.told("search", row(i, seconds=1.0, note=0.123456789))

    with pytest.raises(RunError, match="disk is full"):
        fill()
    journal.db.execute("PRAGMA max_page_count=100000")
    kept = [t["id"] for t in Journal(tmp_path / "t.sqlite").trials("search")]
    assert kept[0] == 0
    assert kept == list(range(len(kept)))


def test_creating_opening_and_locking(tmp_path):
    folder = tmp_path / "run"
    with RunFolder.create(folder, {"data": "digits"}) as run:
        assert run.config == {"data": "digits"}
        environment = json.loads((folder / "environment.json").read_text())
        assert "torch" in environment["packages"]
        code = f"from archipel.core.run import RunFolder; RunFolder.open({str(folder)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "in use by process" in other.stderr
    RunFolder.open(folder).close()
    with pytest.raises(RunError, match="already holds a run"):
        RunFolder.create(folder, {})
    with pytest.raises(RunError, match="holds no run"):
        RunFolder.open(tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="no empty folder"):
        RunFolder.create(tmp_path / "full", {})
    assert (tmp_path / "full" / "thesis.tex").read_text() == "precious"


def test_a_file_in_the_way_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError):
        RunFolder.create(tmp_path / "file" / "run", {})


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"data": '])
def test_a_damaged_configuration_is_a_run_error_that_names_it(tmp_path, text):
    RunFolder.create(tmp_path / "run", {}).close()
    (tmp_path / "run" / "config.json").write_text(text)
    with RunFolder.open(tmp_path / "run") as run, pytest.raises(RunError, match=r"config\.json"):
        run.config  # noqa: B018


def test_a_log_line_cut_short_is_left_out(tmp_path):
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log("hello", n=float("nan"))
        with (tmp_path / "run" / "log.jsonl").open("a") as f:
            f.write('{"time": 1, "eve')
        assert [e["event"] for e in run.read_log()] == ["created", "hello"]


def test_a_nearly_full_disk_is_refused_before_any_work(tmp_path, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(RunError, match="Only 1 MB are free"):
        RunFolder.create(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()
