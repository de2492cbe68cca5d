"""Options of data sets: ``name?noise=0.25&train=200``, or keyword arguments; checked against the reader's signature."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from archipel.core.errors import UsageError, suggest
from archipel.data.find import user_path


def parse_spec(spec: str | Path) -> tuple[str, dict[str, Any]]:
    """Split ``"name?option=value&..."``; something that exists as a path is taken as it is.

    Raises:
        UsageError: empty, or a malformed option.

    >>> parse_spec("noisy-digits?noise=0.25&train=200")
    ('noisy-digits', {'noise': '0.25', 'train': '200'})
    """
    text = str(spec)
    if not text.strip() or "\0" in text:
        raise UsageError(f"Which data? Give a name, a file or a folder, not {text!r}.")
    name, mark, query = text.partition("?")
    if not mark or isinstance(spec, Path) or exists(text):
        return text, {}
    try:
        return name, dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
    except ValueError as error:
        raise UsageError(f"{text}: options are written name?option=value&option=value ({error}).") from error


def exists(text: str) -> bool:
    """Whether there is such a file or folder."""
    try:
        return user_path(text).exists()
    except OSError:  # such as a name too long for a file
        return False


def options_of(read: Callable[..., Any], skip: int = 0) -> dict[str, Any]:
    """Option name -> type, from the signature of a reader without its first ``skip`` arguments and the seed."""
    parameters = list(inspect.signature(read, eval_str=True).parameters.values())[skip:]
    return {p.name: p.annotation for p in parameters if p.name != "seed"}


def check_options(where: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with values of the types that the reader wants.

    Raises:
        UsageError: an unknown option, or a value of another type.
    """
    for name in options:
        if name not in known:
            raise UsageError(f"{where} has no option {name!r}. {suggest(name, known)}")
    return {name: coerce(f"{where}: {name}", value, known[name]) for name, value in options.items()}


def coerce(where: str, value: Any, hint: Any) -> Any:
    """A value as int, float, bool, str, Path or tuple of strings; strings such as "0.5" and "no" are understood.

    >>> coerce("noise", "0.5", float), coerce("drop", "id,name", tuple[str, ...]), coerce("size", "none", int | None)
    (0.5, ('id', 'name'), None)
    """
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is tuple:
        return tuple(value.split(",")) if isinstance(value, str) else tuple(map(str, value))
    if hint is bool:
        truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(str(value).lower())
        if truth is not None:
            return truth
    elif hint in (str, Path) and isinstance(value, str | Path | int):
        return hint(str(value))
    elif hint in (int, float) and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = hint(value)
        except (ValueError, OverflowError):
            number = None
        if number is not None and (isinstance(value, str) or number == value) and abs(number) < float("inf"):
            return number
    names = {bool: "yes or no", int: "a whole number", float: "a number"}
    raise UsageError(f"{where} must be {names.get(hint, 'text')}, not {value!r}.")
