"""L²NAS as an ask/tell strategy, for evaluations by training or from a table.

Mills et al. L²NAS: Learning to Optimize Neural Architectures via Continuous-Action Reinforcement Learning. 2021.
https://arxiv.org/abs/2109.12425. See :mod:`archipel.search.differentiable.l2nas` for the method.
"""

from __future__ import annotations

import math

from archipel.core.errors import InfeasibleError
from archipel.search.differentiable.actor_critic import ActorCritic, Proposal
from archipel.search.differentiable.actor_critic_settings import Settings, fitting
from archipel.search.strategy import Problem, Strategy, Trial

TRIES, DOUBLINGS = 50, 8  # of proposals within limits, and of the noise
QUERIES = 500  # where nobody says how many there will be


class L2NASQueries(Strategy):
    """The same learner as an ask/tell strategy, for evaluations by training or from a table.

    Each trial's ``info`` says ``by`` whom it was proposed (``"actor"`` or ``"random"``) and ε at that moment.

    Args:
        settings: of the learner; a k that was not given is at most a quarter of the budget.
        k: architectures that the state summarises.
        queries: evaluations for which ε is planned; by default what the budget allows, or 500.
        explore: evaluations over which ε falls; half of them by default.
        warm: a learner from another task, whose networks are taken over.

    Attributes:
        learner: after ``setup``. ``failed`` trials are counted as queries and teach nothing.

    Raises:
        UsageError: at ``setup``, a k above the number of queries.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        k: int | None = None,
        queries: int | None = None,
        explore: int | None = None,
        warm: ActorCritic | None = None,
    ) -> None:
        self.settings, self.k, self.queries = settings or Settings(), k, queries
        self.explore, self.warm = explore, warm

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        queries = self.queries or problem.trials or QUERIES
        explore = queries // 2 if self.explore is None else self.explore
        settings = fitting(self.settings, self.k, queries)
        if self.warm is None:
            self.learner = ActorCritic(problem.space, settings, explore, problem.rng.getrandbits(31))
        else:
            self.learner = self.warm.transfer(explore)
            self.learner.settings = settings
            self.learner.generator.manual_seed(problem.rng.getrandbits(31))
        self._asked: dict[int, Proposal] = {}
        self.failed = 0

    def ask(self) -> Trial:
        proposal = self._within_limits()
        trial = self.new_trial(proposal.arch, info={"by": proposal.by, "epsilon": self.learner.epsilon})
        self._asked[trial.id] = proposal
        return trial

    def _within_limits(self) -> Proposal:
        feasible = self.problem.feasible
        for doubling in range(DOUBLINGS):
            for _ in range(TRIES):
                proposal = self.learner.propose(2.0**doubling)
                if feasible is None or feasible(proposal.arch):
                    return proposal
        raise InfeasibleError(
            f"No architecture within the limits in {TRIES * DOUBLINGS} proposals of the actor for "
            f"{self.problem.space.name}: {self.problem.describe_limits()}."
        )

    def tell(self, trial: Trial) -> None:
        proposal = self._asked.pop(trial.id)
        score = self.problem.score(trial)
        if not trial.ok or score == -math.inf:
            self.failed += 1
            self.learner.queries += 1
            return
        self.learner.observe(proposal, score)
