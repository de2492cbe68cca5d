"""Claim: architecture and hyperparameters interact and short trainings mislead, so decide both together, on budgets.

Zela, Klein, Falkner, Hutter. Towards Automated Deep Learning: Efficient Joint Neural Architecture and Hyperparameter
Search. 2018. https://arxiv.org/abs/1807.06906

All searches spend 405 epochs, one round of Hyperband's brackets, on the same trainings; each budget is trained from
scratch with its own schedule. The separate search spends half on the architecture at default hyperparameters and half
on the winner's hyperparameters, both by the same optimiser; its default learning rate is what the grid tunes (the
other arms have nothing to tune). The arm "60 configurations" trains random ones on every budget, four times the
epochs of a search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

from archipel.claims.curves import SHAPE, TRAINING, Curves, curves
from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.core.decision import Arch
from archipel.core.space import Space
from archipel.search.analysis.fidelity import budget_rank_correlations
from archipel.search.analysis.importance import functional_anova
from archipel.search.blackbox.bohb_joint import BOHB
from archipel.search.blackbox.hyperband_search import Hyperband
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.joint import held
from archipel.search.simulator import simulate
from archipel.search.strategy import Problem, Strategy

BUDGETS, EPOCHS, CONFIGURATIONS = (1, 3, 9, 27), 405, 60
JOINT, HYPERBAND, RANDOM = "joint BOHB", "Hyperband", "random search"
SEPARATE, ALL = "separate BOHB", "60 configurations"
REGULARISERS = {"momentum": 0.9, "weight_decay": 1e-4, "dropout": 0.1}  # of the separate search's first half
HYPERPARAMETERS = (*TRAINING, "dropout")


def _bohb() -> BOHB:
    return BOHB(b_min=BUDGETS[0], form="floor", from_scratch=True)


def _search(table: Curves, space: Space, strategy: Strategy, epochs: int, seed: int) -> tuple[float, Arch, int]:
    """Best validation accuracy on the largest budget that succeeded, its configuration, and the full trainings."""
    problem = Problem(space, rng=Random(seed), max_resource=BUDGETS[-1])
    done = simulate(strategy, problem, table.from_scratch, seconds=1.0, horizon=epochs)
    budget = {t.id: t.resource or BUDGETS[-1] for t in done.trials if t.ok}
    best = max((t for t in done.trials if t.ok), key=lambda t: (budget[t.id], problem.score(t)))
    return problem.score(best), best.arch, list(budget.values()).count(BUDGETS[-1])


def _separate(table: Curves, lr: float, seed: int) -> tuple[float, Arch, int]:
    """Architecture first, at default hyperparameters; then the hyperparameters of what won."""
    first = held(table.space, lr=lr, **REGULARISERS)
    score, winner, trained = _search(table, first, _bohb(), EPOCHS // 2, seed)
    shape = {name: winner[name] for name in SHAPE if name not in HYPERPARAMETERS}
    second = _search(table, held(table.space, **shape), _bohb(), EPOCHS // 2, seed)
    return max((score, winner, trained + second[2]), (*second[:2], trained + second[2]), key=lambda found: found[0])


@lru_cache(maxsize=64)
def _found(arm: str, lr: float | None, seed: int) -> tuple[float, float, float]:
    """Validation accuracy, test accuracy and number of full trainings of one search."""
    table = curves(seed)
    if arm == SEPARATE:
        assert lr is not None
        score, arch, trained = _separate(table, lr, seed)
    else:
        full = Hyperband(b_min=BUDGETS[0], form="floor", from_scratch=True)
        strategy = {JOINT: _bohb(), HYPERBAND: full, RANDOM: RandomSearch()}[arm]
        score, arch, trained = _search(table, table.space, strategy, EPOCHS, seed)
    return score, table.test_accuracy(arch, BUDGETS[-1], f"claim bohb-joint, {arm}, seed {seed}"), float(trained)


@lru_cache(maxsize=64)
def _all_budgets(seed: int) -> dict[str, float]:
    """Rank correlations between budgets, and the importance of decisions on the full one."""
    table = curves(seed)
    archs = table.sample(CONFIGURATIONS, seed)
    scores_B = {b: [table.from_scratch(a, b)["accuracy"] for a in archs] for b in BUDGETS}
    ranked = {b: {n: -math.inf if s != s else s for n, s in enumerate(scores)} for b, scores in scores_B.items()}
    rho = budget_rank_correlations(ranked).rho
    full = [s for s in scores_B[BUDGETS[-1]] if s == s]
    parts = functional_anova(table.space, archs, scores_B[BUDGETS[-1]], seed=seed)
    return {
        "validation error": 1 - max(full),
        "diverged": float(len(archs) - len(full)),
        **{f"rho {k} apart": float(np.diagonal(rho, k).mean()) for k in (1, 2, 3)},
        "lr alone": parts.single["lr"],
        "shape x lr": parts.between(SHAPE, ["lr"]),
        "shape x training": parts.between(SHAPE, TRAINING),
        "forest r2": parts.r2,
    }


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """One search on one split, or all budgets of random configurations."""
    if arm == ALL:
        figures = _all_budgets(seed)
        return Measurement(1 - figures["validation error"], figures)
    validation, test, trained = _found(arm, setting["default_lr"] if arm == SEPARATE else None, seed)
    figures = {"validation error": 1 - validation, "test error": 1 - test, "full trainings": trained}
    return Measurement(validation, figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def _against(other: str, figure: str = "validation error") -> Any:
    """Whether the joint search's mean error is at most another's, with the paired difference."""

    def test(t: Table) -> tuple[bool, str]:
        gap = t.values(JOINT, figure) - t.values(other, figure)
        error = gap.std(ddof=1) / math.sqrt(len(gap))
        return bool(gap.mean() <= 0), (
            f"{figure}: joint {t.mean(JOINT, figure):.4f} ± {t.std(JOINT, figure):.4f}, {other} "
            f"{t.mean(other, figure):.4f} ± {t.std(other, figure):.4f}; paired difference {gap.mean():+.4f} ± "
            f"{error:.4f} (SE), lower in {(gap < 0).sum()} and equal in {(gap == 0).sum()} of {len(gap)} seeds"
        )

    return test


def far_budgets_disagree(t: Table) -> tuple[bool, str]:
    rho = [t.mean(ALL, f"rho {k} apart") for k in (1, 2, 3)]
    text = ", ".join(f"{k} apart {r:.3f} ± {t.std(ALL, f'rho {k} apart'):.3f}" for k, r in enumerate(rho, 1))
    return rho[0] > rho[1] > rho[2], f"Spearman's rho of budgets {text}"


def shape_and_training_interact(t: Table) -> tuple[bool, str]:
    names = ("shape x training", "shape x lr", "lr alone", "forest r2")
    text = ", ".join(f"{n} {t.mean(ALL, n):.3f} ± {t.std(ALL, n):.3f}" for n in names)
    return t.mean(ALL, "shape x training") > 0.05, text


CLAIM = Claim(
    slug="bohb-joint",
    statement="Architecture and hyperparameters are better searched jointly than one after the other; rankings on "
    "small budgets agree the less with those on large ones the farther apart the budgets are.",
    scale=f"Digits with noise 0.3 (600/600/597), perceptrons with 8 joint decisions, budgets of {BUDGETS} epochs, "
    f"{EPOCHS} epochs a search; rank correlations over {CONFIGURATIONS} random configurations.",
    arms=[
        ClaimArm(JOINT, "method"),
        ClaimArm(HYPERBAND, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(SEPARATE, "rival"),
        ClaimArm(ALL, "reference"),
    ],
    measure=measure,
    checks=[
        Check("Joint search ends at or below the separate search's validation error", _against(SEPARATE)),
        Check("Joint search ends at or below random search's validation error", _against(RANDOM)),
        Check("Budgets rank configurations the less alike the farther apart they are", far_budgets_disagree),
        Check("Joint search ends at or below Hyperband's validation error", _against(HYPERBAND), False),
        Check("The same against separate search in test error", _against(SEPARATE, "test error"), False),
        Check("The same against random search in test error", _against(RANDOM, "test error"), False),
        Check("Shape and training interact: over 5 % of the variance", shape_and_training_interact, False),
    ],
    grid=[{"default_lr": lr} for lr in (0.01, 0.03, 0.1)],
    seeds=8,
    code=(
        "archipel.claims.curves",
        "archipel.search.analysis.fidelity",
        "archipel.search.analysis.importance",
        "archipel.search.blackbox.hyperband_search",
        "archipel.search.hyperband",
        "archipel.search.joint",
        "archipel.search.simulator",
        "archipel.search.surrogates.kde",
        "archipel.search.training",
    ),
)
