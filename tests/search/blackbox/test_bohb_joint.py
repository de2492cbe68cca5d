"""BOHB over joint spaces: when a model is used, on what, and what it gains."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from random import Random

import numpy as np
import pytest
from scipy import stats

from archipel.core.decision import Decision, Real
from archipel.core.errors import SpaceError, UsageError
from archipel.core.space import JointSpace, Space, when
from archipel.search.blackbox.bohb_joint import BOHB, to_arch, to_point
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.joint import DEFAULT, HYPERPARAMETERS, IMAGE, held, training_hyperparameters
from archipel.search.strategy import Problem, Trial

SHAPE = Space(
    [
        Decision("depth", [1, 2, 3, 4], ordered=True),
        Real("width", 8, 128, log=True, integer=True),
        Decision("op", ["conv", "skip", "pool"]),
        Decision("kernel", [3, 5, 7], ordered=True),
        Decision("classes", [10]),
    ],
    {"kernel": [when(op=["conv", "pool"])]},
)
JOINT = JointSpace(SHAPE, training_hyperparameters("lr", "momentum"))
N_MIN = 7  # six decisions have an alternative
CUBE = Space([Real(f"x{i}", 0.0, 1.0) for i in range(4)])


def search(space: Space = JOINT, max_resource: int = 27, seed: int = 0, feasible=None, **settings) -> BOHB:
    strategy = BOHB(**settings)
    strategy.setup(Problem(space, rng=Random(seed), feasible=feasible, max_resource=max_resource))
    return strategy


def ask(strategy) -> Trial:
    trial = strategy.ask()
    assert trial is not None  # an endless search always has work
    return trial


def run(strategy, trials: int, score=lambda t: -math.log10(t.arch["lr"]) + t.arch["depth"]):
    done = []
    for _ in range(trials):
        trial = ask(strategy)
        value = score(trial)
        if value is None:
            trial.failure = "out of memory"
        else:
            trial.metrics = {"accuracy": value}
        strategy.tell(trial)
        done.append(trial)
    return done


def observe(strategy: BOHB, budget: int, n: int, score=lambda arch, i: float(i), seed: int = 1) -> None:
    rng = Random(seed)
    for i in range(n):
        arch = strategy.problem.space.sample(rng)
        strategy.observe(Trial(i, arch, budget), score(arch, i))


# --- settings ------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_reference():
    s = search()
    assert (s.eta, s.form, s.from_scratch) == (3, "floor", True)
    assert (float(s._top), s.candidates, s.random_fraction) == (0.15, 64, pytest.approx(1 / 3))
    assert (s.bandwidth_factor, s.min_bandwidth, s.disjoint) == (3, 1e-3, False)
    assert [[(r.size, r.budget) for r in b] for b in s.brackets] == [
        [(27, 1), (9, 3), (3, 9), (1, 27)],
        [(9, 3), (3, 9), (1, 27)],
        [(6, 9), (2, 27)],
        [(4, 27)],
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": 1}, "eta=1"),
        ({"b_min": 81}, "b_min=81 exceeds the full budget b_max=27"),
        ({"random_fraction": 1.5}, "random_fraction=1.5"),
        ({"top_fraction": -0.1}, "top_fraction=-0.1"),
        ({"candidates": 0}, "candidates=0"),
        ({"min_points": 0}, "min_points=0"),
        ({"bandwidth_factor": 0}, "bandwidth_factor=0"),
        ({"min_bandwidth": math.inf}, "min_bandwidth=inf"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(UsageError, match=message):
        search(**settings)


# --- when a model is used, and on what -------------------------------------------------------------------------------


def test_dimensions_leave_out_decisions_without_an_alternative():
    s = search()
    assert [d.name for d in s.dimensions] == ["depth", "width", "op", "kernel", "lr", "momentum"]
    assert s.categories_D.tolist() == [0, 0, 3, 0, 0, 0]
    assert s.n_min == N_MIN


def test_no_model_before_n_min_plus_two_observations():
    s = search(random_fraction=0)
    observe(s, 1, N_MIN + 1)
    assert s.propose()[1] == {"proposal": "random"}
    observe(s, 1, 1)
    assert s.propose()[1] == {"proposal": "model", "model_budget": 1}


def test_observations_of_different_budgets_are_never_added_up():
    s = search(random_fraction=0)
    for budget in (1, 3, 9):
        observe(s, budget, N_MIN + 1)
    assert s.model_budget() is None  # 24 in all, 8 on each


def test_the_largest_budget_with_enough_observations_is_modelled_alone():
    s = search(random_fraction=0)
    observe(s, 1, 50, seed=1)
    observe(s, 3, N_MIN + 2, seed=2)
    observe(s, 9, N_MIN + 1, seed=3)
    assert s.model_budget() == 3
    assert len(s.model(3).good.data_ND) == N_MIN
    points = np.stack(s.observations[3].points)
    open_ = ~np.isnan(points).any(axis=1)
    modelled = np.concatenate([s.model(3).good.data_ND, s.model(3).bad.data_ND])
    assert all((modelled == p).all(axis=1).any() for p in points[open_])


def test_proposals_in_a_run_never_use_a_model_too_early_and_use_the_right_budget():
    s = search()
    modelled = 0
    for _ in range(200):
        enough = [b for b, seen in s.observations.items() if len(seen.scores) >= N_MIN + 2]
        trial = ask(s)
        info = trial.info or {}
        if info.get("proposal") == "model":
            assert info["model_budget"] == max(enough)
            modelled += 1
        trial.metrics = {"accuracy": trial.arch["momentum"]}
        s.tell(trial)
    assert modelled > 40
    assert set(s.observations) == {1, 3, 9, 27}


def test_random_fraction_converges_to_a_third_once_a_model_exists():
    s = search(CUBE, candidates=2)
    observe(s, 1, 30)
    share = np.mean([s.propose()[1]["proposal"] == "random" for _ in range(3000)])
    assert share == pytest.approx(1 / 3, abs=0.03)  # 3.5 standard errors


@pytest.mark.parametrize(
    ("n", "good", "bad"),
    [(9, 7, 7), (13, 7, 7), (14, 7, 7), (20, 7, 13), (46, 7, 39), (54, 8, 46), (100, 15, 85), (140, 21, 119)],
)
def test_groups_are_the_best_and_the_worst_and_overlap_below_twice_n_min(n, good, bad):
    scores = [float(x) for x in np.random.default_rng(n).permutation(n)]
    first, last = search().split(scores)
    assert sorted(np.array(scores)[first]) == list(range(n - good, n))
    assert sorted(np.array(scores)[last]) == list(range(bad))
    assert (len(set(first) & set(last)) > 0) == (n < 2 * N_MIN)


def test_disjoint_groups_wait_for_twice_n_min():
    s = search(disjoint=True, random_fraction=0)
    observe(s, 1, 2 * N_MIN - 1)
    assert s.model_budget() is None
    observe(s, 1, 1)
    assert s.model_budget() == 1
    for n in (14, 20, 200):
        first, last = s.split([float(i) for i in range(n)])
        assert not set(first) & set(last)
        assert len(first) + len(last) == n


def test_ratio_equals_direct_computation_with_floored_densities():
    s = search(CUBE)
    observe(s, 1, 40)
    points, scores = np.stack(s.observations[1].points), np.array(s.observations[1].scores)
    order = np.argsort(-scores)
    x = np.random.default_rng(0).random((30, 4))
    x[0] = 40.0  # where both densities vanish

    def density(data):
        h = 1.06 * data.std(axis=0) * len(data) ** (-1 / 8)
        return stats.norm.pdf(x[:, None], data[None], h).prod(axis=2).mean(axis=1)

    good, bad = density(points[order[:6]]), density(points[order[6:]])  # 0.15 * 40 = 6 > N_min = 5
    np.testing.assert_allclose(s.model(1).ratio(x), np.maximum(good, 1e-32) / np.maximum(bad, 1e-32), rtol=1e-9)
    assert s.model(1).ratio(x)[0] == 1


def test_the_proposal_is_the_candidate_with_the_largest_ratio():
    s = search(CUBE, random_fraction=0)
    observe(s, 1, 40)
    model, twin = s.model(1), np.random.default_rng()
    twin.bit_generator.state = s._numpy_rng.bit_generator.state
    x = model.good.sample_near(64, 3.0, twin)
    best = x[np.argmax(model.ratio(x))]
    assert to_point(s.dimensions, s.propose()[0]) == pytest.approx(best)


# --- spaces --------------------------------------------------------------------------------------------------------


def test_points_and_architectures_map_to_each_other():
    rng = Random(0)
    s = search()
    for _ in range(200):
        arch = JOINT.sample(rng)
        point = to_point(s.dimensions, arch)
        assert np.isnan(point[3]) == (arch["op"] == "skip")
        back = to_arch(JOINT, s.dimensions, np.nan_to_num(point, nan=0.5), rng)
        assert back == pytest.approx(arch)


def test_a_uniform_position_is_a_uniform_option_of_an_ordered_decision():
    d = Decision("depth", [1, 2, 3, 4], ordered=True)
    space = Space([d])
    positions = (np.arange(4000) + 0.5) / 4000
    counts = Counter(to_arch(space, [d], np.array([x]), Random(0))["depth"] for x in positions)
    assert set(counts.values()) == {1000}
    for edge, option in ((0.0, 1), (1.0, 4)):
        assert to_arch(space, [d], np.array([edge]), Random(0)) == {"depth": option}


def test_every_proposal_is_a_valid_architecture_and_hyperparameters_are_searched_too():
    trials = run(search(), 300)
    for trial in trials:
        assert JOINT.validate(trial.arch) == trial.arch
    modelled = [t for t in trials if t.info.get("proposal") == "model"]
    assert len(modelled) > 50
    assert len({t.arch["lr"] for t in modelled}) == len(modelled)
    assert {t.arch["op"] for t in modelled} == {"conv", "skip", "pool"}


def test_a_space_of_one_architecture_is_proposed_again_and_again():
    trials = run(search(Space([Decision("only", ["this"])])), 60, score=lambda t: 0.5)
    assert all(t.arch == {"only": "this"} for t in trials)


def test_constant_categoricals_are_no_dimension_and_are_part_of_every_architecture():
    padded = Space([Decision("constant", ["c"]), *CUBE.decisions])
    s = search(padded, random_fraction=0)
    assert (s.n_min, len(s.dimensions)) == (5, 4)
    trials = run(s, 60, score=lambda t: t.arch["x0"])
    assert all(padded.validate(t.arch)["constant"] == "c" for t in trials)
    assert sum(t.info.get("proposal") == "model" for t in trials) > 10


def test_proposals_keep_the_limits():
    def small(arch):
        return arch["depth"] * arch["width"] <= 32

    trials = run(search(feasible=small), 150)
    assert all(small(t.arch) for t in trials)
    assert sum(t.info.get("proposal") == "model" for t in trials) > 20


def test_where_no_candidate_is_feasible_it_samples_and_says_so():
    s = search(CUBE, random_fraction=0)
    observe(s, 1, 40, score=lambda arch, i: 0.0)
    allowed = iter([False] * (16 * 64) + [True])
    s.problem.feasible = lambda arch: next(allowed)
    assert s.propose()[1] == {"proposal": "random", "reason": "no feasible candidate"}


def test_a_logarithm_of_a_non_positive_bound_is_refused():
    with pytest.raises(SpaceError, match="'lr' is on a log scale"):
        training_hyperparameters("lr", lr=(0.0, 1.0))


# --- failures ------------------------------------------------------------------------------------------------------


def test_failures_stay_in_the_bad_density_and_out_of_the_good_one():
    s = search(CUBE, random_fraction=0)
    observe(s, 1, 30, score=lambda arch, i: -math.inf if arch["x0"] > 0.5 else arch["x1"])
    crashed = np.stack(s.observations[1].points)
    crashed = crashed[crashed[:, 0] > 0.5]
    assert len(crashed) > 10
    assert (s.model(1).good.data_ND[:, 0] <= 0.5).all()
    assert all((s.model(1).bad.data_ND == p).all(axis=1).any() for p in crashed)
    assert np.mean([s.propose()[0]["x0"] < 0.55 for _ in range(100)]) > 0.95


def test_a_budget_on_which_nearly_all_failed_is_not_modelled():
    s = search(CUBE)
    observe(s, 1, 30, score=lambda arch, i: 0.5 if i < 4 else -math.inf)  # N_min = 5
    assert s.model_budget() is None


def test_a_run_in_which_everything_fails_goes_on_at_random():
    trials = run(search(), 120, score=lambda t: None)
    assert all(t.info["proposal"] == "random" for t in trials)


# --- behaviour -----------------------------------------------------------------------------------------------------


def test_same_seed_same_trajectory_in_plain_json():
    first, again, other = (run(search(seed=s), 150) for s in (1, 1, 2))
    assert [(t.arch, t.info) for t in first] == [(t.arch, t.info) for t in again]
    assert [t.arch for t in first] != [t.arch for t in other]
    assert all(json.loads(json.dumps([t.arch, t.info])) == [t.arch, t.info] for t in first)  # what a journal keeps


def test_budgets_are_trained_from_scratch_unless_told_otherwise():
    anew = run(search(), 60)
    assert all(t.resume is None and t.info["from_scratch"] is True for t in anew)  # the schedule ends with each budget
    resumed = run(search(from_scratch=False), 60)
    assert not any("from_scratch" in t.info for t in resumed)
    assert [t.resume for t in resumed if t.info["stage"]] == [
        t.info["promoted_from"] for t in resumed if t.info["stage"]
    ]


def test_parallel_workers_never_idle_and_failures_of_some_do_not_stop_others():
    s, rng, pending = search(), Random(0), []
    for step in range(400):
        while len(pending) < 8:
            pending.append(ask(s))
        trial = pending.pop(rng.randrange(8))
        if step % 7:
            trial.metrics = {"accuracy": trial.arch["momentum"]}
        else:
            trial.failure = "timeout"
        s.tell(trial)
    assert sum(len(o.scores) for o in s.observations.values()) == 400


def best_quadratic(strategy, seed: int, epochs: int = 810) -> float:
    """Loss of the best full evaluation of a deterministic quadratic of which small budgets see a shifted version."""
    target = [0.2 + 0.6 * Random(1000 + seed + i).random() for i in range(4)]
    strategy.setup(Problem(CUBE, rng=Random(seed), max_resource=27))
    spent, best = 0, math.inf
    while True:
        trial = ask(strategy)
        budget = trial.resource or 27
        spent += budget
        if spent > epochs:
            return best
        shift = 0.1 * (1 - budget / 27)
        loss = sum((x - t - shift) ** 2 for x, t in zip(trial.arch.values(), target))
        best = min(best, loss) if budget == 27 else best
        trial.metrics = {"accuracy": -loss}
        strategy.tell(trial)


def test_a_deterministic_quadratic_is_optimised_better_than_at_random_with_equal_epochs():
    pairs = [(best_quadratic(BOHB(), seed), best_quadratic(RandomSearch(), seed)) for seed in range(20)]
    assert sum(bohb < random for bohb, random in pairs) >= 15
    assert np.mean([b for b, _ in pairs]) < 0.75 * np.mean([r for _, r in pairs])


def test_a_thousand_observations_in_sixteen_dimensions_allow_a_hundred_proposals_a_second():
    space = Space([*(Real(f"x{i}", 0, 1) for i in range(12)), *(Decision(f"c{i}", "abc") for i in range(4))])
    s = search(space, random_fraction=0)
    observe(s, 27, 1000, score=lambda arch, i: arch["x0"])

    def batch() -> float:
        start = time.process_time()  # others may share the processor
        for i in range(20):
            observe(s, 27, 1, score=lambda arch, i: arch["x0"], seed=i)  # every proposal refits
            s.propose()
        return time.process_time() - start

    assert min(batch() for _ in range(5)) < 0.2


# --- joint spaces --------------------------------------------------------------------------------------------------


def test_training_hyperparameters_are_on_the_scales_of_the_field():
    by_name = {d.name: d for d in training_hyperparameters(*HYPERPARAMETERS)}
    assert {n for n, d in by_name.items() if isinstance(d, Real) and d.log} == {"lr", "weight_decay"}
    assert {n for n, d in by_name.items() if not d.ordered} == {"optimizer"}
    assert by_name["cutout"].contains(0)
    assert tuple(d.name for d in training_hyperparameters()) == DEFAULT
    assert {"cutout", "mixup"} < set(IMAGE) < set(HYPERPARAMETERS)


def test_the_trainer_takes_every_training_hyperparameter():
    from archipel.search.training import Recipe

    joint = JointSpace(SHAPE, training_hyperparameters(*HYPERPARAMETERS))
    hyper = joint.hyper(joint.sample(Random(0)))
    recipe = Recipe().with_hyper(hyper).as_dict()
    assert {name: recipe[name] for name in HYPERPARAMETERS} == hyper


def test_ranges_replace_the_defaults_and_keep_the_scale():
    replaced = training_hyperparameters("lr", "batch_size", lr=(0.01, 0.1), batch_size=[8, 16])
    assert replaced == [Real("lr", 0.01, 0.1, log=True), Decision("batch_size", [8, 16], ordered=True)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: training_hyperparameters("learning_rate"), "No training hyperparameter 'learning_rate'"),
        (lambda: training_hyperparameters("lr", "lr"), "named twice"),
        (lambda: training_hyperparameters("lr", momentum=(0, 1)), "Ranges for momentum, which are not among"),
        (lambda: training_hyperparameters("batch_size", batch_size=(8, 16)), "batch_size takes a list of options"),
        (lambda: training_hyperparameters("lr", lr=(0.1, 0.2, 0.3)), r"pair \(low, high\)"),
    ],
)
def test_mistaken_hyperparameters_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_held_hyperparameters_leave_only_the_architecture_open():
    nas = held(JOINT, lr=0.1, momentum=0.9)
    arch = nas.sample(Random(0))
    assert JOINT.validate(arch) == arch
    assert nas.hyper(arch) == {"lr": 0.1, "momentum": 0.9}
    assert nas.canonical(arch) == JOINT.canonical(arch)
    assert nas.size == SHAPE.size
    assert [d.name for d in search(nas).dimensions] == ["depth", "width", "op", "kernel"]


def test_holding_a_parent_closes_or_opens_what_hangs_on_it():
    rng = Random(0)
    assert "kernel" not in held(SHAPE, op="skip").by_name
    assert all("kernel" in held(SHAPE, op="conv").sample(rng) for _ in range(10))
    assert held(SHAPE, op="conv").size == SHAPE.size * 3 // 7
    kernel = held(SHAPE, kernel=5)
    assert {("kernel" in a, a["op"]) for a in (kernel.sample(rng) for _ in range(60))} == {
        (True, "conv"),
        (True, "pool"),
        (False, "skip"),
    }


@pytest.mark.parametrize(
    ("values", "message"), [({"dept": 1}, "no decision 'dept'"), ({"depth": 9}, "'depth' is one of")]
)
def test_holding_what_cannot_be_is_refused(values, message):
    with pytest.raises(SpaceError, match=message):
        held(SHAPE, **values)
