"""Search from Python: start a run, go on with one, read its result, check and copy its network."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from archipel.core.decision import Arch
from archipel.core.errors import ArchipelError, RunError
from archipel.core.run import RunFolder
from archipel.core.space import Space
from archipel.data.dataset import Dataset
from archipel.search.config import Budget, SearchConfig
from archipel.search.driver import Progress, Search, data_and_space, make_parts
from archipel.search.strategy import Strategy
from archipel.search.training import Recipe

if TYPE_CHECKING:
    from torch import Tensor


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
        """Its metrics after the final training, such as ``val_accuracy``, ``test_accuracy``, ``params``."""
        return self.report["chosen"]["metrics"]

    @property
    def costs(self) -> dict[str, float]:
        """Its exact costs: ``params``, ``macs``, and whatever was limited or an objective; none from a table."""
        return self.report["chosen"]["costs"]

    @property
    def module(self) -> nn.Module:
        """The trained network, as the exported program.

        Raises:
            RunError: there is none, as after a table search, or its file is damaged.
        """
        if not (self.folder / "model" / "program.pt2").exists():
            raise not_there(self.folder, "exported network")
        return _program(self.folder / "model")


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
    """Carry out a configuration in a new folder; if it is refused before anything ran, no folder stays."""
    path = Path(out) if out is not None else default_folder(config)
    if config.data.startswith("table:"):
        from archipel.search.table_run import TableSearch, table_parts

        table, made = table_parts(config, strategy)
        with _new_run(path, config) as run:
            TableSearch(config, run, table, made, progress).go()
        return load_result(path)
    parts = make_parts(config, data, space, strategy)
    with _new_run(path, config) as run:
        Search(config, run, parts, progress, executor).go()
    return load_result(path)


@contextmanager
def _new_run(path: Path, config: SearchConfig) -> Iterator[RunFolder]:
    """A new run's folder, which goes again if an error comes before a trial was proposed or weights were saved.

    What a full disk or a lost worker stopped stays: it can be resumed.
    """
    new = [p for p in (path, *path.parents) if not p.exists()]
    useless = False
    with RunFolder.create(path, config.as_dict()) as run:
        try:
            yield run
        except RunError:
            raise
        except Exception:
            run.journal.flush()
            useless = not run.journal.events("search") and not any((path / "checkpoints").iterdir())
            raise
        finally:
            if useless:
                for child in path.iterdir():
                    shutil.rmtree(child) if child.is_dir() else child.unlink()
                for folder in new:
                    with suppress(OSError):  # somebody else uses it by now
                        folder.rmdir()


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
                from archipel.search.table_run import TableSearch, table_parts

                TableSearch(config, run, *table_parts(config, strategy), progress).go()
                return load_result(path)
            Search(config, run, make_parts(config, data, space, strategy), progress, executor).go()
    return load_result(path)


def default_folder(config: SearchConfig) -> Path:
    """``runs/<date>-<time>-<data>``, not yet taken."""
    stem = "".join(c if c.isalnum() else "-" for c in Path(config.data.removeprefix("object:")).name)
    base = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{stem}"
    return base if not base.exists() else base.with_name(f"{base.name}-{uuid.uuid4().hex[:4]}")


def load_result(path: str | Path) -> Result:
    """The result of a run that has a report.

    Raises:
        RunError: there is no run, or it has no report yet.
    """
    from archipel.core.storage import read_json

    path = Path(path)
    if not (path / "report.json").exists():
        raise not_there(path, "report")
    # The folder may have been moved, or be looked at from another place than it was made in.
    return Result(path, read_json(path / "report.json") | {"run": str(path)})


def not_there(path: Path, what: str) -> RunError:
    """Why a folder lacks what a finished run has, and what to do about it."""
    from archipel.core.storage import read_json

    if not (path / "config.json").exists():
        return RunError(f"{path} holds no run: config.json is missing.")
    config = read_json(path / "config.json")
    data = config.get("data") if isinstance(config, dict) else None
    if what != "report" and isinstance(data, str) and data.startswith("table:"):
        return RunError(f"{path} searched {data}: a table run has no network. `archipel report {path}` has its result.")
    return RunError(f"{path} has no {what} yet. `archipel resume {path}` finishes the run.")


@dataclass(frozen=True)
class Exported:
    """An exported network that was checked.

    Attributes:
        folder: where it is.
        files: their names.
        compared: with what the exported forms were compared.
    """

    folder: Path
    files: list[str]
    compared: str


def export_run(path: str | Path, to: str | Path | None = None) -> Exported:
    """Check a run's exported network, and copy it to ``to``.

    The network is built from ``architecture.json`` and the safetensors, and ``program.pt2`` and ``model.onnx`` must
    compute the same. Where its space cannot be made from the configuration (it was an object, or its file or data are
    gone), ``model.onnx`` is compared with ``program.pt2``, and ``compared`` says so.

    Raises:
        RunError: the run has no network, its files are damaged or disagree, or the target cannot be written.
    """
    import torch

    from archipel.core.export import check_export
    from archipel.core.storage import read_json, storage_error

    path = Path(path)
    model = path / "model"
    if not (model / "about.json").exists():
        raise not_there(path, "exported network")
    try:
        net, example = _rebuilt(path, model)
        compared = "the network from architecture.json and model.safetensors"
    except _NoSpace as error:
        about = read_json(model / "about.json")["input"]
        dtype = getattr(torch, about["dtype"])
        shape, seeded = (3, *about["shape"][1:]), torch.Generator().manual_seed(0)
        example = torch.randn(shape, generator=seeded) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        net = _program(model)
        compared = f"each other only, not with the weights: {error}"
    try:
        with torch.no_grad():
            check_export(model, example, net(example))
    except ArchipelError:
        raise
    except Exception as error:  # whatever PyTorch and ONNX Runtime say of files that they cannot read
        raise RunError(f"The exported network in {model} is damaged: {error}") from error
    folder = model
    if to is not None:
        folder = Path(to)
        try:
            shutil.copytree(model, folder, dirs_exist_ok=True)
        except OSError as error:
            raise storage_error(folder / "model", error) from error
    return Exported(folder, sorted(p.name for p in folder.iterdir()), compared)


def _program(model: Path) -> nn.Module:
    import torch

    try:
        return torch.export.load(model / "program.pt2").module()
    except Exception as error:  # PyTorch has many ways of saying that a file is broken
        raise RunError(f"{model / 'program.pt2'} cannot be loaded: {error}") from error


class _NoSpace(Exception):
    """The space of a run cannot be made from its configuration."""


def _rebuilt(path: Path, model: Path) -> tuple[nn.Module, Tensor]:
    """The network as its code and its weights say, and a batch of inputs.

    Raises:
        _NoSpace: see there.
        RunError: the weights are damaged or of another network.
    """
    import safetensors.torch

    from archipel.core.storage import read_json

    if not (path / "config.json").exists():
        raise _NoSpace("there is no config.json")
    config = SearchConfig.from_dict(read_json(path / "config.json"))
    if config.data.startswith("object:") or config.space.startswith("object:"):
        raise _NoSpace("the run's space or data were objects in Python")
    try:
        dataset, space = data_and_space(config)
    except ArchipelError as error:
        raise _NoSpace(str(error)) from error
    net = space.build(space.validate(read_json(model / "architecture.json")), seed=config.seed)
    try:
        net.load_state_dict(safetensors.torch.load((model / "model.safetensors").read_bytes()))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise RunError(
            f"{model / 'model.safetensors'} does not hold the weights of the network in architecture.json: it is "
            f"damaged, or the code of the space has changed since. {error}"
        ) from error
    return net.eval(), dataset.train.x[:3]
