"""The registry and the stored claims together, as plain data for the command line and the docs."""

from __future__ import annotations

import inspect
import re
from typing import Any

from archipel.claims.stored import stored_claims
from archipel.core.registry import Method, discover


def entry(method: Method) -> dict[str, Any]:
    """One method as JSON."""
    return {
        "slug": method.slug,
        "card": method.card,
        "title": method.paper.title,
        "year": method.paper.year,
        "link": method.paper.link,
        "family": method.family,
        "slots": list(method.slots),
        "module": method.module,
        "summary": method.summary,
        "claims": stored_claims(method.slug),
    }


def entries() -> list[dict[str, Any]]:
    """All methods as JSON."""
    return [entry(m) for m in discover().values()]


def settings_of(method: Method) -> list[dict[str, Any]]:
    """Settings of a search strategy: ``name``, ``default``, and ``text``, the first sentence about it.

    Of classes and functions with an ``Args`` section; what a base class explains is taken from there. Empty for
    methods that are no strategies.
    """
    from archipel.search.catalogue import strategies

    if method.slug not in strategies():
        return []
    owners = list(inspect.getmro(method.obj)) if inspect.isclass(method.obj) else [method.obj]
    texts: dict[str, str] = {}
    for owner in reversed(owners):
        texts |= _explained(owner.__doc__ or "")
    out = []
    for p in inspect.signature(method.obj).parameters.values():
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            default = "required" if p.default is p.empty else _default(p.default)
            out.append({"name": p.name, "default": default, "text": texts.get(p.name, "")})
    return out


def _default(value: Any) -> str:
    return getattr(value, "__name__", None) or repr(value)


def _explained(doc: str) -> dict[str, str]:
    """Name -> first sentence, from the ``Args`` section of a docstring.

    >>> _explained("Does.\\n\\nArgs:\\n    a, b: two :class:`X`\\n        there. More.\\n\\nRaises:\\n    E: no.")
    {'a': 'two X there.', 'b': 'two X there.'}
    """
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n(?=[ \t]))+)", inspect.cleandoc(doc), re.MULTILINE)
    out: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", "\n" + section[1] if section else ""):
        match = re.match(r"\s*([\w*]+(?:, [\w*]+)*): (.*)", entry, re.DOTALL)
        if match and not match[2].startswith("see :class:"):  # the class to be seen is a base class
            text = re.sub(r":\w+:`~?([^`]+)`", r"\1", " ".join(match[2].split())).replace("``", "")
            sentence = re.match(r".*?\.(?= [A-Z]|$)", text)
            out |= {name.lstrip("*"): sentence[0] if sentence else text for name in match[1].split(", ")}
    return out
