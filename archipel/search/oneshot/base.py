"""What one-shot strategies share: train a supernet, search with its weights, hand on the best to be trained alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.supernet import Supernet
from archipel.search.oneshot.evolution import Found
from archipel.search.oneshot.factors import Factors
from archipel.search.oneshot.samplers import Sampler, make_sampler
from archipel.search.oneshot.shared_evaluation import SharedEvaluator, calibration_inputs, warn_of_overlap
from archipel.search.oneshot.supernet_training import TrainingLog, configure_batch_norm, train_supernet
from archipel.search.strategy import Context, Strategy, Trial
from archipel.spaces.module_space import ModuleSpace

# Of a time limit: how much the supernet may train, and when the search with its weights ends. The rest is for
# training the finalists alone.
TRAINING_SHARE, SEARCH_SHARE = 0.5, 0.7


class OneShot(Strategy):
    """Base of strategies that train a supernet once and search it many times; subclasses say how in :meth:`explore`.

    Args:
        factors: of the training.
        finalists: how many of the best are proposed for training alone.
        calibration: training examples for recalibrating batch norms.
        constrained: whether training, too, draws only paths within the limits.

    Attributes:
        supernet, log, found: trained network, what its training did, and what the search saw; after ``prepare``.
    """

    def __init__(self, factors: Factors, finalists: int, calibration: int, constrained: bool = False) -> None:
        for name, value in (("finalists", finalists), ("calibration", calibration)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} must be a positive integer, not {value!r}.")
        self.factors, self.finalists, self.calibration = factors, finalists, calibration
        self.constrained = constrained
        self.evaluator: SharedEvaluator | None = None
        self.queue: list[tuple[Arch, float]] = []
        self._asked = 0

    # --- before the first ask --------------------------------------------------------------------------------------

    def prepare(self, context: Context) -> None:
        """Train the supernet and search it; both go on where a checkpoint left off.

        Raises:
            SpaceError: the space has no supernet.
            InfeasibleError: no architecture is within the limits.
        """
        data = context.dataset
        warn_of_overlap(data.train, data.val)
        factors = self.factors if context.epochs is None else self.factors.vary("epochs", context.epochs)
        self.supernet = self._make_supernet(factors, context.seed)
        self.log: TrainingLog = train_supernet(
            self.supernet,
            data.train,
            data.task,
            factors,
            context.seed,
            sampler=self._sampler(self.supernet, factors),
            augmentation=context.recipe,
            checkpoints=context.checkpoints,
            progress=lambda fraction: context.progress("training the supernet", fraction),
            deadline=_share(context.deadline, TRAINING_SHARE),
        )
        self.evaluator = SharedEvaluator(
            self.supernet,
            data.val,
            data.task,
            factors.batch_norm,
            calibration_inputs(data.train, self.calibration, context.seed),
        )
        saved = context.checkpoints.load("one-shot search")
        self.found = Found() if saved is None else Found.from_dict(saved["found"], self.problem.space)
        for arch, score in self.found.scored.values():
            self.evaluator.cache[self.problem.space.canonical(arch)] = score
        if saved is None or not saved["done"]:
            self.explore(self.evaluator, context, _share(context.deadline, SEARCH_SHARE))
            context.checkpoints.save("one-shot search", {"found": self.found.as_dict(), "done": True})
        self.queue = self.found.top(self.finalists)
        self._asked = 0

    def _make_supernet(self, factors: Factors, seed: int) -> Supernet:
        """A supernet of the space; factors that only a host can change must be at their defaults."""
        changed = factors.sharing.changed()
        if changed:
            raise UsageError(
                f"{', '.join(changed)} change how a space's modules share weights; they belong to the space (see "
                f"archipel.spaces.sharing), not to a search over {self.problem.space.name}."
            )
        space = self.problem.space
        supernet = space.supernet(seed) if isinstance(space, ModuleSpace) else space.supernet()
        configure_batch_norm(supernet, factors.batch_norm, factors.affine)
        return supernet

    def _sampler(self, supernet: Supernet, factors: Factors) -> Sampler:
        feasible = self.problem.feasible if self.constrained else None
        return make_sampler(factors.sampling, supernet, feasible, self.problem.describe_limits())

    def explore(self, evaluator: SharedEvaluator, context: Context, deadline: float | None) -> None:
        """Fill :attr:`found`, going on from what is in it; may save it under ``"one-shot search"``."""
        raise NotImplementedError

    # --- proposals -------------------------------------------------------------------------------------------------

    def ask(self) -> Trial | None:
        """The best architecture by inherited weights that was not proposed yet.

        Raises:
            UsageError: ``prepare`` was not called.
        """
        if self.evaluator is None:
            raise UsageError(f"{type(self).__name__} trains a supernet first: call prepare(context) before ask().")
        if self._asked >= len(self.queue):
            return None
        arch, score = self.queue[self._asked]
        self._asked += 1
        return self.new_trial(arch, info={"shared_score": score, "shared_rank": self._asked})

    def tell(self, trial: Trial) -> None:
        pass

    @property
    def finished(self) -> bool:
        return self.evaluator is not None and self._asked >= len(self.queue)

    def shared_scores(self, archs: Sequence[Arch]) -> list[float] | None:
        return None if self.evaluator is None else self.evaluator.scores(archs)


def _share(deadline: float | None, share: float) -> float | None:
    """The moment when a share of the time until a deadline, counted from now, has passed."""
    if deadline is None:
        return None
    now = time.monotonic()
    return now + share * max(0.0, deadline - now)
