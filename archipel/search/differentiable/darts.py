"""DARTS: blend all operations by a softmax, descend on its logits, keep the largest.

Liu, Simonyan, Yang. DARTS: Differentiable Architecture Search. 2018. https://arxiv.org/abs/1806.09055

    ō(x) = Σ_o softmax(α)_o · o(x)            on every edge; a node sums its edges
    min_α L_val(w*(α), α)  s.t.  w*(α) = argmin_w L_train(w, α)
    keep two edges a node by their best operation, and that operation; never the zero operation

A recipe of the default parts: mix :class:`~archipel.search.differentiable.mix.Softmax`, arch-gradient
:class:`~archipel.search.differentiable.arch_gradient.FirstOrder` or ``SecondOrder``, select
:class:`~archipel.search.differentiable.select.Argmax`. Differs from the paper in that the two halves of the training
data hold every class in equal shares, and from its code in that architecture steps leave batch-norm statistics alone
(no result depends on them: supernets are evaluated with batch statistics).
"""

from __future__ import annotations

from typing import Any

from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.arch_gradient import ArchGradient, SecondOrder
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.objective import SearchObjective
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Select


@register(
    "darts",
    family="search.differentiable",
    slots=["mix", "arch-gradient", "select"],
    paper=Paper("DARTS: Differentiable Architecture Search", 2018, "https://arxiv.org/abs/1806.09055"),
)
def darts(
    order: int = 1,
    schedule: Schedule | dict[str, Any] | str | None = None,
    mix: Mix | str | None = None,
    arch_gradient: ArchGradient | str | None = None,
    objective: SearchObjective | str | None = None,
    select: Select | str | None = None,
    fixed: dict[str, Any] | None = None,
) -> DifferentiableSearch:
    """Differentiable search by a softmax over operations, of first or second order; or with other parts in its slots.

    Args:
        order: 1, or 2 to look one step of the weights ahead (about three times the time).
        schedule: the paper's by default: 50 epochs, batches of 64.
        mix, arch_gradient, objective, select: parts, or their names, that replace those of DARTS.
        fixed: values of decisions that are not searched.

    Raises:
        UsageError: another order, or an order beside an ``arch_gradient``.

    >>> type(darts(order=2).arch_gradient).__name__
    'SecondOrder'
    """
    if order not in (1, 2):
        raise UsageError(f"DARTS is of order 1 or 2, not {order!r}.")
    if order == 2:
        if arch_gradient is not None:
            raise UsageError("The order says how the architecture learns, and so does arch_gradient: give one of them.")
        arch_gradient = SecondOrder()
    return DifferentiableSearch(mix, arch_gradient, objective, schedule, select, fixed)
