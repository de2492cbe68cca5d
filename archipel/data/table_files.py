"""The cells of CSV and Parquet files, column by column, and where each row stands in the file."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from archipel.core.errors import DataError, UsageError, require

DELIMITERS = ",;\t|"


def is_number(cell: str) -> bool:
    """Whether a cell reads as a number (NaN and infinity do, too)."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_csv(path: Path, delimiter: str | None = None) -> tuple[list[str], dict[str, list[str]]]:
    """Where each row stands ("line 7"), and column name -> cells, stripped.

    Raises:
        DataError: empty, ragged (names the line), not UTF-8, no header, or a column name twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8 ({error.reason}); convert the file.") from error
    header_line = next((line for line in io.StringIO(text) if line.strip()), None)
    if header_line is None:
        raise DataError(f"{path}: the file is empty.")
    if delimiter is None:
        delimiter = max(DELIMITERS, key=header_line.count)
    elif len(delimiter) != 1 or delimiter in '"\r\n ':
        raise UsageError(f"delimiter must be one character such as ',' or ';', not {delimiter!r}.")
    rows: list[list[str]] = []
    places: list[str] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if row and not (len(row) == 1 and not row[0].strip()):
                rows.append(row)
                places.append(f"line {reader.line_num}")
                if len(row) != len(rows[0]):
                    raise DataError(
                        f"{path}: line {reader.line_num} has {len(row)} cells, but the header has {len(rows[0])} "
                        f"(separated by {delimiter!r}). Repair the line, or give delimiter=."
                    )
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: {error}.") from error
    header = [h.strip() for h in rows[0]]
    _check_header(header, path)
    if len(rows) == 1:
        raise DataError(f"{path}: only a header line, no rows.")
    columns = {h: [c.strip() for c in column] for h, column in zip(header, zip(*rows[1:], strict=True), strict=True)}
    return places[1:], columns


def _check_header(header: list[str], path: Path) -> None:
    if all(is_number(h) for h in header):
        raise DataError(
            f"{path}: line 1 holds only numbers ({', '.join(header[:5])} …); a header line must come first."
        )
    if "" in header:
        raise DataError(f"{path}: line 1: column {header.index('') + 1} has no name.")
    twice = [n for n, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{path}: line 1: two columns are called {twice[0]!r}; rename one.")
    if len(header) < 2:
        raise DataError(f"{path}: only one column, {header[0]!r}; inputs and a target are needed. Is delimiter= right?")


def read_parquet(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Where each row stands ("row 7", from 1), and column name -> float64 [N] or strings.

    Raises:
        DataError: not a Parquet file, empty, or a column that is neither numbers nor words.
        MissingExtraError: pyarrow is not installed.
    """
    pa = require("pyarrow", "parquet")
    pq = require("pyarrow.parquet", "parquet")
    try:
        table = pq.read_table(path)
        if len(set(table.column_names)) < len(table.column_names):
            raise DataError(f"{path}: two columns have the same name.")
        columns = {n: _arrow_column(pa, table.column(n), n, path) for n in table.column_names}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error}).") from error
    if table.num_rows == 0 or len(columns) < 2:
        raise DataError(f"{path}: {table.num_rows} rows of {len(columns)} columns; inputs and a target are needed.")
    return [f"row {i + 1}" for i in range(table.num_rows)], columns


def _arrow_column(pa: Any, column: Any, name: str, path: Path) -> Any:
    t = pa.types
    kind = column.type
    if t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind):
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    if t.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if t.is_string(kind) or t.is_large_string(kind) or t.is_boolean(kind):
        return ["" if v is None else str(v).strip() for v in column.to_pylist()]
    raise DataError(f"{path}: column {name!r} is of type {kind}; only numbers, words and booleans are read. Drop it.")
