"""SPOS: single path one-shot search with uniform sampling.

Guo, Zhang, Mu, Heng, Liu, Wei, Sun. Single Path One-Shot Neural Architecture Search with Uniform Sampling. 2019.
https://arxiv.org/abs/1904.00420

    W* = argmin_W  E_{a ~ uniform}  L_train(N(a, W_a))              one path a step, no gates, no path dropout
    a* = argmax_{a legal}  ACC_val(N(a, W*_a))                      evolution, batch norms recalibrated for each a

Fills the slots sampler, evaluator, propose and constraint of one-shot search. The search is over whatever decisions
the space has: blocks (:mod:`archipel.spaces.shufflenet`), channels (any ``Width``; only the drawn slice of a weight is
updated) and bits (:mod:`archipel.spaces.quantised`). Limits are hard: they reject, they never penalise. What comes out
is trained alone, from new weights.

Differs from the reference code: all gradients of a drawn path count (it drops those that sum to zero); a constrained
sampler is uniform among legal paths (it is uniform over bins of cost, and gives up on limits after 500 draws); the last
generation is not bred in vain. Label smoothing 0.1, weight decay 4e-5, linear decay as there; learning rate and epochs
are for small data (there: 0.5 for batches of 1024, 150,000 steps).
"""

from __future__ import annotations

from archipel.core.registry import Paper, register
from archipel.search.oneshot.base import OneShot
from archipel.search.oneshot.evolution import Evolution, Found, evolve
from archipel.search.oneshot.factors import Factors
from archipel.search.oneshot.shared_evaluation import SharedEvaluator
from archipel.search.strategy import Context


@register(
    "spos",
    card=41,
    family="search.oneshot",
    slots=["sampler", "evaluator", "propose", "constraint"],
    paper=Paper(
        "Single Path One-Shot Neural Architecture Search with Uniform Sampling",
        2019,
        "https://arxiv.org/abs/1904.00420",
    ),
)
class SPOS(OneShot):
    """Train one uniform path a step, then evolve on inherited weights under hard limits.

    Args:
        epochs, lr, weight_decay, batch_size, momentum, label_smoothing, clip: of the supernet's training.
        sampling: ``"uniform"``, ``"fairnas"`` or ``"random-nas"``; ``"all-paths"`` is the untreated arm.
        constrained: draw training paths within the limits, too.
        affine: whether the supernet's batch norms have scale and shift (the paper's have not).
        batch_norm: ``"recalibrated"``; ``"batch"`` or ``"tracked"`` for comparison.
        calibration: training examples for each recalibration (the paper uses about 20,000).
        population, generations, top, crossover, mutation, probability: see :class:`Evolution`.
        finalists: how many of the best are proposed for training alone.

    Raises:
        UsageError: a value that makes no sense.

    >>> SPOS(epochs=10).factors.batch_norm
    'recalibrated'
    """

    def __init__(
        self,
        epochs: int = 100,
        lr: float = 0.1,
        weight_decay: float = 4e-5,
        batch_size: int = 64,
        momentum: float = 0.9,
        label_smoothing: float = 0.1,
        clip: float = 5.0,
        sampling: str = "uniform",
        constrained: bool = False,
        affine: bool = False,
        batch_norm: str = "recalibrated",
        calibration: int = 2048,
        population: int = 50,
        generations: int = 20,
        top: int = 10,
        crossover: int = 25,
        mutation: int = 25,
        probability: float = 0.1,
        finalists: int = 10,
    ) -> None:
        factors = Factors(
            batch_norm=batch_norm,
            affine=affine,
            lr=lr,
            epochs=epochs,
            weight_decay=weight_decay,
            batch_size=batch_size,
            sampling=sampling,
            momentum=momentum,
            label_smoothing=label_smoothing,
            clip=clip,
        )
        super().__init__(factors, finalists, calibration, constrained)
        self.evolution = Evolution(population, generations, top, crossover, mutation, probability)

    def explore(self, evaluator: SharedEvaluator, context: Context, deadline: float | None) -> None:
        def after(found: Found) -> None:
            context.checkpoints.save("one-shot search", {"found": found.as_dict(), "done": False})
            context.progress("evolving on shared weights", len(found.best) / self.evolution.generations)

        self.found = evolve(
            self.problem.space,
            evaluator,
            self.evolution,
            context.seed,
            self.problem.feasible,
            self.problem.describe_limits,
            self.found,
            after,
            deadline,
        )
