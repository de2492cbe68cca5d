"""Claim: an actor that climbs a critic of the upper tail finds better architectures than chance, and transfers.

Mills, Han, Salameh, Changiz Rezaei, Kong, Lu, Lian, Jui, Niu. L²NAS: Learning to Optimize Neural Architectures via
Continuous-Action Reinforcement Learning. 2021. https://arxiv.org/abs/2109.12425

A synthetic table over the 15,625 cells of six edges with five operations:

    z(a) = Σ_e u_e[a_e] + Σ_{e<e'} v_ee'[a_e, a_e'],   u ~ N(0, 1), v ~ N(0, 1/4), standardised over all cells
    accuracy(a) = 0.5 + 0.4 sigmoid(z / 2)

one table for all seeds. Regret is the best accuracy of the table minus the best found in 500 queries. Transfer is to a
table with z + z'/5, for 100 queries, ε falling in the first five; cold is a new learner with as many. Nothing is tuned.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from functools import lru_cache, partial
from random import Random
from typing import Any

import numpy as np
import torch

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import spread
from archipel.core.decision import Arch, Decision
from archipel.core.space import Space
from archipel.search.blackbox.evolution import RegularizedEvolution
from archipel.search.blackbox.nasnet import PolicyGradientSearch
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.differentiable.actor_critic_settings import Settings
from archipel.search.differentiable.l2nas_trials import L2NASQueries
from archipel.search.strategy import Problem, Strategy

QUANTILE, SQUARED = "L²NAS, tau=0.9", "L²NAS, squared errors"
RANDOM, EVOLUTION, REINFORCE = "random", "evolution", "REINFORCE"
L2NAS, ARMS = (QUANTILE, SQUARED), (QUANTILE, SQUARED, RANDOM, EVOLUTION, REINFORCE)
E, K = 6, 5
QUERIES, TRANSFER, FALL = 500, 100, 5
AT = (100, 250)  # queries at which regret is reported, too
CELLS = np.array(list(itertools.product(range(K), repeat=E)))


def _scores(seed: int) -> np.ndarray:
    """z of all cells ``[15625]``, standardised."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(E, K))[np.arange(E), CELLS].sum(1)
    for e, f in itertools.combinations(range(E), 2):
        z += rng.normal(scale=0.5, size=(K, K))[CELLS[:, e], CELLS[:, f]]
    return _standardised(z)


def _standardised(z: np.ndarray) -> np.ndarray:
    return (z - z.mean()) / z.std()


@lru_cache(maxsize=2)
def _table(transferred: bool = False) -> np.ndarray:
    """Accuracies of all cells, or of the related task."""
    z = _standardised(_scores(0) + 0.2 * _scores(1)) if transferred else _scores(0)
    return 0.5 + 0.4 / (1 + np.exp(-z / 2))


def _space() -> Space:
    return Space([Decision(f"e{i}", list(range(K))) for i in range(E)])


def _accuracy(table: np.ndarray, arch: Arch) -> float:
    return float(table[int(np.ravel_multi_index([arch[f"e{i}"] for i in range(E)], (K,) * E))])


def _strategy(arm: str) -> Strategy:
    if arm in L2NAS:
        return L2NASQueries(Settings(tau=0.9 if arm == QUANTILE else None), queries=QUERIES)
    if arm == REINFORCE:
        return PolicyGradientSearch(batch=5, lr=1e-2, rule="reinforce")  # 100 updates
    return RandomSearch() if arm == RANDOM else RegularizedEvolution()


def _run(strategy: Strategy, table: np.ndarray, queries: int, seed: int) -> np.ndarray:
    """The regret after each query ``[queries]``."""
    strategy.setup(Problem(_space(), rng=Random(seed), trials=queries))
    found = []
    for _ in range(queries):
        trial = strategy.ask()
        assert trial is not None  # nothing is pending
        trial.metrics = {"accuracy": _accuracy(table, trial.arch)}
        found.append(trial.metrics["accuracy"])
        strategy.tell(trial)
    return table.max() - np.maximum.accumulate(found)


def _transferred(strategy: L2NASQueries, seed: int) -> dict[str, float]:
    """Regret on the related table of a learner that knows the first, and of one that knows nothing."""
    out = {}
    for name, warm in (("warm", strategy.learner), ("cold", None)):
        search = L2NASQueries(strategy.settings, queries=TRANSFER, explore=FALL, warm=warm)
        out[name] = float(_run(search, _table(True), TRANSFER, seed)[-1])
    return out


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """Regrets of one search."""
    torch.set_num_threads(1)
    table, strategy = _table(), _strategy(arm)
    began = time.thread_time()
    regret = _run(strategy, table, QUERIES, seed)
    figures = {"regret": float(regret[-1]), "ms": 1e3 * (time.thread_time() - began) / QUERIES}
    figures |= {f"regret at {q}": float(regret[q - 1]) for q in AT if q <= QUERIES}
    if isinstance(strategy, L2NASQueries):
        report = strategy.learner.report()
        for who in ("actor", "random"):
            figures[f"regret of {who} proposals"] = float(table.max()) - report[f"best by {who}"]
        figures["regret of the actor's answer"] = float(table.max()) - _accuracy(table, report["actor"])
        figures["repeats"] = float(report["repeats"])
        if arm == QUANTILE:
            figures |= _transferred(strategy, seed)
    return Measurement(-float(regret[-1]), figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def beats(other: str, t: Table) -> tuple[bool, str]:
    """In most seeds, paired; ties count for neither."""
    ours, theirs = t.values(QUANTILE, "regret"), t.values(other, "regret")
    won, lost = int((ours < theirs).sum()), int((ours > theirs).sum())
    text = f"{won} seeds won, {lost} lost of {len(ours)}; {spread(t, QUANTILE, 'regret')}, {spread(t, other, 'regret')}"
    return won > len(ours) / 2, text


def quantile_helps(t: Table) -> tuple[bool, str]:
    holds = t.mean(QUANTILE, "regret") <= t.mean(SQUARED, "regret")
    return holds, ", ".join(spread(t, a, "regret") for a in L2NAS)


def transfers(t: Table) -> tuple[bool, str]:
    """Warm is at most cold in most seeds."""
    warm, cold = t.values(QUANTILE, "warm"), t.values(QUANTILE, "cold")
    better = int((warm <= cold).sum())
    return better > len(warm) / 2, f"{better} of {len(warm)} seeds; warm {warm.mean():.4f}, cold {cold.mean():.4f}"


def actor_finds_it(t: Table) -> tuple[bool, str]:
    """The actor's proposals are better on average than the random ones before and between them."""
    names = [f"regret of {who} proposals" for who in ("actor", "random")]
    actor, chance = (t.mean(QUANTILE, n) for n in names)
    answer = t.mean(QUANTILE, "regret of the actor's answer")
    return actor < chance, f"actor {actor:.4f}, random {chance:.4f}; the actor's last answer {answer:.4f}"


def first_of_all(t: Table) -> tuple[bool, str]:
    holds = all(t.mean(QUANTILE, "regret") <= t.mean(a, "regret") for a in ARMS)
    texts = [f"at {q}: " + ", ".join(f"{a} {t.mean(a, f'regret at {q}'):.4f}" for a in ARMS) for q in AT]
    return holds, ", ".join(spread(t, a, "regret") for a in ARMS) + "; " + "; ".join(texts)


def time_of_a_query(t: Table) -> tuple[bool, str]:
    """Below 50 ms, which is nothing beside training a network."""
    return t.mean(QUANTILE, "ms") < 50, ", ".join(f"{a} {t.mean(a, 'ms'):.2f} ms" for a in ARMS)


CLAIM = Claim(
    slug="l2nas",
    statement="An actor that ascends a quantile critic finds better architectures than random search and than with a "
    "critic of the mean, and what it learnt helps on a related task.",
    scale=f"A synthetic table of 15,625 cells; {QUERIES} queries, {TRANSFER} on the related table.",
    arms=[
        ClaimArm(QUANTILE, "method"),
        ClaimArm(SQUARED, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(EVOLUTION, "rival"),
        ClaimArm(REINFORCE, "rival"),
    ],
    measure=measure,
    checks=[
        Check("It has less regret than random search in most seeds", partial(beats, RANDOM)),
        Check("The quantile critic is at least as good as squared errors on average", quantile_helps),
        Check("A warm learner is at least as good as a cold one on the related table in most seeds", transfers),
        Check("The actor's proposals are better than the random ones", actor_finds_it),
        Check("It has less regret than evolution in most seeds", partial(beats, EVOLUTION), False),
        Check("It has less regret than REINFORCE in most seeds", partial(beats, REINFORCE), False),
        Check("No arm has less regret on average", first_of_all, False),
        Check("A query costs less than 50 ms of the learner", time_of_a_query, False),
    ],
    seeds=10,
    code=(
        "archipel.search.differentiable.actor_critic",
        "archipel.search.differentiable.actor_critic_settings",
        "archipel.search.differentiable.l2nas_trials",
    ),
)
