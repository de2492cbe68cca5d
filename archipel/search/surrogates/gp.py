"""Gaussian-process regression: fit, posterior, and conditioning on results that are still pending.

Rasmussen, Williams. Gaussian Processes for Machine Learning. 2006. https://gaussianprocess.org/gpml — fantasies:
Snoek, Larochelle, Adams. 2012. https://arxiv.org/abs/1206.2944 — kriging believer: Ginsbourger, Le Riche, Carraro.
2010. https://doi.org/10.1007/978-3-642-10701-6_6

    log p(y) = −½ (y − m)ᵀ a − ½ log |K| − N/2 log 2π,    a = K⁻¹ (y − m),   K with the noise on its diagonal
    d log p / dθ = Σ ½ (a aᵀ − K⁻¹) ∘ ∂K/∂θ + aᵀ ∂m/∂θ
    mean m(q) + k(q, Z) a,   cov k(q, q') − k(q, Z) K⁻¹ k(Z, q')

Targets are standardised by the caller (:func:`standardise`). N observations, Q queries, P pending points, S sets of
targets over the same inputs: these share one Cholesky factor, which further points extend in O(N²) each.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache

import numpy as np
from scipy.linalg import cho_solve, cholesky, get_lapack_funcs, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

from archipel.core.errors import ShapeError, UsageError
from archipel.search.surrogates.kernels import Kernel

MIN_VARIANCE = 1e-12  # of a prediction, in standardised units: rounding may leave it slightly negative
JITTERS = (0.0, 1e-10, 1e-8, 1e-6, 1e-4)  # tried on the diagonal in turn, in units of its mean


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries, which takes a while


def one_thread() -> AbstractContextManager:
    """Linear algebra on a single thread inside this context.

    Results are then equal to the last bit however many cores there are, so that a search can be replayed elsewhere;
    and matrices of some hundred rows are not worth waking other threads for.
    """
    return _controller().limit(limits=1, user_api="blas")


def standardise(y: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Targets of mean 0 and standard deviation 1 (all equal: 0), with the mean and deviation that were removed."""
    mean, std = float(np.mean(y)), float(np.std(y))
    std = std if std > 1e-12 * max(1.0, abs(mean)) else 1.0
    return (y - mean) / std, mean, std


def factorise(K: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor, with as little jitter on the diagonal as makes it exist.

    Raises:
        UsageError: not positive definite even then.
    """
    diagonal = np.arange(len(K))
    for jitter in JITTERS:
        jittered = K.copy()
        jittered[diagonal, diagonal] += jitter * np.mean(K[diagonal, diagonal])
        try:
            return cholesky(jittered, lower=True, overwrite_a=True)
        except np.linalg.LinAlgError:
            continue
    raise UsageError(f"The covariance of {len(K)} points is not positive definite, even with jitter {JITTERS[-1]}.")


def log_likelihood(kernel: Kernel, theta: np.ndarray, Z: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Log marginal likelihood of targets ``y [N]`` at inputs ``Z [N, D + 1]``, and its gradient by theta."""
    n = len(y)
    K = kernel.covariance(theta, Z, Z)
    K[np.arange(n), np.arange(n)] += kernel.noise(theta)
    L = factorise(K)
    residual = y - kernel.mean(theta, Z)
    a = cho_solve((L, True), residual)
    value = -0.5 * residual @ a - np.log(np.diag(L)).sum() - 0.5 * n * np.log(2 * np.pi)
    (potri,) = get_lapack_funcs(("potri",), (L,))
    inverse = potri(L, lower=1)[0]  # only its lower triangle is meaningful
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    return float(value), kernel.gradient(theta, Z, 0.5 * (np.outer(a, a) - inverse), a)


def fit(
    kernel: Kernel, Z: np.ndarray, y: np.ndarray, starts: list[np.ndarray] | None = None, iterations: int = 50
) -> np.ndarray:
    """Hyperparameters that maximise the marginal likelihood, from the best of some starts.

    Args:
        kernel: what to fit.
        Z, y: inputs ``[N, D + 1]`` and standardised targets ``[N]``.
        starts: parameter vectors; None: the kernel's own.
        iterations: of L-BFGS, for each start.

    Raises:
        ShapeError: different numbers of inputs and targets, or none.
        UsageError: inputs or targets that are not finite.
    """
    if len(Z) != len(y) or not len(y):
        raise ShapeError(f"A fit needs as many targets as inputs and at least one, not {len(y)} and {len(Z)}.")
    if not (np.isfinite(Z).all() and np.isfinite(y).all()):
        raise UsageError("A fit needs finite inputs and targets; leave failed evaluations out.")

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = log_likelihood(kernel, theta, Z, y)
        return -value / len(y), -gradient / len(y)

    bounds = kernel.bounds()
    low, high = np.array(bounds, dtype=float).T
    search = {"jac": True, "method": "L-BFGS-B", "bounds": bounds, "options": {"maxiter": iterations}}
    results = [minimize(loss, np.clip(start, low, high), **search) for start in starts or [kernel.start()]]
    return min(results, key=lambda result: result.fun).x


class Posterior:
    """A Gaussian process conditioned on observations.

    Args:
        kernel, theta: the prior.
        Z: inputs ``[N, D + 1]``.
        Y: targets ``[N]``, or ``[N, S]`` for S sets over the same inputs.
    """

    def __init__(self, kernel: Kernel, theta: np.ndarray, Z: np.ndarray, Y: np.ndarray, L: np.ndarray | None = None):
        self.kernel, self.theta, self.Z = kernel, theta, Z
        self.Y = Y if Y.ndim == 2 else Y[:, None]
        if len(self.Y) != len(Z):
            raise ShapeError(f"A posterior needs as many targets as inputs, not {len(self.Y)} and {len(Z)}.")
        self.L = factorise(self._noisy(Z)) if L is None else L
        self.a = cho_solve((self.L, True), self.Y - kernel.mean(theta, Z)[:, None])

    def _noisy(self, Z: np.ndarray) -> np.ndarray:
        return self.kernel.covariance(self.theta, Z, Z) + self.kernel.noise(self.theta) * np.eye(len(Z))

    def predict(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean of f ``[Q, S]``, and its variance without the noise ``[Q]``, equal for all targets."""
        k = self.kernel.covariance(self.theta, self.Z, queries)
        explained = solve_triangular(self.L, k, lower=True, check_finite=False)
        rest = self.kernel.variance(self.theta, queries) - (explained**2).sum(0)
        return self.kernel.mean(self.theta, queries)[:, None] + k.T @ self.a, np.maximum(rest, MIN_VARIANCE)

    def mean(self, queries: np.ndarray) -> np.ndarray:
        """Posterior mean of f, ``[Q, S]``."""
        prior = self.kernel.mean(self.theta, queries)[:, None]
        return prior + self.kernel.covariance(self.theta, queries, self.Z) @ self.a

    def covariance(self, queries: np.ndarray) -> np.ndarray:
        """Posterior covariance of f, ``[Q, Q]``."""
        explained = self._whitened(queries)
        return self.kernel.covariance(self.theta, queries, queries) - explained.T @ explained

    def _whitened(self, queries: np.ndarray) -> np.ndarray:
        """L⁻¹ k(Z, queries), ``[N, Q]``."""
        k = self.kernel.covariance(self.theta, self.Z, queries)
        return solve_triangular(self.L, k, lower=True, check_finite=False)

    def sample(self, queries: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Joint draws of noisy results at the queries, ``[Q, count]``; from a posterior with one set of targets."""
        noisy = self.covariance(queries) + self.kernel.noise(self.theta) * np.eye(len(queries))
        return self.mean(queries)[:, :1] + factorise(noisy) @ rng.standard_normal((len(queries), count))

    def condition(self, points: np.ndarray, targets: np.ndarray) -> Posterior:
        """The posterior after further results, by extending the Cholesky factor.

        Args:
            points: ``[P, D + 1]``.
            targets: ``[P, S]``; a single set of earlier targets is repeated S times.
        """
        n, p = len(self.Z), len(points)
        cross = self._whitened(points)
        L = np.zeros((n + p, n + p))
        L[:n, :n], L[n:, :n] = self.L, cross.T
        L[n:, n:] = factorise(self._noisy(points) - cross.T @ cross)
        old = np.broadcast_to(self.Y, (n, targets.shape[1]))
        return Posterior(self.kernel, self.theta, np.vstack([self.Z, points]), np.vstack([old, targets]), L)


def fantasise(posterior: Posterior, pending: np.ndarray, count: int, rng: np.random.Generator) -> Posterior:
    """Condition on ``count`` joint draws of the pending results ``[P, D + 1]``: one set of targets for each draw."""
    return posterior.condition(pending, posterior.sample(pending, count, rng)) if len(pending) else posterior


def believe(posterior: Posterior, pending: np.ndarray) -> Posterior:
    """Kriging believer: condition on the pending results being what the mean predicts."""
    return posterior.condition(pending, posterior.mean(pending)) if len(pending) else posterior
