"""What a worker does: build a network, train it, judge it, and say what went wrong if something did.

Runs in the searching process, in a local worker process or on a cluster. Nothing here raises: an outcome always comes
back, with a reason where there is no result.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from archipel.core.decision import Arch
from archipel.core.errors import RunError
from archipel.core.space import Space
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset
from archipel.search.joint import with_hyperparameters
from archipel.search.training import Diverged, Recipe, TrialTimeout, evaluate, train


@dataclass(frozen=True)
class Blueprint:
    """What every trial of a run shares; made once in each worker.

    Args:
        key: identifies the run in a worker's cache.
        data, space: the objects, or what to load them from.
        folder: of checkpoints, reachable from the worker; None keeps them in memory (inline only).
        joint: hyperparameters that a space made here is joined with; a given object has them already.
    """

    key: str
    data: str | Dataset
    space: str | Space
    recipe: Recipe
    seed: int
    folder: str | None
    data_options: dict[str, Any] = field(default_factory=dict)
    space_options: dict[str, Any] = field(default_factory=dict)
    joint: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """One evaluation.

    Args:
        name: of its checkpoint.
        arch: to evaluate.
        epochs: to have trained in total when done; None: the recipe's.
        resume: checkpoint name to continue from.
        full_epochs: length of the learning-rate schedule; None: the recipe's. A trial that is trained from scratch
            for a smaller budget anneals over that budget.
        save_above: keep the weights if the score (``metric``) exceeds this; None: never, -inf: always.
        seconds: time limit.
    """

    name: str
    arch: Arch
    epochs: int | None = None
    resume: str | None = None
    full_epochs: int | None = None
    save_above: float | None = None
    metric: str = "accuracy"
    seconds: float | None = None


@dataclass
class Outcome:
    """Metrics, or the reason why there are none; seconds spent; whether the weights were kept.

    ``fatal`` is a reason that is none of the trial's (a full disk): the run stops and can be resumed.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    seconds: float = 0.0
    saved: bool = False
    fatal: str | None = None
    trace: str = ""


class Workshop:
    """A run's space, data and recipe, loaded."""

    def __init__(self, blueprint: Blueprint) -> None:
        from archipel.data.load import load
        from archipel.spaces.catalogue import make_space

        dataset = blueprint.data
        if isinstance(dataset, str):
            dataset = load(dataset, seed=blueprint.seed, **blueprint.data_options)
        self.dataset = dataset.without_test()
        space = blueprint.space
        if isinstance(space, str):
            space = with_hyperparameters(make_space(space, self.dataset, **blueprint.space_options), blueprint.joint)
        self.space = space
        self.recipe = blueprint.recipe
        self.seed = blueprint.seed
        self.checkpoints = Checkpoints(Path(blueprint.folder) if blueprint.folder else None)

    def run(self, job: Job) -> Outcome:
        """Train and judge one network. Exceptions of a trial become its failure."""
        started = time.monotonic()
        outcome = Outcome()
        try:
            with _alarm(job.seconds):
                self._run(job, outcome, None if job.seconds is None else started + job.seconds)
        except TrialTimeout as error:
            outcome.failure = f"timeout: {error}"
        except Diverged as error:
            outcome.failure = f"NaN: {error}"
        except MemoryError as error:
            why = str(error) or "an allocation was refused; the memory limit of a trial is below what a worker needs"
            outcome.failure = f"out of memory: {why}"
        except RunError as error:
            outcome.fatal = str(error)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            lowered = text.lower()
            no_memory = "can't allocate memory" in lowered or "out of memory" in lowered
            outcome.failure = f"out of memory: {text:.200}" if no_memory else f"error: {text:.500}"
            outcome.trace = traceback.format_exc(limit=8)
        if outcome.failure:
            outcome.metrics = {}
        outcome.seconds = time.monotonic() - started
        return outcome

    def _run(self, job: Job, outcome: Outcome, deadline: float | None) -> None:
        recipe = self.recipe.with_hyper(self.space.hyper(job.arch))
        epochs = recipe.epochs if job.epochs is None else job.epochs
        recipe = replace(recipe, epochs=job.full_epochs or recipe.epochs)
        torch.manual_seed(self.seed)
        net = self.space.build(job.arch, seed=self.seed)
        optimizer, start = None, 0
        if job.resume is not None:
            from archipel.search.training import make_optimizer

            state = self.checkpoints.load(job.resume)
            if state is None:
                raise FileNotFoundError(f"the checkpoint {job.resume} that this trial continues is gone")
            net.load_state_dict(state["model"])
            optimizer = make_optimizer(recipe, net.parameters())
            optimizer.load_state_dict(state["optimizer"])
            start = state["epoch"]
        data = self.dataset
        optimizer = train(net, data.train, data.task, recipe, self.seed, start, epochs, optimizer, deadline=deadline)
        metrics = evaluate(net, data.val, data.task)
        bad = [k for k, v in metrics.items() if not math.isfinite(v)]
        if bad:
            raise Diverged(f"{bad[0]} is {metrics[bad[0]]}")
        outcome.metrics = {**metrics, "epochs": float(epochs - start)}
        if job.save_above is not None and metrics.get(job.metric, math.inf) >= job.save_above:
            state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epochs}
            self.checkpoints.save(job.name, state)
            outcome.saved = True


@contextmanager
def _alarm(seconds: float | None) -> Any:
    """Interrupt Python code that runs far past its limit (user modules may hang outside the training loop)."""
    usable = seconds is not None and threading.current_thread() is threading.main_thread()
    if not usable:
        yield
        return

    def ring(signum: int, frame: Any) -> None:
        raise TrialTimeout(f"time limit of {seconds:g} s reached")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds + 0.2)  # type: ignore[operator]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


_workshops: dict[str, Workshop] = {}
_blueprints: dict[str, Blueprint] = {}


def start_process(blueprint: Blueprint, memory: int | None) -> None:
    """Initialise a local worker process: one thread, deaf to Ctrl-C, gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    searching = multiprocessing.parent_process()

    def watch() -> None:
        # Not the parent by the system's count, which is the fork server: that one lives as long as its children.
        if searching is not None:
            searching.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _blueprints[blueprint.key] = blueprint
    _workshop(blueprint)
    if memory is not None:
        import resource

        import psutil

        now = psutil.Process().memory_info().data
        resource.setrlimit(resource.RLIMIT_DATA, (now + memory, now + memory))


def _workshop(blueprint: Blueprint) -> Workshop:
    if blueprint.key not in _workshops:
        _workshops.clear()  # one run at a time; data sets are large
        _workshops[blueprint.key] = Workshop(blueprint)
    return _workshops[blueprint.key]


def run_job(blueprint: Blueprint | str, job: Job) -> Outcome:
    """Evaluate in any process; a key instead of a blueprint means one that :func:`start_process` was given."""
    started = time.monotonic()
    try:
        workshop = _workshop(_blueprints[blueprint] if isinstance(blueprint, str) else blueprint)
    except Exception as error:
        reason = f"error: worker could not start: {type(error).__name__}: {error}"
        return Outcome(failure=reason, seconds=time.monotonic() - started)
    return workshop.run(job)
