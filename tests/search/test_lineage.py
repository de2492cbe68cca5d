"""Patterns of an evolution's history and what caches would have saved, against slow versions and known numbers."""

from __future__ import annotations

from collections import Counter
from functools import cache, lru_cache
from math import exp, log
from random import Random

import networkx as nx
import numpy as np
import pytest

from archipel.core.errors import UsageError
from archipel.search.analysis import donor_cache as dc
from archipel.search.analysis import lineage as lin
from archipel.search.analysis import popularity as pop
from archipel.search.blackbox.evolution import RegularizedEvolution
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.simulator import TrialFailure, simulate
from archipel.search.strategy import Problem, Trial
from archipel.spaces.nb201_codec import EDGE_NAMES, OPS, NB201Codes

P = 100
SPACE = NB201Codes()


@lru_cache(maxsize=64)
def history(sample, workers=1, seed=0, n=1500, remove="oldest", strategy=None, failing=False):
    """A recorded search on a smooth synthetic fitness: additive and pairwise terms, and noise."""
    rng, noise, duration = np.random.default_rng(seed), Random(seed), Random(seed + 1)
    single, pair = rng.normal(size=(6, 5)), 0.3 * rng.normal(size=(6, 6, 5, 5))
    index = {op: i for i, op in enumerate(OPS)}

    def fitness(arch, resource):
        if failing and arch["e12"] == "none":
            raise TrialFailure("crashed")
        g = [index[op] for op in arch.values()]
        value = sum(single[i, g[i]] for i in range(6)) + sum(pair[i, j, g[i], g[j]] for i in range(6) for j in range(i))
        return {"accuracy": float(value) + noise.gauss(0, 0.2)}

    search = strategy or RegularizedEvolution(P, sample, remove=remove)
    problem = Problem(SPACE, rng=Random(seed))
    result = simulate(search, problem, fitness, lambda a, e: duration.uniform(0.5, 1.5), workers=workers, max_trials=n)
    return lin.Lineage.from_simulation(result, problem)


def hand_made():
    """Two founders A, B; A has C (told while D is pending), C has D; B has E."""
    genes = {"A": "xx", "B": "yy", "C": "xz", "D": "zz", "E": "yx"}
    rows = [("A", None, 0), ("B", None, 0), ("C", "A", 2), ("E", "B", 2), ("D", "C", 3)]
    ids = {name: i * 10 for i, name in enumerate("ABCDE")}
    return lin.Lineage(
        lin.Evaluation(ids[n], dict(zip(("g", "h"), genes[n])), None if p is None else ids[p], None, float(i), told)
        for i, (n, p, told) in enumerate(rows)
    )


# --- lineage -------------------------------------------------------------------------------------------------------


def test_hand_made_history():
    line = hand_made()  # positions: A 0, B 1, C 2, E 3, D 4
    assert line.parent.tolist() == [-1, -1, 0, 1, 2]
    assert lin.founders(line).tolist() == [0, 1, 0, 1, 0]
    assert lin.depths(line).tolist() == [0, 0, 1, 1, 2]
    assert lin.staleness(line).tolist() == [0, 1, 0, 1, 1]
    assert lin.generation_length(line) == pytest.approx((2 + 2 + 2) / 3)
    change = lin.structure_change(line)
    assert change.to_parent.tolist() == [-1, -1, 1, 1, 1]
    assert change.to_founder.tolist() == [0, 0, 1, 1, 2]
    assert change.prefix.tolist() == [-1, -1, 1, 1, 0]
    assert change.by_position.tolist() == [1, 2]
    np.testing.assert_allclose(change.prefix_over_time(3), [1, 0.5])
    assert lin.surviving_founders(line, 2).tolist() == [1, 2, 2, 2, 2]
    assert lin.donor_gone(line, 1).tolist() == [False, False, True, True, True]
    assert lin.donor_gone(line, 2).tolist() == [False] * 5


@pytest.mark.parametrize("workers", [1, 16])
def test_the_lineage_is_a_forest_with_p_roots_and_children_one_gene_away(workers):
    line = history(10, workers)
    forest = nx.DiGraph((p, i) for i, p in enumerate(line.parent.tolist()) if p >= 0)
    forest.add_nodes_from(range(len(line)))
    roots = [i for i, degree in forest.in_degree() if degree == 0]
    assert nx.is_branching(forest)
    assert len(roots) == P
    change = lin.structure_change(line)
    assert set(change.to_parent[line.parent >= 0]) == {1}
    assert change.by_position.sum() == len(line) - P
    mutated = [e.mutated for e in line.evaluations if e.parent is not None]
    assert [EDGE_NAMES[i] for i in change.prefix[line.parent >= 0]] == mutated


def test_with_one_worker_nothing_is_stale_and_donors_are_at_most_p_old():
    line = history(10)
    assert lin.donor_age(line).max() <= P
    assert lin.donor_age(line).min() >= 1
    assert not lin.staleness(line).any()
    assert not lin.donor_gone(line, P).any()


def test_sixteen_workers_return_to_donors_that_are_gone():
    line = history(10, 16)
    assert lin.staleness(line).mean() == pytest.approx(15, abs=0.5)  # the other workers' outcomes
    assert lin.donor_gone(line, P).sum() / (len(line) - P) == pytest.approx(0.15, abs=0.04)
    assert lin.generation_length(line) > lin.generation_length(history(10)) + 10


@pytest.mark.parametrize("sample", [2, 10, 50])
def test_surviving_founders_equal_a_slow_count(sample):
    line = history(sample, failing=True)
    root = lin.founders(line)[line.ok].tolist()
    slow = [len(set(root[max(0, i + 1 - P) : i + 1])) for i in range(len(root))]
    assert lin.surviving_founders(line, P).tolist() == slow
    done = lin.coalescence(line, P)
    assert done is None or (slow[done - 1] == 1 and slow[done - 2] > 1 and set(slow[done - 1 :]) == {1})


def test_larger_samples_concentrate_donors_and_lose_founders_faster():
    measured = {}
    for sample in (2, 10, 50):
        lines = [history(sample, seed=s, n=2000) for s in range(3)]
        donors = [pop.effective_number(np.bincount(pop.donor_models(line))) for line in lines]
        founders = [lin.surviving_founders(line, P)[299] for line in lines]
        measured[sample] = np.mean(donors), np.mean(founders)
    # an independent pilot found 948 / 382 / 85 donors and 16 / 3 / 1 founders
    assert measured[2][0] == pytest.approx(948, rel=0.05)
    assert measured[10][0] == pytest.approx(382, rel=0.05)
    assert measured[50][0] == pytest.approx(85, rel=0.15)
    assert measured[2][1] > 8 > measured[10][1] >= measured[50][1] >= 1


def test_controls_differ_random_search_has_no_donors_and_without_aging_few_parents_serve_long():
    random = history(1, strategy=RandomSearch())
    assert len(random.requests) == 0
    assert len(set(lin.founders(random))) == len(random)
    aging, elitist = history(10), history(10, remove="worst")
    assert lin.donor_age(elitist).max() > P >= lin.donor_age(aging).max()
    assert lin.generation_length(elitist) > 1.5 * lin.generation_length(aging)


def test_repeats_are_genomes_seen_before():
    line = history(10)
    genomes = [tuple(e.arch.values()) for e in line.evaluations]
    assert lin.repeats(line).tolist() == [g in genomes[:i] for i, g in enumerate(genomes)]
    assert 0.3 < lin.repeats(line).mean() < 0.9


def test_a_history_from_trials_equals_the_one_from_the_simulation():
    search, problem = RegularizedEvolution(20, 5), Problem(SPACE)
    result = simulate(search, problem, lambda a, r: {"accuracy": list(a.values()).count("skip")}, max_trials=100)
    a, b = lin.Lineage.from_trials(result.trials, problem), lin.Lineage.from_simulation(result, problem)
    for name in ("codes", "genome", "told", "fitness", "parent"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert b.evaluations[5].finish == 6.0
    assert b.evaluations[5].worker == 0
    with pytest.raises(UsageError, match="Trial 0 has no lineage"):
        lin.Lineage.from_trials([Trial(0, SPACE.sample(Random(0)))], problem)


def evaluation(id, told, parent=None, **more):
    return lin.Evaluation(id, {"g": id % 3}, parent, None, 1.0, told, **more)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([evaluation(1, 0), evaluation(1, 1)], "id 1 occurs twice, at 0 and 1"),
        ([evaluation(0, 0, start=0, finish=5), evaluation(1, 1, start=1, finish=3)], "follows one that finished at 5"),
        ([evaluation(0, 0, start=2, finish=1)], "each finishes after it starts"),
        ([evaluation(0, 0), evaluation(1, 1, parent=7)], "parent 7 of evaluation 1 .* is not among"),
        ([evaluation(0, 0), evaluation(1, 0, parent=0)], "parent 0 of evaluation 1 .* was told as number 0"),
        ([], "at least one finished evaluation"),
        ([evaluation(0, 1)], "claims to have been dispatched after 1"),
    ],
)
def test_impossible_histories_are_named(rows, message):
    with pytest.raises(UsageError, match=message):
        lin.Lineage(rows)


def test_failed_evaluations_are_never_members_nor_donors():
    line = history(10, 16, failing=True)
    assert np.isnan(line.fitness).sum() > 50
    assert line.ok[line.parent[line.requests]].all()


# --- popularity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 7, 100])
def test_window_counts_sum_to_the_window_and_peaks_equal_a_slow_count(window):
    donors = pop.donor_genomes(history(10))
    assert all(sum(pop.window_counts(donors, end, window).values()) == window for end in range(window, len(donors), 13))
    slow: Counter = Counter()
    for end in range(1, len(donors) + 1):
        for genome, count in pop.window_counts(donors, end, window).items():
            slow[genome] = max(slow[genome], count)
    fast = pop.donor_popularity(donors, window)
    assert dict(zip(fast.genome.tolist(), fast.peak.tolist())) == dict(slow)
    assert fast.total.sum() == len(donors)


def test_rise_and_fall_worked_by_hand():
    donors = np.array([5, 3, 5, 5, 3, 3, 3, 9])
    p = pop.donor_popularity(donors, 3)
    assert p.genome.tolist() == [3, 5, 9]
    assert p.total.tolist() == [4, 3, 1]
    assert p.peak.tolist() == [3, 2, 1]
    assert p.first.tolist() == [1, 0, 7]
    assert p.peak_at.tolist() == [6, 2, 7]
    assert p.last.tolist() == [6, 3, 7]
    assert p.rise.tolist() == [5, 2, 0]
    assert p.fall.tolist() == [0, 1, 0]
    assert p.life_span.tolist() == [5, 3, 0]


def test_a_window_longer_than_the_history_is_partial_and_warns():
    with pytest.warns(UserWarning, match="window 50 is longer than the history of 3 requests"):
        p = pop.donor_popularity(np.array([1, 1, 2]), 50)
    assert p.window == 3
    assert p.peak.tolist() == [2, 1]
    with pytest.raises(UsageError, match="at least 1 request"):
        pop.donor_popularity(np.array([1]), 0)


def test_gini_and_effective_number_equal_their_definitions():
    x = np.random.default_rng(0).integers(0, 50, 40).astype(float)
    slow = np.abs(x[:, None] - x).sum() / (2 * len(x) ** 2 * x.mean())
    assert pop.gini(x) == pytest.approx(slow)
    assert pop.effective_number([1, 3]) == pytest.approx(exp(-(0.25 * log(0.25) + 0.75 * log(0.75))))
    for bad in ([], [0, 0], [-1, 2]):
        with pytest.raises(UsageError, match="non-negative counts"):
            pop.gini(np.array(bad))
        with pytest.raises(UsageError, match="non-negative counts"):
            pop.effective_number(np.array(bad))


def test_fitness_rank_at_entry_equals_a_slow_count():
    line = history(10, failing=True)
    rank, members = pop.fitness_rank(line, P), []
    for i, f in enumerate(line.fitness):
        if f == f:
            assert rank[i] == pytest.approx(np.mean([m > f for m in members[-P:]]) if members else 0)
            members.append(f)
        else:
            assert rank[i] != rank[i]


def test_the_fit_recovers_known_coefficients_and_drops_constants(monkeypatch):
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(size=(400, 2)), np.full(400, 0.1), rng.choice([1, 16], 400)])
    y = 5 - 2 * x[:, 0] / x[:, 0].std() + 0.1 * x[:, 3] / x[:, 3].std() + 0.01 * rng.normal(size=400)
    monkeypatch.setattr(pop, "popularity_factors", lambda arm, window: (x, y))
    fit = pop.regress_popularity([None])
    assert fit.factors == ("rank", "age", "W")
    assert fit.dropped == ("S/P",)
    np.testing.assert_allclose(fit.coefficient, [-2, 0, 0.1], atol=0.005)
    assert fit.r2 > 0.999
    assert (fit.error < 0.001).all()


def test_donors_are_the_more_popular_the_better_they_entered_and_the_larger_s_over_p():
    arms = [pop.Arm(history(s, w), P, s, w) for s in (2, 10, 50) for w in (1, 16)]
    fit = pop.regress_popularity(arms)
    assert fit.factors == pop.FACTORS
    effect = dict(zip(fit.factors, fit.coefficient / fit.error))
    assert effect["rank"] < -3
    assert effect["S/P"] > 3
    assert fit.donors > 500
    with pytest.raises(UsageError, match="at least 6 donors, not 0"):
        pop.regress_popularity([])


# --- caches --------------------------------------------------------------------------------------------------------


def test_alive_and_fifo_caches_of_the_populations_size_never_miss_with_one_worker_but_lru_does():
    expected = {2: 0.87, 10: 0.99, 50: 0.999}  # an independent pilot of LRU
    for sample, lru in expected.items():
        line = history(sample, n=2000)
        rates = {p: dc.simulate_cache(line, p, P, P).hit_rate for p in dc.POLICIES}
        assert rates["alive"] == rates["fifo"] == rates["belady"] == rates["best-alive"] == 1.0
        assert rates["lru"] == pytest.approx(lru, abs=0.015)
        assert rates["lru"] < 1.0


def test_at_a_quarter_of_the_population_lru_beats_alive_and_best_alive_comes_close_to_the_optimum():
    rates = {s: dc.hit_rates(history(s, n=2000), [25], P) for s in (10, 50)}
    assert rates[10]["lru"][0] == pytest.approx(0.61, abs=0.03)
    assert rates[10]["alive"][0] == pytest.approx(0.55, abs=0.03)
    assert rates[50]["lru"][0] == pytest.approx(0.95, abs=0.02)
    assert rates[50]["alive"][0] == pytest.approx(0.85, abs=0.02)
    assert rates[10]["best-alive"][0] == pytest.approx(0.95, abs=0.015)
    assert rates[10]["belady"][0] > 0.99


@pytest.mark.parametrize(("sample", "capacity"), [(10, 25), (10, 5), (2, 25), (50, 3)])
def test_best_alive_hits_as_often_as_the_formula_says(sample, capacity):
    rate = np.mean([dc.simulate_cache(history(sample, seed=s), "best-alive", capacity, P).hit_rate for s in range(3)])
    expected = dc.best_alive_hit_rate(P, sample, capacity)
    assert rate == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 4200) ** 0.5 + 1e-12)


def test_best_alive_hit_rate_golden_number():
    assert dc.best_alive_hit_rate(100, 10, 25) == pytest.approx(0.9521, abs=5e-5)
    assert dc.best_alive_hit_rate(100, 10, 91) == dc.best_alive_hit_rate(100, 10, 500) == 1.0


CAPACITIES = [1, 2, 5, 13, 25, 50, 100]


@pytest.mark.parametrize(("sample", "workers"), [(2, 1), (10, 1), (10, 16), (50, 16)])
def test_belady_is_the_best_policy_and_lru_never_loses_by_capacity(sample, workers):
    rates = dc.hit_rates(history(sample, workers, n=600), CAPACITIES, P)
    for policy in dc.POLICIES:
        assert all(b >= r for b, r in zip(rates["belady"], rates[policy])), policy
    assert rates["lru"] == sorted(rates["lru"])
    assert rates["belady"] == sorted(rates["belady"])


def test_belady_equals_the_best_of_all_possible_choices_on_short_histories():
    rng = Random(0)
    for _ in range(12):
        parent = tuple(rng.randrange(i) if i > 1 else -1 for i in range(8))
        line = lin.Lineage(evaluation(i, i, None if p < 0 else p) for i, p in enumerate(parent))
        events = tuple(dc._events(line))

        @cache
        def most_hits(k, held, capacity, events=events, parent=parent):
            if k == len(events):
                return 0
            kind, i = events[k]
            model = parent[i] if kind == "request" else i
            if model in held:
                return 1 + most_hits(k + 1, held, capacity)
            options = [held]  # bypass
            options += [held | {model}] if len(held) < capacity else [held - {out} | {model} for out in held]
            return max(most_hits(k + 1, option, capacity) for option in options)

        for capacity in (1, 2, 3):
            assert dc.simulate_cache(line, "belady", capacity, 4).hits == most_hits(0, frozenset(), capacity)


def test_each_policy_evicts_by_its_own_rule():
    # 0, 1, 2 are founders; 3, 4, 5, 6 are children of 0, 0, 1, 0, one after the other. All are equally fit.
    rows = [evaluation(0, 0), evaluation(1, 1), evaluation(2, 2)]
    rows += [evaluation(3, 3, 0), evaluation(4, 4, 0), evaluation(5, 5, 1), evaluation(6, 6, 0)]
    hits = {p: dc.simulate_cache(lin.Lineage(rows), p, 3, 10).hits for p in dc.POLICIES}
    # Held before each request:
    # fifo        012 | 123 | 304 | 415        lru (used last, last)  012 | 203 | 304 | 415
    # lfu         012 | 023 | 034 | 015        best-alive             012 | 012 | 012 | 012
    assert hits == {"lru": 2, "lfu": 3, "fifo": 1, "alive": 1, "best-alive": 4, "belady": 4}


def test_pending_children_keep_their_donor_alive():
    # P = 1: when 1 enters, 0 leaves, but its child 2 is still out; 3 requests nothing, 2 returns, then 0 is dropped.
    rows = [evaluation(0, 0), evaluation(1, 1), evaluation(3, 1), evaluation(2, 1, parent=0), evaluation(4, 4)]
    held = []
    replay = dc._Replay(lin.Lineage(rows), "alive", 5, 1, dc._Cache(*_versions_and_bytes(lin.Lineage(rows))))
    for kind, i in replay.events:
        replay.request(replay.parent[i]) if kind == "request" else replay.done(i)
        held.append((kind, sorted(replay.cache.held)))
    assert held == [
        ("done", [0]), ("request", [0]), ("done", [0, 1]), ("done", [0, 2]), ("done", [3]), ("done", [4])
    ]  # fmt: skip


def _versions_and_bytes(line):
    return dc.layer_versions(line), dc.layer_bytes(line)


def test_shared_layers_worked_by_hand():
    line = hand_made()  # A xx, B yy, C xz from A, E yx from B, D zz from C
    v = dc.layer_versions(line)
    a, b, c, e, d = v
    assert c[0] == a[0]
    assert c[1] != a[1]
    assert e[0] == b[0]
    assert d[1] == c[1]
    assert d[0] != c[0]
    assert len(np.unique(v)) == 7  # 2 founders of 2 layers, and one new layer for each child
    assert len(np.unique(dc.layer_versions(line, "prefix"))) == 8  # D changed its first layer: nothing before it
    sizes = {"x": 1, "y": 10, "z": 100}
    result = dc.simulate_cache(line, "fifo", 99, 99, lambda name, value: sizes[value])
    assert result.peak_bytes == 2 + 20 + 101 + 11 + 200
    assert result.peak_layer_bytes == 2 + 20 + 100 + 1 + 100
    assert result.moved_bytes == result.moved_layer_bytes == 0
    assert result.hit_rate == 1.0


def test_sharing_layers_stores_and_moves_far_less_than_whole_models():
    line = history(10)
    everything = dc.simulate_cache(line, "fifo", 10**6, P)
    assert everything.peak_bytes == 6 * len(line)
    assert everything.peak_layer_bytes == 6 * P + (len(line) - P)  # a child adds one layer
    for policy in dc.POLICIES:
        whole, prefix = (dc.simulate_cache(line, policy, 50, P, shared=shared) for shared in ("unchanged", "prefix"))
        assert whole.moved_bytes == 6 * (whole.requests - whole.hits + whole.promotions)
        assert whole.moved_layer_bytes <= prefix.moved_layer_bytes <= whole.moved_bytes
        assert whole.moved_layer_bytes <= 0.5 * whole.moved_bytes
        assert prefix.hits == whole.hits


def test_a_donor_of_a_failed_child_is_released_too():
    line = history(10, 16, failing=True)
    assert all(dc.simulate_cache(line, p, 30, P).hit_rate <= 1 for p in dc.POLICIES)
    replay = dc._Replay(line, "alive", 10**6, P, dc._Cache(*_versions_and_bytes(line)))
    replay.run()
    assert set(replay.cache.held) == set(replay.members)
    assert not any(replay.pending.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mru", 5, P), "No cache policy 'mru'"),
        (("lru", 0, P), "at least 1 model, not 0"),
    ],
)
def test_impossible_caches_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        dc.simulate_cache(history(10), *arguments)


def test_caches_need_donors_and_known_sharing_and_real_sizes():
    with pytest.raises(UsageError, match="no donors"):
        dc.simulate_cache(history(1, strategy=RandomSearch()), "lru", 5, P)
    with pytest.raises(UsageError, match="shared is 'unchanged' or 'prefix'"):
        dc.simulate_cache(hand_made(), "lru", 5, P, shared="suffix")
    with pytest.raises(UsageError, match="negative sizes"):
        dc.simulate_cache(hand_made(), "lru", 5, P, bytes_of=lambda name, value: -1)
