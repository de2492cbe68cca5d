"""Kernels over (x, r): a configuration and the epochs that it was trained for.

Klein, Tiao, Lienart, Archambeau, Seeger. Model-based Asynchronous Hyperparameter and Neural Architecture Search. 2020.
https://arxiv.org/abs/2003.10865 — freeze-thaw: Swersky, Snoek, Adams. 2014. https://arxiv.org/abs/1406.3896

(a) :class:`Matern52`: Matérn-5/2 with one length for each input, on [x, log r / log r_max]; constant mean m.
(b) :class:`ExponentialDecay`: f(x, r) = g(x) (1 − δ e^{−λr}) + γ e^{−λr}, g ~ GP(m, Matérn on x), λ ~ Gamma(α, β). With
    κ(r) = E e^{−λr} = (β / (r + β))^α and β = α / E λ:

        mean  m (1 − δκ) + γκ
        cov   k_g [1 − δ(κ + κ') + δ² κ(r + r')] + (γ − δm)² [κ(r + r') − κκ']        (δ = 0: freeze-thaw)

A kernel says how its parameter vector theta is laid out, where its fit starts and within which bounds, and gives the
gradient of the likelihood in closed form. Rows of Z are ``[x…, r]`` with raw r; N and M count rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist


def matern52(a: np.ndarray, b: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Matérn-5/2 between rows divided by their lengths, and its factor in d k / d log ℓ_i = factor · (a_i − b_i)²."""
    s = np.sqrt(5 * cdist(a, b, "sqeuclidean"))
    e = variance * np.exp(-s)
    return (1 + s + s * s / 3) * e, (5 / 3) * (1 + s) * e


def length_gradient(weights: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Σ_jk weights_jk (scaled_ji − scaled_ki)² for each input i; ``weights`` is symmetric ``[N, N]``."""
    return 2 * ((weights.sum(1) @ scaled**2) - ((weights @ scaled) * scaled).sum(0))


@dataclass(frozen=True)
class Matern52:
    """Kernel (a). theta = [log lengths (D + 1), log variance, log noise, m].

    Args:
        dimension: D, of x.
        r_max: resource that is mapped to 1.
    """

    dimension: int
    r_max: int

    def features(self, Z: np.ndarray) -> np.ndarray:
        r = Z[:, -1:]
        return np.hstack([Z[:, :-1], np.log(r) / np.log(self.r_max) if self.r_max > 1 else np.zeros_like(r)])

    def start(self) -> np.ndarray:
        return np.array([*[np.log(0.5)] * (self.dimension + 1), 0.0, np.log(1e-2), 0.0])

    def bounds(self) -> list[tuple[float, float]]:
        return [(np.log(0.02), np.log(50.0))] * (self.dimension + 1) + [
            (np.log(1e-2), np.log(1e2)),
            (np.log(1e-6), 0.0),
            (-3.0, 3.0),
        ]

    def noise(self, theta: np.ndarray) -> float:
        return float(np.exp(theta[self.dimension + 2]))

    def mean(self, theta: np.ndarray, Z: np.ndarray) -> np.ndarray:
        return np.full(len(Z), theta[-1])

    def covariance(self, theta: np.ndarray, Z: np.ndarray, other: np.ndarray) -> np.ndarray:
        lengths = np.exp(theta[: self.dimension + 1])
        return matern52(self.features(Z) / lengths, self.features(other) / lengths, np.exp(theta[-3]))[0]

    def variance(self, theta: np.ndarray, Z: np.ndarray) -> np.ndarray:
        return np.full(len(Z), np.exp(theta[-3]))

    def gradient(self, theta: np.ndarray, Z: np.ndarray, W: np.ndarray, a: np.ndarray) -> np.ndarray:
        """Σ W ∘ ∂K/∂θ + a · ∂mean/∂θ for every parameter."""
        scaled = self.features(Z) / np.exp(theta[: self.dimension + 1])
        k, factor = matern52(scaled, scaled, np.exp(theta[-3]))
        noise = self.noise(theta) * np.trace(W)
        return np.array([*length_gradient(W * factor, scaled), np.sum(W * k), noise, a.sum()])


@dataclass(frozen=True)
class ExponentialDecay:
    """Kernel (b). theta = [log lengths (D), log variance, log noise, m, log α, log E λ, γ, δ].

    Args:
        dimension: D, of x.
    """

    dimension: int

    def start(self) -> np.ndarray:
        return np.array([*[np.log(0.5)] * self.dimension, 0.0, np.log(1e-2), 0.0, 0.0, np.log(0.3), 1.0, 0.5])

    def bounds(self) -> list[tuple[float, float]]:
        lengths = [(np.log(0.02), np.log(50.0))] * self.dimension
        process = [(np.log(1e-2), np.log(1e2)), (np.log(1e-6), 0.0), (-3.0, 3.0)]
        return [*lengths, *process, (np.log(1e-2), np.log(250.0)), (np.log(1e-4), np.log(50.0)), (-20, 20), (0, 1)]

    def noise(self, theta: np.ndarray) -> float:
        return float(np.exp(theta[self.dimension + 1]))

    @staticmethod
    def kappa(alpha: float, beta: float, r: np.ndarray) -> np.ndarray:
        return (beta / (r + beta)) ** alpha

    def _parts(self, theta: np.ndarray) -> tuple[np.ndarray, float, float, float, float, float, float]:
        m, log_alpha, log_rate, gamma, delta = theta[-5:]
        alpha = np.exp(log_alpha)
        return np.exp(theta[: self.dimension]), np.exp(theta[-7]), m, alpha, alpha / np.exp(log_rate), gamma, delta

    def mean(self, theta: np.ndarray, Z: np.ndarray) -> np.ndarray:
        _, _, m, alpha, beta, gamma, delta = self._parts(theta)
        kappa = self.kappa(alpha, beta, Z[:, -1])
        return m * (1 - delta * kappa) + gamma * kappa

    def covariance(self, theta: np.ndarray, Z: np.ndarray, other: np.ndarray) -> np.ndarray:
        lengths, variance, m, alpha, beta, gamma, delta = self._parts(theta)
        r, row = np.unique(Z[:, -1], return_inverse=True)  # few distinct resources: powers are taken of these only
        s, column = np.unique(other[:, -1], return_inverse=True)
        one, two, both = (self.kappa(alpha, beta, t) for t in (r[:, None], s, r[:, None] + s))
        A, C = 1 - delta * (one + two) + delta**2 * both, both - one * two
        k = matern52(Z[:, :-1] / lengths, other[:, :-1] / lengths, variance)[0]
        cells = np.ix_(row, column)
        return k * A[cells] + ((gamma - delta * m) ** 2 * C)[cells]

    def variance(self, theta: np.ndarray, Z: np.ndarray) -> np.ndarray:
        _, variance, m, alpha, beta, gamma, delta = self._parts(theta)
        one, both = (self.kappa(alpha, beta, t) for t in (Z[:, -1], 2 * Z[:, -1]))
        return variance * (1 - 2 * delta * one + delta**2 * both) + (gamma - delta * m) ** 2 * (both - one**2)

    def gradient(self, theta: np.ndarray, Z: np.ndarray, W: np.ndarray, a: np.ndarray) -> np.ndarray:
        """Σ W ∘ ∂K/∂θ + a · ∂mean/∂θ for every parameter."""
        lengths, variance, m, alpha, beta, gamma, delta = self._parts(theta)
        scaled = Z[:, :-1] / lengths
        k, factor = matern52(scaled, scaled, variance)
        # All but k depends on the resources alone, so the sums over pairs are taken by pairs of distinct resources.
        r, row = np.unique(Z[:, -1], return_inverse=True)
        member = (row[:, None] == np.arange(len(r))).astype(float)
        W_r, Wk_r, a_r = member.T @ W @ member, member.T @ (W * k) @ member, a @ member
        sums = r[:, None] + r
        one, both = self.kappa(alpha, beta, r), self.kappa(alpha, beta, sums)
        pair, left = one[:, None] + one, gamma - delta * m
        A, C = 1 - delta * pair + delta**2 * both, both - np.outer(one, one)
        by_length = length_gradient(W * A[np.ix_(row, row)] * factor, scaled)
        decay = []
        for log_slope in (self._by_log_alpha, self._by_log_rate):
            d_one, d_both = one * log_slope(alpha, beta, r), both * log_slope(alpha, beta, sums)
            d_A = -delta * (d_one[:, None] + d_one) + delta**2 * d_both
            d_C = d_both - 2 * np.outer(one, d_one)  # against a symmetric W both products give the same sum
            decay.append(np.sum(Wk_r * d_A) + left**2 * np.sum(W_r * d_C) + left * (a_r @ d_one))
        sum_C = np.sum(W_r * C)
        by_m = a.sum() - delta * (a_r @ one) - 2 * delta * left * sum_C
        by_gamma = a_r @ one + 2 * left * sum_C
        by_delta = np.sum(Wk_r * (2 * delta * both - pair)) - 2 * m * left * sum_C - m * (a_r @ one)
        noise = self.noise(theta) * np.trace(W)
        return np.array([*by_length, np.sum(Wk_r * A), noise, by_m, *decay, by_gamma, by_delta])

    @staticmethod
    def _by_log_alpha(alpha: float, beta: float, r: np.ndarray) -> np.ndarray:
        """d log κ / d log α at fixed E λ, where β moves with α."""
        return alpha * (np.log(beta / (r + beta)) + r / (r + beta))

    @staticmethod
    def _by_log_rate(alpha: float, beta: float, r: np.ndarray) -> np.ndarray:
        """d log κ / d log E λ."""
        return -alpha * r / (r + beta)


Kernel = Matern52 | ExponentialDecay
