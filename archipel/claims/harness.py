"""Running a claim: every arm tuned alike on validation data, then measured over seeds; a verdict from what came out.

A claim names its arms (a trivial and an untreated one among them), one grid of settings that every arm gets, and
checks on the table of figures. An *asserted* check carries the verdict, a *reported* one only informs. Measurements
are kept one by one, so that a claim goes on where it stopped; results are stored with the environment and a
fingerprint of the code they ran, and count as stale once that code has changed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import math
import os
import pkgutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from archipel.core.errors import RunError, UsageError, suggest
from archipel.core.run import environment
from archipel.core.storage import write_json

RESULTS = Path(__file__).parent / "results"
ROLES = ("method", "untreated", "trivial", "rival", "reference")
TUNING_SEED = 10_000  # far from the seeds that are reported


@dataclass(frozen=True)
class Measurement:
    """What one run of an arm gave: the score it is tuned by, from validation data only, and all figures."""

    validation: float
    figures: Mapping[str, float]


@dataclass(frozen=True)
class ClaimArm:
    """One arm. Roles: the ``method``; ``untreated`` (the same without it); ``trivial`` (random, constant, largest);
    ``rival`` (another published method); ``reference`` (a bound or noise ceiling)."""

    name: str
    role: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"Arm {self.name!r}: role must be one of {ROLES}, not {self.role!r}.")


class Table:
    """Figures by arm and seed.

    >>> t = Table({"a": [{"x": 1.0}, {"x": 3.0}]})
    >>> t.mean("a", "x"), round(t.std("a", "x"), 3)
    (2.0, 1.414)
    """

    def __init__(self, figures: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
        self.figures = figures

    def values(self, arm: str, figure: str) -> np.ndarray:
        """One value a seed ``[S]``."""
        return np.array([f[figure] for f in self.figures[arm]], dtype=float)

    def mean(self, arm: str, figure: str) -> float:
        return float(self.values(arm, figure).mean())

    def std(self, arm: str, figure: str) -> float:
        """Standard deviation over seeds (ddof 1)."""
        values = self.values(arm, figure)
        return float(values.std(ddof=1)) if len(values) > 1 else math.nan

    def text(self) -> str:
        """Mean ± standard deviation over seeds, an arm a row."""
        names = list(dict.fromkeys(n for rows in self.figures.values() for row in rows for n in row))
        lines = [["arm", *names]]
        for arm, rows in self.figures.items():
            cells = []
            for n in names:
                cells.append(f"{self.mean(arm, n):.4g} ± {self.std(arm, n):.2g}" if all(n in r for r in rows) else "–")
            lines.append([arm, *cells])
        widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in lines)


@dataclass(frozen=True)
class Check:
    """A statement about the table, with whether it holds and the numbers that show it."""

    text: str
    test: Callable[[Table], tuple[bool, str]]
    asserted: bool = True


@dataclass(frozen=True)
class Claim:
    """A paper's headline statement at a scale that runs here.

    Args:
        slug: of the method.
        statement: what the paper says, in a sentence.
        scale: data, sizes and budgets of this experiment, in a sentence.
        arms: see :class:`ClaimArm`; at least one untreated or trivial one.
        measure: (arm name, setting, seed) -> measurement. Test data may enter its figures, never its validation.
        checks: at least one asserted.
        grid: settings, tried by every arm alike with the tuning seed; the best by validation is then measured.
        seeds: how many.
        code: modules, besides the claim's and the method's, whose change makes the result stale.
    """

    slug: str
    statement: str
    scale: str
    arms: Sequence[ClaimArm]
    measure: Callable[[str, Mapping[str, Any], int], Measurement]
    checks: Sequence[Check]
    grid: Sequence[Mapping[str, Any]] = field(default_factory=lambda: [{}])
    seeds: int = 3
    code: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not {a.role for a in self.arms} & {"untreated", "trivial"}:
            raise ValueError(f"Claim {self.slug}: an untreated or trivial arm must stand beside the method.")
        if not any(c.asserted for c in self.checks):
            raise ValueError(f"Claim {self.slug}: at least one check must be asserted; the verdict rests on it.")
        if self.seeds < 3 or not self.grid:
            raise ValueError(f"Claim {self.slug}: needs at least 3 seeds and one setting.")


# --- finding -------------------------------------------------------------------------------------------------------


def all_claims() -> dict[str, Claim]:
    """Every claim in this package by slug: the ``CLAIM`` of each module that has one."""
    package = importlib.import_module("archipel.claims")
    found: dict[str, Claim] = {}
    for info in pkgutil.iter_modules(package.__path__):
        claim = getattr(importlib.import_module(f"archipel.claims.{info.name}"), "CLAIM", None)
        if isinstance(claim, Claim):
            found[claim.slug] = claim
    return dict(sorted(found.items()))


def get_claim(slug: str) -> Claim:
    """The claim of a method.

    Raises:
        UsageError: there is none; names close ones.
    """
    claims = all_claims()
    if slug not in claims:
        raise UsageError(f"No claim for {slug!r}. {suggest(slug, claims)}")
    return claims[slug]


def fingerprint(claim: Claim) -> str:
    """Hash of the code a claim runs: its own module, its method's and those it names; comments and docs don't count."""
    from archipel.core.registry import get_method

    modules = {claim.measure.__module__, get_method(claim.slug).module, *claim.code}
    digest = hashlib.sha256()
    for name in sorted(modules):
        tree = ast.parse(inspect.getsource(importlib.import_module(name)))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_docstring(body[0]):
                body[0].value.value = ""  # type: ignore[attr-defined]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# --- running -------------------------------------------------------------------------------------------------------


class _Notebook:
    """Measurements on disk, a line each; those of other code are left out."""

    def __init__(self, path: Path, code: str, fresh: bool) -> None:
        self.path, self.code = path, code
        self.known: dict[str, dict[str, Any]] = {}
        if fresh:
            path.unlink(missing_ok=True)
        elif path.exists():
            self._read()

    def _read(self) -> None:
        """Take up complete lines; cut off a last one that a kill cut short, so that the next does not run into it."""
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            entry = json.loads(line)
            if entry["code"] == self.code:
                self.known[entry["key"]] = entry
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)

    def measure(self, claim: Claim, arm: str, setting: Mapping[str, Any], seed: int) -> tuple[Measurement, float]:
        key = json.dumps([arm, dict(setting), seed], sort_keys=True)
        if key not in self.known:
            started = time.monotonic()
            m = claim.measure(arm, setting, seed)
            bad = [k for k, v in m.figures.items() if not isinstance(v, int | float)]
            if bad or not math.isfinite(m.validation):
                raise RunError(
                    f"Claim {claim.slug}, arm {arm}, seed {seed}: validation {m.validation}, odd figures {bad}."
                )
            entry = {
                "key": key,
                "code": self.code,
                "validation": m.validation,
                "figures": {k: float(v) for k, v in m.figures.items()},
                "seconds": time.monotonic() - started,
            }
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as f:
                f.write(json.dumps(entry) + "\n")
            self.known[key] = entry
        entry = self.known[key]
        return Measurement(entry["validation"], entry["figures"]), entry["seconds"]


def run_claim(
    claim: Claim,
    seeds: int | None = None,
    fresh: bool = False,
    report: Callable[[str], Any] = lambda text: None,
    results: Path = RESULTS,
    notebook: Path | None = None,
) -> dict[str, Any]:
    """Tune every arm alike, measure it over seeds, and store and return the result.

    Args:
        seeds: instead of the claim's own number; at least 3.
        fresh: forget earlier measurements.
        report: told about progress, a line at a time.
        results: folder of the stored result.
        notebook: folder of single measurements; by default ``runs/claims`` or ``ARCHIPEL_CLAIMS``.

    Raises:
        UsageError: fewer than 3 seeds.
    """
    n = claim.seeds if seeds is None else seeds
    if n < 3:
        raise UsageError(f"A claim needs at least 3 seeds to show its spread, not {n}.")
    folder = notebook or Path(os.environ.get("ARCHIPEL_CLAIMS", "runs/claims"))
    code = fingerprint(claim)
    book = _Notebook(folder / f"{claim.slug}.jsonl", code, fresh)
    chosen: dict[str, Mapping[str, Any]] = {}
    tuning: dict[str, list[dict[str, Any]]] = {}
    seconds = 0.0
    for arm in claim.arms:
        tuning[arm.name] = []
        if len(claim.grid) > 1:
            for setting in claim.grid:
                m, took = book.measure(claim, arm.name, setting, TUNING_SEED)
                tuning[arm.name].append({"setting": dict(setting), "validation": m.validation})
                seconds += took
            best = max(tuning[arm.name], key=lambda t: t["validation"])
            chosen[arm.name] = best["setting"]
            report(f"{claim.slug}: {arm.name} tuned to {best['setting']} (validation {best['validation']:.4g})")
        else:
            chosen[arm.name] = claim.grid[0]
    figures: dict[str, list[Mapping[str, float]]] = {}
    for arm in claim.arms:
        figures[arm.name] = []
        for seed in range(n):
            m, took = book.measure(claim, arm.name, chosen[arm.name], seed)
            figures[arm.name].append(m.figures)
            seconds += took
        report(f"{claim.slug}: {arm.name} measured over {n} seeds")
    table = Table(figures)
    checks = []
    for check in claim.checks:
        holds, numbers = check.test(table)
        checks.append({"text": check.text, "asserted": check.asserted, "holds": bool(holds), "numbers": numbers})
    result = {
        "slug": claim.slug,
        "statement": claim.statement,
        "scale": claim.scale,
        "verdict": verdict(checks),
        "checks": checks,
        "arms": [{"name": a.name, "role": a.role, "setting": dict(chosen[a.name])} for a in claim.arms],
        "grid": [dict(s) for s in claim.grid],
        "tuning": tuning,
        "seeds": list(range(n)),
        "figures": {arm: [dict(f) for f in rows] for arm, rows in figures.items()},
        "table": table.text(),
        "seconds": round(seconds, 1),
        "environment": environment(),
        "fingerprint": code,
    }
    write_json(results / f"{claim.slug}.json", result)
    return result


def verdict(checks: Sequence[Mapping[str, Any]]) -> str:
    """From the asserted checks alone.

    >>> verdict([{"asserted": True, "holds": True}, {"asserted": False, "holds": False}])
    'holds'
    """
    asserted = [c["holds"] for c in checks if c["asserted"]]
    if all(asserted):
        return "holds"
    return "holds in part" if any(asserted) else "does not hold at this scale"
