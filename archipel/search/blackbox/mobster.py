"""MOBSTER: asynchronous successive halving whose new architectures are proposed by one Gaussian process over (x, r).

Klein, Tiao, Lienart, Archambeau, Seeger. Model-based Asynchronous Hyperparameter and Neural Architecture Search. 2020.
https://arxiv.org/abs/2003.10865

    data          losses at rungs and the latest report of each configuration; failures are left out
    pending       (x, next rung) of each running trial, integrated over by joint draws from the posterior
    r_acq         highest rung with at least D results, D the encoded dimension; the lowest if there is none
    incumbent     least posterior mean at r_acq over all configurations in the data or pending, for each draw
    acquisition   EI at (x, r_acq), averaged over the draws; maximised over random candidates, then by local search

Fills `propose` and `fidelity` (rungs: :mod:`archipel.search.schedulers`). The first configurations are random.

Departures: local search takes the space's mutations with shrinking steps in real-valued decisions, so that it serves
any space, where the paper's code climbs by gradients. Beyond ``max_observations`` the highest resources are kept and
the lowest kept level is thinned at random. Hyperparameters are fitted anew when the data has grown by ``refit_every``
results or a tenth, whichever is more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from archipel.core.decision import Arch, Real
from archipel.core.errors import UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.search.blackbox.asha import AsynchronousHalving, Configuration
from archipel.search.strategy import Problem
from archipel.search.surrogates.acquisition import log_expected_improvement, log_mean
from archipel.search.surrogates.gp import Posterior, believe, fantasise, fit, one_thread, standardise
from archipel.search.surrogates.kernels import ExponentialDecay, Kernel, Matern52

KERNELS = ("matern", "decay")
PENDING = ("fantasies", "believer", "ignore")

# Local search: climbers, neighbours of each in a round, and the factor on real-valued steps in each round.
CLIMBERS, NEIGHBOURS, STEPS = 4, 8, (1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.1, 0.05)
MUTATIONS = 20  # that are tried for a feasible neighbour

# With fewer results than this a fit also starts afresh; with more, the last optimum is a good start and enough.
FRESH_STARTS, FIT_ITERATIONS = 50, 30


def acquisition_resource(configurations: Sequence[Configuration], levels: Sequence[int], dimension: int) -> int:
    """r_acq: the highest rung with at least ``dimension`` results, the lowest rung if there is none."""
    for level in reversed(levels):
        if sum(math.isfinite(c.losses.get(level, math.inf)) for c in configurations) >= dimension:
            return level
    return levels[0]


def shrink(arch: Arch, mutant: Arch, reals: Sequence[Real], factor: float) -> Arch:
    """Pull the real-valued decisions that a mutation changed back towards where they were."""
    out = dict(mutant)
    for d in reals:
        if d.name in arch and d.name in out and arch[d.name] != out[d.name]:
            was, is_ = float(d.encode(arch[d.name])[0]), float(d.encode(out[d.name])[0])
            out[d.name] = d.decode(was + factor * (is_ - was))
    return out


@register(
    "mobster",
    card=78,
    family="search.blackbox",
    slots=["propose", "fidelity"],
    paper=Paper(
        "Model-based Asynchronous Hyperparameter and Neural Architecture Search",
        2020,
        "https://arxiv.org/abs/2003.10865",
    ),
)
class MOBSTER(AsynchronousHalving):
    """Asynchronous successive halving with proposals from a Gaussian process that knows what is pending.

    Args:
        kernel: ``"matern"`` on (x, log r), or ``"decay"``, exponentially decaying learning curves.
        pending: ``"fantasies"`` (joint draws), ``"believer"`` (posterior mean) or ``"ignore"``.
        fantasies: draws.
        initial: configurations that are random before the model is used.
        candidates: random ones among which the local search starts.
        refit_every: results between fits of the hyperparameters, at least.
        max_observations: that the model is conditioned on.
        latest: use each configuration's latest report beside its rungs (only executors that report have any).
        variant, eta, r_min, rule, min_results, brackets: see :class:`AsynchronousHalving`.

    Raises:
        UsageError: an unknown option, or a number below 1.

    >>> from archipel.search.simulator import simulate
    >>> from archipel.core.space import Space
    >>> from archipel.search.strategy import Objective
    >>> problem = Problem(Space([Real("x", 0.0, 1.0)]), [Objective("loss", "min")], max_resource=9)
    >>> run = simulate(MOBSTER(), problem, lambda a, r: {"loss": (a["x"] - 0.3) ** 2 + 1 / r}, workers=4, horizon=30)
    >>> bool(abs(min(run.trials, key=lambda t: t.metrics.get("loss", 9.0)).arch["x"] - 0.3) < 0.05)
    True
    """

    def __init__(
        self,
        kernel: str = "matern",
        pending: str = "fantasies",
        fantasies: int = 20,
        initial: int = 5,
        candidates: int = 200,
        refit_every: int = 5,
        max_observations: int = 500,
        latest: bool = True,
        variant: str = "promotion",
        eta: float = 3,
        r_min: int | None = None,
        rule: str = "quantile",
        min_results: int | None = None,
        brackets: int = 1,
    ) -> None:
        super().__init__(variant, eta, r_min, rule, min_results, brackets)
        if kernel not in KERNELS:
            raise UsageError(f"No kernel {kernel!r}. {suggest(kernel, KERNELS)}")
        if pending not in PENDING:
            raise UsageError(f"No treatment {pending!r} of pending trials. {suggest(pending, PENDING)}")
        counts = {"fantasies": fantasies, "initial": initial, "candidates": candidates, "refit_every": refit_every}
        for name, value in (counts | {"max_observations": max_observations}).items():
            if value < 1:
                raise UsageError(f"{name}={value} must be at least 1.")
        self.kernel_name, self.pending, self.fantasies = kernel, pending, fantasies
        self.initial, self.candidates = initial, candidates
        self.refit_every, self.max_observations, self.latest = refit_every, max_observations, latest

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self.dimension = problem.space.encoding_size
        decay = self.kernel_name == "decay"
        self.kernel: Kernel = (
            ExponentialDecay(self.dimension) if decay else Matern52(self.dimension, problem.max_resource)
        )
        self.theta: np.ndarray | None = None
        self._fitted_on = 0
        self._codes: dict[int, np.ndarray] = {}
        self._reals = [d for d in problem.space.decisions if isinstance(d, Real)]

    # --- what is known ---------------------------------------------------------------------------------------------

    def points(self, reached: Sequence[tuple[Configuration, int]]) -> np.ndarray:
        """Inputs of the model, ``[x…, r]`` each: ``[N, D + 1]``."""
        for c, _ in reached:
            if c.id not in self._codes:
                self._codes[c.id] = self.problem.space.encode(c.arch)
        X = np.array([self._codes[c.id] for c, _ in reached]).reshape(-1, self.dimension)
        return np.column_stack([X, np.array([r for _, r in reached], dtype=float)])

    def observations(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs ``[N, D + 1]`` and losses ``[N]`` of all finite results.

        If there are more than allowed: those after most epochs, and a random part of the level that does not fit.
        """
        found: list[tuple[Configuration, int, float]] = []
        for c in self.configurations.values():
            results = {**c.losses, **dict([c.last] if self.latest and c.last else [])}
            found += [(c, r, loss) for r, loss in results.items() if math.isfinite(loss)]
        if len(found) > self.max_observations:
            self.problem.rng.shuffle(found)
            found = sorted(found, key=lambda f: -f[1])[: self.max_observations]
        return self.points([(c, r) for c, r, _ in found]), np.array([loss for _, _, loss in found])

    def pending_points(self) -> np.ndarray:
        """``[P, D + 1]``: the running trials at the next rung that each will reach."""
        return self.points([(c, c.target) for c in self._running.values() if c.target is not None])

    # --- what to try next ------------------------------------------------------------------------------------------

    def propose(self) -> Arch:
        if len(self.configurations) < self.initial:
            return self.unseen()
        Z, losses = self.observations()
        candidates = self.random_candidates() if len(losses) >= 2 else []
        if not candidates:
            return self.unseen()
        with one_thread():
            return self.maximise(self.acquisition(Z, losses), candidates)

    def random_candidates(self) -> list[Arch]:
        """Distinct feasible architectures that were not started yet."""
        drawn = (self.problem.sample() for _ in range(self.candidates))
        distinct = {self.problem.space.canonical(arch): arch for arch in drawn}
        return [arch for key, arch in distinct.items() if key not in self._seen]

    def posterior(self, Z: np.ndarray, losses: np.ndarray) -> Posterior:
        """The model of the standardised losses, its hyperparameters fitted anew if that is due."""
        y, _, _ = standardise(losses)
        recorded = sum(len(rung) for ladder in self.ladders for rung in ladder.values())
        if self.theta is None or recorded - self._fitted_on >= max(self.refit_every, self._fitted_on // 10):
            starts = [] if self.theta is None else [self.theta]
            if len(y) < FRESH_STARTS:
                starts.append(self.kernel.start())
            self.theta, self._fitted_on = fit(self.kernel, Z, y, starts, FIT_ITERATIONS), recorded
        return Posterior(self.kernel, self.theta, Z, y)

    def acquisition(self, Z: np.ndarray, losses: np.ndarray) -> Callable[[Sequence[Arch]], np.ndarray]:
        """Logarithm of the expected improvement of architectures at r_acq, averaged over what is pending."""
        posterior = self.posterior(Z, losses)
        pending = self.pending_points()
        if self.pending == "fantasies":
            rng = np.random.default_rng(self.problem.rng.getrandbits(64))
            posterior = fantasise(posterior, pending, self.fantasies, rng)
        elif self.pending == "believer":
            posterior = believe(posterior, pending)
        resource = acquisition_resource(list(self.configurations.values()), self.levels, self.dimension)
        known = np.unique(posterior.Z[:, :-1], axis=0)
        best_S = posterior.mean(np.column_stack([known, np.full(len(known), resource)])).min(0)

        def log_ei(archs: Sequence[Arch]) -> np.ndarray:
            X = np.array([self.problem.space.encode(arch) for arch in archs])
            queries = np.column_stack([X, np.full(len(X), resource)])
            mean_QS, variance_Q = posterior.predict(queries)
            return log_mean(log_expected_improvement(mean_QS, np.sqrt(variance_Q)[:, None], best_S))

        return log_ei

    def maximise(self, acquisition: Callable[[Sequence[Arch]], np.ndarray], candidates: list[Arch]) -> Arch:
        """The best of the candidates and of what local search reaches from the best few of them."""
        values = acquisition(candidates)
        order = np.argsort(-values, kind="stable")[:CLIMBERS]
        climbers = [(values[i], candidates[i]) for i in order]
        for factor in STEPS:
            family = [[self.neighbour(arch, factor) for _ in range(NEIGHBOURS)] for _, arch in climbers]
            values = acquisition([child for children in family for child in children]).reshape(-1, NEIGHBOURS)
            for i, children in enumerate(family):
                for value, child in zip(values[i], children):
                    if value > climbers[i][0] and not self.seen(child):
                        climbers[i] = (value, child)
        return max(climbers, key=lambda climber: climber[0])[1]

    def neighbour(self, arch: Arch, factor: float) -> Arch:
        """A feasible mutation with real-valued steps shortened by ``factor``; ``arch`` itself if none is found."""
        feasible = self.problem.feasible or (lambda _: True)
        for _ in range(MUTATIONS):
            mutant = shrink(arch, self.problem.space.mutate(arch, self.problem.rng), self._reals, factor)
            if feasible(mutant):
                return mutant
        return arch
