"""Errors that say what was got, where, and what would be right.

Everything that a user can cause derives from :class:`ArchipelError`; the command line prints its message without a
traceback and exits with its ``exit_code``. Any other exception is a defect of ours.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class ArchipelError(Exception):
    """A mistake in what was asked, given or found; the message says what would be right."""

    exit_code = 1


class UsageError(ArchipelError):
    """An argument or option that makes no sense."""

    exit_code = 2


class DataError(ArchipelError):
    """A data file that is missing or malformed; names the file and the place in it."""

    exit_code = 3


class SpaceError(ArchipelError):
    """An invalid architecture, or a space that is put together wrongly."""

    exit_code = 4


class ShapeError(ArchipelError, ValueError):
    """Tensors or layers whose sizes do not fit together."""

    exit_code = 4


class InfeasibleError(ArchipelError):
    """No architecture satisfies the limits; names the cheapest one."""

    exit_code = 5


class RunError(ArchipelError):
    """A run folder that cannot be created, read, written or resumed."""

    exit_code = 6


class MissingExtraError(ArchipelError, ImportError):
    """A library that an optional feature needs is not installed."""

    exit_code = 7


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say which extra brings it.

    Args:
        module: import name, such as ``"pymoo.core.problem"``.
        extra: the extra of this package that installs it.

    Raises:
        MissingExtraError: naming the library and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"This needs {module.split('.')[0]!r}, which could not be imported ({error}). "
            f"Install it with: pip install 'archipel[{extra}]'"
        ) from error


def suggest(wrong: str, known: Iterable[str]) -> str:
    """A short "did you mean" tail for error messages; lists everything when the list is short.

    >>> suggest("evolutoin", ["random", "evolution"])
    'Did you mean: evolution? Known: evolution, random.'
    """
    names = sorted(map(str, known))
    near = difflib.get_close_matches(str(wrong), names, n=3)
    hint = f"Did you mean: {', '.join(near)}? " if near else ""
    shown = names if len(names) <= 24 else [*names[:24], f"… ({len(names)} in all)"]
    return f"{hint}Known: {', '.join(shown) if shown else 'none'}."
