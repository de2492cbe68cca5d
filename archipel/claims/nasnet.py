"""Claim: a controller learns to propose better cells than chance, and the cells serve larger networks and other data.

Zoph, Vasudevan, Shlens, Le. Learning Transferable Architectures for Scalable Image Recognition. 2017.
https://arxiv.org/abs/1707.07012

Cells of two blocks are searched in a small stack on digits, 60 children of one epoch each, where the paper trains
20,000 for 20 epochs. The controller is updated after every 5 children (20 in the paper), else it would hardly be; its
learning rate is what the grid tunes, the authors' 3.5e-4 among its values, by the mean validation accuracy of the last
15 children. Random search has no learning rate and gets the same settings. The best child's cells are then trained in
a stack twice as deep and wide on noisy digits, with and without ScheduledDropPath, beside those of three random cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import torch

from archipel.claims.harness import TUNING_SEED, Check, Claim, ClaimArm, Measurement, Table
from archipel.core.decision import Arch
from archipel.data import load
from archipel.nets.drop_path import ScheduledDropPath
from archipel.search.blackbox.nasnet import PolicyGradientSearch
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.strategy import Problem, Strategy
from archipel.search.training import Recipe, evaluate, recalibrate, train
from archipel.spaces.nasnet import NASNetSpace

OPS = ("identity", "avg3x3", "max3x3", "conv3x3", "sep3x3")
CHILDREN, LAST, UPDATE, IMAGES = 60, 15, 5, 400
CHILD = Recipe(epochs=1, batch_size=25, lr=1e-2)
FINAL, DROP, RANDOM_CELLS = Recipe(epochs=10, batch_size=50, lr=1e-2), 0.3, 3
PPO, REINFORCE, RANDOM = "PPO", "REINFORCE", "random search"


def _space(filters: int, repeats: int) -> NASNetSpace:
    return NASNetSpace(torch.zeros(1, 1, 8, 8), 10, B=2, ops=OPS, filters=filters, repeats=repeats)


def _strategy(arm: str, lr: float) -> Strategy:
    return RandomSearch() if arm == RANDOM else PolicyGradientSearch(UPDATE, lr=lr, rule=arm.lower())


@lru_cache(maxsize=32)
def _children(arm: str, lr: float, seed: int) -> tuple[tuple[float, ...], tuple[tuple[str, Any], ...]]:
    """Rewards in the order of the children, and the architecture of the best."""
    space, data = _space(filters=8, repeats=1), load("digits", seed=seed).without_test()
    images = data.train.take(torch.arange(IMAGES))
    strategy = _strategy(arm, lr)
    strategy.setup(Problem(space, rng=Random(seed)))
    rewards: list[float] = []
    archs: list[Arch] = []
    for _ in range(CHILDREN):
        trial = strategy.ask()
        assert trial is not None  # neither strategy ever waits
        own = seed * 1000 + trial.id  # every child has its own initial weights and order of images
        net = space.build(trial.arch, own)
        train(net, images, "classification", CHILD, own)
        recalibrate(net, images.x)  # so few steps leave the running statistics behind
        trial.metrics = {"accuracy": evaluate(net, data.val, "classification")["accuracy"]}
        strategy.tell(trial)
        rewards.append(trial.metrics["accuracy"])
        archs.append(trial.arch)
    return tuple(rewards), tuple(archs[int(np.argmax(rewards))].items())


@lru_cache(maxsize=64)
def _transferred(arch: tuple[tuple[str, Any], ...], drop: float, seed: int) -> tuple[float, float]:
    """Training and test accuracy of the larger network on noisy digits; its test split is opened here only."""
    data = load("noisy-digits", seed=seed, noise_seed=seed)
    net = _space(filters=16, repeats=2).build(dict(arch), seed)
    steps = FINAL.epochs * (len(data.train) // FINAL.batch_size)
    schedule = ScheduledDropPath(net, drop, steps) if drop else None
    train(net, data.train, "classification", FINAL, seed, each_step=schedule)
    test = data.open_test(f"claim nasnet, drop-path {drop}, seed {seed}")
    seen, unseen = (evaluate(net, part, "classification")["accuracy"] for part in (data.train, test))
    return seen, unseen


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """One search; beyond the tuning seed, which only needs its rewards, also the transfer of what it found."""
    torch.set_num_threads(1)
    rewards, best = _children(arm, 0.0 if arm == RANDOM else setting["lr"], seed)
    figures = {
        "first 15": float(np.mean(rewards[:LAST])),
        "last 15": float(np.mean(rewards[-LAST:])),
        "all children": float(np.mean(rewards)),
        "best child": max(rewards),
    }
    if seed != TUNING_SEED:
        rng, space = Random(seed + 1_000_000), _space(filters=16, repeats=2)
        others = [tuple(space.sample(rng).items()) for _ in range(RANDOM_CELLS)]
        (seen, unseen), (seen_drop, unseen_drop) = (_transferred(best, p, seed) for p in (0.0, DROP))
        figures |= {
            "test": unseen,
            "test random cells": float(np.mean([_transferred(other, 0.0, seed)[1] for other in others])),
            "test drop-path": unseen_drop,
            "gap": seen - unseen,
            "gap drop-path": seen_drop - unseen_drop,
        }
    return Measurement(figures["last 15"], figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def _above(arm: str, figure: str, other: str, other_figure: str) -> Callable[[Table], tuple[bool, str]]:
    """Whether a mean exceeds another, with the difference paired by seed."""

    def test(t: Table) -> tuple[bool, str]:
        gap = t.values(arm, figure) - t.values(other, other_figure)
        error = gap.std(ddof=1) / math.sqrt(len(gap))
        return bool(gap.mean() > 0), (
            f"{figure} ({arm}) {t.mean(arm, figure):.4f} ± {t.std(arm, figure):.4f}, {other_figure} ({other}) "
            f"{t.mean(other, other_figure):.4f} ± {t.std(other, other_figure):.4f}; difference {gap.mean():+.4f} ± "
            f"{error:.4f} (SE), positive in {(gap > 0).sum()} of {len(gap)} seeds"
        )

    return test


CLAIM = Claim(
    slug="nasnet",
    statement="A controller trained by policy gradients proposes better cells than random search, the cells transfer "
    "to larger networks and other data, and ScheduledDropPath lets these generalise better.",
    scale=f"Search: cells of 2 blocks, 5 operations, N=1, F=8, {CHILDREN} children of one epoch on {IMAGES} digits; "
    "transfer: N=2, F=16, 10 epochs on digits with noise 0.35 (400/400/997).",
    arms=[ClaimArm(PPO, "method"), ClaimArm(REINFORCE, "rival"), ClaimArm(RANDOM, "trivial")],
    measure=measure,
    checks=[
        Check("The last 15 children of PPO are better than random children",
              _above(PPO, "last 15", RANDOM, "all children")),
        Check("The best cells that PPO found, transferred, beat three random ones",
              _above(PPO, "test", PPO, "test random cells")),
        Check("ScheduledDropPath narrows the gap between training and test accuracy",
              _above(PPO, "gap", PPO, "gap drop-path")),
        Check("The last 15 children of REINFORCE are better than random children",
              _above(REINFORCE, "last 15", RANDOM, "all children"), False),
        Check("PPO's last children are better than its first", _above(PPO, "last 15", PPO, "first 15"), False),
        Check("PPO finds a better child than random search", _above(PPO, "best child", RANDOM, "best child"), False),
        Check("What PPO found transfers better than what random search found", _above(PPO, "test", RANDOM, "test"),
              False),
        Check("ScheduledDropPath raises test accuracy", _above(PPO, "test drop-path", PPO, "test"), False),
    ],
    grid=[{"lr": lr} for lr in (3.5e-4, 3.5e-3, 3.5e-2)],
    seeds=3,
    code=(
        "archipel.nets.drop_path",
        "archipel.nets.nasnet",
        "archipel.search.policy",
        "archipel.search.training",
        "archipel.spaces.nasnet",
    ),
)  # fmt: skip
