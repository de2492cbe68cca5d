"""Claim: the models of an evolution follow patterns of its algorithm, which a cache of parent weights can use.

Underwood, Madhyastha, Burns, Nicolae. Understanding Patterns of Deep Learning Model Evolution in Network Architecture
Search. 2023. https://arxiv.org/abs/2309.12576

Nothing is trained and nothing tuned: fitness is looked up in the table of NAS-Bench-201, an evaluation lasts as long
as its cell has multiply-accumulates, and every policy of the cache replays the same recorded evolution. The untreated
arms are evolution without selection (S = 1) and without aging (the worst member leaves), the trivial one is random
search; the arm "pooled" fits the popularity of donors over all settings of a seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.search.analysis import donor_cache, lineage, popularity
from archipel.search.blackbox.evolution import RegularizedEvolution
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.simulator import simulate
from archipel.search.strategy import Problem, Strategy

EVALUATIONS, P, CAPACITIES, COALESCING = 2000, 100, (100, 25), 300
SAMPLES, WORKERS = (2, 10, 50), (1, 16)
ONE, MANY = ([f"S={S} W={W}" for S in SAMPLES] for W in WORKERS)
METHOD, NO_SELECTION, NO_AGING, RANDOM, POOLED = ONE[1], "S=1 W=1", "no aging", "random", "pooled"
SETTINGS = dict(zip(ONE + MANY, [(S, W) for W in WORKERS for S in SAMPLES])) | {NO_SELECTION: (1, 1)}


@lru_cache(maxsize=1)
def _truth() -> tuple[Any, dict[str, int], dict[str, int]]:
    """The table, and multiply-accumulates and bytes of each operation on one edge of all cells."""
    from archipel.search.tables import NB201Table
    from archipel.spaces.nb201 import NB201
    from archipel.spaces.nb201_codec import OPS, arch_of

    cost, cells = NB201().cost, {op: arch_of((op,) * 6) for op in OPS}
    macs = {op: cost.macs(a) // 6 for op, a in cells.items()}  # each with a sixth of what is outside the cells
    bare = cost.params(cells["none"])
    return NB201Table().only("accuracy"), macs, {op: 4 * (cost.params(a) - bare) // 6 for op, a in cells.items()}


def _run(strategy: Strategy, seed: int, workers: int) -> tuple[lineage.Lineage, float]:
    """A finished search on the virtual clock, and the best accuracy that it found."""
    table, macs, _ = _truth()
    problem = Problem(table.space, rng=Random(seed))
    done = simulate(
        strategy,
        problem,
        evaluate=lambda arch, epoch: table.evaluate(arch),
        seconds=lambda arch, epoch: sum(macs[op] for op in arch.values()) / 1e7,
        workers=workers,
        max_trials=EVALUATIONS,
    )
    return lineage.Lineage.from_simulation(done, problem), max(t.metrics["accuracy"] for t in done.trials)


@lru_cache(maxsize=128)
def _evolve(seed: int, sample: int, workers: int, remove: str = "oldest") -> tuple[lineage.Lineage, float]:
    return _run(RegularizedEvolution(P, sample, remove), seed, workers)


def _donors(history: lineage.Lineage) -> dict[str, float]:
    """Concentration of the requests and their rise and fall; also without aging."""
    rises = popularity.popularity(history, window=P)
    return {
        "donors": popularity.effective_number(np.bincount(popularity.donor_models(history))),
        "donor genomes": popularity.effective_number(rises.total),
        "gini": popularity.gini(rises.total),
        "peak": float(rises.peak.max()),
        "rise": float(rises.rise.mean()),
        "fall": float(rises.fall.mean()),
        "oldest donor": float(lineage.donor_age(history).max()),
        "repeats": float(lineage.repeats(history).mean()),
    }


def _patterns(history: lineage.Lineage) -> dict[str, float]:
    """What is defined under aging: lineages, staleness, caches and shared layers."""
    sizes, requests = _truth()[2], history.requests
    out = {
        "founders": float(lineage.surviving_founders(history, P)[COALESCING - 1]),
        "stale": float(lineage.staleness(history).mean()),
        "donor gone": float(lineage.donor_gone(history, P).sum() / len(requests)),
        "prefix": float(lineage.structure_change(history).prefix[requests].mean()),
    }
    layers = donor_cache.layer_bytes(history, lambda name, op: sizes[str(op)])
    for shared in ("unchanged", "prefix"):
        _, first = np.unique(donor_cache.layer_versions(history, shared), return_index=True)
        out[f"stored {shared}"] = float(layers.ravel()[first].sum() / layers.sum())
    for capacity in CAPACITIES:
        rates = donor_cache.hit_rates(history, [capacity], P)
        out |= {f"{policy}@{capacity}": rate for policy, (rate,) in rates.items()}
    return out


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """One recorded evolution and all that is read off it; for "pooled" the fit over all its settings."""
    if arm == RANDOM:
        history, best = _run(RandomSearch(), seed, workers=1)
        return Measurement(best, {"best": best, "repeats": float(lineage.repeats(history).mean())})
    if arm == POOLED:
        runs = [(_evolve(seed, *SETTINGS[a]), *SETTINGS[a]) for a in ONE + MANY]
        fit = popularity.regress_popularity([popularity.Arm(h, P, S, W) for (h, _), S, W in runs], window=P)
        slopes = {f"peak/sd {f}": float(c) for f, c in zip(fit.factors, fit.coefficient)}
        best = max(b for (_, b), _, _ in runs)
        return Measurement(best, {"best": best, "r2": fit.r2, **slopes})
    if arm == NO_AGING:
        history, best = _evolve(seed, 10, 1, "worst")
        return Measurement(best, {"best": best, **_donors(history)})
    history, best = _evolve(seed, *SETTINGS[arm])
    return Measurement(best, {"best": best, **_donors(history), **_patterns(history)})


# --- checks -----------------------------------------------------------------------------------------------------------


def _means(t: Table, figure: str, arms: Sequence[str] = ONE) -> str:
    return f"{figure} " + ", ".join(f"{t.mean(a, figure):.4g} ± {t.std(a, figure):.2g} ({a})" for a in arms)


def concentrates(t: Table) -> tuple[bool, str]:
    figures = ("donors", "donor genomes", "founders")
    falls = [t.mean(a, f) > t.mean(b, f) for f in figures for a, b in pairwise(ONE)]
    return all(falls), "; ".join(_means(t, f) for f in figures)


def never_misses(t: Table) -> tuple[bool, str]:
    alive, fifo, lru = (np.array([t.values(a, f"{p}@{P}") for a in ONE]) for p in ("alive", "fifo", "lru"))
    text = f"worst alive {alive.min():.4f}, worst fifo {fifo.min():.4f}; " + _means(t, f"lru@{P}")
    return bool((alive == 1).all() and (fifo == 1).all() and (lru < 1).all()), text


def layers_shared(t: Table) -> tuple[bool, str]:
    return max(t.mean(a, "stored unchanged") for a in ONE) < 1 / 3, _means(t, "stored unchanged")


def _apart(t: Table, other: str, figure: str) -> tuple[bool, str]:
    """Whether an arm differs from the method by more than three standard errors, paired by seed."""
    gap = t.values(METHOD, figure) - t.values(other, figure)
    error = gap.std(ddof=1) / math.sqrt(len(gap))
    return bool(abs(gap.mean()) > 3 * error), f"{figure}, evolution minus {other}: {gap.mean():.4g} ± {error:.2g} (SE)"


def controls_differ(t: Table) -> tuple[bool, str]:
    aging, staying = t.values(METHOD, "oldest donor"), t.values(NO_AGING, "oldest donor")
    pairs = [_apart(t, NO_AGING, "donors"), _apart(t, RANDOM, "repeats")]
    text = f"oldest donor at most {aging.max():.0f} with aging, at least {staying.min():.0f} without"
    holds = bool((aging <= P).all() and (staying > P).all()) and all(differs for differs, _ in pairs)
    return holds, "; ".join([text, *(x for _, x in pairs)])


def workers_lose_donors(t: Table) -> tuple[bool, str]:
    one, many = (np.array([t.values(a, "donor gone") for a in arms]) for arms in (ONE, MANY))
    return bool((one == 0).all() and (many > 0).all()), _means(t, "donor gone", ONE + MANY)


def rank_makes_popular(t: Table) -> tuple[bool, str]:
    slopes = [f"peak/sd {f}" for f in popularity.FACTORS]
    return bool((t.values(POOLED, slopes[0]) < 0).all()), "; ".join(_means(t, s, [POOLED]) for s in [*slopes, "r2"])


def quarter_capacity(t: Table) -> tuple[bool, str]:
    lru_wins = all(t.mean(a, "lru@25") > t.mean(a, "alive@25") for a in ONE[1:])
    return lru_wins, "; ".join(_means(t, f"{p}@25") for p in donor_cache.POLICIES)


def best_alive_as_derived(t: Table) -> tuple[bool, str]:
    derived = [donor_cache.best_alive_hit_rate(P, S, 25) for S in SAMPLES]
    seen = [t.values(a, "best-alive@25") for a in ONE]
    errors = [math.sqrt(d * (1 - d) / (len(s) * (EVALUATIONS - P))) for s, d in zip(seen, derived)]  # binomial
    close = [abs(s.mean() - d) <= 3 * e for s, d, e in zip(seen, derived, errors)]
    text = ", ".join(f"{d:.4f} ± {e:.2g} (SE)" for d, e in zip(derived, errors))
    return all(close), f"{_means(t, 'best-alive@25')}; derived {text}"


def beats_random(t: Table) -> tuple[bool, str]:
    return t.mean(METHOD, "best") > t.mean(RANDOM, "best"), _means(t, "best", [*SETTINGS, NO_AGING, RANDOM])


CLAIM = Claim(
    slug="nas-evolution-patterns",
    statement="Regularized evolution shows patterns that its algorithm makes: donors become popular and fade under "
    "known conditions, many workers change this, and caches and schedulers can use it.",
    scale=f"NAS-Bench-201's table of CIFAR-10 accuracies, {EVALUATIONS} evaluations, P = {P}, S in {SAMPLES}, "
    f"W in {WORKERS} workers on a virtual clock.",
    arms=[
        ClaimArm(METHOD, "method"),
        *(ClaimArm(a, "method") for a in SETTINGS if a not in (METHOD, NO_SELECTION)),
        ClaimArm(NO_SELECTION, "untreated"),
        ClaimArm(NO_AGING, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(POOLED, "reference"),
    ],
    measure=measure,
    checks=[
        Check("A larger S means fewer effective donors and a faster loss of founders", concentrates),
        Check("With one worker, caching the population (or P models by FIFO) never misses; LRU does", never_misses),
        Check("Sharing unchanged layers stores all models in less than a third of their bytes", layers_shared),
        Check("Evolution without aging and random search show other patterns", controls_differ),
        Check("With 16 workers, and never with one, children return after their donor left", workers_lose_donors),
        Check("Genomes that enter at a better rank peak higher, in every seed", rank_makes_popular),
        Check("With room for P / 4, LRU beats caching the population for S of 10 and 50", quarter_capacity, False),
        Check("Caching the P / 4 best hits as often as derived", best_alive_as_derived, False),
        Check("Evolution finds a better cell than random search", beats_random, False),
    ],
    seeds=10,
    code=(
        "archipel.search.analysis.donor_cache",
        "archipel.search.analysis.lineage",
        "archipel.search.analysis.popularity",
        "archipel.search.simulator",
        "archipel.search.tables",
    ),
)
