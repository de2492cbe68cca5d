"""How the popularity of donors rises and falls in an evolution, and on what it depends.

Underwood, Madhyastha, Burns, Nicolae. Understanding Patterns of Deep Learning Model Evolution in Network Architecture
Search. 2023. https://arxiv.org/abs/2309.12576

The popularity of a genome is the number of requests for it, as the donor of a new child, among the last w requests;
its peak is the largest such number. Concentration: Gini coefficient, and the effective number of donors exp(H), H the
entropy of the donors' shares of all requests. The conditions of popularity are read off an ordinary least-squares fit
of the peak on the donor's fitness rank when it entered the population, its age at the peak, S / P and W.

Analysis of the `propose` and `selection` slots; only the abstract of the paper is known to us, so the definitions are
ours. All cost O(N log N). Axes: N evaluations, R requests, G donors, F factors.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from archipel.core.errors import UsageError
from archipel.search.analysis.lineage import Lineage


@dataclass(frozen=True)
class Popularity:
    """Rise and fall of each donor genome; times count requests.

    Attributes:
        genome: ``[G]``.
        total: ``[G]`` requests in all.
        peak: ``[G]`` most requests within one window.
        first, last: ``[G]`` first and last request; ``last - first`` is the life span as a donor.
        peak_at: ``[G]`` request at which the peak is first reached.
        rise: ``[G]`` requests from the first to the peak.
        fall: ``[G]`` requests from the peak to the last.
        window: w, as used.
    """

    genome: np.ndarray
    total: np.ndarray
    peak: np.ndarray
    first: np.ndarray
    last: np.ndarray
    peak_at: np.ndarray
    window: int

    @property
    def rise(self) -> np.ndarray:
        return self.peak_at - self.first

    @property
    def fall(self) -> np.ndarray:
        return self.last - self.peak_at

    @property
    def life_span(self) -> np.ndarray:
        return self.last - self.first


def donor_genomes(lineage: Lineage) -> np.ndarray:
    """``[R]`` genome of the donor of each request, in order of dispatch."""
    return lineage.genome[lineage.parent[lineage.requests]]


def donor_models(lineage: Lineage) -> np.ndarray:
    """``[R]`` position of the donor of each request, in order of dispatch: equal genomes are told apart."""
    return lineage.parent[lineage.requests]


def window_counts(donors_R: np.ndarray, end: int, window: int) -> dict[int, int]:
    """Requests of each donor among the ``window`` requests before ``end``; they sum to ``window`` once it is full."""
    donors, counts = np.unique(donors_R[max(0, end - window) : end], return_counts=True)
    return dict(zip(donors.tolist(), counts.tolist()))


def popularity(lineage: Lineage, window: int = 100) -> Popularity:
    """How often each genome was the donor, in sliding windows of ``window`` requests.

    Warns and uses all requests if the window is longer than the history.

    Raises:
        UsageError: a window below 1.
    """
    return donor_popularity(donor_genomes(lineage), window)


def donor_popularity(donors_R: np.ndarray, window: int) -> Popularity:
    """:func:`popularity` of any sequence of donors."""
    R = len(donors_R)
    if window < 1:
        raise UsageError(f"A popularity window holds at least 1 request, not {window}.")
    if window > R:
        warnings.warn(
            f"Popularity window {window} is longer than the history of {R} requests; using {R}.", stacklevel=2
        )
        window = max(R, 1)
    order = np.argsort(donors_R, kind="stable")  # requests grouped by donor, each group in time
    genome, start, total = np.unique(donors_R[order], return_index=True, return_counts=True)
    group = np.repeat(np.arange(len(genome)), total)
    key = group * (R + window) + order + window  # increasing; windows never reach into another group
    oldest = np.searchsorted(key, np.maximum(key - window, group * (R + window)), side="right")
    count = np.arange(R) - oldest + 1  # of this donor in the window that ends with this request
    peak = np.maximum.reduceat(count, start) if R else count
    at_peak = np.flatnonzero(count == peak[group])
    first_at_peak = at_peak[np.searchsorted(group[at_peak], np.arange(len(genome)))] if R else at_peak
    return Popularity(genome, total, peak, order[start], order[start + total - 1], order[first_at_peak], window)


def gini(counts: np.ndarray) -> float:
    """Inequality of non-negative counts: 0 if all are equal, towards 1 if one has everything.

    >>> gini(np.array([1, 1, 1, 1])), gini(np.array([0, 0, 0, 4]))
    (0.0, 0.75)
    """
    x = np.sort(np.asarray(counts, dtype=float))
    n, total = len(x), x.sum()
    if n == 0 or total <= 0 or x[0] < 0:
        raise UsageError(f"Gini needs non-negative counts with a positive sum, not {counts!r}.")
    return float(2.0 * (np.arange(1, n + 1) @ x) / (n * total) - (n + 1) / n)


def effective_number(counts: np.ndarray) -> float:
    """exp of the entropy of the shares: how many equally popular donors would be as diverse.

    >>> round(effective_number(np.array([5, 5, 0])), 6)
    2.0
    """
    x = np.asarray(counts, dtype=float)
    if x.size == 0 or (x < 0).any() or x.sum() <= 0:
        raise UsageError(f"The effective number needs non-negative counts with a positive sum, not {counts!r}.")
    p = x[x > 0] / x.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def fitness_rank(lineage: Lineage, population: int) -> np.ndarray:
    """``[N]`` share of the members (aging) that were fitter than the newcomer: 0 a new best; NaN for failures."""
    members: deque[float] = deque()
    ordered: list[float] = []
    rank_N = np.full(len(lineage), math.nan)
    for i, fitness in enumerate(lineage.fitness.tolist()):
        if fitness != fitness:
            continue
        rank_N[i] = (len(ordered) - bisect_right(ordered, fitness)) / max(1, len(ordered))
        members.append(fitness)
        insort(ordered, fitness)
        if len(members) > population:
            del ordered[bisect_left(ordered, members.popleft())]
    return rank_N


@dataclass(frozen=True)
class Arm:
    """A finished evolution and the settings it ran with."""

    lineage: Lineage
    population: int
    sample: int
    workers: int


@dataclass(frozen=True)
class Regression:
    """A least-squares fit on standardised factors.

    Attributes:
        factors: ``[F]`` names of those that vary.
        dropped: those that are constant over all donors, which no fit can weigh.
        coefficient: ``[F]`` change of the peak per standard deviation of the factor.
        error: ``[F]`` standard errors.
        intercept: mean peak.
        r2: share of the variance explained.
        donors: number of donors.
    """

    factors: tuple[str, ...]
    dropped: tuple[str, ...]
    coefficient: np.ndarray
    error: np.ndarray
    intercept: float
    r2: float
    donors: int


FACTORS = ("rank", "age", "S/P", "W")


def popularity_factors(arm: Arm, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors ``[G, 4]`` (see :data:`FACTORS`) and peak popularity ``[G]`` of each donor genome of a run."""
    lineage = arm.lineage
    rises = popularity(lineage, window)
    birth = np.unique(lineage.genome, return_index=True)[1][rises.genome]
    age = lineage.told[lineage.requests[rises.peak_at]] - birth
    rank = fitness_rank(lineage, arm.population)[birth]
    settings = np.broadcast_to([arm.sample / arm.population, arm.workers], (len(rises.genome), 2))
    return np.column_stack([rank, age, settings]), rises.peak.astype(float)


def regress_popularity(arms: Sequence[Arm], window: int = 100) -> Regression:
    """Peak popularity of all donors of all runs, fitted on rank at entry, age at the peak, S / P and W.

    Raises:
        UsageError: fewer donors than the fit needs.
    """
    parts = [popularity_factors(arm, window) for arm in arms]
    x_GF = np.concatenate([x for x, _ in parts]) if parts else np.empty((0, len(FACTORS)))
    peak_G = np.concatenate([y for _, y in parts]) if parts else np.empty(0)
    known = np.isfinite(x_GF).all(1)  # a genome whose first evaluation failed has no rank
    x_GF, peak_G = x_GF[known], peak_G[known]
    G = len(peak_G)
    if len(FACTORS) + 2 > G:
        raise UsageError(f"The fit needs at least {len(FACTORS) + 2} donors, not {G}; give longer or more runs.")
    spread = x_GF.std(0)
    varies = spread > 1e-12 * np.maximum(1.0, np.abs(x_GF).max(0))
    z_GF = (x_GF[:, varies] - x_GF[:, varies].mean(0)) / spread[varies]
    design = np.column_stack([np.ones(G), z_GF])
    inverse = np.linalg.pinv(design.T @ design)
    fit = inverse @ design.T @ peak_G
    residual, total = peak_G - design @ fit, peak_G - peak_G.mean()
    variance = residual @ residual / (G - design.shape[1])
    return Regression(
        tuple(f for f, v in zip(FACTORS, varies) if v),
        tuple(f for f, v in zip(FACTORS, varies) if not v),
        fit[1:],
        np.sqrt(variance * np.diag(inverse))[1:],
        float(fit[0]),
        float(1 - residual @ residual / (total @ total)) if total.any() else math.nan,
        G,
    )
