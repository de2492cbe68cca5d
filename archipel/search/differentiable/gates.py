"""Binary gates: one option of a choice is open, and a gradient reaches the gates of others without their graphs.

Cai, Zhu, Han. ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware. 2018.
https://arxiv.org/abs/1812.00332. The rule follows BinaryConnect (Courbariaux et al., 2015,
https://arxiv.org/abs/1511.00363). See :mod:`archipel.search.differentiable.proxylessnas` for the equations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice
from archipel.core.errors import SpaceError
from archipel.search.differentiable.mix import Mixture
from archipel.spaces.mbconv import Skipped
from archipel.spaces.operations import Zero


def gate_rule(p: Tensor, G: Tensor) -> Tensor:
    """∂L/∂α from gate gradients, ``[O], [O] -> [O]``.

    >>> gate_rule(torch.tensor([0.5, 0.5]), torch.tensor([1.0, -1.0]))
    tensor([ 0.5000, -0.5000])
    """
    return p * (G - (p * G).sum())


def rescaled(new: Tensor, old: Tensor, pair: Sequence[int]) -> Tensor:
    """Logits after a step on a pair ``[O]``: the pair keeps its joint probability, the others keep their logits."""
    i = list(pair)
    out = old.clone()
    out[i] = new[i] - (torch.logsumexp(new[i], 0) - torch.logsumexp(old[i], 0))
    return out


def sample_pair(p: Tensor) -> list[int]:
    """Two options, drawn from p without replacement.

    Raises:
        SpaceError: there is only one.
    """
    if len(p) < 2:
        raise SpaceError("Two paths are drawn among the options of a layer, but there is only one. Fix that layer.")
    return torch.multinomial(p.clamp_min(1e-20), 2).tolist()


def within(alpha: Tensor, involved: Sequence[int]) -> Tensor:
    """Softmax over some options, zero elsewhere, ``[O] -> [O]``."""
    i = torch.tensor(list(involved))
    return torch.zeros_like(alpha).index_put((i,), torch.softmax(alpha[i], 0))


# --- paths ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gates:
    """The gates of one row of logits: which options take part, which of them is open, and a leaf for G ``[O]``."""

    involved: list[int]
    active: int
    leaf: Tensor


class _OnePath(torch.autograd.Function):
    """The active option's output; in the backward pass the other options are computed too, for their gates."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: Tensor, options: Sequence[nn.Module], active: int) -> Tensor:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_(x.requires_grad)
            ctx.y = options[active](ctx.x)
        ctx.options, ctx.active, ctx.size = options, active, len(leaf)
        return ctx.y.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (dy,) = grads
        G = dy.new_zeros(ctx.size)
        with torch.no_grad():
            for j, option in enumerate(ctx.options):
                if not isinstance(option, Zero):
                    G[j] = ((ctx.y if j == ctx.active else option(ctx.x)) * dy).sum()
        dx = torch.autograd.grad(ctx.y, ctx.x, dy)[0] if ctx.x.requires_grad else None
        return dx, G, None, None


class GatedPaths(Mixture):
    """The decider of an architecture step.

    Args:
        gates: row -> its gates.
        late: whether inactive options are left to the backward pass (``full_v2``).
        fixed: decisions that are not searched.
    """

    def __init__(self, gates: Mapping[str, Gates], late: bool, fixed: Mapping[str, Any]) -> None:
        super().__init__({n: g.leaf for n, g in gates.items()}, fixed=fixed)
        self.gates, self.late = gates, late

    def choose(self, choice: Choice, *args: Any) -> Any:
        gates = self.gates.get(choice.decision.name)
        if gates is None:
            return super().choose(choice, *args)
        options = list(choice.blended)
        if is_zero(options[gates.active]):
            return options[gates.active](*args)  # such a layer does not learn: its gates stay out of the graph
        if self.late:
            return _OnePath.apply(*args, gates.leaf, options, gates.active)
        y = gates.leaf[gates.active] * options[gates.active](*args)
        for j in gates.involved:
            if j != gates.active and not isinstance(options[j], Zero):
                with torch.no_grad():
                    other = options[j](*args)
                y = torch.addcmul(y, gates.leaf[j], other)
        return y


def is_zero(option: nn.Module) -> bool:
    """Whether an option is the zero operation, alone or beside a shortcut."""
    return isinstance(option, Zero | Skipped)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Weights need no gradient meanwhile, so that nothing is kept for them."""
    learning = [p for p in net.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
