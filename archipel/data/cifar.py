"""CIFAR-10 in its "python version": pickled batches of 3 x 32 x 32 images, in a folder or in a tar archive.

Krizhevsky. Learning Multiple Layers of Features from Tiny Images. 2009.
https://www.cs.toronto.edu/~kriz/cifar.html

The pickles are read with a restricted unpickler and the archive is never unpacked. Any subset of the training batches
is accepted, and the record says which were there.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from archipel.core.errors import DataError
from archipel.core.safe_pickle import NUMPY_GLOBALS, as_array, restricted_load
from archipel.data.raw import Raw, class_ids, ids_among, scaled

PIXELS = 3 * 32 * 32
MAX_BATCH_BYTES = 1 << 30
_MEMBER = re.compile(r"data_batch_\d+|test_batch|batches\.meta")


def read_cifar(path: Path, normalise: bool = True) -> Raw:
    """Images [N, 3, 32, 32] and labels of a CIFAR-10 folder or tar archive.

    Args:
        path: ``cifar-10-python.tar.gz`` or the folder ``cifar-10-batches-py``.
        normalise: bring each colour to mean 0 and deviation 1 of the training images.

    Raises:
        DataError: no training batches, or a malformed one.
    """
    batches = _from_folder(path) if path.is_dir() else _from_tar(path)
    meta = batches.pop("batches.meta", None)
    test = batches.pop("test_batch", None)
    if not batches:
        raise DataError(f"{path}: holds no data_batch_1 … data_batch_5; is it the python version of CIFAR-10?")
    loaded = [_batch(content, f"{path}: {name}") for name, content in sorted(batches.items())]
    y, names = class_ids(np.concatenate([labels for _, labels in loaded]), str(path))
    parts: dict[str, Any] = {"pool": (torch.from_numpy(np.concatenate([x for x, _ in loaded])), y)}
    if test is not None:
        x_test, y_test = _batch(test, f"{path}: test_batch")
        parts["test"] = (torch.from_numpy(x_test.copy()), ids_among(y_test, names, f"{path}: test_batch"))
    used = sorted(batches) + (["test_batch"] if test is not None else [])
    info: dict[str, Any] = {"class_names": _class_names(meta, names, f"{path}: batches.meta"), "batches": used}
    missing = [f"data_batch_{i}" for i in range(1, 6) if f"data_batch_{i}" not in batches]
    if missing:
        info["note"] = f"a part of CIFAR-10: without {', '.join(missing)}"
    files = [p for p in sorted(path.iterdir()) if _MEMBER.fullmatch(p.name)] if path.is_dir() else [path]
    return Raw(parts, "classification", len(names), str(path), fit=scaled(1 / 255, normalise), files=files, info=info)


def _from_folder(folder: Path) -> dict[str, BinaryIO]:
    try:
        return {p.name: io.BytesIO(p.read_bytes()) for p in sorted(folder.iterdir()) if _MEMBER.fullmatch(p.name)}
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error}).") from error


def is_cifar_tar(path: Path) -> bool:
    """Whether the name is that of a tar archive."""
    return path.name.endswith((".tar", ".tar.gz", ".tgz"))


def _from_tar(path: Path) -> dict[str, BinaryIO]:
    found: dict[str, BinaryIO] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = member.name.rsplit("/", 1)[-1]
                file = tar.extractfile(member) if member.isfile() and _MEMBER.fullmatch(name) else None
                if file is not None and member.size > MAX_BATCH_BYTES:
                    raise DataError(f"{path}: {member.name} has {member.size} bytes; a batch has 31 million.")
                if file is not None:
                    found[name] = io.BytesIO(file.read())
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path}: not a readable tar archive ({error}). Get it afresh.") from error
    return found


def _batch(file: BinaryIO, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 3, 32, 32] and labels [N] of one pickled batch, whichever Python wrote it."""
    content = _plain_keys(restricted_load(file, NUMPY_GLOBALS, where), where)
    for key in ("data", "labels"):
        if key not in content:
            raise DataError(f"{where}: has no {key!r}, only {', '.join(map(repr, content)) or 'nothing'}.")
    x = as_array(content["data"], f"{where}: 'data'")
    if x.dtype != np.uint8 or x.ndim != 2 or x.shape[1] != PIXELS:
        raise DataError(f"{where}: 'data' must be bytes [N, {PIXELS}], not {x.dtype} {list(x.shape)}.")
    labels = content["labels"]
    if not isinstance(labels, list) or len(labels) != len(x):
        got = f"{len(labels)} labels" if isinstance(labels, list) else f"labels of type {type(labels).__name__}"
        raise DataError(f"{where}: {got} for {len(x)} images.")
    bad = next((i for i, v in enumerate(labels) if not isinstance(v, int) or not 0 <= v < 10), None)
    if bad is not None:
        raise DataError(f"{where}: label {bad} is {labels[bad]!r}, not a class from 0 to 9.")
    if not labels:
        raise DataError(f"{where}: holds no images.")
    return x.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _plain_keys(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected a dictionary, found {type(content).__name__}.")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in content.items()}


def _class_names(meta: BinaryIO | None, ids: list[str], where: str) -> list[str]:
    """Names from ``batches.meta`` if it is there, else the numbers."""
    if meta is None:
        return ids
    names = _plain_keys(restricted_load(meta, NUMPY_GLOBALS, where), where).get("label_names")
    if not isinstance(names, list) or len(names) <= max(map(int, ids)):
        raise DataError(f"{where}: 'label_names' should list a name for each of the classes {', '.join(ids)}.")
    return [n.decode("latin1") if isinstance(n, bytes) else str(n) for n in (names[int(i)] for i in ids)]
