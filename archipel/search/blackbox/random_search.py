"""Random search: the strategy against which every other one is measured.

Li, Talwalkar. Random Search and Reproducibility for Neural Architecture Search. 2019. https://arxiv.org/abs/1902.07638

Fills the `propose` slot: every proposal is drawn uniformly from the feasible part of the space, ignoring all outcomes.
"""

from __future__ import annotations

from archipel.core.registry import Paper, register
from archipel.search.strategy import Strategy, Trial


@register(
    "random",
    family="search.blackbox",
    slots=["propose"],
    paper=Paper(
        "Random Search and Reproducibility for Neural Architecture Search", 2019, "https://arxiv.org/abs/1902.07638"
    ),
)
class RandomSearch(Strategy):
    """Uniform feasible architectures, whatever was found before.

    >>> from archipel.core.space import Space
    >>> from archipel.core.decision import Decision
    >>> from archipel.search.strategy import Problem
    >>> search = RandomSearch()
    >>> search.setup(Problem(Space([Decision("op", ["conv", "skip"])])))
    >>> search.ask().arch["op"] in ("conv", "skip")
    True
    """

    def ask(self) -> Trial:
        return self.new_trial(self.problem.sample())

    def tell(self, trial: Trial) -> None:
        pass
