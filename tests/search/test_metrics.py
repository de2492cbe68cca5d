import itertools
import math
import warnings

import numpy as np
import pytest
from scipy import stats

from archipel.core.errors import UsageError
from archipel.search.metrics import (
    TABLE_SIZES,
    RankingWarning,
    bootstrap_ci,
    check_units,
    checked,
    kendall_tau,
    noise_ceiling,
    p_surpass_random,
    rank_from_worst,
    relative_improvement,
    sparse_kendall_tau,
    spearman,
)

TRUTH = [0.9412, 0.9408, 0.9391, 0.9300]
SCORES = [3, 4, 2, 1]


# --- rank correlations ---------------------------------------------------------------------------------------------


def test_golden_tau_and_sparse_tau_of_the_worked_example():
    assert kendall_tau(TRUTH, SCORES) == pytest.approx(2 / 3)
    assert sparse_kendall_tau(TRUTH, SCORES, 1e-3) == pytest.approx(5 / math.sqrt(5 * 6))
    assert round(sparse_kendall_tau(TRUTH, SCORES, 1e-3), 4) == 0.9129
    # The same in percents, with the tolerance in percents.
    assert sparse_kendall_tau([100 * t for t in TRUTH], SCORES, 0.1) == pytest.approx(5 / math.sqrt(30))


def test_tau_is_one_for_equal_and_minus_one_for_reversed_rankings():
    x = [3.0, 1.0, 2.0, 5.0]
    assert kendall_tau(x, x) == 1.0
    assert kendall_tau(x, [-v for v in x]) == -1.0
    assert spearman(x, [v**3 for v in x]) == pytest.approx(1.0)


def test_tau_equals_scipy_and_a_pairwise_count_with_ties():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, 15), rng.integers(0, 6, 15)
        pairs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i in range(15) for j in range(i)]
        agreement = sum(x * y for x, y in pairs)
        by_hand = agreement / math.sqrt(sum(x != 0 for x, _ in pairs) * sum(y != 0 for _, y in pairs))
        assert kendall_tau(a, b) == pytest.approx(by_hand)
        assert kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b, variant="b")[0])


def test_sparse_tau_with_vanishing_tolerance_is_tau_b():
    rng = np.random.default_rng(1)
    t, s = rng.random(30), rng.random(30)
    assert sparse_kendall_tau(t, s, 0) == kendall_tau(t, s)
    assert sparse_kendall_tau(t, s, 1e-12) == pytest.approx(kendall_tau(t, s))


def test_sparse_tau_with_a_tolerance_in_the_wrong_unit_is_nan_and_says_so():
    with pytest.warns(
        RankingWarning, match=r"tolerance 0\.1 is too coarse .* look like fractions; give it in the same"
    ):
        assert math.isnan(sparse_kendall_tau(TRUTH, SCORES, 0.1))  # 0.1 % meant, accuracies are fractions
    with pytest.warns(RankingWarning, match="undefined"):
        assert math.isnan(sparse_kendall_tau(TRUTH, SCORES, 1e9))
    with pytest.warns(RankingWarning, match="All scores are tied"):
        assert math.isnan(kendall_tau(TRUTH, [1, 1, 1, 1]))


def test_fewer_than_three_pairs_missing_runs_and_unequal_lengths_are_refused():
    with pytest.raises(UsageError, match=r"truth holds 2 values; at least 3"):
        kendall_tau([1, 2], [1, 2])
    with pytest.raises(UsageError, match=r"scores has 1 missing .*first at position 1.*never averaged"):
        sparse_kendall_tau([1, 2, 3], [1, math.nan, 2])
    with pytest.raises(UsageError, match="4 true values and 3 scores"):
        spearman([1, 2, 3, 4], [1, 2, 3])
    with pytest.raises(UsageError, match="non-negative"):
        sparse_kendall_tau(TRUTH, SCORES, -1.0)
    with pytest.raises(UsageError, match="shape"):
        checked([[1.0]], "x")  # type: ignore[list-item]


def test_noise_ceiling_is_the_mean_tau_over_pairs_of_seeds():
    a, b, c = [1, 2, 3, 4], [1, 2, 4, 3], [4, 3, 2, 1]
    assert noise_ceiling([a, b, c]) == pytest.approx((kendall_tau(a, b) + kendall_tau(a, c) + kendall_tau(b, c)) / 3)
    with pytest.raises(UsageError, match="at least 2 training seeds"):
        noise_ceiling([a])


# --- probability to surpass random ---------------------------------------------------------------------------------


def test_golden_probabilities_to_surpass_random_search():
    assert p_surpass_random(15_000, 15_625) == pytest.approx(0.664833, abs=5e-7)
    assert p_surpass_random(423_000, TABLE_SIZES["nasbench101"]) == pytest.approx(0.985367, abs=5e-7)
    assert TABLE_SIZES == {"nasbench101": 423_624, "nasbench201": 15_625, "darts-nds": 5_000}


def test_p_is_a_probability_monotone_in_the_rank_and_one_at_the_best():
    p = [p_surpass_random(r, 5000) for r in range(1, 5001)]
    assert all(0 <= v <= 1 for v in p)
    assert all(a < b for a, b in itertools.pairwise(p))
    assert p[-1] == 1.0


def test_p_of_a_uniform_rank_averages_to_the_finite_sum_and_not_to_one_half():
    n, total = 10, 15_625
    exact = sum((r / total) ** n for r in range(1, total + 1)) / total
    mean = float(np.mean([p_surpass_random(r, total, n) for r in range(1, total + 1)]))
    assert mean == pytest.approx(exact, rel=1e-9)
    # Euler-Maclaurin: 1/(n+1) + 1/(2 total) + O(total^-2).
    assert exact == pytest.approx(1 / (n + 1) + 0.5 / total, abs=1e-7)
    assert abs(exact - 0.5) > 0.4


def test_p_equals_the_monte_carlo_share_of_draws_with_replacement_that_rank_no_higher():
    rng = np.random.default_rng(0)
    r, total, n = 90, 100, 5
    best = rng.integers(1, total + 1, (200_000, n)).max(1)
    assert (best <= r).mean() == pytest.approx(p_surpass_random(r, total, n), abs=0.004)


def test_ranks_count_from_the_worst_and_a_rank_from_the_best_is_explained():
    population = [0.3, 0.1, 0.2, 0.3]
    assert [rank_from_worst(v, population) for v in (0.1, 0.2, 0.3)] == [1, 2, 4]
    with pytest.raises(UsageError, match="not one of them"):
        rank_from_worst(0.05, population)
    with pytest.raises(UsageError, match=r"counted from the worst lies in \[1, 10\], not 0.*total \+ 1 - rank"):
        p_surpass_random(0, 10)
    with pytest.raises(UsageError, match="at least 1"):
        p_surpass_random(1, 10, 0)


def test_a_random_policy_has_expected_percentile_one_half():
    total = 200
    assert np.mean([(r - 0.5) / total for r in range(1, total + 1)]) == pytest.approx(0.5)


# --- relative improvement ------------------------------------------------------------------------------------------


def test_relative_improvement_is_zero_against_itself_and_signed_like_the_difference():
    a, b = [0.90, 0.92, 0.91], [0.88, 0.89, 0.90]
    assert relative_improvement(a, a).percent == 0.0
    assert relative_improvement(a, b).percent > 0 > relative_improvement(b, a).percent
    assert relative_improvement(a, b).percent == pytest.approx(100 * (0.91 - 0.89) / 0.89)


def test_relative_improvement_does_not_depend_on_the_unit():
    rng = np.random.default_rng(0)
    m, r = 0.97 + 0.002 * rng.standard_normal(8), 0.969 + 0.002 * rng.standard_normal(8)
    fraction, percent = relative_improvement(m, r), relative_improvement(100 * m, 100 * r)
    assert fraction.percent == pytest.approx(percent.percent)
    assert fraction.bootstrap.low == pytest.approx(percent.bootstrap.low)
    assert fraction.welch.high == pytest.approx(percent.welch.high)


def test_welch_interval_contains_zero_exactly_when_welchs_test_does_not_reject():
    rng = np.random.default_rng(3)
    seen = set()
    for shift in (0.0, 0.5, 1.0, 2.0):
        for _ in range(10):
            m, r = 95 + shift + rng.standard_normal(8), 95 + rng.standard_normal(12)
            rejected = stats.ttest_ind(m, r, equal_var=False).pvalue < 0.05
            assert (0.0 in relative_improvement(m, r, draws=10).welch) != rejected
            seen.add(bool(rejected))
    assert seen == {True, False}


@pytest.mark.parametrize(("runs", "bootstrap_at_least"), [(20, 0.90), (8, 0.85)])
def test_coverage_of_the_intervals_over_identical_populations(runs, bootstrap_at_least):
    rng = np.random.default_rng(runs)
    covered = np.zeros(2)
    for i in range(200):
        m, r = 95 + rng.standard_normal(runs), 95 + rng.standard_normal(runs)
        ri = relative_improvement(m, r, draws=400, seed=i)
        covered += [0.0 in ri.bootstrap, 0.0 in ri.welch]
    bootstrap, welch = covered / 200
    assert bootstrap >= bootstrap_at_least
    assert 0.92 <= welch <= 0.985


def test_mixing_protocols_units_or_missing_runs_raises():
    good = [0.9, 0.91, 0.92]
    with pytest.raises(UsageError, match="one training protocol"):
        relative_improvement(good, good, protocols=("600 epochs", "50 epochs"))
    with pytest.raises(UsageError, match="mixed units"):
        relative_improvement([91.0, 92.0], good)
    with pytest.raises(UsageError, match="method has 1 missing"):
        relative_improvement([0.9, math.nan], good)
    with pytest.raises(UsageError, match="random holds 1 values; at least 2"):
        relative_improvement(good, [0.9])
    with pytest.raises(UsageError, match="mean accuracy is 0"):
        relative_improvement(good, [0.0, 0.0])


def test_bootstrap_interval_is_reproducible_and_close_to_the_normal_one():
    a = np.random.default_rng(0).standard_normal(200)
    first, again = bootstrap_ci(a), bootstrap_ci(a)
    assert first == again
    half = 1.96 * a.std(ddof=1) / math.sqrt(200)
    assert first.low == pytest.approx(a.mean() - half, abs=0.02)
    assert first.high == pytest.approx(a.mean() + half, abs=0.02)
    assert bootstrap_ci(a, np.median).low < np.median(a)
    with pytest.raises(UsageError, match="between 0 and 1"):
        bootstrap_ci(a, level=95)
    with pytest.raises(UsageError, match="at least 2"):
        bootstrap_ci([1.0])


# --- units ---------------------------------------------------------------------------------------------------------


def test_units_are_recognised_and_mixtures_refused():
    assert check_units(a=[0.1, 1.0], b=[0.5]) == "fraction"
    assert check_units(a=[10.0, 100.0], b=[0.0, 50.0]) == "percent"  # nothing right is 0 in either unit
    with pytest.raises(UsageError, match=r"mixed units \(a from 0\.97 to 96\.5\)"):
        check_units(a=[0.97, 96.5])
    with pytest.raises(UsageError, match="mixed units"):
        check_units(a=[0.97], b=[96.5])
    assert check_units("percent", a=[0.1, 96.5]) == "percent"  # a network at chance among 1000 classes
    with pytest.raises(UsageError, match=r"a fraction lies in \[0, 1\]"):
        check_units("fraction", a=[96.5])
    with pytest.raises(UsageError, match="must be 'auto'"):
        check_units("permille", a=[0.5])  # type: ignore[arg-type]


def test_no_warning_where_nothing_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kendall_tau(TRUTH, SCORES)
        sparse_kendall_tau(TRUTH, SCORES, 1e-3)
