"""The macro space of ENAS: in every layer one operation, and which earlier layers are added to its output.

Pham, Guan, Zoph, Le, Dean. Efficient Neural Architecture Search via Parameter Sharing. 2018.
https://arxiv.org/abs/1802.03268

    h_0 = stem(x),   h_l = BN( op_l(h_{l-1}) + Σ_{j<l-1, skip} h_j )          l = 1 … L
    linear(mean over the plane of h_L)

Decisions: ``l1.op``, ``l2.op``, ``l2.skip0``, … (a skip is ``"no"`` or ``"yes"``). Differs from the paper: skipped
layers are added, not concatenated and projected, and that nothing is halved on the way.

Several names may stand for one operation (``instances``): a controller then finds it more often, at no cost in weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice
from archipel.core.errors import SpaceError
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.operations import OpFactory, Zero, pool, relu_conv_bn

NO, YES = "no", "yes"


def enas_operations() -> dict[str, OpFactory]:
    """The six operations of the published space; ReLU, 1x1, then the filter, each convolution with batch norm."""

    def conv(kernel: int, separable: bool) -> OpFactory:
        def make(C: int, stride: int) -> nn.Module:
            filters = nn.Conv2d(C, C, kernel, stride, kernel // 2, groups=C if separable else 1, bias=False)
            point = [nn.Conv2d(C, C, 1, bias=False)] if separable else []
            return nn.Sequential(*relu_conv_bn(C, C, 1), nn.ReLU(), filters, *point, nn.BatchNorm2d(C))

        return make

    return {
        "conv3": conv(3, False),
        "sep3": conv(3, True),
        "conv5": conv(5, False),
        "sep5": conv(5, True),
        "avg": lambda C, s: pool(nn.AvgPool2d, C, s, False),
        "max": lambda C, s: pool(nn.MaxPool2d, C, s, False),
    }


class MacroLayer(nn.Module):
    """Layer l; takes ``[h_0, …, h_{l-1}]``, each ``[B, C, H, W]``, and gives h_l."""

    def __init__(self, index: int, ops: Mapping[str, nn.Module], C: int, skips: bool) -> None:
        super().__init__()
        self.op = Choice(f"l{index}.op", ops)
        earlier = range(index - 1) if skips else ()
        self.skips = nn.ModuleList(Choice(f"l{index}.skip{j}", {NO: Zero(), YES: nn.Identity()}) for j in earlier)
        self.norm = nn.BatchNorm2d(C)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        total = self.op(states[-1])
        for skip, state in zip(self.skips, states):
            total = total + skip(state)
        return self.norm(total)


class MacroNetwork(nn.Module):
    """The whole network; ``[B, channels, H, W] -> [B, classes]``."""

    def __init__(
        self,
        channels: int,
        classes: int,
        ops: Mapping[str, OpFactory],
        instances: Mapping[str, int],
        C: int,
        layers: int,
        skips: bool,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.layers = nn.ModuleList(
            MacroLayer(l + 1, _options(ops, instances, C), C, skips) for l in range(layers)
        )  # fmt: skip
        self.classifier = nn.Linear(C, classes)

    def forward(self, x: Tensor) -> Tensor:
        states = [self.stem(x)]
        for layer in self.layers:
            states.append(layer(states))
        return self.classifier(torch.relu(states[-1]).mean((2, 3)))


def _options(ops: Mapping[str, OpFactory], instances: Mapping[str, int], C: int) -> dict[str, nn.Module]:
    """The modules of a layer; all instances of an operation are one and the same."""
    out: dict[str, nn.Module] = {}
    for label, make in ops.items():
        module, n = make(C, 1), instances.get(label, 1)
        out |= {label if n == 1 else f"{label}#{i}": module for i in range(n)}
    return out


class MacroSpace(ModuleSpace):
    """Networks of ENAS's macro space.

    Args:
        input_shape: ``(channels, H, W)``.
        classes: number of classes.
        ops: label -> factory; the published six by default.
        instances: label -> under how many names (``label#0``, ``label#1``, …) an operation can be chosen; 1 by default.
        C: channels.
        layers: number of layers.
        skips: whether there are skip decisions.

    Raises:
        SpaceError: no images, no layer, or instances of an operation that is not there or fewer than one.

    >>> space = MacroSpace((1, 8, 8), 10, layers=3)
    >>> space.size == 6**3 * 2**3, space.decisions[1].name
    (True, 'l2.op')
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        ops: Mapping[str, OpFactory] | None = None,
        instances: Mapping[str, int] | None = None,
        C: int = 8,
        layers: int = 4,
        skips: bool = True,
    ) -> None:
        if len(input_shape) != 3:
            raise SpaceError(f"The macro space takes images (channels, height, width), not {tuple(input_shape)}.")
        if layers < 1:
            raise SpaceError(f"The macro space needs at least one layer, not {layers}.")
        ops = enas_operations() if ops is None else dict(ops)
        for label, n in (instances or {}).items():
            if label not in ops:
                raise SpaceError(f"Instances of {label!r}, but the operations are {list(ops)}.")
            if n < 1:
                raise SpaceError(f"An operation has at least one instance; {label!r} is to have {n}.")
        self.instances = {label: (instances or {}).get(label, 1) for label in ops}

        def net() -> nn.Module:
            return MacroNetwork(input_shape[0], classes, ops, self.instances, C, layers, skips)

        super().__init__(net, torch.zeros(2, *input_shape), "macro")

    @staticmethod
    def operation(option: object) -> str:
        """The operation that an option stands for, whichever instance it is."""
        return str(option).partition("#")[0]
