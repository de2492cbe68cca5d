"""``compare``: searches that differ in one slot, everything else alike."""

from __future__ import annotations

import json
from pathlib import Path

import click

from archipel.app.options import settings
from archipel.core.errors import UsageError

FAMILIES = ("differentiable",)


@click.command()
@click.option("--family", default="differentiable", show_default=True, help="Whose slots are varied.")
@click.option("--vary", multiple=True, required=True, help="SLOT=PART,PART,… such as select=argmax,perturbation.")
@click.option("--hold", multiple=True, help="SLOT=PART that all arms have, such as mix=partial-channels:K=2.")
@click.option("--data", default="micro-nb201", show_default=True)
@click.option("--space", default="micro-nb201", show_default=True)
@click.option("--space-option", multiple=True, help="Setting of the space. Repeatable.")
@click.option("--schedule", multiple=True, help="Setting of the search's schedule, such as alpha_lr=9e-3. Repeatable.")
@click.option("--search-epochs", default=15, show_default=True, help="Epochs of every search.")
@click.option("--epochs", default=12, show_default=True, help="Epochs of every answer's training.")
@click.option("--recipe", multiple=True, help="Training setting of the answers, such as lr=0.01. Repeatable.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--random", "n_random", default=8, show_default=True, help="Random architectures a seed.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for measurements and figure; goes on there.")
@click.option("--json", "as_json", is_flag=True)
def compare(
    family: str,
    vary: tuple[str, ...],
    hold: tuple[str, ...],
    data: str,
    space: str,
    space_option: tuple[str, ...],
    schedule: tuple[str, ...],
    search_epochs: int,
    epochs: int,
    recipe: tuple[str, ...],
    seeds: int,
    n_random: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare searches that differ in one slot, with seeds and the random architecture beside them.

    \b
    archipel compare --vary select=argmax,perturbation --seeds 3
    archipel compare --vary mix=softmax,partial-channels:K=2 --hold arch_gradient=second-order
    """
    from archipel.data.load import load
    from archipel.search.comparison import Comparison, grid
    from archipel.search.comparison import compare as run
    from archipel.search.differentiable.loop import DifferentiableSearch
    from archipel.search.differentiable.parts import part_named
    from archipel.search.differentiable.schedule import Schedule
    from archipel.search.training import Recipe
    from archipel.spaces.catalogue import make_space

    if family not in FAMILIES:
        raise UsageError(f"Families that can be compared slot by slot: {', '.join(FAMILIES)}; not {family!r}.")
    varied = {slot: _split(texts) for slot, texts in _slots(vary, "--vary").items()}
    held = _slots(hold, "--hold")
    both = set(varied) & set(held)
    if both:
        raise UsageError(f"The slot {both.pop()!r} is both varied and held.")
    for slot, texts in [*varied.items(), *((s, [t]) for s, t in held.items())]:
        for text in texts:
            part_named(slot, text)  # a name that is wrong is said before anything runs
    if "schedule" not in {*varied, *held}:
        given = settings(schedule, "--schedule")
        held["schedule"] = Schedule(**{"batch_size": 40, "alpha_lr": 9e-3, **given})  # type: ignore[assignment]
    elif schedule:
        raise UsageError("Settings of the schedule are given twice: by --schedule and by a part.")
    dataset = load(data)
    training = Recipe(epochs, 40, "sgd", 0.1, weight_decay=3e-4).with_hyper(settings(recipe, "--recipe"))
    what = Comparison(
        make_space(space, dataset.without_test(), **settings(space_option, "--space-option")),
        dataset,
        grid(varied, lambda **slots: DifferentiableSearch(**{**held, **slots})),  # type: ignore[arg-type]
        training,
        seeds,
        n_random,
        search_epochs,
    )
    result = run(what, out, (lambda text: None) if as_json else lambda text: click.echo(text, err=True))
    click.echo(json.dumps(result) if as_json else result["table"])
    if out is not None and not as_json:
        click.echo(f"\nfigure  {out / 'comparison.svg'}\ndata    {out / 'comparison.json'}")


def _slots(pairs: tuple[str, ...], option: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for pair in pairs:
        slot, equals, text = pair.partition("=")
        if not equals or not text:
            raise UsageError(f"{option} takes SLOT=PART, not {pair!r}.")
        if slot in out:
            raise UsageError(f"{option} names the slot {slot!r} twice; give its parts in one list, a comma between.")
        out[slot.replace("-", "_")] = text
    return out


def _split(text: str) -> list[str]:
    """Parts between commas; a comma inside a part's settings is told apart by the = behind it.

    >>> _split("softmax,partial-channels:K=2,weigh_edges=false,max-w")
    ['softmax', 'partial-channels:K=2,weigh_edges=false', 'max-w']
    """
    out: list[str] = []
    for piece in text.split(","):
        if out and "=" in piece and ":" not in piece and ":" in out[-1]:
            out[-1] += f",{piece}"
        else:
            out.append(piece)
    return out


COMMANDS = (compare,)
