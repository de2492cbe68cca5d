"""BOHB over a joint space: architecture and training hyperparameters decided together, on growing budgets.

Zela, Klein, Falkner, Hutter. Towards Automated Deep Learning: Efficient Joint Neural Architecture and Hyperparameter
Search. 2018. https://arxiv.org/abs/1807.06906 — the optimiser: Falkner, Klein, Hutter. BOHB. 2018.
https://arxiv.org/abs/1807.01774

A new configuration of a Hyperband bracket is, with probability rho = 1/3 or while there is no model, uniform; else
with the N observations of the *largest* budget that has at least N_min + 2 of them (N_min = d + 1):

    good: the best  n_g = max(N_min, floor(0.15 N)),   density l(x)
    bad:  the worst max(N_min, N - n_g),               density g(x)     (they overlap while N < 2 N_min)
    64 candidates near good points (three bandwidths wide); take the largest max(l, 1e-32) / max(g, 1e-32)

``disjoint`` keeps the groups apart and so waits for 2 N_min observations. Fills `propose` and `fidelity`.

Dimensions of the model. Numbers: their place in the (logarithmic) range, in [0, 1]. Ordered decisions of c options:
continuous as well, option r at the middle (r + 1/2) / c of its cell and decoded to the cell that is hit, that is to the
nearest rank; so the kernel knows that neighbours are alike, and a uniform position is a uniform option. Unordered
decisions: categories. Decisions without an alternative are left out (d counts the others). Closed decisions are
imputed from a random observation of the same group where they are open; a candidate's closed decisions are dropped.

Departures: the paper's budgets are seconds, ours are epochs; as there, each budget is trained from scratch with its
own schedule (``from_scratch=True``). Failed trials count as observations, the worst ones, and are never taken for
good. Candidates beyond the hard limits are skipped in favour of the next best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np

from archipel.core.decision import AnyDecision, Arch, Real
from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.core.space import Space
from archipel.search.hyperband import BracketStrategy
from archipel.search.strategy import Problem, Trial
from archipel.search.surrogates.kde import MIN_BANDWIDTH, ProductKDE, impute

MIN_DENSITY = 1e-32  # floor of both densities before their ratio is taken
CANDIDATE_BATCHES = 16  # how often candidates are drawn anew when none keeps the limits


def modelled_decisions(space: Space) -> tuple[AnyDecision, ...]:
    """The decisions with an alternative: the model's dimensions."""
    return tuple(d for d in space.decisions if d.size > 1)


def categories(decisions: Sequence[AnyDecision]) -> np.ndarray:
    """For each dimension the number of its categories, 0 if it is continuous."""
    return np.array([0 if d.ordered else int(d.size) for d in decisions], dtype=int)


def to_point(decisions: Sequence[AnyDecision], arch: Arch) -> np.ndarray:
    """An architecture as a point ``[D]``; NaN where a decision is closed.

    >>> from archipel.core.decision import Decision
    >>> to_point([Decision("width", [8, 16, 32, 64], ordered=True), Decision("op", ["conv", "skip"])], {"width": 16})
    array([0.375, nan])
    """
    point_D = np.full(len(decisions), np.nan)
    for j, d in enumerate(decisions):
        if d.name in arch:
            if isinstance(d, Real):
                point_D[j] = d.encode(arch[d.name])[0]
            else:
                point_D[j] = (d.index(arch[d.name]) + 0.5) / d.size if d.ordered else d.index(arch[d.name])
    return point_D


def to_arch(space: Space, decisions: Sequence[AnyDecision], point_D: np.ndarray, rng: Random) -> Arch:
    """The architecture at a point: closed decisions are dropped, decisions without an alternative are added."""
    values: Arch = {}
    for d, x in zip(decisions, point_D.tolist()):
        if isinstance(d, Real):
            values[d.name] = d.decode(x)
        else:
            values[d.name] = d.options[min(int(x * d.size), d.size - 1) if d.ordered else int(x)]
    return space.complete(values, rng)


@dataclass(frozen=True)
class Model:
    """Densities of good and bad configurations on one budget."""

    good: ProductKDE
    bad: ProductKDE

    def ratio(self, x_MD: np.ndarray) -> np.ndarray:
        """l / g at each point, ``[M]``, both floored."""
        return np.maximum(self.good.density(x_MD), MIN_DENSITY) / np.maximum(self.bad.density(x_MD), MIN_DENSITY)


class Observations:
    """What was evaluated on one budget: points ``[N, D]`` with NaN for closed decisions, and scores ``[N]``."""

    def __init__(self) -> None:
        self.points: list[np.ndarray] = []
        self.scores: list[float] = []
        self.model: Model | None = None  # of exactly these observations; None: to be fitted

    def add(self, point_D: np.ndarray, score: float) -> None:
        self.points.append(point_D)
        self.scores.append(score)
        self.model = None

    @property
    def successes(self) -> int:
        return sum(s > -math.inf for s in self.scores)


@register(
    "bohb-joint",
    card=137,
    family="search.blackbox",
    slots=["propose", "fidelity"],
    paper=Paper(
        "Towards Automated Deep Learning: Efficient Joint Neural Architecture and Hyperparameter Search",
        2018,
        "https://arxiv.org/abs/1807.06906",
    ),
)
class BOHB(BracketStrategy):
    """Hyperband whose new configurations come from densities of good and bad ones.

    Args:
        eta, b_min, form, from_scratch, rounds: see :class:`archipel.search.hyperband.BracketStrategy`.
        random_fraction: rho, share of uniform proposals.
        top_fraction: share of observations that count as good.
        candidates: drawn for each proposal.
        bandwidth_factor: how much wider than the good density candidates are drawn.
        min_bandwidth: of both densities.
        min_points: N_min; None: d + 1.
        disjoint: keep good and bad apart and wait for 2 N_min observations.

    Raises:
        UsageError: a setting out of range; names it.

    >>> from archipel.core.space import JointSpace
    >>> from archipel.core.decision import Decision
    >>> joint = JointSpace(Space([Decision("width", [8, 16], ordered=True)]), [Real("lr", 1e-3, 1.0, log=True)])
    >>> search = BOHB()
    >>> search.setup(Problem(joint, max_resource=27))
    >>> trial = search.ask()
    >>> sorted(trial.arch), trial.resource, trial.info["proposal"]
    (['lr', 'width'], 1, 'random')
    """

    def __init__(
        self,
        eta: float = 3,
        b_min: int | None = None,
        form: str = "floor",
        from_scratch: bool = True,
        rounds: int | None = None,
        random_fraction: float = 1 / 3,
        top_fraction: float = 0.15,
        candidates: int = 64,
        bandwidth_factor: float = 3.0,
        min_bandwidth: float = MIN_BANDWIDTH,
        min_points: int | None = None,
        disjoint: bool = False,
    ) -> None:
        super().__init__(eta, b_min, form, from_scratch, rounds)
        for name, value in (("random_fraction", random_fraction), ("top_fraction", top_fraction)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name}={value!r}: a share of 1, so between 0 and 1.")
        for name, value in (("bandwidth_factor", bandwidth_factor), ("min_bandwidth", min_bandwidth)):
            if not 0 < value < math.inf:
                raise UsageError(f"{name}={value!r}: must be a positive number.")
        for name, value in (("candidates", candidates), ("min_points", min_points)):
            if value is not None and value < 1:
                raise UsageError(f"{name}={value!r}: give at least 1.")
        self.random_fraction, self.candidates, self.disjoint = random_fraction, candidates, disjoint
        self.bandwidth_factor, self.min_bandwidth, self.min_points = bandwidth_factor, min_bandwidth, min_points
        self._top = Fraction(str(top_fraction))  # exact: floor(0.15 N) must not depend on rounding

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self.dimensions = modelled_decisions(problem.space)
        self.categories_D = categories(self.dimensions)
        self.n_min = len(self.dimensions) + 1 if self.min_points is None else self.min_points
        self.observations: dict[int, Observations] = {}
        self._numpy_rng = np.random.default_rng(problem.rng.getrandbits(64))

    def observe(self, trial: Trial, score: float) -> None:
        assert trial.resource is not None  # every trial of a bracket has a budget
        self.observations.setdefault(trial.resource, Observations()).add(to_point(self.dimensions, trial.arch), score)

    def model_budget(self) -> int | None:
        """The largest budget with enough observations, of which at least N_min did not fail; None if there is none."""
        needed = max(self.n_min + 2, 2 * self.n_min if self.disjoint else 0)
        for budget in sorted(self.observations, reverse=True):
            seen = self.observations[budget]
            if len(seen.scores) >= needed and seen.successes >= self.n_min:
                return budget
        return None

    def split(self, scores: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the good (best first) and of the bad (worst last)."""
        N, successes = len(scores), sum(s > -math.inf for s in scores)
        order = np.argsort(-np.asarray(scores), kind="stable")
        n_good = min(max(self.n_min, math.floor(self._top * N)), successes)
        if self.disjoint:
            n_good = min(n_good, N - self.n_min)
        n_bad = max(self.n_min, N - n_good)
        return order[:n_good], order[N - n_bad :]

    def model(self, budget: int) -> Model:
        """The densities of good and bad configurations on a budget; fitted anew only after a new observation."""
        seen = self.observations[budget]
        if seen.model is None:
            points_ND = np.stack(seen.points)
            seen.model = Model(*(self._fit(points_ND[group]) for group in self.split(seen.scores)))
        return seen.model

    def _fit(self, points_ND: np.ndarray) -> ProductKDE:
        filled_ND = impute(points_ND, self.categories_D, self._numpy_rng)
        return ProductKDE.fit(filled_ND, self.categories_D, self.min_bandwidth)

    def propose(self) -> tuple[Arch, dict[str, Any]]:
        explore = self.problem.rng.random() < self.random_fraction
        budget = self.model_budget() if self.dimensions and not explore else None
        arch = None if budget is None else self._from_model(self.model(budget))
        if arch is not None:
            return arch, {"proposal": "model", "model_budget": budget}
        origin = {"proposal": "random"} if budget is None else {"proposal": "random", "reason": "no feasible candidate"}
        return self.problem.sample(), origin

    def _from_model(self, model: Model) -> Arch | None:
        """The best feasible candidate; None if many batches of candidates hold none, which leaves it to sampling."""
        space, feasible, rng = self.problem.space, self.problem.feasible, self.problem.rng
        for _ in range(CANDIDATE_BATCHES):
            x_MD = model.good.sample_near(self.candidates, self.bandwidth_factor, self._numpy_rng)
            for m in np.argsort(-model.ratio(x_MD), kind="stable"):
                arch = to_arch(space, self.dimensions, x_MD[m], rng)
                if feasible is None or feasible(arch):
                    return arch
        return None
