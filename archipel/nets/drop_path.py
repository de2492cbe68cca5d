"""Drop-path, and its schedule over depth and training: whole paths of a network are left out at random.

Larsson, Maire, Shakhnarovich. FractalNet: Ultra-Deep Neural Networks without Residuals. 2016.
https://arxiv.org/abs/1605.07648  (drop-path)
Zoph, Vasudevan, Shlens, Le. Learning Transferable Architectures for Scalable Image Recognition. 2017.
https://arxiv.org/abs/1707.07012  (ScheduledDropPath)

    y = x m / (1 - p),   m ~ Bernoulli(1 - p) drawn once for each example, so that E[y] = x
    p = p_final * (layer fraction) * min(1, step / total steps)

so nothing is dropped at the first step, and the last layer's paths are dropped with p_final at the end. The factor
for the layer is the authors' published code; the paper's text names the linear increase over training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from archipel.core.errors import UsageError


def drop_path(x: Tensor, p: float) -> Tensor:
    """Zero each example of ``x`` ``[B, ...]`` with probability ``p`` and scale the others by ``1 / (1 - p)``.

    >>> drop_path(torch.ones(2, 3), 0.0)
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    if p == 0.0:
        return x
    keep_B = torch.empty(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1.0 - p)
    return x * keep_B.div_(1.0 - p)


class DropPath(nn.Module):
    """Drops the examples of one path while training; the identity in evaluation mode.

    Args:
        layer_fraction: position of the path in the network, in (0, 1]; scales the probability of a schedule.
        p: probability of being dropped, until a schedule sets another.

    Raises:
        UsageError: a fraction outside (0, 1], or a probability outside [0, 1).
    """

    def __init__(self, layer_fraction: float = 1.0, p: float = 0.0) -> None:
        super().__init__()
        if not 0.0 < layer_fraction <= 1.0:
            raise UsageError(f"Drop-path: the layer fraction is in (0, 1], not {layer_fraction!r}.")
        self.layer_fraction = layer_fraction
        self.p = check_probability(p)

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"layer_fraction={self.layer_fraction:.3g}, p={self.p:.3g}"


class ScheduledDropPath:
    """Raises the drop probability of all :class:`DropPath` in a network linearly over training.

    Call it once after every training step, for instance as ``each_step`` of :func:`archipel.search.training.train`.

    Args:
        net: whose paths are scheduled; it starts as of ``step``.
        p_final: probability in the last layer at the end; .2 to .5 is usual.
        total_steps: after which the probability stays.
        step: steps done before, when training is continued.

    Raises:
        UsageError: a probability outside [0, 1), fewer than one step, or a network without drop-path.

    >>> net = nn.Sequential(DropPath(0.5), DropPath(1.0))
    >>> schedule = ScheduledDropPath(net, p_final=0.4, total_steps=10)
    >>> for _ in range(5):
    ...     schedule()
    >>> [m.p for m in net]
    [0.1, 0.2]
    """

    def __init__(self, net: nn.Module, p_final: float, total_steps: int, step: int = 0) -> None:
        if total_steps < 1 or step < 0:
            raise UsageError(f"ScheduledDropPath: total_steps={total_steps} must be positive, step={step} at least 0.")
        self.paths = [m for m in net.modules() if isinstance(m, DropPath)]
        if not self.paths:
            raise UsageError(f"{type(net).__name__} has no drop-path modules, so there is nothing to schedule.")
        self.p_final = check_probability(p_final)
        self.total_steps = total_steps
        self.step = step
        self._apply()

    def __call__(self) -> None:
        self.step += 1
        self._apply()

    def _apply(self) -> None:
        progress = min(1.0, self.step / self.total_steps)
        for path in self.paths:
            path.p = self.p_final * path.layer_fraction * progress


def check_probability(p: float) -> float:
    """The probability itself, if something is kept.

    Raises:
        UsageError: not in [0, 1).
    """
    if not 0.0 <= p < 1.0:
        raise UsageError(f"Drop-path: the probability is in [0, 1), not {p!r}; at 1 nothing would be left.")
    return p
