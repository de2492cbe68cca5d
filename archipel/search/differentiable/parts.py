"""Parts of the five slots by name, so that a command line can put a search together.

    softmax    partial-channels:K=2    second-order:xi=0.1,hessian=exact    hard-cost:upper.params=20k

A part's name is that of its class; what follows the colon are settings, as JSON where they parse as such; a dot leads
into a setting that is a mapping. Every part that is defined anywhere in the family can be named; nothing is listed by
hand.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from typing import Any

from archipel.core.errors import UsageError, suggest
from archipel.search.differentiable.arch_gradient import ArchGradient
from archipel.search.differentiable.hypergradient import HyperGradient
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.objective import SearchObjective
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Select

FAMILY = "archipel.search.differentiable"
SLOTS: dict[str, type] = {
    "mix": Mix,
    "arch_gradient": ArchGradient,
    "objective": SearchObjective,
    "schedule": Schedule,
    "select": Select,
}
SIMPLE = re.compile(r"\b(int|float|str|bool|Limit)\b")
ABSTRACT = {Mix, ArchGradient, HyperGradient, SearchObjective, Select}


def parts(slot: str) -> dict[str, type]:
    """All parts of a slot by name.

    Raises:
        UsageError: no such slot.

    >>> sorted(set(parts("select")) & {"argmax"})
    ['argmax']
    """
    base = SLOTS.get(slot.replace("-", "_"))
    if base is None:
        raise UsageError(f"A differentiable search has no slot {slot!r}. {suggest(slot, SLOTS)}")
    for info in pkgutil.iter_modules(importlib.import_module(FAMILY).__path__, prefix=FAMILY + "."):
        importlib.import_module(info.name)
    found = {base, *_subclasses(base)} - ABSTRACT
    own = [c for c in found if c.__module__.startswith(FAMILY) and not c.__name__.startswith("_") and _writable(c)]
    return {name_of(c): c for c in sorted(own, key=lambda c: c.__name__)}


def _writable(part: type) -> bool:
    """Whether all that a part needs can be written as text; those that wrap other objects are made by methods."""
    needed = [p for p in inspect.signature(part).parameters.values() if p.default is p.empty]
    return all(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) or SIMPLE.search(str(p.annotation)) for p in needed)


def _subclasses(base: type) -> set[type]:
    return {s for c in base.__subclasses__() for s in (c, *_subclasses(c))}


def name_of(part: type) -> str:
    """``PartialChannels`` is ``partial-channels``.

    >>> name_of(ArchGradient)
    'arch-gradient'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", part.__name__).lower()


def part_named(slot: str, text: str) -> Any:
    """The part that a text describes.

    Raises:
        UsageError: unknown part or setting, or settings that make no sense; names close ones.

    >>> part_named("mix", "partial-channels:K=2").K
    2
    """
    name, _, rest = text.partition(":")
    known = parts(slot)
    if name not in known:
        raise UsageError(f"No part {name!r} for the slot {slot}. {suggest(name, known)}")
    accepted = {n: p for n, p in inspect.signature(known[name]).parameters.items() if p.kind is not p.VAR_KEYWORD}
    settings: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        path, equals, text_value = pair.partition("=")
        key, dot, inner = path.partition(".")
        if not equals or key not in accepted:
            raise UsageError(f"Part {name!r} has no setting {key!r}. {suggest(key, accepted)} Write {name}:key=value.")
        try:
            value = json.loads(text_value)
        except json.JSONDecodeError:
            value = text_value
        settings[key] = {**settings.get(key, {}), inner: value} if dot else value
    needed = [n for n, p in accepted.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    missing = [n for n in needed if n not in settings]
    if missing:
        raise UsageError(f"Part {name!r} needs {', '.join(missing)}: write {name}:{missing[0]}=…")
    try:
        return known[name](**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"Part {text!r}: {error}") from error


def as_part(slot: str, value: Any) -> Any:
    """A part, from itself, from a text, or (for a schedule) from an object with its settings.

    Raises:
        UsageError: something else.
    """
    if isinstance(value, str):
        return part_named(slot, value)
    if slot == "schedule" and isinstance(value, dict):
        known = inspect.signature(Schedule).parameters
        unknown = [n for n in value if n not in known]
        if unknown:
            raise UsageError(f"A schedule has no setting {unknown[0]!r}. {suggest(unknown[0], known)}")
        return Schedule(**value)
    if value is not None and not isinstance(value, SLOTS[slot]):
        kind = SLOTS[slot].__name__
        raise UsageError(f"The slot {slot} takes a {kind} or a name, not {type(value).__name__}.")
    return value
