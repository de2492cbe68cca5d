"""One fair metric for searches of different spaces and protocols, and the studies that show what else moves accuracy.

Yang, Esperanca, Carlucci. NAS evaluation is frustratingly hard. 2020. https://arxiv.org/abs/1912.12522

    RI = 100 (Acc_m - Acc_r) / Acc_r      Acc_m: mean of n runs, search and training each time;
                                          Acc_r: mean of n random architectures of the method's own space, trained by
                                          the method's own protocol (n = 8)

    protocol ladder    which training tricks are worth how much           :mod:`archipel.search.evaluation.ladder`
    width of a space   distribution over many random architectures        :func:`width_study`, :func:`spread`
    seeds              between architectures against between seeds         :func:`seed_study`
    depth gap          do few cells rank as many do?                       :func:`depth_study`
    number of cells    what depth by itself is worth                       :func:`cells_study`

Fills the slot evaluator. Departure: beside the paper's percentile bootstrap, which covers .90 rather than .95 at n = 8,
stands Welch's interval, and a verdict rests on that one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search import metrics as ranking
from archipel.search.evaluation.compare import compare_to_random, comparison_text, summary
from archipel.search.evaluation.judging import StandAlone, judge_grid
from archipel.search.evaluation.ladder import Network, random_architectures
from archipel.search.evaluation.notebook import Notebook
from archipel.search.evaluation.runs import Runs
from archipel.search.evaluation.weight_sharing import rank_disorder

# Numbers of cells in the paper's study.
CELLS = (4, 6, 8, 12, 16, 20, 24)


@register(
    "nas-eval-is-hard",
    card=92,
    family="search.evaluation",
    slots=["evaluator"],
    paper=Paper("NAS evaluation is frustratingly hard", 2020, "https://arxiv.org/abs/1912.12522"),
)
def benchmark(
    pairs: Sequence[tuple[Runs, Runs]], level: float = 0.95, draws: int = 5_000, units: ranking.Units = "auto"
) -> dict[str, Any]:
    """Relative improvement of methods, each over random architectures of its own space under its own protocol.

    Args:
        pairs: (a method's runs, the random runs it is measured against).

    Returns:
        ``rows`` by falling improvement, each a report of
        :func:`~archipel.search.evaluation.compare.compare_to_random` with its checklist, and ``text``.

    Raises:
        UsageError: no method, fewer than 2 runs, a missing result, mixed units, or a pair with different protocols or
            spaces.

    >>> random, darts = Runs("random", [96.8, 97.0], {"epochs": 600}), Runs("DARTS", [97.2, 97.3], {"epochs": 600})
    >>> [(row["method"], row["verdict"]) for row in benchmark([(darts, random)])["rows"]]
    [('DARTS', 'no difference shown')]
    """
    if not pairs:
        raise UsageError("A benchmark needs at least one pair of runs: a method's, and random ones to compare with.")
    rows = [compare_to_random(m, r, level, draws, units=units) for m, r in pairs]
    rows.sort(key=lambda row: -row["relative_improvement_percent"])
    return {"rows": rows, "text": comparison_text(rows)}


# --- studies of results that are there -------------------------------------------------------------------------------


def spread(values: ranking.Values) -> dict[str, Any]:
    """Distribution of the results of random architectures: how wide a space is.

    Raises:
        UsageError: fewer than 2, or missing results.

    >>> round(spread([96.0, 97.0, 97.4])["range"], 3)
    1.4
    """
    v = ranking.checked(values, "results", 2)
    quartiles = np.quantile(v, [0.25, 0.5, 0.75])
    return {**summary(v), "range": float(np.ptp(v)), "quartiles": [float(q) for q in quartiles]}


def seed_study(values_KS: Any) -> dict[str, Any]:
    """Whether architectures differ by more than seeds do.

    Args:
        values_KS: results of K architectures under S seeds each.

    Returns:
        ``std_architectures`` (of the means over seeds), ``std_seeds`` (within architectures), their ratio,
        ``std_true``: of the architectures once the seeds' share in their means is taken off (0 if nothing is left),
        and ``tau``: mean Kendall tau_b between seeds.

    Raises:
        UsageError: fewer than 2 seeds or 3 architectures, or missing results.

    >>> study = seed_study([[1.0, 1.2], [2.0, 2.2], [3.0, 3.2]])
    >>> study["tau"], round(study["ratio"], 3)
    (1.0, 7.071)
    """
    v = np.asarray(values_KS, dtype=float)
    if v.ndim != 2 or v.shape[0] < 3 or v.shape[1] < 2:
        raise UsageError(f"A seed study needs results [K >= 3 architectures, S >= 2 seeds], not of shape {v.shape}.")
    ranking.checked(v.ravel(), "results")
    S = v.shape[1]
    within, between = float(v.var(axis=1, ddof=1).mean()), float(v.mean(1).var(ddof=1))
    return {
        "architectures": len(v),
        "seeds": S,
        "std_architectures": between**0.5,
        "std_seeds": within**0.5,
        "std_true": max(0.0, between - within / S) ** 0.5,
        "ratio": (between / within) ** 0.5 if within else None,
        "tau": ranking.noise_ceiling(list(v.T)),
    }


def depth_study(shallow_K: Any, deep_K: Any) -> dict[str, Any]:
    """Whether networks of few cells rank as those of many: Kendall tau_b, and each architecture's ranks in both.

    Args:
        shallow_K, deep_K: results of the same architectures, one each or ``[K, S]`` over seeds.

    Raises:
        UsageError: fewer than 3 architectures, different numbers, or missing results.
    """
    shallow, deep = (np.asarray(a, dtype=float) for a in (shallow_K, deep_K))
    shallow, deep = (a.mean(1) if a.ndim == 2 else a for a in (shallow, deep))
    out = rank_disorder(shallow, deep)
    changes = [{k: c[k] for k in ("true_rank", "scored_rank", "change")} for c in out["changes"]]
    renamed = [{"deep_rank": c["true_rank"], "shallow_rank": c["scored_rank"], "change": c["change"]} for c in changes]
    return {
        "architectures": out["architectures"],
        "tau": out["tau"],
        "tau_error": out["tau_error"],
        "shallow": spread(shallow),
        "deep": spread(deep),
        "changes": renamed,
    }


def cells_study(values: Mapping[int, ranking.Values]) -> dict[str, Any]:
    """Mean and spread by the number of cells, and what each step adds to the mean.

    Raises:
        UsageError: fewer than two numbers, or fewer than 2 results for one.
    """
    if len(values) < 2:
        raise UsageError(f"A study of the number of cells needs at least two numbers, not {list(values)}.")
    rows = [{"cells": c, **spread(np.ravel(values[c]))} for c in sorted(values)]
    steps = [b["mean"] - a["mean"] for a, b in itertools.pairwise(rows)]
    std = float(np.sqrt(np.mean([r["std"] ** 2 for r in rows])))
    return {"rows": rows, "gains": steps, "std_of_cells": float(np.std([r["mean"] for r in rows], ddof=1)),
            "std_of_architectures": std}  # fmt: skip


# --- measuring -------------------------------------------------------------------------------------------------------


def width_study(
    judges: Mapping[str, StandAlone],
    n: int | Mapping[str, int] = 214,
    seed: int = 0,
    executor: Executor | None = None,
    notebook: Notebook | None = None,
) -> dict[str, Any]:
    """Distribution of the results of random architectures in one space or several (the paper: 214 and 56).

    Args:
        judges: label -> judge, each with its own space.
        n: random architectures, of all or by label.
        seed: they are drawn by.

    Returns:
        label -> :func:`spread`, with the ``archs`` and their ``values``.
    """
    out = {}
    for label, judge in judges.items():
        archs = random_architectures(judge.space, n if isinstance(n, int) else n[label], seed)
        values = judge_grid(judge, archs, 1, executor, notebook)[:, 0]
        out[label] = {**spread(values), "archs": archs, "values": values.tolist()}
    return out


def vary_network(
    network: Network,
    judge: StandAlone,
    archs: Sequence[Arch],
    values: Mapping[str, Mapping[str, Any]],
    seeds: int = 1,
    executor: Executor | None = None,
    notebook: Notebook | None = None,
) -> dict[str, np.ndarray]:
    """Train the same architectures in several forms of a network, by one recipe: ``[K, S]`` for each.

    The seed study is one form under 2 seeds; the depth gap two forms; the number of cells several.

    Args:
        network: the space and its options.
        judge: recipe and data; its space is replaced.
        values: label -> options, such as ``{"8": {"layers": 8}, "20": {"layers": 20}}``.

    Raises:
        UsageError: an option that the space does not have, or a training that diverged.
        SpaceError: an architecture that is not of one of the forms.
    """
    out = {}
    for label, options in values.items():
        form = network.changed(**options)
        own = replace(judge, space=form.space(), network=form.recorded())
        out[label] = judge_grid(own, archs, seeds, executor, notebook)
    return out
