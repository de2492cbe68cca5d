"""Text as bytes or characters: windows of tokens and the tokens that follow them.

Splits are consecutive blocks of the text (the usual 'first part trains, last part tests'), so that no window of the
validation or test text overlaps with training text. The vocabulary of characters is that of the training text, in
order of code points, and one last id for characters that it does not have.
"""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.core.errors import DataError, UsageError
from archipel.data.raw import Raw, Transform

# Pure-Python modules that every CPython carries, about 1.4 MB of text together.
STDLIB_MODULES = (
    "argparse", "ast", "bdb", "calendar", "codecs", "configparser", "copy", "csv", "dataclasses", "datetime",
    "decimal", "difflib", "dis", "doctest", "enum", "fractions", "ftplib", "functools", "gettext", "gzip", "heapq",
    "imaplib", "inspect", "ipaddress", "locale", "mailbox", "mimetypes", "optparse", "os", "pathlib", "pdb", "pickle",
    "pickletools", "platform", "plistlib", "pprint", "pydoc", "queue", "random", "selectors", "shutil", "smtplib",
    "socket", "socketserver", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap",
    "threading", "tokenize", "traceback", "turtle", "typing", "uuid", "warnings", "weakref", "zipfile",
)  # fmt: skip


def read_text(path: Path, tokens: str = "bytes", length: int = 64) -> Raw:
    """Windows of a text file.

    Args:
        path: any file (bytes), or one in UTF-8 (characters).
        tokens: ``"bytes"`` (256 of them) or ``"characters"``.
        length: tokens a window.

    Raises:
        DataError: empty, too short, or not UTF-8 (names the line).
        UsageError: options out of range.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    return windows(content, str(path), tokens, length, [Path(path)])


def windows(content: bytes, where: str, tokens: str, length: int, files: list[Path]) -> Raw:
    """Cut a text into windows x [N, length] with targets y [N, length], the tokens one further on."""
    if tokens not in ("bytes", "characters"):
        raise UsageError(f"tokens must be 'bytes' or 'characters', not {tokens!r}.")
    if not 1 <= length <= 1_000_000:
        raise UsageError(f"length must be 1 to 1000000 tokens, not {length}.")
    stream = _stream(content, where, tokens)
    n = (len(stream) - 1) // length
    if n < 3:
        raise DataError(
            f"{where}: {len(stream)} {tokens} are too few for windows of length {length} in three splits; at least "
            f"{3 * length + 1} are needed."
        )
    x = torch.from_numpy(stream[: n * length].reshape(n, length))
    y = torch.from_numpy(stream[1 : n * length + 1].reshape(n, length))
    return Raw(
        {"pool": (x, y)},
        "language",
        256 if tokens == "bytes" else 0,  # characters: known when the vocabulary is fitted
        where,
        fit=_bytes if tokens == "bytes" else _characters,
        contiguous=True,
        files=files,
        info={"tokens": tokens, "length": length, "text_tokens": len(stream)},
    )


def _stream(content: bytes, where: str, tokens: str) -> np.ndarray:
    if not content:
        raise DataError(f"{where}: the file is empty.")
    if tokens == "bytes":
        return np.frombuffer(content, np.uint8).copy()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{where}: line {line}: byte 0x{content[error.start]:02x} at position {error.start} is not UTF-8. Convert "
            f"the file, or read it with tokens=bytes."
        ) from error
    return np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.int64)


def _bytes(x: Tensor, y: Tensor) -> tuple[Transform, dict[str, Any]]:
    return lambda x, y: (x.long(), y.long()), {}


def _characters(x: Tensor, y: Tensor) -> tuple[Transform, dict[str, Any]]:
    vocabulary = torch.unique(torch.cat([x.reshape(-1), y.reshape(-1)]))

    def ids(code: Tensor) -> Tensor:
        position = torch.searchsorted(vocabulary, code.contiguous())
        known = vocabulary[position.clamp(max=len(vocabulary) - 1)] == code
        return torch.where(known, position, len(vocabulary))

    info = {"vocabulary": "".join(map(chr, vocabulary.tolist())), "unknown": len(vocabulary)}
    return lambda x, y: (ids(x), ids(y)), {**info, "classes": len(vocabulary) + 1}


def read_stdlib_text(tokens: str = "bytes", length: int = 64) -> Raw:
    """Windows of the sources of Python's own standard library, one module after another.

    The text differs between versions of Python, which ``info["python"]`` and the checksum record.

    Raises:
        DataError: this Python came without sources.
        UsageError: options out of range.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = [
        f for name in STDLIB_MODULES for f in (folder / f"{name}.py", folder / name / "__init__.py") if f.is_file()
    ]
    content = b"\n".join(f.read_bytes() for f in files)
    if len(content) < 200_000:
        raise DataError(f"{folder}: this Python came without the sources of its library; give a text file instead.")
    raw = windows(content, str(folder), tokens, length, files)
    raw.info["python"] = platform.python_version()
    return raw
