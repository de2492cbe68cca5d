"""Mixtures of which a part is decided: what a selection that goes edge by edge trains and measures.

An edge that is decided is one-hot. A node that has lost sources weighs the others as before, until it has as many as it
keeps; then each weighs 1, as in the discrete network. All else has the weights of the search's own mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.parameters import ArchParameters, Moment, Row


class Projected(Mix):
    """Another mix, in which some edges are one-hot and some nodes lack some of their sources.

    Args:
        inner: gives all other weights, as at the end of the search (a temperature that falls does not start again).
        parameters: of the search.
        moment: that end.
        decided: name of an edge -> position of its option.
        sources: name of a node -> sources that it still has; each weighs 1 once there are k.
    """

    def __init__(
        self,
        inner: Mix,
        parameters: ArchParameters,
        moment: Moment,
        decided: Mapping[str, int],
        sources: Mapping[str, Sequence[int]],
    ) -> None:
        self.inner, self.parameters, self.moment = inner, parameters, moment
        self.decided, self.sources = decided, sources
        self.edge, self.weigh_edges = inner.edge, inner.weigh_edges

    def coefficients(self, logits: Tensor, row: Row, moment: Moment) -> Tensor:
        return self.inner.coefficients(logits, row, replace(self.moment, training=moment.training))

    def weights(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        found = self.inner.weights(logits, rows, replace(self.moment, training=moment.training))
        return self._with_decided(found)

    def scores(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        return self._with_decided(self.inner.scores(logits, rows, replace(self.moment, training=moment.training)))

    def _with_decided(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = dict(weights)
        like = next(iter(out.values()))
        for name, option in self.decided.items():
            out[name] = torch.zeros_like(out[name])
            out[name][option] = 1.0
        for name, kept in self.sources.items():
            node = self.parameters.inputs[name]
            own = out[name] if name in out and len(kept) > node.k else like.new_ones(len(node.edges))
            mask = like.new_zeros(len(node.edges))
            mask[list(kept)] = 1.0
            out[name] = own * mask
        return out

    def blend(self, options: Sequence[nn.Module], weights: Tensor, *args: Any) -> Any:
        return self.inner.blend(options, weights, *args)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)
