"""What ``cost`` and ``draw`` look up."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import RunError
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


def space_of_run(path: Path) -> tuple[Space, Arch]:
    """The space of a run and its chosen architecture."""
    from archipel.search.config import SearchConfig
    from archipel.search.driver import make_parts

    if not (path / "model" / "architecture.json").exists():
        raise RunError(f"{path} has no chosen network yet. `archipel resume {path}` finishes a run.")
    parts = make_parts(SearchConfig.from_dict(read_json(path / "config.json")))
    return parts.space, read_json(path / "model" / "architecture.json")
