"""``cost``, ``data`` and ``draw``: looking at what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from archipel.app.options import settings
from archipel.core.errors import UsageError


def _read_arch(text: str) -> Any:
    """An architecture from JSON text, a JSON file, or a run folder."""
    from archipel.core.storage import read_json

    path = Path(text)
    if not text.lstrip().startswith("{"):
        if path.is_dir():
            from archipel.app.inspection import architecture_of_run

            return architecture_of_run(path)
        return read_json(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"The architecture is not valid JSON: {error}.") from error


def _space(space: str, data: str, options: tuple[str, ...]) -> Any:
    from archipel.data.load import load
    from archipel.spaces.catalogue import make_space

    return make_space(space, load(data).without_test(), **settings(options, "--space-option"))


@click.command()
@click.option("--space", default="auto", show_default=True, help="A name, or my_file.py:MyModel.")
@click.option("--data", default="digits", show_default=True, help="Gives the input's shape.")
@click.option("--space-option", multiple=True)
@click.option("--arch", help="JSON, a JSON file or a run folder; by default a summary of random ones.")
@click.option("--samples", default=200, show_default=True, help="How many random architectures.")
@click.option("--latency", is_flag=True, help="Measure latency too.")
@click.option("--json", "as_json", is_flag=True)
def cost(
    space: str, data: str, space_option: tuple[str, ...], arch: str | None, samples: int, latency: bool, as_json: bool
) -> None:
    """Exact parameters and MACs, memory and latency of an architecture; or the range over a space."""
    from random import Random

    from archipel.app.inspection import costs_of, costs_over, costs_text, spread_text

    if samples < 1:
        raise UsageError(f"--samples must be at least 1, not {samples}.")
    made = _space(space, data, space_option)
    out: dict[str, Any]
    if arch is not None:
        out = costs_of(made, made.validate(_read_arch(arch)), latency)
    else:
        out = costs_over(made, Random(0), samples)
    if as_json:
        click.echo(json.dumps(out))
        return
    click.echo(costs_text(out) if arch is not None else spread_text(out))


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True)
def data(name: str | None, as_json: bool) -> None:
    """List known data, or describe one: its splits, where it was found or how to get it.

    NAME may be a file or a folder, and may carry options, such as 'mnist?limit=5000'.
    """
    from archipel.data.catalogue import available, describe

    if name is not None:
        found = describe(name)
        if as_json:
            click.echo(json.dumps(found))
            return
        for key, value in found.items():
            click.echo(f"{key:<12} {_plain(value)}".rstrip())
        if found.get("task") == "node-classification":
            click.echo(f"{'use':<12} graph methods, from Python; `archipel search` takes graphs as tables only: "
                       "--data table:graph-NAME")  # fmt: skip
        return
    rows = available()
    if as_json:
        click.echo(json.dumps(rows))
        return
    from archipel.app.tables import print_table

    print_table(["name", "what", "task", "input", "status"], [[_plain(v) for v in row.values()] for row in rows])


def _plain(value: Any) -> str:
    """A value as people write it: ``train 1,079, val 359``."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--space", default="auto", show_default=True)
@click.option("--data", default="digits", show_default=True)
@click.option("--space-option", multiple=True)
@click.option("--arch", help="JSON or a JSON file; by default a random one, or the run's.")
@click.option("--out", type=click.Path(path_type=Path), default="architecture.svg", show_default=True)
def draw(run: Path | None, space: str, data: str, space_option: tuple[str, ...], arch: str | None, out: Path) -> None:
    """Draw an architecture, or the network of a run, as SVG."""
    from random import Random

    from archipel.core.storage import write_atomically
    from archipel.search.page import drawing

    if run is not None:
        from archipel.app.inspection import space_of_run

        made, found = space_of_run(run)
        chosen = made.validate(_read_arch(arch) if arch else found)
    else:
        made = _space(space, data, space_option)
        chosen = made.validate(_read_arch(arch)) if arch else made.sample(Random(0))
    picture = drawing(made, chosen)
    write_atomically(out, lambda f: f.write(picture.encode()))
    click.echo(str(out))


COMMANDS = (cost, data, draw)
