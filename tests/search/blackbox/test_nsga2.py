"""NSGA-II: survival against the definition, fronts found, asynchronous workers, failures."""

from __future__ import annotations

import math
import sys
from random import Random

import numpy as np
import pytest

pytest.importorskip("pymoo", reason="needs the extra 'multiobjective'")

from archipel.core.decision import Decision
from archipel.core.errors import MissingExtraError, UsageError
from archipel.core.space import Space
from archipel.search.blackbox.nsga2 import NSGA2
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.pareto import hypervolume, pareto_front
from archipel.search.simulator import TrialFailure, simulate
from archipel.search.strategy import Objective, Problem
from archipel.spaces.nb201_codec import EDGE_NAMES, NB201Codes

SPACE = NB201Codes()
COST = {"none": 0.0, "skip": 0.1, "avgpool3x3": 0.4, "conv1x1": 1.0, "conv3x3": 9.0}
VALUE = {"none": 0.0, "skip": 2.0, "avgpool3x3": 1.0, "conv1x1": 3.0, "conv3x3": 4.0}
OBJECTIVES = [Objective("accuracy"), Objective("macs", "min")]


def trade_off(arch, resource=1):
    """More valuable operations cost more; every edge weighs differently."""
    accuracy = sum((i + 1) * VALUE[arch[name]] for i, name in enumerate(EDGE_NAMES))
    return {"accuracy": accuracy, "macs": sum(COST[arch[name]] for name in EDGE_NAMES)}


def run(strategy, n, seed=0, evaluate=trade_off, objectives=OBJECTIVES, space=SPACE):
    strategy.setup(Problem(space, objectives, rng=Random(seed)))
    trials = []
    for _ in range(n):
        trial = strategy.ask()
        trial.metrics = evaluate(trial.arch)
        strategy.tell(trial)
        trials.append(trial)
    return trials


def selector(population, seed=0):
    search = NSGA2(population)
    search.setup(Problem(SPACE, OBJECTIVES, rng=Random(seed)))
    return search


def test_survival_keeps_whole_fronts_and_then_the_least_crowded():
    # Front 0: four points; front 1: (0,3) (1,1.5) (1.2,1.4) (3,0) behind them; one of the middle two is most crowded.
    scores = np.array([[1, 4], [2, 3], [3, 2], [4, 1], [0, 3], [1, 1.5], [1.2, 1.4], [3, 0.0], [-9, -9]])
    ranks, distances, kept = selector(7)._select(scores)
    assert set(kept[:4]) == {0, 1, 2, 3}
    assert set(kept[4:6]) == {4, 7}  # the ends of the second front
    # (1, 1.5) lies between (0, 3) and (1.2, 1.4): 1.2/3 + 1.6/3; (1.2, 1.4) between (1, 1.5) and (3, 0): 2/3 + 1.5/3
    assert kept[6] == 6
    assert [ranks[i] for i in kept] == [0, 0, 0, 0, 1, 1, 1]
    assert distances[0] == distances[3] == math.inf
    assert distances[1] == distances[2]


def test_ranks_equal_repeated_peeling_of_fronts():
    scores = np.random.default_rng(0).integers(0, 8, size=(60, 3)).astype(float)
    ranks, _, kept = selector(60)._select(scores)
    left, level = list(range(60)), 0
    while left:
        front = [left[k] for k in pareto_front(scores[left])]
        assert {i for i in kept if ranks[i] == level} == set(front)
        left = [i for i in left if i not in front]
        level += 1


@pytest.mark.parametrize("steady", [False, True])
def test_it_covers_more_of_the_front_than_random_search(steady):
    reference = [0.0, -60.0]
    volumes = {"nsga2": [], "random": []}
    for seed in range(3):
        for name, strategy in [("nsga2", NSGA2(30, steady=steady)), ("random", RandomSearch())]:
            trials = run(strategy, 400, seed)
            volumes[name].append(hypervolume([[t.metrics["accuracy"], -t.metrics["macs"]] for t in trials], reference))
    best = hypervolume([[m["accuracy"], -m["macs"]] for m in map(trade_off, SPACE.enumerate())], reference)
    assert min(volumes["nsga2"]) > max(volumes["random"])
    assert np.mean(volumes["nsga2"]) > 0.97 * best


def test_the_front_is_what_no_member_dominates_and_nothing_better_was_lost():
    search = NSGA2(200)  # more members than the front can have, so that crowding removes nobody from it
    trials = run(search, 800, seed=3)
    members = [search.problem.scores(t) for t in search.members]
    assert {id(search.members[i]) for i in pareto_front(members)} == {id(t) for t in search.front}
    told = [search.problem.scores(t) for t in trials[:800]]
    assert {tuple(told[i]) for i in pareto_front(told)} == {tuple(search.problem.scores(t)) for t in search.front}


def test_the_extreme_of_an_objective_is_never_lost():
    search, best = NSGA2(10, steady=True), -math.inf
    search.setup(Problem(SPACE, OBJECTIVES))
    for _ in range(300):
        trial = search.ask()
        trial.metrics = trade_off(trial.arch)
        search.tell(trial)
        best = max(best, trial.metrics["accuracy"])
        assert max(t.metrics["accuracy"] for t in search.front) == best


def test_generations_count_n_children_and_asking_never_waits_for_them():
    search = NSGA2(10)
    search.setup(Problem(SPACE, OBJECTIVES))
    pending = [search.ask() for _ in range(35)]  # three and a half generations asked for, nothing told
    for k, trial in enumerate(pending):
        trial.metrics = trade_off(trial.arch)
        search.tell(trial)
        assert search.generation == max(0, (k + 1 - 10) // 10)
        assert len(search.members) == min(10, k + 1)
    assert search.ask().info["generation"] == 2


@pytest.mark.parametrize("steady", [False, True])
def test_sixteen_asynchronous_workers_never_idle(steady):
    duration = Random(0)
    search = NSGA2(20, steady=steady)
    result = simulate(
        search, Problem(SPACE, OBJECTIVES), trade_off, lambda a, e: duration.uniform(0.5, 1.5), workers=16,
        horizon=40.0,
    )  # fmt: skip
    assert result.idle_seconds().max() == pytest.approx(0)
    assert len(search.members) == 20
    assert search.generation >= 25


def test_children_come_from_the_members_and_differ_from_all_known_networks():
    trials = run(NSGA2(15, steady=True), 150)
    by_id = {t.id: t for t in trials}
    for t in trials[15:]:
        parents = [by_id[i].arch for i in t.info["parents"]]
        assert 1 <= len(parents) <= 2
        assert sum(all(p[n] != t.arch[n] for p in parents) for n in t.arch) <= 1  # at most the mutated gene is new
    forms = [SPACE.canonical(t.arch) for t in trials]
    assert len(set(forms[15:]) - set(forms[:15])) == 135  # only the random founders may coincide


def test_a_space_smaller_than_the_population_still_answers():
    space = Space([Decision("op", ["conv", "skip"])])
    trials = run(NSGA2(6), 40, evaluate=lambda a: {"accuracy": 1.0, "macs": len(a["op"])}, space=space)
    assert len(trials) == 40


def test_failures_and_incomplete_outcomes_are_no_members():
    def sometimes(arch, resource):
        if arch["e01"] == "none":
            raise TrialFailure("timeout")
        metrics = trade_off(arch)
        if arch["e02"] == "none":
            metrics["macs"] = math.inf
        return metrics

    search = NSGA2(15)
    result = simulate(search, Problem(SPACE, OBJECTIVES), sometimes, max_trials=200, workers=3)
    bad = {t.id for t in result.trials if not t.ok or math.isinf(t.metrics["macs"])}
    assert len(bad) > 10
    assert not bad & {t.id for t in search.members}
    assert not bad & {p for t in result.trials for p in t.info["parents"]}


def test_if_everything_fails_proposals_stay_random():
    trials = run(NSGA2(5), 30, evaluate=lambda a: {"accuracy": math.nan, "macs": 1.0})
    assert all(t.info["parents"] == [] for t in trials)


def test_limits_are_kept_and_replays_agree():
    strategy = NSGA2(10)
    strategy.setup(Problem(SPACE, OBJECTIVES, feasible=lambda a: "conv3x3" not in a.values()))
    for _ in range(60):
        trial = strategy.ask()
        assert "conv3x3" not in trial.arch.values()
        trial.metrics = trade_off(trial.arch)
        strategy.tell(trial)
    first, second = ([t.arch for t in run(NSGA2(10), n, seed=4)] for n in (80, 100))
    assert first == second[:80]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"population": 1}, "population=1: tournaments need at least 2"),
        ({"crossover": 1.5}, r"crossover=1.5 is a probability"),
        ({"mutation": -0.1}, r"mutation=-0.1 is a probability"),
    ],
)
def test_impossible_settings_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        NSGA2(**arguments)


def test_without_pymoo_the_extra_is_named(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "pymoo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pymoo", None)
    with pytest.raises(MissingExtraError, match=r"archipel\[multiobjective\]"):
        NSGA2().setup(Problem(SPACE, OBJECTIVES))
