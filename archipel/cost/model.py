"""What a network costs: parameters and multiply-accumulates, exactly; activation memory and latency, measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from archipel.core.decision import Arch


def count_params(net: nn.Module) -> int:
    """Number of trainable parameters; shared tensors count once."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def count_macs(net: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one forward pass for one input (the first of ``example``), on the meta device.

    Convolutions, matrix products and attention count; element-wise work does not, as is usual.
    """
    was_training = net.training
    net.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(torch.empty_like(example[:1], device="meta"))
    net.train(was_training)
    return counter.get_total_flops() // 2


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
        self._params: dict[Any, int] = {}
        self._macs: dict[Any, int] = {}

    def params(self, arch: Arch) -> int:
        """Trainable parameters."""
        key = self.key(arch)
        if key not in self._params:
            self._params[key] = count_params(self.build_meta(arch))
        return self._params[key]

    def macs(self, arch: Arch) -> int:
        """Multiply-accumulates for one input."""
        key = self.key(arch)
        if key not in self._macs:
            self._macs[key] = count_macs(self.build_meta(arch), self.example)
        return self._macs[key]
