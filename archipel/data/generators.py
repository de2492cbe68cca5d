"""Small data sets that need no file: scikit-learn's own, noisy digits, moons, spirals and MNIST-1D."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from archipel.core.errors import UsageError, require
from archipel.data.raw import Raw, scaled

DIGITS = [str(d) for d in range(10)]


def _check(**limits: tuple[float, float, float]) -> None:
    """
    Raises:
        UsageError: an option outside its range; each is given as (value, low, high).
    """
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise UsageError(f"{name} must be {low} to {high}, not {value}.")


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The 1797 images [N, 8, 8] with grey values 0 to 16 and their classes.

    Read from scikit-learn's own file, because importing ``sklearn.datasets`` takes over a second.
    """
    found = importlib.util.find_spec("sklearn")
    file = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if file is not None and file.exists():
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8).astype(np.float32), y


def read_digits(normalise: bool = False) -> Raw:
    """Handwritten digits [N, 1, 8, 8] in [0, 1]."""
    images, y = _digits()
    return _classes(torch.from_numpy(images)[:, None], y, DIGITS, "digits", scaled(1 / 16, normalise))


def read_digits_flat(normalise: bool = False) -> Raw:
    """Handwritten digits as rows [N, 64] in [0, 1]."""
    images, y = _digits()
    return _classes(torch.from_numpy(images).flatten(1), y, DIGITS, "digits", scaled(1 / 16, normalise))


def read_noisy_digits(
    noise: float = 0.35, train: int = 400, val: int = 400, noise_seed: int = 0, normalise: bool = False
) -> Raw:
    """Digits/16 + noise·N(0, 1), with fixed sizes of the training and validation split; the rest (997) is the test.

    Args:
        noise: standard deviation.
        train, val: numbers of examples.
        noise_seed: of the noise, which is the same whatever the seed of the split.

    Raises:
        UsageError: options out of range.
    """
    images, y = _digits()
    _check(noise=(noise, 0, 100), train=(train, 10, 1700), val=(val, 10, 1700), noise_seed=(noise_seed, 0, 2**32))
    if train + val > len(y) - 10:
        raise UsageError(f"train {train} + val {val} leave fewer than 10 of the {len(y)} examples for the test split.")
    noisy = images / 16 + noise * np.random.default_rng(noise_seed).standard_normal(images.shape)
    raw = _classes(torch.from_numpy(noisy.astype(np.float32))[:, None], y, DIGITS, "noisy digits", scaled(1, normalise))
    raw.counts = (train, val)
    raw.info["noise"] = {"std": noise, "seed": noise_seed}
    return raw


def _sklearn_table(name: str, normalise: bool) -> Raw:
    """One of scikit-learn's tables, through its public function."""
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name.replace('-', '_')}")()
    x = torch.from_numpy(np.asarray(bunch.data, np.float32))
    raw = _classes(x, bunch.target, [str(n) for n in bunch.target_names], name, scaled(1, normalise))
    raw.info["columns"] = [str(n) for n in bunch.feature_names]
    return raw


def read_wine(normalise: bool = True) -> Raw:
    """Wines [178, 13] of three cultivars."""
    return _sklearn_table("wine", normalise)


def read_breast_cancer(normalise: bool = True) -> Raw:
    """Cell nuclei [569, 30], malignant or benign."""
    return _sklearn_table("breast-cancer", normalise)


def read_iris(normalise: bool = True) -> Raw:
    """Iris flowers [150, 4] of three species."""
    return _sklearn_table("iris", normalise)


def read_diabetes(normalise: bool = True) -> Raw:
    """Patients [442, 10]; the target is the progression of the disease after a year (regression).

    With ``normalise`` the target is standardised too; ``info["target_scale"]`` leads back to its own unit.
    """
    from sklearn.datasets import load_diabetes

    from archipel.data.table import Column, Rows, fit_rows

    bunch: Any = load_diabetes(scaled=False)
    columns = tuple(Column(n, numbers=np.asarray(bunch.data[:, i], float)) for i, n in enumerate(bunch.feature_names))
    y = torch.from_numpy(np.asarray(bunch.target, np.float32))[:, None]
    return Raw(
        {"pool": (Rows(columns), y)},
        "regression",
        1,
        "diabetes",
        fit=lambda x, y: fit_rows(x, y, normalise, "diabetes"),
        info={"columns": list(bunch.feature_names), "target": "progression"},
    )


def read_moons(n: int = 1000, noise: float = 0.2, noise_seed: int = 0, normalise: bool = False) -> Raw:
    """Two interleaved half circles [n, 2].

    Raises:
        UsageError: options out of range.
    """
    _check(n=(n, 6, 10_000_000), noise=(noise, 0, 100), noise_seed=(noise_seed, 0, 2**32))
    rng = np.random.default_rng(noise_seed)
    y = np.arange(n) % 2
    t = np.pi * rng.random(n)
    upper = np.stack([np.cos(t), np.sin(t)], 1)
    x = np.where(y[:, None] == 0, upper, np.array([1, 0.5]) - upper) + noise * rng.standard_normal((n, 2))
    return _classes(torch.from_numpy(x.astype(np.float32)), y, ["upper", "lower"], "moons", scaled(1, normalise))


def read_spirals(
    n: int = 1000,
    classes: int = 3,
    turns: float = 0.75,
    noise: float = 0.05,
    noise_seed: int = 0,
    normalise: bool = False,
) -> Raw:
    """Interleaved spiral arms [n, 2], one a class: radius r in (0.05, 1], angle 2π(turns·r + class/classes).

    Raises:
        UsageError: options out of range.
    """
    _check(
        n=(n, 6, 10_000_000),
        classes=(classes, 2, max(2, n // 3)),
        turns=(turns, 0, 100),
        noise=(noise, 0, 100),
        noise_seed=(noise_seed, 0, 2**32),
    )
    rng = np.random.default_rng(noise_seed)
    y = np.arange(n) % classes
    r = 0.05 + 0.95 * rng.random(n)
    angle = 2 * np.pi * (turns * r + y / classes)
    x = r[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + noise * rng.standard_normal((n, 2))
    names = [f"arm {i}" for i in range(classes)]
    return _classes(torch.from_numpy(x.astype(np.float32)), y, names, "spirals", scaled(1, normalise))


def read_mnist1d(n: int = 5000, normalise: bool = False) -> Raw:
    """MNIST-1D signals [N, 1, 40], made by its authors' generator with their default settings; a fifth is the test.

    Raises:
        MissingExtraError: the package mnist1d is not installed.
        UsageError: ``n`` out of range.
    """
    _check(n=(n, 50, 1_000_000))
    module = require("mnist1d.data", "mnist1d")
    args = module.get_dataset_args()
    args.num_samples = n
    before = random.getstate(), np.random.get_state()
    try:  # the generator seeds the global streams; whoever uses those must not notice
        made = module.make_dataset(args)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
    x, x_test = (torch.from_numpy(made[k].astype(np.float32))[:, None] for k in ("x", "x_test"))
    raw = _classes(x, made["y"], DIGITS, "mnist1d", scaled(1, normalise))
    raw.parts["test"] = (x_test, torch.from_numpy(made["y_test"].astype(np.int64)))
    raw.info["generator"] = {"num_samples": n, "seed": args.seed}
    return raw


def _classes(x: torch.Tensor, y: np.ndarray, names: list[str], where: str, fit: Any) -> Raw:
    labels = torch.from_numpy(np.asarray(y, np.int64))
    return Raw({"pool": (x, labels)}, "classification", len(names), where, fit=fit, info={"class_names": names})
