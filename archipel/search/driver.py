"""The main job: data and a budget in, the trained network that fits out.

A run goes through phases, each of which finds out from the run folder what it has still to do: prepare (a supernet,
if the strategy has one), search, random baseline, final training, test, export, report. So going on after a kill is
the same code as going through undisturbed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from random import Random

from archipel.core.decision import Arch
from archipel.core.errors import RunError, SpaceError, UsageError, suggest
from archipel.core.run import RunFolder
from archipel.core.space import Space
from archipel.cost.limits import METRICS, Limits
from archipel.data.dataset import Dataset
from archipel.data.graph import GraphData
from archipel.data.load import load
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.catalogue import make_strategy
from archipel.search.config import Budget, SearchConfig
from archipel.search.executors import Crew
from archipel.search.finish import FinalNetworks, finish
from archipel.search.joint import with_hyperparameters
from archipel.search.keeper import Keeper
from archipel.search.loop import Arm, run_crew
from archipel.search.schedulers import ReportingStrategy
from archipel.search.strategy import Context, Objective, Problem, Strategy, Trial
from archipel.search.tables import GRAPHS
from archipel.search.training import main_metric
from archipel.search.worker import Blueprint
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
    dataset, made = data_and_space(config, data, space)
    return Parts(dataset, made, the_strategy(config, strategy))


def data_and_space(
    config: SearchConfig, data: Dataset | None = None, space: Space | None = None
) -> tuple[Dataset, Space]:
    """The data set and the space of a configuration, or those given; hyperparameters joined to the space.

    Raises:
        ArchipelError: one cannot be had by its name.
    """
    dataset = load(config.data, seed=config.seed, **config.data_options) if data is None else data
    if isinstance(dataset, GraphData) and space is None and ".py" not in config.space:
        name = str(dataset.info.get("source", dataset.name))
        table = f" Its table of trained networks can be searched: --data table:graph-{name}." if name in GRAPHS else ""
        raise UsageError(
            f"Data {name!r} is one graph whose nodes are to be classified. It is for graph methods, from Python; no "
            f"space of `archipel search` trains on it.{table}"
        )
    made = make_space(config.space, dataset, **config.space_options) if space is None else space
    return dataset, with_hyperparameters(made, config.joint)


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


def parse_objectives(texts: Iterable[str], known: Mapping[str, str]) -> list[Objective]:
    """``"accuracy"`` or ``"macs:min"``.

    Args:
        known: what may be written -> the metric that it stands for.

    Raises:
        UsageError: an unknown metric, or a mode other than ``min`` or ``max``.
    """
    out = []
    for text in texts:
        metric, _, mode = text.partition(":")
        if metric not in known:
            raise UsageError(f"Objective {text!r}: there is no metric {metric!r}. {suggest(metric, known)}")
        try:
            out.append(Objective(known[metric], mode or "max"))
        except ValueError as error:
            raise UsageError(str(error)) from error
    return out


def trial_metrics(dataset: Dataset) -> dict[str, str]:
    """What may be an objective of a run that trains networks: what training gives, and every cost."""
    return {"loss": "loss", main_metric(dataset): main_metric(dataset)} | METRICS


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
        wanted = parse_objectives(config.objectives, trial_metrics(dataset))
        self.objectives = wanted or default_objectives(dataset, parts.strategy.multi_objective)
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
            trials=self.expected_trials(),
            describe_limits=self.limits.describe,
        )

    def expected_trials(self) -> int | None:
        """How many full evaluations the budget pays for; None if it is in seconds."""
        budget = self.config.budget
        if budget.epochs is not None:
            return max(1, budget.epochs // self.config.recipe.epochs)
        return budget.trials

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
        keeper = Keeper(self, arm)
        arm.on_told = keeper.told  # also of what is replayed: which weights are gone decides what may be cached
        arm.replay()
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
