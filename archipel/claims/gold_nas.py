"""Claim: one search that prunes gradually gives a series of networks, better than random ones of their size.

Bi, Xie, Chen, Wei, Tian. GOLD-NAS: Gradual, One-Level, Differentiable. 2020. https://arxiv.org/abs/2007.03331

Space: three independent cells in which every node takes any non-empty subset of skip-connections and 3x3 convolutions.
The search trains weights and gates on all 800 images that are not for testing. Of the networks it emits, up to four,
spread evenly over the series, are trained from scratch on 400 of them and tested. Each has two random networks with as
many operations of each kind beside it, and what a search of two levels with softmax mixtures keeps if its weakest
operations are cut in one go until as many are left. The learning rate of that training is tuned for each arm on the
mean validation accuracy of its networks: a node of the trained network is the mean of its inputs, and how large a step
that wants is not known beforehand. Times are those of the processor.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import clearly_above, micro_data, searched, spread
from archipel.core.decision import Arch
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable.gold_nas import ParetoSet, gold_nas
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.parameters import Moment, Row
from archipel.search.differentiable.resource_penalty import ResourcePenalty
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.state import SearchState
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.subsets import MicroSubsets

EPOCHS, SIZES, RANDOM_EACH = 55, 4, 2
ONE_LEVEL = Schedule(EPOCHS, 0, 40, lr=0.05, lr_min=0.05, alpha_lr=0.03, alpha_decay=0.0, alpha_share=0.0)
TWO_LEVELS = Schedule(EPOCHS, 0, 40, lr=0.05, lr_min=0.05, alpha_lr=0.03)
RECIPE = Recipe(epochs=15, batch_size=40, optimizer="sgd", weight_decay=3e-4)
GOLD, CUT, RANDOM, FULL = "GOLD-NAS", "two levels, softmax, one cut", "random of equal size", "everything"


@cache
def space() -> MicroSubsets:
    return MicroSubsets((1, 8, 8), 10)


def all_data() -> Dataset:
    """Training and validation images as one set to search on; the validation part is looked at in the log, too."""
    data = micro_data().without_test()
    both = Split(torch.cat([data.train.x, data.val.x]), torch.cat([data.train.y, data.val.y]))
    return Dataset(data.name, both, data.val, None, data.task, data.classes)


class Watched(ResourcePenalty):
    """Also measures what each pruning costs, by the accuracy just before and just after, and the time of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.drops: list[float] = []
        self.seconds: list[float] = []

    def started(self, state: SearchState) -> None:
        super().started(state)
        self._began = time.thread_time()

    def epoch_ended(self, state: SearchState) -> None:
        self.seconds.append(time.thread_time() - self._began)
        data = micro_data().val
        before = state.metrics(data)["accuracy"]
        super().epoch_ended(state)
        if self.removed:
            self.drops.append(before - state.metrics(data)["accuracy"])

    def step_ended(self, state: SearchState) -> None:
        if state.moment.step % state.steps_per_epoch == 0:  # the first step began a moment ago, after the last look
            self._began = time.thread_time()


class EdgeSoftmax(Mix):
    """A softmax over the operations of each edge, as in DARTS, in a node that takes any subset."""

    def coefficients(self, logits: Tensor, row: Row, moment: Moment) -> Tensor:
        out = torch.empty_like(logits)
        for source in dict.fromkeys(label.split("<")[1] for label in row.labels):
            edge = [i for i, label in enumerate(row.labels) if label.split("<")[1] == source]
            out = out.index_copy(0, torch.tensor(edge), torch.softmax(logits[edge], 0))
        return out


def strongest(weights: Mapping[str, Sequence[float]], keep: int) -> Arch:
    """The ``keep`` operations with the largest weights, and the strongest of every node in any case."""
    nodes = space().nodes
    ranked = sorted(((w, n, i) for n, row in weights.items() for i, w in enumerate(row)), reverse=True)
    taken = {n: [max(range(len(row)), key=row.__getitem__)] for n, row in weights.items()}
    for _, n, i in ranked:
        if sum(map(len, taken.values())) < keep and i not in taken[n]:
            taken[n].append(i)
    return space().from_pairs({n: [nodes[n].labels[i] for i in sorted(t)] for n, t in taken.items()})


def kinds(arch: Arch) -> tuple[int, int]:
    """Numbers of skip-connections and of convolutions."""
    labels = [p for ps in space().pairs(arch).values() for p in ps]
    return sum(p.startswith("skip") for p in labels), sum(p.startswith("conv") for p in labels)


def random_like(arch: Arch, rng: Random) -> Arch:
    """A random architecture with as many operations of each kind."""
    pairs = [(n, p) for n, subset in space().nodes.items() for p in subset.labels]
    skips, convs = ([q for q in pairs if q[1].startswith(k)] for k in ("skip", "conv"))
    s, c = kinds(arch)
    while True:
        drawn = rng.sample(skips, s) + rng.sample(convs, c)
        if {n for n, _ in drawn} == set(space().nodes):
            return space().from_pairs({n: [p for m, p in drawn if m == n] for n in space().nodes})


@cache
def series(seed: int) -> tuple[tuple[Arch, ...], dict[str, float]]:
    """The emitted networks that are compared, and what the search was like."""
    search = gold_nas(n0=2, schedule=ONE_LEVEL, objective=Watched())
    search, _ = searched(search, space(), all_data(), seed)
    state, select = search.state, search.selection
    assert state is not None
    assert isinstance(state.objective, Watched)
    assert isinstance(select, ParetoSet)
    archs = [p["arch"] for p in select.points] or [select(state)]
    taken = [{(n, p) for n, ps in space().pairs(a).items() for p in ps} for a in archs]
    macs = [space().cost.macs(a) for a in archs]
    drops, seconds = state.objective.drops, state.objective.seconds
    figures = {
        "points": float(len(select.points)),
        "nested": float(all(b < a for a, b in pairwise(taken)) and macs == sorted(macs, reverse=True)),
        "median drop": float(np.median(drops)) if drops else 0.0,
        "largest drop": max(drops, default=0.0),
        "speed-up": float(np.median(seconds[:3]) / np.median(seconds[-3:])),
    }
    index = sorted({round(i) for i in np.linspace(0, len(archs) - 1, SIZES)})
    return tuple(archs[i] for i in index), figures


def retrained(archs: Sequence[Arch], seed: int, lr: float) -> tuple[float, dict[str, float]]:
    """Mean validation accuracy, and figures: mean test accuracy, convolutions and MACs, after training from scratch."""
    data, test = micro_data(), micro_data().open_test("claim")
    scores = []
    for arch in archs:
        net = space().build(arch, seed)
        train(net, data.train, data.task, replace(RECIPE, lr=lr), seed)
        val, tested = (evaluate(net, part, data.task)["accuracy"] for part in (data.val, test))
        scores.append((val, tested, kinds(arch)[1], space().cost.macs(arch)))
    val, tested, convs, macs = np.mean(scores, 0).tolist()
    each = {f"test {i}": s[1] for i, s in enumerate(scores)} if len(scores) == SIZES else {}
    return val, {"test": tested, "convs": convs, "macs": macs, **each}


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    torch.set_num_threads(1)
    lr = setting["lr"]
    if arm == FULL:
        whole = space().from_pairs({n: s.labels for n, s in space().nodes.items()})
        return Measurement(*retrained([whole], seed, lr))
    archs, figures = series(seed)
    if arm == GOLD:
        val, found = retrained(archs, seed, lr)
        return Measurement(val, found | figures)
    if arm == RANDOM:
        rng = Random(seed)
        return Measurement(*retrained([random_like(a, rng) for a in archs for _ in range(RANDOM_EACH)], seed, lr))
    bilevel = DifferentiableSearch(mix=EdgeSoftmax(), schedule=TWO_LEVELS)
    bilevel, _ = searched(bilevel, space(), all_data(), seed)
    assert bilevel.state is not None
    weights = {n: w.tolist() for n, w in bilevel.state.mixture_weights().items()}
    return Measurement(*retrained([strongest(weights, sum(kinds(a))) for a in archs], seed, lr))


# --- checks -----------------------------------------------------------------------------------------------------------


def each_seed(figure: str, least: float, t: Table) -> tuple[bool, str]:
    """Whether a figure of the search reaches a value with every seed."""
    values = t.values(GOLD, figure)
    return bool((values >= least).all()), f"{figure}: {', '.join(f'{v:.4g}' for v in values)}"


def drops_are_small(figure: str, most: float, t: Table) -> tuple[bool, str]:
    values = t.values(GOLD, figure)
    return bool((values < most).all()), f"{figure}: {', '.join(f'{v:.4f}' for v in values)}"


def above(other: str, t: Table) -> tuple[bool, str]:
    return clearly_above(t, GOLD, other, "test")


def smaller_and_no_worse_than_everything(t: Table) -> tuple[bool, str]:
    text = f"{spread(t, GOLD, 'test')} with {t.mean(GOLD, 'macs'):.4g} MACs, {spread(t, FULL, 'test')} with "
    smaller = t.mean(GOLD, "macs") < t.mean(FULL, "macs")
    return smaller and t.mean(GOLD, "test") >= t.mean(FULL, "test"), text + f"{t.mean(FULL, 'macs'):.4g}"


CLAIM = Claim(
    slug="gold-nas",
    statement="One search of one level that prunes a few operations at a time gives a series of nested networks that "
    "are better than others of their size, where searches that cut once fail.",
    scale="Three cells of four nodes, any subset of skip and conv3x3 (10^10.4 networks), C = 8, noisy digits: 800 to "
    f"search on for {EPOCHS} epochs; up to {SIZES} emitted networks trained for 15 epochs on 400, tested on 997.",
    arms=[
        ClaimArm(GOLD, "method"),
        ClaimArm(CUT, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(FULL, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("Every search emits at least four networks", partial(each_seed, "points", 4)),
        Check("The networks of a series are nested and their MACs never rise", partial(each_seed, "nested", 1)),
        Check("They are clearly above random networks of equal size", partial(above, RANDOM)),
        Check("Half of the prunings cost less than a point of accuracy", partial(drops_are_small, "median drop", 0.01)),
        Check("The last epochs are faster than the first", partial(each_seed, "speed-up", 1.2)),
        Check("They are clearly above what a single cut leaves", partial(above, CUT), False),
        Check("No pruning costs five points", partial(drops_are_small, "largest drop", 0.05), False),
        Check("They are smaller than the whole network and no worse", smaller_and_no_worse_than_everything, False),
    ],
    grid=[{"lr": 0.02}, {"lr": 0.1}],
    code=(
        "archipel.core.subset",
        "archipel.search.differentiable.pruned_gates",
        "archipel.search.differentiable.resource_penalty",
        "archipel.spaces.subsets",
    ),
)
