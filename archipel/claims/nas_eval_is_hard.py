"""Claim: judged by its improvement over the average architecture, a search is hard to tell from random.

Yang, Esperanca, Carlucci. NAS evaluation is frustratingly hard. 2020. https://arxiv.org/abs/1912.12522

A seed is a run: every arm's run s trains one architecture on noisy digits and tests it once. The arms of the protocol
(a second seed, one training trick each, fewer cells) train the same twelve random architectures as the arm "random";
"random again" trains twelve others, and SPOS what it found. Relative improvements, spreads and rank correlations are
read off the table of results. How often the interval of random against random contains 0 is also counted with the
paper's eight runs a side, on accuracies drawn from NAS-Bench-201. Nothing is tuned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.core.errors import UsageError
from archipel.data.load import load
from archipel.search.evaluation.compare import ENOUGH_RUNS
from archipel.search.evaluation.judging import EVALUATION_SEEDS, StandAlone
from archipel.search.evaluation.ladder import Network, Strength, random_architectures, with_tricks
from archipel.search.evaluation.nas_eval_is_hard import benchmark, depth_study, seed_study
from archipel.search.evaluation.policies import SearchTask, strategy_policy
from archipel.search.evaluation.runs import Runs
from archipel.search.metrics import relative_improvement
from archipel.search.oneshot.spos import SPOS
from archipel.search.tables import NB201Table
from archipel.search.training import Recipe
from archipel.spaces.sharing import cell_space

METHOD, RANDOM, AGAIN, RESEEDED, SHALLOW = "SPOS", "random", "random again", "second seed", "one cell"
TRICKS = {"cutout": ("cutout",), "longer": ("longer",), "wider": ("wider",)}
STRENGTH = Strength()  # the paper's: half of the side, 600 to 1500 epochs, 36 to 50 channels
RUNS, REPEATS = 12, 25  # runs of each arm; random comparisons on NAS-Bench-201 for each of them
RECIPE = Recipe(epochs=6, batch_size=40)
NETWORK = Network(
    cell_space, {"input_shape": (1, 8, 8), "classes": 10, "channels": 8, "cells": 3, "kernels": (1, 3, 5)}
)
SUPERNET = partial(SPOS, epochs=20, population=16, generations=3, crossover=8, mutation=8, calibration=400)


@lru_cache(maxsize=8)
def _judge(arm: str) -> StandAlone:
    """Trains alone by the arm's protocol."""
    network = NETWORK.changed(cells=1) if arm == SHALLOW else NETWORK
    data = load("noisy-digits", noise=0.25)
    base = StandAlone.on(data, network.space(), RECIPE, purpose=f"claim, {arm}", network=network.recorded())
    return with_tricks(base, network, TRICKS[arm], STRENGTH) if arm in TRICKS else base


@lru_cache(maxsize=1)
def _cells() -> np.ndarray:
    return NB201Table().column("accuracy")


def _intervals(seed: int) -> dict[str, float]:
    """How often intervals of random against random contain 0, for draws of eight cells of NAS-Bench-201 a side."""
    rng = np.random.default_rng(seed)
    pairs = rng.choice(_cells(), (REPEATS, 2, ENOUGH_RUNS))
    found = [relative_improvement(m, r, draws=1_000, seed=seed) for m, r in pairs]
    return {f"{kind} contains 0": float(np.mean([0.0 in getattr(ri, kind) for ri in found]))
            for kind in ("bootstrap", "welch")}  # fmt: skip


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """Test accuracy of the arm's architecture of this run, trained by its protocol; no score to tune by is needed."""
    torch.set_num_threads(1)
    space = NETWORK.space()
    if arm == METHOD:
        task = SearchTask(space, load("noisy-digits", noise=0.25), RECIPE)
        arch = strategy_policy(METHOD, SUPERNET).search(task, seed).arch
    else:
        arch = random_architectures(space, seed + 2, seed=int(arm == AGAIN))[seed]  # the same first ones, however many
    offset = 1_000 if arm == RESEEDED else 0
    figures = {"test": _judge(arm)(arch, EVALUATION_SEEDS + seed + offset)}
    return Measurement(0.0, figures | (_intervals(seed) if arm == AGAIN else {}))


# --- checks -----------------------------------------------------------------------------------------------------------


def _runs(t: Table, arm: str) -> Runs:
    values = t.values(arm, "test").tolist()
    seeds = range(len(values))
    return Runs(arm, values, _judge(arm).protocol, "cells", seeds, [EVALUATION_SEEDS + s for s in seeds])


def _improvement(t: Table, arm: str) -> tuple[dict[str, Any], str]:
    row = benchmark([(_runs(t, arm), _runs(t, RANDOM))])["rows"][0]
    low, high = row["bootstrap_interval"]
    text = f"RI {row['relative_improvement_percent']:+.2f} %, bootstrap [{low:+.2f}, {high:+.2f}]"
    return row, text + ", Welch [{:+.2f}, {:+.2f}]".format(*row["welch_interval"])


def random_is_zero(t: Table) -> tuple[bool, str]:
    row, text = _improvement(t, AGAIN)
    low, high = row["bootstrap_interval"]
    return low <= 0.0 <= high, text


def intervals_cover(t: Table) -> tuple[bool, str]:
    share = t.mean(AGAIN, "bootstrap contains 0")
    n = REPEATS * len(t.values(AGAIN, "test"))
    return share >= 0.85, f"{share:.3f} of {n}; Welch {t.mean(AGAIN, 'welch contains 0'):.3f}"


def protocols_stay_apart(t: Table) -> tuple[bool, str]:
    refused = []
    for arm in (*TRICKS, SHALLOW):
        try:
            benchmark([(_runs(t, arm), _runs(t, RANDOM))])
        except UsageError:
            refused.append(arm)
    return len(refused) == len(TRICKS) + 1, f"refused: {', '.join(refused) or 'none'}"


def _spreads(t: Table) -> dict[str, float]:
    """Standard deviations: over architectures and seeds, and over the means of the protocols."""
    study = seed_study(np.stack([t.values(a, "test") for a in (RANDOM, RESEEDED)], axis=1))
    means = [t.mean(a, "test") for a in (RANDOM, *TRICKS)]
    return {
        **{k: study[k] for k in ("std_architectures", "std_seeds", "std_true", "tau")},
        "std_tricks": float(np.std(means, ddof=1)),
        "depth tau": depth_study(t.values(SHALLOW, "test"), t.values(RANDOM, "test"))["tau"],
    }


def spreads_are_there(t: Table) -> tuple[bool, str]:
    found = _spreads(t)
    positive = all(found[k] > 0 for k in ("std_architectures", "std_seeds", "std_tricks"))
    return positive and all(map(math.isfinite, found.values())), ", ".join(f"{k} {v:.4f}" for k, v in found.items())


def tricks_dominate(t: Table) -> tuple[bool, str]:
    s = _spreads(t)
    gains = ", ".join(f"{a} {t.mean(a, 'test') - t.mean(RANDOM, 'test'):+.4f}" for a in TRICKS)
    return s["std_tricks"] > s["std_true"], f"{s['std_tricks']:.4f} against {s['std_true']:.4f}; gains: {gains}"


def seeds_matter(t: Table) -> tuple[bool, str]:
    s = _spreads(t)
    return s["std_seeds"] > s["std_true"], f"{s['std_seeds']:.4f} against {s['std_true']:.4f}; tau {s['tau']:.3f}"


def depth_gap(t: Table) -> tuple[bool, str]:
    s = _spreads(t)
    return s["depth tau"] < s["tau"], f"tau one to three cells {s['depth tau']:.3f}, between seeds {s['tau']:.3f}"


def macro_beats_micro(t: Table) -> tuple[bool, str]:
    gap, s = t.mean(RANDOM, "test") - t.mean(SHALLOW, "test"), _spreads(t)
    return gap > 2 * s["std_true"], f"three cells {gap:+.4f} over one; architectures spread by {s['std_true']:.4f}"


def search_is_no_better(t: Table) -> tuple[bool, str]:
    row, text = _improvement(t, METHOD)
    return row["verdict"] != "better than random", f"{text}: {row['verdict']}"


CLAIM = Claim(
    slug="nas-eval-is-hard",
    statement="Over the average architecture trained alike, searches improve little, while training tricks, seeds and "
    "depth move accuracy as much as architectures do.",
    scale=f"Cells of 3 edges with 4 operations (128 architectures), 3 cells of 8 channels, on noisy digits (sigma "
    f".25), {RECIPE.epochs} epochs; {RUNS} runs of each arm. Intervals: NAS-Bench-201, {ENOUGH_RUNS} runs a side.",
    arms=[
        ClaimArm(METHOD, "method"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(AGAIN, "trivial"),
        ClaimArm(RESEEDED, "reference"),
        *(ClaimArm(name, "reference") for name in (*TRICKS, SHALLOW)),
    ],
    measure=measure,
    checks=[
        Check("The interval of random against random contains 0", random_is_zero),
        Check("With 8 runs, intervals of random against random contain 0 at least 85 % of the time", intervals_cover),
        Check("Runs of different protocols are not compared", protocols_stay_apart),
        Check("Spreads over architectures, seeds and tricks are computed on the same architectures", spreads_are_there),
        Check("SPOS is not shown better than random", search_is_no_better, False),
        Check("Tricks spread accuracy more than architectures do", tricks_dominate, False),
        Check("Seeds spread accuracy more than architectures do", seeds_matter, False),
        Check("Fewer cells rank architectures worse than another seed does", depth_gap, False),
        Check("Depth moves accuracy by more than twice the spread of architectures", macro_beats_micro, False),
    ],
    seeds=RUNS,
    code=(
        "archipel.search.evaluation.compare",
        "archipel.search.evaluation.judging",
        "archipel.search.evaluation.ladder",
        "archipel.search.metrics",
        "archipel.search.oneshot.spos",
        "archipel.spaces.sharing",
    ),
)
