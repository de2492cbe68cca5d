"""Regularized evolution: who is chosen, who leaves, what is recorded, alone and with sixteen workers."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from random import Random

import numpy as np
import pytest
from scipy.stats import chisquare

from archipel.core.decision import Decision
from archipel.core.errors import InfeasibleError, UsageError
from archipel.core.space import Space, when
from archipel.search.blackbox.evolution import RegularizedEvolution, changed_decision, parent_probability
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.simulator import TrialFailure, simulate
from archipel.search.strategy import Objective, Problem
from archipel.spaces.nb201_codec import OPS, NB201Codes

SPACE = NB201Codes()


def landscape(seed=0):
    """A smooth synthetic fitness over the cells: additive and pairwise terms, and noise."""
    rng, noise = np.random.default_rng(seed), Random(seed)
    single, pair = rng.normal(size=(6, 5)), 0.3 * rng.normal(size=(6, 6, 5, 5))
    index = {op: i for i, op in enumerate(OPS)}

    def fitness(arch, resource=1):
        g = [index[op] for op in arch.values()]
        value = sum(single[i, g[i]] for i in range(6)) + sum(pair[i, j, g[i], g[j]] for i in range(6) for j in range(i))
        return {"accuracy": float(value) + noise.gauss(0, 0.2)}

    return fitness


def run(strategy, n, seed=0, fitness=None, space=SPACE, after=lambda strategy, trial: None):
    fitness = fitness or landscape(seed)
    strategy.setup(Problem(space, rng=Random(seed)))
    trials = []
    for _ in range(n):
        trial = strategy.ask()
        trial.metrics = fitness(trial.arch)
        strategy.tell(trial)
        trials.append(trial)
        after(strategy, trial)
    return trials


# --- the tournament ------------------------------------------------------------------------------------------------


def test_parent_probabilities_worked_by_hand():
    assert parent_probability(1, 100, 10) == pytest.approx(0.1)
    assert parent_probability(2, 100, 10) == pytest.approx(0.1 * 90 / 99)
    for population, sample in [(100, 10), (7, 3), (5, 5), (9, 1)]:
        assert sum(parent_probability(k, population, sample) for k in range(1, population + 1)) == pytest.approx(1)


def parents_of_frozen_population(population, sample, scores, draws=4000, seed=0):
    """How often each of the members (in the order of ``scores``) becomes a parent while the population stands still."""
    values = iter(scores)
    search = RegularizedEvolution(population, sample)
    run(search, population, seed, fitness=lambda arch: {"accuracy": next(values)})
    return np.bincount([search.ask().info["parent"] for _ in range(draws)], minlength=population)


def test_parents_are_distributed_as_the_best_of_a_sample_without_replacement():
    scores = Random(3).sample(range(20), 20)
    counts = parents_of_frozen_population(20, 6, scores)
    rank = {score: k for k, score in enumerate(sorted(scores, reverse=True), start=1)}
    expected = np.array([parent_probability(rank[s], 20, 6) for s in scores]) * counts.sum()
    possible = expected > 0
    assert counts[~possible].sum() == 0  # the five worst can never be the best of six
    assert chisquare(counts[possible], expected[possible]).pvalue > 0.001


def test_drawing_the_rank_is_the_same_tournament_as_sampling_members_even_with_ties():
    scores = [1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 0.0, 3.0]
    counts = parents_of_frozen_population(8, 3, scores, draws=8000)
    rng, slow = Random(1), Counter()
    for _ in range(8000):
        drawn = rng.sample(range(8), 3)
        best = max(scores[i] for i in drawn)
        slow[rng.choice([i for i in drawn if scores[i] == best])] += 1
    np.testing.assert_allclose(counts / 8000, [slow[i] / 8000 for i in range(8)], atol=0.025)


def test_a_sample_of_one_makes_all_members_parents_alike():
    assert chisquare(parents_of_frozen_population(10, 1, range(10))).pvalue > 0.001


def test_a_sample_of_the_whole_population_always_takes_the_current_best():
    best_now = {}

    def remember(search, trial):
        best_now[search._told] = max(search.members, key=lambda m: m.metrics["accuracy"]).id

    trials = run(RegularizedEvolution(12, 12), 120, after=remember)
    assert all(t.info["parent"] == best_now[t.info["told"]] for t in trials[12:])


def test_a_model_that_stays_best_is_chosen_about_s_times_while_it_lives():
    def best_first_of_its_generation(arch, state={"n": 0}):  # noqa: B006 - the counter is the point
        state["n"] += 1
        return {"accuracy": 1.0 if state["n"] % 50 == 1 else 0.0}

    trials = run(RegularizedEvolution(50, 5), 5000, fitness=best_first_of_its_generation)
    copies = Counter(t.info["parent"] for t in trials)
    stars = [t.id for t in trials[100:-100] if t.metrics["accuracy"] == 1.0]
    assert np.mean([copies[i] for i in stars]) == pytest.approx(5, abs=0.6)  # P steps at probability S / P


# --- the population ------------------------------------------------------------------------------------------------


def test_the_removed_member_is_always_the_oldest_and_the_size_stays_constant():
    def check(search, trial):
        newest = list(range(trial.id + 1))[-30:]
        assert [m.id for m in search.members] == newest

    run(RegularizedEvolution(30, 8), 300, after=check)


def test_the_control_without_aging_removes_the_worst_and_never_loses_the_best():
    best = -math.inf

    def check(search, trial):
        nonlocal best
        best = max(best, trial.metrics["accuracy"])
        assert len(search.members) <= 30
        assert max(m.metrics["accuracy"] for m in search.members) == best

    search = RegularizedEvolution(30, 8, remove="worst")
    trials = run(search, 300, after=check)
    scores = sorted((t.metrics["accuracy"] for t in trials), reverse=True)
    assert sorted((m.metrics["accuracy"] for m in search.members), reverse=True) == scores[:30]


def test_the_first_p_are_random_founders_and_no_others():
    trials = run(RegularizedEvolution(25, 5), 200)
    founders = [t.id for t in trials if t.info["parent"] is None]
    assert founders == list(range(25))


def test_a_child_differs_from_its_parent_in_exactly_the_recorded_gene():
    trials = run(RegularizedEvolution(20, 5), 300)
    by_id = {t.id: t for t in trials}
    for t in trials[20:]:
        parent = by_id[t.info["parent"]].arch
        assert [n for n in parent if parent[n] != t.arch[n]] == [t.info["mutated"]]


def test_with_one_worker_a_donor_is_no_older_than_p():
    trials = run(RegularizedEvolution(20, 5), 300)
    assert max(t.id - t.info["parent"] for t in trials[20:]) <= 20


def test_snapshot_hash_names_the_set_of_members():
    seen = {}

    def check(search, trial):
        members = frozenset(m.id for m in search.members)
        assert seen.setdefault(search.ask().info["population"], members) == members

    run(RegularizedEvolution(10, 3), 200, after=check)
    assert len(seen) == 200


def test_info_is_json_and_survives_it_exactly():
    info = run(RegularizedEvolution(5, 2), 20)[-1].info
    assert json.loads(json.dumps(info)) == info
    assert info["population"] < 2**53
    assert set(info) == {"parent", "mutated", "told", "population"}


def test_changed_decision_is_the_one_that_others_followed():
    space = Space([Decision("op", ["conv", "skip"]), Decision("k", [3, 5])], {"k": [when(op=["conv"])]})
    assert changed_decision({"op": "skip"}, {"op": "conv", "k": 5}) == "op"
    assert changed_decision({"op": "conv", "k": 3}, {"op": "skip"}) == "op"
    assert changed_decision({"op": "conv", "k": 3}, {"op": "conv", "k": 5}) == "k"
    assert changed_decision({"op": "skip"}, {"op": "skip"}) is None
    run(RegularizedEvolution(5, 2), 50, fitness=lambda arch: {"accuracy": arch.get("k", 0)}, space=space)


# --- asynchronous, failing, limited ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [16, 200])
def test_asynchronous_workers_never_wait(workers):
    duration = Random(0)
    result = simulate(
        RegularizedEvolution(100, 10), Problem(SPACE, rng=Random(0)), landscape(),
        lambda arch, epoch: duration.uniform(0.5, 1.5), workers=workers, max_trials=900,
    )  # fmt: skip
    founders = sum(t.info["parent"] is None for t in result.trials)
    # 200 workers ask for 200 proposals before anything is known: then, and only then, there are more founders than P
    assert founders == (100 if workers == 16 else 200)
    finished = {e.trial: e.time for e in result.events if e.kind == "finish"}
    started = {e.trial: e.time for e in result.events if e.kind == "start"}
    assert all(finished[t.info["parent"]] <= started[t.id] for t in result.trials if t.info["parent"] is not None)
    last_start = max(started.values())
    idle_before_the_end = [b - a for a, b in zip(sorted(finished.values()), sorted(started.values())[workers:])]
    assert last_start > 1
    assert max(idle_before_the_end) <= 1e-9


def test_children_join_at_completion_whatever_the_order_of_asking():
    search = RegularizedEvolution(3, 2)
    search.setup(Problem(SPACE))
    trials = [search.ask() for _ in range(5)]  # two of them founders beyond P, as nothing is known yet
    for i in (4, 2, 0, 3):
        trials[i].metrics = {"accuracy": float(i)}
        search.tell(trials[i])
    assert [m.id for m in search.members] == [2, 0, 3]
    assert search.ask().info["parent"] in (2, 0, 3)


def test_failures_and_nan_are_no_members_and_the_search_goes_on():
    fitness = landscape()

    def sometimes(arch, resource):
        if arch["e01"] == "none":
            raise TrialFailure("out of memory")
        return {"accuracy": math.nan} if arch["e23"] == "skip" else fitness(arch)

    search = RegularizedEvolution(20, 5)
    result = simulate(search, Problem(SPACE, rng=Random(0)), sometimes, max_trials=300)
    failed = {t.id for t in result.trials if not t.ok}
    assert len(failed) > 20
    assert len(search.members) == 20
    assert not failed & {m.id for m in search.members}
    assert not failed & {t.info["parent"] for t in result.trials}


def test_nan_told_without_a_failure_is_no_member_either():
    search = RegularizedEvolution(4, 2)
    run(search, 30, fitness=lambda arch: {"accuracy": math.nan if arch["e01"] == "skip" else 1.0})
    assert all(m.arch["e01"] != "skip" for m in search.members)


def test_if_everything_fails_proposals_stay_random():
    trials = run(RegularizedEvolution(4, 2), 20, fitness=lambda arch: {"accuracy": math.nan})
    assert all(t.info["parent"] is None for t in trials)


def test_all_proposals_keep_the_limits_and_impossible_limits_are_named():
    strategy = RegularizedEvolution(10, 3)
    strategy.setup(Problem(SPACE, feasible=lambda a: "none" not in a.values()))
    for _ in range(60):
        trial = strategy.ask()
        assert "none" not in trial.arch.values()
        trial.metrics = {"accuracy": 1.0}
        strategy.tell(trial)
    strategy.setup(Problem(SPACE, feasible=lambda a: False, describe_limits=lambda: "macs <= 0"))
    with pytest.raises(InfeasibleError, match="macs <= 0"):
        strategy.ask()


def test_replaying_asks_and_tells_restores_the_same_search():
    def history(n):
        return [t.arch for t in run(RegularizedEvolution(15, 4), n, seed=5)]

    assert history(100) == history(120)[:100]


def test_a_metric_to_minimise_is_minimised():
    strategy = RegularizedEvolution(10, 10)
    strategy.setup(Problem(SPACE, [Objective("loss", "min")]))
    for i in range(10):
        trial = strategy.ask()
        trial.metrics = {"loss": abs(i - 6.0)}
        strategy.tell(trial)
    assert strategy.ask().info["parent"] == 6


def test_it_finds_better_cells_than_random_search_with_the_same_budget():
    best = {"evolution": [], "random": []}
    for seed in range(4):
        for name, strategy in [("evolution", RegularizedEvolution(50, 10)), ("random", RandomSearch())]:
            trials = run(strategy, 500, seed)
            best[name].append(max(t.metrics["accuracy"] for t in trials))
    assert np.mean(best["evolution"]) > np.mean(best["random"]) + 0.2


@pytest.mark.parametrize("sample", [10, 50])
def test_the_engine_makes_more_than_twenty_thousand_evaluations_a_second(sample):
    start = time.process_time()
    run(RegularizedEvolution(100, sample), 5000, fitness=lambda arch: {"accuracy": len(arch["e01"])})
    assert 5000 / (time.process_time() - start) > 20_000  # some seven times as many are usual


def test_a_population_that_is_not_set_leaves_a_small_budget_something_to_evolve():
    for trials, sizes in [(None, (100, 10)), (1000, (100, 10)), (100, (25, 8)), (32, (8, 2)), (3, (4, 2))]:
        search = RegularizedEvolution()
        search.setup(Problem(SPACE, trials=trials))
        assert (search.population, search.sample) == sizes
    search = RegularizedEvolution(sample=7)
    search.setup(Problem(SPACE, trials=8))
    assert (search.population, search.sample) == (7, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"population": 10, "sample": 11}, "sample=11 needs 1 <= sample <= population, but population=10"),
        ({"population": 10, "sample": 0}, "sample=0"),
        ({"population": 0, "sample": 0}, "population=0"),
        ({"remove": "random"}, "remove is 'oldest'"),
    ],
)
def test_impossible_settings_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        RegularizedEvolution(**arguments)
