"""Product-kernel density estimates over mixed continuous and categorical dimensions.

Falkner, Klein, Hutter. BOHB: Robust and Efficient Hyperparameter Optimization at Scale. 2018.
https://arxiv.org/abs/1807.01774 — the kernels: Aitchison, Aitken. Multivariate binary discrimination by the kernel
method. 1976.

    p(x) = 1/N sum_n prod_j k_j(x_j, x_nj)
    continuous:   k = Normal(x_j; x_nj, h_j), not truncated
    c categories: k = 1 - h_j if x_j = x_nj else h_j / (c - 1)
    h_j = 1.06 std_j N^(-1 / (4 + d)), at least 1e-3; categorical: std of the codes, at most (c - 1) / c (uniform)

One kernel over all dimensions jointly: unlike a product of one-dimensional densities it keeps their dependence.
Axes: N data, M query points, D dimensions. ``categories_D`` holds 0 for continuous dimensions, else the number c.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

MIN_BANDWIDTH = 1e-3
_LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)


def normal_reference_bandwidth(
    data_ND: np.ndarray, categories_D: np.ndarray, minimum: float = MIN_BANDWIDTH
) -> np.ndarray:
    """Bandwidth of each dimension by the normal-reference rule (std with ddof 0); 0 where there is one category."""
    N, D = data_ND.shape
    h_D = np.maximum(1.06 * data_ND.std(axis=0) * N ** (-1.0 / (4 + D)), minimum)
    cap_D = np.where(categories_D > 0, (categories_D - 1) / np.maximum(categories_D, 1), np.inf)
    return np.minimum(h_D, cap_D)


def impute(data_ND: np.ndarray, categories_D: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fill missing entries (NaN: a decision that is closed) by a random observed entry of the same dimension.

    A dimension that nobody observed is filled uniformly.
    """
    filled_ND = data_ND.copy()
    for j in np.flatnonzero(np.isnan(data_ND).any(axis=0)):
        column_N = data_ND[:, j]
        missing = np.isnan(column_N)
        seen = column_N[~missing]
        if seen.size:
            filled_ND[missing, j] = rng.choice(seen, size=missing.sum())
        elif categories_D[j]:
            filled_ND[missing, j] = rng.integers(categories_D[j], size=missing.sum())
        else:
            filled_ND[missing, j] = rng.random(missing.sum())
    return filled_ND


def truncated_normal(mean: np.ndarray, std: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normals restricted to [0, 1] by inverting the distribution function; means lie in [0, 1]."""
    low, high = ndtr((0.0 - mean) / std), ndtr((1.0 - mean) / std)
    return np.clip(mean + std * ndtri(low + (high - low) * rng.random(mean.shape)), 0.0, 1.0)


@dataclass(frozen=True)
class ProductKDE:
    """A kernel density: data ``[N, D]`` (continuous in [0, 1], categories as codes), categories and bandwidths ``[D]``.

    >>> kde = ProductKDE.fit(np.array([[0.0], [1.0], [1.0], [1.0]]), np.array([2]))
    >>> kde.density(np.array([[0.0], [1.0]])).sum().round(12)
    np.float64(1.0)
    """

    data_ND: np.ndarray
    categories_D: np.ndarray
    h_D: np.ndarray

    @classmethod
    def fit(cls, data_ND: np.ndarray, categories_D: np.ndarray, min_bandwidth: float = MIN_BANDWIDTH) -> ProductKDE:
        """Data without missing entries, with bandwidths by :func:`normal_reference_bandwidth`."""
        return cls(data_ND, categories_D, normal_reference_bandwidth(data_ND, categories_D, min_bandwidth))

    def density(self, x_MD: np.ndarray) -> np.ndarray:
        """Density at each point, ``[M]``."""
        log_k_MN = np.zeros((len(x_MD), len(self.data_ND)))
        log_norm = 0.0  # of the Gaussian factors
        for j, (c, h) in enumerate(zip(self.categories_D, self.h_D)):
            if c == 0:
                z_MN = np.subtract.outer(x_MD[:, j] / (h * np.sqrt(2)), self.data_ND[:, j] / (h * np.sqrt(2)))
                log_k_MN -= np.square(z_MN, out=z_MN)
                log_norm += np.log(h) + _LOG_SQRT_2PI
            elif c > 1:  # a single category always has kernel 1
                same_MN = np.equal.outer(x_MD[:, j], self.data_ND[:, j])
                log_k_MN += np.where(same_MN, np.log1p(-h), np.log(h / (c - 1)))
        return np.exp(log_k_MN - log_norm).mean(axis=1)

    def sample_near(self, M: int, factor: float, rng: np.random.Generator) -> np.ndarray:
        """Candidates ``[M, D]`` around uniformly picked data: wider than the density itself, so as to explore.

        Continuous dimensions are normal with ``factor`` times the bandwidth, truncated to [0, 1]; a category is kept
        with probability 1 - h, else drawn uniformly from all of them.
        """
        x_MD = self.data_ND[rng.integers(len(self.data_ND), size=M)].copy()
        continuous = self.categories_D == 0
        if continuous.any():
            std = np.broadcast_to(factor * self.h_D[continuous], (M, int(continuous.sum())))
            x_MD[:, continuous] = truncated_normal(x_MD[:, continuous], std, rng)
        for j in np.flatnonzero(self.categories_D > 1):
            redraw = rng.random(M) < self.h_D[j]
            x_MD[redraw, j] = rng.integers(self.categories_D[j], size=redraw.sum())
        return x_MD
