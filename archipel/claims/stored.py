"""Stored results of claims: reading them, whether they are stale, and their picture."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from archipel.claims.harness import RESULTS, all_claims, fingerprint
from archipel.core.storage import read_json


def default_results() -> Path:
    """Where results go unless told: into the package if it runs from its source tree, else ``./claims-results``."""
    from_source = (RESULTS.parents[2] / "pyproject.toml").exists()
    return RESULTS if from_source and os.access(RESULTS, os.W_OK) else Path("claims-results")


def in_words(claim: Mapping[str, Any]) -> str:
    """The verdict of one of :func:`stored_claims`.

    >>> in_words({"verdict": "holds", "seeds": 3, "stale": True})
    'holds, out of date: code changed since'
    """
    old = claim["stale"] and claim["seeds"]
    return f"{claim['verdict']}, out of date: code changed since" if old else claim["verdict"]


def stored_results(results: Path = RESULTS) -> Iterator[dict[str, Any]]:
    """All stored results."""
    for path in sorted(results.glob("*.json")):
        yield read_json(path)


def stored_claims(slug: str, results: Path = RESULTS) -> list[dict[str, Any]]:
    """The stored claims of a method as (statement, verdict, seeds, stale); a claim that never ran says so."""
    path = results / f"{slug}.json"
    claim = all_claims().get(slug)
    if not path.exists():
        return (
            [] if claim is None else [{"statement": claim.statement, "verdict": "not run", "seeds": 0, "stale": True}]
        )
    result = read_json(path)
    stale = claim is None or fingerprint(claim) != result["fingerprint"]
    return [
        {
            "statement": result["statement"],
            "verdict": result["verdict"],
            "seeds": len(result["seeds"]),
            "stale": stale,
        }
    ]


def figure(result: Mapping[str, Any]) -> str:
    """A picture of a result as SVG: every figure's value for every seed and arm."""
    import io

    from matplotlib.figure import Figure

    arms = [a["name"] for a in result["arms"]]
    names = list(dict.fromkeys(n for rows in result["figures"].values() for row in rows for n in row))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    page = Figure(figsize=(4.2 * columns, (0.32 * len(arms) + 1.0) * rows))
    for i, name in enumerate(names):
        axes = page.add_subplot(rows, columns, i + 1)
        for y, arm in enumerate(arms):
            values = [f[name] for f in result["figures"][arm] if name in f and f[name] is not None]
            axes.plot(values, [y] * len(values), "o", alpha=0.6, color="#0b6e99")
            if values:
                axes.plot([float(np.mean(values))], [y], "|", markersize=14, color="#1b2733")
        axes.set_yticks(range(len(arms)), arms if i % columns == 0 else [""] * len(arms))
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
    page.tight_layout()
    buffer = io.StringIO()
    page.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
