"""Search policies: whatever chooses an architecture, given a task and a seed. The random policy is one of them.

Yu, Sciuto, Jaggi, Musat, Salzmann. Evaluating the Search Phase of Neural Architecture Search. 2020.
https://arxiv.org/abs/1902.08142

    for each policy and seed s = 1..n:   a_s = policy(task, s);   result_s = judge(a_s, EVALUATION_SEEDS + s)

The task holds training and validation data, never those that the judge uses; all policies have the same judge.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from archipel.core.decision import Arch
from archipel.core.errors import RunError, UsageError
from archipel.core.space import Space
from archipel.data.dataset import Dataset
from archipel.search.evaluation.judging import EVALUATION_SEEDS, Judge, example_params, judge_all
from archipel.search.evaluation.notebook import Notebook, run_all
from archipel.search.evaluation.runs import Runs, plain, short_hash
from archipel.search.strategy import Context, Objective, Problem, Strategy, Trial
from archipel.search.training import Diverged, Recipe, evaluate, main_metric, train


@dataclass(frozen=True)
class SearchTask:
    """What a policy may use.

    Args:
        space: to search.
        dataset: training and validation data; a test split is removed. None for searches in a table.
        recipe: by which candidates are trained during the search; may be cheaper than the judge's.
        table: results of candidates without training, such as a tabular benchmark's; higher is better.
    """

    space: Space
    dataset: Dataset | None = None
    recipe: Recipe = field(default_factory=Recipe)
    table: Callable[[Arch], float] | None = None

    def __post_init__(self) -> None:
        if self.dataset is not None:
            object.__setattr__(self, "dataset", self.dataset.without_test())

    @property
    def metric(self) -> str:
        return "accuracy" if self.dataset is None else main_metric(self.dataset)

    def evaluate(self, arch: Arch, seed: int, epochs: int | None = None) -> float:
        """A candidate's result without weight sharing: from the table, or trained alone and judged on validation data.

        Raises:
            UsageError: there is neither a table nor a data set.
            Diverged: the training did.
        """
        if self.table is not None:
            return float(self.table(arch))
        if self.dataset is None:
            raise UsageError("Candidates cannot be evaluated: the search task has neither a table nor a data set.")
        net = self.space.build(arch, seed)
        recipe = self.recipe.with_hyper(self.space.hyper(arch))
        train(net, self.dataset.train, self.dataset.task, recipe, seed, stop=epochs)
        return evaluate(net, self.dataset.val, self.dataset.task)[self.metric]

    def describe(self) -> dict[str, Any]:
        data = None if self.dataset is None else [self.dataset.name, len(self.dataset.train), len(self.dataset.val)]
        table = None if self.table is None else plain(self.table)
        return {
            "space": space_text(self.space),
            "parameters of an example": example_params(self.space),
            "data": data,
            "recipe": self.recipe.as_dict(),
            "table": table,
        }


def space_text(space: Space) -> str:
    """Name and size of a space.

    >>> from archipel.core.decision import Decision
    >>> space_text(Space([Decision("op", ["a", "b"])]))
    'space (2 architectures)'
    """
    return f"{space.name} ({space.size} architectures)"


@dataclass(frozen=True)
class Found:
    """What a search returned, how many candidates it trained or looked up on the way, and seconds it took."""

    arch: Arch
    queries: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Policy:
    """A named way of choosing an architecture.

    Args:
        name: unique in a comparison; two policies of different names draw different random numbers.
        choose: ``choose(task, rng, seed)``, where ``rng`` belongs to this policy and seed.
        settings: hyperparameters, for the record; a notebook tells policies apart by name and settings.
    """

    name: str
    choose: Callable[[SearchTask, Random, int], Found]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def search(self, task: SearchTask, seed: int) -> Found:
        """Search once; the answer is an architecture of the task's space.

        Raises:
            SpaceError: it is not.
        """
        started = time.monotonic()
        found = self.choose(task, Random(f"{self.name}/{seed}"), seed)
        return replace(found, arch=task.space.validate(found.arch), seconds=time.monotonic() - started)


def random_policy(name: str = "random") -> Policy:
    """One architecture, uniformly from the space: what every policy is measured against.

    >>> from archipel.core.decision import Decision
    >>> random_policy().search(SearchTask(Space([Decision("op", ["a"])])), seed=0).arch
    {'op': 'a'}
    """
    return Policy(name, _choose_uniformly, {"policy": "uniform random architecture"})


def _choose_uniformly(task: SearchTask, rng: Random, seed: int) -> Found:
    return Found(task.space.sample(rng))


def strategy_policy(name: str, make: Callable[[], Strategy], trials: int = 1, epochs: int | None = None) -> Policy:
    """An ask/tell strategy as a policy.

    Args:
        make: makes the strategy, anew for each search.
        trials: candidates that are evaluated without weight sharing, of which the best is the answer. With 1, the
            answer is the strategy's first proposal, and no candidate is trained alone: so for strategies that train a
            supernet.
        epochs: of a supernet's training; the strategy's own if left out.

    Raises:
        UsageError: fewer than one trial.
    """
    if trials < 1:
        raise UsageError(f"Policy {name!r} needs at least one trial, not {trials!r}.")
    settings = {**settings_of(make), "trials": trials} | ({} if epochs is None else {"supernet epochs": epochs})
    return Policy(name, StrategyChoice(name, make, trials, epochs), settings)


def settings_of(make: Callable[[], Strategy]) -> dict[str, Any]:
    """What is known about how strategies are made: the keywords of a ``functools.partial``, else only a name.

    >>> from archipel.search.blackbox.random_search import RandomSearch
    >>> settings_of(functools.partial(RandomSearch))
    {'strategy': 'archipel.search.blackbox.random_search.RandomSearch'}
    """
    if isinstance(make, functools.partial):
        return {"strategy": plain(make.func), **make.keywords}
    return {"strategy": plain(make)}


@dataclass(frozen=True)
class StrategyChoice:
    """Runs a strategy, one trial after the other; see :func:`strategy_policy`."""

    name: str
    make: Callable[[], Strategy]
    trials: int
    epochs: int | None

    def __call__(self, task: SearchTask, rng: Random, seed: int) -> Found:
        strategy = start_strategy(self.make, task, rng, seed, self.epochs)
        best: Trial | None = None
        failures = []
        queries = 0
        while queries < self.trials and not strategy.finished and (trial := strategy.ask()) is not None:
            if self.trials == 1:
                return Found(trial.arch)
            queries += 1
            try:
                trial.metrics = {task.metric: task.evaluate(trial.arch, seed, trial.resource)}
            except Diverged as error:
                trial.failure = f"NaN: {error}"
                failures.append(trial.failure)
            strategy.tell(trial)
            full = trial.resource is None or trial.resource >= task.recipe.epochs
            if trial.ok and full and (best is None or trial.metrics[task.metric] > best.metrics[task.metric]):
                best = trial
        if best is None:
            reason = failures[0] if failures else "none was trained in full"
            raise RunError(f"{self.name}, seed {seed}: none of {queries} trials gave a candidate ({reason}).")
        return Found(best.arch, queries)


def start_strategy(
    make: Callable[[], Strategy], task: SearchTask, rng: Random, seed: int, epochs: int | None = None
) -> Strategy:
    """A strategy, set up for a task and, where there are data, with its supernet trained.

    Raises:
        UsageError: it is multi-objective, so it returns no single architecture.
    """
    strategy = make()
    if strategy.multi_objective:
        raise UsageError(f"{type(strategy).__name__} returns a Pareto set; a policy returns one architecture.")
    strategy.setup(Problem(task.space, [Objective(task.metric)], rng, max_resource=task.recipe.epochs))
    if task.dataset is not None:
        strategy.prepare(Context(task.dataset, task.recipe, seed=seed, epochs=epochs))
    return strategy


# --- runs ------------------------------------------------------------------------------------------------------------


def _search(policy: Policy, task: SearchTask, seed: int) -> dict[str, Any]:
    found = policy.search(task, seed)
    return {"arch": found.arch, "queries": found.queries, "seconds": found.seconds}


def run_policies(
    policies: Sequence[Policy],
    task: SearchTask,
    judge: Judge,
    seeds: int | Sequence[int] = 10,
    executor: Executor | None = None,
    notebook: Notebook | None = None,
) -> list[Runs]:
    """Search with every policy under every seed, and judge what was found.

    Args:
        seeds: of the searches, below ``EVALUATION_SEEDS``; or their number.
        executor: runs searches and trainings; in this process, one after the other, if left out.
        notebook: remembers both.

    Raises:
        UsageError: two policies of one name, or seeds that repeat or are those of evaluations.
    """
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if len(set(numbers)) < len(numbers) or not all(0 <= s < EVALUATION_SEEDS for s in numbers):
        raise UsageError(f"Search seeds are different numbers from 0 to {EVALUATION_SEEDS - 1}, not {numbers}.")
    names = [p.name for p in policies]
    if len(set(names)) < len(names):
        raise UsageError(f"Each policy needs a name of its own, but they are {names}.")
    notebook = notebook or Notebook()
    jobs = {}
    for p in policies:
        head = short_hash([task.describe(), p.name, p.settings])
        jobs |= {json.dumps(["search", p.name, head, s]): (_search, (p, task, s)) for s in numbers}
    found = run_all(jobs, executor, notebook)
    pairs = [(f["arch"], EVALUATION_SEEDS + s) for f, s in zip(found, numbers * len(policies))]
    results = judge_all(judge, pairs, executor, notebook)
    out = []
    for i, p in enumerate(policies):
        part = slice(i * len(numbers), (i + 1) * len(numbers))
        searches, judged = found[part], results[part]
        out.append(Runs(
            name=p.name,
            values=[float("nan") if r["value"] is None else r["value"] for r in judged],
            protocol=judge.protocol,
            space=space_text(task.space),
            search_seeds=numbers,
            evaluation_seeds=[EVALUATION_SEEDS + s for s in numbers],
            archs=[f["arch"] for f in searches],
            failures=[r["failure"] for r in judged],
            settings=p.settings,
            queries=sum(f["queries"] for f in searches) / max(1, len(numbers)),
            seconds=sum(f["seconds"] for f in searches) / max(1, len(numbers)),
        ))  # fmt: skip
    return out
