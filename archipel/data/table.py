"""CSV and Parquet tables with numeric and categorical columns.

Numeric columns are standardised, categorical ones become one-hot columns. Both are fitted on the training rows alone:
a category that these do not contain, like an empty cell, is all zeros.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.core.errors import DataError, UsageError, suggest
from archipel.data.raw import Raw, Transform, class_ids
from archipel.data.table_files import is_number, read_csv, read_parquet

MISSING_WORDS = {"", "na", "n/a", "nan", "null"}
MISSING_NUMBERS = MISSING_WORDS | {"none", "?", "-"}  # as words these may well be categories
MAX_CLASS_NUMBERS = 20  # a target of at most so many whole numbers is taken for classes


@dataclass(frozen=True)
class Column:
    """One column: ``numbers`` [N] (NaN where missing) or ``words`` [N] ("" where missing)."""

    name: str
    numbers: np.ndarray | None = None
    words: np.ndarray | None = None

    def take(self, index: np.ndarray) -> Column:
        if self.numbers is not None:
            return Column(self.name, numbers=self.numbers[index])
        assert self.words is not None
        return Column(self.name, words=self.words[index])

    def __len__(self) -> int:
        return len(self.numbers if self.numbers is not None else self.words)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rows:
    """Rows of a table; indexing takes some of them."""

    columns: tuple[Column, ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: Tensor) -> Rows:
        return Rows(tuple(c.take(index.numpy()) for c in self.columns))


def read_table(
    path: Path,
    target: str | None = None,
    task: str | None = None,
    drop: tuple[str, ...] = (),
    categorical: tuple[str, ...] = (),
    delimiter: str | None = None,
    missing: str = "error",
    max_categories: int = 100,
    normalise: bool = True,
) -> Raw:
    """A table [N, F] and its target column.

    Args:
        path: CSV (with a header line) or Parquet file.
        target: the column to predict; the last by default.
        task: ``"classification"`` or ``"regression"``; by default words, and at most 20 different whole numbers, are
            classes, other numbers are not.
        drop: columns to leave out, such as row numbers and names.
        categorical: numeric columns that are to be read as categories.
        delimiter: of CSV columns; found in the header line by default.
        missing: what to do about missing numbers: ``"error"``, or ``"mean"`` puts the training mean there.
        max_categories: refuse columns with more different words than this, which are rarely meant as categories.
        normalise: standardise numeric columns (and a numeric target) by training statistics.

    Raises:
        DataError: malformed file; names line or row and column.
        UsageError: unknown columns or options.
    """
    if task not in (None, "classification", "regression"):
        raise UsageError(f"task must be 'classification' or 'regression', not {task!r}.")
    if missing not in ("error", "mean"):
        raise UsageError(f"missing must be 'error' or 'mean', not {missing!r}.")
    parquet = path.suffix.lower() in (".parquet", ".pq")
    places, cells = read_parquet(path) if parquet else read_csv(path, delimiter)
    target = list(cells)[-1] if target is None else target
    for option, names in (("target", (target,)), ("drop", drop), ("categorical", categorical)):
        for n in names:
            if n not in cells:
                raise UsageError(f"{path}: {option}: there is no column {n!r}. {suggest(n, cells)}")
    used = [n for n in cells if n not in drop and n != target]
    if target in drop or not used:
        raise UsageError(f"{path}: with target {target!r} and drop={list(drop)} no inputs and target are left.")
    columns = tuple(_column(n, cells[n], n in categorical, places, path) for n in used)
    for c in columns:
        _check_column(c, missing, max_categories, places, path)
    y_column = _column(target, cells[target], target in categorical, places, path)
    y, names = _target(y_column, task, places, path)
    info: dict[str, Any] = {"target": target, "columns": used}
    if names:
        info["class_names"] = names
    return Raw(
        {"pool": (Rows(columns), y)},
        "classification" if names else "regression",
        len(names) if names else 1,
        str(path),
        fit=lambda x, y: fit_rows(x, y, normalise, str(path)),
        files=[path],
        info=info,
    )


def _column(name: str, cells: Any, categorical: bool, places: list[str], path: Path) -> Column:
    """Numbers, if most cells that are not missing are such; else words.

    Raises:
        DataError: a word among numbers, or an infinite number.
    """
    if isinstance(cells, np.ndarray):
        if categorical:
            cells = ["" if np.isnan(v) else f"{v:.12g}" for v in cells]
        else:
            return Column(name, numbers=_finite(name, cells, places, path))
    gone = np.array([c.lower() in MISSING_NUMBERS for c in cells])
    present = [c for c, g in zip(cells, gone, strict=True) if not g]
    if not categorical and present:
        try:
            numbers = np.full(len(cells), np.nan)
            numbers[~gone] = np.array(list(map(float, present)))
            return Column(name, numbers=_finite(name, numbers, places, path))
        except ValueError:
            numeric = sum(map(is_number, present))
            if 2 * numeric > len(present):
                i = next(i for i, c in enumerate(cells) if not gone[i] and not is_number(c))
                raise DataError(
                    f"{path}: {places[i]}, column {name!r}: {cells[i]!r} is not a number, but {numeric} of "
                    f"{len(present)} cells of that column are. Repair it, or say categorical={name}."
                ) from None
    return Column(name, words=np.array(["" if c.lower() in MISSING_WORDS else c for c in cells], dtype=object))


def _finite(name: str, numbers: np.ndarray, places: list[str], path: Path) -> np.ndarray:
    huge = np.flatnonzero(np.isinf(numbers) | (np.abs(numbers) > np.finfo(np.float32).max))
    if len(huge):
        raise DataError(
            f"{path}: {places[huge[0]]}, column {name!r}: {numbers[huge[0]]} is infinite or beyond the range of a "
            f"32-bit number; repair or remove the row."
        )
    return numbers


def _check_column(column: Column, missing: str, max_categories: int, places: list[str], path: Path) -> None:
    """
    Raises:
        DataError: missing numbers (unless asked to fill them in), nothing but missing cells, too many categories.
    """
    if column.numbers is None:
        assert column.words is not None
        different = set(column.words) - {""}
        if not different:
            raise DataError(f"{path}: column {column.name!r} is empty; say drop={column.name}.")
        if len(different) > max_categories:
            raise DataError(
                f"{path}: column {column.name!r} has {len(different)} different words (such as "
                f"{min(different)!r}); if it only names the rows, say drop={column.name}; else raise max_categories."
            )
        return
    gone = np.flatnonzero(np.isnan(column.numbers))
    if len(gone) == len(column.numbers):
        raise DataError(f"{path}: column {column.name!r} is empty; say drop={column.name}.")
    if len(gone) and missing == "error":
        raise DataError(
            f"{path}: {places[gone[0]]}, column {column.name!r}: the number is missing or NaN ({len(gone)} such in "
            f"this column). Fill it in, remove the row, or say missing=mean."
        )


def _target(column: Column, task: str | None, places: list[str], path: Path) -> tuple[Tensor, list[str] | None]:
    """Class ids [N] and names, or values [N, 1] and None."""
    numbers, words = column.numbers, column.words
    gone = np.flatnonzero(np.isnan(numbers)) if numbers is not None else np.flatnonzero(words == "")
    if len(gone):
        raise DataError(f"{path}: {places[gone[0]]}: the target {column.name!r} is missing or NaN; remove the row.")
    if numbers is None:
        if task == "regression":
            assert words is not None
            raise DataError(f"{path}: {places[0]}: target {column.name!r} is {words[0]!r}; regression needs numbers.")
        return class_ids(np.asarray(words, dtype=str), str(path))
    whole = bool((numbers == np.round(numbers)).all())
    if task is None:
        task = "classification" if whole and len(np.unique(numbers)) <= MAX_CLASS_NUMBERS else "regression"
    if task == "regression":
        return torch.from_numpy(numbers.astype(np.float32))[:, None], None
    return class_ids(numbers.astype(np.int64) if whole else numbers, str(path))


def _moments(values: np.ndarray) -> tuple[float, float]:
    mean, std = float(np.nanmean(values)), float(np.nanstd(values))
    return mean, std if std > 1e-12 * max(1.0, abs(mean)) else 1.0


def fit_rows(x: Rows, y: Tensor, normalise: bool, where: str) -> tuple[Transform, dict[str, Any]]:
    """Moments of the numeric columns and the categories of the others, from training rows."""
    moments: dict[str, tuple[float, float]] = {}
    categories: dict[str, list[str]] = {}
    for c in x.columns:
        if c.words is not None:
            categories[c.name] = sorted(set(c.words) - {""})
            continue
        assert c.numbers is not None
        if np.isnan(c.numbers).all():
            raise DataError(f"{where}: column {c.name!r} has no number in the training rows; say drop={c.name}.")
        moments[c.name] = _moments(c.numbers)
    y_moments = _moments(y.numpy().astype(np.float64)) if normalise and y.dtype == torch.float32 else None

    def one(c: Column) -> np.ndarray:
        if c.words is not None:
            return c.words[:, None] == np.array(categories[c.name], dtype=object)[None]
        mean, std = moments[c.name]
        filled = np.where(np.isnan(c.numbers), mean, c.numbers)  # type: ignore[arg-type]
        return ((filled - mean) / std if normalise else filled)[:, None]

    def transform(x: Rows, y: Tensor) -> tuple[Tensor, Tensor]:
        table = np.concatenate([one(c) for c in x.columns], axis=1, dtype=np.float32, casting="unsafe")
        return torch.from_numpy(table), (y - y_moments[0]) / y_moments[1] if y_moments else y

    info: dict[str, Any] = {
        "normalisation": {
            "mean": {n: m for n, (m, _) in moments.items()},
            "std": {n: s for n, (_, s) in moments.items()} if normalise else None,
            "fitted_on": "train",
        },
        "categories": categories,
        "features": [f for c in x.columns for f in ([c.name] if c.name in moments else _one_hot_names(c, categories))],
    }
    if y_moments:
        info["target_scale"] = {"mean": y_moments[0], "std": y_moments[1]}
    return transform, info


def _one_hot_names(column: Column, categories: dict[str, list[str]]) -> list[str]:
    return [f"{column.name}={re.sub(r'[^ -~]', '?', value)}" for value in categories[column.name]]
