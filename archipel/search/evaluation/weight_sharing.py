"""What sharing weights does to the ranking of architectures.

Yu, Sciuto, Jaggi, Musat, Salzmann. Evaluating the Search Phase of Neural Architecture Search. 2020.
https://arxiv.org/abs/1902.08142

    tau(WS)       Kendall's tau_b between scores by shared weights and results of the same K architectures trained
                  alone; mean over supernets (seeds, and lengths of training)
    ceiling       the same between two seeds of training alone: no score can be expected to rank better
    tau(alone)    the same for candidates that are trained alone during the search: the effect of sharing by itself

The ceiling compares single runs, so ``tau_single`` (a supernet against single runs) is its like; ``tau`` itself is
against the mean over seeds. The K architectures are given, never picked here: draw them at random before looking.
Less sharing: :mod:`archipel.search.evaluation.sharing_sweep`.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from random import Random
from typing import Any

import numpy as np
from scipy.stats import rankdata

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.search import metrics as ranking
from archipel.search.evaluation.compare import shown
from archipel.search.evaluation.judging import judge_all
from archipel.search.evaluation.notebook import Notebook, run_all
from archipel.search.evaluation.policies import SearchTask, settings_of, start_strategy
from archipel.search.evaluation.runs import short_hash
from archipel.search.strategy import Strategy

Make = Callable[[], Strategy]


def rank_disorder(
    scores_RK: Any, alone_SK: Any, names: Sequence[str] | None = None, rows: Sequence[str] | None = None
) -> dict[str, Any]:
    """How well scores rank K architectures, beside the noise of the truth.

    Args:
        scores_RK: of the same architectures by R supernets (or searches), ``[R, K]`` or ``[K]``.
        alone_SK: results when trained alone, under S seeds, ``[S, K]`` or ``[K]``.
        names: of the architectures; ``rows``: of the R scorings.

    Returns:
        ``tau`` with its jackknife standard error over architectures, ``tau_std`` over scorings, ``tau_each``,
        ``tau_single`` and ``ceiling`` (None with one seed), and ``changes``: for each architecture its true rank, its
        mean rank by the scores (both from the worst, ties at their mean) and the difference. A tau is None where all
        scores tie.

    Raises:
        UsageError: fewer than 3 architectures, shapes that do not fit, or missing values.

    >>> round(rank_disorder([1, 2, 3, 4], [[1, 2, 3, 4], [1, 2, 4, 3]])["tau_single"], 4)
    0.8333
    """
    scores, alone = (np.atleast_2d(np.asarray(a, dtype=float)) for a in (scores_RK, alone_SK))
    if scores.ndim != 2 or alone.ndim != 2 or scores.shape[1] != alone.shape[1]:
        raise UsageError(
            f"Scores [R, K] and stand-alone results [S, K] must be of the same K architectures, but their shapes are "
            f"{scores.shape} and {alone.shape}."
        )
    R, K = scores.shape
    truth = alone.mean(0)
    each = [ranking.kendall_tau(truth, row) for row in scores]
    single = [ranking.kendall_tau(a, row) for a, row in itertools.product(alone, scores)]
    ranks = np.mean([rankdata(row) for row in scores], axis=0)
    true_ranks = rankdata(truth)
    labels = [str(i) for i in range(K)] if names is None else list(names)
    return {
        "architectures": K,
        "tau": _mean(each),
        "tau_error": _jackknife(scores, truth),
        "tau_std": float(np.std(each, ddof=1)) if R > 1 else None,
        "tau_each": dict(zip(rows or map(str, range(R)), (_or_none(t) for t in each))),
        "tau_single": _mean(single),
        "ceiling": ranking.noise_ceiling(list(alone)) if len(alone) > 1 else None,
        "mean_rank_change": float(np.abs(ranks - true_ranks).mean()),
        "changes": [
            {"name": n, "alone": float(v), "true_rank": float(t), "scored_rank": float(r), "change": float(r - t)}
            for n, v, t, r in zip(labels, truth, true_ranks, ranks)
        ],
    }


def _or_none(value: float) -> float | None:
    return None if value != value else float(value)


def _mean(taus: Sequence[float]) -> float | None:
    return _or_none(float(np.mean(taus)))


def _jackknife(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Standard error of the mean tau, by leaving out one architecture after the other."""
    K = len(truth)
    if K < 4 or (scores == scores[:, :1]).all(1).any():
        return None
    kept = ~np.eye(K, dtype=bool)
    left_out = np.array([np.mean([ranking.kendall_tau(truth[k], row[k]) for row in scores]) for k in kept])
    return _or_none(float(np.sqrt((K - 1) / K * ((left_out - left_out.mean()) ** 2).sum())))


# --- measuring it ----------------------------------------------------------------------------------------------------


def shared_scores(
    make: Make, task: SearchTask, archs: Sequence[Arch], seed: int, epochs: int | None = None
) -> list[float]:
    """Train a strategy's supernet and score architectures by its weights.

    Raises:
        UsageError: the strategy has no supernet.
    """
    strategy = start_strategy(make, task, Random(f"supernet/{seed}"), seed, epochs)
    scores = strategy.shared_scores(archs)
    if scores is None:
        raise UsageError(f"{type(strategy).__name__} has no supernet (no shared scores), so nothing shares weights.")
    return [float(s) for s in scores]


def sharing_disorder(
    make: Make,
    task: SearchTask,
    archs: Sequence[Arch],
    alone_SK: Any,
    seeds: int = 3,
    epochs: Sequence[int | None] = (None,),
    executor: Executor | None = None,
    notebook: Notebook | None = None,
) -> dict[str, Any]:
    """Rank disorder of a strategy's supernet, over seeds and lengths of training; see :func:`rank_disorder`.

    Args:
        make: makes the strategy.
        epochs: lengths of the supernet's training to average over; None is the strategy's own.
    """
    rows = [(s, e) for s in range(seeds) for e in epochs]
    scores = score_all([(make, task, tuple(archs), s, e) for s, e in rows], executor, notebook)
    names = [task.space.canonical(a) for a in archs]
    return rank_disorder(scores, alone_SK, names, [f"seed {s}" + (f", {e} epochs" if e else "") for s, e in rows])


def score_all(
    calls: Sequence[tuple[Make, SearchTask, tuple[Arch, ...], int, int | None]],
    executor: Executor | None,
    notebook: Notebook | None,
) -> list[list[float]]:
    """:func:`shared_scores` of many calls, in order."""
    jobs = {}
    for make, task, archs, seed, epochs in calls:
        head = short_hash([settings_of(make), task.describe(), archs])
        jobs[json.dumps(["shared", head, seed, epochs])] = (shared_scores, (make, task, archs, seed, epochs))
    return run_all(jobs, executor, notebook or Notebook())


class _Candidate:
    """Judges as a search without weight sharing would: trained alone by the search's recipe, on validation data."""

    def __init__(self, task: SearchTask) -> None:
        self.task, self.space, self.protocol = task, task.space, task.describe()

    def __call__(self, arch: Arch, seed: int) -> float:
        return self.task.evaluate(arch, seed)


def alone_disorder(
    task: SearchTask,
    archs: Sequence[Arch],
    alone_SK: Any,
    seeds: int = 3,
    executor: Executor | None = None,
    notebook: Notebook | None = None,
) -> dict[str, Any]:
    """Rank disorder without sharing: every candidate is trained alone, as short as the search's recipe is."""
    pairs = [(a, s) for s in range(seeds) for a in archs]
    results = judge_all(_Candidate(task), pairs, executor, notebook)
    scores = np.array([np.nan if r["value"] is None else r["value"] for r in results]).reshape(seeds, len(archs))
    names = [task.space.canonical(a) for a in archs]
    return rank_disorder(scores, alone_SK, names, [f"seed {s}" for s in range(seeds)])


def rank_change_svg(disorder: Mapping[str, Any]) -> str:
    """A picture of :func:`rank_disorder`: true ranks on the left, ranks by shared weights on the right."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(4.0, 5.0))
    axes = page.add_subplot()
    worst = max(1.0, max(abs(c["change"]) for c in disorder["changes"]))
    for c in disorder["changes"]:
        faint = 0.25 + 0.75 * abs(c["change"]) / worst
        axes.plot([0, 1], [c["true_rank"], c["scored_rank"]], "-o", color="#0b6e99", alpha=faint, markersize=3)
    axes.set_xticks([0, 1], ["trained alone", "shared weights"])
    axes.set_ylabel("rank (1 is the worst)")
    axes.set_title(f"tau {shown(disorder['tau'], '.2f')}, ceiling {shown(disorder['ceiling'], '.2f')}", fontsize=10)
    page.tight_layout()
    buffer = io.StringIO()
    page.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
