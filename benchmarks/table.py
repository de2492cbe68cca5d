"""Prints the figures of the last run in one table; with ``--page FILE`` also writes the page of the documentation.

Exits with 1 if a requirement is not met.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from measure import RESULTS
from rich.console import Console
from rich.table import Table

from archipel.core.storage import read_json, write_atomically

ORDER = ("tabular_search", "supernet_step", "workers", "pc_darts_step", "search_step", "import_time")


def number(value: float) -> str:
    """Three significant digits, thousands separated.

    >>> number(58901.7), number(0.2744), number(17.3)
    ('58,900', '0.274', '17.3')
    """
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".rstrip(".")


def lines(record: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What, median, smallest to largest, and what was wanted, for all rows and ratios of a benchmark."""
    out = []
    for entry in [*record["rows"], *record["ratios"]]:
        unit = entry.get("unit", "")
        wanted = ""
        if entry.get("wanted"):
            wanted = f"{entry['wanted']} {'✓' if entry['met'] else '✗'}"
        spread = f"{number(entry['low'])} – {number(entry['high'])}" if entry["rounds"] > 1 else ""
        out.append((entry["name"], f"{number(entry['median'])} {unit}".strip(), spread, wanted))
    return out


def show(records: list[dict[str, Any]]) -> None:
    table = Table(title="Medians, smallest – largest over rounds; ratios within each round")
    for column in ("", "median", "spread", "wanted"):
        table.add_column(column, no_wrap=True)
    for record in records:
        table.add_section()
        table.add_row(f"[bold]{record['benchmark']}")
        for line in lines(record):
            table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def page(records: list[dict[str, Any]]) -> str:
    """The page of the documentation."""
    first = records[0]["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    parts = [
        "# Speed",
        "",
        "`make bench` measures Archipel side by side with other libraries and writes this page; the figures of a "
        "section are from one run. Arms take turns within one process. A figure is the median over rounds, with the "
        "smallest and the largest; a ratio is taken within each round, and its median is what a requirement is held "
        "against.",
        "",
        f"Machine: {first['processor']}, {first['cores']} cores, {first['memory_gib']} GiB, {first['system']}. "
        f"Python {first['python']}, {versions}; commit {first['commit']}. One thread.",
    ]
    for record in records:
        environment = record["environment"]
        load = ", ".join(f"{environment[key][0]:.1f}" for key in ("load_at_start", "load_at_end"))
        settings = ", ".join(f"{k} {v}" for k, v in record["settings"].items())
        parts += [
            "",
            f"## {record['question'].rstrip('.')}",
            "",
            f"`benchmarks/{record['benchmark']}.py`, {environment['time']}, load {load} (start, end)"
            + (f"; {settings}." if settings else "."),
            "",
            "| | median | smallest – largest | wanted |",
            "|---|---|---|---|",
            *["| " + " | ".join(line) + " |" for line in lines(record)],
        ]
    return "\n".join(parts) + "\n"


def main() -> int:
    found = [RESULTS / f"{name}.json" for name in ORDER]
    records = [read_json(path) for path in found if path.exists()]
    if not records:
        print("No results yet: run `make bench`.")
        return 1
    show(records)
    if "--page" in sys.argv:
        target = Path(sys.argv[sys.argv.index("--page") + 1])
        write_atomically(target, lambda file: file.write(page(records).encode()))
        print(f"Written to {target}.")
    missed = [e["name"] for r in records for e in r["ratios"] if e["met"] is False]
    if missed:
        print(f"Not met: {'; '.join(missed)}.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
