"""Product-kernel densities: bandwidths by hand, integrals, sampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from archipel.search.surrogates.kde import ProductKDE, impute, normal_reference_bandwidth, truncated_normal

RNG = np.random.default_rng(0)


def direct_density(x, data, categories, h):
    """The definition, one kernel at a time."""
    total = 0.0
    for row in data:
        k = 1.0
        for xj, rj, c, hj in zip(x, row, categories, h):
            if c == 0:
                k *= stats.norm.pdf(xj, rj, hj)
            elif c > 1:
                k *= 1 - hj if xj == rj else hj / (c - 1)
        total += k
    return total / len(data)


def mixed_kde(n: int = 12) -> ProductKDE:
    data = np.column_stack([RNG.random(n), RNG.integers(3, size=n), RNG.random(n), np.zeros(n)])
    return ProductKDE.fit(data, np.array([0, 3, 0, 1]))


def test_bandwidth_is_the_normal_reference_rule_worked_by_hand():
    data = np.array([[0.0, 0], [1.0, 1], [0.0, 1], [1.0, 0]])  # ddof 0: std 1/2 in both columns; N = 4, d = 2
    expected = 1.06 * 0.5 * 4 ** (-1 / 6)
    np.testing.assert_allclose(normal_reference_bandwidth(data, np.array([0, 3])), [expected, expected])


def test_bandwidth_has_a_floor_and_a_categorical_one_ends_at_the_uniform_kernel():
    data = np.array([[0.5, 0, 0], [0.5, 9, 0]])
    h = normal_reference_bandwidth(data, np.array([0, 10, 1]))
    np.testing.assert_allclose(h, [1e-3, 0.9, 0.0])  # (c - 1) / c = 0.9; a single category: no bandwidth at all


def test_density_equals_the_definition():
    kde = mixed_kde()
    x = np.column_stack([RNG.random(20), RNG.integers(3, size=20), RNG.random(20), np.zeros(20)])
    expected = [direct_density(row, kde.data_ND, kde.categories_D, kde.h_D) for row in x]
    np.testing.assert_allclose(kde.density(x), np.array(expected), rtol=1e-10)


def test_continuous_density_integrates_to_one_over_the_real_line_not_over_the_unit_interval():
    kde = ProductKDE.fit(np.array([[0.02], [0.1], [0.6]]), np.array([0]))
    area, _ = integrate.quad(lambda x: kde.density(np.array([[x]]))[0], -5, 6, points=[0.02, 0.1, 0.6], limit=200)
    inside, _ = integrate.quad(lambda x: kde.density(np.array([[x]]))[0], 0, 1, points=[0.02, 0.1, 0.6], limit=200)
    assert area == pytest.approx(1, abs=1e-8)
    assert inside < 0.9  # untruncated kernels leave the interval


def test_mixed_density_sums_and_integrates_to_one():
    kde = mixed_kde()
    grid = np.linspace(-2.5, 3.5, 241)
    a, b = (m.ravel() for m in np.meshgrid(grid, grid))
    total = sum(kde.density(np.column_stack([a, np.full(a.size, c), b, np.zeros(a.size)])).sum() for c in range(3))
    assert total * (grid[1] - grid[0]) ** 2 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("c", [1, 2, 5])
def test_categorical_kernel_sums_to_one(c: int):
    kde = ProductKDE.fit(RNG.integers(c, size=(7, 1)).astype(float), np.array([c]))
    assert kde.density(np.arange(c, dtype=float)[:, None]).sum() == pytest.approx(1)


def test_density_keeps_the_dependence_of_dimensions():
    diagonal = np.repeat(np.array([[0.1, 0.1], [0.9, 0.9]]), 500, axis=0) + 0.02 * RNG.standard_normal((1000, 2))
    kde = ProductKDE.fit(diagonal, np.array([0, 0]))
    on, off = kde.density(np.array([[0.1, 0.1], [0.1, 0.9]]))
    assert on > 50 * off  # a product of one-dimensional densities would give equal values


def test_samples_near_a_point_follow_a_truncated_normal_three_bandwidths_wide():
    kde = ProductKDE(np.array([[0.1, 2.0]]), np.array([0, 4]), np.array([0.05, 0.2]))
    x = kde.sample_near(20_000, 3.0, np.random.default_rng(1))
    expected = stats.truncnorm((0 - 0.1) / 0.15, (1 - 0.1) / 0.15, loc=0.1, scale=0.15)
    assert x[:, 0].min() >= 0
    assert x[:, 0].max() <= 1
    assert stats.kstest(x[:, 0], expected.cdf).pvalue > 0.01
    share = np.bincount(x[:, 1].astype(int), minlength=4) / len(x)
    np.testing.assert_allclose(
        share, [0.05, 0.05, 0.85, 0.05], atol=0.01
    )  # kept 0.8, plus a quarter of the redrawn 0.2


def test_truncated_normal_stays_inside_with_extreme_widths():
    mean = np.array([0.0, 1.0, 0.5, 0.0, 1.0])
    for std in (1e-3, 1.0, 1e3):
        x = truncated_normal(np.tile(mean, 1000), np.full(5000, std), np.random.default_rng(2))
        assert np.isfinite(x).all()
        assert x.min() >= 0
        assert x.max() <= 1


def test_imputation_copies_observed_values_of_the_same_dimension():
    nan = np.nan
    data = np.array([[0.1, 1, nan, nan], [nan, 1, nan, nan], [0.3, nan, nan, nan]])
    filled = impute(data, np.array([0, 2, 0, 3]), np.random.default_rng(0))
    assert filled[1, 0] in (0.1, 0.3)
    assert filled[2, 1] == 1
    assert ((filled[:, 2] >= 0) & (filled[:, 2] <= 1)).all()  # never observed: uniform
    assert set(filled[:, 3]) <= {0.0, 1.0, 2.0}
    observed = ~np.isnan(data)
    assert (filled[observed] == data[observed]).all()
    assert np.isnan(data[1, 0])  # the input is left alone
