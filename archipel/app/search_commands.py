"""``search``, ``resume``, ``report`` and ``export``."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click

from archipel.app.options import byte_count, settings

quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
json_option = click.option("--json", "as_json", is_flag=True, help="End with one JSON object on standard output.")


@click.command()
@click.option("--data", default="digits", show_default=True, help="A name (see `archipel data`), a file or a folder.")
@click.option("--space", default="auto", show_default=True, help="A name, or my_file.py:MyModel.")
@click.option("--strategy", default="evolution", show_default=True, help="See `archipel methods`.")
@click.option("--budget", default="32", show_default=True, help="100, 100trials, 200epochs, 90s, 30min, 2h.")
@click.option("--limit", multiple=True, help="Hard limit, such as macs=5e6, params=100k, latency=3ms. Repeatable.")
@click.option("--objective", multiple=True, help="Metric, with :min if less is better. Repeatable.")
@click.option("--joint", multiple=True, help="Hyperparameter searched with the architecture: lr, …, or default.")
@click.option("--workers", default=1, show_default=True, help="Trials at once.")
@click.option("--executor", default="local", show_default=True, help="inline, local, ray or dask.")
@click.option("--seed", default=0, show_default=True)
@click.option("--epochs", type=int, help="Epochs of a trial.")
@click.option("--final-epochs", type=int, help="Epochs of the final training; by default twice a trial's.")
@click.option("--recipe", multiple=True, help="Training setting, such as lr=0.01. Repeatable.")
@click.option("--set", "options", multiple=True, help="Setting of the strategy, such as population=20. Repeatable.")
@click.option("--space-option", multiple=True, help="Setting of the space. Repeatable.")
@click.option("--data-option", multiple=True, help="Setting of the data, such as limit=500. Repeatable.")
@click.option("--baseline", default=1.0, show_default=True, help="Random search's share of the budget; 0 for none.")
@click.option("--final-candidates", default=2, show_default=True, help="How many of the best are trained in full.")
@click.option("--final-random", default=3, show_default=True, help="Random networks trained like the chosen one.")
@click.option("--trial-seconds", type=float, help="Time limit of a trial.")
@click.option("--trial-memory", help="Memory limit of a trial, such as 2GB.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; by default a new one under runs/.")
@quiet_option
@json_option
def search(quiet: bool, as_json: bool, out: Path | None, **given: Any) -> None:
    """Find, train, check and hand over a network.

    \b
    archipel search --data digits --limit macs=200k --budget 30 --workers 2 --out run/
    archipel search --data my_images/ --space mobile --budget 30min --out run/
    archipel search --data table.csv --space my_file.py:MyModel
    """
    from archipel.search.api import default_folder, run_search
    from archipel.search.config import SearchConfig

    recipe = settings(given["recipe"], "--recipe")
    if given["epochs"] is not None:
        recipe["epochs"] = given["epochs"]
    config = SearchConfig.from_dict(
        {
            "data": given["data"],
            "space": given["space"],
            "strategy": given["strategy"],
            "budget": given["budget"],
            "limits": list(given["limit"]),
            "objectives": list(given["objective"]),
            "joint": list(given["joint"]),
            "workers": given["workers"],
            "executor": given["executor"],
            "seed": given["seed"],
            "recipe": recipe,
            "final_epochs": given["final_epochs"],
            "strategy_options": settings(given["options"], "--set"),
            "space_options": settings(given["space_option"], "--space-option"),
            "data_options": settings(given["data_option"], "--data-option"),
            "baseline": given["baseline"],
            "final_candidates": given["final_candidates"],
            "final_random": given["final_random"],
            "trial_seconds": given["trial_seconds"],
            "trial_memory": byte_count(given["trial_memory"]),
        }
    )
    folder = out or default_folder(config)
    _carry_out(lambda progress: run_search(config, folder, progress), folder, quiet, as_json)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--workers", type=int, help="Trials at once, if other than before.")
@click.option("--executor", help="Where they run, if elsewhere than before.")
@quiet_option
@json_option
def resume(run: Path, workers: int | None, executor: str | None, quiet: bool, as_json: bool) -> None:
    """Go on with an interrupted run."""
    from archipel.search.api import resume as go_on

    changes = {k: v for k, v in {"workers": workers, "executor": executor}.items() if v is not None}
    _carry_out(lambda progress: go_on(run, progress, **changes), run, quiet, as_json)


def _carry_out(work: Callable[[Any], Any], folder: Path, quiet: bool, as_json: bool) -> None:
    """Run with progress bars, then print what came out, also of an interrupted run that has a network by then."""
    import signal

    from archipel.app.progress import Terminal
    from archipel.search.api import load_result

    def stop(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # a polite kill is treated like Ctrl-C
    interrupted = False
    try:
        with nullcontext() if quiet or as_json else Terminal() as progress:
            work(progress)
    except KeyboardInterrupt:
        interrupted = True
    if (folder / "report.json").exists():
        summary = _summary(load_result(folder).report)
        click.echo(json.dumps(summary)) if as_json else _print_summary(summary)
    if interrupted:
        if (folder / "config.json").exists():
            click.echo(f"`archipel resume {folder}` goes on.", err=True)
        raise KeyboardInterrupt


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    """What a script wants to know of a run."""
    chosen = report["chosen"]
    metrics = chosen["metrics"]
    table = report.get("table")
    validation = {k.removeprefix("val_"): v for k, v in metrics.items() if table or k.startswith("val_")}
    return {
        "run": report["run"],
        "status": report["status"],
        "arch": chosen["arch"],
        "costs": chosen["costs"],
        "epochs": None if table else chosen.get("epochs"),
        "validation": validation,
        "test": {k[5:]: v for k, v in metrics.items() if k.startswith("test_")},
        "random": report["random"],
        "table": table,
        "files": {k: str(Path(report["run"]) / v) for k, v in report.get("files", {}).items()},
        "report": str(Path(report["run"]) / "report.html"),
        "notes": report["notes"],
    }


def _print_summary(s: dict[str, Any]) -> None:
    def line(name: str, text: Any) -> None:
        click.echo(f"{name:<12} {text}")

    def figures(values: dict[str, float]) -> str:
        return ", ".join(f"{k} {v:,.0f}" if abs(v) >= 1000 else f"{k} {v:.4g}" for k, v in values.items())

    line("status", s["status"])
    line("network", json.dumps(s["arch"]))
    if s["costs"]:
        line("costs", figures(s["costs"]))
    line("validation", figures(s["validation"]) + (f" (after {_epochs(s['epochs'])})" if s["epochs"] else ""))
    if s["table"]:
        rank, of = s["table"]["rank_from_worst"], s["table"]["of"]
        share = (1000 * (rank - 1) // of) / 10  # rounded down: only the best is better than all others
        line("rank", f"the best of {of:,}" if rank == of else f"better than {share:.1f} % of {of:,}")
    if s["test"]:
        line("test", figures(s["test"]))
    random = s["random"] or {}
    if "mean" in random:
        spread = f"average {random['mean']:.4f} ± {random['std']:.4f} over {random['n']}, best {random['best']:.4f}"
        after = f" (after {_epochs(random['epochs'])} of a trial)" if s["epochs"] and "epochs" in random else ""
        line("random", f"{spread}{after}, P(random better) {random['p_random_better']:.3f}")
    if "random_mean" in random.get("final_test", {}):
        final = random["final_test"]
        gain = f"{final['relative_improvement_percent']:+.2f} %" if "relative_improvement_percent" in final else ""
        line("", f"trained alike, on test: chosen {final['chosen']:.4f}, random {final['random_mean']:.4f} {gain}")
    if s["files"]:
        line("model", str(Path(next(iter(s["files"].values()))).parent))
    line("figures", str(Path(s["run"]) / "report.json"))
    line("report", s["report"])


def _epochs(n: int) -> str:
    return f"{n} epoch" if n == 1 else f"{n} epochs"


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@json_option
def report(run: Path, as_json: bool) -> None:
    """Print a run's figures and where its page is."""
    from archipel.search.api import load_result

    summary = _summary(load_result(run).report)
    click.echo(json.dumps(summary)) if as_json else _print_summary(summary)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), help="Folder to copy the checked model to.")
@click.option("--json", "as_json", is_flag=True)
def export(run: Path, to: Path | None, as_json: bool) -> None:
    """Check the exported network of a run, and copy it where it is wanted.

    The program and the ONNX file must compute what the network does that is built anew from architecture.json and the
    safetensors. If its space was an object in Python, the two are only compared with each other, which is then said.
    """
    from archipel.search.api import export_run

    done = export_run(run, to)
    if as_json:
        click.echo(json.dumps({"folder": str(done.folder), "files": done.files, "compared": done.compared}))
        return
    click.echo(f"{done.folder}: {', '.join(done.files)}\nprogram.pt2 and model.onnx were compared with {done.compared}")


COMMANDS = (search, resume, report, export)
