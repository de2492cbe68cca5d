"""Search on a table: 10,000 evaluations of NAS-Bench-201 cells by ask and tell.

Everybody looks the same accuracies up in the same table; what differs is what a search costs beside its evaluations.
Regularised evolution (Real et al. 2019, https://arxiv.org/abs/1802.01548) with 100 members and tournaments of 10:

    ours, in memory     RegularizedEvolution: ask, look up, tell
    ours, saved         the same through the loop of a run, every trial and its order in the journal on disk
    Syne Tune           its REA scheduler: suggest, look up, on_trial_complete; no backend, no tuner
    Syne Tune, bare     the searcher inside that scheduler, without the scheduler: the fastest way to drive it
    bare loop           the algorithm in ten lines of Python that know nothing but this table

and NSGA-II with 100 members in Optuna (ask with fixed distributions, look up, tell; storage in memory, logging off).
Requirements are against the faster of the two ways to drive Syne Tune. Optuna reads its whole history before each
proposal, so that it slows down as it goes; its speed over the first 1,000 evaluations is given beside.
"""

from __future__ import annotations

import datetime
import tempfile
import time
from collections import deque
from pathlib import Path
from random import Random

import optuna
from measure import Figures, side_by_side
from syne_tune.backend.trial_status import Trial as SyneTrial
from syne_tune.config_space import choice
from syne_tune.optimizer.baselines import REA
from syne_tune.optimizer.schedulers.searchers.regularized_evolution import RegularizedEvolution as SyneSearcher

from archipel.core.run import RunFolder
from archipel.search.blackbox.evolution import RegularizedEvolution
from archipel.search.config import Budget
from archipel.search.loop import Arm, run_table
from archipel.search.strategy import Problem
from archipel.search.tables import NB201Table
from archipel.spaces.nb201_codec import EDGE_NAMES, OPS

EVALUATIONS = 10_000
P, S = 100, 10
ROUNDS = 5
FIRST = 1_000

table = NB201Table().only("accuracy")
accuracy_of = dict(zip(table.keys(), table.column("accuracy").tolist()))
optuna_first: list[float] = []  # seconds of the first thousand evaluations, each round


def ours_in_memory() -> float:
    strategy = RegularizedEvolution(P, S)
    strategy.setup(Problem(table.space, rng=Random(0)))
    best = 0.0
    for _ in range(EVALUATIONS):
        trial = strategy.ask()
        trial.metrics = table.evaluate(trial.arch)
        best = max(best, trial.metrics["accuracy"])
        strategy.tell(trial)
    return best


def ours_saved() -> float:
    problem = Problem(table.space, rng=Random(0))
    strategy = RegularizedEvolution(P, S)
    strategy.setup(problem)
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(Path(folder) / "run", {}) as run:
        arm = Arm("search", strategy, problem, Budget(trials=EVALUATIONS), run.journal, key=None)
        run_table(arm, table.evaluate)
        saved = sum(1 for _ in run.journal.db.execute("SELECT id FROM trials"))
    assert saved == EVALUATIONS, f"{saved} trials on disk"
    assert arm.best is not None
    return arm.best.metrics["accuracy"]


def syne_tune() -> float:
    space = {name: choice(list(OPS)) for name in EDGE_NAMES}
    scheduler = REA(space, metric="accuracy", do_minimize=False, random_seed=0, population_size=P, sample_size=S)
    best, now = 0.0, datetime.datetime.now()
    for i in range(EVALUATIONS):
        config = scheduler.suggest().config
        metrics = table.evaluate(config)
        best = max(best, metrics["accuracy"])
        scheduler.on_trial_complete(SyneTrial(i, config, now), metrics)
    return best


def syne_tune_bare() -> float:
    space = {name: choice(list(OPS)) for name in EDGE_NAMES}
    searcher = SyneSearcher(space, population_size=P, sample_size=S, random_seed=0)
    best = 0.0
    for i in range(EVALUATIONS):
        config = searcher.suggest()
        accuracy = table.evaluate(config)["accuracy"]
        best = max(best, accuracy)
        searcher.on_trial_complete(i, config, -accuracy)  # it minimises
    return best


def optuna_nsga2() -> float:
    sampler = optuna.samplers.NSGAIISampler(population_size=P, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {name: optuna.distributions.CategoricalDistribution(OPS) for name in EDGE_NAMES}
    best, started = 0.0, time.perf_counter()
    for i in range(EVALUATIONS):
        if i == FIRST:
            optuna_first.append(time.perf_counter() - started)
        trial = study.ask(distributions)
        accuracy = table.evaluate(trial.params)["accuracy"]
        best = max(best, accuracy)
        study.tell(trial, accuracy)
    return best


def bare_loop() -> float:
    random = Random(0).random
    population: deque[tuple[float, tuple[str, ...]]] = deque()
    best = 0.0
    for _ in range(EVALUATIONS):
        if len(population) < P:
            cell = [OPS[int(random() * 5)] for _ in EDGE_NAMES]
        else:
            cell = list(max([population[int(random() * P)] for _ in range(S)])[1])
            edge = int(random() * 6)
            cell[edge] = [op for op in OPS if op != cell[edge]][int(random() * 4)]
        child = tuple(cell)
        population.append((accuracy_of[child], child))
        best = max(best, accuracy_of[child])
        if len(population) > P:
            population.popleft()
    return best


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    arms = {
        "ours, in memory": ours_in_memory,
        "ours, saved": ours_saved,
        "Syne Tune REA": syne_tune,
        "Syne Tune REA, bare searcher": syne_tune_bare,
        "Optuna NSGA-II": optuna_nsga2,
        "bare Python loop": bare_loop,
    }
    figures = Figures("tabular_search", __doc__.splitlines()[0], {"evaluations": EVALUATIONS, "P": P, "S": S})
    seconds, best = side_by_side(arms, ROUNDS, warm_up=False)
    for name, spent in seconds.items():
        figures.row(name, [EVALUATIONS / s for s in spent], "evaluations/s", best_accuracy=best[name][-1])
    figures.row(f"Optuna NSGA-II, its first {FIRST}", [FIRST / s for s in optuna_first], "evaluations/s")
    syne = [min(pair) for pair in zip(seconds["Syne Tune REA"], seconds["Syne Tune REA, bare searcher"])]
    for name, other, wanted in [
        ("in memory / Syne Tune", syne, ">= 2"),
        ("in memory / Optuna", seconds["Optuna NSGA-II"], ">= 10"),
        ("in memory / Optuna's first 1,000", [s * EVALUATIONS / FIRST for s in optuna_first], None),
        ("in memory / bare loop", seconds["bare Python loop"], None),
    ]:
        figures.ratio(name, [o / s for o, s in zip(other, seconds["ours, in memory"])], wanted)
    figures.ratio("saved / Syne Tune in memory", [o / s for o, s in zip(syne, seconds["ours, saved"])], ">= 1")
    figures.save()


if __name__ == "__main__":
    main()
