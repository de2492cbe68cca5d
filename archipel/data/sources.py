"""The named data sets: what they are, where they come from, under which licence, and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from archipel.data import generators
from archipel.data.audio import read_audio_folder
from archipel.data.cifar import read_cifar
from archipel.data.find import Published
from archipel.data.graph import read_planetoid
from archipel.data.idx import read_idx_folder
from archipel.data.published import CIFAR10, FASHION_MNIST, FSDD, MNIST, SHAKESPEARE, planetoid
from archipel.data.raw import Raw
from archipel.data.text import read_stdlib_text, read_text

FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


@dataclass(frozen=True)
class Source:
    """A named data set.

    Args:
        what: in one line.
        read: gives :class:`Raw` (or a graph) from its options; of a published set, from its files and options.
        shape: of one input.
        sizes: of the splits, as loaded by default; ``"train+val"`` are divided by the seed.
        licence, citation: of the data.
        published: its files, if it is not made or embedded.
        extra: the optional dependency that it needs.
    """

    name: str
    what: str
    read: Callable[..., Any]
    task: str
    shape: tuple[int, ...]
    sizes: dict[str, int]
    licence: str
    citation: str
    published: Published | None = None
    extra: str | None = None

    @property
    def is_graph(self) -> bool:
        return self.task == "node-classification"


def _mnist(paths: list[Path], normalise: bool = True) -> Raw:
    return read_idx_folder(paths[0].parent, normalise)


def _fashion(paths: list[Path], normalise: bool = True) -> Raw:
    raw = read_idx_folder(paths[0].parent, normalise)
    if raw.classes == len(FASHION):
        raw.info["class_names"] = FASHION
    return raw


def _cifar(paths: list[Path], normalise: bool = True) -> Raw:
    return read_cifar(paths[0], normalise)


def _spoken_digits(
    paths: list[Path], mels: int = 40, seconds: float = 1.0, layout: str = "image", normalise: bool = True
) -> Raw:
    return read_audio_folder(paths[0], mels=mels, seconds=seconds, layout=layout, normalise=normalise)


def _shakespeare(paths: list[Path], tokens: str = "characters", length: int = 64) -> Raw:
    return read_text(paths[0], tokens, length)


def _planetoid(name: str, paths: list[Path], seed: int = 0, split: str = "public", normalise: bool = False) -> Any:
    return read_planetoid(name, paths, seed, split, normalise)


DIGITS_CITATION = "Alpaydin, Kaynak. Optical Recognition of Handwritten Digits. 1998. https://doi.org/10.24432/C50P49"
PLANETOID_CITATION = (
    "Sen et al. Collective Classification in Network Data. 2008; files of Yang, Cohen, Salakhutdinov. Revisiting "
    "Semi-Supervised Learning with Graph Embeddings. 2016. https://arxiv.org/abs/1603.08861"
)


def _noisy(name: str, what: str) -> Source:
    sizes = {"train": 400, "val": 400, "test": 997}
    read = generators.read_noisy_digits
    return Source(name, what, read, "classification", (1, 8, 8), sizes, "CC BY 4.0", DIGITS_CITATION)


_ALL = [
    Source(
        "digits",
        "handwritten digits, 8 x 8 grey values in [0, 1] (embedded)",
        generators.read_digits,
        "classification",
        (1, 8, 8),
        {"train+val": 1438, "test": 359},
        "CC BY 4.0",
        DIGITS_CITATION,
    ),
    Source(
        "digits-flat",
        "the same as rows of 64 numbers (embedded)",
        generators.read_digits_flat,
        "classification",
        (64,),
        {"train+val": 1438, "test": 359},
        "CC BY 4.0",
        DIGITS_CITATION,
    ),
    _noisy("noisy-digits", "digits under Gaussian noise: options noise, train, val (embedded)"),
    _noisy("micro-nb201", "noisy digits, 400/400/997: the small check of many search methods (embedded)"),
    Source(
        "wine",
        "chemistry of wines of three cultivars (embedded)",
        generators.read_wine,
        "classification",
        (13,),
        {"train+val": 142, "test": 36},
        "CC BY 4.0",
        "Aeberhard, Forina. Wine. 1992. https://doi.org/10.24432/C5PC7J",
    ),
    Source(
        "breast-cancer",
        "cell nuclei, malignant or benign (embedded)",
        generators.read_breast_cancer,
        "classification",
        (30,),
        {"train+val": 455, "test": 114},
        "CC BY 4.0",
        "Wolberg, Mangasarian, Street. Breast Cancer Wisconsin (Diagnostic). 1993. https://doi.org/10.24432/C5DW2B",
    ),
    Source(
        "iris",
        "flowers of three species (embedded)",
        generators.read_iris,
        "classification",
        (4,),
        {"train+val": 120, "test": 30},
        "CC BY 4.0",
        "Fisher. The Use of Multiple Measurements in Taxonomic Problems. 1936. https://doi.org/10.24432/C56C76",
    ),
    Source(
        "diabetes",
        "progression of diabetes, a regression (embedded)",
        generators.read_diabetes,
        "regression",
        (10,),
        {"train+val": 354, "test": 88},
        "not stated",
        "Efron, Hastie, Johnstone, Tibshirani. Least Angle Regression. 2004. https://arxiv.org/abs/math/0406456",
    ),
    Source(
        "moons",
        "two interleaved half circles (generated)",
        generators.read_moons,
        "classification",
        (2,),
        {"train+val": 800, "test": 200},
        "none needed",
        "made here",
    ),
    Source(
        "spirals",
        "interleaved spiral arms (generated)",
        generators.read_spirals,
        "classification",
        (2,),
        {"train+val": 800, "test": 200},
        "none needed",
        "made here",
    ),
    Source(
        "mnist1d",
        "one-dimensional digits (generated by its authors' package)",
        generators.read_mnist1d,
        "classification",
        (1, 40),
        {"train+val": 4000, "test": 1000},
        "Apache-2.0",
        "Greydanus, Kobak. Scaling Down Deep Learning with MNIST-1D. 2020. https://arxiv.org/abs/2011.14439",
        extra="mnist1d",
    ),
    Source(
        "mnist",
        "handwritten digits, 28 x 28",
        _mnist,
        "classification",
        (1, 28, 28),
        {"train+val": 60_000, "test": 10_000},
        "CC BY-SA 3.0",
        "LeCun, Bottou, Bengio, Haffner. Gradient-Based Learning Applied to Document Recognition. 1998. "
        "https://doi.org/10.1109/5.726791",
        MNIST,
    ),
    Source(
        "fashion-mnist",
        "clothes, 28 x 28",
        _fashion,
        "classification",
        (1, 28, 28),
        {"train+val": 60_000, "test": 10_000},
        "MIT",
        "Xiao, Rasul, Vollgraf. Fashion-MNIST. 2017. https://arxiv.org/abs/1708.07747",
        FASHION_MNIST,
    ),
    Source(
        "cifar10",
        "small photographs of ten classes, 3 x 32 x 32",
        _cifar,
        "classification",
        (3, 32, 32),
        {"train+val": 50_000, "test": 10_000},
        "not stated",
        "Krizhevsky. Learning Multiple Layers of Features from Tiny Images. 2009. "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        CIFAR10,
    ),
    Source(
        "spoken-digits",
        "spoken digits of six speakers as log-mel spectrograms",
        _spoken_digits,
        "classification",
        (1, 40, 49),
        {"train+val": 2700, "test": 300},
        "CC BY-SA 4.0",
        "Jackson et al. Free Spoken Digit Dataset v1.0.10. 2020. https://doi.org/10.5281/zenodo.1342401",
        FSDD,
    ),
    Source(
        "cora",
        "citation graph of 2708 papers in 7 classes",
        partial(_planetoid, "cora"),
        "node-classification",
        (1433,),
        {"train": 140, "val": 500, "test": 1000},
        "MIT (files)",
        PLANETOID_CITATION,
        planetoid("cora"),
    ),
    Source(
        "citeseer",
        "citation graph of 3327 papers in 6 classes",
        partial(_planetoid, "citeseer"),
        "node-classification",
        (3703,),
        {"train": 120, "val": 500, "test": 1000},
        "MIT (files)",
        PLANETOID_CITATION,
        planetoid("citeseer"),
    ),
    Source(
        "tiny-shakespeare",
        "a megabyte of Shakespeare as characters or bytes",
        _shakespeare,
        "language",
        (64,),
        {"train": 10_456, "val": 3_486, "test": 3_486},
        "public domain",
        "Karpathy. char-rnn. 2015. https://github.com/karpathy/char-rnn",
        SHAKESPEARE,
    ),
    Source(
        "stdlib-text",
        "sources of Python's standard library as bytes or characters (embedded in every Python)",
        read_stdlib_text,
        "language",
        (64,),
        {},
        "PSF-2.0",
        "Python Software Foundation. The Python Standard Library. https://docs.python.org/3/library/",
    ),
]
SOURCES: dict[str, Source] = {s.name: s for s in _ALL}
