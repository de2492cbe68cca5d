"""Policy gradients under a hard limit: rejection with the probability of being feasible, and penalties to compare.

Yang et al. TabNAS: Rejection Sampling for Neural Architecture Search on Tabular Datasets. 2022.
https://arxiv.org/abs/2204.07615
Bender et al. Can Weight Sharing Outperform Random Architecture Search? An Investigation With TuNAS. 2020.
https://arxiv.org/abs/2008.06120   (the absolute reward)

    P(V)          sum_{y in V} p(y),  or  P^(V) = 1/N sum_k 1(z_k in V) p(z_k) / q(z_k),  z_k ~ q = p without gradient
    rejection     y not in V: nothing.   y in V: loss = -A log[p(y) / P(V)],   A = Q(y) - Qbar
    abs           every y: R = Q + beta |T(y)/T0 - 1|,           loss = -(R - Rbar) log p(y)
    max           every y: R = Q + beta max(0, T(y)/T0 - 1),     loss as above

The gradient of log[p/P(V)] has zero mean under p given V, as a score must; that of log p has not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.core.decision import Arch
from archipel.core.errors import UsageError, suggest
from archipel.cost.table import archs_of
from archipel.search.oneshot.feasible_policy import FactorisedPolicy, FeasibleSet

REWARDS = ("rejection", "abs", "max")
PROBABILITIES = ("auto", "exact", "monte-carlo")


@dataclass
class Average:
    """Exponential moving average with bias correction: a weighted mean of all values, from the first on.

    >>> average = Average(0.9)
    >>> [round(average.update(v), 4) for v in (2.0, 4.0)]
    [2.0, 3.0526]
    """

    momentum: float
    total: float = 0.0
    weight: float = 0.0

    def update(self, value: float) -> float:
        self.total = self.momentum * self.total + (1 - self.momentum) * value
        self.weight = self.momentum * self.weight + (1 - self.momentum)
        return self.total / self.weight


def exact_log_mass(policy: FactorisedPolicy, feasible: np.ndarray, log_options: Tensor | None = None) -> Tensor:
    """log P(V), from the list of all feasible architectures."""
    return torch.logsumexp(policy.log_prob(feasible, log_options), dim=0)


def sampled_mass(
    policy: FactorisedPolicy, drawn: np.ndarray, good: np.ndarray, log_options: Tensor | None = None
) -> Tensor:
    """P^(V) from architectures ``[N, D]`` that the policy itself drew; its value is the fraction that is feasible."""
    log_p = policy.log_prob(drawn[good], log_options)
    return torch.exp(log_p - log_p.detach()).sum() / len(drawn)


@dataclass
class PolicySearch:
    """The controller's side of the search: drawing, rewards, and updates.

    Args:
        policy, feasible: what is learned, and within what.
        lr: of Adam.
        reward: ``"rejection"``, or a penalty instead: ``"abs"``, ``"max"``.
        correction: divide by P(V).
        probability: of V: ``"exact"``, ``"monte-carlo"``, or ``"auto"``: exact where V is listed.
        samples: of the Monte-Carlo estimate.
        beta: of the penalties; negative.
        momentum: of the baseline Qbar; None for Qbar = 0.

    Raises:
        UsageError: an unknown setting, or one out of range.
    """

    policy: FactorisedPolicy
    feasible: FeasibleSet
    lr: float = 0.02
    reward: str = "rejection"
    correction: bool = True
    probability: str = "auto"
    samples: int = 3072
    beta: float = -1.0
    momentum: float | None = 0.9
    rejected: int = 0
    learned: int = 0
    skipped: int = 0
    baseline: Average | None = field(init=False)

    def __post_init__(self) -> None:
        check_policy_settings(self.lr, self.reward, self.probability, self.samples, self.beta, self.momentum)
        if self.probability == "exact" and self.feasible.listed is None:
            raise UsageError(
                f"P(V) cannot be summed exactly over {self.policy.space.name}: it has {self.policy.space.size:,} "
                f"architectures, or costs without a table. Use probability='monte-carlo'."
            )
        self.exact = self.probability != "monte-carlo" and self.feasible.listed is not None
        self.baseline = None if self.momentum is None else Average(self.momentum)
        self.optimizer = torch.optim.Adam([self.policy.logits], lr=self.lr)

    def draw(self, rng: np.random.Generator) -> np.ndarray | None:
        """One row ``[1, D]`` from the policy, or None if it was rejected."""
        y = self.policy.sample(1, rng)
        if self.reward == "rejection" and not self.feasible.contains(y)[0]:
            self.rejected += 1
            return None
        return y

    def learn(self, y: np.ndarray, quality: float, rng: np.random.Generator) -> None:
        """One update from the quality of an architecture that :meth:`draw` gave."""
        reward = quality
        if self.reward != "rejection":
            excess = float(self.feasible.excess(y)[0]) - 1.0
            reward += self.beta * (abs(excess) if self.reward == "abs" else max(0.0, excess))
        advantage = reward - (0.0 if self.baseline is None else self.baseline.update(reward))
        log_options = self.policy.log_options()
        log_p = self.policy.log_prob(y, log_options)[0]
        if self.reward == "rejection" and self.correction and not self.feasible.inactive:
            log_mass = self.log_mass(rng, log_options)
            if log_mass is None:
                self.skipped += 1
                return
            log_p = log_p - log_mass
        self.optimizer.zero_grad(set_to_none=True)
        (-advantage * log_p).backward()
        self.optimizer.step()
        self.learned += 1

    def log_mass(self, rng: np.random.Generator, log_options: Tensor | None = None) -> Tensor | None:
        """log P(V) with its gradient; None if no feasible architecture was drawn, however many were."""
        if self.exact:
            assert self.feasible.listed is not None
            return exact_log_mass(self.policy, self.feasible.listed, log_options)
        for doubling in range(5):
            drawn = self.policy.sample(self.samples * 2**doubling, rng)
            good = self.feasible.contains(drawn)
            if good.any():
                return torch.log(sampled_mass(self.policy, drawn, good, log_options))
        if self.feasible.listed is not None:
            return exact_log_mass(self.policy, self.feasible.listed, log_options)
        return None

    def most_likely(self, rng: np.random.Generator, count: int = 1, within: bool = True) -> list[tuple[Arch, float]]:
        """The most likely architectures with their log probabilities, best first.

        Exact where V is listed (and for ``within=False``, which ignores the limits, where nothing is conditional);
        else the best among many draws.
        """
        space = self.policy.space
        if within and self.feasible.listed is not None:
            candidates = self.feasible.listed
        else:
            candidates = np.unique(self.policy.sample(max(10_000, self.samples), rng), axis=0)
            if not within:
                candidates = np.concatenate([candidates, self.policy.mode()])
            else:
                candidates = candidates[self.feasible.contains(candidates)]
        with torch.no_grad():
            log_p = self.policy.log_prob(candidates).numpy()
        best = np.argsort(-log_p, kind="stable")[:count]
        return list(zip(archs_of(space, candidates[best]), log_p[best].tolist()))

    # --- to be continued -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        average = None if self.baseline is None else [self.baseline.total, self.baseline.weight]
        counts = [self.rejected, self.learned, self.skipped]
        return {
            "logits": self.policy.logits.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "average": average,
            "counts": counts,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.policy.logits.copy_(state["logits"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.baseline is not None:
            self.baseline.total, self.baseline.weight = state["average"]
        self.rejected, self.learned, self.skipped = state["counts"]


def check_policy_settings(
    lr: float, reward: str, probability: str, samples: int, beta: float, momentum: float | None
) -> None:
    """Refuse settings of a :class:`PolicySearch` that make no sense.

    Raises:
        UsageError: which, and what would be right.
    """
    for what, given, known in (("reward", reward, REWARDS), ("probability", probability, PROBABILITIES)):
        if given not in known:
            raise UsageError(f"{what} {given!r} is unknown. {suggest(given, known)}")
    if not (math.isfinite(lr) and lr > 0):
        raise UsageError(f"The controller's learning rate must be positive, not {lr!r}.")
    if not isinstance(samples, int) or samples < 1:
        raise UsageError(f"samples must be a positive integer, not {samples!r}.")
    if not (math.isfinite(beta) and beta < 0):
        raise UsageError(f"beta must be negative, since it penalises, not {beta!r}.")
    if momentum is not None and not 0.0 <= momentum < 1.0:
        raise UsageError(f"The baseline's momentum must be in [0, 1), or None for no baseline, not {momentum!r}.")


def learn_from_oracle(
    search: PolicySearch, quality: Callable[[Arch], float], steps: int, seed: int = 0
) -> Sequence[float]:
    """Run the controller alone, on qualities that are known: the toy setting.

    Returns:
        the quality of each architecture that was not rejected.
    """
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(steps):
        y = search.draw(rng)
        if y is not None:
            seen.append(quality(archs_of(search.policy.space, y)[0]))
            search.learn(y, seen[-1], rng)
    return seen
