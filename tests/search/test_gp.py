"""Gaussian processes over (x, r): kernels, likelihood, posterior, fantasies, expected improvement."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from archipel.core.errors import ShapeError, UsageError
from archipel.search.surrogates.acquisition import expected_improvement, log_expected_improvement, log_mean
from archipel.search.surrogates.gp import Posterior, believe, factorise, fantasise, fit, log_likelihood, standardise
from archipel.search.surrogates.kernels import ExponentialDecay, Matern52

D, R_MAX = 3, 27
KERNELS = [Matern52(D, R_MAX), ExponentialDecay(D)]
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=["matern", "decay"])


def data(n, seed=0):
    rng = np.random.default_rng(seed)
    Z = np.column_stack([rng.random((n, D)), rng.choice([1, 3, 9, 27], n)])
    y = np.sin(4 * Z[:, 0]) + Z[:, 1] ** 2 + np.exp(-0.3 * Z[:, -1]) + 0.05 * rng.standard_normal(n)
    return Z, standardise(y)[0]


def random_theta(kernel, seed):
    rng = np.random.default_rng(seed)
    low, high = np.array(kernel.bounds()).T
    return np.clip(kernel.start() + 0.5 * rng.standard_normal(len(low)), low, high)


def decay_theta(variance=1.0, noise=1e-6, m=0.0, alpha=1.0, rate=1.0, gamma=0.0, delta=0.0):
    return np.array([*[0.0] * D, np.log(variance), np.log(noise), m, np.log(alpha), np.log(rate), gamma, delta])


# --- kernels ----------------------------------------------------------------------------------------------------------


def test_golden_decay_factors():
    kappa = ExponentialDecay.kappa
    assert kappa(1, 1, 1.0) == 0.5
    assert kappa(1, 1, 3.0) == 0.25
    x = np.array([[0.2, 0.4, 0.6]])
    at = [np.column_stack([x, [r]]) for r in (1.0, 3.0)]
    kernel = ExponentialDecay(D)
    freeze_thaw = kernel.covariance(decay_theta(variance=2, gamma=3), *at)
    assert freeze_thaw[0, 0] == pytest.approx(2 + 0.075 * 3**2)  # k_g + (κ(4) − κ(1) κ(3)) γ²
    full_decay = kernel.covariance(decay_theta(variance=2, delta=1), *at)
    assert full_decay[0, 0] == pytest.approx(0.45 * 2)  # 1 − .75 + .2


def test_decay_kernel_has_the_moments_of_the_learning_curve_model():
    """Mean and covariance of g (1 − δ e^{−λr}) + γ e^{−λr}, by numerical integration over λ ~ Gamma(α, β)."""
    alpha, rate, m, gamma, delta, variance = 2.5, 0.4, 0.7, -1.3, 0.6, 1.9
    kernel = ExponentialDecay(D)
    theta = decay_theta(variance, 1e-6, m, alpha, rate, gamma, delta)
    Z = np.column_stack([np.random.default_rng(1).random((2, D)), [2.0, 5.0]])
    k_g = kernel.covariance(decay_theta(variance), Z, Z)[0, 1]  # δ = γ = 0 leaves k_g
    prior = stats.gamma(alpha, scale=rate / alpha)

    def expect(f):
        return integrate.quad(lambda t: f(np.exp(-t * 2.0), np.exp(-t * 5.0)) * prior.pdf(t), 0, np.inf)[0]

    means = [expect(lambda p, q: m * (1 - delta * p) + gamma * p), expect(lambda p, q: m * (1 - delta * q) + gamma * q)]
    product = expect(
        lambda p, q: (
            (k_g + m * m) * (1 - delta * p) * (1 - delta * q)
            + gamma * m * (p * (1 - delta * q) + q * (1 - delta * p))
            + gamma**2 * p * q
        )
    )
    np.testing.assert_allclose(kernel.mean(theta, Z), means, rtol=1e-6)
    np.testing.assert_allclose(kernel.covariance(theta, Z, Z)[0, 1], product - means[0] * means[1], rtol=1e-6)


def test_matern_kernel_equals_its_formula():
    kernel, (Z, _) = KERNELS[0], data(2)
    theta = random_theta(kernel, 3)
    u = np.append(Z[:, :-1].T, [np.log(Z[:, -1]) / np.log(R_MAX)], axis=0).T / np.exp(theta[: D + 1])
    d = np.sqrt(((u[0] - u[1]) ** 2).sum())
    expected = np.exp(theta[D + 1]) * (1 + np.sqrt(5) * d + 5 * d**2 / 3) * np.exp(-np.sqrt(5) * d)
    assert kernel.covariance(theta, Z, Z)[0, 1] == pytest.approx(expected)


@each_kernel
def test_covariances_are_positive_semidefinite_and_match_their_diagonal(kernel):
    for seed in range(20):
        Z, _ = data(60, seed)
        theta = random_theta(kernel, seed)
        K = kernel.covariance(theta, Z, Z)
        np.testing.assert_allclose(K, K.T, atol=1e-12)
        np.testing.assert_allclose(np.diag(K), kernel.variance(theta, Z), rtol=1e-8)
        assert np.linalg.eigvalsh(K).min() > -1e-9 * np.trace(K)


def test_a_single_epoch_gives_no_undefined_resource():
    assert np.isfinite(Matern52(D, 1).features(np.ones((2, D + 1)))).all()


# --- likelihood -------------------------------------------------------------------------------------------------------


@each_kernel
def test_likelihood_equals_the_normal_density_and_its_gradient_finite_differences(kernel):
    Z, y = data(15)
    for seed in range(3):
        theta = random_theta(kernel, seed)
        value, gradient = log_likelihood(kernel, theta, Z, y)
        K = kernel.covariance(theta, Z, Z) + kernel.noise(theta) * np.eye(15)
        assert value == pytest.approx(stats.multivariate_normal(kernel.mean(theta, Z), K).logpdf(y), rel=1e-8)
        step = 1e-5
        numeric = [
            (log_likelihood(kernel, theta + step * e, Z, y)[0] - log_likelihood(kernel, theta - step * e, Z, y)[0])
            / (2 * step)
            for e in np.eye(len(theta))
        ]
        np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-5)


@each_kernel
def test_fit_raises_the_likelihood_and_finds_the_input_that_does_not_matter(kernel):
    Z, y = data(60)  # the third input is irrelevant
    theta = fit(kernel, Z, y)
    assert log_likelihood(kernel, theta, Z, y)[0] > log_likelihood(kernel, kernel.start(), Z, y)[0] + 10
    assert theta[2] > max(theta[0], theta[1]) + 0.5
    low, high = np.array(kernel.bounds()).T
    assert (theta >= low - 1e-9).all()
    assert (theta <= high + 1e-9).all()


def test_fit_refuses_failed_evaluations_and_ragged_data():
    Z, y = data(5)
    with pytest.raises(UsageError, match="leave failed evaluations out"):
        fit(KERNELS[0], Z, np.where(np.arange(5) == 2, np.nan, y))
    with pytest.raises(ShapeError, match="not 4 and 5"):
        fit(KERNELS[0], Z, y[:4])
    with pytest.raises(ShapeError, match="not 4 and 5"):
        Posterior(KERNELS[0], KERNELS[0].start(), Z, y[:4])


def test_standardised_targets_have_mean_zero_and_unit_deviation_and_constants_become_zero():
    y, mean, std = standardise(np.array([1.0, 3.0]))
    assert (y.tolist(), mean, std) == ([-1.0, 1.0], 2.0, 1.0)
    np.testing.assert_allclose(standardise(np.full(3, 0.1))[0], 0, atol=1e-15)


# --- posterior --------------------------------------------------------------------------------------------------------


def dense(kernel, theta, Z, y, Q):
    """Mean and covariance by explicit inverses."""
    K_inv = np.linalg.inv(kernel.covariance(theta, Z, Z) + kernel.noise(theta) * np.eye(len(Z)))
    k = kernel.covariance(theta, Q, Z)
    return (
        kernel.mean(theta, Q) + k @ K_inv @ (y - kernel.mean(theta, Z)),
        kernel.covariance(theta, Q, Q) - k @ K_inv @ k.T,
    )


@each_kernel
def test_posterior_equals_the_dense_closed_form(kernel):
    (Z, y), (Q, _) = data(30), data(8, seed=1)
    for seed in range(3):
        theta = random_theta(kernel, seed)
        posterior = Posterior(kernel, theta, Z, y)
        mean, covariance = dense(kernel, theta, Z, y, Q)
        np.testing.assert_allclose(posterior.mean(Q)[:, 0], mean, atol=1e-6)
        np.testing.assert_allclose(posterior.covariance(Q), covariance, atol=1e-6)
        np.testing.assert_allclose(posterior.predict(Q)[0], posterior.mean(Q), atol=1e-9)
        np.testing.assert_allclose(posterior.predict(Q)[1], np.diag(covariance), atol=1e-6)


@each_kernel
def test_conditioning_extends_the_factor_to_what_a_fresh_fit_gives_and_reduces_variance_there(kernel):
    (Z, y), (P, y_P), (Q, _) = data(20), data(4, seed=1), data(6, seed=2)
    theta = random_theta(kernel, 0)
    before = Posterior(kernel, theta, Z, y)
    after = before.condition(P, y_P[:, None])
    fresh = Posterior(kernel, theta, np.vstack([Z, P]), np.append(y, y_P))
    np.testing.assert_allclose(after.L, fresh.L, atol=1e-9)
    np.testing.assert_allclose(after.mean(Q), fresh.mean(Q), atol=1e-8)
    assert (after.predict(P)[1] < before.predict(P)[1]).all()
    assert (after.predict(P)[1] < kernel.noise(theta)).all()


@each_kernel
def test_fantasies_share_a_factor_and_each_equals_its_own_posterior(kernel):
    (Z, y), (P, _), (Q, _) = data(20), data(3, seed=1), data(6, seed=2)
    theta = random_theta(kernel, 0)
    fantasies = fantasise(Posterior(kernel, theta, Z, y), P, 20, np.random.default_rng(0))
    assert fantasies.mean(Q).shape == (6, 20)
    single = Posterior(kernel, theta, np.vstack([Z, P]), np.append(y, fantasies.Y[20:, 7]))
    np.testing.assert_allclose(fantasies.mean(Q)[:, 7], single.mean(Q)[:, 0], atol=1e-8)


@each_kernel
def test_draws_have_the_posterior_moments_jointly(kernel):
    (Z, y), (P, _) = data(10), data(3, seed=1)
    theta = random_theta(kernel, 0)
    posterior = Posterior(kernel, theta, Z, y)
    draws = posterior.sample(P, 40_000, np.random.default_rng(0))
    noisy = posterior.covariance(P) + kernel.noise(theta) * np.eye(3)
    scale = np.sqrt(np.diag(noisy))
    np.testing.assert_allclose(draws.mean(1), posterior.mean(P)[:, 0], atol=4 * scale.max() / 200)
    np.testing.assert_allclose(np.cov(draws) / np.outer(scale, scale), noisy / np.outer(scale, scale), atol=0.03)


@each_kernel
def test_the_kriging_believer_changes_no_mean_but_the_variance(kernel):
    (Z, y), (P, _), (Q, _) = data(20), data(3, seed=1), data(6, seed=2)
    posterior = Posterior(kernel, random_theta(kernel, 0), Z, y)
    believer = believe(posterior, P)
    np.testing.assert_allclose(believer.mean(Q), posterior.mean(Q), atol=1e-8)
    assert (believer.predict(Q)[1] <= posterior.predict(Q)[1] + 1e-12).all()
    assert (believer.predict(P)[1] < posterior.predict(P)[1]).all()


def test_nothing_pending_leaves_the_posterior_as_it_is():
    (Z, y), nothing = data(5), np.empty((0, D + 1))
    posterior = Posterior(KERNELS[0], KERNELS[0].start(), Z, y)
    assert fantasise(posterior, nothing, 20, np.random.default_rng(0)) is posterior
    assert believe(posterior, nothing) is posterior


def test_jitter_rescues_a_singular_covariance_but_not_an_indefinite_one():
    singular = np.ones((4, 4))
    L = factorise(singular)
    np.testing.assert_allclose(L @ L.T, singular, atol=1e-3)
    with pytest.raises(UsageError, match="covariance of 2 points is not positive definite"):
        factorise(np.array([[1.0, 2.0], [2.0, 1.0]]))


# --- expected improvement ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std", "best"), [(0.3, 0.5, 0.1), (-1.0, 0.2, 0.0), (2.0, 1.0, 0.0)])
def test_expected_improvement_equals_its_integral(mean, std, best):
    integral = integrate.quad(lambda f: (best - f) * stats.norm(mean, std).pdf(f), best - 10, best)[0]
    assert expected_improvement(np.array(mean), np.array(std), best) == pytest.approx(integral, rel=1e-6)


def test_log_expected_improvement_still_ranks_where_the_improvement_underflows():
    u = -np.array([0.99, 1.0, 1.01, 5.0, 40.0, 1e3, 1e4, 1e5, 1e7])
    values = log_expected_improvement(-u, np.ones(9), 0.0)
    assert np.isfinite(values).all()
    assert (np.diff(values) < 0).all()
    assert expected_improvement(np.array(40.0), np.array(1.0), 0.0) == 0.0
    far = u[3:6]  # φ(u) / u² (1 − 3/u² + 15/u⁴ − …)
    series = (
        stats.norm.logpdf(far) - 2 * np.log(-far) + np.log(1 - 3 / far**2 + 15 / far**4 - 105 / far**6 + 945 / far**8)
    )
    np.testing.assert_allclose(values[3:6], series, rtol=1e-4)


def test_the_average_over_fantasies_is_taken_of_improvements_not_of_their_logarithms():
    assert log_mean(np.log(np.array([[1.0, 3.0]])))[0] == pytest.approx(np.log(2.0))
