"""A grid of layers, strides, channels and operations, of which an architecture is a path: the HyperCuboid.

Hundt, Jain, Hager. sharpDARTS: Faster and More Accurate Differentiable Architecture Search. 2019.
https://arxiv.org/abs/1903.09900  (differentiable hyperparameter grid search; the network is MultiChannelNet)

    states of layer l    one feature map for each number of channels C in the grid
    layer l              every (C_in, C_out, operation): one softmax over all |C|² |O| of them
    state C_out of l+1   Σ over C_in and operations of w · o(state C_in of l)
    architecture         a path: the channels after every layer, and the operation of every layer

Layers come in pairs of stride 1 and 2, so the grid of weights is [2, layers/2, |C|, |C|, |O|]. A stem makes each state
of the first layer from the image, and classifiers of all last states are summed; a path has one of each.

Decisions: ``c0`` to ``cL`` are the channels before the first and after each layer, ``op1`` to ``opL`` the operations.
They fit together whatever they are, so every mutation of a path is one. What a search weighs, a layer's (C_in, C_out,
operation), is three decisions at once. Searched networks have batch norms without affine parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Blend, Choice, Decider, Extract, Undecided
from archipel.core.counting import Clause
from archipel.core.decision import Decision
from archipel.core.errors import SpaceError, suggest
from archipel.core.supernet import Supernet
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.nb201 import conv_bn
from archipel.spaces.sharp_operations import SharpSepConv, resizable_pool

States = dict[int, Tensor]

# label -> module for (C_in, C_out, stride, affine)
CUBOID_OPS: dict[str, Callable[[int, int, int, bool], nn.Module]] = {
    "sharp_sep_conv": lambda c_in, c_out, s, affine: SharpSepConv(c_in, c_out, 3, s, affine=affine),
    "resizable_pool": lambda c_in, c_out, s, affine: resizable_pool(nn.MaxPool2d, c_in, c_out, s, affine),
}


class Between(nn.Module):
    """An operation from one state to another; nothing, if its source was left out."""

    def __init__(self, c_in: int, c_out: int, op: nn.Module) -> None:
        super().__init__()
        self.c_in, self.c_out = c_in, c_out
        self.op = op

    def forward(self, states: States) -> States:
        return {self.c_out: self.op(states[self.c_in])} if self.c_in in states else {}


class PathLayer(Choice):
    """A layer: one of all (C_in, C_out, operation), which three decisions name together; states to states.

    Args:
        name: of its row of weights.
        before, after, operation: the decisions.
        make: (C_in, C_out, operation) -> module.
    """

    def __init__(
        self,
        name: str,
        before: Decision,
        after: Decision,
        operation: Decision,
        make: Callable[[int, int, str], nn.Module],
    ) -> None:
        self.triples = [(i, o, op) for i in before.options for o in after.options for op in operation.options]
        super().__init__(name, {f"{i}>{o}:{op}": Between(i, o, make(i, o, op)) for i, o, op in self.triples})  # type: ignore[arg-type]
        self.parts = (before, after, operation)

    def own_decisions(self) -> list[Decision]:
        return list(self.parts)

    def taken(self, arch: Mapping[str, Any]) -> str | None:
        return self._label(lambda d: arch[d.name])

    def _label(self, value: Callable[[Decision], Any]) -> str:
        before, after, operation = (value(d) for d in self.parts)
        return f"{before}>{after}:{operation}"

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        for triple, module in zip(self.triples, self.blended):
            yield module, frozenset((d.name, frozenset([v])) for d, v in zip(self.parts, triple))

    def forward(self, states: States) -> States:
        decider = self.seat.decider
        if isinstance(decider, Blend) and self.decision.name in decider.weights:
            return decider.choose(self, states)
        return self.options[self._label(decider.value)](states)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        chosen = self.options[self._label(decider.value)]
        assert isinstance(chosen, Between)
        return inner(chosen.op)


class _Bank(Undecided, nn.Module):
    """One module for each number of channels, of which a path uses one."""

    def __init__(self, decision: Decision, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.decision = decision
        self.channels: tuple[int, ...] = decision.options  # type: ignore[assignment]
        self.bank = nn.ModuleList(make(c) for c in self.channels)

    def own_decisions(self) -> list[Decision]:
        return [self.decision]

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        for c, module in zip(self.channels, self.bank):
            yield module, frozenset([(self.decision.name, frozenset([c]))])

    def live_modules(self) -> dict[int, nn.Module]:
        """All of them while paths are blended, else the one decided."""
        decider, every = self.seat.decider, dict(zip(self.channels, self.bank))
        if isinstance(decider, Blend) and self.decision.name not in decider.arch:
            return every
        c = decider.value(self.decision)
        return {c: every[c]}

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        return inner(self.bank[self.channels.index(decider.value(self.decision))])


class Stems(_Bank):
    """Images to states."""

    def forward(self, x: Tensor) -> States:
        return {c: stem(x) for c, stem in self.live_modules().items()}


class Heads(_Bank):
    """States to logits, summed over the states there are."""

    def forward(self, states: States) -> Tensor:
        """
        Raises:
            SpaceError: no state is left.
        """
        logits = [head(states[c]) for c, head in self.live_modules().items() if c in states]
        if not logits:
            raise SpaceError(
                "No path of matching channels leads through the layers: all their operations were left out."
            )
        return sum(logits[1:], logits[0])


class Head(nn.Module):
    """ReLU, mean over the plane, linear; ``[B, C, H, W] -> [B, classes]``."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(x).mean((2, 3)))


class MultiChannelNet(nn.Module):
    """The whole grid; ``[B, in_channels, H, W] -> [B, classes]``."""

    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: Sequence[int],
        layers: int,
        ops: Sequence[str],
        affine: bool = True,
    ) -> None:
        super().__init__()
        c = [Decision(f"c{i}", list(channels), ordered=True) for i in range(layers + 1)]

        def make(stride: int) -> Callable[[int, int, str], nn.Module]:
            return lambda c_in, c_out, op: CUBOID_OPS[op](c_in, c_out, stride, affine)

        self.stem = Stems(c[0], lambda width: conv_bn(in_channels, width))
        self.layers = nn.ModuleList(
            PathLayer(f"layer{i}", c[i - 1], c[i], Decision(f"op{i}", list(ops)), make(2 - i % 2))
            for i in range(1, layers + 1)
        )
        self.head = Heads(c[-1], lambda width: Head(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        states = self.stem(x)
        for layer in self.layers:
            states = layer(states)
        return self.head(states)


class HyperCuboid(ModuleSpace):
    """Paths through a grid of channels and operations.

    Args:
        input_shape: ``(channels, H, W)`` of the images.
        classes: number of classes.
        channels: what every state may have.
        layers: even; odd-numbered layers have stride 1, even-numbered stride 2.
        ops: of ``"sharp_sep_conv"`` and ``"resizable_pool"``.

    Attributes:
        weights_shape: of a search's weights, [strides, layers/2, C_in, C_out, operations].

    Raises:
        SpaceError: inputs that are no images, an odd number of layers, or channels or operations that are none.

    >>> space = HyperCuboid((1, 8, 8), 10, channels=(4, 8, 16), layers=4)
    >>> space.size == 3**5 * 2**4, space.weights_shape
    (True, (2, 2, 3, 3, 2))
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        channels: Sequence[int] = (32, 64, 128, 256),
        layers: int = 4,
        ops: Sequence[str] = tuple(CUBOID_OPS),
    ) -> None:
        if len(input_shape) != 3:
            raise SpaceError(f"A hyper-cuboid takes images (channels, height, width), not shape {tuple(input_shape)}.")
        if layers < 2 or layers % 2:
            raise SpaceError(f"Layers come in pairs of stride 1 and stride 2, so their number must be even: {layers}.")
        if not channels or not all(type(c) is int and c > 0 for c in channels):
            raise SpaceError(f"A hyper-cuboid's channels are positive integers, not {list(channels)!r}.")
        for op in ops:
            if op not in CUBOID_OPS:
                raise SpaceError(f"A hyper-cuboid has no operation {op!r}. {suggest(op, CUBOID_OPS)}")
        self.channels, self.layers, self.ops = tuple(sorted(channels)), layers, tuple(ops)
        self.weights_shape = (2, layers // 2, len(channels), len(channels), len(ops))
        self._network = functools.partial(MultiChannelNet, input_shape[0], classes, self.channels, layers, self.ops)
        super().__init__(self._network, torch.zeros(2, *input_shape), "hyper-cuboid")

    def supernet(self, seed: int = 0) -> Supernet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Supernet(self._network(affine=False), self)

    def path(self, channels: Sequence[int], ops: Sequence[str]) -> dict[str, Any]:
        """The architecture with these channels (one more than layers) and operations.

        Raises:
            SpaceError: other numbers of them, or values that are not in the grid.
        """
        if (len(channels), len(ops)) != (self.layers + 1, self.layers):
            raise SpaceError(
                f"A path of {self.layers} layers has {self.layers + 1} numbers of channels and {self.layers} "
                f"operations, not {len(channels)} and {len(ops)}."
            )
        named = {**{f"c{i}": c for i, c in enumerate(channels)}, **{f"op{i}": op for i, op in enumerate(ops, 1)}}
        return self.validate(named)
