"""Finding the files of a published data set: a given path, ``ARCHIPEL_DATA``, the cache, then a download.

The cache is ``ARCHIPEL_CACHE`` or ``~/.cache/archipel``; ``ARCHIPEL_OFFLINE=1`` forbids downloads. Checksums are
demanded of what is downloaded, not of what a user provides: a part or a re-packed copy of a data set is welcome, and
the SHA-256 of what was read is recorded.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archipel.core.errors import DataError

TIMEOUT_S = 15.0
MAX_HASHED_BYTES = 200_000_000


@dataclass(frozen=True)
class RemoteFile:
    """One published file.

    Args:
        name: of the file in its folder.
        urls: tried in this order.
        checksum: ``"md5:..."`` or ``"sha256:..."``, as published; None only if ``unpack`` verifies the content.
        also: other names under which the same content is accepted, such as an unpacked copy.
        unpack: turns the downloaded archive (first argument) into the file or folder ``name`` (second argument).
    """

    name: str
    urls: tuple[str, ...]
    checksum: str | None
    also: tuple[str, ...] = ()
    unpack: Callable[[Path, Path], None] | None = None


@dataclass(frozen=True)
class Published:
    """The files of a published data set and the folders, below a data root, in which people keep them."""

    files: tuple[RemoteFile, ...]
    folders: tuple[str, ...]

    def inside(self, folder: Path) -> list[Path] | None:
        """All files in this very folder, or None if one is missing."""
        found = []
        for file in self.files:
            here = next((folder / n for n in (file.name, *file.also) if (folder / n).exists()), None)
            if here is None:
                return None
            found.append(here)
        return found

    def missing(self, folder: Path) -> list[str]:
        return [f.name for f in self.files if not any((folder / n).exists() for n in (f.name, *f.also))]

    def below(self, root: Path) -> list[Path] | None:
        """All files in one of the known folders below ``root``."""
        return next((found for sub in self.folders if (found := self.inside(root / sub))), None)


def user_path(path: str | Path) -> Path:
    """The path with ``~`` filled in; a ``~name`` of nobody is taken literally."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def data_root() -> Path | None:
    """The user's folder of data sets."""
    folder = os.environ.get("ARCHIPEL_DATA")
    return user_path(folder) if folder else None


def cache_root() -> Path:
    return user_path(os.environ.get("ARCHIPEL_CACHE") or "~/.cache/archipel")


def offline() -> bool:
    return os.environ.get("ARCHIPEL_OFFLINE", "").lower() not in ("", "0", "false", "no")


def locate(published: Published, path: str | Path | None = None) -> list[Path] | None:
    """Where the files are on this machine, or None; looks nowhere else if a path is given."""
    if path is not None:
        base = user_path(path)
        only = published.files[0] if len(published.files) == 1 else None
        if only and (base.is_file() or (base.exists() and base.name in (only.name, *only.also))):
            return [base]
        return published.inside(base) or published.below(base)
    for root in (data_root(), cache_root()):
        if root is not None and (found := published.below(root)):
            return found
    return None


def obtain(name: str, published: Published, path: str | Path | None = None) -> list[Path]:
    """The files, downloaded into the cache if they are not on this machine.

    Raises:
        DataError: a file is missing; names it and the three ways to provide it.
    """
    found = locate(published, path)
    if found:
        return found
    folder = cache_root() / published.folders[0]
    if path is not None:
        base = user_path(path)
        state = "has no" if base.exists() else "does not exist; it should hold"
        raise DataError(f"{name}: {base} {state} {', '.join(published.missing(base))}. Correct path=, or leave it out.")
    reason = "downloads are off because ARCHIPEL_OFFLINE is set"
    if not offline():
        try:
            for file in published.files:
                if not any((folder / n).exists() for n in (file.name, *file.also)):
                    download(name, file, folder)
            return published.inside(folder) or []
        except _Unreachable as error:
            reason = str(error)
    root = data_root()
    first = next(f for f in published.files if f.name in published.missing(folder))
    place = f"{published.folders[0]}/{first.name}".lstrip("/")
    raise DataError(
        f"{name}: {place} is missing: not in ARCHIPEL_DATA ({root or 'not set'}), not in the cache ({cache_root()}), "
        f"and {reason}. Three ways to provide it: give its folder as path=...; put it at {place} in the folder that "
        f"ARCHIPEL_DATA names; or let it be downloaded (with a network and without ARCHIPEL_OFFLINE) from "
        f"{first.urls[0]}."
    )


class _Unreachable(Exception):
    """No URL answered."""


def download(name: str, file: RemoteFile, folder: Path) -> Path:
    """Download one file into ``folder``; it appears there whole and verified, or not at all.

    Raises:
        DataError: the checksum is wrong, or the folder cannot be written.
    """
    target = folder / file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            part = Path(scratch) / "file"
            url, digest = _fetch(file, part)
            if file.checksum is not None and digest != file.checksum:
                raise DataError(
                    f"{name}: {url} gave a file whose checksum is {digest}, not {file.checksum} as published; it was "
                    f"thrown away. Try again, or download it by hand to {target}."
                )
            if file.unpack is not None:
                unpacked = Path(scratch) / "unpacked"
                file.unpack(part, unpacked)
                part = unpacked
            if not target.exists():  # another process may have been faster
                os.replace(part, target)
    except OSError as error:
        raise DataError(f"{name}: cannot store {file.name} in the cache {folder} ({error}).") from error
    return target


def _fetch(file: RemoteFile, part: Path) -> tuple[str, str]:
    """Stream the first URL that answers to ``part``; returns it and the digest."""
    algorithm = (file.checksum or "sha256:").split(":")[0]
    reasons = []
    for url in file.urls:
        digest = hashlib.new(algorithm)
        request = urllib.request.Request(url, headers={"User-Agent": "archipel"})
        try:
            answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{url}: {getattr(error, 'reason', error)}")
            continue
        with answer, open(part, "wb") as out:
            while True:
                try:
                    block = answer.read(1 << 20)
                except (OSError, http.client.HTTPException) as error:
                    reasons.append(f"{url}: broke off ({error})")
                    break
                if not block:
                    return url, f"{algorithm}:{digest.hexdigest()}"
                digest.update(block)
                out.write(block)
    raise _Unreachable(f"the download failed ({'; '.join(reasons)})")


def fingerprint(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Path, size and SHA-256 of each file; of more than twenty files, one line for all of them together.

    The digest of many files is that of the lines ``"<sha256>  <name>\\n"`` sorted by name. Files that are larger in
    total than 200 MB are not hashed (``sha256`` is None).
    """
    sizes = [p.stat().st_size for p in paths]
    hashed = sum(sizes) <= MAX_HASHED_BYTES
    digests = [_sha256(p) if hashed else None for p in paths]
    if len(paths) <= 20:
        return [
            {"path": str(p), "bytes": n, "sha256": digest} for p, n, digest in zip(paths, sizes, digests, strict=True)
        ]
    folder = os.path.commonpath(paths)
    lines = sorted((p.relative_to(folder).as_posix(), digest) for p, digest in zip(paths, digests, strict=True))
    together = hashlib.sha256("".join(f"{digest}  {n}\n" for n, digest in lines).encode()).hexdigest()
    return [{"path": folder, "files": len(paths), "bytes": sum(sizes), "sha256": together if hashed else None}]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
