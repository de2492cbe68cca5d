"""The IDX format of MNIST: a magic number, big-endian dimensions, then the values; plain or gzipped.

    00 00 TT DD   TT: type of the values, DD: number of dimensions
    D x uint32    dimensions
    values        row-major, big-endian

Used by MNIST (LeCun, Cortes, Burges 1998, http://yann.lecun.com/exdb/mnist/) and its relatives.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archipel.core.errors import DataError
from archipel.data.raw import Raw, class_ids, ids_among, scaled

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NAME = re.compile(r"(?:.*[-_])?(train|t10k|test|valid|val)[-_](images|labels)[-_.]idx\d-ubyte(?:\.gz)?", re.IGNORECASE)


def read_idx(path: Path) -> np.ndarray:
    """The array in one IDX file.

    Raises:
        DataError: unreadable, wrong magic number, truncated, or longer than its header says.
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). If it is a partial download, get it afresh.") from error
    return parse_idx(content, str(path))


def parse_idx(content: bytes, where: str) -> np.ndarray:
    """The array in the bytes of an IDX file; see :func:`read_idx`.

    >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), "three.idx").tolist()
    [7, 8, 9]
    """
    if len(content) < 4:
        raise DataError(f"{where}: only {len(content)} bytes; an IDX file starts with a 4-byte magic number.")
    if content[:2] != b"\0\0" or content[2] not in TYPES:
        raise DataError(
            f"{where}: byte 0: magic number 0x{content[:4].hex()} is not that of an IDX file (0x0000TTDD, such as "
            f"0x00000803 for images and 0x00000801 for labels)."
        )
    ndim = content[3]
    start = 4 + 4 * ndim
    if len(content) < start:
        raise DataError(f"{where}: truncated in the header: {ndim} dimensions need {start} bytes, not {len(content)}.")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    dtype = np.dtype(TYPES[content[2]])
    wanted, got = math.prod(shape) * dtype.itemsize, len(content) - start
    if wanted != got:
        fault = "truncated" if got < wanted else "longer than its header says"
        raise DataError(
            f"{where}: {fault}: the header announces {' x '.join(map(str, shape))} values ({wanted} bytes) from byte "
            f"{start}, but {got} bytes follow. Get the file afresh."
        )
    if ndim > 32:
        raise DataError(f"{where}: byte 3: {ndim} dimensions; no data set has more than 32.")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def find_pairs(folder: Path) -> dict[str, dict[str, Path]]:
    """The IDX files in a folder: ``{"train": {"images": path, "labels": path}, "test": ...}``."""
    pairs: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True):  # the unpacked file wins over its .gz
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            part = {"t10k": "test", "valid": "val"}.get(match[1].lower(), match[1].lower())
            pairs.setdefault(part, {})[match[2].lower()] = path
    return pairs


def _read_pair(pair: dict[str, Path], folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    for kind in ("images", "labels"):
        if kind not in pair:
            have = next(iter(pair.values())).name
            raise DataError(f"{folder}: {have} is there, but no file with the {kind} of the {part} part.")
    images, labels = read_idx(pair["images"]), read_idx(pair["labels"])
    if images.ndim != 3 or images.dtype != np.uint8:
        raise DataError(
            f"{pair['images']}: images must be bytes in 3 dimensions (magic 0x00000803), not {images.dtype} in "
            f"{images.ndim}."
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{pair['labels']}: labels must be whole numbers in 1 dimension (magic 0x00000801).")
    if len(images) != len(labels):
        raise DataError(
            f"{pair['labels']}: {len(labels)} labels, but {pair['images'].name} has {len(images)} images; the files do "
            f"not belong together."
        )
    if images.size == 0:
        raise DataError(f"{pair['images']}: holds no images (dimensions {images.shape}).")
    return images, labels


def read_idx_folder(folder: Path, normalise: bool = True) -> Raw:
    """Images [N, 1, H, W] and labels of the IDX files in a folder; a ``t10k``/``test`` pair is the test split.

    Args:
        folder: with ``train-images-idx3-ubyte[.gz]`` and so on.
        normalise: bring the grey values to mean 0 and deviation 1 of the training images.

    Raises:
        DataError: malformed or mismatched files.
    """
    pairs = find_pairs(folder)
    if "train" not in pairs:
        raise DataError(f"{folder}: no train-images-idx3-ubyte[.gz] with train-labels-idx1-ubyte[.gz] in it.")
    images, labels = _read_pair(pairs["train"], folder, "train")
    y, names = class_ids(labels, str(folder))
    parts: dict[str, Any] = {"pool": (_tensor(images), y)}
    for part in ("val", "test"):
        if part in pairs:
            other, other_labels = _read_pair(pairs[part], folder, part)
            if other.shape[1:] != images.shape[1:]:
                raise DataError(
                    f"{pairs[part]['images']}: images of {other.shape[1]} x {other.shape[2]}, but the training images "
                    f"are {images.shape[1]} x {images.shape[2]}."
                )
            parts[part] = (_tensor(other), ids_among(other_labels, names, str(pairs[part]["labels"])))
    files = [pair[kind] for pair in pairs.values() for kind in ("images", "labels")]
    return Raw(
        parts,
        "classification",
        len(names),
        str(folder),
        fit=scaled(1 / 255, normalise),
        files=files,
        info={"class_names": names},
    )


def _tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.copy())[:, None]
