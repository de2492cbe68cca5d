"""Claim: layers generated from types can be put into any search space, and nothing breaks.

Wu, Saxena, Jain. NeuralArTS: Structuring Neural Architecture Search with Type Theory. 2021.
https://arxiv.org/abs/2110.08710

Types are compared with the shapes that PyTorch gives for random layers. Then a chain of four layers is searched, by
REINFORCE and at random, among six base operations, and among these with twelve generated convolutions and six pools.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from random import Random
from typing import Any

import torch
from torch import nn

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import micro_data, spread
from archipel.core.decision import Arch
from archipel.search.blackbox.nasnet import PolicyGradientSearch
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.strategy import Problem
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.neuralarts import Window, chain_space, equivalent_windows, with_equivalents
from archipel.spaces.operations import OpFactory, pool, relu_conv_bn, sep_conv
from archipel.spaces.shape_types import type_of
from archipel.spaces.type_check import check_types

PAIRS, SIZES = 2000, 40
EVALUATIONS = 40
RECIPE = Recipe(epochs=6, batch_size=40, optimizer="sgd", lr=0.1, weight_decay=3e-4)
ARMS = {  # name -> (generated operations, REINFORCE)
    "typed space, REINFORCE": (True, True),
    "base space, REINFORCE": (False, True),
    "typed space, random": (True, False),
    "base space, random": (False, False),
}


def operations(typed: bool) -> dict[str, OpFactory]:
    """Six base operations; with generated ones, 24."""
    base: dict[str, OpFactory] = {
        "conv3": lambda c, s: relu_conv_bn(c, c, 3, s),
        "sep3": lambda c, s: sep_conv(c, 3, s),
        "conv5": lambda c, s: relu_conv_bn(c, c, 5, s),
        "sep5": lambda c, s: sep_conv(c, 5, s),
        "avg": lambda c, s: pool(nn.AvgPool2d, c, s, False),
        "max": lambda c, s: pool(nn.MaxPool2d, c, s, False),
    }
    if not typed:
        return base
    windows = equivalent_windows(Window(3, 1), k=range(1, 5), d=range(1, 5))
    return with_equivalents(base, windows, {"avg": base["avg"], "max": base["max"]})


@cache
def space_of(typed: bool) -> ModuleSpace:
    return chain_space(operations(typed), micro_data().input_shape, 10, C=8, layers=4)


def type_errors(seed: int) -> float:
    """Pairs of random convolutions for which types and the shapes of PyTorch disagree."""
    rng, wrong = Random(seed), 0
    for _ in range(PAIRS):
        pair = []
        for _ in range(2):
            k, p, d, s = rng.randint(1, 7), rng.randint(0, 4), rng.randint(1, 3), rng.randint(1, 3)
            pair.append(nn.Conv1d(1, 1, k, s, p, d, device="meta"))
        a, b = (type_of(layer) for layer in pair)
        assert a is not None
        assert b is not None
        least = max(layer.dilation[0] * (layer.kernel_size[0] - 1) + 1 - 2 * layer.padding[0] for layer in pair)
        inputs = [torch.empty(1, 1, size, device="meta") for size in range(max(1, least), max(1, least) + SIZES)]
        equal = all(pair[0](x).shape == pair[1](x).shape for x in inputs)
        wrong += a.same(b) != equal
    return float(wrong)


def trained(space: ModuleSpace, arch: Arch, seed: int) -> tuple[float, nn.Module]:
    data = micro_data()
    net = space.build(arch, seed)
    train(net, data.train, data.task, RECIPE, seed)
    return evaluate(net, data.val, data.task)["accuracy"], net


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """Best and mean validation accuracy of an arm's evaluations, and the test accuracy of its best network."""
    torch.set_num_threads(1)
    typed, learns = ARMS[arm]
    space = space_of(typed)
    badly_typed = sum(found is not True for found in check_types(space).by_type.values())
    strategy = PolicyGradientSearch(batch=5, hidden=32, lr=1e-2, rule="reinforce") if learns else RandomSearch()
    strategy.setup(Problem(space, rng=Random(seed)))
    scores, broken, best = [], 0, (-1.0, nn.Module())
    for _ in range(EVALUATIONS):
        trial = strategy.ask()
        assert trial is not None
        try:
            accuracy, net = trained(space, trial.arch, seed)
        except RuntimeError:  # a shape that does not fit: what the claim is about
            broken += 1
            trial.failure = "shape"
        else:
            trial.metrics = {"accuracy": accuracy}
            scores.append(accuracy)
            best = max(best, (accuracy, net), key=lambda pair: pair[0])
        strategy.tell(trial)
    test = evaluate(best[1], micro_data().open_test("claim"), micro_data().task)["accuracy"]
    figures = {"test of best": test, "best": max(scores), "mean": sum(scores) / len(scores), "broken": float(broken)}
    return Measurement(max(scores), figures | {"badly typed": float(badly_typed), "type errors": type_errors(seed)})


def nothing_breaks(t: Table) -> tuple[bool, str]:
    counts = {name: sum(t.values(a, name).sum() for a in t.figures) for name in ("broken", "badly typed")}
    return not any(counts.values()), ", ".join(f"{int(n)} {name}" for name, n in counts.items())


def types_are_right(t: Table) -> tuple[bool, str]:
    wrong = sum(t.values(a, "type errors").sum() for a in t.figures)
    return wrong == 0, f"{int(wrong)} errors in {PAIRS} pairs a seed, {SIZES} sizes each"


def typed_is_better(t: Table) -> tuple[bool, str]:
    arms = list(ARMS)
    holds = all(t.mean(a, "test of best") > t.mean(b, "test of best") for a, b in (arms[:2], arms[2:]))
    return holds, ", ".join(spread(t, a, "test of best") for a in arms)


def learning_is_better(t: Table) -> tuple[bool, str]:
    arms = list(ARMS)
    holds = all(t.mean(a, "mean") > t.mean(b, "mean") for a, b in (arms[0::2], arms[1::2]))
    return holds, ", ".join(spread(t, a, "mean") for a in arms)


CLAIM = Claim(
    slug="neuralarts",
    statement="Types say exactly which layers may stand for one another, so that a search space can be enlarged by "
    "generated layers without any shape error.",
    scale=f"{PAIRS} random pairs of layers a seed; chains of four layers (C = 8) on noisy digits (400/400/997), "
    f"{EVALUATIONS} evaluations of {RECIPE.epochs} epochs for each arm.",
    arms=[
        ClaimArm("typed space, REINFORCE", "method"),
        ClaimArm("base space, REINFORCE", "untreated"),
        ClaimArm("typed space, random", "trivial"),
        ClaimArm("base space, random", "trivial"),
    ],
    measure=measure,
    checks=[
        Check("Type equality is equality of shapes for every acceptable input", types_are_right),
        Check("Every network of the enlarged space runs", nothing_breaks),
        Check("The best network of the enlarged space is better, by both searches", typed_is_better, False),
        Check("REINFORCE samples better networks than chance, in both spaces", learning_is_better, False),
    ],
    code=("archipel.spaces.shape_types", "archipel.spaces.type_check"),
)
