"""Run folders: a folder that outlives the process.

``config.json``, ``environment.json``, ``log.jsonl`` (phases and notices), ``trials.sqlite`` (every trial, and the order
of asks and tells), ``checkpoints/``, and what the run hands over: ``report.html``, ``report.json``, ``model/``. A lock
keeps two processes from working in one folder; it vanishes with its holder, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from archipel.core.errors import RunError
from archipel.core.storage import Checkpoints, finite, read_json, storage_error, write_json

SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
    arm TEXT, id INTEGER, arch TEXT, resource INTEGER, resume INTEGER, info TEXT,
    metrics TEXT, failure TEXT, seconds REAL, cached INTEGER, told REAL, PRIMARY KEY (arm, id));
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, arm TEXT, kind TEXT, trial INTEGER);
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value TEXT);
"""

# Trials this quick are written together; one that took longer is on disk before the next is proposed.
QUICK_SECONDS = 0.05
FLUSH_SECONDS = 0.25
# Free space that a run asks for when it starts or goes on.
ROOM_BYTES = 64_000_000


def environment() -> dict[str, Any]:
    """Versions and machine facts that a result may depend on."""
    import psutil

    packages = {}
    for name in ("archipel", "torch", "numpy", "scipy", "scikit-learn", "pymoo", "onnx", "onnxscript", "onnxruntime"):
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "packages": packages,
    }


class Journal:
    """The trials of a run and the order in which they were asked for and told, in SQLite.

    Raises:
        RunError: the database cannot be written (disk full, read-only) or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trials: list[tuple[Any, ...]] = []
        self._events: list[tuple[str, str, int]] = []
        self._flushed = time.monotonic()
        with self._errors():
            self.db = sqlite3.connect(path, timeout=30, isolation_level=None)
            self.db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + SCHEMA)

    def _errors(self) -> _SqliteErrors:
        return _SqliteErrors(self.path)

    def asked(self, arm: str, trial_id: int) -> None:
        self._events.append((arm, "ask", trial_id))

    def told(self, arm: str, row: dict[str, Any], cached: bool = False) -> None:
        """Record an outcome. ``row`` has id, arch, resource, resume, info, metrics, failure, seconds."""
        self._events.append((arm, "tell", row["id"]))
        info, seconds = row["info"], row["seconds"]
        self._trials.append(
            (
                arm,
                row["id"],
                json.dumps(row["arch"]),
                row["resource"],
                row["resume"],
                None if info is None else json.dumps(finite(info)),
                json.dumps(row["metrics"]),
                row["failure"],
                seconds,
                cached,
                time.time(),
            )
        )
        if seconds > QUICK_SECONDS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered, all or nothing."""
        if self._events:
            with self._errors():
                self.db.execute("BEGIN")
                try:
                    self.db.executemany("INSERT OR REPLACE INTO trials VALUES (?,?,?,?,?,?,?,?,?,?,?)", self._trials)
                    self.db.executemany("INSERT INTO events (arm, kind, trial) VALUES (?,?,?)", self._events)
                    self.db.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):
                        self.db.execute("ROLLBACK")
                    raise
            self._trials.clear()
            self._events.clear()
        self._flushed = time.monotonic()

    def events(self, arm: str) -> list[tuple[str, int]]:
        """("ask" or "tell", trial id), in order."""
        with self._errors():
            return self.db.execute("SELECT kind, trial FROM events WHERE arm=? ORDER BY seq", (arm,)).fetchall()

    def trials(self, arm: str | None = None) -> Iterator[dict[str, Any]]:
        """Rows of told trials in the order of their ids; JSON columns decoded."""
        self.flush()
        with self._errors():
            where, args = ("WHERE arm=?", (arm,)) if arm else ("", ())
            cursor = self.db.execute(f"SELECT * FROM trials {where} ORDER BY arm, id", args)
            names = [c[0] for c in cursor.description]
            for values in cursor.fetchall():
                row = dict(zip(names, values))
                for column in ("arch", "info", "metrics"):
                    row[column] = None if row[column] is None else json.loads(row[column])
                yield row

    def note(self, key: str, value: Any) -> None:
        """Remember a JSON value under a key."""
        with self._errors():
            self.db.execute("INSERT OR REPLACE INTO notes VALUES (?,?)", (key, json.dumps(finite(value))))

    def recall(self, key: str, default: Any = None) -> Any:
        with self._errors():
            row = self.db.execute("SELECT value FROM notes WHERE key=?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])

    def close(self) -> None:
        self.flush()
        self.db.close()


class _SqliteErrors:
    """Turns SQLite's errors into ours."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, sqlite3.Error):
            text = str(error)
            if "full" in text:
                raise RunError(f"The disk is full: {self.path} could not be written. What was saved is intact; "
                               f"free some space and resume.") from error  # fmt: skip
            if "readonly" in text or "unable to open" in text:
                raise RunError(f"{self.path} cannot be opened for writing ({text}). Choose another --out.") from error
            raise RunError(f"{self.path} could not be used: {text}.") from error


class RunFolder:
    """A run's folder, locked by this process while open.

    Use :meth:`create` or :meth:`open`; close it, or use it as a context manager.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock
        self.journal = Journal(path / "trials.sqlite")
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.model_path = path / "model"

    @classmethod
    def create(cls, path: Path | str, config: dict[str, Any]) -> RunFolder:
        """A new folder with its configuration.

        Raises:
            RunError: the folder exists with something in it, or cannot be written.
        """
        path = Path(path)
        if (path / "config.json").exists():
            raise RunError(
                f"{path} already holds a run. Continue it with `archipel resume {path}`, or choose another --out."
            )
        if path.exists() and (not path.is_dir() or any(p.name != ".lock" for p in path.iterdir())):
            raise RunError(f"{path} exists and is no empty folder. Choose another --out.")
        _check_room(path)  # before anything is made: what is refused leaves nothing behind
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(path / "checkpoints", error) from error
        lock = _lock(path)
        write_json(path / "environment.json", environment())
        run = cls(path, lock)
        write_json(path / "config.json", config)  # last: a folder with a config is a complete run folder
        run.log("created")
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run.

        Raises:
            RunError: there is no run, or another process works in it.
        """
        path = Path(path)
        if not (path / "config.json").exists():
            raise RunError(f"{path} holds no run: config.json is missing.")
        _check_room(path)
        return cls(path, _lock(path))

    @property
    def config(self) -> dict[str, Any]:
        config = read_json(self.path / "config.json")
        if not isinstance(config, dict):
            raise RunError(f"{self.path / 'config.json'} must hold an object, not {type(config).__name__}.")
        return config

    def log(self, event: str, **details: Any) -> None:
        """Append a line to ``log.jsonl``."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **finite(details)}, ensure_ascii=False)
        path = self.path / "log.jsonl"
        try:
            with path.open("a") as f:
                f.write(line + "\n")
        except OSError as error:
            raise storage_error(path, error) from error

    def read_log(self) -> list[dict[str, Any]]:
        """The log's lines; a last line cut short by a kill is left out."""
        lines = []
        with suppress(FileNotFoundError):
            for line in (self.path / "log.jsonl").read_text().splitlines():
                with suppress(json.JSONDecodeError):
                    lines.append(json.loads(line))
        return lines

    def close(self) -> None:
        try:
            self.journal.close()
        finally:
            self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


def _check_room(path: Path) -> None:
    """Refuse to start what a nearly full disk would soon end."""
    place = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < ROOM_BYTES:
        raise RunError(
            f"Only {free / 1e6:.0f} MB are free where {path} is; a run needs {ROOM_BYTES / 1e6:.0f} MB to start. "
            f"Free some space, or choose another --out."
        )


def _lock(path: Path) -> IO[str]:
    """Hold the folder's lock; the system drops it when this process ends."""
    try:
        handle = (path / ".lock").open("a+")
    except OSError as error:
        raise storage_error(path / ".lock", error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.seek(0)
        owner = handle.read().strip() or "unknown"
        handle.close()
        raise RunError(f"{path} is in use by process {owner}. Wait for it to end, or stop it.") from error
    handle.seek(0)
    handle.truncate()
    handle.write(str(os.getpid()))
    handle.flush()
    return handle
