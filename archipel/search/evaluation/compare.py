"""A method against random architectures of its own space under its own training: the report that every comparison gets.

Yang, Esperanca, Carlucci. NAS evaluation is frustratingly hard. 2020. https://arxiv.org/abs/1912.12522
Yu, Sciuto, Jaggi, Musat, Salzmann. Evaluating the Search Phase of Neural Architecture Search. 2020.
https://arxiv.org/abs/1902.08142

Means are compared with means and best with best; what is compared was trained by one protocol, in one space, and
judged under seeds that no search has used. Each of these is checked, and stands in the report's checklist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from archipel.search import metrics as ranking
from archipel.search.evaluation.runs import Runs, check_comparable

# Runs of a method, and random architectures, that the comparison of Yang et al. rests on.
ENOUGH_RUNS = 8


# --- two samples -----------------------------------------------------------------------------------------------------


def summary(values: np.ndarray) -> dict[str, Any]:
    """Number, mean, standard deviation (ddof 1), worst and best."""
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)),
        "worst": float(values.min()),
        "best": float(values.max()),
    }


def superiority(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pairs in which a run of ``a`` beats one of ``b``; ties count one half (Vargha and Delaney's A).

    >>> superiority(np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    0.875
    """
    return float((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean())


def two_sample(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """Two-sided p-values of Welch's and Mann and Whitney's test, Cohen's d and the probability of superiority.

    Without any spread in both samples, Welch's p and d are undefined: None.
    """
    pooled = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2)
    spread = bool((a != a[0]).any() or (b != b[0]).any())  # equal numbers may have a variance of 1e-34
    tied = bool((np.concatenate([a, b]) == a[0]).all())
    welch: Any = stats.ttest_ind(a, b, equal_var=False) if spread else None
    return {
        "welch_p": float(welch.pvalue) if spread else None,
        "mann_whitney_p": 1.0 if tied else float(stats.mannwhitneyu(a, b, alternative="two-sided").pvalue),
        "cohens_d": float((a.mean() - b.mean()) / math.sqrt(pooled)) if spread else None,
        "superiority": superiority(a, b),
    }


# --- the report ------------------------------------------------------------------------------------------------------


def compare_to_random(
    method: Runs, random: Runs, level: float = 0.95, draws: int = 5_000, seed: int = 0, units: ranking.Units = "auto"
) -> dict[str, Any]:
    """Everything that a comparison with random architectures should say, as JSON.

    Args:
        method, random: runs of the method, and of single random architectures.
        level, draws, seed: of the intervals and their bootstrap.
        units: say ``"percent"`` where percents are honestly below 1.

    Raises:
        UsageError: fewer than 2 runs, a missing result, mixed units, different protocols or spaces.

    >>> base = {"epochs": 600}
    >>> report = compare_to_random(Runs("DARTS", [97.3, 97.1, 97.2], base), Runs("random", [96.9, 97.0, 96.8], base))
    >>> round(report["relative_improvement_percent"], 3), report["verdict"]
    (0.31, 'better than random')
    """
    check_comparable(method, random)
    m, r = method.checked(), random.checked()
    ri = ranking.relative_improvement(
        m, r, level, draws, seed, (method.protocol_hash, random.protocol_hash), units=units
    )
    tests = two_sample(m, r)
    better, worse = ri.welch.low > 0.0, ri.welch.high < 0.0
    report: dict[str, Any] = {
        "method": method.name,
        "reference": random.name,
        "space": method.space,
        "protocol": dict(method.protocol),
        "protocol_hash": method.protocol_hash,
        "results": summary(m),
        "random": summary(r),
        "relative_improvement_percent": ri.percent,
        "level": level,
        "bootstrap_interval": [ri.bootstrap.low, ri.bootstrap.high],
        "welch_interval": [ri.welch.low, ri.welch.high],
        **tests,
        "p_random_better": superiority(r, m),
        "verdict": "better than random" if better else "worse than random" if worse else "no difference shown",
        "search": {"settings": dict(method.settings), "queries": method.queries, "seconds": method.seconds},
        "notes": [],
    }
    if tests["welch_p"] is None:
        report["notes"].append("No run differs from another of its side, so there is no spread to test against.")
    if m.max() > r.max() and not better:
        report["notes"].append("The method's best run beats the best random one, but its mean shows no difference.")
    report["checklist"] = checklist(report, method, random)
    return report


def checklist(report: Mapping[str, Any], method: Runs, random: Runs) -> list[dict[str, Any]]:
    """The best practices of Yang et al. 2020 (section on recommendations), each with whether and how it is met."""
    n = min(report["results"]["n"], report["random"]["n"])
    cost = [f"{v:.4g} {k}" for k, v in report["search"].items() if isinstance(v, int | float)]
    settings = report["search"]["settings"]
    low, high = report["bootstrap_interval"]
    items = [
        ("random architectures as baseline", report["random"]["n"] >= 2, f"{report['random']['n']} of {random.name}"),
        (
            "average architecture stated",
            True,
            f"mean {report['random']['mean']:.6g}; the improvement is relative to it",
        ),
        ("several seeds", n >= ENOUGH_RUNS, f"{n} runs a side; {ENOUGH_RUNS} or more are wanted"),
        ("spread and interval", True, f"{100 * report['level']:g} % bootstrap interval [{low:.3g}, {high:.3g}] %"),
        ("same training protocol", method.protocol_hash == random.protocol_hash, report["protocol_hash"]),
        ("training hyperparameters stated", bool(method.protocol), ", ".join(method.protocol) or "none given"),
        ("search hyperparameters stated", bool(settings), ", ".join(settings) or "none given"),
        ("search space stated", bool(method.space), method.space or "none given"),
        ("search cost stated", bool(cost), ", ".join(cost) or "none given"),
        (
            "search and evaluation under different seeds",
            bool(method.search_seeds) and bool(method.evaluation_seeds),
            "checked" if method.search_seeds and method.evaluation_seeds else "seeds not given",
        ),
    ]
    return [{"practice": what, "met": bool(met), "how": how} for what, met, how in items]


def comparison_text(reports: Sequence[Mapping[str, Any]]) -> str:
    """Comparisons as a table, with each one's unmet practices below it."""
    rows = [["method", "n", "mean ± std", "best", "random mean ± std", "best", "RI %", "bootstrap", "Welch", "p(W)",
             "p(MW)", "d", "P(random better)", "verdict"]]  # fmt: skip
    for c in reports:
        m, r = c["results"], c["random"]
        rows.append([
            c["method"], f"{m['n']}/{r['n']}", f"{m['mean']:.5g} ± {m['std']:.2g}", f"{m['best']:.5g}",
            f"{r['mean']:.5g} ± {r['std']:.2g}", f"{r['best']:.5g}", f"{c['relative_improvement_percent']:+.2f}",
            *("[{:+.2f}, {:+.2f}]".format(*c[k]) for k in ("bootstrap_interval", "welch_interval")),
            *(shown(c[k], ".3g") for k in ("welch_p", "mann_whitney_p", "cohens_d")),
            f"{c['p_random_better']:.2f}", c["verdict"],
        ])  # fmt: skip
    lines = [text_table(rows)]
    for c in reports:
        unmet = [f"{i['practice']} ({i['how']})" for i in c["checklist"] if not i["met"]]
        lines += [f"{c['method']}: {note}" for note in c["notes"]]
        lines += [f"{c['method']}: not met: {'; '.join(unmet)}"] if unmet else []
    return "\n".join(lines)


def shown(value: float | None, form: str = ".4g") -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or value != value else format(value, form)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, the first row as their heads."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)
