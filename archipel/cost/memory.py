"""Peak activation memory, counted: which tensors are alive at the same time, and their bytes.

The network runs on the meta device, where tensors have sizes but no memory. Every storage that an operation creates
is recorded when it appears and when the last reference to it goes — a local variable, a module's caller, or autograd's
saved tensors — so the count is what eager PyTorch holds, exactly and the same each time.

Counted: inputs, every intermediate result (an operation's inputs and outputs are alive together; views and in-place
results cost nothing), in training also what autograd saves and the gradients of activations, down from given gradients
of the outputs. Not counted: parameters and buffers, gradients of parameters, optimiser state (all known from the number
of parameters), and what kernels or the allocator need inside (workspaces, rounding, fragmentation).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from archipel.cost.meta import MetaMode


class _Accounts(MetaMode):
    """Records births and deaths of storages."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []  # (number of the storage, bytes; negative when it goes)
        self._alive: dict[int, tuple[int, Any]] = {}  # address -> (number, weak reference)
        self._count = 0

    def add(self, t: Tensor) -> None:
        storage = t.untyped_storage()
        address = storage._cdata
        if address in self._alive:
            return
        number, size = self._count, storage.nbytes()
        self._count += 1

        def gone(_: Any) -> None:
            self._alive.pop(address, None)
            self.events.append((number, -size))

        self._alive[address] = (number, weakref.ref(storage, gone))
        self.events.append((number, size))

    def number(self, t: Tensor) -> int | None:
        known = self._alive.get(t.untyped_storage()._cdata)
        return known[0] if known else None

    def ignore(self, t: Tensor) -> None:
        """Leave out a tensor that exists beforehand."""
        storage = t.untyped_storage()
        self._alive[storage._cdata] = (-1, storage)

    def seen(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        for t in _tensors(out):
            self.add(t)

    def peak(self, without: set[int]) -> int:
        now = most = 0
        for number, size in self.events:
            if number not in without:
                now += size
                most = max(most, now)
        return most


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _run(net: nn.Module, example: Tensor, batch: int, training: bool) -> int:
    was_training = net.training
    net.train(training)
    accounts = _Accounts()
    for t in [*net.parameters(), *net.buffers()]:
        accounts.ignore(t)
    parameters = [p for p in net.parameters() if p.requires_grad]
    before = [p.grad for p in parameters]
    collecting = gc.isenabled()
    gc.disable()  # frees only what reference cycles keep, at a moment that depends on the rest of the program
    try:
        x = torch.empty(batch, *example.shape[1:], dtype=example.dtype, device="meta")
        accounts.add(x)
        with torch.set_grad_enabled(training), accounts:
            out = net(x)
            if training:
                outputs = [t for t in _tensors(out) if t.requires_grad]
                for p in parameters:
                    p.grad = None
                torch.autograd.backward(outputs, [torch.empty_like(t) for t in outputs])
        weights = {accounts.number(p.grad) for p in parameters if p.grad is not None}
        return accounts.peak({n for n in weights if n is not None})
    finally:
        for p, grad in zip(parameters, before):
            p.grad = grad
        net.train(was_training)
        if collecting:
            gc.enable()


def inference_bytes(net: nn.Module, example: Tensor, batch: int = 1) -> int:
    """Peak bytes of activations of one forward pass in evaluation mode, without gradients.

    Args:
        net: on the meta device.
        example: gives the shape and type of one input.
        batch: how many inputs at once.

    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to("meta")
    >>> inference_bytes(net, torch.zeros(1, 8))  # the input, the hidden layer before and after ReLU: 4 (8 + 16 + 16)
    160
    """
    return _run(net, example, batch, training=False)


def training_bytes(net: nn.Module, example: Tensor, batch: int = 64) -> int:
    """Peak bytes of activations and of their gradients in one forward and backward pass in training mode.

    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to("meta")
    >>> training_bytes(net, torch.zeros(1, 8), batch=1) >= inference_bytes(net, torch.zeros(1, 8))
    True
    """
    return _run(net, example, batch, training=True)
