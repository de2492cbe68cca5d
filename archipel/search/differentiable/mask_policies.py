"""One distribution over binary masks for each task, all learning from every sample.

Wu, Li, Zhang, Dai, Zhang, Yu, Wang, Lin, Vajda. FBNetV5: Neural Architecture Search for Multiple Tasks in One Run.
2021. https://arxiv.org/abs/2111.10007

    P_t(a) = Π_b π_tb^{a_b} (1 − π_tb)^{1 − a_b},   π = σ(logits)            N samples a_i ~ P_{s_i}, s_i uniform
    g_t    = (1/N) Σ_i ω_ti (R_t(a_i) − b_t) (a_i − π_t)                      ∇ E_{P_t}[R_t] for the logits
    ω_ti   = P_t(a_i) / mean_s P_s(a_i)   (balance heuristic, at most T)      or  P_t(a_i) / P_{s_i}(a_i)   (simple)

Both weights leave the gradient unbiased, whatever baseline b_t does not depend on the sample; the simple one is not
bounded. The number of evaluated networks is N for any number of tasks; what is lost is precision, as the distributions
part: effective sample size (Σω)² / Σω². Axes: T tasks, B bits, N samples.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from archipel.core.errors import UsageError

WEIGHTINGS = ("balance", "simple")
LOWEST = 0.01  # π stays within [LOWEST, 1 − LOWEST], where log P is finite


class MaskPolicies:
    """Independent Bernoulli distributions of T tasks over B bits.

    Args:
        tasks, bits: T and B.
        lr: of Adam on the logits.
        weighting: ``"balance"`` or ``"simple"``.
        entropy: weight of the entropy bonus, which falls to 0 with the progress given to :meth:`step`.
        decay: of the running means and deviations of rewards.

    Raises:
        UsageError: a number out of range, or another weighting.

    >>> policies = MaskPolicies(2, 3)
    >>> policies.probabilities().tolist()
    [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """

    def __init__(
        self,
        tasks: int,
        bits: int,
        lr: float = 0.1,
        weighting: str = "balance",
        entropy: float = 0.0,
        decay: float = 0.9,
    ) -> None:
        if tasks < 1 or bits < 1 or not lr > 0 or not entropy >= 0 or not 0 <= decay < 1:
            raise UsageError(
                "Mask policies need tasks, bits and lr above 0, entropy of at least 0 and decay in [0, 1)."
            )
        if weighting not in WEIGHTINGS:
            raise UsageError(f"Samples are weighted by {' or '.join(WEIGHTINGS)}, not {weighting!r}.")
        self.logits_TB = torch.zeros(tasks, bits, dtype=torch.float64)
        self.weighting, self.entropy, self.decay = weighting, entropy, decay
        self.optimizer = torch.optim.Adam([self.logits_TB], lr)
        self.mean_T: Tensor | None = None
        self.sd_T: Tensor | None = None

    # --- distributions ---------------------------------------------------------------------------------------------

    def probabilities(self) -> Tensor:
        """π ``[T, B]``."""
        return torch.sigmoid(self.logits_TB)

    def set_probabilities(self, pi_TB: Tensor) -> None:
        """Set π, such as to a prior by cost; values at 0 and 1 are moved inside, with a warning.

        Raises:
            UsageError: values that are no probabilities.
        """
        if pi_TB.shape != self.logits_TB.shape or not bool(((pi_TB >= 0) & (pi_TB <= 1)).all()):
            raise UsageError(f"Probabilities of shape {tuple(self.logits_TB.shape)} in [0, 1] are needed.")
        inside = pi_TB.double().clamp(LOWEST, 1 - LOWEST)
        if not torch.equal(inside, pi_TB.double()):
            warnings.warn(
                f"Probabilities were moved into [{LOWEST}, {1 - LOWEST}]: at 0 and 1 no mask could be weighed.",
                stacklevel=2,
            )
        self.logits_TB.copy_(torch.logit(inside))

    def log_prob(self, masks_NB: Tensor) -> Tensor:
        """log P_t(a_i) ``[N, T]``."""
        a = masks_NB.to(self.logits_TB)
        return a @ F.logsigmoid(self.logits_TB).T + (1 - a) @ F.logsigmoid(-self.logits_TB).T

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Masks ``[N, B]`` (bool) and the task ``[N]`` whose distribution drew each, uniform over tasks."""
        sampler_N = torch.randint(len(self.logits_TB), (n,), generator=generator)
        uniform = torch.rand(n, self.logits_TB.shape[1], generator=generator, dtype=torch.float64)
        return uniform < self.probabilities()[sampler_N], sampler_N

    def modes(self) -> Tensor:
        """The most probable mask of each task ``[T, B]``."""
        return self.logits_TB > 0

    # --- learning --------------------------------------------------------------------------------------------------

    def weights(self, masks_NB: Tensor, sampler_N: Tensor) -> Tensor:
        """ω ``[N, T]``."""
        log_p = self.log_prob(masks_NB)
        if self.weighting == "simple":
            return (log_p - log_p.gather(1, sampler_N[:, None])).exp()
        return (log_p - torch.logsumexp(log_p, 1, keepdim=True) + math.log(log_p.shape[1])).exp()

    def gradient(self, masks_NB: Tensor, sampler_N: Tensor, advantage_NT: Tensor) -> Tensor:
        """The estimate of ∇ E_{P_t}[R_t] for the logits ``[T, B]``."""
        omega = self.weights(masks_NB, sampler_N)
        a = masks_NB.to(self.logits_TB)
        scaled_NT = omega * advantage_NT.to(omega)
        pi = self.probabilities()
        return (scaled_NT.T @ a - scaled_NT.sum(0)[:, None] * pi) / len(a)

    def step(self, masks_NB: Tensor, sampler_N: Tensor, reward_NT: Tensor, progress: float = 0.0) -> dict[str, float]:
        """One ascent of all tasks; rewards are standardised by running values of the steps before.

        The first step has none, and standardises by its own samples.

        Args:
            progress: from 0 to 1; the entropy bonus falls to 0 with it.

        Returns:
            ``ess`` (the smallest effective sample size of a task) and ``entropy`` (mean, in bits' nats).

        Raises:
            UsageError: a reward that is not finite; names the sample.
        """
        bad = (~torch.isfinite(reward_NT)).nonzero()
        if len(bad):
            i, t = bad[0].tolist()
            raise UsageError(
                f"The reward of sample {i} for task {t} is {float(reward_NT[i, t])}; rewards must be finite."
            )
        mean, sd = reward_NT.mean(0), reward_NT.std(0, unbiased=False)
        before = (mean, sd) if self.mean_T is None or self.sd_T is None else (self.mean_T, self.sd_T)
        omega = self.weights(masks_NB, sampler_N)
        advantage = (reward_NT - before[0]) / before[1].clamp_min(1e-8)
        pi = self.probabilities()
        entropy_gradient = -self.logits_TB * pi * (1 - pi)  # of −π log π − (1 − π) log(1 − π)
        ascent = self.gradient(masks_NB, sampler_N, advantage)
        self.logits_TB.grad = -(ascent + (1.0 - progress) * self.entropy * entropy_gradient)
        self.optimizer.step()
        edge = math.log((1 - LOWEST) / LOWEST)
        self.logits_TB.clamp_(-edge, edge)
        self.mean_T = mean if self.mean_T is None else self.decay * self.mean_T + (1 - self.decay) * mean
        self.sd_T = sd if self.sd_T is None else self.decay * self.sd_T + (1 - self.decay) * sd
        pi = self.probabilities()
        entropy = -(pi * pi.log() + (1 - pi) * (1 - pi).log()).mean()
        return {"ess": float(effective_samples(omega).min()), "entropy": float(entropy)}


def effective_samples(omega_NT: Tensor) -> Tensor:
    """(Σω)² / Σω² of each task ``[T]``.

    >>> effective_samples(torch.tensor([[1.0], [1.0], [0.0]])).tolist()
    [2.0]
    """
    return omega_NT.sum(0) ** 2 / (omega_NT**2).sum(0)
