"""``methods``, ``show`` and ``claim``."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command()
@click.option("--family", help="Only this family, such as search.blackbox.")
@click.option("--json", "as_json", is_flag=True)
def methods(family: str | None, as_json: bool) -> None:
    """List all published methods: where they are and how their claims came out."""
    from archipel.app.catalogue import entries

    rows = [e for e in entries() if family is None or e["family"].startswith(family)]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "card", "family", "slots", "year", "claim", box=None)
    for e in rows:
        verdicts = "; ".join(c["verdict"] + (" (stale)" if c["stale"] else "") for c in e["claims"]) or "–"
        card = "–" if e["card"] is None else f"{e['card']:03d}"
        table.add_row(e["slug"], card, e["family"], ", ".join(e["slots"]), str(e["year"]), verdicts)
    Console().print(table)


@click.command()
@click.argument("slug")
@click.option("--json", "as_json", is_flag=True)
def show(slug: str, as_json: bool) -> None:
    """What a method is, where it stands, its paper and its claims."""
    import inspect

    from archipel.app.catalogue import entry
    from archipel.core.registry import get_method

    found = get_method(slug)
    e = entry(found)
    if as_json:
        click.echo(json.dumps(e, ensure_ascii=False))
        return
    click.echo(f"{e['slug']}: {e['title']} ({e['year']})\n{e['link']}\nfills {', '.join(e['slots'])} of {e['family']}; "
               f"{e['module']}.{found.obj.__qualname__}\n")  # fmt: skip
    click.echo(inspect.getdoc(inspect.getmodule(found.obj)) or "")
    for c in e["claims"]:
        click.echo(f"\nclaim: {c['statement']}\n  {c['verdict']} ({c['seeds']} seeds{', stale' if c['stale'] else ''})")


@click.command()
@click.argument("slug", required=False)
@click.option("--all", "every", is_flag=True, help="All claims; goes on where an earlier call stopped.")
@click.option("--seeds", type=int, help="At least 3; by default the claim's own number.")
@click.option("--fresh", is_flag=True, help="Forget stored results and run again.")
@click.option("--json", "as_json", is_flag=True)
def claim(slug: str | None, every: bool, seeds: int | None, fresh: bool, as_json: bool) -> None:
    """Run a paper's headline statement as an experiment and say how it came out."""
    from archipel.claims.harness import all_claims, get_claim, run_claim
    from archipel.core.errors import UsageError

    if bool(slug) == every:
        raise UsageError("Name one claim, or use --all.")
    claims = all_claims().values() if every else [get_claim(str(slug))]
    results: list[dict[str, Any]] = []
    for c in claims:
        result = run_claim(c, seeds=seeds, fresh=fresh, report=(lambda text: None) if as_json else click.echo)
        results.append(result)
        if not as_json:
            click.echo(f"{c.slug}: {result['verdict']} ({len(result['seeds'])} seeds)\n{result['table']}\n")
    if as_json:
        click.echo(json.dumps(results if every else results[0], ensure_ascii=False))


COMMANDS = (methods, show, claim)
