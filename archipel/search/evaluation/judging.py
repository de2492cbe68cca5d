"""Judging architectures: each trained alone, from new weights, by one recipe; cached, parallel, resumable.

Nothing of a search enters: a judge gets an architecture, which is plain data, and builds the network afresh. Results
are kept under the architecture's canonical form, the protocol and the seed, so that two policies that find the same
network pay for it once, and an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import numpy as np
from torch import nn

from archipel.core.decision import Arch
from archipel.core.errors import SpaceError, UsageError
from archipel.core.space import Space
from archipel.data.dataset import Dataset, Split
from archipel.nets.drop_path import DropPath as ScaledDropPath
from archipel.search.evaluation.notebook import Notebook, run_all
from archipel.search.evaluation.runs import short_hash
from archipel.search.training import Diverged, Recipe, evaluate, train
from archipel.spaces.operations import DropPath

# Searches use seeds below, evaluations from here on.
EVALUATION_SEEDS = 1_000_000


class Judge(Protocol):
    """What turns an architecture and a seed into the figure that counts; higher is better."""

    @property
    def space(self) -> Space: ...

    @property
    def protocol(self) -> Mapping[str, Any]:
        """How it judges, as JSON: results of different protocols are never compared."""
        ...

    def __call__(self, arch: Arch, seed: int) -> float: ...


@dataclass(frozen=True)
class StandAlone:
    """Trains a new network of an architecture, and judges it on data that the search has not seen.

    Args:
        space: builds the networks.
        data: training examples and those judged on; see :meth:`on`.
        recipe: of the training, the same for every architecture.
        described: what to record about the data.
        network: options of the space that belong to the protocol (width, number of cells …), for the record.
        drop_path: final probability of leaving out a path; rises linearly from 0 over the training.
    """

    space: Space
    data: tuple[Split, Split]
    task: str
    recipe: Recipe
    described: Mapping[str, Any]
    network: Mapping[str, Any] = field(default_factory=dict)
    drop_path: float = 0.0

    @classmethod
    def on(
        cls, dataset: Dataset, space: Space, recipe: Recipe, judged_on: str = "test", purpose: str = "", **more: Any
    ) -> StandAlone:
        """On a data set's test split, which is opened here (``purpose`` is recorded), or on its validation split.

        Raises:
            UsageError: another split.
            DataError: the data set has no test split.
        """
        if judged_on not in ("test", "val"):
            raise UsageError(f"Architectures are judged on 'test' or 'val', not {judged_on!r}.")
        purpose = purpose or f"stand-alone evaluation of architectures of {space.name}"
        judged = dataset.open_test(purpose) if judged_on == "test" else dataset.val
        described = {"data": dataset.name, "train": len(dataset.train), "judged on": judged_on, "judged": len(judged)}
        return cls(space, (dataset.train, judged), dataset.task, recipe, described, **more)

    @property
    def protocol(self) -> Mapping[str, Any]:
        return {
            **self.described,
            "recipe": self.recipe.as_dict(),
            "network": {**self.network, "parameters of an example": example_params(self.space)},
            "drop_path": self.drop_path,
        }

    def __call__(self, arch: Arch, seed: int) -> float:
        """Accuracy (R² for regression) of a new network.

        Raises:
            Diverged: the training did.
        """
        recipe = self.recipe.with_hyper(self.space.hyper(arch))
        train_on, judged = self.data
        steps = recipe.epochs * max(1, len(train_on) // recipe.batch_size)
        net = self.space.build(arch, seed)
        rise = drop_path_rise(net, self.drop_path, steps) if self.drop_path else None
        train(net, train_on, self.task, recipe, seed, each_step=rise)
        return evaluate(net, judged, self.task)["r2" if self.task == "regression" else "accuracy"]


def example_params(space: Space) -> int | None:
    """Parameters of one fixed architecture: tells wide and deep forms of a space apart; None where nothing is built."""
    try:
        return space.cost.params(space.sample(Random(0)))
    except SpaceError:
        return None


def drop_paths(net: nn.Module) -> list[DropPath | ScaledDropPath]:
    """The modules of a network that can leave out a path; a path that is the identity has none."""
    return [m for m in net.modules() if isinstance(m, DropPath | ScaledDropPath)]


def drop_path_rise(net: nn.Module, p_final: float, steps: int) -> Callable[[], None]:
    """A function to call after each step, that raises every path's probability linearly to ``p_final``."""
    paths, done = drop_paths(net), 0

    def rise() -> None:
        nonlocal done
        for m in paths:
            m.p = p_final * getattr(m, "layer_fraction", 1.0) * min(1.0, done / steps)
        done += 1

    rise()
    return rise


# --- many of them ----------------------------------------------------------------------------------------------------


def judge_once(judge: Judge, arch: Arch, seed: int) -> dict[str, Any]:
    """One judgement as JSON; a diverged training has no value but a failure."""
    started = time.monotonic()
    value, failure = math.nan, None
    try:
        value = float(judge(arch, seed))
        failure = None if math.isfinite(value) else f"the result is {value}"
    except Diverged as error:
        failure = f"training diverged: {error}"
    return {"value": value if failure is None else None, "failure": failure, "seconds": time.monotonic() - started}


def judge_all(
    judge: Judge, pairs: Iterable[tuple[Arch, int]], executor: Executor | None = None, notebook: Notebook | None = None
) -> list[dict[str, Any]]:
    """Judgements of (architecture, seed) pairs, in order; equal ones are made once.

    Raises:
        SpaceError: an architecture that is not of the judge's space.
    """
    head = [short_hash(judge.protocol), judge.space.name]
    jobs, order = {}, []
    for arch, seed in pairs:
        arch = judge.space.validate(arch)
        key = json.dumps(["judge", *head, judge.space.canonical(arch), seed])
        jobs.setdefault(key, (judge_once, (judge, arch, seed)))
        order.append(key)
    if getattr(judge, "instant", False):
        executor = None  # a lookup is not worth sending away
    results = dict(zip(jobs, run_all(jobs, executor, notebook or Notebook())))
    return [results[key] for key in order]


def judge_grid(
    judge: Judge,
    archs: Sequence[Arch],
    seeds: int | Sequence[int] = 2,
    executor: Executor | None = None,
    notebook: Notebook | None = None,
) -> np.ndarray:
    """Stand-alone results of architectures under several evaluation seeds, ``[K, S]``.

    Args:
        seeds: their number; or numbers from 0, to which ``EVALUATION_SEEDS`` is added.

    Raises:
        UsageError: a training that diverged; names it.
    """
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    pairs = [(a, EVALUATION_SEEDS + s) for a in archs for s in numbers]
    out = []
    for (arch, seed), result in zip(pairs, judge_all(judge, pairs, executor, notebook)):
        if result["failure"] is not None:
            raise UsageError(
                f"Architecture {arch} has no result under seed {seed}: {result['failure']}. Missing runs are never "
                f"averaged over: change the recipe, or leave this architecture out."
            )
        out.append(result["value"])
    return np.array(out, dtype=float).reshape(len(archs), len(numbers))
