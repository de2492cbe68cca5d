"""Judge the search phase itself: policies against random selection, everything after the search being equal.

Yu, Sciuto, Jaggi, Musat, Salzmann. Evaluating the Search Phase of Neural Architecture Search. 2020.
https://arxiv.org/abs/1902.08142

    1. for each policy and seed s = 1..n:  a_s = search(s), result_s of a_s trained alone by the common recipe;
       mean ± std, best, Welch and Mann-Whitney p, effect size, all against the random policy        this file
    2. in a space that is known in full:  rank r of a_s from the worst of r_max;  p = (r / r_max)^n   this file
    3. how weight sharing disorders the ranking                    :mod:`archipel.search.evaluation.weight_sharing`

Fills the slot evaluator: it judges searches, not architectures. Policies are named callables or any ask/tell strategy
(:mod:`archipel.search.evaluation.policies`). For one random architecture the expected percentile (r - 1/2) / r_max is
1/2, but the expected p is 1/(n + 1) + O(1/r_max): a p of .09 with n = 10 is what chance gives.

Departures: architectures of equal accuracy share their mean rank in percentiles (and their highest in p, so that p is
the probability that no draw is better); with the distribution of random results known in full, percentiles are also
tested against it and not only against a sample of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.core.space import Space
from archipel.search import metrics as ranking
from archipel.search.evaluation.compare import compare_to_random, comparison_text, summary, text_table
from archipel.search.evaluation.judging import Judge
from archipel.search.evaluation.notebook import Notebook
from archipel.search.evaluation.policies import Policy, SearchTask, random_policy, run_policies
from archipel.search.evaluation.runs import Runs
from archipel.search.tables import Table

# Seeds of each policy in the paper.
SEEDS = 10


@register(
    "eval-nas",
    card=65,
    family="search.evaluation",
    slots=["evaluator"],
    paper=Paper("Evaluating the Search Phase of Neural Architecture Search", 2020, "https://arxiv.org/abs/1902.08142"),
)
def evaluate_search_phase(
    policies: Sequence[Policy],
    task: SearchTask,
    judge: Judge,
    seeds: int | Sequence[int] = SEEDS,
    executor: Executor | None = None,
    notebook: Notebook | None = None,
    reference: str = "random",
) -> dict[str, Any]:
    """Search with every policy under every seed, train each answer alone, and compare with random selection.

    Args:
        policies: the random policy is added if none is called ``reference``.
        task: what searches may use.
        judge: trains and judges what they found, alike for all.
        seeds: of the searches, or their number.
        executor: for searches and trainings.
        notebook: makes the study resumable.

    Returns:
        see :func:`search_phase_table`; the runs themselves are under ``"runs"``.

    Raises:
        UsageError: fewer than 2 seeds, a run without a result, or names or seeds that repeat.
    """
    count = seeds if isinstance(seeds, int) else len(seeds)
    if count < 2:
        raise UsageError(f"{count} seed(s): need >= 2 for a standard deviation, and {SEEDS} for a verdict.")
    named = {p.name for p in policies}
    everyone = [*policies] if reference in named else [*policies, random_policy(reference)]
    runs = run_policies(everyone, task, judge, seeds, executor, notebook)
    return {**search_phase_table(runs, reference), "runs": runs}


def search_phase_table(runs: Sequence[Runs], reference: str = "random", level: float = 0.95) -> dict[str, Any]:
    """Compare runs of policies with those of the random one, as JSON: ``rows``, ``random``, ``notes`` and ``text``.

    Each row is the report of :func:`~archipel.search.evaluation.compare.compare_to_random`, with all single results.

    Raises:
        UsageError: no policy of that name, different protocols, fewer than 2 runs, or a missing result.
    """
    by_name = {r.name: r for r in runs}
    if reference not in by_name:
        raise UsageError(f"No runs of the random policy {reference!r} among {list(by_name)}; nothing to compare with.")
    random = by_name.pop(reference)
    rows = [{**compare_to_random(r, random, level), "values": list(r.values)} for r in by_name.values()]
    notes = []
    if len(random.values) < SEEDS:
        notes.append(f"{len(random.values)} seeds; the paper's {SEEDS} detect what fewer may miss.")
    if len(rows) > 1:
        notes.append(f"{len(rows)} policies were tested: p-values are not corrected for that.")
    table = comparison_text(rows) if rows else f"only {reference}"
    return {
        "reference": reference,
        "rows": rows,
        "random": {**summary(random.checked()), "values": list(random.values)},
        "protocol_hash": random.protocol_hash,
        "notes": notes,
        "text": "\n".join([table, *notes]),
    }


# --- spaces that are known in full -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """True results of all architectures of a space; judges by lookup.

    Args:
        space: all of it is known.
        value: of an architecture; higher is better.
        population: value of every architecture ``[r_max]``, in any order.
        described: what to record about it.
    """

    space: Space
    value: Callable[[Arch], float]
    population: np.ndarray
    described: Mapping[str, Any] = field(default_factory=dict)
    instant = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "population", np.sort(ranking.checked(self.population, "the population", 2)))

    @classmethod
    def of_table(cls, table: Table, metric: str) -> Truth:
        """One metric of a tabular benchmark with a row for each architecture."""
        return cls(table.space, lambda arch: table.value(arch, metric), table.column(metric), {"metric": metric})

    @classmethod
    def of_values(cls, space: Space, values: Mapping[str, float], described: Mapping[str, Any] | None = None) -> Truth:
        """Measured values by canonical form; every architecture counts once in the population.

        Raises:
            UsageError: an architecture without a value.
        """
        keys = [space.canonical(a) for a in space.enumerate()]
        missing = [k for k in dict.fromkeys(keys) if k not in values]
        if missing:
            raise UsageError(
                f"{len(missing)} architectures of {space.name} have no true value (the first is {missing[0]}). Ranks "
                f"need the whole space: train them too."
            )
        return cls(space, lambda arch: values[space.canonical(arch)], np.array([values[k] for k in keys]),
                   described or {})  # fmt: skip

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {"truth": self.space.name, "architectures": len(self.population), **self.described}

    def __call__(self, arch: Arch, seed: int = 0) -> float:
        return self.value(arch)

    def ranks_from_worst(self, values: ranking.Values) -> tuple[np.ndarray, np.ndarray]:
        """Highest and mean rank of each value among ties, counted from the worst (1) to the best (r_max).

        Raises:
            UsageError: a value that no architecture has.
        """
        v = ranking.checked(values, "true values")
        below, upto = (np.searchsorted(self.population, v, side) for side in ("left", "right"))
        if (below == upto).any():
            raise UsageError(f"The value {v[below == upto][0]:g} is none of the population's {len(self.population)}.")
        return upto, (below + 1 + upto) / 2

    def percentiles(self, values: ranking.Values) -> np.ndarray:
        """(r - 1/2) / r_max; its mean over all architectures is exactly 1/2, with ties or without."""
        return (self.ranks_from_worst(values)[1] - 0.5) / len(self.population)


def expected_p_surpass(total: int, draws: int = 10) -> float:
    """Mean of (r / r_max)^n over all ranks, exactly: what a single random architecture is expected to score.

    >>> expected_p_surpass(2, 1), round(expected_p_surpass(15_625, 10) - 1 / 11, 6)
    (0.75, 3.2e-05)
    """
    if total < 1 or draws < 1:
        raise UsageError(f"Both the number of architectures and of draws must be positive, not {total} and {draws}.")
    return math.fsum(((np.arange(1, total + 1) / total) ** draws).tolist()) / total


def tabular_evaluation(
    runs: Sequence[Runs], truth: Truth, draws: int = 10, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """True ranks of what policies found, against what chance would give.

    Args:
        runs: with their architectures.
        draws: n of the probability to surpass random search.
        level, seed: of the bootstrap interval of the mean percentile.

    Returns:
        ``rows`` (one a policy), ``chance`` (the expectations for random architectures) and ``text``.

    Raises:
        UsageError: fewer than 2 runs, or runs without their architectures.
    """
    everyone = truth.percentiles(truth.population)
    top = truth.ranks_from_worst(truth.population)[0]
    chance = {
        "percentile": 0.5,
        "percentile_std": float(everyone.std()),
        "p_surpass": float(((top / len(top)) ** draws).mean()),
        "architectures": len(top),
        "draws": draws,
    }
    rows = [_tabular_row(r, truth, chance, level, seed) for r in runs]
    head = ["policy", "n", "percentile", f"{100 * level:g} % interval", "p(chance)", "p(> random)", "best rank"]
    text = [head, ["(chance)", "", "0.500", "", "", f"{chance['p_surpass']:.3f}", f"of {len(top)}"]]
    for r in rows:
        interval, best = "[{:.3f}, {:.3f}]".format(*r["interval"]), max(r["ranks_from_worst"])
        numbers = [f"{r['percentile']:.3f}", interval, f"{r['chance_p']:.3g}", f"{r['p_surpass']:.3f}", str(best)]
        text.append([r["policy"], str(r["n"]), *numbers])
    return {"rows": rows, "chance": chance, "text": text_table(text)}


def _tabular_row(runs: Runs, truth: Truth, chance: Mapping[str, Any], level: float, seed: int) -> dict[str, Any]:
    if len(runs.archs) < 2:
        raise UsageError(f"{runs.name}: {len(runs.archs)} architectures, need >= 2 for an interval. Use more seeds.")
    values = [truth(a) for a in runs.archs]
    percentiles = truth.percentiles(values)
    ranks = truth.ranks_from_worst(values)[0].tolist()
    interval = ranking.bootstrap_ci(percentiles, level=level, seed=seed)
    deviation = chance["percentile_std"] / math.sqrt(len(values))
    z = (percentiles.mean() - 0.5) / deviation if deviation else 0.0
    surpass = [ranking.p_surpass_random(r, chance["architectures"], chance["draws"]) for r in ranks]
    return {
        "policy": runs.name,
        "n": len(values),
        "true_value": summary(np.array(values)),
        "ranks_from_worst": ranks,
        "percentile": float(percentiles.mean()),
        "percentile_std": float(percentiles.std(ddof=1)),
        "interval": [interval.low, interval.high],
        "contains_chance": 0.5 in interval,
        # The mean of n uniform ranks is normal to a good approximation from n = 5 or so.
        "chance_p": float(2 * stats.norm.sf(abs(z))),
        "p_surpass": float(np.mean(surpass)),
        "expected_p_surpass": chance["p_surpass"],
    }
