"""What claims share that are checked on the micro network of NAS-Bench-201 cells: data, searching, retraining.

Data are scikit-learn's digits divided by 16 plus 0.35 N(0, 1): 400 training, 400 validation and 997 test images, split
once, so that what one seed tests on no other seed has learnt from. A derived cell is trained from scratch in a network
of C = 8 channels, by the same recipe whatever found it, and tested once.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from random import Random

import torch

from archipel.claims.harness import Table
from archipel.core.decision import Arch
from archipel.core.space import Space
from archipel.data.dataset import Dataset
from archipel.data.load import load
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.nb201_codec import EDGE_NAMES, Genome, NB201Codes, arch_of, genome_of

RECIPE = Recipe(epochs=12, batch_size=40, optimizer="sgd", lr=0.1, weight_decay=3e-4)
RANDOM_CELLS = 8
ALL_CONV = arch_of(("conv3x3",) * len(EDGE_NAMES))


@lru_cache(maxsize=1)
def micro_data() -> Dataset:
    return load("micro-nb201")


def micro_space(C: int = 8) -> MicroNB201:
    return MicroNB201((1, 8, 8), 10, C=C)


def searched(
    strategy: DifferentiableSearch, space: Space, dataset: Dataset, seed: int
) -> tuple[DifferentiableSearch, Arch]:
    """A finished search that has not seen the test split, and its answer."""
    strategy.setup(Problem(space, rng=Random(seed)))
    strategy.prepare(Context(dataset.without_test(), RECIPE, seed=seed))
    trial = strategy.ask()
    assert trial is not None  # a differentiable search proposes once
    return strategy, trial.arch


def retrained(arch: Arch, seed: int) -> tuple[float, float]:
    """Validation and test accuracy of a cell after training from scratch."""
    return _retrained(genome_of(arch), seed)


@cache
def _retrained(genome: Genome, seed: int) -> tuple[float, float]:
    data = micro_data()
    net = micro_space().build(arch_of(genome), seed)
    train(net, data.train, data.task, RECIPE, seed)
    val = evaluate(net, data.val, data.task)["accuracy"]
    return val, evaluate(net, data.open_test("claim"), data.task)["accuracy"]


def random_retrained(seed: int) -> tuple[float, float, float]:
    """Mean validation and test accuracy of random cells, and the standard deviation of the latter over cells."""
    rng = Random(seed)
    pairs = [retrained(NB201Codes().sample(rng), seed) for _ in range(RANDOM_CELLS)]
    val, test = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    return float(val.mean()), float(test.mean()), float(test.std())


def clearly_above(t: Table, arm: str, other: str, figure: str) -> tuple[bool, str]:
    """Whether an arm's mean over seeds is above another's by more than two standard errors of the difference."""
    gap = t.mean(arm, figure) - t.mean(other, figure)
    n, m = len(t.values(arm, figure)), len(t.values(other, figure))
    error = math.sqrt(t.std(arm, figure) ** 2 / n + t.std(other, figure) ** 2 / m)
    return gap > 2 * error, f"{spread(t, arm, figure)} against {spread(t, other, figure)} ({gap:+.4f}, SE {error:.4f})"


def spread(t: Table, arm: str, figure: str) -> str:
    """An arm's figure as mean and standard deviation over seeds."""
    return f"{arm} {t.mean(arm, figure):.4f} ± {t.std(arm, figure):.4f}"
