"""Writers of small data files in the formats that the loaders read."""

from __future__ import annotations

import collections
import gzip
import io
import pickle
import struct
import tarfile
import wave
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    kind = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}[array.dtype.str[1:]]
    big = array.astype(array.dtype.newbyteorder(">"))
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + big.tobytes()


def write_idx_folder(folder: Path, train: int = 60, test: int = 20, classes: int = 3, zipped: bool = False) -> Path:
    """Images of which the first pixel is ten times the class."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", train), ("t10k", test)):
        if n == 0:
            continue
        labels = (np.arange(n) % classes).astype(np.uint8)
        images = rng.integers(0, 256, (n, 5, 4), dtype=np.uint8)
        images[:, 0, 0] = 10 * labels
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            content = idx_bytes(array)
            path = folder / (name + ".gz" * zipped)
            path.write_bytes(gzip.compress(content) if zipped else content)
    return folder


def cifar_batch(n: int, seed: int = 0, protocol: int = 2, binary_keys: bool = False) -> bytes:
    rng = np.random.default_rng(seed)
    content = {
        "data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        "labels": [i % 10 for i in range(n)],
        "batch_label": "a batch",
    }
    if binary_keys:
        content = {k.encode(): v for k, v in content.items()}
    return pickle.dumps(content, protocol=protocol)


def write_cifar_folder(folder: Path, batches: tuple[int, ...] = (1, 2), n: int = 30, protocol: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in batches:
        (folder / f"data_batch_{i}").write_bytes(cifar_batch(n, i, protocol))
    (folder / "test_batch").write_bytes(cifar_batch(20, 99, protocol))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=protocol))
    return folder


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_wav(path: Path, samples: np.ndarray, rate: int = 8000, width: int = 2, channels: int = 1) -> Path:
    """Samples in [-1, 1), interleaved if there are several channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.round(samples * 2 ** (8 * width - 1)).astype(np.int64)
    if width == 1:
        content = (whole + 128).astype(np.uint8).tobytes()
    else:
        content = b"".join(int(v).to_bytes(width, "little", signed=True) for v in whole)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(content)
    return path


def write_images(
    folder: Path, classes: int = 2, each: int = 6, size: tuple[int, int] = (5, 4), mode: str = "RGB"
) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(each):
            shape = size if mode == "L" else (*size, len(mode))
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            pixels[0, 0] = 20 * c + i
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.png")
    return folder


def write_planetoid(folder: Path, name: str = "toy", edit=None) -> Path:
    """Ten nodes of two classes: 0-1 train, 2-6 others, test nodes 9, 7 (in this order; 8 is missing, so isolated)."""
    import scipy.sparse as sp

    folder.mkdir(parents=True, exist_ok=True)
    features = np.zeros((10, 3), np.float32)
    features[np.arange(10), np.arange(10) % 3] = 1
    one_hot = np.eye(2, dtype=np.int32)[np.arange(10) % 2]
    graph = collections.defaultdict(list, {i: [] for i in range(10)})
    for a, b in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 9), (0, 1)):  # 0-1 twice
        graph[a].append(b)
        graph[b].append(a)
    graph[3] += [3, 3]  # a link to itself
    parts = {
        "x": sp.csr_matrix(features[:2]),
        "allx": sp.csr_matrix(features[:7]),
        "tx": sp.csr_matrix(features[[9, 7]]),
        "y": one_hot[:2],
        "ally": one_hot[:7],
        "ty": one_hot[[9, 7]],
        "graph": graph,
        "test.index": "9\n7\n",
    }
    if edit:
        edit(parts)
    for part, content in parts.items():
        data = content.encode() if isinstance(content, str) else pickle.dumps(content, protocol=2)
        (folder / f"ind.{name}.{part}").write_bytes(data)
    return folder
