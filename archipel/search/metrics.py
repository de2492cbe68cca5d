"""How well scores rank architectures, and how much better than random a search is: metrics shared by all of search.

Yu, Ranftl, Salzmann. How to Train Your Super-Net. 2020. https://arxiv.org/abs/2003.04276    (sparse Kendall tau)
Yu, Sciuto, Jaggi, Musat, Salzmann. Evaluating the Search Phase of Neural Architecture Search. 2020.
https://arxiv.org/abs/1902.08142    (probability to surpass random search)
Yang, Esperanca, Carlucci. NAS evaluation is frustratingly hard. 2020. https://arxiv.org/abs/1912.12522    (RI)

    tau_b                    Kendall's rank correlation with the correction for ties
    sparse tau               tau_b after the true accuracies were rounded to a tolerance: near-equal networks tie
    p(better than random)    (r / r_max)^n: all of n uniform draws rank at most r, counted from the worst
    RI                       100 (mean method - mean random) / mean random

Nothing here averages over missing runs: NaN raises. Accuracies may be fractions or percents, but not both at once.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from archipel.core.errors import UsageError

Values = Sequence[float] | np.ndarray
Units = Literal["auto", "fraction", "percent"]


# Architectures in the tables that supernets are ranked against: r_max of p(better than random).
TABLE_SIZES = {"nasbench101": 423_624, "nasbench201": 15_625, "darts-nds": 5_000}


class RankingWarning(UserWarning):
    """A rank correlation is undefined."""


def checked(values: Values, name: str, least: int = 1) -> np.ndarray:
    """Values as a float64 vector ``[N]``.

    Raises:
        UsageError: fewer than ``least`` of them, not one-dimensional, or some are NaN or infinite.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise UsageError(f"{name} must be a list of numbers, not an array of shape {array.shape}.")
    if len(array) < least:
        raise UsageError(f"{name} holds {len(array)} values; at least {least} are needed.")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise UsageError(
            f"{name} has {len(bad)} missing or infinite of {len(array)} values (first at position {bad[0]}). They are "
            f"never averaged over: repeat these runs, or drop them from every list that is compared."
        )
    return array


def check_units(units: Units = "auto", **accuracies: Values) -> str:
    """Whether accuracies are ``"fraction"`` or ``"percent"``; all of them must be the same.

    Args:
        units: say it, where some percents are honestly below 1.
        accuracies: by name, for the message.

    Raises:
        UsageError: mixed units, or values outside the range of the units.
    """
    arrays = {name: checked(v, name) for name, v in accuracies.items()}
    if units not in ("auto", "fraction", "percent"):
        raise UsageError(f"units must be 'auto', 'fraction' or 'percent', not {units!r}.")
    if units == "auto":
        small = {name: bool((a <= 1.0).all()) for name, a in arrays.items()}
        mixed = [name for name, a in arrays.items() if not small[name] and bool(((a > 0.0) & (a <= 1.0)).any())]
        if mixed or len(set(small.values())) > 1:
            listing = ", ".join(f"{n} from {a.min():g} to {a.max():g}" for n, a in arrays.items())
            raise UsageError(
                f"Accuracies in mixed units ({listing}): some look like fractions, others like percents. Convert them, "
                f"or say units='percent' if values up to 1 % are meant."
            )
        units = "fraction" if all(small.values()) else "percent"
    top = 1.0 if units == "fraction" else 100.0
    for name, a in arrays.items():
        if a.min() < 0.0 or a.max() > top:
            raise UsageError(f"{name} ranges from {a.min():g} to {a.max():g}; a {units} lies in [0, {top:g}].")
    return units


def _pair(truth: Values, scores: Values) -> tuple[np.ndarray, np.ndarray]:
    t, s = checked(truth, "truth", 3), checked(scores, "scores", 3)
    if len(t) != len(s):
        raise UsageError(f"A rank correlation needs pairs, but there are {len(t)} true values and {len(s)} scores.")
    return t, s


def _correlation(function: Callable[..., Any], t: np.ndarray, s: np.ndarray, hint: str = "") -> float:
    """A correlation, or NaN with a warning (and a hint, where it is the truth that ties)."""
    for name, a, why in (("true values", t, hint), ("scores", s, "")):
        if (a == a[0]).all():
            warnings.warn(f"All {name} are tied, so a rank correlation is undefined.{why}", RankingWarning, 3)
            return float("nan")
    return float(function(t, s)[0])


def kendall_tau(truth: Values, scores: Values) -> float:
    """Kendall's tau_b of two equally long lists; NaN with a warning if one of them is all ties.

    Raises:
        UsageError: fewer than 3 pairs, different lengths, or NaN.

    >>> round(kendall_tau([.9412, .9408, .9391, .9300], [3, 4, 2, 1]), 4)
    0.6667
    """
    return _correlation(stats.kendalltau, *_pair(truth, scores))


def spearman(truth: Values, scores: Values) -> float:
    """Spearman's rank correlation; as :func:`kendall_tau`."""
    return _correlation(stats.spearmanr, *_pair(truth, scores))


def sparse_kendall_tau(truth: Values, scores: Values, tolerance: float = 1e-3) -> float:
    """tau_b after rounding the true values to multiples of a tolerance, in the unit of the true values.

    Yu et al. 2020 take 0.1 %: 1e-3 for fractions, 0.1 for percents. A tolerance of 0 is tau_b itself.

    Returns:
        the correlation; NaN with a warning if everything ties, as happens with a tolerance in percent for fractions.

    >>> round(sparse_kendall_tau([.9412, .9408, .9391, .9300], [3, 4, 2, 1], 1e-3), 4)
    0.9129
    """
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise UsageError(f"The tolerance must be a non-negative number, not {tolerance!r}.")
    t, s = _pair(truth, scores)
    rounded = np.round(t / tolerance) if tolerance else t
    unit = "fractions" if t.max() <= 1.0 else "percents"
    hint = (
        f" The tolerance {tolerance:g} is too coarse for true values from {t.min():g} to {t.max():g}, which look like "
        f"{unit}; give it in the same unit."
    )
    return _correlation(stats.kendalltau, rounded, s, hint if tolerance else "")


def noise_ceiling(truth_SN: Sequence[Values] | np.ndarray) -> float:
    """Mean tau_b between independent repetitions of the truth: no score can be expected to rank better.

    Args:
        truth_SN: stand-alone accuracies of the same N architectures under S training seeds.

    Raises:
        UsageError: fewer than 2 seeds.
    """
    if len(truth_SN) < 2:
        raise UsageError(f"A noise ceiling needs at least 2 training seeds, but there is {len(truth_SN)}.")
    return float(np.mean([kendall_tau(a, b) for a, b in itertools.combinations(truth_SN, 2)]))


# --- against random search -----------------------------------------------------------------------------------------


def rank_from_worst(value: float, population: Values) -> int:
    """How many of a population are no better than ``value``: the worst ranks 1, the best (and its ties) N.

    >>> rank_from_worst(0.5, [0.1, 0.5, 0.9])
    2
    """
    p = checked(population, "population")
    rank = int((p <= checked([value], "value")[0]).sum())
    if rank == 0:
        raise UsageError(f"The value {value:g} is below all {len(p)} of the population, so it is not one of them.")
    return rank


def p_surpass_random(rank_from_worst: int, total: int, draws: int = 10) -> float:
    """Probability that an architecture of a rank is at least as good as the best of ``draws`` uniform ones.

    Args:
        rank_from_worst: r, from 1 (worst) to ``total`` (best).
        total: r_max, the number of architectures.
        draws: n.

    Raises:
        UsageError: a rank outside [1, total] or no draws.

    >>> round(p_surpass_random(15_000, 15_625), 6)
    0.664833
    """
    if not 1 <= rank_from_worst <= total:
        raise UsageError(
            f"A rank counted from the worst lies in [1, {total}], not {rank_from_worst!r}. If yours counts from the "
            f"best, pass total + 1 - rank."
        )
    if draws < 1:
        raise UsageError(f"The number of random draws must be at least 1, not {draws!r}.")
    return (rank_from_worst / total) ** draws


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float
    level: float = 0.95

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def bootstrap_ci(
    values: Values,
    statistic: Callable[..., np.ndarray] = np.mean,
    level: float = 0.95,
    draws: int = 5_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic of independent values.

    Args:
        statistic: takes an array ``[draws, N]`` and ``axis=1``.

    Raises:
        UsageError: fewer than 2 values.

    >>> bootstrap_ci([1.0, 1.0, 1.0])
    Interval(low=1.0, high=1.0, level=0.95)
    """
    a = checked(values, "values", 2)
    resampled = statistic(_resample(a, draws, np.random.default_rng(seed)), axis=1)
    return _percentiles(resampled, level)


def _resample(a: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    return a[rng.integers(0, len(a), (draws, len(a)))]


def _percentiles(samples: np.ndarray, level: float) -> Interval:
    if not 0.0 < level < 1.0:
        raise UsageError(f"A confidence level lies between 0 and 1, not {level!r}.")
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


@dataclass(frozen=True)
class RelativeImprovement:
    """RI in percent with two intervals: the bootstrap under-covers for few runs, Welch's holds its level.

    ``welch`` takes the random mean as known when it scales the interval of the difference, so that it contains 0
    exactly if Welch's test does not reject.
    """

    percent: float
    bootstrap: Interval
    welch: Interval
    method_mean: float
    random_mean: float
    runs: tuple[int, int]


def relative_improvement(
    method: Values,
    random: Values,
    level: float = 0.95,
    draws: int = 5_000,
    seed: int = 0,
    protocols: tuple[Any, Any] | None = None,
    units: Units = "auto",
) -> RelativeImprovement:
    """Relative improvement of a method over the average random architecture (Yang et al. 2020), both trained alike.

    Args:
        method: accuracies of n independent runs (search and training each time).
        random: accuracies of random architectures of the same space under the same training.
        protocols: what identifies the training of each side (say, a recipe hash); they must be equal.

    Raises:
        UsageError: fewer than 2 runs on a side, NaN, mixed units, different protocols, or a random mean of 0.

    >>> ri = relative_improvement([97.3, 97.1, 97.2], [96.9, 97.0, 96.8])
    >>> round(ri.percent, 3), 0.0 in ri.welch
    (0.31, False)
    """
    if protocols is not None and protocols[0] != protocols[1]:
        raise UsageError(
            f"A relative improvement compares runs of one training protocol, but the method used {protocols[0]!r} and "
            f"the random architectures {protocols[1]!r}. Train both alike."
        )
    m, r = checked(method, "method", 2), checked(random, "random", 2)
    check_units(units, method=m, random=r)
    if r.mean() == 0:
        raise UsageError("The random architectures' mean accuracy is 0, so an improvement relative to it is undefined.")
    rng = np.random.default_rng(seed)
    ms, rs = _resample(m, draws, rng).mean(1), _resample(r, draws, rng).mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = 100.0 * (ms - rs) / rs
    return RelativeImprovement(
        percent=float(100.0 * (m.mean() - r.mean()) / r.mean()),
        bootstrap=_percentiles(resampled, level),
        welch=_welch(m, r, level),
        method_mean=float(m.mean()),
        random_mean=float(r.mean()),
        runs=(len(m), len(r)),
    )


def _welch(m: np.ndarray, r: np.ndarray, level: float) -> Interval:
    """Welch's interval of the difference of means, in percent of the random mean."""
    scale = 100.0 / r.mean()
    difference = m.mean() - r.mean()
    vm, vr = m.var(ddof=1) / len(m), r.var(ddof=1) / len(r)
    if vm + vr == 0:
        return Interval(float(scale * difference), float(scale * difference), level)
    freedom = (vm + vr) ** 2 / (vm**2 / (len(m) - 1) + vr**2 / (len(r) - 1))
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(vm + vr)
    return Interval(float(scale * (difference - half)), float(scale * (difference + half)), level)
