"""What all benchmarks share: timing arms side by side, and the file in which their figures are kept.

Arms take turns within one process, in another order each round, so that whatever else the machine does hits all of
them. A figure is the median over rounds with the smallest and the largest; a ratio is taken within each round first.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from archipel.core.storage import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("archipel", "torch", "numpy", "syne-tune", "optuna")


def side_by_side(
    arms: Mapping[str, Callable[[], Any]], rounds: int, warm_up: bool = True
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Wall-clock seconds of each arm in each round, and what it returned.

    Args:
        arms: name -> what to time.
        warm_up: whether a first round is run and not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    returned: dict[str, list[Any]] = {name: [] for name in arms}
    names = list(arms)
    for r in range(-1 if warm_up else 0, rounds):
        shift = r % len(names)
        for name in names[shift:] + names[:shift]:
            gc.collect()
            started = time.perf_counter()
            result = arms[name]()
            spent = time.perf_counter() - started
            if r >= 0:
                seconds[name].append(spent)
                returned[name].append(result)
    return seconds, returned


class Figures:
    """The figures of one benchmark, as they go into its file.

    Args:
        benchmark: name of the file.
        question: what it measures, in a line.
        settings: whatever the figures depend on.
    """

    def __init__(self, benchmark: str, question: str, settings: Mapping[str, Any]) -> None:
        self.benchmark = benchmark
        self.record: dict[str, Any] = {
            "benchmark": benchmark,
            "question": question,
            "settings": dict(settings),
            "environment": environment(),
            "rows": [],
            "ratios": [],
        }

    def row(self, name: str, values: Sequence[float], unit: str, **extra: Any) -> None:
        """A measured quantity, one value for each round."""
        self.record["rows"].append({"name": name, "unit": unit, **_spread(values), **extra})

    def ratio(self, name: str, values: Sequence[float], wanted: str | None = None) -> None:
        """A comparison, one value for each round.

        Args:
            wanted: requirement that the median must meet, such as ``">= 2"`` or ``"<= 1.1"``.
        """
        entry = {"name": name, "wanted": wanted, "met": None, **_spread(values)}
        if wanted is not None:
            sign, limit = wanted.split()
            entry["met"] = entry["median"] >= float(limit) if sign == ">=" else entry["median"] <= float(limit)
        self.record["ratios"].append(entry)

    def save(self) -> None:
        self.record["environment"]["load_at_end"] = os.getloadavg()
        write_json(RESULTS / f"{self.benchmark}.json", self.record)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "rounds": len(values),
        "values": list(values),
    }


def environment() -> dict[str, Any]:
    """Machine, versions, commit and load, at the start of a benchmark."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "archipel") else ""),
        "load_at_start": os.getloadavg(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _git(*args: str) -> str:
    try:
        found = subprocess.run(["git", *args], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip()
