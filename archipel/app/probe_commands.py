"""``probe``: questions to a search or a network that no score answers."""

from __future__ import annotations

import json

import click

from archipel.core.errors import UsageError


@click.group()
def probe() -> None:
    """Look behind a score: how robust is a search?"""


@probe.command()
@click.option("--poison", multiple=True, default=("dropout1", "stretched"), show_default=True,
              help="A poison, or several joined by + for a grouping. Repeatable.")  # fmt: skip
@click.option("--instances", default="0,6,36", show_default=True, help="Names for each poisonous operation.")
@click.option("--searcher", multiple=True, default=("enas", "random"), show_default=True,
              help="enas, enas-train, random, darts or darts-pt. Repeatable.")  # fmt: skip
@click.option("--data", default="micro-nb201", show_default=True)
@click.option("--epochs", default=25, show_default=True, help="Of every search.")
@click.option("--layers", default=4, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def poisoning(
    poison: tuple[str, ...],
    instances: str,
    searcher: tuple[str, ...],
    data: str,
    epochs: int,
    layers: int,
    seeds: int,
    as_json: bool,
) -> None:
    """Search spaces with useless operations in them, and see whether the search notices.

    \b
    archipel probe poisoning --poison dropout1 --instances 0,6,36 --searcher enas --searcher random
    archipel probe poisoning --poison identity+stretched --searcher darts --searcher darts-pt
    """
    import numpy as np

    from archipel.data.load import load
    from archipel.search.poisoning import Scale, Setting, probe_poisoning

    try:
        counts = [int(m) for m in instances.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--instances takes numbers with commas between, such as 0,6,36, not {instances!r}."
        ) from error
    if seeds < 1 or epochs < 1 or layers < 1:
        raise UsageError("--seeds, --epochs and --layers are 1 or more.")
    settings: dict[str, Setting] = {}
    for m in counts:
        for group in poison:
            for s in searcher:
                setting = Setting(tuple(group.split("+")) if m else (), m, s)
                settings.setdefault(setting.name, setting)
    rows = probe_poisoning(
        load(data), list(settings.values()), seeds, Scale(layers=layers, epochs=epochs),
        (lambda text: None) if as_json else lambda text: click.echo(text, err=True),
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows))
        return
    from archipel.app.tables import print_table

    cells = []
    for name, found in rows.items():
        row = [name]
        for figure in ("test", "bad", "sampled bad", "by chance"):
            values = [f[figure] for f in found]
            spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
            row.append(f"{np.mean(values):.3f}{spread}")
        cells.append(row)
    print_table(["space, search", "test accuracy", "bad layers", "sampled", "by chance"], cells)


COMMANDS = (probe,)
