"""Search from Python: start a run, go on with one, read its result, check and copy its network."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from archipel.core.decision import Arch
from archipel.core.errors import RunError
from archipel.core.run import RunFolder
from archipel.core.space import Space
from archipel.data.dataset import Dataset
from archipel.search.config import Budget, SearchConfig
from archipel.search.driver import Progress, Search, make_parts
from archipel.search.strategy import Strategy
from archipel.search.training import Recipe


@dataclass
class Result:
    """A finished run.

    Attributes:
        folder: everything the run left.
        report: the content of ``report.json``.
    """

    folder: Path
    report: dict[str, Any]

    @property
    def arch(self) -> Arch:
        """The chosen architecture."""
        return self.report["chosen"]["arch"]

    @property
    def metrics(self) -> dict[str, float]:
        """Its validation and test metrics and its costs."""
        return self.report["chosen"]

    @property
    def module(self) -> nn.Module:
        """The trained network, as the exported program."""
        import torch

        return torch.export.load(self.folder / "model" / "program.pt2").module()


def search(
    space: Space | str = "auto",
    data: Dataset | str = "digits",
    strategy: Strategy | str = "nas-evolution-patterns",
    budget: Budget | str | int = 32,
    limit: Mapping[str, float] | Sequence[str] = (),
    out: str | Path | None = None,
    workers: int = 1,
    executor: str | Executor = "inline",
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Find, train, check and hand over a network.

    Args:
        space, data, strategy: objects, or names and paths as on the command line.
        budget: trials, or ``"30min"``, ``"200epochs"``.
        limit: hard limits, ``{"macs": 5e6}`` or ``["macs=5e6"]``.
        out: the run's folder; by default a new one under ``runs/``.
        executor: ``"inline"`` (in this process), ``"local"`` (worker processes; a script then needs the usual
            ``if __name__ == "__main__"``), ``"ray"``, ``"dask"``, or any ``concurrent.futures.Executor``.
        settings: further fields of :class:`~archipel.search.config.SearchConfig`.

    Raises:
        ArchipelError: what was asked cannot be done; the message says what would be right.
    """
    limits = [f"{k}={v}" for k, v in limit.items()] if isinstance(limit, Mapping) else list(limit)
    config = SearchConfig.from_dict(
        {
            "data": data if isinstance(data, str) else f"object:{data.name}",
            "space": space if isinstance(space, str) else f"object:{space.name}",
            "strategy": strategy if isinstance(strategy, str) else f"object:{type(strategy).__name__}",
            "budget": Budget.parse(budget),
            "limits": limits,
            "workers": workers,
            "executor": executor if isinstance(executor, str) else "inline",
            "seed": seed,
            "recipe": recipe or Recipe(),
            **settings,
        }
    )
    return run_search(
        config,
        out,
        progress,
        None if isinstance(data, str) else data,
        None if isinstance(space, str) else space,
        None if isinstance(strategy, str) else strategy,
        None if isinstance(executor, str) else executor,
    )


def run_search(
    config: SearchConfig,
    out: str | Path | None = None,
    progress: Progress | None = None,
    data: Dataset | None = None,
    space: Space | None = None,
    strategy: Strategy | None = None,
    executor: Executor | None = None,
) -> Result:
    """Carry out a configuration in a new folder."""
    path = Path(out) if out is not None else default_folder(config)
    if config.data.startswith("table:"):
        from archipel.search.table_run import search_table

        with RunFolder.create(path, config.as_dict()) as run:
            search_table(config, run, strategy, progress)
        return load_result(path)
    parts = make_parts(config, data, space, strategy)
    with RunFolder.create(path, config.as_dict()) as run:
        Search(config, run, parts, progress, executor).go()
    return load_result(path)


def resume(
    path: str | Path,
    progress: Progress | None = None,
    data: Dataset | None = None,
    space: Space | None = None,
    strategy: Strategy | None = None,
    executor: Executor | None = None,
    **changes: Any,
) -> Result:
    """Go on with an interrupted run; a finished one is left as it is.

    Args:
        path: its folder.
        data, space, strategy, executor: the objects, if it was started with objects.
        changes: to ``workers`` or ``executor``, which do not change what is computed.

    Raises:
        RunError: no run there, in use, or code or settings have changed.
    """
    with RunFolder.open(path) as run:
        config = replace(SearchConfig.from_dict(run.config), **changes)
        if not run.journal.recall("finished", False):
            run.log("resumed")
            if config.data.startswith("table:"):
                from archipel.search.table_run import search_table

                search_table(config, run, strategy, progress)
                return load_result(path)
            Search(config, run, make_parts(config, data, space, strategy), progress, executor).go()
    return load_result(path)


def default_folder(config: SearchConfig) -> Path:
    """``runs/<date>-<time>-<data>``, not yet taken."""
    stem = "".join(c if c.isalnum() else "-" for c in Path(config.data.removeprefix("object:")).name)
    base = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{stem}"
    return base if not base.exists() else base.with_name(f"{base.name}-{uuid.uuid4().hex[:4]}")


def load_result(path: str | Path) -> Result:
    """The result of a run that has a report."""
    from archipel.core.storage import read_json

    # The folder may have been moved, or be looked at from another place than it was made in.
    return Result(Path(path), read_json(Path(path) / "report.json") | {"run": str(path)})


def export_run(path: str | Path, to: str | Path | None = None) -> tuple[Path, list[str]]:
    """Check a run's exported network against its weights, and copy it to ``to``.

    Raises:
        RunError: the run has no network yet, its files are damaged, or the target cannot be written.
    """
    import shutil

    import torch

    from archipel.core.export import check_export
    from archipel.core.storage import read_json, storage_error

    model = Path(path) / "model"
    if not (model / "about.json").exists():
        raise RunError(f"{path} has no exported network yet. `archipel resume {path}` finishes a run.")
    about = read_json(model / "about.json")
    example = torch.zeros(3, *about["input"]["shape"][1:], dtype=getattr(torch, about["input"]["dtype"]))
    with torch.no_grad():
        expected = torch.export.load(model / "program.pt2").module()(example)
    check_export(model, example, expected)
    folder = model
    if to is not None:
        folder = Path(to)
        try:
            shutil.copytree(model, folder, dirs_exist_ok=True)
        except OSError as error:
            raise storage_error(folder / "model", error) from error
    return folder, sorted(p.name for p in folder.iterdir())
