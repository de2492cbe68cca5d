"""Claim: operations that do a network no good, under many names, ruin what a search finds.

Wu, Saxena, Jain. Poisoning the Search Space in Neural Architecture Search. 2021. https://arxiv.org/abs/2106.14406

ENAS searches four layers of six operations, clean and with poison of one, six or thirty-six instances. Every arm is
judged by the test accuracy of its answer with the weights it inherits, and by the share of poisonous layers in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import micro_data, spread
from archipel.search.poisoning import Scale, Setting, probe_once

SCALE = Scale()
CLEAN = "clean, enas"
COUNTS = (1, 6, 36)
HARMFUL = ("dropout1", "stretched")
SETTINGS = {
    s.name: s
    for s in [
        Setting((), 0, "enas"),
        Setting((), 0, "random"),
        *(Setting((p,), m, "enas") for p in HARMFUL for m in COUNTS),
        Setting(("identity",), 36, "enas"),
        Setting(("identity", "dropout1", "stretched"), 6, "enas"),
        *(Setting((p,), 36, "random") for p in HARMFUL),
        Setting(("dropout1",), 36, "enas-train"),
        Setting(("stretched",), 6, "darts"),
        Setting(("stretched",), 6, "darts-pt"),
    ]
}


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    torch.set_num_threads(1)
    found = probe_once(micro_data(), SETTINGS[arm], seed, SCALE)
    return Measurement(0.0, found)  # nothing is tuned, so nothing is judged on validation data


def name(poison: str, m: int, searcher: str = "enas") -> str:
    return f"{poison} x{m}, {searcher}"


def falls_with_instances(poison: str, t: Table) -> tuple[bool, str]:
    """Lower with the most instances than clean and than with one."""
    arms = [CLEAN, *(name(poison, m) for m in COUNTS)]
    means = [t.mean(a, "test") for a in arms]
    return means[-1] < min(means[0], means[1]), ", ".join(spread(t, a, "test") for a in arms)


def no_better_than_random(poison: str, t: Table) -> tuple[bool, str]:
    """With 36 instances, within one pooled deviation of uniform sampling in the same space."""
    enas, random = name(poison, 36), name(poison, 36, "random")
    sd = ((t.std(enas, "test") ** 2 + t.std(random, "test") ** 2) / 2) ** 0.5
    gap = abs(t.mean(enas, "test") - t.mean(random, "test"))
    return gap <= sd, f"{spread(t, enas, 'test')}, {spread(t, random, 'test')}"


def identity_is_milder(t: Table) -> tuple[bool, str]:
    arms = [name("identity", 36), *(name(p, 36) for p in HARMFUL)]
    best = t.mean(arms[0], "test")
    return all(best > t.mean(a, "test") for a in arms[1:]), ", ".join(spread(t, a, "test") for a in arms)


def training_mode_sees_it(t: Table) -> tuple[bool, str]:
    blind, seeing = name("dropout1", 36), name("dropout1", 36, "enas-train")
    text = f"share sampled: {spread(t, blind, 'sampled bad')}, {spread(t, seeing, 'sampled bad')}"
    return t.mean(seeing, "sampled bad") < t.mean(blind, "sampled bad"), text


def learns_when_clean(t: Table) -> tuple[bool, str]:
    return t.mean(CLEAN, "test") > t.mean("clean, random", "test"), ", ".join(
        spread(t, a, "test") for a in (CLEAN, "clean, random")
    )


def removal_finds_it(t: Table) -> tuple[bool, str]:
    arms = [name("stretched", 6, s) for s in ("darts", "darts-pt")]
    return t.mean(arms[1], "bad") < t.mean(arms[0], "bad"), ", ".join(spread(t, a, "bad") for a in arms)


CLAIM = Claim(
    slug="search-space-poisoning",
    statement="Useless operations in the search space, above all under many names, spoil the network that ENAS finds.",
    scale=f"Noisy digits (400/400/997), {SCALE.layers} layers, C = {SCALE.C}, {SCALE.epochs} epochs of shared weights "
    f"with {SCALE.updates} controller updates each; accuracy with inherited weights.",
    arms=[
        ClaimArm(CLEAN, "untreated"),
        ClaimArm("clean, random", "trivial"),
        *(ClaimArm(name(p, m), "method") for p in HARMFUL for m in COUNTS),
        ClaimArm(name("identity", 36), "method"),
        ClaimArm("identity+dropout1+stretched x6, enas", "method"),
        *(ClaimArm(name(p, 36, "random"), "trivial") for p in HARMFUL),
        ClaimArm(name("dropout1", 36, "enas-train"), "rival"),
        ClaimArm(name("stretched", 6, "darts"), "rival"),
        ClaimArm(name("stretched", 6, "darts-pt"), "rival"),
    ],
    measure=measure,
    checks=[
        *(Check(f"Accuracy falls with the instances of {p}", partial(falls_with_instances, p)) for p in HARMFUL),
        Check("With 36 instances of dropout ENAS is no better than chance", partial(no_better_than_random, "dropout1")),
        Check("With 36 stretched instances ENAS is no better than chance", partial(no_better_than_random, "stretched")),
        Check("The identity does less harm", identity_is_milder, False),
        Check("In the clean space ENAS is better than chance", learns_when_clean, False),
        Check("Rewards in training mode make the controller avoid dropout", training_mode_sees_it, False),
        Check("Removing options one by one finds the stretched convolution", removal_finds_it, False),
    ],
    code=("archipel.search.oneshot.enas", "archipel.search.policy", "archipel.spaces.macro", "archipel.spaces.poison"),
)
