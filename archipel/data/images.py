"""A folder of images, one subfolder a class; perhaps below ``train/``, ``val/`` and ``test/``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archipel.core.errors import DataError, UsageError
from archipel.data.raw import Raw, class_ids, ids_among, scaled

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
PARTS = {"train": "pool", "training": "pool", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# Pillow's modes of 8 bits a channel -> the mode they are read in
MODES = {"1": "L", "L": "L", "LA": "LA", "P": "RGB", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}
COLOURS = {"grey": "L", "gray": "L", "rgb": "RGB"}


def read_image_folder(folder: Path, size: str | None = None, color: str | None = None, normalise: bool = True) -> Raw:
    """Images [N, C, H, W] and the subfolders they lie in as classes.

    Args:
        folder: ``folder/cat/1.png`` and so on; or the same below ``folder/train`` and ``folder/test``, which are then
            kept as they are. Files that are no images by their ending are counted in ``info["ignored"]``.
        size: resize all to this, as ``"32"`` or ``"32x48"`` (height x width); without it they must be of one size.
        color: ``"rgb"`` or ``"grey"`` converts all; without it they must have the same number of channels.
        normalise: bring each channel to mean 0 and deviation 1 of the training images.

    Raises:
        DataError: no class folders, an unreadable image (names it), different sizes or channels.
        UsageError: a size or colour that makes no sense.
    """
    wanted, mode = _size(size), _mode(color)
    tops = {PARTS[p.name.lower()]: p for p in _subfolders(folder) if p.name.lower() in PARTS}
    tops = tops if "pool" in tops else {"pool": folder}
    ignored = 0
    files: dict[str, list[Path]] = {}
    for part, top in tops.items():
        files[part], skipped = _list(top)
        ignored += skipped
    if not files["pool"]:
        raise DataError(
            f"{tops['pool']}: no images in class subfolders (such as {tops['pool'].name}/cat/1.png); read are "
            f"{', '.join(sorted(ENDINGS))}."
        )
    first = (files["pool"][0], _pixels(files["pool"][0], wanted, mode).shape)
    labels = {part: np.array([p.relative_to(tops[part]).parts[0] for p in paths]) for part, paths in files.items()}
    y, names = class_ids(labels["pool"], str(folder))
    parts: dict[str, Any] = {"pool": (_read(files["pool"], wanted, mode, first), y)}
    for part in (p for p in ("val", "test") if files.get(p)):
        parts[part] = (_read(files[part], wanted, mode, first), ids_among(labels[part], names, str(tops[part])))
    return Raw(
        parts,
        "classification",
        len(names),
        str(folder),
        fit=scaled(1 / 255, normalise),
        files=[p for paths in files.values() for p in paths],
        info={"class_names": names, "ignored": ignored},
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def has_images(folder: Path) -> bool:
    """Whether some class subfolder holds an image; looks two levels deep, not through whole disks."""
    levels = ("*", "*/*")
    return any(p.suffix.lower() in ENDINGS for sub in _subfolders(folder) for deep in levels for p in sub.glob(deep))


def _list(top: Path) -> tuple[list[Path], int]:
    """Images in the class subfolders of ``top``, sorted, and how many other files were passed over."""
    everything = [p for sub in _subfolders(top) for p in sorted(sub.rglob("*")) if p.is_file()]
    images = [p for p in everything if p.suffix.lower() in ENDINGS and not p.name.startswith(".")]
    return images, len(everything) - len(images)


def _size(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    numbers = str(size).lower().split("x")
    if len(numbers) not in (1, 2) or not all(n.strip().isdecimal() and 0 < int(n) <= 10_000 for n in numbers):
        raise UsageError(f"size must be a number of pixels such as 32, or height x width such as 32x48, not {size!r}.")
    return int(numbers[0]), int(numbers[-1])


def _mode(color: str | None) -> str | None:
    if color is not None and color not in COLOURS:
        raise UsageError(f"color must be 'rgb' or 'grey', not {color!r}.")
    return COLOURS[color] if color else None


def _pixels(path: Path, size: tuple[int, int] | None, mode: str | None) -> np.ndarray:
    """One image as bytes [H, W, C]."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in MODES:
                image = image.convert(mode or MODES[image.mode])
                pixels = np.array(image.resize(size[::-1], Image.Resampling.BILINEAR) if size else image)
                return pixels[..., None] if pixels.ndim == 2 else pixels
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        raise DataError(f"{path}: not a readable image ({error}). Remove or replace it.") from error
    raise DataError(f"{path}: pixels of kind {image.mode!r} are not read; store it with 8 bits a channel.")


def _read(
    paths: Sequence[Path], size: tuple[int, int] | None, mode: str | None, first: tuple[Path, tuple[int, ...]]
) -> torch.Tensor:
    """Images as bytes [N, C, H, W], all shaped like the ``first``, whose path and shape [H, W, C] are given."""
    other, shape = first
    images = np.empty((len(paths), *shape), np.uint8)
    for i, path in enumerate(paths):
        pixels = _pixels(path, size, mode)
        if pixels.shape[2] != shape[2]:
            raise DataError(
                f"{path}: has {pixels.shape[2]} channels, but {other} has {shape[2]}. Convert them all with color=rgb "
                f"or color=grey."
            )
        if pixels.shape != shape:
            raise DataError(
                f"{path}: is {pixels.shape[0]} x {pixels.shape[1]} (height x width), but {other} is {shape[0]} x "
                f"{shape[1]}. Give a common size, such as size={min(shape[:2])}."
            )
        images[i] = pixels
    return torch.from_numpy(images).movedim(-1, 1).contiguous()
