"""Measured latency: what is timed, how often, and one at a time."""

from __future__ import annotations

import itertools
import multiprocessing
import time

import pytest
import torch
from torch import nn

from archipel.core.errors import RunError, UsageError
from archipel.cost import latency
from archipel.cost.latency import Latency, lock_path, measure_latency


class Sleep(nn.Module):
    def __init__(self, *ms):
        super().__init__()
        self.ms, self.calls = ms, []

    def forward(self, x):
        self.calls.append((tuple(x.shape), self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        time.sleep(self.ms[len(self.calls) % len(self.ms)] / 1e3)
        return x


@pytest.fixture(autouse=True)
def own_lock(tmp_path, monkeypatch):
    """Measurements of others must not delay the tests."""
    monkeypatch.setattr(latency.tempfile, "gettempdir", lambda: str(tmp_path))


def test_the_median_and_the_spread_are_those_of_the_passes():
    steady = measure_latency(Sleep(5), torch.zeros(1, 3), runs=7, warmup=1)
    assert 5 <= steady.min_ms <= steady.median_ms < 12
    wild = measure_latency(Sleep(2, 20), torch.zeros(1, 3), runs=20, warmup=0)
    assert wild.iqr_ms > 10
    assert wild.disturbed
    assert wild.runs == 20


def test_warm_up_is_not_timed_and_the_network_is_in_evaluation_mode_without_gradients():
    net = Sleep(0).train()
    had = torch.get_num_threads()
    result = measure_latency(net, torch.zeros(9, 3), batch=4, threads=1, runs=6, warmup=3)
    assert len(net.calls) == 3 + 6
    assert set(net.calls) == {((4, 3), False, False, 1)}
    assert net.training
    assert torch.get_num_threads() == had
    assert (result.batch, result.threads) == (4, 1)


def test_slow_networks_are_timed_fewer_times():
    net = Sleep(30)
    assert measure_latency(net, torch.zeros(1, 3), runs=100, warmup=0, seconds=0.05).runs == 5


def test_a_batch_is_timed_as_a_whole_and_reported_per_input():
    result = Latency(10.0, 1.0, 9.0, 20, batch=4, threads=1)
    assert result.per_input_ms == 2.5
    assert not result.disturbed
    assert str(result) == "10.000 ms ± 1.000 (batch 4, 1 thread(s))"


def test_larger_networks_take_longer():
    small, large = (nn.Sequential(*[nn.Linear(n, n) for _ in range(4)]) for n in (8, 1500))
    x = [torch.zeros(1, 8), torch.zeros(1, 1500)]
    first, second = (measure_latency(net, t, batch=8, runs=9) for net, t in zip((small, large), x))
    assert second.median_ms > 3 * first.median_ms


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"threads": -1}, {"runs": 1.5}])
def test_counts_must_be_positive(wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be a positive integer"):
        measure_latency(Sleep(0), torch.zeros(1, 3), **wrong)


def test_a_network_without_memory_cannot_be_timed():
    with pytest.raises(UsageError, match="on the meta device"):
        measure_latency(nn.Linear(2, 2).to("meta"), torch.zeros(1, 2))


def test_the_lock_is_released_after_a_failure():
    class Fails(nn.Module):
        def forward(self, x):
            raise ArithmeticError("no")

    had = torch.get_num_threads()
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            measure_latency(Fails(), torch.zeros(1, 2), threads=1)
    assert torch.get_num_threads() == had
    assert measure_latency(Sleep(0), torch.zeros(1, 2), runs=5, patience=1).runs == 5


def _measure(folder, start, out):
    latency.tempfile.gettempdir = lambda: folder
    start.wait()
    began = time.monotonic()

    class Timed(nn.Module):
        spans: list = []

        def forward(self, x):
            began = time.monotonic()
            time.sleep(0.02)
            self.spans.append((began, time.monotonic()))
            return x

    net = Timed()
    measure_latency(net, torch.zeros(1, 1), runs=8, warmup=2)
    out.put((began, net.spans[0][0], net.spans[-1][1]))


def test_processes_take_turns(tmp_path):
    context = multiprocessing.get_context("fork")
    start, out = context.Event(), context.Queue()
    processes = [context.Process(target=_measure, args=(str(tmp_path), start, out)) for _ in range(3)]
    for p in processes:
        p.start()
    start.set()
    spans = sorted(out.get(timeout=60)[1:] for _ in processes)
    for p in processes:
        p.join()
    for (_, end), (begin, _) in itertools.pairwise(spans):
        assert begin >= end  # no two measurements overlap


def test_waiting_has_an_end():
    from filelock import FileLock

    with FileLock(lock_path()), pytest.raises(RunError, match=r"Other processes measured latency .* delete .*lock"):
        measure_latency(Sleep(0), torch.zeros(1, 1), patience=0.1)
