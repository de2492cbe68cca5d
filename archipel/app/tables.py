"""Tables on standard output: cut nowhere when piped, folded to the width of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None) -> None:
    """Print rows under headers; the first column, which holds names, is never folded."""
    screen = Console() if console is None else console
    if not screen.is_terminal:
        click.echo(aligned([headers, *rows]))
        return
    table = Table(box=None, pad_edge=False)
    for i, header in enumerate(headers):
        longest = max(len(row[i]) for row in [headers, *rows])
        if i:
            table.add_column(header, overflow="fold")
        else:
            table.add_column(header, no_wrap=True, min_width=longest)
    for row in rows:
        table.add_row(*map(Text, row))  # as text: square brackets would be markup
    screen.print(table)


def aligned(rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """Cells in columns, two spaces apart; ``right`` aligns all but the first, as numbers are.

    >>> print(aligned([["a", "1"], ["bc", "1,000"]], right=True))
    a       1
    bc  1,000
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if right and i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
