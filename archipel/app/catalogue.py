"""The registry and the stored claims together, as plain data for the command line and the docs."""

from __future__ import annotations

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
