"""The method registry: every published method is registered where it is defined, with its citation.

The catalogue page, ``archipel methods`` and ``archipel show`` read this registry; nothing is listed by hand.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from archipel.core.errors import UsageError, suggest

T = TypeVar("T")

# Packages that hold methods, searched by :func:`discover`.
FAMILY_PACKAGES = ("archipel.spaces", "archipel.search", "archipel.nets", "archipel.cost")


@dataclass(frozen=True)
class Paper:
    """Where a method comes from: title, year of first publication, and a link."""

    title: str
    year: int
    link: str


@dataclass(frozen=True)
class Method:
    """One registry entry. ``card`` is the method's number in the catalogue, or None for a baseline without one."""

    slug: str
    card: int | None
    family: str
    slots: tuple[str, ...]
    paper: Paper
    obj: Any

    @property
    def module(self) -> str:
        return self.obj.__module__

    @property
    def summary(self) -> str:
        """First line of the object's docstring."""
        return (self.obj.__doc__ or "").strip().split("\n")[0]


METHODS: dict[str, Method] = {}


def register(
    slug: str, *, family: str, slots: Sequence[str], paper: Paper, card: int | None = None
) -> Callable[[T], T]:
    """Register a class or function as a published method.

    Args:
        slug: the method's short name, unique.
        family: such as ``"search.blackbox"``; see the vocabulary page.
        slots: what it replaces in its family's pipeline.
        paper: citation.
        card: catalogue number, where it has one.

    Raises:
        ValueError: the slug is taken by another object; names the first owner.
    """

    def wrap(obj: T) -> T:
        owner = METHODS.get(slug)
        where = f"{obj.__module__}.{obj.__qualname__}"  # type: ignore[attr-defined]
        if owner and f"{owner.module}.{owner.obj.__qualname__}" != where:
            raise ValueError(f"Method {slug!r} is already registered by {owner.module}.{owner.obj.__qualname__}.")
        METHODS[slug] = Method(slug, card, family, tuple(slots), paper, obj)
        return obj

    return wrap


def discover() -> dict[str, Method]:
    """Import every module of the family packages, so that all methods are registered; returns them by slug."""
    for package in FAMILY_PACKAGES:
        root = importlib.import_module(package)
        for info in pkgutil.walk_packages(root.__path__, prefix=package + "."):
            importlib.import_module(info.name)
    return dict(sorted(METHODS.items()))


def get_method(slug: str) -> Method:
    """The entry for ``slug``.

    Raises:
        UsageError: no such method; names close ones.
    """
    methods = METHODS if slug in METHODS else discover()
    if slug not in methods:
        raise UsageError(f"No method {slug!r}. {suggest(slug, methods)} `archipel methods` lists them.")
    return methods[slug]
