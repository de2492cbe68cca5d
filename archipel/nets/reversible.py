"""n-split reversible stacks: activations are reconstructed in the backward pass, so memory does not grow with depth.

Zhao, Dong, Shen, Zhang, Wei, Chen. Memory-Efficient Differentiable Transformer Architecture Search. 2021.
https://arxiv.org/abs/2105.14669
Gomez, Ren, Urtasun, Grosse. The Reversible Residual Network: Backpropagation Without Storing Activations. 2017.
https://arxiv.org/abs/1707.04585  (two parts, coupled otherwise)

    layer      Y_k = X_k + G_k(X_{i>k}, Y_{i<k})     k = 1 … n, parts of the features
    inverse    X_k = Y_k − G_k(X_{i>k}, Y_{i<k})     k = n … 1
    backward   for k = n … 1: recompute g = G_k(…) on detached inputs; back-propagate the gradient of part k through it;
               X_k = Y_k − g; add what reaches the inputs to the gradients of their parts

The gradient of part k is whole when its turn comes: dY_k and what came from the G_j handled before. Afterwards it is
that of X_k but for what the remaining G_j add. A whole stack is one autograd function that keeps its last output, and
any tensors from outside as ordinary inputs. Random numbers (dropout) are drawn again from the same seed: one integer
for a stack, plus the number of the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archipel.core.errors import ShapeError, UsageError

Bind = Callable[[Sequence[Tensor]], AbstractContextManager[Any]]


class ReversibleLayer(nn.Module):
    """One coupled update of all parts.

    Args:
        nodes: G_1 … G_n; ``G(inputs, *extras)`` maps n − 1 tensors ``[..., d/n]`` to one.
    """

    def __init__(self, nodes: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nodes = nn.ModuleList(nodes)


class ReversibleStack(nn.Module):
    """Reversible layers, one after the other; ``[..., d] -> [..., d]``, split along the last axis.

    Args:
        layers: the nodes of each layer.
        width: d.
        splits: n.
        reconstruct: whether activations are reconstructed, or kept as in ordinary backpropagation (same result).

    Raises:
        ShapeError: fewer than two parts, a width that they do not divide, or layers with another number of nodes.
        UsageError: a batch norm with running statistics, which recomputing would update twice.

    >>> half = nn.ReLU()
    >>> class Half(nn.Module):
    ...     def forward(self, inputs):
    ...         return 0.5 * torch.stack(list(inputs)).amax(0)
    >>> stack = ReversibleStack([[Half(), Half(), Half()]], width=3, splits=3)
    >>> stack(torch.tensor([[1.0, 4.0, -2.0]]))
    tensor([[3.0000, 5.5000, 0.7500]])
    """

    def __init__(
        self, layers: Sequence[Sequence[nn.Module]], width: int, splits: int, reconstruct: bool = True
    ) -> None:
        super().__init__()
        if splits < 2:
            raise ShapeError(f"A reversible layer needs at least 2 parts, each updated by the others; got {splits}.")
        if width % splits:
            raise ShapeError(f"A width of {width} cannot be divided into {splits} equal parts. Take a multiple of it.")
        for i, nodes in enumerate(layers):
            if len(nodes) != splits:
                raise ShapeError(f"Reversible layer {i} has {len(nodes)} nodes for {splits} parts.")
        self.layers = nn.ModuleList(ReversibleLayer(nodes) for nodes in layers)
        self.width, self.splits, self.reconstruct = width, splits, reconstruct
        for name, m in self.named_modules():
            if getattr(m, "track_running_stats", False):
                raise UsageError(
                    f"{name!r} is a {type(m).__name__} with running statistics, which reconstruction would update "
                    f"twice a step. Use a layer norm, or track_running_stats=False."
                )

    def outside(self) -> tuple[tuple[Tensor, ...], Bind]:
        """Tensors that nodes read from elsewhere and that need gradients, and how to make them read others instead."""
        return (), lambda tensors: nullcontext()

    def forward(self, x: Tensor, *extras: Tensor) -> Tensor:
        """
        Args:
            extras: passed on to every node (the encoder's output, for a decoder).

        Raises:
            ShapeError: a node changes the shape.
            UsageError: a node changes its input in place.
        """
        seed = int(torch.randint(2**62, ())) if self.training else None
        if not self.reconstruct:
            return self.run(x, extras, seed)
        tensors, bind = self.outside()
        parameters = dict(self.named_parameters())  # those that are there now, perhaps passed in from outside
        sizes = (len(extras), len(tensors))
        return _Reconstruct.apply(
            self, seed, bind, sizes, tuple(parameters), x, *extras, *tensors, *parameters.values()
        )

    def run(self, x: Tensor, extras: Sequence[Tensor], seed: int | None, check: bool = False) -> Tensor:
        """All layers, forwards."""
        chunks = x.chunk(self.splits, -1)
        parts = [chunks[k] for k in range(self.splits)]
        for i, layer in enumerate(self.layers):
            for k, node in enumerate(layer.nodes):
                others = [*parts[:k], *parts[k + 1 :]]
                versions = [t._version for t in others] if check else []
                with _seeded(seed, i * self.splits + k, x):
                    g = node(others, *extras)
                if check:
                    _check(g, parts[k], [t._version for t in others] == versions, f"layer {i}, node {k}")
                parts[k] = parts[k] + g
        return torch.cat(parts, -1)

    @torch.no_grad()
    def inverse(self, y: Tensor, *extras: Tensor, seed: int | None = None) -> Tensor:
        """The input whose output is ``y``."""
        parts = list(y.chunk(self.splits, -1))
        for i in reversed(range(len(self.layers))):
            layer = self.layers[i]
            assert isinstance(layer, ReversibleLayer)
            for k in reversed(range(self.splits)):
                with _seeded(seed, i * self.splits + k, y):
                    parts[k] = parts[k] - layer.nodes[k]([*parts[:k], *parts[k + 1 :]], *extras)
        return torch.cat(parts, -1)

    def extra_repr(self) -> str:
        return f"width={self.width}, splits={self.splits}, reconstruct={self.reconstruct}"


class _Reconstruct(torch.autograd.Function):
    """A whole stack; keeps its output, and of the other inputs only references."""

    @staticmethod
    def forward(
        ctx: Any,
        stack: ReversibleStack,
        seed: int | None,
        bind: Bind,
        sizes: tuple[int, int],
        names: tuple[str, ...],
        x: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        y = stack.run(x, tensors[: sizes[0]], seed, check=not x.is_inference())
        ctx.save_for_backward(y, *tensors)
        ctx.stack, ctx.seed, ctx.bind, ctx.sizes, ctx.names = stack, seed, bind, sizes, names
        ctx.training = stack.training
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.stack.training != ctx.training:
            raise UsageError(
                "A reversible stack was switched between training and evaluation after its forward pass, so its "
                "activations cannot be reconstructed. Switch after the backward pass."
            )
        y, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[6:]
        leaves = [t.detach().requires_grad_(n) for t, n in zip(tensors, needed)]
        e, o = ctx.sizes[0], sum(ctx.sizes)
        inner = _Backwards(ctx.stack, ctx.seed)
        by_name = {f"stack.{n}": t for n, t in zip(ctx.names, leaves[o:])}
        with ctx.bind(leaves[e:o]):
            found = torch.func.functional_call(inner, by_name, (y, grads[0], leaves[:e], leaves[e:o]))
        dx, by_id = found
        return (*[None] * 5, dx, *[by_id.get(id(t)) for t in leaves])


class _Backwards(nn.Module):
    """The backward pass as a module, so that its parameters can be those of the forward pass."""

    def __init__(self, stack: ReversibleStack, seed: int | None) -> None:
        super().__init__()
        self.stack, self.seed = stack, seed
        self.train(stack.training)

    def forward(
        self, y: Tensor, dy: Tensor, extras: Sequence[Tensor], outside: Sequence[Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The gradient for the input, and those for other tensors by ``id``."""
        n = self.stack.splits
        parts, total = list(y.chunk(n, -1)), list(dy.chunk(n, -1))
        shared = [t for t in (*extras, *outside) if t.requires_grad]
        found: dict[int, Tensor] = {}
        for i in reversed(range(len(self.stack.layers))):
            layer = self.stack.layers[i]
            assert isinstance(layer, ReversibleLayer)
            for k in reversed(range(n)):
                others = [j for j in range(n) if j != k]
                inputs = [parts[j].detach().requires_grad_() for j in others]
                with torch.enable_grad(), _seeded(self.seed, i * n + k, y):
                    g = layer.nodes[k](inputs, *extras)
                if g.requires_grad:
                    own = [p for p in layer.nodes[k].parameters() if p.requires_grad]
                    wanted = [*inputs, *own, *shared]
                    grads = torch.autograd.grad(g, wanted, total[k], allow_unused=True)
                    for j, d in zip(others, grads):
                        total[j] = total[j] if d is None else total[j] + d
                    for t, d in zip(wanted[n - 1 :], grads[n - 1 :]):
                        if d is not None:
                            found[id(t)] = found[id(t)] + d if id(t) in found else d
                parts[k] = parts[k] - g.detach()
        return torch.cat(total, -1), found


@contextmanager
def _seeded(seed: int | None, number: int, x: Tensor) -> Iterator[None]:
    """The random numbers of one node; the generators are left as they were found."""
    if seed is None:
        yield
        return
    cuda = isinstance(x, Tensor) and x.is_cuda  # while a network is traced, x is a stand-in
    with torch.random.fork_rng(devices=[x.device] if cuda else []):
        torch.manual_seed(seed + number)
        yield


def _check(g: Tensor, part: Tensor, untouched: bool, where: str) -> None:
    if not untouched:
        raise UsageError(
            f"Reversible stack, {where}: the node changed its input in place, so it could not be reconstructed. "
            f"Use the operation that returns a new tensor (inplace=False)."
        )
    if g.shape != part.shape:
        raise ShapeError(
            f"Reversible stack, {where}: the node gives {tuple(g.shape)}, but what it updates is {tuple(part.shape)}. "
            f"Operations must keep the shape."
        )
