"""Claim: through a grid of channels and operations, Max-W mixtures lead to better paths than scalar weights.

Hundt, Jain, Hager. sharpDARTS: Faster and More Accurate Differentiable Architecture Search. 2019.
https://arxiv.org/abs/1903.09900

A hyper-cuboid of two pairs of layers (stride 1 and 2) with 4, 8 or 16 channels is searched on noisy digits with each
mixture; the longest path is trained from scratch, as are random paths and one made by hand that doubles the channels.
Nothing is tuned; the learning rate of the logits is one at which Adam can move them by 1.35. Beside that: the training
loss that the path made by hand reaches under cosine power annealing with several powers, and what the cells of DARTS
cost per step and per operation with the paper's operations and with their own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from random import Random
from typing import Any

import numpy as np
import torch

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import RECIPE, clearly_above, micro_data, searched, spread
from archipel.core.decision import Arch
from archipel.cost.model import FlopMode
from archipel.search.differentiable.loop import DifferentiableSearch, batch
from archipel.search.differentiable.paths import GreedyPath, LongestPath, Triple, arch_of_path, layer_scores
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.sharpdarts import cosine_power, sharpdarts
from archipel.search.strategy import Context, Problem
from archipel.search.training import evaluate, train
from archipel.spaces.darts import DartsSpace
from archipel.spaces.hyper_cuboid import HyperCuboid

CHANNELS, LAYERS, EPOCHS, BATCH, ALPHA_LR = (4, 8, 16), 4, 15, 20, 9e-3
RANDOM_PATHS, TIMED = 8, 9
CELL_C, CELL_NODES = 8, 4
POWERS = (1, 2, 10)
MAX_W, DETACHED, SCALAR = "Max-W", "Max-W, detached", "scalar"
SETTINGS = {MAX_W: {}, DETACHED: {"detach_max": True}, SCALAR: {"weighting": "scalar"}}
RANDOM, HAND = "random paths", "by hand"
GREEDY = ("bottom-up", "top-down")
OPERATIONS = ("darts", "sharp-darts", "sharp")


@cache
def _space() -> HyperCuboid:
    return HyperCuboid((1, 8, 8), 10, CHANNELS, LAYERS)


def _by_hand() -> Arch:
    return _space().path([4, 4, 8, 8, 16], ["sharp_sep_conv"] * LAYERS)


def _trained(arch: Arch, seed: int) -> tuple[float, float]:
    return _once(tuple(_space().validate(arch).items()), seed)


@cache
def _once(items: tuple[tuple[str, Any], ...], seed: int) -> tuple[float, float]:
    """Validation and test accuracy of a path after training from scratch."""
    data, net = micro_data(), _space().build(dict(items), seed)
    train(net, data.train, data.task, RECIPE, seed)
    val = evaluate(net, data.val, data.task)["accuracy"]
    return val, evaluate(net, data.open_test("claim"), data.task)["accuracy"]


def _final_loss(power: float, seed: int) -> float:
    """Training loss of the path made by hand after cosine power annealing."""
    data, net, optimizer = micro_data(), _space().build(_by_hand(), seed), None
    for epoch, lr in enumerate(cosine_power(max_epoch=RECIPE.epochs, exponent_order=power, lr_max=0.1, lr_min=1e-4)):
        recipe = replace(RECIPE, lr=lr, schedule="constant")
        optimizer = train(net, data.train, data.task, recipe, seed, epoch, epoch + 1, optimizer)
    return evaluate(net, data.train, data.task)["loss"]


def _cell_cost(operations: str, seed: int) -> dict[str, float]:
    """Multiply-accumulates of an image through a supernet of DARTS cells, and processor time of a step."""
    space = DartsSpace((1, 8, 8), 10, CELL_C, layers=3, nodes=CELL_NODES, operations=operations)
    search = DifferentiableSearch(schedule=Schedule(batch_size=BATCH))
    search.setup(Problem(space))
    state = search.start(Context(micro_data().without_test(), RECIPE, seed=seed))
    pair = [batch(half, torch.arange(BATCH)) for half in state.halves]
    counter = FlopMode()
    with torch.no_grad(), counter:
        state.output(pair[0][0], state.mixture_weights())
    state.supernet.train()
    times = []
    for _ in range(TIMED):
        began = time.thread_time()
        search.arch_gradient.update(state, *pair)
        times.append(time.thread_time() - began)
    computed = len(state.parameters.rows["normal.e02"].labels) - 1  # none is not
    found = {"kMACs": counter.total / 2 / BATCH / 1e3, "ms": 1e3 * float(np.median(times))}
    return {f"{k} {operations}": v for k, v in found.items()} | {f"ms/op {operations}": found["ms"] / computed}


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What an arm's path reaches after training from scratch."""
    torch.set_num_threads(1)
    if arm == RANDOM:
        rng = Random(seed)
        pairs = [_trained(_space().sample(rng), seed) for _ in range(RANDOM_PATHS)]
        val, test = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        return Measurement(float(val.mean()), {"test": float(test.mean()), "between paths": float(test.std())})
    if arm == HAND:
        val, test = _trained(_by_hand(), seed)
        losses = {f"loss p={p}": _final_loss(p, seed) for p in POWERS}
        costs = [_cell_cost(name, seed) for name in OPERATIONS]
        return Measurement(val, {"test": test, **losses, **costs[0], **costs[1], **costs[2]})
    schedule = Schedule(EPOCHS, batch_size=BATCH, alpha_lr=ALPHA_LR)
    search, path = searched(
        sharpdarts(**SETTINGS[arm], path="longest", schedule=schedule), _space(), micro_data(), seed
    )
    assert search.state is not None
    layers = layer_scores(search.state)
    figures = {k: search.log[-1][k] for k in ("mixture", "one_hot", "gap", "entropy")}
    figures |= {"value": _value(layers, LongestPath().best(layers)), "pools": float(_pools(path))}
    for direction in GREEDY:
        greedy = GreedyPath(direction).best(layers)
        test = _trained(arch_of_path(_space(), greedy), seed)[1]
        figures |= {f"value {direction}": _value(layers, greedy), f"test {direction}": test}
    val, test = _trained(path, seed)
    return Measurement(val, {"test": test, **figures})


def _value(layers: list[dict[Triple, float]], path: list[Triple]) -> float:
    return sum(layer[t] for layer, t in zip(layers, path))


def _pools(path: Arch) -> int:
    return list(path.values()).count("resizable_pool")


# --- checks -----------------------------------------------------------------------------------------------------------


def at_least(arm: str, other: str, t: Table) -> tuple[bool, str]:
    return t.mean(arm, "test") >= t.mean(other, "test"), f"{spread(t, arm, 'test')}, {spread(t, other, 'test')}"


def above_random(arm: str, t: Table) -> tuple[bool, str]:
    holds, text = clearly_above(t, arm, RANDOM, "test")
    return holds, f"{text}; between random paths {t.mean(RANDOM, 'between paths'):.4f}"


def longest_is_best(t: Table) -> tuple[bool, str]:
    """No greedy path has a larger sum of weights, on any seed."""
    holds = all((t.values(a, "value") >= t.values(a, f"value {g}") - 1e-9).all() for a in SETTINGS for g in GREEDY)
    figures = ("value", *(f"value {g}" for g in GREEDY))
    return holds, "; ".join(f"{a}: " + ", ".join(f"{t.mean(a, f):.4f} ({f})" for f in figures) for a in SETTINGS)


def scalar_loses_to_hand(t: Table) -> tuple[bool, str]:
    return t.mean(SCALAR, "test") < t.mean(HAND, "test"), f"{spread(t, SCALAR, 'test')}, {spread(t, HAND, 'test')}"


def greedy_is_no_better(t: Table) -> tuple[bool, str]:
    figures = [f"test {g}" for g in GREEDY]
    holds = all(t.mean(MAX_W, "test") >= t.mean(MAX_W, f) for f in figures)
    return holds, ", ".join(f"{t.mean(MAX_W, f):.4f} ({f})" for f in ("test", *figures))


def larger_powers_end_lower(t: Table) -> tuple[bool, str]:
    losses = [t.mean(HAND, f"loss p={p}") for p in POWERS]
    return losses == sorted(losses, reverse=True), ", ".join(f"{v:.4f} (p={p})" for p, v in zip(POWERS, losses))


def steps_are_faster(t: Table) -> tuple[bool, str]:
    """An operation of the paper's set takes less time a step than one of DARTS."""
    costs = ("kMACs", "ms", "ms/op")
    text = "; ".join(f"{o}: " + ", ".join(f"{t.mean(HAND, f'{c} {o}'):.4g} {c}" for c in costs) for o in OPERATIONS)
    return t.mean(HAND, "ms/op sharp") < t.mean(HAND, "ms/op darts"), text


CLAIM = Claim(
    slug="sharpdarts",
    statement="In a grid of channels, strides and operations, the longest path that a search with Max-W mixtures finds "
    "is better than with scalar weights, which lose to a path made by hand.",
    scale=f"Hyper-cuboid of {LAYERS} layers with 4, 8 or 16 channels (3888 paths) on noisy digits (400/400/997), "
    f"searched for {EPOCHS} epochs of 10 steps, paths trained for 12; {RANDOM_PATHS} random paths a seed.",
    arms=[
        ClaimArm(MAX_W, "method"),
        ClaimArm(DETACHED, "method"),
        ClaimArm(SCALAR, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(HAND, "reference"),
    ],
    measure=measure,
    checks=[
        Check("Paths by Max-W are at least as good as by scalar weights", partial(at_least, MAX_W, SCALAR)),
        Check("Paths by Max-W are clearly above the mean random path", partial(above_random, MAX_W)),
        Check("Paths by scalar weights are clearly above the mean random path", partial(above_random, SCALAR)),
        Check("The longest path has no smaller sum of weights than greedy ones", longest_is_best),
        Check("Scalar weights lose to the path made by hand", scalar_loses_to_hand, False),
        Check("Max-W is at least as good as the path made by hand", partial(at_least, MAX_W, HAND), False),
        Check("Detaching the maximum is at least as good", partial(at_least, DETACHED, MAX_W), False),
        Check("The longest path trains at least as well as greedy ones", greedy_is_no_better, False),
        Check("A larger power ends at a lower training loss", larger_powers_end_lower, False),
        Check("An operation of the paper's set takes less time in a step than one of DARTS", steps_are_faster, False),
    ],
    code=(
        "archipel.search.differentiable.paths",
        "archipel.spaces.hyper_cuboid",
        "archipel.spaces.sharp_operations",
    ),
)
