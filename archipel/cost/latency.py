"""Measured latency: warmed up, with a fixed number of threads, one measurement at a time on a machine.

A forward pass in evaluation mode is repeated and each repetition timed; the median is what it usually takes, the
interquartile range says how far to trust that. Processes take turns by a lock on a file, so that measurements of
parallel trials do not disturb each other. What other work does to them (training in another process) shows in the
spread: :attr:`Latency.disturbed`.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from archipel.core.errors import RunError, UsageError

# A spread above this share of the median means that something else was using the processor.
CALM = 0.25


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one forward pass of ``batch`` inputs.

    Attributes:
        median_ms, iqr_ms: median and interquartile range over ``runs`` timed passes.
        min_ms: the fastest pass.
    """

    median_ms: float
    iqr_ms: float
    min_ms: float
    runs: int
    batch: int
    threads: int

    @property
    def per_input_ms(self) -> float:
        return self.median_ms / self.batch

    @property
    def disturbed(self) -> bool:
        """Whether the spread is too large for the median to mean much."""
        return self.iqr_ms > CALM * self.median_ms

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms ± {self.iqr_ms:.3f} (batch {self.batch}, {self.threads} thread(s))"


def lock_path() -> Path:
    """The file by which all measurements of one user on this machine take turns."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir()) / f"archipel-latency-{user}.lock"


def measure_latency(
    net: nn.Module,
    example: Tensor,
    batch: int = 1,
    threads: int = 1,
    runs: int = 50,
    warmup: int = 5,
    seconds: float = 2.0,
    patience: float = 600.0,
) -> Latency:
    """Time forward passes of a network.

    Args:
        net: with real tensors; put into evaluation mode meanwhile.
        example: gives the shape, type and device of one input; inputs are zeros.
        batch: inputs in a pass.
        threads: PyTorch threads.
        runs: timed passes; fewer, but at least 5, if they would take longer than ``seconds``.
        warmup: passes before.
        patience: seconds to wait for others who measure.

    Raises:
        UsageError: a count below 1, or a network on the meta device.
        RunError: others measured for longer than ``patience``.
    """
    for name, value in (("batch", batch), ("threads", threads), ("runs", runs)):
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"Latency: {name} must be a positive integer, not {value!r}.")
    if any(t.is_meta for t in [*net.parameters(), *net.buffers()]):
        raise UsageError("Latency: the network is on the meta device and computes nothing; build it first.")
    x = torch.zeros(batch, *example.shape[1:], dtype=example.dtype, device=example.device)
    was_training, had_threads = net.training, torch.get_num_threads()
    net.eval()
    try:
        with FileLock(lock_path(), timeout=patience), torch.inference_mode():
            torch.set_num_threads(threads)
            for _ in range(warmup):
                net(x)
            took_ms = _time(net, x, runs, seconds)
    except Timeout as error:
        raise RunError(
            f"Other processes measured latency for {patience:.0f} s. If none does, delete {lock_path()}."
        ) from error
    finally:
        torch.set_num_threads(had_threads)
        net.train(was_training)
    low, median, high = np.percentile(took_ms, [25, 50, 75])
    return Latency(float(median), float(high - low), float(min(took_ms)), len(took_ms), batch, threads)


def _time(net: nn.Module, x: Tensor, runs: int, seconds: float) -> list[float]:
    took_ms: list[float] = []
    cuda = x.is_cuda
    end = time.perf_counter() + seconds
    while len(took_ms) < runs and (len(took_ms) < 5 or time.perf_counter() < end):
        if cuda:
            torch.cuda.synchronize(x.device)
        start = time.perf_counter_ns()
        net(x)
        if cuda:
            torch.cuda.synchronize(x.device)
        took_ms.append((time.perf_counter_ns() - start) / 1e6)
    return took_ms
