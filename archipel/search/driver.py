"""The main job: data and a budget in, the trained network that fits out.

A run goes through phases, each of which finds out from the run folder what it has still to do: prepare (a supernet,
if the strategy has one), search, random baseline, final training, test, export, report. So going on after a kill is
the same code as going through undisturbed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from torch import nn

from archipel.core.decision import Arch
from archipel.core.errors import RunError, SpaceError, UsageError
from archipel.core.run import RunFolder
from archipel.core.space import Space
from archipel.cost.limits import Limits
from archipel.data.dataset import Dataset
from archipel.data.load import load
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.catalogue import make_strategy
from archipel.search.config import Budget, SearchConfig
from archipel.search.executors import Crew
from archipel.search.finish import FinalNetworks, finish
from archipel.search.joint import with_hyperparameters
from archipel.search.loop import Arm, run_crew
from archipel.search.schedulers import ReportingStrategy
from archipel.search.strategy import Context, Objective, Problem, Strategy, Trial
from archipel.search.training import Recipe, main_metric
from archipel.search.worker import Blueprint, Job
from archipel.spaces.catalogue import make_space


class Progress:
    """Where a run tells how far it is; this one keeps silent."""

    def phase(self, name: str, total: float | None = None) -> None:
        """A new phase starts; ``total`` is in trials, epochs or seconds."""

    def update(self, done: float, text: str = "") -> None:
        """The current phase has come so far."""

    def notice(self, text: str) -> None:
        """Something worth a line."""


@dataclass
class Parts:
    """The objects of a run, made from its configuration or handed in."""

    dataset: Dataset
    space: Space
    strategy: Strategy


def make_parts(
    config: SearchConfig,
    data: Dataset | None = None,
    space: Space | None = None,
    strategy: Strategy | None = None,
) -> Parts:
    """Load data, make the space and the strategy.

    Raises:
        ArchipelError: whichever part cannot be had; or the configuration describes an object that must be handed in.
    """
    for value, text in ((data, config.data), (space, config.space), (strategy, config.strategy)):
        if value is None and text.startswith("object:"):
            raise UsageError(f"This run was started from Python with {text[7:]}; resume it from Python with the same.")
    dataset = load(config.data, seed=config.seed, **config.data_options) if data is None else data
    made = make_space(config.space, dataset, **config.space_options) if space is None else space
    made = with_hyperparameters(made, config.joint)
    return Parts(dataset, made, the_strategy(config, strategy))


def the_strategy(config: SearchConfig, given: Strategy | None = None) -> Strategy:
    """The strategy that was handed in, or the configured one.

    Raises:
        UsageError: unknown, or it would have to see how its trials do while they run.
    """
    strategy = given or make_strategy(config.strategy, config.strategy_options)
    if isinstance(strategy, ReportingStrategy) and strategy.needs_reports:
        raise UsageError(
            f"{type(strategy).__name__} in this form stops trials by reports of each epoch, but the trials of a run "
            "report once, when they are done. Use the form that pauses and resumes them: --set variant=promotion."
        )
    return strategy


def parse_objectives(texts: Sequence[str]) -> list[Objective]:
    """``"accuracy"`` or ``"macs:min"``.

    Raises:
        UsageError: a mode other than ``min`` or ``max``.
    """
    out = []
    for text in texts:
        metric, _, mode = text.partition(":")
        try:
            out.append(Objective(metric, mode or "max"))
        except ValueError as error:
            raise UsageError(str(error)) from error
    return out


def default_objectives(dataset: Dataset, multi: bool) -> list[Objective]:
    """The data set's main metric; MACs beside it for strategies with several objectives."""
    main = Objective(main_metric(dataset))
    return [main, Objective("macs", "min")] if multi else [main]


def quick_limits(limits: Limits) -> Limits:
    """The limits answered from exact tables where there are any, for the many draws that tight limits reject.

    What is handed over is counted once more, network by network.
    """
    try:
        return limits.tabulated()
    except SpaceError:
        return limits  # a measured cost, or one that no table can express


class Search:
    """One run in its folder.

    Args:
        config: settings.
        run: its folder, open.
        parts: data, space, strategy.
        progress: told how far it is.
        executor: instead of the configured one.
    """

    def __init__(
        self,
        config: SearchConfig,
        run: RunFolder,
        parts: Parts,
        progress: Progress | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.config, self.run, self.parts = config, run, parts
        self.progress = progress or Progress()
        space, dataset = parts.space, parts.dataset
        self.objectives = parse_objectives(config.objectives) or default_objectives(
            dataset, parts.strategy.multi_objective
        )
        self.limits = Limits.parse(config.limits, space)
        self.limits.check_possible()
        self.feasible = quick_limits(self.limits)
        folder = str(run.checkpoints.folder.resolve()) if run.checkpoints.folder else None
        by_name = not (config.data.startswith("object:") or config.space.startswith("object:"))
        self.own_space = not config.space.startswith("object:") and ".py" not in config.space
        self.blueprint = Blueprint(
            key=uuid.uuid4().hex,
            data=config.data if by_name else dataset.without_test(),
            space=config.space if by_name else space,
            recipe=config.recipe,
            seed=config.seed,
            folder=folder,
            data_options=config.data_options if by_name else {},
            space_options=config.space_options if by_name else {},
            joint=config.joint if by_name else [],
        )
        self.crew = Crew(executor or config.executor, config.workers, self.blueprint, config.trial_memory)

    # --- phases ----------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """All phases. Ctrl-C in a search leaves its best network so far in ``model/`` and is raised again."""
        arms: list[Arm] = []
        try:
            arms.append(self.search_arm())
            if self.config.baseline > 0:
                arms.append(self.baseline_arm(arms[0]))
            finals = FinalNetworks(self, arms).train()
            self.crew.close()
        except KeyboardInterrupt:
            self.crew.close(kill=True)
            self.run.log("interrupted")
            if not arms and self.arm is not None:
                arms.append(self.arm)
            finish(self, arms, None)
            raise
        except BaseException:
            self.crew.close(kill=True)
            raise
        finish(self, arms, finals)
        self.run.log("finished")

    arm: Arm | None = None

    def problem(self, seed: str) -> Problem:
        return Problem(
            space=self.parts.space,
            objectives=self.objectives,
            rng=Random(seed),
            feasible=self.feasible if self.config.limits else None,
            max_resource=self.config.recipe.epochs,
            describe_limits=self.limits.describe,
        )

    def search_arm(self) -> Arm:
        strategy = self.parts.strategy
        problem = self.problem(f"{self.config.seed}/search")
        strategy.setup(problem)
        self.prepare(strategy)
        return self.run_arm("search", strategy, problem, self.budget_after_prepare(strategy))

    def budget_after_prepare(self, strategy: Strategy) -> Budget:
        """What is left of the budget once a supernet is trained: its seconds are gone, or half the epochs."""
        budget = self.config.budget
        if type(strategy).prepare is Strategy.prepare or budget.trials is not None:
            return budget
        if budget.epochs is not None:
            return Budget(epochs=budget.epochs - budget.epochs // 2)
        used = self.run.journal.recall("seconds:prepare", 0.0)
        return Budget(seconds=max(1e-3, (budget.seconds or 0.0) - used))

    def prepare(self, strategy: Strategy) -> None:
        """Train the strategy's supernet, if it has one; its seconds count."""
        self.progress.phase("prepare")
        started, before = time.monotonic(), self.run.journal.recall("seconds:prepare", 0.0)
        seconds = self.config.budget.seconds
        context = Context(
            dataset=self.parts.dataset.without_test(),
            recipe=self.config.recipe,
            seed=self.config.seed,
            checkpoints=self.run.checkpoints,
            progress=lambda what, fraction: self.progress.update(fraction, what),
            deadline=None if seconds is None else started + max(0.0, seconds - before),
            epochs=None if self.config.budget.epochs is None else self.config.budget.epochs // 2,
        )
        try:
            strategy.prepare(context)
        finally:
            self.run.journal.note("seconds:prepare", before + time.monotonic() - started)

    def baseline_arm(self, searched: Arm) -> Arm:
        """Random search with what the strategy spent (or a share of it): what any strategy has to beat.

        Budgets match in epochs of training; a strategy that also trained a supernet is matched in seconds, since its
        epochs are of another kind.
        """
        prepare = self.run.journal.recall("seconds:prepare", 0.0)
        share = self.config.baseline
        if self.config.budget.seconds is not None or prepare > 1.0:
            budget = Budget(seconds=max(1e-3, (prepare + searched.ledger.seconds) * share))
        else:
            budget = Budget(epochs=max(1, round(searched.ledger.epochs * share)))
        return self.baseline_of(budget)

    def baseline_of(self, budget: Budget) -> Arm:
        problem = self.problem(f"{self.config.seed}/baseline")
        strategy = RandomSearch()
        strategy.setup(problem)
        return self.run_arm("baseline", strategy, problem, budget)

    def run_arm(self, name: str, strategy: Strategy, problem: Problem, budget: Budget) -> Arm:
        arm = Arm(name, strategy, problem, budget, self.run.journal, self.parts.space.canonical, self.costs)
        if name == "search":
            self.arm = arm
        self.progress.phase(name, budget.trials or budget.epochs or budget.seconds)
        arm.replay()
        keeper = _Keeper(self, arm)
        arm.on_told = keeper.told
        run_crew(arm, self.crew, keeper.job, self._show, self.count_ahead)
        if arm.best is None and name == "search":
            reasons = sorted({t.failure for t in arm.trials if t.failure})
            raise RunError(
                f"None of the {len(arm.trials)} trials succeeded, so there is no network to hand over. "
                f"Reasons: {'; '.join(reasons[:3]) or 'no trial was proposed'}."
            )
        return arm

    def costs(self, arch: Arch) -> dict[str, float]:
        """Exact costs that go into every trial's metrics, and whatever is limited or an objective."""
        model = self.parts.space.cost
        out = {"params": float(model.params(arch)), "macs": float(model.macs(arch))}
        for name in {*self.limits.metrics, *(o.metric for o in self.objectives)} - set(out):
            getter = getattr(model, name, None)
            if getter is not None:
                out[name] = float(getter(arch))
        return out

    def count_ahead(self, trial: Trial) -> None:
        """Count a network while it is trained, so that no worker waits for that afterwards.

        Not one from outside: its code may hang or crash, and is run here only once a worker has come through it.
        """
        if self.own_space:
            model = self.parts.space.cost
            for count in (model.params, model.macs):
                count(trial.arch)  # the space remembers it

    def _show(self, arm: Arm) -> None:
        metric = self.objectives[0].metric
        best = "none yet" if arm.best is None else f"{metric} {arm.best.metrics[metric]:.4f}"
        unit = arm.budget.trials or arm.budget.epochs or arm.budget.seconds or 1.0
        self.progress.update(arm.spent() * unit, f"best {best}, {arm.ledger.failures} failed")


class _Keeper:
    """Makes an arm's jobs, and keeps on disk only the weights that may still be needed.

    Those are the best trial's, and those of all partly trained ones that the strategy may continue.
    """

    def __init__(self, search: Search, arm: Arm) -> None:
        self.search, self.arm = search, arm
        self.kept = arm.best

    def name(self, trial_id: int) -> str:
        return f"{self.arm.name}-{trial_id}"

    def job(self, trial: Trial) -> Job:
        return Job(
            name=self.name(trial.id),
            arch=trial.arch,
            epochs=trial.resource,
            resume=None if trial.resume is None else self.name(self.arm.weights_of(trial.resume)),
            full_epochs=trial.resource if _from_scratch(trial) else None,
            save_above=float("-inf") if self.continuable(trial) else self.bar(trial),
            metric=self.search.objectives[0].metric,
            seconds=self.search.config.trial_seconds,
        )

    def continuable(self, trial: Trial) -> bool:
        """Whether a later trial may resume this one."""
        return not (self.arm.complete(trial) or _from_scratch(trial))

    def bar(self, trial: Trial) -> float | None:
        """The score from which on a trial would be the best so far; None if it cannot be or nobody wants it."""
        best, first = self.arm.best, self.search.objectives[0]
        if self.arm.name != "search" or (best and self.arm.resource(trial) < self.arm.resource(best)):
            return None
        if best and first.mode == "max" and self.arm.resource(trial) == self.arm.resource(best):
            return best.metrics.get(first.metric, float("-inf"))
        return float("-inf")

    def told(self, trial: Trial) -> None:
        dropped: Trial | None = trial
        if self.arm.best is trial:
            dropped, self.kept = self.kept, trial
        if dropped is not None and not self.continuable(dropped):
            self.search.run.checkpoints.delete(self.name(dropped.id))


def _from_scratch(trial: Trial) -> bool:
    """Whether it is trained with a schedule over its own epochs, not as the start of a full training."""
    return bool((trial.info or {}).get("from_scratch"))


# --- the face for Python -------------------------------------------------------------------------------------------


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
