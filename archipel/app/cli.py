"""The command line. Heavy imports happen inside commands, so that ``--help`` answers at once.

Exit codes: 0 done · 1 other error · 2 usage · 3 data · 4 space or architecture · 5 no network within the limits ·
6 run folder · 7 missing library · 8 a claim's verdict is stale or absent · 130 interrupted (the run can be resumed).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from archipel import __version__
from archipel.app import compare_commands, inspect_commands, method_commands, probe_commands, search_commands
from archipel.core.errors import ArchipelError

INTERRUPTED = 130


class Main(click.Group):
    """Turns our errors into a line and an exit code; other exceptions are defects and show their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ArchipelError as error:
            if "--json" in sys.argv:
                click.echo(json.dumps({"error": str(error), "kind": type(error).__name__, "code": error.exit_code}))
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="archipel")
def main() -> None:
    """Networks whose shape is a decision: data, a budget and machines in, the trained network that fits out."""


for module in (search_commands, compare_commands, method_commands, probe_commands, inspect_commands):
    for command in module.COMMANDS:
        main.add_command(command)

if __name__ == "__main__":
    main()
