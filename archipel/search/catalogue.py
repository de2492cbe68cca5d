"""Strategies by name: every registered method of the search families, and a few short names."""

from __future__ import annotations

import inspect
import typing
from typing import Any

from archipel.core.errors import UsageError, suggest
from archipel.core.registry import Method, discover
from archipel.search.strategy import Strategy

# Names people type; each stands for a registered slug.
SHORT = {
    "evolution": "nas-evolution-patterns",
    "regularized-evolution": "nas-evolution-patterns",
    "bohb": "bohb-joint",
}


def strategies() -> dict[str, Method]:
    """Registered methods that are strategies, or functions that make one, by slug."""
    return {slug: method for slug, method in discover().items() if _makes_strategy(method.obj)}


def _makes_strategy(obj: Any) -> bool:
    made = obj if inspect.isclass(obj) else typing.get_type_hints(obj).get("return")
    return inspect.isclass(made) and issubclass(made, Strategy)


def make_strategy(name: str, options: dict[str, Any] | None = None) -> Strategy:
    """A strategy with its settings.

    Raises:
        UsageError: unknown name or setting; names close ones.
    """
    known = strategies()
    slug = SHORT.get(name, name)
    if slug not in known:
        raise UsageError(f"No search strategy {name!r}. {suggest(name, [*known, *SHORT])}")
    make = known[slug].obj
    accepted = {n for n in inspect.signature(make).parameters if n != "self"}
    for option in options or {}:
        if option not in accepted:
            raise UsageError(f"Strategy {name!r} has no setting {option!r}. {suggest(option, accepted)}")
    try:
        return make(**(options or {}))
    except (TypeError, ValueError) as error:
        raise UsageError(f"Strategy {name!r}: {error}") from error
