"""The search phase judged: policies against random selection, true ranks, and what weight sharing does to rankings."""

from __future__ import annotations

import json
import math
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from random import Random

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from archipel.core.choice import Choice
from archipel.core.decision import Decision
from archipel.core.errors import RunError, SpaceError, UsageError
from archipel.core.space import Space, when
from archipel.data import Dataset, Split
from archipel.search import metrics as ranking
from archipel.search.blackbox.evolution import RegularizedEvolution
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.evaluation.eval_nas import (
    Truth,
    evaluate_search_phase,
    expected_p_surpass,
    search_phase_table,
    tabular_evaluation,
)
from archipel.search.evaluation.judging import EVALUATION_SEEDS, StandAlone, judge_all, judge_grid
from archipel.search.evaluation.notebook import Notebook, run_all
from archipel.search.evaluation.policies import (
    Found,
    Policy,
    SearchTask,
    random_policy,
    run_policies,
    start_strategy,
    strategy_policy,
)
from archipel.search.evaluation.runs import Runs
from archipel.search.evaluation.sharing_sweep import Agreeing, sharing_sweep
from archipel.search.evaluation.weight_sharing import (
    alone_disorder,
    rank_change_svg,
    rank_disorder,
    shared_scores,
    sharing_disorder,
)
from archipel.search.oneshot.spos import SPOS
from archipel.search.strategy import Strategy
from archipel.search.training import Diverged, Recipe, evaluate, train
from archipel.spaces.module_space import ModuleSpace

torch.set_num_threads(1)

SPACE = Space([Decision(f"op{i}", ["a", "b", "c", "d"]) for i in range(4)])  # 256 architectures
ARCHS = list(SPACE.enumerate())
VALUES = dict(zip(map(SPACE.canonical, ARCHS), np.random.default_rng(0).normal(0.7, 0.02, 256).tolist()))
TRUTH = Truth.of_values(SPACE, VALUES)
TASK = SearchTask(SPACE, table=TRUTH.value)
RUNS = partial(Runs, protocol={"epochs": 8})


def best_of(draws: int, noise: float, task: SearchTask, rng: Random, seed: int) -> Found:
    """A good policy: the best of some random architectures by a slightly noisy truth."""
    archs = [task.space.sample(rng) for _ in range(draws)]
    return Found(max(archs, key=lambda a: task.evaluate(a, seed) + rng.gauss(0, noise)), draws)


PLANTED = Policy("planted", partial(best_of, 10, 0.002), {"draws": 10})


def blobs(n: int = 96, features: int = 6, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return Split(torch.randn(n, features, generator=generator) + y[:, None] * torch.linspace(-1, 1, features), y)


def dataset() -> Dataset:
    return Dataset("blobs", blobs(seed=0), blobs(48, seed=1), blobs(48, seed=2), "classification", 3)


def perceptron() -> nn.Module:
    def options() -> dict[str, nn.Module]:
        return {"linear": nn.Linear(6, 6), "tanh": nn.Sequential(nn.Linear(6, 6), nn.Tanh()), "skip": nn.Identity()}

    return nn.Sequential(Choice("op0", options()), Choice("op1", options()), nn.Linear(6, 3))


NETS = ModuleSpace(perceptron, torch.zeros(2, 6), "perceptron")
RECIPE = Recipe(epochs=2, batch_size=32)
QUICK_SPOS = partial(SPOS, epochs=2, batch_size=32, population=4, generations=1, top=2, crossover=2, mutation=2)


# --- 1. the search phase ---------------------------------------------------------------------------------------------


def test_a_planted_good_policy_is_detected_and_the_random_policy_is_added_by_itself():
    report = evaluate_search_phase([PLANTED], TASK, TRUTH, seeds=10)
    (row,) = report["rows"]
    assert row["method"] == "planted"
    assert row["reference"] == "random"
    assert row["verdict"] == "better than random"
    assert row["mann_whitney_p"] < 0.05
    assert row["welch_p"] < 0.05
    assert row["cohens_d"] > 1.0
    assert row["superiority"] > 0.8
    assert row["p_random_better"] == pytest.approx(1 - row["superiority"])
    assert [r.name for r in report["runs"]] == ["planted", "random"]
    assert "planted" in report["text"]
    assert "better than random" in report["text"]


def test_random_against_random_is_not_flagged_in_at_least_90_percent_of_50_repeats():
    quiet = 0
    for repeat in range(50):
        runs = run_policies(
            [random_policy("random"), random_policy("other")], TASK, TRUTH, range(10 * repeat, 10 * repeat + 10)
        )
        (row,) = search_phase_table(runs)["rows"]
        quiet += row["mann_whitney_p"] > 0.05
    assert quiet >= 45


def test_the_power_to_detect_the_best_of_ten_is_high_and_falls_with_best_of_five():
    rng = np.random.default_rng(0)
    powers = {}
    for draws in (10, 5, 1):
        found = rng.random((2000, 10, draws)).max(2)
        p = stats.mannwhitneyu(found, rng.random((2000, 10)), axis=1, alternative="two-sided").pvalue
        powers[draws] = (p < 0.05).mean()
    assert powers[10] > 0.93
    assert 0.7 < powers[5] < 0.9
    assert powers[1] < 0.07  # the level


def test_tests_and_effect_sizes_equal_independent_computations():
    a, b = [0.71, 0.73, 0.70, 0.75], [0.69, 0.70, 0.72, 0.68]
    row = search_phase_table([RUNS("policy", a), RUNS("random", b)])["rows"][0]
    assert row["welch_p"] == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert row["mann_whitney_p"] == pytest.approx(stats.mannwhitneyu(a, b).pvalue)
    pooled = math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
    assert row["cohens_d"] == pytest.approx((np.mean(a) - np.mean(b)) / pooled)
    assert row["superiority"] == (3 + 4 + 2.5 + 4) / 16  # of .71, .73, .70 (one tie) and .75
    assert row["results"] == {"n": 4, "mean": pytest.approx(0.7225), "std": pytest.approx(np.std(a, ddof=1)),
                              "worst": 0.70, "best": 0.75}  # fmt: skip


def test_means_are_compared_with_means_and_best_with_best():
    """A policy that is random but for one lucky run shows no difference, although its best beats the random mean."""
    lucky = [0.70, 0.69, 0.71, 0.70, 0.69, 0.80]
    row = search_phase_table([RUNS("lucky", lucky), RUNS("random", [0.70, 0.71, 0.69, 0.70, 0.71, 0.69])])["rows"][0]
    assert row["verdict"] == "no difference shown"
    assert row["results"]["best"] > row["random"]["best"]
    assert any("best run" in note for note in row["notes"])


def test_ties_and_constant_results_are_handled():
    tied = search_phase_table([RUNS("policy", [0.7] * 4), RUNS("random", [0.7] * 4)])["rows"][0]
    assert tied["mann_whitney_p"] == 1.0
    assert tied["welch_p"] is None
    assert tied["cohens_d"] is None
    assert tied["superiority"] == 0.5
    assert tied["verdict"] == "no difference shown"
    assert any("no spread" in note for note in tied["notes"])
    some = search_phase_table([RUNS("policy", [0.7, 0.7, 0.8]), RUNS("random", [0.7, 0.7, 0.6])])["rows"][0]
    assert some["superiority"] == (1 + 1 + 1) / 9 + 2 / 9 + 0.5 * 4 / 9


def test_reports_are_json_and_carry_the_search_beside_the_result():
    report = evaluate_search_phase([PLANTED], TASK, TRUTH, seeds=3)
    row = report["rows"][0]
    assert row["search"] == {"settings": {"draws": 10}, "queries": 10.0, "seconds": pytest.approx(0, abs=5)}
    assert len(row["values"]) == 3
    assert "3 seeds" in report["notes"][0]
    json.dumps({k: v for k, v in report.items() if k != "runs"}, allow_nan=False)


def test_a_single_seed_is_refused():
    with pytest.raises(UsageError, match=r"1 seed\(s\): need >= 2 for a standard deviation"):
        evaluate_search_phase([PLANTED], TASK, TRUTH, seeds=1)
    with pytest.raises(UsageError, match=r"policy: 1 run\(s\), need >= 2"):
        search_phase_table([RUNS("policy", [0.7]), RUNS("random", [0.6, 0.7])])


def test_policies_trained_with_different_recipes_are_refused_and_the_difference_is_named():
    short, long = ({"recipe": {"epochs": e, "lr": 0.1}} for e in (8, 20))
    with pytest.raises(UsageError, match=r"different protocols \(recipe.epochs: 20 and 8\)"):
        search_phase_table([Runs("policy", [0.7, 0.8], long), Runs("random", [0.6, 0.7], short)])


def test_missing_runs_are_never_averaged_over():
    runs = Runs("policy", [0.7, math.nan], {"epochs": 8}, search_seeds=[4, 5], failures=[None, "training diverged"])
    with pytest.raises(UsageError, match=r"policy: run 1 \(search seed 5\) has no result: training diverged"):
        search_phase_table([runs, RUNS("random", [0.6, 0.7])])


def test_runs_without_the_random_policy_are_refused():
    with pytest.raises(UsageError, match="No runs of the random policy 'random'"):
        search_phase_table([RUNS("policy", [0.7, 0.8])])


# --- policies, seeds, recipes ----------------------------------------------------------------------------------------


def test_all_policies_share_one_recipe_hash_and_seeds_of_search_and_evaluation_are_disjoint():
    runs = run_policies([random_policy(), PLANTED, strategy_policy("rs", RandomSearch, trials=3)], TASK, TRUTH, 5)
    assert len({r.protocol_hash for r in runs}) == 1
    for r in runs:
        assert not set(r.search_seeds) & set(r.evaluation_seeds)
        assert min(r.evaluation_seeds) >= EVALUATION_SEEDS > max(r.search_seeds)


def test_overlapping_or_repeated_seeds_and_names_are_refused():
    with pytest.raises(UsageError, match=r"seeds \[1\] were used for searching and for evaluating"):
        RUNS("policy", [0.7, 0.8], search_seeds=[0, 1], evaluation_seeds=[1, 2])
    for seeds in ([0, 0], [EVALUATION_SEEDS], [-1]):
        with pytest.raises(UsageError, match="Search seeds are different numbers from 0"):
            run_policies([random_policy()], TASK, TRUTH, seeds)
    with pytest.raises(UsageError, match="a name of its own"):
        run_policies([random_policy(), random_policy()], TASK, TRUTH, 2)
    with pytest.raises(UsageError, match="2 results but 1 archs"):
        RUNS("policy", [0.7, 0.8], archs=[{}])


def test_the_random_policy_is_uniform_and_differs_by_seed_and_name():
    counts = dict.fromkeys("abcd", 0)
    for seed in range(2000):
        counts[random_policy().search(TASK, seed).arch["op0"]] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    first = [random_policy().search(TASK, s).arch for s in range(8)]
    assert first == [random_policy().search(TASK, s).arch for s in range(8)]
    assert first != [random_policy("other").search(TASK, s).arch for s in range(8)]


def test_an_ask_tell_strategy_returns_the_best_of_its_trials():
    policy = strategy_policy("rs", partial(RandomSearch), trials=12)
    found = policy.search(TASK, 3)
    strategy_rng = Random("rs/3")
    draws = [SPACE.sample(strategy_rng) for _ in range(12)]
    assert found.arch == max(draws, key=TRUTH.value)
    assert found.queries == 12
    assert policy.settings["trials"] == 12
    evolved = run_policies([strategy_policy("ev", partial(RegularizedEvolution), trials=60)], TASK, TRUTH, 6)[0]
    assert TRUTH.percentiles(evolved.values).mean() > 0.9


def test_with_one_trial_a_strategy_answers_its_first_proposal_without_training_any():
    def table(arch):
        raise AssertionError("nothing is evaluated")

    found = strategy_policy("rs", RandomSearch).search(SearchTask(SPACE, table=table), 0)
    assert found.queries == 0
    assert found.arch == SPACE.sample(Random("rs/0"))


def test_policies_that_return_no_architecture_of_the_space_or_a_front_are_refused():
    with pytest.raises(SpaceError, match="'op3' is missing"):
        Policy("broken", lambda task, rng, seed: Found({f"op{i}": "a" for i in range(3)})).search(TASK, 0)

    class Front(Strategy):
        multi_objective = True

    with pytest.raises(UsageError, match="returns a Pareto set"):
        strategy_policy("front", Front).search(TASK, 0)
    with pytest.raises(UsageError, match="at least one trial"):
        strategy_policy("none", RandomSearch, trials=0)


def test_failed_candidates_are_told_and_a_search_without_any_success_says_so():
    def table(arch):
        if arch["op0"] != "a":
            raise Diverged("loss is inf")
        return TRUTH.value(arch)

    def never(arch):
        raise Diverged("loss is nan")

    assert strategy_policy("rs", RandomSearch, trials=30).search(SearchTask(SPACE, table=table), 0).arch["op0"] == "a"
    with pytest.raises(RunError, match=r"rs, seed 0: none of 2 trials gave a candidate \(NaN: loss is nan\)"):
        strategy_policy("rs", RandomSearch, trials=2).search(SearchTask(SPACE, table=never), 0)


def test_a_search_task_never_holds_the_test_split():
    data = dataset()
    assert SearchTask(NETS, data).dataset.sealed_test is None
    assert data.sealed_test is not None


# --- judging ---------------------------------------------------------------------------------------------------------


def test_evaluation_never_shares_weights_with_the_search():
    """A policy leaves its supernet ruined; what it found is trained from new weights all the same."""
    kept = []

    def choose(task, rng, seed):
        supernet = task.space.supernet()
        for p in supernet.parameters():
            p.data.fill_(math.nan)
        kept.append(supernet)
        return Found({"op0": "linear", "op1": "skip"})

    judge = StandAlone.on(dataset(), NETS, RECIPE)
    (runs,) = run_policies([Policy("ruins", choose)], SearchTask(NETS, dataset()), judge, 2)
    for value, seed in zip(runs.values, runs.evaluation_seeds):
        net = NETS.build({"op0": "linear", "op1": "skip"}, seed)  # by hand
        data = dataset()
        train(net, data.train, data.task, RECIPE, seed)
        assert value == evaluate(net, data.sealed_test, data.task)["accuracy"]


def test_the_test_split_is_opened_once_for_a_stated_purpose():
    data = dataset()
    StandAlone.on(data, NETS, RECIPE)
    assert data.openings == ["stand-alone evaluation of architectures of perceptron"]
    StandAlone.on(data, NETS, RECIPE, "val")
    assert len(data.openings) == 1
    with pytest.raises(UsageError, match="'test' or 'val'"):
        StandAlone.on(data, NETS, RECIPE, "train")


def test_protocols_differ_with_recipe_data_and_the_size_of_the_networks():
    judge = StandAlone.on(dataset(), NETS, RECIPE)
    same = StandAlone.on(dataset(), NETS, RECIPE)
    assert judge.protocol == same.protocol

    def wide() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 12), Choice("op", {"relu": nn.ReLU(), "tanh": nn.Tanh()}), nn.Linear(12, 3))

    assert StandAlone.on(dataset(), NETS, Recipe(epochs=3)).protocol != judge.protocol
    assert StandAlone.on(dataset(), NETS, RECIPE, "val").protocol != judge.protocol
    assert StandAlone.on(dataset(), ModuleSpace(wide, torch.zeros(1, 6)), RECIPE).protocol != judge.protocol


class Counting:
    """A judge that counts."""

    space, protocol = SPACE, {"counts": True}

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, arch, seed):
        self.calls.append(seed)
        return VALUES[SPACE.canonical(arch)] + 1e-9 * seed


def test_equal_networks_are_judged_once_and_the_notebook_remembers_them(tmp_path):
    judge, path = Counting(), tmp_path / "deep" / "notes.jsonl"
    pairs = [(ARCHS[0], 1), (ARCHS[1], 1), (dict(reversed(ARCHS[0].items())), 1), (ARCHS[0], 2)]
    first = judge_all(judge, pairs, notebook=Notebook(path))
    assert judge.calls == [1, 1, 2]
    assert first[0] == first[2]
    again = judge_all(judge, pairs, notebook=Notebook(path))
    assert again == first
    assert len(judge.calls) == 3


def test_an_interrupted_study_goes_on_and_a_line_cut_short_is_measured_again(tmp_path):
    path = tmp_path / "notes.jsonl"
    judge = Counting()
    whole = run_policies([PLANTED, random_policy()], TASK, judge, 4, notebook=Notebook(path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]) + lines[10][:20])  # killed in the middle of a write
    book = Notebook(path)
    assert len(book.entries) == 10
    resumed = run_policies([PLANTED, random_policy()], TASK, judge, 4, notebook=book)
    assert [r.values for r in resumed] == [r.values for r in whole]
    assert len(Notebook(path).entries) == len(lines)  # nothing of the torn line is left
    path.write_bytes(b"".join([*lines[:2], b"{broken\n", *lines[3:]]))
    with pytest.raises(RunError, match="line 3 is damaged"):
        Notebook(path)


def test_what_was_finished_is_kept_when_a_later_call_fails(tmp_path):
    def fail():
        raise ZeroDivisionError

    for executor in (None, ThreadPoolExecutor(1)):
        book = Notebook(tmp_path / f"{executor is None}.jsonl")
        with pytest.raises(ZeroDivisionError):
            run_all({"a": (abs, (-1,)), "b": (fail, ())}, executor, book)
        assert Notebook(book.path).entries == {"a": 1}


def test_a_notebook_that_cannot_be_written_gives_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"could not be written|cannot be written"):
        Notebook(tmp_path / "file" / "notes.jsonl").add("a", 1)


def test_any_executor_gives_the_same_results_and_threads_do_not_disturb_each_others_randomness():
    judge = StandAlone.on(dataset(), NETS, RECIPE)
    archs = [NETS.sample(Random(i)) for i in range(3)]
    alone = judge_grid(judge, archs, 2)
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(judge_grid(judge, archs, 2, pool), alone)
    with ProcessPoolExecutor(1) as pool:
        assert run_all({"a": (math.sqrt, (4.0,))}, pool, Notebook()) == [2.0]
        with pytest.raises(UsageError, match="cannot be sent to another process"):
            run_all({"a": (lambda: 1, ())}, pool, Notebook())
    copy = pickle.loads(pickle.dumps(judge))
    assert copy(archs[0], EVALUATION_SEEDS) == alone[0, 0]


def test_torchs_generator_is_left_as_it_was():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    judge_grid(StandAlone.on(dataset(), NETS, RECIPE), [NETS.sample(Random(0))], 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_diverged_training_has_a_reason_instead_of_a_value():
    judge = StandAlone.on(dataset(), NETS, Recipe(epochs=2, optimizer="sgd", lr=1e30, clip=0.0))
    (result,) = judge_all(judge, [({"op0": "linear", "op1": "linear"}, EVALUATION_SEEDS)])
    assert result["value"] is None
    assert "diverged" in result["failure"]
    with pytest.raises(UsageError, match=r"has no result under seed .* diverged"):
        judge_grid(judge, [{"op0": "linear", "op1": "linear"}], 1)
    policy = Policy("linear", lambda task, rng, seed: Found({"op0": "linear", "op1": "linear"}))
    (runs,) = run_policies([policy], SearchTask(NETS, dataset()), judge, 2)
    assert math.isnan(runs.values[0])
    with pytest.raises(UsageError, match=r"linear: run 0 \(search seed 0\) has no result: training diverged"):
        runs.checked()


# --- 2. spaces that are known in full --------------------------------------------------------------------------------


def test_golden_probabilities_to_surpass_random_search():
    assert ranking.p_surpass_random(rank_from_worst=15_000, total=15_625, draws=10) == pytest.approx(0.664833, abs=1e-6)
    assert ranking.p_surpass_random(rank_from_worst=423_000, total=423_624) == pytest.approx(0.985367, abs=1e-6)


def test_a_random_architecture_has_percentile_one_half_and_p_of_one_over_n_plus_one():
    assert TRUTH.percentiles(TRUTH.population).mean() == pytest.approx(0.5, abs=1e-12)
    for total, n in ((256, 10), (15_625, 10), (1000, 5)):
        exact = sum((r / total) ** n for r in range(1, total + 1)) / total
        assert expected_p_surpass(total, n) == pytest.approx(exact, rel=1e-12)
        assert exact == pytest.approx(1 / (n + 1) + 1 / (2 * total), abs=n / total**2)
        assert abs(exact - 0.5) > 0.3
    row = tabular_evaluation([RUNS("all", [0.0] * 256, archs=ARCHS)], TRUTH)["rows"][0]
    assert row["p_surpass"] == pytest.approx(expected_p_surpass(256, 10), rel=1e-12)
    assert row["percentile"] == pytest.approx(0.5)
    assert row["chance_p"] == pytest.approx(1.0)


def test_percentiles_average_one_half_and_p_is_exact_with_ties_too():
    rng = np.random.default_rng(1)
    tied = Truth.of_values(SPACE, {k: round(v, 2) for k, v in VALUES.items()})
    assert len(np.unique(tied.population)) < 20
    assert tied.percentiles(tied.population).mean() == pytest.approx(0.5, abs=1e-12)
    arch = ARCHS[7]
    top = int(tied.ranks_from_worst([tied(arch)])[0][0])
    draws = rng.choice(tied.population, (200_000, 3))
    simulated = (draws <= tied(arch)).all(1).mean()
    assert ranking.p_surpass_random(top, 256, 3) == pytest.approx(simulated, abs=0.004)
    assert top == ranking.rank_from_worst(tied(arch), tied.population)


def test_p_equals_the_probability_that_all_uniform_draws_rank_no_higher():
    rng = np.random.default_rng(2)
    for r, total, n in ((200, 256, 10), (40, 50, 4), (1, 6, 2)):
        draws = rng.integers(1, total + 1, (200_000, n))
        assert ranking.p_surpass_random(r, total, n) == pytest.approx((draws <= r).all(1).mean(), abs=0.004)


def test_a_tabular_evaluation_tells_a_planted_policy_from_chance():
    planted, random = run_policies([PLANTED, random_policy()], TASK, TRUTH, 10)
    report = tabular_evaluation([planted, random], TRUTH)
    good, chance = report["rows"]
    assert good["percentile"] > 0.8
    assert not good["contains_chance"]
    assert good["chance_p"] < 1e-3
    assert good["p_surpass"] > chance["p_surpass"]
    assert chance["contains_chance"]
    assert chance["chance_p"] > 0.05
    assert report["chance"]["p_surpass"] == pytest.approx(expected_p_surpass(256, 10))
    assert "of 256" in report["text"]
    json.dumps(report, allow_nan=False)


def test_chance_p_is_uniform_for_random_policies():
    rng = np.random.default_rng(3)
    ps = []
    for _ in range(300):
        archs = [ARCHS[i] for i in rng.integers(0, 256, 10)]
        runs = RUNS("random", [0.0] * 10, archs=archs)
        values = [TRUTH(a) for a in archs]
        mean = TRUTH.percentiles(values).mean()
        z = (mean - 0.5) / (TRUTH.percentiles(TRUTH.population).std() / math.sqrt(10))
        ps.append(2 * stats.norm.sf(abs(z)))
        if len(ps) == 1:
            assert tabular_evaluation([runs], TRUTH)["rows"][0]["chance_p"] == pytest.approx(ps[0])
    assert stats.kstest(ps, "uniform").pvalue > 0.01


def test_ranks_count_from_the_worst_and_the_best_architecture_ranks_highest():
    best = max(ARCHS, key=TRUTH)
    worst = min(ARCHS, key=TRUTH)
    row = tabular_evaluation([RUNS("both", [0.0, 0.0], archs=[best, worst])], TRUTH)["rows"][0]
    assert row["ranks_from_worst"] == [256, 1]
    with pytest.raises(TypeError, match="rank_from_best"):
        ranking.p_surpass_random(rank_from_best=1, total=256)
    with pytest.raises(UsageError, match="counts from the best, pass total"):
        ranking.p_surpass_random(0, 256)


def test_a_truth_needs_the_whole_space_and_known_values():
    partly = {k: v for k, v in VALUES.items() if k != SPACE.canonical(ARCHS[3])}
    with pytest.raises(UsageError, match="1 architectures of space have no true value"):
        Truth.of_values(SPACE, partly)
    with pytest.raises(UsageError, match="is none of the population's 256"):
        TRUTH.percentiles([0.5])
    with pytest.raises(UsageError, match="need >= 2 for an interval"):
        tabular_evaluation([RUNS("one", [0.0], archs=ARCHS[:1])], TRUTH)
    with pytest.raises(UsageError, match="missing or infinite"):
        Truth.of_values(SPACE, {**VALUES, SPACE.canonical(ARCHS[3]): math.nan})


# --- 3. weight sharing -----------------------------------------------------------------------------------------------


def test_tau_of_equal_rankings_is_one_of_reversed_ones_minus_one_and_ties_are_tau_b():
    truth = [0.1, 0.4, 0.2, 0.9]
    assert rank_disorder(truth, truth)["tau"] == 1.0
    assert rank_disorder([-t for t in truth], truth)["tau"] == -1.0
    tied = [0.1, 0.4, 0.1, 0.9]
    assert rank_disorder(tied, truth)["tau"] == pytest.approx(stats.kendalltau(tied, truth)[0])
    assert rank_disorder(tied, truth)["tau"] == pytest.approx(5 / math.sqrt(6 * 5))


def test_disorder_is_shown_beside_the_ceiling_and_its_like():
    rng = np.random.default_rng(0)
    quality = rng.normal(0, 1, 64)
    alone = quality + rng.normal(0, 0.5, (4, 64))
    shared = 0.1 * quality + rng.normal(0, 1, (5, 64))
    out = rank_disorder(shared, alone)
    assert out["ceiling"] == pytest.approx(ranking.noise_ceiling(list(alone)))
    assert out["tau"] == pytest.approx(np.mean([stats.kendalltau(row, alone.mean(0))[0] for row in shared]))
    assert out["tau_single"] == pytest.approx(np.mean([stats.kendalltau(row, a)[0] for row in shared for a in alone]))
    assert out["tau"] < 0.3 < out["ceiling"]
    assert out["tau_std"] == pytest.approx(np.std(list(out["tau_each"].values()), ddof=1))
    perfect = rank_disorder(alone[:1], alone[1:])
    assert perfect["tau_single"] == pytest.approx(perfect["ceiling"], abs=0.08)  # a fifth seed of the truth itself


def test_rank_changes_are_counted_from_the_worst_with_ties_at_their_mean():
    out = rank_disorder([3.0, 1.0, 1.0, 2.0], [0.1, 0.2, 0.3, 0.4], names=list("abcd"))
    assert [(c["name"], c["true_rank"], c["scored_rank"], c["change"]) for c in out["changes"]] == [
        ("a", 1.0, 4.0, 3.0), ("b", 2.0, 1.5, -0.5), ("c", 3.0, 1.5, -1.5), ("d", 4.0, 3.0, -1.0),
    ]  # fmt: skip
    assert out["mean_rank_change"] == 1.5
    assert out["architectures"] == 4
    assert "<svg" in rank_change_svg(out)


def test_the_jackknife_error_is_about_the_spread_over_draws_of_architectures():
    rng = np.random.default_rng(0)
    taus, errors = [], []
    for _ in range(40):
        truth = rng.normal(0, 1, 16)
        out = rank_disorder(truth + rng.normal(0, 1, 16), truth)
        taus.append(out["tau"])
        errors.append(out["tau_error"])
    assert np.mean(errors) == pytest.approx(np.std(taus, ddof=1), rel=0.35)


def test_a_supernet_that_scores_all_alike_has_no_tau():
    with pytest.warns(ranking.RankingWarning, match="tied"):
        out = rank_disorder([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]], [1.0, 2.0, 3.0])
    assert out["tau"] is None
    assert out["tau_each"] == {"0": None, "1": pytest.approx(1.0)}
    assert out["ceiling"] is None
    assert out["tau_error"] is None


def test_scores_and_truth_must_be_of_the_same_architectures_and_complete():
    with pytest.raises(UsageError, match=r"shapes are \(1, 3\) and \(1, 4\)"):
        rank_disorder([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(UsageError, match="missing or infinite"):
        rank_disorder([1, 2, math.nan], [1, 2, 3])
    with pytest.raises(UsageError, match="at least 3"):
        rank_disorder([1, 2], [1, 2])


class Noisy(RandomSearch):
    """Has scores of a supernet that are the truth and noise, the more of it the more networks share."""

    def __init__(self, noise: float = 0.0, per_network: float = 0.0) -> None:
        self.noise, self.per_network = noise, per_network

    def shared_scores(self, archs):
        sigma = self.noise + self.per_network * math.log2(self.problem.space.size)
        rng = np.random.default_rng([int(self.problem.rng.random() * 2**32), *self.problem.space.name.encode()])
        return [TRUTH.value(a) + sigma * rng.normal() for a in archs]


SOME = ARCHS[::5]  # every fifth in lexicographic order: a fixed choice made before looking
ALONE = np.array([[TRUTH(a) for a in SOME]] * 2) + np.random.default_rng(5).normal(0, 0.004, (2, len(SOME)))


def test_disorder_of_a_strategys_supernet_is_measured_over_seeds_and_lengths():
    out = sharing_disorder(partial(Noisy, noise=0.02), TASK, SOME, ALONE, seeds=3, epochs=(None, 5))
    assert list(out["tau_each"]) == ["seed 0", "seed 0, 5 epochs", "seed 1", "seed 1, 5 epochs", "seed 2",
                                     "seed 2, 5 epochs"]  # fmt: skip
    assert 0.2 < out["tau"] < out["ceiling"]
    assert len({round(t, 6) for t in out["tau_each"].values()}) == 3  # this one does not depend on epochs
    with pytest.raises(UsageError, match="RandomSearch has no supernet"):
        sharing_disorder(RandomSearch, TASK, SOME, ALONE)


def test_without_sharing_candidates_are_scored_by_training_them_alone():
    out = alone_disorder(TASK, SOME, ALONE, seeds=2)
    assert out["tau"] == pytest.approx(stats.kendalltau([TRUTH(a) for a in SOME], ALONE.mean(0))[0])
    trained = alone_disorder(SearchTask(NETS, dataset(), RECIPE), list(NETS.enumerate())[:4], np.arange(4.0), seeds=1)
    assert trained["architectures"] == 4


def test_less_sharing_orders_better_where_sharing_is_what_disturbs():
    levels = [[], ["op0"], ["op0", "op1", "op2"], ["op0", "op1", "op2", "op3"]]
    out = sharing_sweep(partial(Noisy, per_network=0.004), TASK, SOME, ALONE, levels, seeds=3)
    rows = out["rows"]
    assert [r["supernets"] for r in rows] == [1, 4, 64, 256]
    assert [r["networks"] for r in rows] == [256, 64, 4, 1]
    assert [r["trained"] for r in rows] == [1, 4, len({tuple(a.values())[:3] for a in SOME}), len(SOME)]
    assert rows[0]["tau"] < rows[2]["tau"] < rows[3]["tau"]  # noise of .032, .008 and 0 beside a spread of .02
    assert rows[-1]["tau"] == pytest.approx(stats.kendalltau([TRUTH(a) for a in SOME], ALONE.mean(0))[0])
    assert "op0, op1, op2" in out["text"]


def test_supernets_apart_are_told_apart_by_the_notebook(tmp_path):
    """Two levels that group the architectures alike fix different decisions, so their supernets differ."""
    same = [a for a in ARCHS if a["op0"] == a["op1"] == "a"]
    alone = np.array([[TRUTH(a) for a in same]] * 2)
    book = Notebook(tmp_path / "notes.jsonl")
    sharing_sweep(partial(Noisy, per_network=0.01), TASK, same, alone, [["op0"], ["op1"]], seeds=1, notebook=book)
    assert len(book.entries) == 2


def test_decisions_that_can_be_closed_or_do_not_exist_cannot_set_networks_apart():
    space = Space([Decision("a", [1, 2]), Decision("b", [1, 2])], {"b": [when(a=[1])]})
    with pytest.raises(UsageError, match="always open, unlike 'b'"):
        Agreeing(space, {"b": 1})
    with pytest.raises(UsageError, match=r"no decision 'c'"):
        Agreeing(space, {"c": 1})
    assert Agreeing(space, {"a": 1}).size == 2
    assert Agreeing(space, {"a": 2}).size == 1
    assert list(Agreeing(space, {"a": 2}).enumerate()) == [{"a": 2}]


def test_a_real_supernet_kept_apart_trains_only_networks_that_agree():
    space = Agreeing(NETS, {"op0": "linear"})
    archs = [a for a in NETS.enumerate() if a["op0"] == "linear"]
    assert space.size == 3
    task = SearchTask(space, dataset(), RECIPE)
    strategy = start_strategy(QUICK_SPOS, task, Random(0), seed=0)
    new, trained = dict(NETS.supernet().named_parameters()), dict(strategy.supernet.named_parameters())
    changed = {name for name in trained if not torch.equal(trained[name], new[name])}
    mine = {f"net.0.blended.0.{p}" for p in ("weight", "bias")}  # "linear" is the first option
    assert mine <= changed
    assert not {n for n in changed if n.startswith("net.0.")} - mine
    scores = shared_scores(QUICK_SPOS, task, archs, seed=0)
    assert len(scores) == 3
    assert all(0 <= s <= 1 for s in scores)


def test_supernets_kept_apart_start_from_the_weights_of_their_seed():
    by_seed = [Agreeing(NETS, {"op0": "linear"}, seed).supernet().net[2].weight for seed in (0, 1)]
    assert torch.equal(by_seed[0], NETS.supernet(0).net[2].weight)
    assert torch.equal(by_seed[1], NETS.supernet(1).net[2].weight)
    assert not torch.equal(*by_seed)


def test_one_shot_and_random_policies_go_through_the_same_evaluation():
    judge = StandAlone.on(dataset(), NETS, RECIPE)
    report = evaluate_search_phase([strategy_policy("spos", QUICK_SPOS)], SearchTask(NETS, dataset(), RECIPE), judge, 2)
    (row,) = report["rows"]
    assert row["search"]["settings"]["strategy"].endswith("SPOS")
    assert row["search"]["settings"]["epochs"] == 2
    assert {r.protocol_hash for r in report["runs"]} == {report["protocol_hash"]}
    assert all(0 <= v <= 1 for v in row["values"])
