"""Parsing of option values that several commands share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from archipel.core.errors import UsageError


def settings(pairs: Iterable[str], option: str) -> dict[str, Any]:
    """``["lr=0.1", "flip=true"]`` as a dict; values are JSON where they parse as such, else text.

    >>> settings(["lr=0.1", "name=a"], "--recipe")
    {'lr': 0.1, 'name': 'a'}
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} takes name=value, not {pair!r}.")
        try:
            out[name] = json.loads(text)
        except json.JSONDecodeError:
            out[name] = text
    return out


def byte_count(text: str | None) -> int | None:
    """``"500MB"``, ``"2GB"`` or a plain number of bytes."""
    if text is None:
        return None
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    number = text.strip().upper()
    for unit in sorted(units, key=len, reverse=True):
        if unit and number.endswith(unit):
            number, scale = number[: -len(unit)], units[unit]
            break
    else:
        scale = 1
    try:
        value = int(float(number) * scale)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is no amount of memory. Write 500MB, 2GB or a number of bytes.") from error
    if value <= 0:
        raise UsageError(f"An amount of memory must be positive, not {text!r}.")
    return value
