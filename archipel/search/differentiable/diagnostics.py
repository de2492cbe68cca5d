"""Looking at a differentiable search: bytes kept for the backward pass, entropy, discretisation gap."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archipel.core.decision import Arch
from archipel.data.dataset import Split

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


def saved_bytes(compute: Callable[[], Any], net: nn.Module | None = None) -> int:
    """Bytes of activations that a computation keeps for its backward pass.

    Memory that several saved tensors share counts once, and counts whole if only a part of it was saved, since it is
    kept whole. Parameters and buffers of ``net`` are not counted: they are there anyway.

    >>> layer = nn.Linear(3, 2)
    >>> saved_bytes(lambda: layer(torch.ones(5, 3)), layer)     # the input, 5 x 3 floats
    60
    """
    owned = set() if net is None else {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()]}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = compute()  # held until here, so that no memory is freed and counted again at the same address
    del result
    return sum(kept.values())


def normalised_entropy(weights: Mapping[str, list[float]]) -> float:
    """Mean over rows of H(p) / ln O: 1 where all options weigh the same, 0 where one has all the weight.

    Gates, which do not sum to 1, are divided by their sum.

    >>> normalised_entropy({"a": [0.5, 0.5], "b": [1.0, 0.0]})
    0.5
    """
    rows = [w if abs(sum(w) - 1) < 1e-6 else [p / (sum(w) or 1.0) for p in w] for w in weights.values() if len(w) > 1]
    if not rows:
        return 0.0
    return sum(-sum(p * math.log(p) for p in w if p > 0.0) / math.log(len(w)) for w in rows) / len(rows)


def discretisation_gap(state: SearchState, arch: Arch, data: Split) -> dict[str, float]:
    """How much the cut to one architecture costs, with the same weights and without retraining.

    Returns:
        ``mixture`` and ``one_hot``: accuracy (or R²) before and after the cut; ``gap``: their difference.
    """
    metric = "r2" if state.task == "regression" else "accuracy"
    mixture = state.metrics(data)[metric]
    one_hot = state.metrics(data, arch=arch)[metric]
    return {"mixture": mixture, "one_hot": one_hot, "gap": mixture - one_hot}
