"""Files that are whole or absent: atomic writes, and checkpoints that survive a kill."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from archipel.core.errors import RunError


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that it is either the old one or the complete new one, whenever the process dies.

    Raises:
        RunError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
            temporary = f.name
            write(f)  # type: ignore[arg-type]
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)  # temporary files start private
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise storage_error(path, error) from error
    except BaseException:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise


def storage_error(path: Path, error: OSError) -> RunError:
    """What went wrong with a file, in words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"The disk is full: {path} could not be written. Free some space; what was saved is intact.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(f"{path.parent} cannot be written ({error.strerror}). Choose another folder with --out.")
    return RunError(f"{path} could not be written: {error.strerror or error}.")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities become null, since JSON has none."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, lambda f: f.write(text.encode()))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RunError: the file is missing or is no JSON; names the place.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not valid JSON: {error}.") from error
    except OSError as error:
        raise RunError(f"{path} could not be read: {error.strerror or error}.") from error


def finite(value: Any) -> Any:
    """Replace NaN and infinities by None, all the way down."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


class Checkpoints:
    """Named states (nested dicts of tensors and numbers), in a folder or, without one, in memory.

    Loading never unpickles anything but tensors and plain containers.

    >>> store = Checkpoints()
    >>> store.save("supernet", {"epoch": 3})
    >>> store.load("supernet"), store.load("nothing")
    ({'epoch': 3}, None)
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._memory: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.pt"

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Keep a state under a name, replacing an earlier one atomically.

        Raises:
            RunError: it could not be written.
        """
        import torch

        if self.folder is None:
            self._memory[name] = _copied(state)  # the network goes on changing
            return
        write_atomically(self.path(name), lambda f: torch.save(state, f))

    def load(self, name: str) -> dict[str, Any] | None:
        """The state saved last under a name, or None.

        Raises:
            RunError: the file is damaged.
        """
        import torch

        if self.folder is None:
            return _copied(self._memory.get(name))
        if not self.path(name).exists():
            return None
        try:
            return torch.load(self.path(name), map_location="cpu", weights_only=True)
        except Exception as error:
            # PyTorch's message advises to load it unsafely; ours must not.
            raise RunError(
                f"Checkpoint {self.path(name)} is damaged, or holds something else than tensors and plain values "
                f"({type(error).__name__}). Delete it to start that part anew."
            ) from error

    def delete(self, name: str) -> None:
        self._memory.pop(name, None)
        if self.folder is not None:
            self.path(name).unlink(missing_ok=True)


def _copied(value: Any) -> Any:
    """Plain containers with copies of their tensors."""
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value.detach().clone() if hasattr(value, "detach") else value
