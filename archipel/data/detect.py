"""What a user's own file or folder holds, and who reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from archipel.core.errors import DataError, UsageError, suggest
from archipel.data.audio import has_wavs, read_audio_folder
from archipel.data.cifar import is_cifar_tar, read_cifar
from archipel.data.idx import find_pairs, read_idx_folder
from archipel.data.images import has_images, read_image_folder
from archipel.data.table import read_table
from archipel.data.text import read_text

READERS: dict[str, Callable[..., Any]] = {
    "table": read_table,
    "images": read_image_folder,
    "idx": read_idx_folder,
    "cifar": read_cifar,
    "audio": read_audio_folder,
    "text": read_text,
}
FOLDER_KINDS = ("images", "idx", "audio")
TABLE_ENDINGS = {".csv", ".tsv", ".parquet", ".pq"}
TEXT_ENDINGS = {".txt", ".md", ".rst", ".text", ".py", ".html", ".xml", ".tex", ".log"}


def kind_of(path: Path, kind: str | None = None) -> str:
    """The reader for a path: by its ending, or by what a folder holds.

    Args:
        path: of a file or folder that exists.
        kind: what the user says it is, one of :data:`READERS`.

    Raises:
        DataError: nothing in it is recognised; says what would be.
        UsageError: no such kind, or one that does not go with a file or a folder.
    """
    if kind is not None:
        if kind not in READERS:
            raise UsageError(f"kind {kind!r} is unknown. {suggest(kind, READERS)}")
        if path.is_dir() != (kind in FOLDER_KINDS) and kind != "cifar":
            raise UsageError(f"{path} is a {'folder' if path.is_dir() else 'file'}; kind={kind} reads the other.")
        return kind
    if path.is_dir():
        return _kind_of_folder(path)
    if path.suffix.lower() in TABLE_ENDINGS:
        return "table"
    if is_cifar_tar(path):
        return "cifar"
    if path.suffix.lower() in TEXT_ENDINGS:
        return "text"
    hint = " Give the folder that holds the IDX files." if "ubyte" in path.name else ""
    raise DataError(
        f"{path}: files of this kind are not read; tables ({', '.join(sorted(TABLE_ENDINGS))}), text "
        f"({', '.join(sorted(TEXT_ENDINGS))}), CIFAR archives (.tar, .tar.gz) and folders are. If it is one of these "
        f"under another name, say kind=table, kind=text or kind=cifar.{hint}"
    )


def _kind_of_folder(path: Path) -> str:
    try:
        if any(path.glob("data_batch_*")):
            return "cifar"
        if "train" in find_pairs(path):
            return "idx"
        if next(path.glob("ind.*.graph"), None):
            raise UsageError(f"{path}: holds Planetoid graphs; name one, such as load('cora', path={str(path)!r}).")
        if has_images(path):
            return "images"
        if has_wavs(path):
            return "audio"
        content = sorted(p.name for p in path.iterdir())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    raise DataError(
        f"{path}: holds no images or wav files in class subfolders, no train-images-idx3-ubyte, no data_batch_1 and no "
        f"{{digit}}_{{speaker}}_{{index}}.wav; it has {', '.join(content[:5]) or 'nothing'}"
        f"{' …' if len(content) > 5 else ''}. A single file (CSV, Parquet, text) is given by its own path."
    )
