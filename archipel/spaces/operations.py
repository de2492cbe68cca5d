"""Operations and edges of cell spaces: what can stand between two feature maps, and how an edge holds the candidates.

Operations of the DARTS cell: Liu, Simonyan, Yang. DARTS: Differentiable Architecture Search. 2018.
https://arxiv.org/abs/1806.09055. All are bias-free and keep ``[B, C, H, W]`` but for a stride of 2, which halves H and
W. While searching, batch norms have no affine parameters (they would rescale an operation against its weight) and pools
are normalised too; in a network that is trained on its own, norms are affine and pools are plain.

An *edge factory* makes the module of an edge: ``edge(name, ops, C, stride, blend_only)``. The default holds a
:class:`~archipel.core.choice.Choice`; a search may put something else around it (partial channels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.choice import Blend, Choice, Decider, Extract, Inputs, SumOf
from archipel.core.counting import Clause
from archipel.core.decision import Decision
from archipel.core.errors import ShapeError, SpaceError
from archipel.core.supernet import Supernet
from archipel.spaces.module_space import ModuleSpace

OpFactory = Callable[[int, int], nn.Module]

DARTS_OPS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)


class Zero(nn.Module):
    """No connection: zeros. A mixture leaves it out, since its term is zero whatever its weight."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[..., :: self.stride, :: self.stride])


class FactorizedReduce(nn.Module):
    """Halves the plane and keeps all of it in view: half of the channels see even positions, half see odd ones.

    Raises:
        ShapeError: an odd number of output channels; at the first use, a plane with an odd side.
    """

    def __init__(self, c_in: int, c_out: int, affine: bool = True) -> None:
        super().__init__()
        if c_out % 2:
            raise ShapeError(
                f"A factorized reduction gives half of its channels to each of two convolutions, so their number must "
                f"be even, not {c_out}. Take a multiple of 2 (of 2K with K partial channels)."
            )
        self.even = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(c_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.norm(join(x, 2, self.even(x), self.odd(x[..., 1:, 1:])))


class DropPath(nn.Module):
    """Leaves a whole path out for some examples while training; the others are scaled up to keep the mean."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = 1.0 - self.p
        return x * (torch.rand_like(x[:, :1, :1, :1]) < keep) / keep

    def extra_repr(self) -> str:
        return f"p={self.p}"


def join(x: Tensor, stride: int, *parts: Tensor) -> Tensor:
    """Parts of a feature map along the channels.

    Raises:
        ShapeError: they differ in size because ``x`` has an odd side at a stride of 2.
    """
    try:
        return torch.cat(parts, 1)
    except RuntimeError as error:
        sides = " and ".join("x".join(map(str, p.shape[-2:])) for p in parts)
        raise ShapeError(
            f"Feature maps of {sides} cannot be joined: an input of {x.shape[-2]}x{x.shape[-1]} at stride {stride}. "
            f"Every reduction halves both sides, so give images with sides divisible by 2 to the number of reductions."
        ) from error


def relu_conv_bn(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, affine: bool = True) -> nn.Sequential:
    """ReLU, convolution with "same" padding, batch norm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(c_out, affine=affine),
    )


def separable(c: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    """ReLU, one filter for each channel, pointwise convolution, batch norm."""
    pad = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(c, c, kernel, stride, pad, dilation, groups=c, bias=False),
        nn.Conv2d(c, c, 1, bias=False),
        nn.BatchNorm2d(c, affine=affine),
    ]


def sep_conv(c: int, kernel: int, stride: int, affine: bool = True) -> nn.Sequential:
    """A separable convolution, twice; the first has the stride."""
    return nn.Sequential(*separable(c, kernel, stride, 1, affine), *separable(c, kernel, 1, 1, affine))


def dil_conv(c: int, kernel: int, stride: int, affine: bool = True) -> nn.Sequential:
    """A separable convolution whose taps are two pixels apart."""
    return nn.Sequential(*separable(c, kernel, stride, 2, affine))


def pool(kind: type[nn.MaxPool2d] | type[nn.AvgPool2d], c: int, stride: int, norm: bool) -> nn.Module:
    """3x3 pooling; an average counts no padding."""
    layer = nn.MaxPool2d(3, stride, 1) if kind is nn.MaxPool2d else nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    return nn.Sequential(layer, nn.BatchNorm2d(c, affine=False)) if norm else layer


def darts_operations(searching: bool, drop_path: float = 0.0) -> dict[str, OpFactory]:
    """The eight operations of the DARTS cell, by the names that genotypes use.

    Args:
        searching: no affine parameters, pools are normalised.
        drop_path: if positive, every operation but the identity ends in a :class:`DropPath`.

    >>> sum(p.numel() for p in darts_operations(False)["sep_conv_3x3"](16, 1).parameters())
    864
    """
    affine = not searching

    def skip(c: int, stride: int) -> nn.Module:
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c, affine)

    plain: dict[str, OpFactory] = {
        "max_pool_3x3": lambda c, s: pool(nn.MaxPool2d, c, s, searching),
        "avg_pool_3x3": lambda c, s: pool(nn.AvgPool2d, c, s, searching),
        "skip_connect": skip,
        "sep_conv_3x3": lambda c, s: sep_conv(c, 3, s, affine),
        "sep_conv_5x5": lambda c, s: sep_conv(c, 5, s, affine),
        "dil_conv_3x3": lambda c, s: dil_conv(c, 3, s, affine),
        "dil_conv_5x5": lambda c, s: dil_conv(c, 5, s, affine),
        "none": lambda c, s: Zero(s),
    }

    def with_drop_path(make: OpFactory) -> OpFactory:
        def wrapped(c: int, stride: int) -> nn.Module:
            op = make(c, stride)
            return op if isinstance(op, nn.Identity) else nn.Sequential(op, DropPath(drop_path))

        return wrapped

    return {label: with_drop_path(make) for label, make in plain.items()} if drop_path else plain


# --- edges ---------------------------------------------------------------------------------------------------------


class EdgeFactory(Protocol):
    """Makes the module of an edge from the operations that may stand on it."""

    def __call__(
        self, name: str, ops: Mapping[str, OpFactory], C: int, stride: int, blend_only: Sequence[str] = ()
    ) -> nn.Module: ...


def choice_edge(
    name: str, ops: Mapping[str, OpFactory], C: int, stride: int, blend_only: Sequence[str] = ()
) -> nn.Module:
    """The default edge: a choice among operations on ``C`` channels.

    Args:
        name: of the decision.
        ops: label -> factory of a module for (channels, stride).
        blend_only: labels that take part in mixtures but can never be chosen.

    Raises:
        SpaceError: nothing is left to choose.
    """
    made = {label: make(C, stride) for label, make in ops.items()}
    derivable = {label: op for label, op in made.items() if label not in blend_only}
    if not derivable or all(isinstance(op, Zero) for op in derivable.values()):
        raise SpaceError(f"Edge {name!r} has no derivable operation among {list(ops)}: add one that is not 'none'.")
    return Choice(name, derivable, {label: made[label] for label in blend_only})


def chosen_edge(arch: Mapping[str, object]) -> EdgeFactory:
    """An edge factory that makes only what an architecture chose: large networks without their alternatives."""

    def edge(name: str, ops: Mapping[str, OpFactory], C: int, stride: int, blend_only: Sequence[str] = ()) -> nn.Module:
        return ops[str(arch[name])](C, stride) if name in arch else nn.Identity()  # an edge that is not taken

    return edge


class AllInputs(Inputs):
    """Every source, each through its edge, summed. Nothing is decided, but a search may weigh the edges."""

    def __init__(self, name: str, edges: Sequence[nn.Module]) -> None:
        super().__init__(name, edges, k=len(edges))

    def own_decisions(self) -> list[Decision]:
        return []

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        for edge in self.edges:
            yield edge, frozenset()

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        decider = self.seat.decider
        if isinstance(decider, Blend):
            return decider.gather(self, states)
        outputs = [edge(state) for edge, state in zip(self.edges, states)]
        return sum(outputs[1:], outputs[0])

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        return SumOf(range(len(self.edges)), [inner(edge) for edge in self.edges])


class CellSpace(ModuleSpace):
    """A space of networks made of cells, whose supernet can be made with another kind of edge."""

    def cells(self, edge: EdgeFactory) -> nn.Module:
        """The searched network with edges from ``edge``."""
        raise NotImplementedError

    def supernet(self, seed: int = 0, edge: EdgeFactory = choice_edge) -> Supernet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Supernet(self.cells(edge), self)
