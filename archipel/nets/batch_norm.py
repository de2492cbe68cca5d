"""Batch norms where more than one network shares them: whose statistics are used, and whose are kept.

A batch norm that sees several paths, tasks or extra passes gathers statistics that describe none of them. What a search
can do about it, in one place:

    frozen_statistics     passes that must leave no trace (teachers, finite differences, architecture steps): normalise
                          by the batch, keep the running statistics bitwise
    batch_statistics      judging: evaluation mode, but for batch norms, which normalise by the batch
    switchable, switch    statistics for each key (a task, a width, a path): one set is in use at a time
    recalibrate           afterwards, for one network: :func:`archipel.search.training.recalibrate`
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch  # noqa: F401  (doctest)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from archipel.core.errors import UsageError, suggest


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    return [m for m in net.modules() if isinstance(m, _BatchNorm)]


@contextmanager
def frozen_statistics(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Batch norms that are training normalise by the batch but leave their running statistics bitwise as they are."""
    before = [(m, m.track_running_stats, m.momentum) for m in norms]
    for m in norms:
        m.track_running_stats, m.momentum = False, 0.0
    try:
        yield
    finally:
        for m, track, momentum in before:
            m.track_running_stats, m.momentum = track, momentum


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, except that batch norms use the statistics of the batch, and keep none of them."""
    modes = [(m, m.training) for m in net.modules()]
    norms = batch_norms(net)
    kept = [(m.running_mean, m.running_var, m.track_running_stats) for m in norms]
    net.eval()
    for m in norms:  # without running statistics a batch norm has only the batch's, in whatever mode it is
        m.running_mean, m.running_var, m.track_running_stats = None, None, False
    try:
        yield
    finally:
        for m, (mean, var, track) in zip(norms, kept):
            m.running_mean, m.running_var, m.track_running_stats = mean, var, track
        for m, mode in modes:
            m.training = mode


class SwitchableBatchNorm(nn.Module):
    """One scale and shift, but running statistics for each key; ``[B, C, ...] -> [B, C, ...]``.

    Slimmable networks call it switchable batch norm (Yu et al., 2018, https://arxiv.org/abs/1812.08928).

    Args:
        norm: whose settings, scale and shift are taken over.
        keys: such as tasks.
    """

    def __init__(self, norm: _BatchNorm, keys: Sequence[Hashable]) -> None:
        super().__init__()
        self.keys = tuple(keys)
        self.key = self.keys[0]
        self.norms = nn.ModuleList(_twin(norm) for _ in self.keys)
        for other in self.norms[1:]:  # scale and shift are shared
            other.weight, other.bias = self.norms[0].weight, self.norms[0].bias

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[self.keys.index(self.key)](x)


def _twin(norm: _BatchNorm) -> _BatchNorm:
    twin = type(norm)(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.load_state_dict(norm.state_dict())
    return twin.to(norm.running_mean.device if norm.running_mean is not None else "cpu")


def switchable(net: nn.Module, keys: Sequence[Hashable]) -> nn.Module:
    """Replace every batch norm of ``net`` by one with statistics for each key, in place; returns ``net``.

    >>> net = switchable(nn.Sequential(nn.BatchNorm1d(1)), ["a", "b"]).train()
    >>> _ = switch(net, "b")(torch.tensor([[0.0], [2.0]]))
    >>> [float(n.running_mean) for n in net[0].norms]
    [0.0, 0.10000000149011612]
    """
    if not keys:
        raise UsageError("Switchable batch norms need at least one key.")
    for module in list(net.modules()):
        if not isinstance(module, SwitchableBatchNorm):
            for name, child in list(module.named_children()):
                if isinstance(child, _BatchNorm):
                    setattr(module, name, SwitchableBatchNorm(child, keys))
    return net


def switch(net: nn.Module, key: Hashable) -> nn.Module:
    """Use the statistics of ``key`` from now on; returns ``net``.

    Raises:
        UsageError: batch norms that know no such key.
    """
    for module in net.modules():
        if isinstance(module, SwitchableBatchNorm):
            if key not in module.keys:
                raise UsageError(f"No batch statistics for {key!r}. {suggest(str(key), map(str, module.keys))}")
            module.key = key
    return net
