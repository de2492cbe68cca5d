"""Does a small budget rank configurations as a large one does? Spearman correlations between all pairs of budgets.

Zela, Klein, Falkner, Hutter. Towards Automated Deep Learning: Efficient Joint Neural Architecture and Hyperparameter
Search. 2018. https://arxiv.org/abs/1807.06906

    rho(b, b') = Pearson correlation of the average ranks of the configurations evaluated on both budgets

Failures rank last. A caution that the numbers do not show: inside successive halving only the best of a small budget
reach a larger one, and over such a truncated range correlations come out lower than over random configurations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from archipel.core.errors import UsageError
from archipel.search.strategy import Problem, Trial


@dataclass(frozen=True)
class RankCorrelations:
    """``rho`` and ``common`` are ``[B, B]`` over ``budgets`` (ascending); rho is NaN where it is undefined: fewer than
    three common configurations, or all of them equally good. ``common`` counts the configurations."""

    budgets: tuple[int, ...]
    rho: np.ndarray
    common: np.ndarray


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation with ties at their average rank; NaN if one side is constant.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 5.0, 1.0]))
    -1.0
    """
    from scipy.stats import rankdata

    a, b = (rankdata(side) - (len(side) + 1) / 2 for side in (first, second))
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm else math.nan


def scores_by_budget(problem: Problem, trials: Iterable[Trial]) -> dict[int, dict[str, float]]:
    """Score of each configuration on each budget (the mean of repeated evaluations; failures minus infinity)."""
    collected: dict[int, dict[str, list[float]]] = {}
    for trial in trials:
        budget = problem.max_resource if trial.resource is None else trial.resource
        score = problem.score(trial) if trial.ok else -math.inf
        collected.setdefault(budget, {}).setdefault(problem.space.canonical(trial.arch), []).append(score)
    return {b: {key: sum(s) / len(s) for key, s in by_arch.items()} for b, by_arch in collected.items()}


def budget_rank_correlations(scores: Mapping[int, Mapping[Any, float]]) -> RankCorrelations:
    """Spearman's rho between all budgets, over the configurations that were evaluated on both.

    Args:
        scores: budget -> configuration -> score.

    Raises:
        UsageError: no budget, or a score that is NaN.
    """
    if not scores:
        raise UsageError("Rank correlations between budgets need evaluated configurations; none were given.")
    for budget, by_arch in scores.items():
        if any(score != score for score in by_arch.values()):
            raise UsageError(f"A score on budget {budget} is NaN; leave it out, or give minus infinity for a failure.")
    budgets = tuple(sorted(scores))
    rho = np.full((len(budgets), len(budgets)), math.nan)
    common = np.zeros(rho.shape, dtype=int)
    for i, b in enumerate(budgets):
        for j, c in enumerate(budgets):
            keys = [key for key in scores[b] if key in scores[c]]
            common[i, j] = len(keys)
            if len(keys) >= 3:
                rho[i, j] = spearman(*(np.array([scores[budget][k] for k in keys]) for budget in (b, c)))
    return RankCorrelations(budgets, rho, common)
