"""Claim: a search finds where tasks should part, and a weight on the cost sets how much they share.

Bruggemann, Kanakis, Georgoulis, Van Gool. Automated Search for Resource-Efficient Branched Multi-Task Networks. 2020.
https://arxiv.org/abs/2008.10292

Four tasks on noisy digits (which digit, odd or even, five or more, and a coin that cannot be learnt), four layers that
may branch, one unit of cost a copy. The random arm is the mean over trees drawn uniformly among all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import micro_data, spread
from archipel.data.multitask import MultiTaskDataset, Task, label_tasks
from archipel.nets.branched import Partition
from archipel.search.differentiable.bmtas import BMTAS, Plan
from archipel.search.differentiable.branching import random_tree
from archipel.search.multitask import measure_tasks, train_tasks
from archipel.spaces.operations import relu_conv_bn

C, LAYERS, TREES = 8, 4, 8
EPOCHS, RETRAIN = 30, 12
WEIGHTS = (0.0, 0.02, 0.1, 0.5)
SHARED, SPLIT, RANDOM = "fully shared", "fully split", "random trees"


def arm_of(weight: float) -> str:
    return f"lambda={weight:g}"


def stem() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, C, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(C))


def layer(index: int) -> nn.Module:
    return relu_conv_bn(C, C, 3)


def head(task: Task) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, task.classes))


PLAN = Plan(stem, layer, head, (1.0,) * LAYERS)


@lru_cache(maxsize=1)
def data() -> MultiTaskDataset:
    return label_tasks(micro_data(), ["digit", "parity", "upper", "random"])


@cache
def trained(tree: tuple[Partition, ...], seed: int) -> tuple[float, float, float]:
    """Mean accuracy of the three tasks that can be learnt, on validation and test data, and of the coin's on test."""
    net = PLAN.branched(tree, data().tasks, seed)
    train_tasks(net, data(), RETRAIN, 40, 0.1, seed)
    val = measure_tasks(net, data().val, data().tasks)
    test = measure_tasks(net, data().open_test("claim"), data().tasks)
    names = ("digit", "parity", "upper")
    return float(np.mean([val[n] for n in names])), float(np.mean([test[n] for n in names])), test["random"]


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    torch.set_num_threads(1)
    T = len(data().tasks)
    if arm == RANDOM:
        rng = Random(seed)
        trees = [tuple(random_tree(T, LAYERS, rng)) for _ in range(TREES)]
        found = np.array([trained(t, seed) for t in trees]).mean(0)
        return Measurement(found[0], {"test": found[1], "cost": float(np.mean([PLAN.cost(t) for t in trees]))})
    if arm in (SHARED, SPLIT):
        one: Partition = (0,) * T if arm == SHARED else tuple(range(T))
        return _figures((one,) * LAYERS, seed, {})
    weight = next(w for w in WEIGHTS if arm_of(w) == arm)
    search = BMTAS(weight, epochs=EPOCHS, batch_size=40, alpha_share=0.3, alpha_lr=0.02, lr=5e-3)
    found = search.search(PLAN, data().without_test(), seed)
    coin = next((i for i, p in enumerate(found.tree) if p.count(p[3]) == 1), LAYERS)
    return _figures(tuple(found.tree), seed, {"expected": found.expected, "coin alone from": float(coin)})


def _figures(tree: tuple[Partition, ...], seed: int, more: Mapping[str, float]) -> Measurement:
    val, test, coin = trained(tree, seed)
    return Measurement(val, {"test": test, "coin": coin, "cost": PLAN.cost(tree), **more})


def cost_obeys(t: Table) -> tuple[bool, str]:
    """The largest weight shares everything, in every seed; without one the tree costs more."""
    high, none = arm_of(WEIGHTS[-1]), arm_of(0.0)
    holds = bool((t.values(high, "cost") == LAYERS).all()) and t.mean(high, "cost") < t.mean(none, "cost")
    return holds, ", ".join(spread(t, arm_of(w), "cost") for w in WEIGHTS)


def expectation_falls(t: Table) -> tuple[bool, str]:
    means = [t.mean(arm_of(w), "expected") for w in WEIGHTS[1:]]
    return means[0] > means[1] > means[2], ", ".join(spread(t, arm_of(w), "expected") for w in WEIGHTS)


def above_random_trees(t: Table) -> tuple[bool, str]:
    arms: Sequence[str] = [arm_of(w) for w in WEIGHTS]
    best = max(arms, key=lambda a: t.mean(a, "test"))
    text = ", ".join(f"{spread(t, a, 'test')} at {t.mean(a, 'cost'):.1f}" for a in (*arms, RANDOM, SHARED, SPLIT))
    return t.mean(best, "test") > t.mean(RANDOM, "test"), text


def coin_parts_first(t: Table) -> tuple[bool, str]:
    arm = arm_of(0.1)
    return t.mean(arm, "coin alone from") < LAYERS, "first layer of its own: " + spread(t, arm, "coin alone from")


CLAIM = Claim(
    slug="bmtas",
    statement="Branched multi-task networks are found by gradient descent, and a weight on the expected cost of the "
    "tree sets where they lie between sharing everything and nothing.",
    scale=f"Four tasks on noisy digits (400/400/997), {LAYERS} layers of C = {C}, searched for {EPOCHS} epochs, trees "
    f"trained for {RETRAIN}; {TREES} random trees a seed.",
    arms=[
        *(ClaimArm(arm_of(w), "method" if w else "untreated") for w in reversed(WEIGHTS)),
        ClaimArm(SHARED, "trivial"),
        ClaimArm(SPLIT, "trivial"),
        ClaimArm(RANDOM, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("The largest weight shares all layers, and costs less than none", cost_obeys),
        Check("The expected cost falls with the weight", expectation_falls),
        Check("The best searched tree is better than the mean random tree", above_random_trees, False),
        Check("The task that cannot be learnt gets layers of its own", coin_parts_first, False),
    ],
    code=("archipel.search.differentiable.branching", "archipel.search.multitask", "archipel.nets.branched"),
)
