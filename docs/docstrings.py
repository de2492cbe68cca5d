"""Makes docstrings read well on the site: doctests become code blocks, roles such as ``:class:`X``` become links.

Docstrings are written to be read in the source. Markdown would take the ``>>>`` of a doctest for a quotation, and
leave roles as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|mod|func|meth|data|attr|exc):`(~?)([\w.]+)`")


def markdown_of(docstring: str, resolve: Callable[[str], str] = lambda name: name) -> str:
    """A docstring with its doctests in fences and its roles as references, which may lead nowhere.

    Args:
        docstring: as in the source.
        resolve: name -> full path of what it stands for.

    >>> markdown_of("Adds; see :func:`math.fsum`.\\n\\n>>> 1 + 1\\n2\\n\\nMore.").splitlines()[2:6]
    ['```pycon', '>>> 1 + 1', '2', '```']
    """
    out: list[str] = []
    fenced, indent = False, ""
    for line in docstring.splitlines():
        if not fenced and line.lstrip().startswith(">>> "):
            indent = line[: len(line) - len(line.lstrip())]
            if out and out[-1].strip():
                out.append("")
            out.append(f"{indent}```pycon")
            fenced = True
        elif fenced and not line.strip():
            out.append(f"{indent}```")
            fenced = False
        out.append(line if fenced else ROLE.sub(lambda match: _reference(match, resolve), line))
    if fenced:
        out.append(f"{indent}```")
    return "\n".join(out)


def _reference(match: re.Match[str], resolve: Callable[[str], str]) -> str:
    short, target = match.groups()
    shown = target.rsplit(".", 1)[-1] if short else target
    return f'<autoref optional identifier="{resolve(target)}"><code>{shown}</code></autoref>'


class Docstrings(griffe.Extension):
    """Applies :func:`markdown_of` to everything that is documented."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for obj in _everything(pkg):
            if obj.docstring is not None:
                obj.docstring.value = markdown_of(obj.docstring.value, lambda name, obj=obj: _path(obj, name))


def _everything(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if isinstance(member, griffe.Object):
            yield from _everything(member)


def _path(obj: griffe.Object, name: str) -> str:
    """The full path of a name as it is meant in an object's docstring: its own member, or one in scope."""
    owner = obj if isinstance(obj, griffe.Class) else obj.parent
    if isinstance(owner, griffe.Class) and name in owner.members:
        return f"{owner.path}.{name}"
    with suppress(Exception):  # griffe raises several kinds for names it does not know
        return obj.resolve(name)
    return name
