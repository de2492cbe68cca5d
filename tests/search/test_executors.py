"""Trials on every kind of executor give the same results."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from archipel.core.errors import UsageError
from archipel.search.executors import Crew, RayExecutor
from archipel.search.training import Recipe
from archipel.search.worker import Blueprint, Job

RECIPE = Recipe(epochs=1, lr=0.01)


def blueprint():
    return Blueprint("test", "wine", "mlp", RECIPE, seed=0, folder=None)


def archs(n=3):
    from random import Random

    from archipel.data.load import load
    from archipel.spaces.catalogue import make_space

    space = make_space("mlp", load("wine"))
    rng = Random(0)
    return [space.sample(rng) for _ in range(n)]


def outcomes(executor, workers=2):
    crew = Crew(executor, workers, blueprint())
    try:
        futures = [crew.submit(Job(str(i), arch)) for i, arch in enumerate(archs())]
        results = [f.result(timeout=120) for f in futures]
    finally:
        crew.close()
    assert all(r.failure is None for r in results), [r.failure for r in results]
    return [r.metrics for r in results]


@pytest.fixture(scope="module")
def expected():
    return outcomes("inline", 1)


def close(a, b):
    return all(x.keys() == y.keys() and all(x[k] == pytest.approx(y[k], rel=1e-4) for k in x) for x, y in zip(a, b))


def test_local_processes(expected):
    assert close(outcomes("local"), expected)


def test_any_executor_of_the_standard_library(expected):
    with ThreadPoolExecutor(1) as pool:
        assert close(outcomes(pool), expected)


@pytest.mark.cluster
def test_a_real_local_dask_cluster(expected):
    pytest.importorskip("distributed")
    assert close(outcomes("dask"), expected)


@pytest.mark.cluster
def test_a_real_local_ray_cluster(expected):
    pytest.importorskip("ray")
    assert close(outcomes("ray"), expected)


def test_a_worker_that_cannot_load_its_run_says_so():
    crew = Crew("local", 1, Blueprint("bad", "no-such-data", "mlp", RECIPE, 0, None))
    try:
        with pytest.raises(Exception):  # noqa: B017  (the pool reports its initializer's failure as broken)
            crew.submit(Job("0", {})).result(timeout=120)
    finally:
        crew.close(kill=True)


def test_unknown_executors_are_named():
    with pytest.raises(UsageError, match="Did you mean: dask"):
        Crew("dusk", 1, blueprint())


class FakeRay:
    """Refuses what Ray refuses: a number of processors for a cluster that is there already."""

    def __init__(self, cluster):
        self.cluster, self.given = cluster, None

    def is_initialized(self):
        return False

    def init(self, num_cpus=None, **rest):
        if self.cluster == "gone":
            raise ConnectionError("nobody there")
        if self.cluster and num_cpus is not None:
            raise ValueError("When connecting to an existing cluster, num_cpus must not be provided.")
        self.given = num_cpus


@pytest.mark.parametrize(
    ("address", "cluster", "given"),
    [("10.0.0.1:6379", True, None), ("auto", True, None), ("", True, None), ("", False, 3), ("local", False, 3)],
)
def test_ray_is_told_how_many_processors_only_where_it_is_started(monkeypatch, address, cluster, given):
    ray = FakeRay(cluster)
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("archipel.search.executors.require", lambda *names: ray)
    RayExecutor(3)
    assert ray.given == given


def test_a_ray_cluster_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("archipel.search.executors.require", lambda *names: FakeRay("gone"))
    with pytest.raises(UsageError, match=r"RAY_ADDRESS='10\.0\.0\.1:6379'"):
        RayExecutor(3)


def test_a_memory_limit_fails_the_trial_and_not_the_worker():
    crew = Crew("local", 1, Blueprint("memory", "wine", GreedySpace(), RECIPE, 0, None), memory=200_000_000)
    try:
        first = crew.submit(Job("0", {"elements": 2_000_000_000})).result(timeout=120)
        second = crew.submit(Job("1", {"elements": 10})).result(timeout=120)
    finally:
        crew.close()
    assert first.failure is not None
    assert first.failure.startswith("out of memory")
    assert second.failure is None


class GreedySpace:
    """Stands in for a space whose network allocates what the architecture says."""

    name = "greedy"

    def hyper(self, arch):
        return {}

    def build(self, arch, seed=0):
        import torch
        from torch import nn

        torch.zeros(arch["elements"]).add_(1.0)
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
