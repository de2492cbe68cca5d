"""Learning curves of small perceptrons on noisy digits, their shape and their training decided together.

What multi-fidelity searches are compared on. A configuration has eight decisions: depth, width, skip connections,
activation, dropout; learning rate, momentum, weight decay (SGD, batches of 64, a cosine to zero over the budget).

    curves = Curves(split=0)
    curves.from_scratch(arch, 9)      trained with a schedule over 9 epochs, as when budgets are separate trainings
    curves.along(27)(arch, 9)         epoch 9 of a training over 27 epochs, as when trials are paused and resumed

Both give ``{"accuracy": …}`` of the validation split, NaN once the loss has diverged, and serve as the ``evaluate`` of
:func:`archipel.search.simulator.simulate`. Trainings are a function of (split, configuration, budget) and are kept,
so all searches see one and the same table of curves, which is filled where they look.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from random import Random

import torch
from torch import Tensor, nn

from archipel.core.decision import Arch, Decision, Real
from archipel.core.space import JointSpace, Space
from archipel.data import load
from archipel.search.joint import training_hyperparameters
from archipel.search.simulator import CurveTable
from archipel.search.training import Diverged, Recipe, evaluate, train

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}
NOISE, TRAIN, VALIDATION = 0.3, 600, 600
SHAPE = ("depth", "width", "skip", "activation", "dropout")
TRAINING = ("lr", "momentum", "weight_decay")


class Skip(nn.Module):
    """``x + inner(x)``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Perceptrons(Space):
    """Depth, common width, skips around every layer but the first, activation and dropout, for 64 inputs.

    >>> net = Perceptrons().build({"depth": 2, "width": 16, "skip": True, "activation": "tanh", "dropout": 0.1})
    >>> sum(p.numel() for p in net.parameters())
    1482
    """

    name = "perceptrons"

    def __init__(self, inputs: int = 64, classes: int = 10) -> None:
        self.inputs, self.classes = inputs, classes
        super().__init__(
            [
                Decision("depth", [1, 2, 3, 4], ordered=True),
                Real("width", 8, 128, log=True, integer=True),
                Decision("skip", [False, True]),
                Decision("activation", tuple(ACTIVATIONS)),
                Real("dropout", 0.0, 0.5),
            ]
        )

    def build(self, arch: Arch, seed: int = 0) -> nn.Module:
        a = self.validate(arch)
        width = a["width"]

        def layer(inputs: int) -> nn.Module:
            return nn.Sequential(nn.Linear(inputs, width), ACTIVATIONS[a["activation"]](), nn.Dropout(a["dropout"]))

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            later = [layer(width) for _ in range(a["depth"] - 1)]
            if a["skip"]:
                later = [Skip(inner) for inner in later]
            return nn.Sequential(nn.Flatten(), layer(self.inputs), *later, nn.Linear(width, self.classes))


def joint_space() -> JointSpace:
    """The eight decisions: the network's five and the training's three."""
    return JointSpace(Perceptrons(), training_hyperparameters(*TRAINING))


class Curves:
    """Trainings on one split of the noisy digits (600 training, 600 validation, 597 test images).

    Args:
        split: seed of the split, of the noise, and of every training.
    """

    def __init__(self, split: int = 0) -> None:
        self.space, self.split = joint_space(), split
        self.data = load("noisy-digits", seed=split, noise=NOISE, train=TRAIN, val=VALIDATION, noise_seed=split)
        self._kept: dict[tuple[str, int], tuple[float, ...]] = {}

    def recipe(self, arch: Arch, epochs: int) -> Recipe:
        plain = Recipe(epochs=epochs, batch_size=64, optimizer="sgd", clip=0.0)
        return plain.with_hyper(self.space.hyper(arch))

    def curve(self, arch: Arch, epochs: int) -> tuple[float, ...]:
        """Validation accuracy after each epoch of one training; NaN from the epoch on in which the loss diverged."""
        key = (self.space.canonical(arch), epochs)
        if key not in self._kept:
            self._kept[key] = self._train(arch, epochs)[1]
        return self._kept[key]

    def _train(self, arch: Arch, epochs: int) -> tuple[nn.Module, tuple[float, ...]]:
        torch.set_num_threads(1)
        net, recipe, optimizer = self.space.build(arch, seed=self.split), self.recipe(arch, epochs), None
        accuracy: list[float] = []
        try:
            for epoch in range(epochs):
                optimizer = train(
                    net, self.data.train, "classification", recipe, self.split, epoch, epoch + 1, optimizer
                )
                accuracy.append(evaluate(net, self.data.val, "classification")["accuracy"])
        except Diverged:
            accuracy += [math.nan] * (epochs - len(accuracy))
        return net, tuple(accuracy)

    def from_scratch(self, arch: Arch, epochs: int) -> dict[str, float]:
        """Validation accuracy of a training with a schedule over just so many epochs."""
        return {"accuracy": self.curve(arch, epochs)[-1]}

    def along(self, epochs: int) -> Callable[[Arch, int], dict[str, float]]:
        """(configuration, r) -> validation accuracy at epoch r of a training over ``epochs``."""
        return lambda arch, r: {"accuracy": self.curve(arch, epochs)[r - 1]}

    def test_accuracy(self, arch: Arch, epochs: int, purpose: str) -> float:
        """Of the configuration that a search has settled on; opens the test split."""
        net, _ = self._train(arch, epochs)
        return evaluate(net, self.data.open_test(purpose), "classification")["accuracy"]

    def sample(self, n: int, seed: int) -> list[Arch]:
        """Random configurations."""
        rng = Random(seed)
        return [self.space.sample(rng) for _ in range(n)]

    def table(self, n: int, epochs: int, seed: int) -> CurveTable:
        """Curves of random configurations, for searches that are limited to the rows of a table."""
        rows = {self.space.canonical(a): {"accuracy": self.curve(a, epochs)} for a in self.sample(n, seed)}
        return CurveTable(self.space, rows)


@lru_cache(maxsize=16)
def curves(split: int) -> Curves:
    """The curves of a split, shared by all arms of a claim."""
    return Curves(split)
