"""Where trials run: any ``concurrent.futures.Executor``.

Local processes by default; Dask by its own executor; Ray through the futures of its object references. There is no
scheduler here: a :class:`Crew` hands jobs to an executor and, where the executor is a local pool, replaces it when one
of its processes dies or hangs.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

from archipel.core.errors import UsageError, require, suggest
from archipel.search.config import EXECUTORS
from archipel.search.worker import Blueprint, Job, Outcome, Workshop, run_job, start_process


class InlineExecutor(Executor):
    """Runs each call at once, in this process and thread."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class RayExecutor(Executor):
    """Futures from Ray tasks; joins the cluster of ``RAY_ADDRESS`` or one that runs here, or starts a local one.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: ``RAY_ADDRESS`` cannot be reached.
    """

    def __init__(self, workers: int) -> None:
        self.ray = require("ray", "ray")
        self._started = not self.ray.is_initialized()
        if self._started:
            self._connect(workers)

    def _connect(self, workers: int) -> None:
        quiet = {"log_to_driver": False, "configure_logging": False}
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            if address not in ("", "local"):
                self.ray.init(**quiet)  # a cluster has the processors that it has
                return
            try:
                self.ray.init(num_cpus=workers, include_dashboard=False, **quiet)
            except ValueError:  # `ray start` was called on this machine, and Ray joins that
                self.ray.init(**quiet)
        except ConnectionError as error:
            raise UsageError(
                f"No Ray cluster answers at RAY_ADDRESS={address!r} ({error}). Start it, or unset RAY_ADDRESS for a "
                "local one."
            ) from error

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        task = self.ray.remote(fn).options(num_cpus=1, max_retries=0)
        return task.remote(*args, **kwargs).future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._started and self.ray.is_initialized():
            self.ray.shutdown()


class Crew:
    """Workers for one run.

    Args:
        executor: a name (``inline``, ``local``, ``ray``, ``dask``) or an executor of yours.
        workers: how many jobs at once.
        blueprint: what the jobs share.
        memory: bytes that a job in a local process may allocate.

    Raises:
        UsageError: unknown name.
        MissingExtraError: Ray or Dask is not installed.
    """

    def __init__(self, executor: str | Executor, workers: int, blueprint: Blueprint, memory: int | None = None) -> None:
        self.name = executor
        self.workers = workers
        self.blueprint = blueprint
        self.memory = memory
        self._owned = isinstance(executor, str)
        self._dask: Any = None
        self.executor = executor if isinstance(executor, Executor) else self._start(executor)
        self._workshop: Workshop | None = None

    def _start(self, name: str) -> Executor:
        if name == "inline":
            return InlineExecutor()
        if name == "local":
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["archipel.search.worker", "archipel.spaces.catalogue"])
            return ProcessPoolExecutor(
                self.workers, mp_context=context, initializer=start_process, initargs=(self.blueprint, self.memory)
            )
        if name == "ray":
            return RayExecutor(self.workers)
        if name == "dask":
            distributed = require("distributed", "dask")
            self._dask = distributed.Client(
                n_workers=self.workers, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
            )
            return self._dask.get_executor()
        raise UsageError(f"Unknown executor {name!r}. {suggest(name, EXECUTORS)}")

    @property
    def replaceable(self) -> bool:
        """Whether a dead or hanging worker can be replaced."""
        return self._owned and self.name == "local"

    def submit(self, job: Job) -> Future[Outcome]:
        if self.name == "inline":
            if self._workshop is None:
                self._workshop = Workshop(self.blueprint)
            return self.executor.submit(self._workshop.run, job)
        shared = self.blueprint.key if self.name == "local" else self.blueprint
        return self.executor.submit(run_job, shared, job)

    def replace(self) -> None:
        """End the local worker processes, whatever they do, and start new ones."""
        self._kill()
        self.executor = self._start(str(self.name))

    def _kill(self) -> None:
        if isinstance(self.executor, ProcessPoolExecutor):
            for process in list((getattr(self.executor, "_processes", None) or {}).values()):
                process.kill()
        self.executor.shutdown(wait=False, cancel_futures=True)

    def close(self, kill: bool = False) -> None:
        """Let the workers go; an executor that was handed in is left running."""
        if not self._owned:
            return
        if kill:
            self._kill()
        else:
            self.executor.shutdown(wait=True)
        if self._dask is not None:
            self._dask.shutdown()
