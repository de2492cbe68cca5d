"""Supernet training heuristics: one factor at a time, and what it does to the ranking of architectures.

Yu, Ranftl, Salzmann. How to Train Your Super-Net: An Analysis of Training Heuristics in Weight-Sharing NAS. 2020.
https://arxiv.org/abs/2003.04276

The search is held fixed, random architectures scored by inherited weights, and fourteen factors of the supernet
(:class:`~archipel.search.oneshot.factors.Factors`) are varied, each from the profile ``baseline``, under
several seeds. For every setting, against stand-alone accuracies of the same architectures:

    supernet accuracy     mean over the architectures
    tau, sparse tau       rank correlations; the sparse one after rounding the truth
    picked                stand-alone accuracy of the supernet's first (and mean of its first five)
    p > random            (r / r_max)^n, r the rank of the picked one from the worst

Fills the slots sampler, sharing and evaluator: the registered strategy is a well-trained supernet with random search.
A setting may only be chosen by architectures kept apart for tuning; what is reported comes from the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset
from archipel.search.metrics import kendall_tau, p_surpass_random, rank_from_worst, sparse_kendall_tau, spearman
from archipel.search.oneshot.base import OneShot
from archipel.search.oneshot.evolution import random_search
from archipel.search.oneshot.factor_report import Row, Study, shown
from archipel.search.oneshot.factors import BASELINE, Factors
from archipel.search.oneshot.shared_evaluation import SharedEvaluator, calibration_inputs
from archipel.search.oneshot.stand_alone import Truth
from archipel.search.oneshot.supernet_training import configure_batch_norm, train_supernet
from archipel.search.strategy import Context
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.sharing import Sharing

Host = Callable[[Sharing], ModuleSpace]


@register(
    "supernet-heuristics",
    card=23,
    family="search.oneshot",
    slots=["sampler", "sharing", "evaluator"],
    paper=Paper(
        "How to Train Your Super-Net: An Analysis of Training Heuristics in Weight-Sharing NAS",
        2020,
        "https://arxiv.org/abs/2003.04276",
    ),
)
class SupernetRandomSearch(OneShot):
    """A supernet trained by the recommended profile, and random search with its weights.

    :func:`factor_study` varies the factors and measures what they do.

    Args:
        samples: random architectures that are scored (the paper's 200).
        epochs, lr, weight_decay, batch_size: of the supernet's training.
        sampling, batch_norm, affine, data: further factors of its training; the rest belong to the space.
        calibration: training examples, for ``batch_norm="recalibrated"``.
        finalists: how many of the best are proposed for training alone.

    >>> SupernetRandomSearch(lr=0.03).factors.changed()
    ['lr']
    """

    def __init__(
        self,
        samples: int = 200,
        epochs: int = 100,
        lr: float = 0.1,
        weight_decay: float = 4e-5,
        batch_size: int = 64,
        sampling: str = "uniform",
        batch_norm: str = "batch",
        affine: bool = False,
        data: float = 1.0,
        calibration: int = 2048,
        finalists: int = 10,
    ) -> None:
        if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
            raise UsageError(f"samples must be a positive integer, not {samples!r}.")
        factors = Factors(
            batch_norm=batch_norm,
            affine=affine,
            lr=lr,
            epochs=epochs,
            weight_decay=weight_decay,
            batch_size=batch_size,
            sampling=sampling,
            data=data,
        )
        super().__init__(factors, finalists, calibration)
        self.samples = samples

    def explore(self, evaluator: SharedEvaluator, context: Context, deadline: float | None) -> None:
        context.progress("scoring random architectures", 0.0)
        self.found = random_search(
            self.problem.space,
            evaluator,
            self.samples,
            context.seed,
            self.problem.feasible,
            self.problem.describe_limits,
            deadline,
        )


# --- the study -----------------------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """What all supernets of a study have in common."""

    host: Host
    dataset: Dataset
    report: Truth
    tune: Truth | None
    tolerance: float
    draws: int
    calibration: int
    checkpoints: Checkpoints
    population: Sequence[float] | None
    settings: list[tuple[str, Any, Factors]] = field(default_factory=list)


def factor_study(
    host: Host | ModuleSpace,
    dataset: Dataset,
    truth: Truth,
    vary: Mapping[str, Sequence[Any]],
    baseline: Factors = BASELINE,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    tuning: float = 0.0,
    tolerance: float = 1e-3,
    draws: int = 10,
    population: Sequence[float] | None = None,
    calibration: int = 2048,
    checkpoints: Checkpoints | None = None,
    progress: Callable[[str, float], None] = lambda what, fraction: None,
) -> Study:
    """Train supernets, each with one factor off the baseline, and measure how they rank.

    Args:
        host: sharing -> space; a plain space does where no sharing factor is varied.
        dataset: train and validation splits.
        truth: of the architectures to rank, on the same validation split.
        vary: factor -> values; values equal to the baseline's are covered by its rows.
        seeds: of the supernets; at least two.
        tuning: fraction of the architectures kept for :meth:`Study.best_setting`.
        tolerance: of the sparse tau, in the unit of the truth.
        draws: n of p > random.
        population: true accuracies of the whole space, in which the picked architecture's rank counts; by default
            those of the reported architectures.
        calibration: training examples, where batch norms are recalibrated.
        checkpoints: finished supernets are read from here instead of trained again.

    Raises:
        UsageError: an unknown factor, fewer than two seeds, fewer than three architectures in a part, or sharing
            factors on a space that is no host.
    """
    if len(set(seeds)) < 2 or len(set(seeds)) < len(seeds):
        raise UsageError(f"A study needs at least two different seeds, not {list(seeds)!r}: one seed shows no spread.")
    report, tune = _split(truth, tuning)
    plan = _Plan(
        _host_of(host), dataset, report, tune, tolerance, draws, calibration, checkpoints or Checkpoints(),
        population, settings=[("baseline", None, baseline)],
    )  # fmt: skip
    for factor, values in vary.items():
        for value in values:
            factors = baseline.vary(factor, value)
            if factors != baseline:
                plan.host(factors.sharing)  # refuses what it cannot do before anything is trained
                plan.settings.append((factor, value, factors))
    rows = []
    for i, (factor, value, factors) in enumerate(plan.settings):
        for j, seed in enumerate(seeds):
            done = (i * len(seeds) + j) / (len(plan.settings) * len(seeds))
            progress(f"{factor} {shown(value)}, seed {seed}", done)
            rows.append(_row(plan, factor, value, factors, seed))
    return Study(
        rows,
        report.ceiling,
        float(report.mean.mean()),
        float(report.mean.max()),
        len(report.archs),
        0 if tune is None else len(tune.archs),
    )


def _host_of(host: Host | ModuleSpace) -> Host:
    if not isinstance(host, ModuleSpace):
        return host
    space = host

    def only_default(sharing: Sharing) -> ModuleSpace:
        if sharing.changed():
            raise UsageError(
                f"{', '.join(sharing.changed())} change how modules share weights, which {space.name} does not offer. "
                f"Pass a host: a function from a Sharing to a space."
            )
        return space

    return only_default


def _split(truth: Truth, tuning: float) -> tuple[Truth, Truth | None]:
    """Architectures to report on, and those to tune on, drawn at random."""
    if not 0.0 <= tuning < 1.0:
        raise UsageError(f"tuning is a fraction in [0, 1), not {tuning!r}.")
    order = list(range(len(truth.archs)))
    Random("split of the truth").shuffle(order)
    cut = round(tuning * len(order))
    for what, n in (("report on", len(order) - cut), ("tune on", cut if tuning else 3)):
        if n < 3:
            raise UsageError(f"A rank correlation needs at least 3 architectures, but there are {n} to {what}.")
    return truth.take(sorted(order[cut:])), truth.take(sorted(order[:cut])) if cut else None


def _row(plan: _Plan, factor: str, value: Any, factors: Factors, seed: int) -> Row:
    report, tune = plan.report, plan.tune
    archs = report.archs + (tune.archs if tune else [])
    scores, seconds = shared_scores(plan, archs, f"{factor} {shown(value)} seed {seed}", factors, seed)
    mine = scores[: len(report.archs)]
    order = np.argsort(-np.asarray(mine), kind="stable")
    true = report.mean
    population = true if plan.population is None else plan.population
    return Row(
        factor=factor,
        value=value,
        seed=seed,
        accuracy=float(np.mean(mine)),
        tau=kendall_tau(true, mine),
        sparse_tau=sparse_kendall_tau(true, mine, plan.tolerance),
        spearman=spearman(true, mine),
        p_random=p_surpass_random(rank_from_worst(float(true[order[0]]), population), len(population), plan.draws),
        picked=report.archs[order[0]],
        picked_accuracy=float(true[order[0]]),
        top5_accuracy=float(true[order[:5]].mean()),
        tuning_tau=kendall_tau(tune.mean, scores[len(report.archs) :]) if tune else None,
        seconds=seconds,
    )


def shared_scores(
    plan: _Plan, archs: Sequence[Arch], name: str, factors: Factors, seed: int
) -> tuple[list[float], float]:
    """Scores by the weights of one supernet, and the seconds it took; from the checkpoint if it was done before."""
    key = {"factors": asdict(factors), "archs": list(archs), "seed": seed}
    saved = plan.checkpoints.load(name)
    if saved is not None and saved["key"] == key:
        return saved["scores"], saved["seconds"]
    started = time.monotonic()
    dataset = plan.dataset
    supernet = plan.host(factors.sharing).supernet(seed)
    configure_batch_norm(supernet, factors.batch_norm, factors.affine)
    training = f"{name} training"
    train_supernet(supernet, dataset.train, dataset.task, factors, seed, checkpoints=plan.checkpoints, name=training)
    calibration = calibration_inputs(dataset.train, plan.calibration, seed)
    scores = SharedEvaluator(supernet, dataset.val, dataset.task, factors.batch_norm, calibration).scores(archs)
    seconds = time.monotonic() - started
    plan.checkpoints.save(name, {"key": key, "scores": scores, "seconds": seconds})
    plan.checkpoints.delete(training)
    return scores, seconds
