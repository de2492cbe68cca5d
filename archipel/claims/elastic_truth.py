"""What claims share that are checked on small perceptrons for noisy digits: data, two spaces, stand-alone truth.

Data are scikit-learn's digits divided by 16 plus 0.25 N(0, 1): 1000 training, 400 validation and 397 test images, split
once. The two spaces are perceptrons of three hidden layers with batch norm:

    widths  each layer 4, 8, 16 or 64 wide, weights shared by slicing: 64 networks that differ a lot
    ops     each layer one of three blocks of width 16 with weights of their own, which differ in the activation only:
            27 networks that are nearly equal, so that noise decides their order

The truth is the *test* accuracy of every network of a space, trained alone for 250 steps under two seeds, so supernets,
which are scored on the validation split, are never ranked against what they or a tuning have seen. It is computed once
a process. Accuracies of training seeds disagree, and how much is the noise ceiling of a ranking.
"""

from __future__ import annotations

from functools import cache, partial
from random import Random

from torch import nn

from archipel.core.choice import Choice
from archipel.data.dataset import Dataset
from archipel.data.load import load
from archipel.search.oneshot.stand_alone import Truth, stand_alone_truth
from archipel.search.training import Recipe
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.sharing import Sharing, elastic_mlp_space

WIDTHS, OPS = "widths", "ops"
BATCH = 40  # 25 steps an epoch
ALONE = Recipe(epochs=10, batch_size=BATCH, optimizer="sgd", lr=0.1, weight_decay=4e-5)
SUPERNET_EPOCHS = 60
ALONE_SEEDS, RANDOM_ARCHS = 2, 20
LEARNING_RATES = (0.03, 0.1, 0.3)


@cache
def digits() -> Dataset:
    """All three splits; pass ``.without_test()`` to whatever searches."""
    return load("noisy-digits?noise=0.25&train=1000")


def widths_host(sharing: Sharing) -> ModuleSpace:
    """Perceptrons of decided widths; they share weights as ``sharing`` says."""
    return elastic_mlp_space(digits().input_shape, digits().classes, sharing=sharing)


class _Block(nn.Sequential):
    """Linear map, batch norm, activation; ``[B, F] -> [B, O]``."""

    def __init__(self, features: int, outputs: int, activation: type[nn.Module]) -> None:
        super().__init__(nn.Linear(features, outputs), nn.BatchNorm1d(outputs), activation())


def _block_net(features: int, classes: int, width: int = 16, hidden: int = 3) -> nn.Module:
    kinds: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(hidden):
        layers.append(Choice(f"op{i}", {name: _Block(features, width, kind) for name, kind in kinds.items()}))
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


@cache
def space(name: str) -> ModuleSpace:
    """One of the two spaces, by name."""
    if name == WIDTHS:
        return widths_host(Sharing())
    factory = partial(_block_net, digits().example(1).numel(), digits().classes)
    return ModuleSpace(factory, digits().example(), name="near-equal blocks")


@cache
def full_truth(name: str) -> Truth:
    """Test accuracies of all networks of a space, each trained alone."""
    data = digits()
    judged = Dataset(data.name, data.train, data.open_test("claim: stand-alone truth"), None, data.task, data.classes)
    return stand_alone_truth(space(name), list(space(name).enumerate()), judged, ALONE, ALONE_SEEDS)


def sampled_truth(name: str, seed: int) -> Truth:
    """The truth of random architectures of a space, drawn without replacement."""
    everyone = full_truth(name)
    return everyone.take(
        sorted(Random(f"architectures under seed {seed}").sample(range(len(everyone.archs)), RANDOM_ARCHS))
    )
