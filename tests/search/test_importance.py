"""Functional ANOVA against closed forms and brute force; rank correlations between budgets."""

from __future__ import annotations

import math
from itertools import product
from random import Random

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import RandomForestRegressor

from archipel.core.decision import Decision, Real
from archipel.core.errors import UsageError
from archipel.core.space import JointSpace, Space, when
from archipel.search.analysis.fidelity import budget_rank_correlations, scores_by_budget
from archipel.search.analysis.importance import boxes_of, functional_anova
from archipel.search.strategy import Objective, Problem, Trial

OPS = Space([Decision("a", [0, 1, 2]), Decision("b", [0, 1]), Decision("c", [0, 1, 2, 3], ordered=True)])


def sampled(space: Space, n: int, seed: int = 0):
    rng = Random(seed)
    return [space.sample(rng) for _ in range(n)]


def test_variance_of_a_forest_equals_brute_force_over_the_whole_grid():
    rng = np.random.default_rng(0)
    grid = np.array(list(product(range(3), range(2), range(4))), dtype=float)
    X = grid[rng.integers(24, size=60)]
    y = X[:, 0] * X[:, 1] + np.sin(X[:, 2]) + 0.3 * rng.standard_normal(60)
    for tree in RandomForestRegressor(5, random_state=0).fit(X, y).estimators_:
        shares = boxes_of(tree.tree_, np.array([3, 2, 4])).variance_shares()
        assert shares is not None
        f = tree.predict(grid).reshape(3, 2, 4)
        f = f - f.mean()
        singles = [np.square(f.mean(axis=axes)).mean() for axes in ((1, 2), (0, 2), (0, 1))]
        for j in range(3):
            assert shares[j, j] == pytest.approx(singles[j] / f.var(), abs=1e-12)
        for j, k, rest in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
            both = np.square(f.mean(axis=rest)).mean() - singles[j] - singles[k]
            assert shares[j, k] == pytest.approx(both / f.var(), abs=1e-12)
            assert shares[k, j] == pytest.approx(shares[j, k], abs=1e-12)


def test_boxes_of_a_continuous_tree_integrate_its_prediction():
    rng = np.random.default_rng(1)
    X = rng.random((200, 2))
    tree = RandomForestRegressor(1, random_state=0).fit(X, X[:, 0] + X[:, 1] ** 2).estimators_[0]
    boxes = boxes_of(tree.tree_, np.array([0, 0]))
    assert (boxes.high_LD - boxes.low_LD).prod(axis=1).sum() == pytest.approx(1)
    at = (np.arange(2000) + 0.5) / 2000
    for x in (0.2, 0.7):
        slow = tree.predict(np.column_stack([np.full(2000, x), at])).mean()
        assert boxes.marginal(0, np.array([x]))[0] == pytest.approx(slow, abs=1e-3)


def test_closed_form_shares_of_a_sum_and_a_product():
    space = Space([Real("x", 0, 1), Real("y", 0, 1), Real("z", 1e-3, 10, log=True)])
    archs = sampled(space, 600)
    result = functional_anova(space, archs, [a["x"] + 2 * a["x"] * a["y"] for a in archs], trees=16)
    # f = x + 2xy: V_x = 4/12, V_y = 1/12, V_xy = 4/144
    assert result.single["x"] == pytest.approx(0.75, abs=0.05)
    assert result.single["y"] == pytest.approx(0.1875, abs=0.05)
    assert result.pair["x", "y"] == pytest.approx(0.0625, abs=0.03)
    assert result.single["z"] < 0.01
    assert result.r2 > 0.95
    values, means, _ = zip(*result.marginals["x"])
    assert values == pytest.approx(np.linspace(0, 1, 11))
    np.testing.assert_allclose(means[1:-1], 2 * np.array(values[1:-1]), atol=0.1)  # E_y[x + 2xy] = 2x


def test_exclusive_or_is_pure_interaction_and_belongs_to_the_group_pair():
    joint = JointSpace(
        Space([Decision("op", ["p", "q"])]), [Decision("sgd", [True, False]), Decision("lr", [0.1, 0.01])]
    )
    archs = sampled(joint, 200)
    result = functional_anova(joint, archs, [float((a["op"] == "p") == a["sgd"]) for a in archs], trees=16)
    assert result.pair["op", "sgd"] == pytest.approx(1)
    assert max(result.single.values()) < 1e-9
    assert result.between(["op"], joint.hyper_names) == pytest.approx(
        result.pair["op", "sgd"] + result.pair["op", "lr"]
    )
    assert result.between(joint.hyper_names, ["op"]) == result.between(["op"], joint.hyper_names)


def test_a_closed_decision_counts_only_where_it_is_open():
    space = Space(
        [Decision("op", ["conv", "skip"]), Decision("k", [3, 5]), Decision("dead", [0, 1])],
        {"k": [when(op=["conv"])], "dead": [when(op=["skip"])]},
    )
    archs = sampled(space, 200)
    scores = [(1.0 if a["k"] == 3 else 3.0) if a["op"] == "conv" else 0.0 for a in archs]
    result = functional_anova(space, archs, scores, trees=16, copies=8)
    # the table conv/3: 1, conv/5: 3, skip/any: 0 has V = 1.5, V_op = 1, V_k = .25, V_op,k = .25
    assert result.single["op"] == pytest.approx(2 / 3, abs=0.04)
    assert result.single["k"] == pytest.approx(1 / 6, abs=0.04)
    assert result.pair["op", "k"] == pytest.approx(1 / 6, abs=0.04)
    assert result.single["dead"] < 0.01


def test_failures_are_left_out_and_a_floor_tames_disasters():
    space = Space([Real("lr", 1e-4, 1, log=True), Real("x", 0, 1)])
    archs = sampled(space, 200)
    scores = [-1000.0 if a["lr"] > 0.5 else a["x"] for a in archs]
    plain = functional_anova(space, archs, scores, trees=8)
    tamed = functional_anova(space, archs, scores, trees=8, floor_quantile=0.1)
    assert plain.single["lr"] > 0.9 > 0.5 > tamed.single["lr"]
    assert tamed.single["x"] > 0.5
    failed = [math.nan if a["lr"] > 0.5 else s for a, s in zip(archs, scores)]
    assert functional_anova(space, archs, failed, trees=8).single["x"] > 0.95


def test_constant_decisions_have_no_importance():
    space = Space([*OPS.decisions, Decision("only", ["this"])])
    archs = sampled(space, 60)
    result = functional_anova(space, archs, [float(a["a"]) for a in archs], trees=4)
    assert result.single["only"] == 0
    assert not any("only" in names for names in result.pair)


@pytest.mark.parametrize(
    ("n", "scores", "message"),
    [
        (20, [0.5] * 19, "20 architectures but 19 scores"),
        (20, [0.5] * 20, "All 20 scores equal 0.5"),
        (20, [0.1] * 9 + [-math.inf] * 11, "at least 10 finite scores, not 9"),
    ],
)
def test_importance_of_too_little_is_refused(n, scores, message):
    with pytest.raises(UsageError, match=message):
        functional_anova(OPS, sampled(OPS, n), scores)


# --- rank correlations between budgets -----------------------------------------------------------------------------


def test_rank_correlations_equal_scipy_on_common_configurations_with_ties():
    rng = np.random.default_rng(0)
    small = {k: float(v) for k, v in enumerate(rng.integers(5, size=30))}
    large = {k: small[k] + float(rng.integers(3)) for k in range(10, 30)} | {99: 1.0}
    result = budget_rank_correlations({9: large, 1: small, 27: {10: 0.5}})
    expected, _ = stats.spearmanr([small[k] for k in range(10, 30)], [large[k] for k in range(10, 30)])
    assert result.budgets == (1, 9, 27)
    assert result.rho[0, 1] == result.rho[1, 0] == pytest.approx(expected)
    assert result.rho[0, 0] == pytest.approx(1)
    assert result.common.tolist() == [[30, 20, 1], [20, 21, 1], [1, 1, 1]]
    assert np.isnan(result.rho[2]).all()  # one common configuration says nothing


def test_failures_rank_last_in_correlations_and_constant_scores_have_none():
    scores = {1: {"a": 0.1, "b": -math.inf, "c": 0.3}, 3: {"a": 0.2, "b": 0.1, "c": 0.9}, 9: dict.fromkeys("abc", 0.5)}
    result = budget_rank_correlations(scores)
    assert result.rho[0, 1] == pytest.approx(1)
    assert math.isnan(result.rho[0, 2])


def test_scores_are_gathered_by_budget_and_canonical_form():
    problem = Problem(OPS, [Objective("error", "min")], max_resource=9)
    trials = []
    for i, (budget, error) in enumerate([(1, 0.4), (3, 0.2), (None, 0.1), (1, 0.6), (3, None)]):
        trial = Trial(i, {"a": 0, "b": 0, "c": 0 if i < 4 else 1}, budget)
        trial.metrics, trial.failure = ({"error": error}, None) if error is not None else ({}, "timeout")
        trials.append(trial)
    gathered = scores_by_budget(problem, trials)
    keys = [OPS.canonical(t.arch) for t in trials]
    assert gathered == {1: {keys[0]: -0.5}, 3: {keys[1]: -0.2, keys[4]: -math.inf}, 9: {keys[2]: -0.1}}


def test_rank_correlations_refuse_nan_and_nothing():
    with pytest.raises(UsageError, match="none were given"):
        budget_rank_correlations({})
    with pytest.raises(UsageError, match="budget 3 is NaN"):
        budget_rank_correlations({3: {"a": math.nan}})
