"""The `mix` slot: from logits to weights, and from weights to a blend of options.

    weights    p = g(α), for instance softmax(α)
    blend      y = Σ_o p_o · o(x)

A method may replace either, or the edge itself (see :mod:`archipel.spaces.operations`). What holds for all of them is
here, once: an option whose weight is exactly zero is never computed, a zero operation contributes nothing and is left
out, and under one-hot weights a supernet computes what the discrete network computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Blend, Choice, Inputs
from archipel.core.errors import SpaceError
from archipel.core.subset import Subset
from archipel.search.differentiable.parameters import ArchParameters, Moment, Row
from archipel.spaces.operations import EdgeFactory, Zero

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


class Slot:
    """A part of a search. One that carries state over steps overrides the last two methods."""

    def started(self, state: SearchState) -> None:
        """Called once, before the first step (and before anything saved is loaded): the place to refuse a space."""

    def step_ended(self, state: SearchState) -> None:
        """Called after each step of the search."""

    def epoch_ended(self, state: SearchState) -> None:
        """Called after each epoch, before anything is measured or saved."""

    def figures(self) -> Mapping[str, Any]:
        """What the search's log should hold of this slot for the epoch that has ended; JSON."""
        return {}

    @property
    def finished(self) -> bool:
        """Whether the search should end with this epoch, however many are left."""
        return False

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Mix(Slot):
    """How options are blended.

    Attributes:
        edge: makes the edges of the supernet, or None for those of the space.
        weigh_edges: whether nodes weigh their incoming edges (β).
    """

    edge: EdgeFactory | None = None
    weigh_edges = False

    def coefficients(self, logits: Tensor, row: Row, moment: Moment) -> Tensor:
        """Weights of one row, ``[O] -> [O]``; exact zeros mark options that need not be computed."""
        return torch.softmax(logits, 0)

    def weights(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        """Weights of all rows."""
        return {name: self.coefficients(logits[name], row, moment) for name, row in rows.items()}

    def scores(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        """What options are ranked by, across rows too: the weights, unless those of two rows cannot be compared."""
        return self.weights(logits, rows, moment)

    def blend(self, options: Sequence[nn.Module], weights: Tensor, *args: Any) -> Any:
        """The mixture of the options whose weights are not zero."""
        return weighted_sum(options, weights, *args)


class Softmax(Mix):
    """Softmax over the options of each choice, as in DARTS; nodes sum all their edges."""


class Sigmoid(Mix):
    """A gate σ(α) for each option, independent of the others (FairDARTS, https://arxiv.org/abs/1911.12126)."""

    def coefficients(self, logits: Tensor, row: Row, moment: Moment) -> Tensor:
        return torch.sigmoid(logits)


def weighted_sum(options: Sequence[nn.Module], weights: Tensor, *args: Any) -> Tensor:
    """Σ_o w_o · o(x); of options that give several named tensors, name by name.

    >>> weighted_sum([nn.Identity(), Zero()], torch.tensor([0.25, 0.75]), torch.ones(1, 1, 1, 2))
    tensor([[[[0.2500, 0.2500]]]])
    """
    total: Any = None
    for option, w in zip(options, weights.unbind()):
        if not isinstance(option, Zero):
            total = _add(total, w, option(*args))
    return options[0](*args) if total is None else total


def _add(total: Any, w: Tensor, y: Any) -> Any:
    if isinstance(y, dict):
        return {**(total or {}), **{name: _add((total or {}).get(name), w, t) for name, t in y.items()}}
    return w * y if total is None else torch.addcmul(total, w, y)


class Mixture(Blend):
    """The decider of a differentiable search.

    Args:
        weights: name of a row -> weights; see :meth:`Mix.weights`.
        blend: see :meth:`Mix.blend`.
        fixed: decisions without weights.

    Raises:
        SpaceError: a weight that is NaN.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        blend: Callable[..., Any] = weighted_sum,
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(weights, blend, fixed)
        self._live: dict[str, tuple[list[int], Tensor]] = {}
        # One transfer for all rows: on an accelerator each would wait for the device.
        flat = iter(torch.cat([w.detach() for w in weights.values()]).tolist() if weights else [])
        for name, w in weights.items():
            values = [next(flat) for _ in range(len(w))]
            if any(v != v for v in values):
                raise SpaceError(f"The mixture weights of {name!r} hold NaN: {values}. Lower the learning rates.")
            live = [i for i, v in enumerate(values) if v != 0.0]
            self._live[name] = live, w if len(live) == len(values) else w[live]

    def choose(self, choice: Choice, *args: Any) -> Any:
        name = choice.decision.name
        if name not in self._live:
            return super().choose(choice, *args)
        live, w = self._live[name]
        if not live:
            raise SpaceError(
                f"All options of {name!r} have weight zero. To remove an edge, zero its weight in its node instead."
            )
        return self.mix([choice.blended[i] for i in live], w, *args)

    def gather(self, inputs: Inputs, states: Sequence[Tensor]) -> Tensor:
        name = inputs.decision.name
        if name not in self._live:
            return super().gather(inputs, states)
        live, w = self._live[name]
        if not live:
            raise SpaceError(f"Node {name!r} has no incoming edge left: all its weights are zero.")
        total: Tensor | None = None
        for i, w_i in zip(live, w.unbind()):
            y = inputs.edges[i](states[i])
            total = w_i * y if total is None else torch.addcmul(total, w_i, y)
        assert total is not None
        return total

    def merge(self, subset: Subset, states: Sequence[Tensor]) -> Tensor:
        if subset.name not in self._live:
            return super().merge(subset, states)
        return subset.weighted(states, *self._live[subset.name])


def one_hot(parameters: ArchParameters, arch: Mapping[str, Any]) -> Mixture:
    """The mixture that is a discrete architecture."""
    return Mixture(parameters.one_hot(arch), fixed=parameters.fixed)
