"""What a network costs: parameters and multiply-accumulates, exactly; activation memory and latency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from archipel.core.decision import Arch
from archipel.cost.latency import Latency, measure_latency
from archipel.cost.memory import inference_bytes, training_bytes
from archipel.cost.meta import MetaMode


def count_params(net: nn.Module) -> int:
    """Number of trainable parameters; shared tensors count once."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


class FlopMode(MetaMode):
    """Counts the floating-point operations on meta tensors by the formulas of PyTorch's FLOP counter."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def count(self, flops: int) -> None:
        self.total += flops

    def seen(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        formula = flop_registry.get(op._overloadpacket)
        if formula is None:
            return
        of_shapes = getattr(formula, "__wrapped__", None)
        if of_shapes is None or kwargs or not isinstance(out, Tensor):
            self.count(formula(*args, **kwargs, out_val=out))
        else:  # PyTorch looks for tensors in all corners of the arguments, which takes longer than all the rest
            self.count(of_shapes(*[a.shape if isinstance(a, Tensor) else a for a in args], out_shape=out.shape))


def count_macs(net: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one forward pass for one input (the first of ``example``), on the meta device.

    Convolutions, matrix products and attention count; element-wise work does not, as is usual. Equals half of what
    ``torch.utils.flop_counter.FlopCounterMode`` counts, and is found over ten times faster.
    """
    was_training = net.training
    net.eval()
    counter = FlopMode()
    with torch.no_grad(), counter:
        net(torch.empty_like(example[:1], device="meta"))
    net.train(was_training)
    return counter.total // 2


class CostModel:
    """Costs of a space's networks, each computed once.

    Args:
        build_meta: architecture -> network on the meta device.
        example: a batch of inputs.
        key: architecture -> what equal costs can be cached by.
    """

    def __init__(self, build_meta: Callable[[Arch], nn.Module], example: Tensor, key: Callable[[Arch], Any]) -> None:
        self.build_meta = build_meta
        self.example = example
        self.key = key
        self._known: dict[Any, Any] = {}
        self._last: tuple[Any, nn.Module] | None = None  # several costs of one network are asked for in a row

    def _once(self, what: Any, arch: Arch, compute: Callable[[nn.Module], Any]) -> Any:
        name = self.key(arch)
        key = (what, name)
        if key not in self._known:
            if self._last is None or self._last[0] != name:
                self._last = name, self.build_meta(arch)
            self._known[key] = compute(self._last[1])
        return self._known[key]

    def params(self, arch: Arch) -> int:
        """Trainable parameters."""
        return self._once("params", arch, count_params)

    def macs(self, arch: Arch) -> int:
        """Multiply-accumulates for one input."""
        return self._once("macs", arch, lambda net: count_macs(net, self.example))

    def memory_bytes(self, arch: Arch, batch: int = 1) -> int:
        """Peak bytes of activations while ``batch`` inputs are classified; see :mod:`archipel.cost.memory`."""
        return self._once(("memory", batch), arch, lambda net: inference_bytes(net, self.example, batch))

    def training_bytes(self, arch: Arch, batch: int = 64) -> int:
        """Peak bytes of activations and their gradients in a training step; see :mod:`archipel.cost.memory`."""
        return self._once(("training", batch), arch, lambda net: training_bytes(net, self.example, batch))

    def latency(self, arch: Arch, batch: int = 1, threads: int = 1) -> Latency:
        """Measured latency with its spread, on this machine; see :mod:`archipel.cost.latency`."""
        return self._once(
            ("latency", batch, threads),
            arch,
            lambda _: measure_latency(
                with_values(self.build_meta(arch), self.example.device), self.example, batch, threads
            ),
        )

    def latency_ms(self, arch: Arch, batch: int = 1, threads: int = 1) -> float:
        """Median measured latency in milliseconds for ``batch`` inputs."""
        return self.latency(arch, batch, threads).median_ms


def with_values(net: nn.Module, device: torch.device) -> nn.Module:
    """A meta network with memory and harmless values; uninitialised ones may be denormal numbers, which are slow."""
    net = net.to_empty(device=device)
    with torch.no_grad():
        for t in [*net.parameters(), *net.buffers()]:
            if t.is_floating_point():
                t.fill_(0.01)
            else:
                t.zero_()
    return net
