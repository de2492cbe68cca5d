"""Claim: a search policy must be judged against random selection, and shared weights disorder the ranking.

Yu, Sciuto, Jaggi, Musat, Salzmann. Evaluating the Search Phase of Neural Architecture Search. 2020.
https://arxiv.org/abs/1902.08142

Two spaces that are known in full. A residual perceptron of three layers with four operations each (64 networks), each
trained alone under three seeds on noisy digits: policies are judged by its true ranks, and scores by shared weights
compared with them, beside those of short trainings alone. And the 15,625 cells of NAS-Bench-201, where whole studies of
ten searches against ten random ones are repeated: does the protocol see a planted policy that is good (the best of ten
random cells by a slightly noisy truth), and does it leave one alone that is random itself? There, evolution looks the
truth up. Nothing is tuned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import lru_cache, partial
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.core.choice import Choice
from archipel.core.decision import Arch
from archipel.data.load import load
from archipel.search import metrics as ranking
from archipel.search.blackbox.evolution import RegularizedEvolution
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.schedule import Schedule
from archipel.search.evaluation.compare import compare_to_random
from archipel.search.evaluation.eval_nas import SEEDS, Truth, evaluate_search_phase, tabular_evaluation
from archipel.search.evaluation.judging import EVALUATION_SEEDS, StandAlone, judge_grid
from archipel.search.evaluation.policies import (
    Found,
    Policy,
    SearchTask,
    random_policy,
    start_strategy,
    strategy_policy,
)
from archipel.search.evaluation.runs import Runs
from archipel.search.evaluation.weight_sharing import rank_disorder
from archipel.search.oneshot.spos import SPOS
from archipel.search.tables import NB201Table
from archipel.search.training import Recipe
from archipel.spaces.module_space import ModuleSpace

SHARED, GRADIENT, ALONE = "SPOS", "DARTS", "evolution, trained alone"
RANDOM, AGAIN, PLANTED = "random", "random again", "planted"
LAYERS, WIDTH, TRUTH_SEEDS = 3, 24, 3
RECIPE, SHORT = Recipe(epochs=15, batch_size=40), Recipe(epochs=4, batch_size=40)
TRIALS, DRAWS, NOISE = 16, 10, 0.1  # candidates of an evolution, of the planted policy; its noise in spreads of truth
REPEATS, ALPHA = 5, 0.05  # studies on NAS-Bench-201 for each seed: 50 over ten seeds
EVOLUTION = partial(RegularizedEvolution, population=8, sample=3)
SUPERNET = partial(SPOS, epochs=60, population=16, generations=3, crossover=8, mutation=8, calibration=400)
SOFTMAX = partial(darts, 1, schedule=Schedule(epochs=30, batch_size=40, alpha_lr=1e-2))


class _Block(nn.Module):
    """``x + op(norm(x))``, with one of four operations; ``[B, WIDTH] -> [B, WIDTH]``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.op = Choice(name, {
            "relu": nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
            "tanh": nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
            "narrow": nn.Sequential(nn.Linear(WIDTH, WIDTH // 4), nn.ReLU(), nn.Linear(WIDTH // 4, WIDTH)),
            "wide": nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH)),
        })  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.op(self.norm(x))


def _net() -> nn.Module:
    blocks = [_Block(f"op{i}") for i in range(LAYERS)]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), *blocks, nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 10))


@lru_cache(maxsize=1)
def _host() -> tuple[SearchTask, list[Arch]]:
    """What searches may use, and all architectures."""
    space = ModuleSpace(_net, torch.zeros(2, 1, 8, 8), name="residual-mlp")
    return SearchTask(space, load("noisy-digits", noise=0.25), SHORT), list(space.enumerate())


@lru_cache(maxsize=1)
def _truth() -> tuple[Truth, np.ndarray]:
    """Mean test accuracy of every architecture trained alone, and the single results ``[S, K]``."""
    task, archs = _host()
    judge = StandAlone.on(load("noisy-digits", noise=0.25), task.space, RECIPE, purpose="truth of the claim")
    alone = judge_grid(judge, archs, TRUTH_SEEDS).T
    values = {task.space.canonical(a): float(v) for a, v in zip(archs, alone.mean(0))}
    return Truth.of_values(task.space, values, judge.protocol), alone


@lru_cache(maxsize=16)
def _short(seed: int) -> dict[str, float]:
    """Validation accuracy of every architecture after a short training alone, by canonical form."""
    task, archs = _host()
    return {task.space.canonical(a): task.evaluate(a, seed) for a in archs}


@lru_cache(maxsize=1)
def _cells() -> tuple[SearchTask, Truth]:
    table = NB201Table().only("accuracy")
    return SearchTask(table.space, table=lambda a: table.value(a, "accuracy")), Truth.of_table(table, "accuracy")


def _planted(truth: Truth) -> Policy:
    def choose(task: SearchTask, rng: Random, seed: int) -> Found:
        drawn = [task.space.sample(rng) for _ in range(DRAWS)]
        noise = NOISE * float(truth.population.std())
        return Found(max(drawn, key=lambda a: truth(a) + rng.gauss(0.0, noise)), DRAWS)

    return Policy(PLANTED, choose, {"draws": DRAWS, "noise": NOISE})


def _policy(arm: str, truth: Truth) -> Policy:
    if arm == ALONE:
        return strategy_policy(arm, EVOLUTION, TRIALS)
    return _planted(truth) if arm == PLANTED else random_policy(arm)


def _studies(arm: str, seed: int) -> dict[str, float]:
    """Repeated studies on NAS-Bench-201 of ten searches by a policy against ten random architectures."""
    task, truth = _cells()
    rows = []
    for r in range(REPEATS):
        start = (seed * REPEATS + r) * SEEDS
        study = evaluate_search_phase([_policy(arm, truth)], task, truth, range(start, start + SEEDS))
        found = next(x for x in study["runs"] if x.name == arm)
        ranks = tabular_evaluation([found], truth)["rows"][0]
        p = study["rows"][0]["mann_whitney_p"]
        rows.append({"cells: percentile": ranks["percentile"], "cells: p(> random)": ranks["p_surpass"],
                     "cells: flagged": float(p < ALPHA)})  # fmt: skip
    return {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}


def _search(arm: str, seed: int) -> tuple[Arch, np.ndarray | None]:
    """The answer of a policy on the host, and its scores of all architectures if it ranks them."""
    task, archs = _host()
    if arm == ALONE:
        scores = _short(seed)
        looked_up = SearchTask(task.space, recipe=SHORT, table=lambda a: scores[task.space.canonical(a)])
        ranked = np.array([scores[task.space.canonical(a)] for a in archs])
        return _policy(arm, _truth()[0]).search(looked_up, seed).arch, ranked
    if arm not in (SHARED, GRADIENT):
        return _policy(arm, _truth()[0]).search(task, seed).arch, None
    strategy = start_strategy(SUPERNET if arm == SHARED else SOFTMAX, task, Random(f"{arm}/{seed}"), seed)
    trial = strategy.ask()
    assert trial is not None  # both have trained their supernet, and propose
    return trial.arch, np.array(strategy.shared_scores(archs)) if arm == SHARED else None


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """One search on the host, judged by the truth; and for policies that need no weights, studies on NAS-Bench-201."""
    torch.set_num_threads(1)
    truth, alone = _truth()
    arch, scores = _search(arm, seed)
    figures = {"test": truth(arch), "percentile": float(truth.percentiles([truth(arch)])[0])}
    if scores is not None:
        disorder = rank_disorder(scores, alone)
        pairs = [ranking.kendall_tau(a, b) for a, b in itertools.combinations(alone, 2)]
        figures |= {"tau": disorder["tau"], "tau single": disorder["tau_single"], "ceiling": disorder["ceiling"],
                    "lowest pair": min(pairs), "std of truth": float(alone.mean(0).std(ddof=1))}  # fmt: skip
    if arm not in (SHARED, GRADIENT, RANDOM):
        figures |= _studies(arm, seed)
    return Measurement(_short(seed)[_host()[0].space.canonical(arch)], figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def planted_is_seen(t: Table) -> tuple[bool, str]:
    share = t.mean(PLANTED, "cells: flagged")
    n = REPEATS * len(t.values(PLANTED, "test"))
    percentile = t.mean(PLANTED, "cells: percentile")
    return share >= 0.8 and percentile > 0.5, f"{share:.2f} of {n} studies, mean percentile {percentile:.3f}"


def random_is_left_alone(t: Table) -> tuple[bool, str]:
    share = t.mean(AGAIN, "cells: flagged")
    n = REPEATS * len(t.values(AGAIN, "test"))
    return share <= 0.1, f"{share:.2f} of {n} studies, mean percentile {t.mean(AGAIN, 'cells: percentile'):.3f}"


def below_ceiling(t: Table) -> tuple[bool, str]:
    """Single supernets against single trainings, below even the lowest correlation of two trainings."""
    taus, low = t.values(SHARED, "tau single"), t.mean(SHARED, "lowest pair")
    error = float(taus.std(ddof=1)) / math.sqrt(len(taus))
    numbers = f"tau {taus.mean():.3f} ± {taus.std(ddof=1):.3f} (SE {error:.3f}), ceiling "
    return bool(taus.mean() + 2 * error < low), numbers + f"{t.mean(SHARED, 'ceiling'):.3f} (lowest pair {low:.3f})"


def sharing_costs(t: Table) -> tuple[bool, str]:
    return t.mean(SHARED, "tau") < t.mean(ALONE, "tau"), "; ".join(
        f"{a} {t.mean(a, 'tau'):.3f} ± {t.std(a, 'tau'):.3f}" for a in (SHARED, ALONE)
    )


def near_zero(t: Table) -> tuple[bool, str]:
    tau, std = t.mean(SHARED, "tau single"), t.mean(SHARED, "std of truth")
    return abs(tau) < 0.2, f"tau {tau:.3f}; standard deviation of the true accuracies {std:.4f}"


def _against_random(t: Table, arm: str) -> dict[str, Any]:
    """The report on a policy's ten searches on the host."""
    seeds = range(len(t.values(arm, "test")))
    protocol, later = {"judge": "truth of the residual perceptron"}, [EVALUATION_SEEDS + s for s in seeds]
    policy, random = (
        Runs(a, t.values(a, "test").tolist(), protocol, "residual-mlp", seeds, later) for a in (arm, RANDOM)
    )
    return compare_to_random(policy, random)


def no_better(arm: str, t: Table) -> tuple[bool, str]:
    row, percentiles = _against_random(t, arm), t.values(arm, "percentile")
    p = ranking.bootstrap_ci(percentiles)
    means = f"{row['results']['mean']:.4f} ± {row['results']['std']:.4f} against {row['random']['mean']:.4f} ± "
    means += f"{row['random']['std']:.4f} (Mann-Whitney p {row['mann_whitney_p']:.3g}, {row['verdict']})"
    return 0.5 in p, f"percentile {percentiles.mean():.3f} [{p.low:.3f}, {p.high:.3f}]; {means}"


CLAIM = Claim(
    slug="eval-nas",
    statement="Comparing searches with random selection over seeds tells good from random policies, of which many "
    "published ones are not clearly better; scores by shared weights do not reflect true ranks.",
    scale=f"64 residual perceptrons on noisy digits (sigma .25), {RECIPE.epochs} epochs alone under {TRUTH_SEEDS} "
    f"seeds; supernets of 60 epochs; short trainings of {SHORT.epochs}. NAS-Bench-201: 50 studies of {SEEDS} seeds.",
    arms=[
        ClaimArm(SHARED, "method"),
        ClaimArm(ALONE, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(AGAIN, "trivial"),
        ClaimArm(GRADIENT, "rival"),
        ClaimArm(PLANTED, "reference"),
    ],
    measure=measure,
    checks=[
        Check("A planted good policy is told from random in at least 80 % of studies", planted_is_seen),
        Check("A random policy is told from random in at most 10 % of studies", random_is_left_alone),
        Check("Shared weights rank worse than the truth's noise allows", below_ceiling),
        Check("Shared weights rank worse than short trainings alone", sharing_costs, False),
        Check("The correlation of shared weights with the truth is near 0 (below .2)", near_zero, False),
        Check("SPOS: the interval of the mean percentile contains .5", partial(no_better, SHARED), False),
        Check("DARTS: the interval of the mean percentile contains .5", partial(no_better, GRADIENT), False),
        Check("Evolution without sharing: its interval contains .5", partial(no_better, ALONE), False),
        Check("Planted, on the perceptrons: its interval contains .5", partial(no_better, PLANTED), False),
        Check("Random again, on the perceptrons: its interval contains .5", partial(no_better, AGAIN), False),
    ],
    seeds=SEEDS,
    code=(
        "archipel.search.evaluation.compare",
        "archipel.search.evaluation.judging",
        "archipel.search.evaluation.policies",
        "archipel.search.evaluation.weight_sharing",
        "archipel.search.metrics",
        "archipel.search.oneshot.spos",
        "archipel.search.oneshot.supernet_training",
    ),
)
