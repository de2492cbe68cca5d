"""``methods``, ``show`` and ``claim``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from archipel.core.errors import UsageError, suggest

STALE = 8  # exit code: a claim's verdict is out of date or absent


@click.command()
@click.option("--family", help="Only this family, such as search.blackbox, or families under it, such as search.")
@click.option("--json", "as_json", is_flag=True)
def methods(family: str | None, as_json: bool) -> None:
    """List all published methods: where they are and how their claims came out."""
    from archipel.app.catalogue import entries
    from archipel.claims.stored import in_words

    rows = entries()
    if family is not None:
        families = sorted({e["family"] for e in rows})
        rows = [e for e in rows if e["family"] == family or e["family"].startswith(f"{family}.")]
        if not rows:
            raise UsageError(f"No family {family!r}. {suggest(family, families)}")
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    from archipel.app.tables import print_table

    cells = []
    for e in rows:
        verdicts = "; ".join(in_words(c) for c in e["claims"]) or "–"
        card = "–" if e["card"] is None else f"{e['card']:03d}"
        cells.append([e["slug"], card, e["family"], ", ".join(e["slots"]), str(e["year"]), verdicts])
    print_table(["method", "card", "family", "slots", "year", "claim"], cells)


@click.command()
@click.argument("slug")
@click.option("--json", "as_json", is_flag=True)
def show(slug: str, as_json: bool) -> None:
    """What a method is, where it stands, its paper, its settings and its claims.

    SLUG may be a short name that `archipel search --strategy` takes, such as evolution.
    """
    import inspect

    from archipel.app.catalogue import entry, settings_of
    from archipel.claims.stored import in_words
    from archipel.core.registry import get_method
    from archipel.search.catalogue import SHORT

    found = get_method(SHORT.get(slug, slug))
    e = entry(found)
    settings = settings_of(found)
    if as_json:
        click.echo(json.dumps({**e, "settings": settings}, ensure_ascii=False))
        return
    click.echo(f"{e['slug']}: {e['title']} ({e['year']})\n{e['link']}\nfills {', '.join(e['slots'])} of {e['family']}; "
               f"{e['module']}.{found.obj.__qualname__}\n")  # fmt: skip
    click.echo(inspect.getdoc(inspect.getmodule(found.obj)) or "")
    if settings:
        click.echo("\nsettings (--set name=value):")
        shown = [f"{s['name']} = {s['default']}" for s in settings]
        width = min(36, max(map(len, shown)))
        for s, text in zip(settings, shown, strict=True):
            click.echo(f"  {text:<{width}}  {s['text']}".rstrip())
    for c in e["claims"]:
        click.echo(f"\nclaim: {c['statement']}\n  {in_words(c)}" + (f" ({c['seeds']} seeds)" if c["seeds"] else ""))


@click.command()
@click.argument("slug", required=False)
@click.option("--all", "every", is_flag=True, help="All claims; goes on where an earlier call stopped.")
@click.option("--check", is_flag=True, help="Run nothing; exit with 8 if a stored verdict is out of date or absent.")
@click.option("--seeds", type=int, help="At least 3; by default the claim's own number.")
@click.option("--fresh", is_flag=True, help="Forget stored measurements and run again.")
@click.option("--results", type=click.Path(path_type=Path, file_okay=False),
              help="Folder of verdicts; by default the package's own in a clone, else ./claims-results.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True)
@click.pass_context
def claim(
    ctx: click.Context,
    slug: str | None,
    every: bool,
    check: bool,
    seeds: int | None,
    fresh: bool,
    results: Path | None,
    as_json: bool,
) -> None:
    """Run a paper's headline statement as an experiment and say how it came out.

    With --check, without SLUG: all claims.
    """
    from archipel.claims.harness import all_claims, get_claim, run_claim
    from archipel.claims.stored import default_results, in_words, stored_claims

    if bool(slug) == every and not (check and not slug):
        raise UsageError("Name one claim, or use --all.")
    if check and (fresh or seeds is not None):
        raise UsageError("--check runs nothing, so --fresh and --seeds mean nothing with it.")
    folder = default_results() if results is None else results
    claims = [get_claim(slug)] if slug else list(all_claims().values())
    if check:
        states = [{"slug": c.slug, **stored_claims(c.slug, folder)[0]} for c in claims]
        text = "\n".join(f"{s['slug']}: {in_words(s)}" for s in states)
        click.echo(json.dumps(states, ensure_ascii=False) if as_json else text)
        ctx.exit(STALE if any(s["stale"] for s in states) else 0)
    done: list[dict[str, Any]] = []
    for c in claims:
        silent = (lambda text: None) if as_json else click.echo
        result = run_claim(c, seeds=seeds, fresh=fresh, report=silent, results=folder)
        done.append(result)
        if not as_json:
            click.echo(f"{c.slug}: {result['verdict']} ({len(result['seeds'])} seeds)\n{result['table']}\n")
    if as_json:
        click.echo(json.dumps(done if every else done[0], ensure_ascii=False))
    else:
        click.echo(f"stored in {folder}")


COMMANDS = (methods, show, claim)
