"""What ``cost`` and ``draw`` look up."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from archipel.app.tables import aligned
from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.space import Space
from archipel.core.storage import read_json


def costs_of(space: Space, arch: Arch, latency: bool = False) -> dict[str, Any]:
    """All costs of one architecture."""
    model = space.cost
    out: dict[str, Any] = {
        "params": model.params(arch),
        "macs": model.macs(arch),
        "memory_bytes": model.memory_bytes(arch),
    }
    if latency:
        out["latency_ms"] = model.latency_ms(arch)
    return out


def costs_over(space: Space, rng: Random, samples: int) -> dict[str, Any]:
    """Range and median of the exact costs over random architectures."""
    archs = [space.sample(rng) for _ in range(samples)]
    out: dict[str, Any] = {"space": space.name, "size": str(space.size), "samples": samples}
    for metric in ("params", "macs"):
        values = [getattr(space.cost, metric)(a) for a in archs]
        out |= {
            f"{metric} min": min(values),
            f"{metric} median": float(np.median(values)),
            f"{metric} max": max(values),
        }
    return out


def architecture_of_run(path: Path) -> Arch:
    """The chosen architecture of a run.

    Raises:
        RunError: no run, or none is chosen yet.
    """
    from archipel.search.api import load_result, not_there

    if (path / "model" / "architecture.json").exists():
        return read_json(path / "model" / "architecture.json")
    if not (path / "report.json").exists():
        raise not_there(path, "report")
    return load_result(path).arch  # of a table run


def space_of_run(path: Path) -> tuple[Space, Arch]:
    """The space of a run and its chosen architecture.

    Raises:
        ArchipelError: no run, none is chosen yet, or the space cannot be made by name.
    """
    from archipel.search.config import SearchConfig
    from archipel.search.driver import data_and_space
    from archipel.search.table_run import PREFIX, open_table

    arch = architecture_of_run(path)
    config = SearchConfig.from_dict(read_json(path / "config.json"))
    if config.data.startswith(PREFIX):
        return open_table(config.data.removeprefix(PREFIX)).space, arch
    for text in (config.data, config.space):
        if text.startswith("object:"):
            raise UsageError(
                f"This run was started from Python with {text[7:]}, so its space has no name to make it by."
            )
    return data_and_space(config)[1], arch


UNITS = {"memory_bytes": ("memory", 1 / 2**20, "MiB"), "latency_ms": ("latency", 1.0, "ms")}


def costs_text(costs: dict[str, Any]) -> str:
    """Costs of one architecture in aligned lines, with units."""
    rows = []
    for name, value in costs.items():
        label, scale, unit = UNITS.get(name, (name, 1, ""))
        rows.append([label, f"{value * scale:,.4f}" if unit else f"{value:,}", unit])
    numbers = aligned([row[:2] for row in rows], right=True).splitlines()
    return "\n".join(f"{number} {row[2]}".rstrip() for number, row in zip(numbers, rows, strict=True))


def spread_text(spread: dict[str, Any]) -> str:
    """What :func:`costs_over` found, in aligned lines."""
    size = spread["size"]
    head = [
        ["space", spread["space"]],
        ["size", f"{int(size):,}" if size.isdigit() else size],
        ["samples", f"{spread['samples']:,}"],
    ]
    kinds = ("min", "median", "max")
    table = [["", *kinds]]
    table += [[metric, *(f"{spread[f'{metric} {k}']:,.0f}" for k in kinds)] for metric in ("params", "macs")]
    return f"{aligned(head)}\n\n{aligned(table, right=True)}"
