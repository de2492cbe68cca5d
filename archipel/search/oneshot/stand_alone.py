"""Stand-alone truth: what architectures reach when each is trained alone, from new weights, under several seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset
from archipel.search.metrics import noise_ceiling
from archipel.search.training import Recipe, evaluate, main_metric, train
from archipel.spaces.module_space import ModuleSpace

# Stand-alone seeds start here, so that no network is trained under the seed of a supernet.
STAND_ALONE_SEED = 10_000


@dataclass
class Truth:
    """Stand-alone accuracies of architectures.

    Attributes:
        archs: N architectures.
        accuracy_SN: of each, under S training seeds.
    """

    archs: list[Arch]
    accuracy_SN: np.ndarray

    def __post_init__(self) -> None:
        self.accuracy_SN = np.atleast_2d(np.asarray(self.accuracy_SN, dtype=float))
        if self.accuracy_SN.shape[1] != len(self.archs):
            raise UsageError(
                f"The truth has {len(self.archs)} architectures but {self.accuracy_SN.shape[1]} accuracies a seed."
            )
        if not np.isfinite(self.accuracy_SN).all():
            raise UsageError("The truth has missing accuracies (NaN). Train these architectures again, or drop them.")

    @property
    def mean(self) -> np.ndarray:
        return self.accuracy_SN.mean(0)

    @property
    def ceiling(self) -> float | None:
        """Mean tau between training seeds; None with a single seed."""
        return noise_ceiling(list(self.accuracy_SN)) if len(self.accuracy_SN) > 1 else None

    def take(self, index: Sequence[int]) -> Truth:
        return Truth([self.archs[i] for i in index], self.accuracy_SN[:, list(index)])


def train_alone(space: ModuleSpace, arch: Arch, dataset: Dataset, recipe: Recipe, seed: int) -> float:
    """Validation accuracy (or R²) of an architecture trained from new weights."""
    net = space.build(arch, seed)
    train(net, dataset.train, dataset.task, recipe, seed)
    return evaluate(net, dataset.val, dataset.task)[main_metric(dataset)]


def stand_alone_truth(
    space: ModuleSpace,
    archs: Sequence[Arch],
    dataset: Dataset,
    recipe: Recipe,
    seeds: int = 2,
    checkpoints: Checkpoints | None = None,
    map: Callable[..., Iterable[float]] = map,
) -> Truth:
    """Train every architecture alone under several seeds; what is finished is kept in ``checkpoints``.

    Args:
        space: the host's default, in which no weights are shared.
        map: such as an executor's.
    """
    checkpoints = checkpoints or Checkpoints()
    rows = []
    for s in range(seeds):
        name = f"truth seed {s}"
        done: dict[str, float] = dict((checkpoints.load(name) or {}).get("accuracy", {}))
        missing = [a for a in archs if space.canonical(a) not in done]
        n = len(missing)
        columns = ([space] * n, missing, [dataset] * n, [recipe] * n, [STAND_ALONE_SEED + s] * n)
        for arch, accuracy in zip(missing, map(train_alone, *columns)):
            done[space.canonical(arch)] = accuracy
            checkpoints.save(name, {"accuracy": dict(done)})
        rows.append([done[space.canonical(a)] for a in archs])
    return Truth(list(archs), np.array(rows))
