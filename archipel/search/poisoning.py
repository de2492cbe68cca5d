"""Poisoning a search space: does a search notice operations that do a network no good?

Wu, Saxena, Jain. Poisoning the Search Space in Neural Architecture Search. 2021. https://arxiv.org/abs/2106.14406

    space        base operations, and poisonous ones under m names each       :mod:`archipel.spaces.poison`
    measured     test accuracy of the search's answer, with the weights it inherits; share of its layers that are
                 poisonous; the policy's probability of a clean layer
    chance       P(all L layers clean) = (n / (n + m·q))^L   for n base and q poisonous operations and a uniform policy

Many names raise the chance that an operation is sampled, and with it the part it has in training the shared weights.
Noise and dropout are the identity in evaluation: the controller that rewards there cannot see them.

Defences: rewards in training mode (``enas-train``), one option for all that compute the same (:func:`duplicates`), and
the removal test of perturbation-based selection (``darts-pt``). Fills the `evaluator` slot, around any search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archipel.core.choice import Choice
from archipel.core.decision import Arch
from archipel.core.errors import UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.core.supernet import Supernet
from archipel.data.dataset import Dataset
from archipel.nets.batch_norm import batch_statistics
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.schedule import Schedule
from archipel.search.oneshot.enas import ENAS
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.macro import MacroSpace, enas_operations
from archipel.spaces.poison import poisoned

SEARCHERS = ("enas", "enas-train", "random", "darts", "darts-pt")


def clean_probability(base: int, poisons: int, instances: int, layers: int) -> float:
    """How probably a uniform policy draws a network without poison.

    >>> [f"{clean_probability(6, 1, m, 12):.3g}" for m in (6, 36, 120, 300)]
    ['0.000244', '7.22e-11', '1.36e-16', '3.23e-21']
    """
    return (base / (base + poisons * instances)) ** layers


@dataclass(frozen=True)
class Setting:
    """One space, one search.

    Args:
        poisons: which; empty for the clean space.
        instances: names for each poisonous operation.
        searcher: one of :data:`SEARCHERS`.

    Raises:
        UsageError: an unknown searcher, or a differentiable one where nothing is discrete to sample.
    """

    poisons: tuple[str, ...] = ()
    instances: int = 1
    searcher: str = "enas"

    def __post_init__(self) -> None:
        if self.searcher not in SEARCHERS:
            raise UsageError(f"No searcher {self.searcher!r} to be probed. {suggest(self.searcher, SEARCHERS)}")
        if self.instances < 0:
            raise UsageError(f"A space cannot have {self.instances} instances of a poison; give 0 or more.")

    @property
    def name(self) -> str:
        where = f"{'+'.join(self.poisons)} x{self.instances}" if self.poisons and self.instances else "clean"
        return f"{where}, {self.searcher}"


@dataclass(frozen=True)
class Scale:
    """How large networks and searches are."""

    C: int = 8
    layers: int = 4
    epochs: int = 25
    updates: int = 20
    children: int = 5
    batch_size: int = 20


@register(
    "search-space-poisoning",
    card=130,
    family="search.evaluation",
    slots=["evaluator"],
    paper=Paper("Poisoning the Search Space in Neural Architecture Search", 2021, "https://arxiv.org/abs/2106.14406"),
)
def probe_poisoning(
    dataset: Dataset,
    settings: Sequence[Setting],
    seeds: int = 3,
    scale: Scale | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, list[dict[str, float]]]:
    """Search poisoned spaces and see what comes out.

    Args:
        dataset: images with classes; its test split is opened once for each answer.
        settings: spaces and searches; put a clean space and the random search among them.

    Returns:
        setting's name -> for each seed ``test`` (accuracy of the answer, by inherited weights), ``bad`` (share of its
        layers that are poisonous), ``sampled bad`` (the same in what the policy samples) and ``by chance`` (in uniform
        samples).

    Raises:
        UsageError: no setting.
    """
    if not settings:
        raise UsageError("Nothing to probe: give at least one setting.")
    out: dict[str, list[dict[str, float]]] = {}
    for setting in settings:
        out[setting.name] = []
        for seed in range(seeds):
            out[setting.name].append(probe_once(dataset, setting, seed, scale or Scale()))
            found = out[setting.name][-1]
            report(f"{setting.name}, seed {seed}: test {found['test']:.4f}, {found['bad']:.0%} of the layers bad")
    return out


def probe_once(dataset: Dataset, setting: Setting, seed: int, scale: Scale) -> dict[str, float]:
    """One search in one space; see :func:`probe_poisoning`."""
    base = enas_operations()
    ops, instances = poisoned(base, setting.poisons, setting.instances)
    skips = setting.searcher not in ("darts", "darts-pt")  # a mixture of skip and no skip has nothing to remove
    space = MacroSpace(dataset.input_shape, dataset.classes, ops, instances, scale.C, scale.layers, skips)
    strategy = _strategy(setting.searcher, scale)
    strategy.setup(Problem(space, rng=Random(seed)))
    strategy.prepare(Context(dataset.without_test(), Recipe(), seed=seed))
    trial = strategy.ask()
    assert trial is not None
    test = dataset.open_test("poisoning")
    if isinstance(strategy, ENAS):
        accuracy = strategy.score(trial.arch, test, "eval")
        sampled = strategy.controller.sample(200, torch.Generator().manual_seed(seed))
    else:
        assert strategy.state is not None
        accuracy = strategy.state.metrics(test, arch=trial.arch)["accuracy"]
        sampled = [trial.arch]
    chance = 1.0 - clean_probability(len(base), len(instances), setting.instances, 1) if instances else 0.0
    bad = [bad_share(a, base) for a in sampled]
    return {
        "test": accuracy,
        "bad": bad_share(trial.arch, base),
        "sampled bad": float(np.mean(bad)),
        "by chance": chance,
        "policy entropy": strategy.log[-1].get("entropy", 0.0),
    }


def _strategy(searcher: str, scale: Scale) -> ENAS | DifferentiableSearch:
    if searcher in ("enas", "enas-train", "random"):
        mode = "train" if searcher == "enas-train" else "eval"
        return ENAS(
            scale.epochs, scale.batch_size, updates=scale.updates, children=scale.children, controller_lr=5e-3,
            reward=mode, learn=searcher != "random", candidates=1 if searcher == "random" else 10,
        )  # fmt: skip
    schedule = Schedule(epochs=scale.epochs, batch_size=scale.batch_size, alpha_lr=9e-3)
    return DifferentiableSearch(schedule=schedule, select="argmax" if searcher == "darts" else "perturbation")


def bad_share(arch: Arch, base: Mapping[str, Any]) -> float:
    """The share of an architecture's layers whose operation is none of ``base``."""
    picked = [MacroSpace.operation(v) for name, v in arch.items() if name.endswith(".op")]
    return sum(op not in base for op in picked) / len(picked)


@torch.no_grad()
def duplicates(supernet: Supernet, x: Tensor, tolerance: float = 0.0) -> dict[str, list[list[str]]]:
    """Options that compute the same: of each choice, its groups with more than one option.

    The same module under several names is found as such; other options by what they give for the inputs ``x`` of the
    network, in evaluation mode with batch statistics. A search may keep one option of each group.

    >>> space = MacroSpace((1, 4, 4), 2, {"a": lambda C, s: nn.Identity(), "b": lambda C, s: nn.ReLU()}, {"b": 2},
    ...                    layers=1)
    >>> duplicates(space.supernet(0), torch.randn(2, 1, 4, 4))
    {'l1.op': [['b#0', 'b#1']]}
    """
    seen: dict[int, Tensor] = {}
    handles = [
        m.register_forward_pre_hook(lambda m, args: seen.__setitem__(id(m), args[0])) for m in _choices(supernet)
    ]
    try:
        with batch_statistics(supernet):
            supernet.activate(supernet.space.sample(Random(0)))(x)
            groups = {c.decision.name: _groups(c, seen[id(c)], tolerance) for c in _choices(supernet) if id(c) in seen}
    finally:
        for handle in handles:
            handle.remove()
    return {name: found for name, found in groups.items() if found}


def _choices(net: nn.Module) -> list[Choice]:
    return [m for m in net.modules() if isinstance(m, Choice)]


def _groups(choice: Choice, x: Tensor, tolerance: float) -> list[list[str]]:
    groups: list[tuple[nn.Module, Tensor, list[str]]] = []
    for label, module in choice.options.items():
        y = module(x)
        for known, output, labels in groups:
            if known is module or (output.shape == y.shape and float((output - y).abs().max()) <= tolerance):
                labels.append(label)
                break
        else:
            groups.append((module, y, [label]))
    return [labels for _, _, labels in groups if len(labels) > 1]
