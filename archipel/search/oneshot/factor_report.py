"""What a study of supernet factors found: a row for each supernet; table, correlations and choice from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.search.metrics import spearman


@dataclass(frozen=True)
class Row:
    """One supernet: a setting and what it came to. Accuracies are fractions; see the module for the columns."""

    factor: str
    value: Any
    seed: int
    accuracy: float
    tau: float
    sparse_tau: float
    spearman: float
    p_random: float
    picked: Arch
    picked_accuracy: float
    top5_accuracy: float
    tuning_tau: float | None
    seconds: float


@dataclass
class Study:
    """All supernets of a study, with what frames them.

    Attributes:
        rows: one for each setting and seed.
        ceiling: tau between stand-alone seeds, which no supernet can be expected to exceed; None with one seed.
        random_accuracy: mean stand-alone accuracy of the reported architectures: a random pick.
        best_accuracy: of the best of them.
    """

    rows: list[Row]
    ceiling: float | None
    random_accuracy: float
    best_accuracy: float
    reported: int
    tuning: int

    METRICS = ("accuracy", "tau", "sparse_tau", "p_random", "picked_accuracy", "top5_accuracy")

    def table(self) -> list[dict[str, Any]]:
        """Mean and standard deviation over seeds for each setting; the first row is a random architecture."""
        out: list[dict[str, Any]] = [{"factor": "random architecture", "picked_accuracy": self.random_accuracy}]
        for key in dict.fromkeys((r.factor, shown(r.value)) for r in self.rows):
            rows = [r for r in self.rows if (r.factor, shown(r.value)) == key]
            entry: dict[str, Any] = {"factor": key[0], "value": rows[0].value, "seeds": len(rows)}
            for metric in self.METRICS:
                values = [getattr(r, metric) for r in rows]
                entry[metric], entry[f"{metric}_std"] = float(np.mean(values)), float(np.std(values, ddof=1))
            out.append(entry)
        return out

    def text(self) -> str:
        """The table for reading."""
        heads = {"accuracy": "supernet", "tau": "tau", "sparse_tau": "sparse tau", "p_random": "p > random",
                 "picked_accuracy": "picked", "top5_accuracy": "top 5"}  # fmt: skip
        entries = self.table()
        names = [e["factor"] + (f" = {shown(e['value'])}" if e.get("value") is not None else "") for e in entries]
        width = max(map(len, names))
        lines = [" " * width + "".join(f"{h:>16}" for h in heads.values())]
        for name, entry in zip(names, entries):
            cells = []
            for m in heads:
                spread = f" ± {entry[m + '_std']:.3f}" if m + "_std" in entry else " " * 8
                cells.append(f"{entry[m]:.3f}{spread}" if m in entry else "")
            lines.append(f"{name:<{width}}" + "".join(f"{c:>16}" for c in cells).rstrip())
        ceiling = "unknown (one seed)" if self.ceiling is None else f"{self.ceiling:.3f}"
        lines.append(f"tau between stand-alone seeds: {ceiling}; best architecture {self.best_accuracy:.3f}; "
                     f"{self.reported} architectures, {self.tuning} more kept for tuning")  # fmt: skip
        return "\n".join(lines)

    def correlations(self) -> dict[str, float]:
        """Over all supernets: how each metric goes along (Spearman) with the accuracy of the picked architecture.

        Raises:
            UsageError: fewer than 3 supernets.
        """
        picked = [r.picked_accuracy for r in self.rows]
        return {m: spearman(picked, [getattr(r, m) for r in self.rows])
                for m in ("accuracy", "tau", "sparse_tau")}  # fmt: skip

    def best_setting(self) -> tuple[str, Any]:
        """The setting of highest mean tau on the architectures kept for tuning, which no reported figure includes.

        Raises:
            UsageError: none were kept.
        """
        if not self.tuning:
            raise UsageError(
                "A setting must not be chosen by the architectures it is reported on. Keep some apart: "
                "factor_study(..., tuning=0.3)."
            )
        settings: dict[tuple[str, str], list[Row]] = {}
        for r in self.rows:
            settings.setdefault((r.factor, shown(r.value)), []).append(r)
        best = max(settings.values(), key=lambda rows: sum(r.tuning_tau or 0.0 for r in rows) / len(rows))
        return best[0].factor, best[0].value


def shown(value: Any) -> str:
    """A factor's value, for reading."""
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)
