"""Results of many calls: made on any executor, kept in a file, and never made twice."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from pathlib import Path
from typing import Any

import torch

from archipel.core.errors import RunError, UsageError
from archipel.core.storage import finite, storage_error

# Calls handed to an executor at once; enough to keep any machine busy.
IN_FLIGHT = 64
# Training draws from torch's one generator of the process, so calls in threads take turns.
TURN = threading.RLock()


class Notebook:
    """Results by key, each on disk in a line of its own as soon as it is there; without a path, in memory.

    Raises:
        RunError: the file cannot be written, or a whole line is damaged. A last line cut short by a kill is dropped.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.entries: dict[str, Any] = {}
        self._whole: int | None = None  # bytes of whole lines, if the last one was cut short by a kill
        if self.path is not None and self.path.exists():
            *lines, rest = self.path.read_bytes().split(b"\n")
            self._whole = sum(len(line) + 1 for line in lines) if rest else None
            for i, line in enumerate(lines, 1):
                try:
                    key, value = json.loads(line)
                    self.entries[key] = value
                except (ValueError, TypeError) as error:
                    raise RunError(f"{self.path}, line {i} is damaged: {line[:60]!r}. Delete that line.") from error

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def add(self, key: str, value: Any) -> None:
        value = finite(value)
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as f:
                    if self._whole is not None:
                        f.truncate(self._whole)
                        self._whole = None
                    f.write(json.dumps([key, value]).encode() + b"\n")
            except OSError as error:
                raise storage_error(self.path, error) from error
        self.entries[key] = value


def isolated(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a call that has torch's random generator for itself, and leaves it as it was."""
    with TURN, torch.random.fork_rng(devices=[]):
        return function(*args)


Call = tuple[Callable[..., Any], tuple[Any, ...]]


def run_all(jobs: Mapping[str, Call], executor: Executor | None, notebook: Notebook) -> list[Any]:
    """Results of all calls (JSON), in order; only those that the notebook does not hold are made.

    Raises:
        UsageError: a call that cannot be sent to another process.
        RunError: a worker died; what was finished is in the notebook.
    """
    missing = {key: call for key, call in jobs.items() if key not in notebook}
    if executor is None:
        for key, (function, args) in missing.items():
            notebook.add(key, isolated(function, *args))
    else:
        pending: dict[Future[Any], str] = {}
        try:
            for key, (function, args) in missing.items():
                pending[executor.submit(isolated, function, *args)] = key
                _take(pending, notebook, None if len(pending) >= IN_FLIGHT else 0.0)
            while pending:
                _take(pending, notebook, None)
        except BaseException:
            for future in pending:
                future.cancel()
            raise
    return [notebook.entries[key] for key in jobs]


def _take(pending: dict[Future[Any], str], notebook: Notebook, timeout: float | None) -> None:
    """Move what is finished to the notebook; with no timeout, wait for at least one."""
    done, _ = wait(pending, timeout, FIRST_COMPLETED)
    errors = []
    for future in done:
        key = pending.pop(future)
        error = future.exception()
        if error is None:
            notebook.add(key, future.result())
        else:
            errors.append(error)
    for error in errors:
        if isinstance(error, BrokenExecutor):
            raise RunError(f"A worker died ({error}). What was finished is kept; run again to go on.") from error
        if isinstance(error, pickle.PicklingError) or "pickle" in str(error):
            raise UsageError(
                f"This cannot be sent to another process: {error}. Define functions and classes at the top of a "
                f"module (functools.partial instead of lambda), or leave the executor out."
            ) from error
        raise error
