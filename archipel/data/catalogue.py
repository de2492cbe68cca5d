"""What data there is: the named sets, and what one of them or a file of the user's holds; nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from archipel.data.detect import READERS, kind_of
from archipel.data.find import locate, offline, user_path
from archipel.data.load import load
from archipel.data.options import exists, options_of, parse_spec
from archipel.data.sources import SOURCES, Source


def describe(spec: str | Path) -> dict[str, Any]:
    """What a data set is, without downloading anything; JSON.

    Returns:
        ``name``, ``what``, ``task``, ``classes`` (None if not loaded), ``shape`` of an input, ``sizes`` of the splits,
        ``status`` (as in :func:`available`), ``where`` (files; empty if embedded), ``licence``, ``citation``,
        ``options`` of the source, and ``split``, the rule.

    Raises:
        DataError: malformed files.
        UsageError: unknown names or options.

    >>> describe("digits")["sizes"]
    {'train': 1079, 'val': 359, 'test': 359}
    """
    name, given = parse_spec(spec)
    source = SOURCES.get(name)
    if source is not None:
        status = _status(source, given.get("path"))
        out: dict[str, Any] = {
            "name": name,
            "what": source.what,
            "task": source.task,
            "classes": None,
            "shape": list(source.shape),
            "sizes": dict(source.sizes),
            "status": status,
            "where": [],
            "licence": source.licence,
            "citation": source.citation,
            "options": sorted(options_of(source.read, skip=1 if source.published else 0)),
            "split": None,
        }
        if not (status == "ready" or status.startswith("found") or "path" in given):
            return out
    else:
        out = {"name": name, "status": "found", "licence": None, "citation": None, "options": []}
        if exists(name):
            kind = kind_of(user_path(name), given.get("kind"))
            out["options"] = sorted(options_of(READERS[kind], skip=1))
    data = load(spec)
    split = data.info["split"]
    return {
        **out,
        "what": data.info["what"],
        "task": data.task,
        "classes": data.classes,
        "shape": list(data.input_shape),
        "sizes": {k: split[k] for k in ("train", "val", "test")},
        "where": [f["path"] for f in data.info["files"]],
        "split": split["rule"],
    }


def available() -> list[dict[str, Any]]:
    """All named data sets: ``name``, ``what``, ``task``, ``shape``, ``status``; reads no data.

    ``status`` is ``"ready"`` (embedded or generated), ``"found in ..."``, ``"to be downloaded from ..."``,
    ``"missing: ..."`` (offline) or ``"needs pip install ..."``.
    """
    return [
        {"name": s.name, "what": s.what, "task": s.task, "shape": list(s.shape), "status": _status(s)}
        for s in SOURCES.values()
    ]


def _status(source: Source, path: str | None = None) -> str:
    if source.extra and importlib.util.find_spec(source.extra) is None:
        return f"needs pip install 'archipel[{source.extra}]'"
    if source.published is None:
        return "ready"
    found = locate(source.published, path)
    if found:
        return f"found in {found[0].parent}"
    first = source.published.files[0]
    if offline():
        return (
            f"missing: put {source.published.folders[0] or '.'}/{first.name} into the folder that ARCHIPEL_DATA names"
        )
    return f"to be downloaded from {first.urls[0]}"
