"""Expected improvement, the usual price of a candidate under a Gaussian posterior.

Jones, Schonlau, Welch. Efficient Global Optimization of Expensive Black-Box Functions. 1998.
https://doi.org/10.1023/A:1008306431147

    EI = E[max(0, best − f)] = σ h(u),   u = (best − μ) / σ,   h(u) = φ(u) + u Φ(u)      (f is a loss)

The logarithm stays informative where EI underflows, so that distant candidates are still told apart:
for u < −1, h(u) = φ(u) (1 − |u| M(|u|)) with Mills' ratio M(t) = √(π/2) erfcx(t/√2).
"""

from __future__ import annotations

import numpy as np
from scipy.special import erfcx, logsumexp, ndtr

LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)


def expected_improvement(mean: np.ndarray, std: np.ndarray, best: np.ndarray | float) -> np.ndarray:
    """EI of a loss below ``best``; all arguments broadcast.

    >>> float(expected_improvement(np.array(0.0), np.array(1.0), 0.0).round(4))  # φ(0)
    0.3989
    """
    return np.exp(log_expected_improvement(mean, std, best))


def log_expected_improvement(mean: np.ndarray, std: np.ndarray, best: np.ndarray | float) -> np.ndarray:
    """Logarithm of EI; all arguments broadcast. ``std`` must be positive."""
    u = (best - mean) / std
    near = np.maximum(u, -1.0)
    far = np.maximum(-np.minimum(u, -1.0), 1.0)  # |u| on the far branch
    direct = np.log(np.exp(-0.5 * near**2 - LOG_SQRT_2PI) + near * ndtr(near))
    # 1 − t M(t) = 1/t² − 3/t⁴ + …, which cancels in floating point once t² nears 1 / eps
    rest = np.maximum(1 - far * np.sqrt(np.pi / 2) * erfcx(far / np.sqrt(2)), 1e-300)
    tail = -0.5 * far**2 - LOG_SQRT_2PI + np.where(far < 1e5, np.log(rest), -2 * np.log(far))
    return np.log(std) + np.where(u > -1, direct, tail)


def log_mean(log_values: np.ndarray) -> np.ndarray:
    """Logarithm of the mean over the last axis, such as over fantasies."""
    return logsumexp(log_values, axis=-1) - np.log(log_values.shape[-1])
