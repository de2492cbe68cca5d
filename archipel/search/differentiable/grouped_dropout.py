"""Grouped operation dropout: a softmax over the options that are left when each group has been thinned at random.

Hong, Li, Zhang, Tang, Wang, Li, Yu. DropNAS: Grouped Operation Dropout for Differentiable Architecture Search. 2020.
https://www.ijcai.org/proceedings/2020/322

    m_o ~ Bernoulli(1 − p),  p = r^(1/|G|)         on every edge and group G; again while a group is dropped whole
    w_o = exp α_o / Σ_{q kept} exp α_q             for kept options; the others weigh exactly zero and are not computed

The groups are operations with and without parameters; r is the probability that a group of any size would be dropped
whole. Tied cells share their masks. Whether a reduction's skip connection (a convolution) counts as parameter-free goes
by its name, as in the paper. Outputs are not scaled up: weights of kept options sum to one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice
from archipel.core.errors import SpaceError, UsageError
from archipel.nets.batch_norm import batch_statistics
from archipel.search.differentiable.mix import Mix, Mixture
from archipel.search.differentiable.parameters import Moment, Row
from archipel.spaces.operations import Zero

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

FREE = ("none", "skip", "skip_connect", "avg_pool_3x3", "max_pool_3x3", "avgpool3x3")


def groups_of(row: Row) -> list[list[int]]:
    """Positions of a choice's options with and without parameters.

    Raises:
        SpaceError: all are of one group; names the row.
    """
    choice = row.modules[0]
    assert isinstance(choice, Choice)

    def free(i: int) -> bool:
        return row.labels[i] in FREE or not any(True for _ in choice.blended[i].parameters())

    everyone = range(len(row.labels))
    groups = [[i for i in everyone if not free(i)], [i for i in everyone if free(i)]]
    for group, what in zip(groups, ("with", "without")):
        if not group:
            raise SpaceError(
                f"Grouped dropout: {row.name!r} has no operation {what} parameters among {', '.join(row.labels)}, but "
                f"each of the two groups needs one. Add one, or use another mix."
            )
    return groups


def drop_probability(r: float, size: int) -> float:
    """p for a group of so many options.

    >>> round(drop_probability(3e-5, 4), 7)
    0.0740083
    """
    return r ** (1.0 / size)


def expected_kept(r: float, sizes: Sequence[int]) -> float:
    """How many options of groups of such sizes are computed in the mean: Σ |G| (1 − p) / (1 − p^|G|).

    >>> round(expected_kept(3e-5, [4, 4]), 2)
    7.41
    """
    return sum(n * (1 - drop_probability(r, n)) / (1 - r) for n in sizes)


def kept_softmax(logits: Tensor, keep: Tensor) -> Tensor:
    """Softmax over the options that are kept; exact zeros elsewhere. Both ``[O]``."""
    return torch.softmax(logits if bool(keep.all()) else logits.masked_fill(~keep, -math.inf), 0)


class GroupedDropout(Mix):
    """Softmax over the options that are left when each group has been thinned at random.

    Args:
        r: probability that a group would be dropped whole, if it could be; 0 drops nothing.
        warmup: first epochs without dropout.

    Attributes:
        masks: row -> which options the last mixture for training kept, bool ``[O]``; empty before the first.

    Raises:
        UsageError: r outside [0, 1).
        SpaceError: when the search starts: a choice without one of the groups.
    """

    def __init__(self, r: float = 3e-5, warmup: int = 0) -> None:
        if not 0.0 <= r < 1.0:
            raise UsageError(f"GroupedDropout: r is a probability, at least 0 and below 1, not {r!r}.")
        self.r, self.warmup = r, warmup
        self.masks: dict[str, Tensor] = {}
        self.groups: dict[str, list[list[int]]] = {}
        self._given: dict[str, Tensor] | None = None

    def started(self, state: SearchState) -> None:
        self.groups = {n: groups_of(row) for n, row in state.parameters.rows.items() if row.is_choice}

    def give(self, masks: Mapping[str, Sequence[bool] | Tensor]) -> None:
        """Use these masks for the next mixture instead of drawn ones; rows that are not named keep all options.

        Raises:
            UsageError: a mask of another length, or one that drops a whole group.
        """
        given = {n: torch.as_tensor(m, dtype=torch.bool) for n, m in masks.items()}
        for name, mask in given.items():
            groups = self.groups.get(name, [])
            if not groups or len(mask) != sum(map(len, groups)):
                raise UsageError(
                    f"GroupedDropout: a mask of {len(mask)} for {name!r}, which is no choice of that size."
                )
            for group in groups:
                if not mask[group].any():
                    raise UsageError(
                        f"GroupedDropout: the mask for {name!r} drops options {group} and with them a whole group; at "
                        f"least one op per group must be kept."
                    )
        self._given = given

    def draw(self, name: str) -> Tensor:
        """A mask for a row."""
        mask = torch.ones(sum(map(len, self.groups[name])), dtype=torch.bool)
        for group in self.groups[name]:
            p = drop_probability(self.r, len(group))
            kept = torch.rand(len(group)) >= p
            while not kept.any():
                kept = torch.rand(len(group)) >= p
            mask[group] = kept
        return mask

    def weights(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        if not moment.training:
            return super().weights(logits, rows, moment)
        masks = {n: torch.ones(len(logits[n]), dtype=torch.bool) for n in rows}
        if self._given is not None:
            masks |= self._given
            self._given = None
        elif self.r > 0.0 and moment.epoch >= self.warmup:
            masks |= {n: self.draw(n) for n in self.groups}
        self.masks = masks
        return {n: kept_softmax(logits[n], masks[n]) for n in rows}


@torch.no_grad()
def feature_similarity(state: SearchState, x: Tensor) -> float:
    """Mean cosine between the outputs of two operations of an edge, over pairs and edges; zeros are left out."""
    found: list[Tensor] = []

    def look(options: Sequence[nn.Module], weights: Tensor, *args: Any) -> Any:
        outputs = [o(*args) for o in options]
        shown = [y.flatten() for y, o in zip(outputs, options) if not isinstance(o, Zero)]
        if len(shown) > 1:
            unit = nn.functional.normalize(torch.stack(shown), dim=1)
            pairs = torch.triu_indices(len(shown), len(shown), 1)
            found.append((unit @ unit.T)[pairs[0], pairs[1]].mean())
        return sum(w * y for w, y in zip(weights, outputs))

    state.supernet.decider = Mixture(state.mixture_weights(), look, state.parameters.fixed)
    with batch_statistics(state.supernet):
        state.supernet(x)
    return float(torch.stack(found).mean())
