"""Hyperband: random configurations, most of them stopped early.

Li, Jamieson, DeSalvo, Rostamizadeh, Talwalkar. Hyperband: A Novel Bandit-Based Approach to Hyperparameter
Optimization. 2016. https://arxiv.org/abs/1603.06560

Fills the `fidelity` slot; `propose` is uniform sampling from the feasible part of the space. The bracket table and the
ladder, with their departures from the paper, are in :mod:`archipel.search.hyperband`. A promoted configuration
continues from its smaller evaluation unless ``from_scratch`` is set.
"""

from __future__ import annotations

from typing import Any

from archipel.core.decision import Arch
from archipel.core.registry import Paper, register
from archipel.search.hyperband import BracketStrategy


@register(
    "hyperband",
    family="search.blackbox",
    slots=["fidelity"],
    paper=Paper(
        "Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization",
        2016,
        "https://arxiv.org/abs/1603.06560",
    ),
)
class Hyperband(BracketStrategy):
    """Successive halving of random configurations, over brackets that cut ever later.

    Takes the settings of :class:`archipel.search.hyperband.BracketStrategy`; the table defaults to the paper's form.

    >>> from archipel.core.decision import Decision
    >>> from archipel.core.space import Space
    >>> from archipel.search.strategy import Problem
    >>> search = Hyperband()
    >>> search.setup(Problem(Space([Decision("width", [8, 16])]), max_resource=9))
    >>> trial = search.ask()
    >>> trial.resource, trial.resume, trial.info["s"]
    (1, None, 2)
    """

    def propose(self) -> tuple[Arch, dict[str, Any]]:
        return self.problem.sample(), {}
