"""Pareto fronts and their hypervolume. All scores are higher-is-better (see ``Objective.score``).

Point a dominates b if it is at least as good everywhere and better somewhere; the front is what nothing dominates.
Hypervolume: Zitzler, Thiele. Multiobjective Optimization Using Evolutionary Algorithms. 1998.
https://doi.org/10.1007/BFb0056872   Computed exactly, by slicing along the last objective.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from archipel.core.errors import UsageError


def pareto_front(scores: ArrayLike) -> list[int]:
    """Indices of the points that no other point dominates, in increasing order; equal points are all kept.

    Args:
        scores: ``[N, M]``, higher is better; infinities are allowed.

    Raises:
        UsageError: not a table of numbers, or NaN.

    >>> pareto_front([[0.9, -5.0], [0.8, -7.0], [0.7, -2.0], [0.9, -5.0]])
    [0, 2, 3]
    """
    scores_NM = _table(scores)
    if not len(scores_NM):
        return []
    order = np.lexsort(scores_NM.T)[::-1]  # nothing dominates what stands before it
    front: list[int] = []
    front_FM = np.empty_like(scores_NM)
    for i in order.tolist():
        point_M = scores_NM[i]
        held_FM = front_FM[: len(front)]
        if not ((held_FM >= point_M).all(1) & (held_FM > point_M).any(1)).any():
            front_FM[len(front)] = point_M
            front.append(i)
    return sorted(front)


def hypervolume(scores: ArrayLike, reference: Sequence[float]) -> float:
    """Volume that the points dominate above a reference point; points not better than it everywhere add nothing.

    Args:
        scores: ``[N, M]``, higher is better, finite.
        reference: ``[M]``, the worst acceptable value of each.

    Raises:
        UsageError: a reference of another length, or values that are not finite.

    >>> hypervolume([[2.0, 1.0], [1.0, 3.0], [0.5, 0.5]], [0.0, 0.0])
    4.0
    """
    scores_NM = _table(scores)
    reference_M = np.asarray(reference, dtype=float)
    if reference_M.ndim != 1 or (len(scores_NM) and reference_M.shape != scores_NM.shape[1:]):
        raise UsageError(f"The reference point needs one value per objective: {list(scores_NM.shape[1:])} expected, "
                         f"not {list(reference_M.shape)}.")  # fmt: skip
    if not (np.isfinite(scores_NM).all() and np.isfinite(reference_M).all()):
        raise UsageError("Hypervolume needs finite scores and a finite reference; leave failed points out.")
    if not len(scores_NM):
        return 0.0
    above_NM = scores_NM - reference_M
    return _volume(above_NM[(above_NM > 0).all(1)])


def _volume(points_NM: np.ndarray) -> float:
    """Volume of the union of the boxes from the origin to each point."""
    if not len(points_NM):
        return 0.0
    if points_NM.shape[1] == 1:
        return float(points_NM.max())
    order = np.argsort(-points_NM[:, -1], kind="stable")
    points_NM = points_NM[order]
    heights = points_NM[:, -1] - np.append(points_NM[1:, -1], 0.0)  # of the slice under each point
    if points_NM.shape[1] == 2:
        return float(np.maximum.accumulate(points_NM[:, 0]) @ heights)
    volume = 0.0
    front_FM = points_NM[:0, :-1]
    for point, height in zip(points_NM[:, :-1], heights.tolist()):
        front_FM = np.vstack([front_FM, point])
        front_FM = front_FM[pareto_front(front_FM)]
        if height > 0:
            volume += height * _volume(front_FM)
    return volume


def _table(scores: ArrayLike) -> np.ndarray:
    scores_NM = np.asarray(scores, dtype=float)
    if scores_NM.size == 0:
        return scores_NM.reshape(0, 1)
    if scores_NM.ndim != 2:
        raise UsageError(f"Scores are one row per point and one column per objective, not of shape {scores_NM.shape}.")
    if np.isnan(scores_NM).any():
        bad = np.flatnonzero(np.isnan(scores_NM).any(1)).tolist()
        raise UsageError(f"Scores of points {bad[:10]} are NaN; leave failed evaluations out, or score them -inf.")
    return scores_NM
