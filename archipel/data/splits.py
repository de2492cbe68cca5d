"""Fixed, seeded splits: stratified by class where there are classes, consecutive blocks where order matters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from archipel.core.errors import DataError, UsageError

# Own streams, so that changing the limit does not change the split it is taken from.
SPLIT_STREAM, LIMIT_STREAM = 1, 2


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """
    Raises:
        UsageError: fractions outside (0, 1), or nothing left to train on.
    """
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise UsageError(f"{name} must lie between 0 and 1, not {value!r}.")
    if val_fraction + test_fraction >= 1:
        raise UsageError(
            f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on; their sum must "
            f"be below 1."
        )


def stratified_counts(sizes: np.ndarray, total: int, leave: int = 0) -> np.ndarray:
    """How many of each class to take so that proportions are kept and the total is met.

    Largest remainders; at least one of each class, and ``leave`` of each class stay for later splits. The total is
    missed only where these bounds make it impossible.

    >>> stratified_counts(np.array([50, 30, 3]), 10).tolist()
    [6, 3, 1]
    """
    quota = sizes * (total / sizes.sum())
    high = np.maximum(sizes - leave, 0)
    low = np.minimum(1, high)
    counts = np.clip(np.floor(quota).astype(np.int64), low, high)
    while counts.sum() != total:
        step = 1 if counts.sum() < total else -1
        free = counts < high if step > 0 else counts > low
        if not free.any():
            break
        counts[np.argmax(np.where(free, step * (quota - counts), -np.inf))] += step
    return counts


def _groups(y: Tensor, stratify: bool) -> list[np.ndarray]:
    labels = y.numpy()
    if not stratify:
        return [np.arange(len(labels))]
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def divide(y: Tensor, counts: list[int], seed: int, stratify: bool) -> list[Tensor]:
    """Disjoint index sets of about these sizes (exactly, unless a class would be missing), then the rest.

    Args:
        y: labels [N]; classes if ``stratify``.
        counts: sizes of the first sets, in order.
        seed: of the choice.

    Returns:
        ``len(counts) + 1`` sorted int64 index tensors that together are 0..N-1.
    """
    rng = np.random.default_rng([SPLIT_STREAM, seed])
    left = [rng.permutation(g) for g in _groups(y, stratify)]
    out = []
    for i, count in enumerate(counts):
        take = stratified_counts(np.array([len(g) for g in left]), count, leave=len(counts) - i)
        out.append(np.concatenate([g[:n] for g, n in zip(left, take, strict=True)]))
        left = [g[n:] for g, n in zip(left, take, strict=True)]
    out.append(np.concatenate(left))
    return [torch.from_numpy(np.sort(i).astype(np.int64)) for i in out]


def blocks(n: int, val: int, test: int) -> list[Tensor]:
    """Consecutive train, validation and test indices, none of them empty."""
    index = torch.arange(n)
    test = min(test, n - 2)
    val = min(val, n - test - 1)
    return list(torch.split(index, [n - val - test, val, test]))


def subsample(index: Tensor, y: Tensor, count: int, seed: int, stratify: bool) -> Tensor:
    """``count`` of the given indices, chosen by the seed, stratified by the labels ``y`` (of all rows)."""
    if count >= len(index):
        return index
    rng = np.random.default_rng([LIMIT_STREAM, seed])
    groups = [rng.permutation(g) for g in _groups(y[index], stratify)]
    take = stratified_counts(np.array([len(g) for g in groups]), count)
    chosen = np.concatenate([g[:n] for g, n in zip(groups, take, strict=True)])
    return index[torch.from_numpy(np.sort(chosen))]


def check_classes(y: Tensor, names: list[str], least: int, where: str) -> None:
    """
    Raises:
        DataError: fewer than two classes, or a class with too few examples to be in every split.
    """
    counts = np.bincount(y.numpy(), minlength=len(names))
    if len(names) < 2:
        raise DataError(
            f"{where}: all {len(y)} examples are of one class ({names[0] if names else 'none'!r}); telling classes "
            f"apart needs at least two."
        )
    small = [(n, c) for n, c in zip(names, counts.tolist(), strict=True) if c < least]
    if small:
        listed = ", ".join(f"{n!r} has {c}" for n, c in small[:5])
        raise DataError(
            f"{where}: every class needs at least {least} examples to appear in each split, but {listed}"
            f"{' …' if len(small) > 5 else ''}. Add examples, merge or remove the class"
            f"{' (or, if the target is a quantity, say task=regression)' if len(small) > 1 else ''}."
        )
