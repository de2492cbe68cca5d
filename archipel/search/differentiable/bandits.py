"""Agents that each choose one option and all see the same loss: exponential weights, and least squares.

See :mod:`archipel.search.differentiable.manas` for the method. N agents, K options; agents with fewer options than
others are padded, and never choose the padding.

    EXP3            B^i[k] += loss 1[a^i = k] / π^i[k],   π^i ∝ exp(-η B^i),   η = sqrt(2 ln K / (T K))
    least squares   B = argmin_β Σ_s (loss_s - βᵀZ_s)²,   π^i[k] = 1 / (rank_i(k) H_K),   H_K = 1 + 1/2 + … + 1/K

Z is the one-hot of all choices in ``{0, 1}^{NK}``. Each agent's part of it sums to 1, so that N - 1 directions of β
cannot be known; of all minimisers the one of smallest norm is taken, by the pseudo-inverse of Σ Z Zᵀ, which grows by
rank one a round. Losses are centred first: where ranks are identified that changes none of them, and elsewhere an
option that was never tried counts as average and not as free of loss.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archipel.core.errors import UsageError


class Agents:
    """Independent choosers with uniform policies; subclasses learn in :meth:`tell`.

    Args:
        sizes: number of options of each agent.

    Raises:
        UsageError: no agent, or one with fewer than two options.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes or min(sizes) < 2:
            raise UsageError(f"Each of the agents needs at least two options to choose from; their numbers: {sizes}.")
        self.sizes = torch.tensor(list(sizes))
        self.valid_NK = torch.arange(max(sizes)) < self.sizes[:, None]

    def logits(self) -> Tensor:
        """Logarithms of the policies up to a constant for each agent ``[N, K]``; minus infinity in the padding."""
        return torch.zeros(self.valid_NK.shape, dtype=torch.float64).masked_fill(~self.valid_NK, -math.inf)

    def policies(self) -> Tensor:
        """Probabilities ``[N, K]``."""
        return torch.softmax(self.logits(), 1)

    def draw(self) -> Tensor:
        """A choice of each agent ``[N]``, by PyTorch's generator."""
        return torch.multinomial(self.policies(), 1).squeeze(1)

    def tell(self, actions: Tensor, loss: float) -> None:
        """What the choices together cost."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Exp3(Agents):
    """Exponential weights with importance-weighted losses (MANAS).

    Args:
        horizon: T, the rounds to be played.
        eta: η of every agent; as above by default.

    Raises:
        UsageError: a horizon below 1, or η that is not positive.
    """

    def __init__(self, sizes: Sequence[int], horizon: int, eta: float | None = None) -> None:
        super().__init__(sizes)
        if horizon < 1:
            raise UsageError(f"EXP3 needs at least one round, not {horizon}.")
        if eta is not None and not (math.isfinite(eta) and eta > 0):
            raise UsageError(f"EXP3's learning rate eta must be positive, not {eta!r}.")
        K = self.sizes.double()
        self.eta_N1 = ((2 * K.log() / (horizon * K)).sqrt() if eta is None else torch.full_like(K, eta))[:, None]
        self.B_NK = torch.zeros(self.valid_NK.shape, dtype=torch.float64)

    def logits(self) -> Tensor:
        return (-self.eta_N1 * self.B_NK).masked_fill(~self.valid_NK, -math.inf)

    def tell(self, actions: Tensor, loss: float) -> None:
        """
        Raises:
            UsageError: the loss is not between 0 and 1.
        """
        if not 0.0 <= loss <= 1.0:
            raise UsageError(f"EXP3 needs losses between 0 and 1, got {loss}. Scale them (loss='relative' or 'error').")
        chosen = actions[:, None]
        self.B_NK.scatter_add_(1, chosen, loss / self.policies().gather(1, chosen))
        # Only differences matter to the policy; kept small, they stay exact.
        self.B_NK -= self.B_NK.masked_fill(~self.valid_NK, math.inf).min(1, keepdim=True).values

    def state_dict(self) -> dict[str, Any]:
        return {"B": self.B_NK.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.B_NK.copy_(state["B"])


class LeastSquares(Agents):
    """Policies by the rank of each option in a linear fit of the losses (MANAS-LS); uniform before the first fit.

    Args:
        samples: S, rounds between two fits.
        keep: weight that earlier rounds keep in the next fit; 0 fits the last S alone.

    Warns:
        UserWarning: S is below the number of coefficients that can be known, 1 + Σ (K - 1), and nothing is kept.

    Raises:
        UsageError: fewer than one sample, or ``keep`` out of [0, 1].
    """

    def __init__(self, sizes: Sequence[int], samples: int = 50, keep: float = 0.0) -> None:
        super().__init__(sizes)
        if not isinstance(samples, int) or samples < 1:
            raise UsageError(f"Least squares needs a positive number of samples for each fit, not {samples!r}.")
        if not 0.0 <= keep <= 1.0:
            raise UsageError(f"Earlier rounds keep a weight between 0 and 1, not {keep!r}.")
        free = 1 + sum(sizes) - len(sizes)
        if samples < free and keep == 0.0:
            warnings.warn(
                f"Each fit of {samples} samples has {free} unknowns; the solution of smallest norm is taken. Take "
                f"samples={free} or more, or keep earlier rounds.",
                stacklevel=2,
            )
        self.samples, self.keep = samples, keep
        P = self.valid_NK.numel()
        self.ZZ, self.Zloss, self.Z = (torch.zeros(shape, dtype=torch.float64) for shape in ((P, P), (P,), (P,)))
        self.loss, self.weight, self.fresh = 0.0, 0.0, 0
        self.rank_NK: Tensor | None = None

    def logits(self) -> Tensor:
        return super().logits() if self.rank_NK is None else -(self.rank_NK.double().log())

    def tell(self, actions: Tensor, loss: float) -> None:
        """
        Raises:
            UsageError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise UsageError(f"Least squares needs finite losses, got {loss}.")
        if self.fresh == 0:  # a new round of samples
            for t in (self.ZZ, self.Zloss, self.Z):
                t *= self.keep
            self.loss, self.weight = self.keep * self.loss, self.keep * self.weight
        on = torch.arange(len(actions)) * self.valid_NK.shape[1] + actions
        self.ZZ[on[:, None], on] += 1.0
        self.Zloss[on] += loss
        self.Z[on] += 1.0
        self.loss, self.weight, self.fresh = self.loss + loss, self.weight + 1.0, (self.fresh + 1) % self.samples
        if self.fresh == 0:
            self.rank_NK = self._ranks(self.coefficients())

    def coefficients(self) -> Tensor:
        """β of smallest norm for the centred losses ``[N, K]``."""
        centred = self.Zloss - self.Z * (self.loss / self.weight)
        return (torch.linalg.pinv(self.ZZ, hermitian=True) @ centred).view(self.valid_NK.shape)

    def _ranks(self, beta_NK: Tensor) -> Tensor:
        """1 for the smallest coefficient; infinity in the padding."""
        order = beta_NK.masked_fill(~self.valid_NK, math.inf).argsort(dim=1, stable=True)
        return (1.0 + order.argsort(1).double()).masked_fill(~self.valid_NK, math.inf)

    def state_dict(self) -> dict[str, Any]:
        return {
            "ZZ": self.ZZ.clone(),
            "Zloss": self.Zloss.clone(),
            "Z": self.Z.clone(),
            "sums": [self.loss, self.weight, self.fresh],
            "rank": None if self.rank_NK is None else self.rank_NK.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("ZZ", "Zloss", "Z"):
            getattr(self, name).copy_(state[name])
        self.loss, self.weight, self.fresh = state["sums"]
        self.rank_NK = state["rank"]


def zipf(K: int) -> Tensor:
    """Probabilities by rank, the best first.

    >>> (25 * zipf(4)).round(decimals=9).tolist()
    [12.0, 6.0, 4.0, 3.0]
    """
    p = 1.0 / torch.arange(1, K + 1, dtype=torch.float64)
    return p / p.sum()


def regret_bound(agents: int, options: int, rounds: int) -> float:
    """N sqrt(2 T K ln K): what the agents of MANAS lose in expectation against the best fixed choice of each.

    >>> round(regret_bound(1, 2, 100), 2)
    16.65
    """
    return agents * math.sqrt(2 * rounds * options * math.log(options))


def simple_regret_rate(rounds: int, hardness: float) -> float:
    """exp(-T / H), the rate at which the recommendation of MANAS-LS improves; H is a constant of the problem."""
    return math.exp(-rounds / hardness)


@dataclass(frozen=True)
class GaussianSqueeze:
    """Gaussian Squeeze Domain: N agents choose numbers from 0 to K - 1 whose sum x should come near μ.

    G(x) = x exp(-(x - μ)² / σ²), loss = 1 - G(x) / max G; the maximum is over the sums that there are.

    >>> round(GaussianSqueeze(10, 4, mu=10, sigma=5).optimum, 4)
    11.1237
    """

    agents: int = 10
    options: int = 4
    mu: float = 22.0
    sigma: float = 5.0

    def value(self, x: float) -> float:
        return x * math.exp(-(((x - self.mu) / self.sigma) ** 2))

    @property
    def optimum(self) -> float:
        """The x with the largest G, over the reals: (μ + sqrt(μ² + 2σ²)) / 2."""
        return (self.mu + math.sqrt(self.mu**2 + 2 * self.sigma**2)) / 2

    def loss(self, actions: Tensor) -> float:
        best = max(self.value(x) for x in range(self.agents * (self.options - 1) + 1))
        return 1.0 - self.value(int(actions.sum())) / best


def play(agents: Agents, game: GaussianSqueeze, rounds: int) -> list[float]:
    """Losses of so many rounds."""
    losses = []
    for _ in range(rounds):
        actions = agents.draw()
        losses.append(game.loss(actions))
        agents.tell(actions, losses[-1])
    return losses
