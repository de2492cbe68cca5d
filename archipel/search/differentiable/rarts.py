"""RARTS: a single-level search with split weights, first order throughout; for operations and for widths.

Xue, Qi, Xin. RARTS: An Efficient First-Order Relaxed Architecture Search Method. 2020.
https://arxiv.org/abs/2008.03901

    L(y, w, α) = L_val(y, α) + λ L_train(w, α) + β/2 ‖y − w‖²        descended on in turn by w, y and α

A recipe of parts: arch-gradient :class:`~archipel.search.differentiable.split_weights.SplitWeights` in the loop of all
differentiable searches; or the same update where α are channels' scaling factors,
:class:`~archipel.search.differentiable.rarts_width.WidthSearch`. A model on which the end is known in closed form is
:mod:`~archipel.search.differentiable.solvable`. Differs from the paper in the order of updates, unless ``strict`` is
asked for, and in that λ and β are 1 where the paper tunes them.
"""

from __future__ import annotations

from typing import Any

from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.rarts_width import WidthSearch
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.split_weights import SplitWeights
from archipel.search.strategy import Strategy


@register(
    "rarts",
    card=154,
    family="search.differentiable",
    slots=["arch-gradient"],
    paper=Paper(
        "RARTS: An Efficient First-Order Relaxed Architecture Search Method",
        2020,
        "https://arxiv.org/abs/2008.03901",
    ),
)
def rarts(
    lam: float = 1.0,
    beta: float = 1.0,
    order: str = "two-backward",
    widths: bool = False,
    prune: float = 0.5,
    l1: float = 1e-3,
    schedule: Schedule | None = None,
    **slots: Any,
) -> Strategy:
    """Differentiable search with split weights; about the time of first-order DARTS in the two-backward order.

    Args:
        lam, beta, order: see :class:`SplitWeights`.
        widths: search widths instead of operations.
        prune, l1: of widths; see :class:`WidthSearch`.
        schedule: that of DARTS by default, which is also the paper's.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``; of a search for widths only the latter.

    Raises:
        UsageError: a slot that a search for widths does not have.

    >>> rarts(beta=2.0).arch_gradient.beta
    2.0
    """
    if widths:
        odd = [name for name in slots if name not in ("arch_gradient", "fixed")]
        if odd:
            raise UsageError(f"rarts: a search for widths has no slot {odd[0]!r}; it blends nothing.")
        slots.setdefault("arch_gradient", SplitWeights(lam, beta, order))
        return WidthSearch(prune=prune, l1=l1, schedule=schedule, **slots)
    slots.setdefault("arch_gradient", SplitWeights(lam, beta, order))
    return DifferentiableSearch(schedule=schedule or Schedule(), **slots)
