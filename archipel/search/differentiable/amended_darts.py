"""Amended DARTS: the inverse Hessian in the architecture gradient replaced by a multiple of the Hessian itself.

Bi, Hu, Xie, Chen, Wei, Tian. Stabilizing DARTS with Amended Gradient Estimation on Architectural Parameters. 2019.
https://arxiv.org/abs/1910.11831

    exact     g = g1 + g2,   g1 = ∂_α L_val,   g2 = −M H⁻¹ v       H = ∂²_ww L_train, M = ∂²_αw L_train, v = ∂_w L_val
    amended   ĝ = g1 − η M H v                                     two products, no inverse

and the network that is searched is the one that is trained afterwards: equal cells and channels as far as memory goes
(the default of ``DartsSpace``), the same drop-path (:class:`DropPathSoftmax`), cutout (``Schedule.cutout``) and
auxiliary classifier (``DartsSpace(search_auxiliary=True)``). Search spaces: S1 is ``DartsSpace``, S2 is
``DartsSpace(tie="cell", ops=S2_OPS)``, in which all edges are searched or, with the nodes' sources in ``fixed``, none.

Fills the `arch-gradient` slot. H and M are of one training batch, v and g1 of a validation batch; finite differences
leave weights and batch-norm statistics alone. H is that of the training loss without the optimiser's weight decay.

The paper argues that the amended g2 keeps within 90° of the true one because H is positive definite. For a rectangular
M that does not follow: H = diag(1, 100), M = [1 1], v = (1, −0.1) has g2 = −0.999 but an amended one of +9η. And where
η λ_max² ≫ 1 the amended term outweighs g1; the log says by how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from torch import nn

from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.arch_gradient import Batch, Bilevel, FirstOrder, Tensors
from archipel.search.differentiable.hessian import Curvature, norm, plus
from archipel.search.differentiable.hypergradient import HyperGradient
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Softmax
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Argmax
from archipel.spaces.darts_network import set_drop_path
from archipel.spaces.operations import DropPath, OpFactory, Zero, choice_edge

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

S2_OPS = ("skip_connect", "sep_conv_3x3")
SKIPS = ("skip_connect", "skip")


class AmendedGradient(HyperGradient):
    """ĝ = ∂_α L_val − η M H v.

    Args:
        eta: η; 0 is first-order DARTS.
        hessian: ``"finite"`` differences or ``"exact"`` products.
        r: numerator of ε in finite ones.

    Attributes:
        ratios: ‖η M H v‖ / ‖g1‖ of each step of the epoch; its median is in the search's log as ``amended_ratio``,
            beside the number of skip connections that would be chosen, ``skips``.

    Raises:
        UsageError: η is negative or not finite, or other products.
    """

    def __init__(self, eta: float = 0.1, hessian: str = "finite", r: float = 0.01) -> None:
        super().__init__(hessian, r)
        if not (math.isfinite(eta) and eta >= 0):
            raise UsageError(
                f"AmendedGradient: eta must not be negative, got {eta!r}; 0 is first order, the paper's is 0.1."
            )
        self.eta = eta
        self.ratios: list[float] = []
        self._figures: dict[str, float] = {}

    def inverse(self, curvature: Curvature, v: Tensors) -> Tensors:
        return {n: self.eta * t for n, t in curvature.hessian(v).items()}

    def gradient(self, problem: Bilevel, train: Batch, val: Batch) -> Tensors:
        if self.eta == 0.0:
            return FirstOrder().gradient(problem, train, val)
        g1, g2 = self.terms(problem, train, val)
        direct = norm(g1)
        self.ratios.append(norm(g2) / direct if direct else math.inf)
        return plus(g1, 1.0, g2)

    # --- what the log holds ------------------------------------------------------------------------------------------

    def epoch_ended(self, state: SearchState) -> None:
        self._figures = {"skips": sum(op in SKIPS for op in Argmax()(state).values())}
        if self.ratios:  # none while warming up
            self._figures["amended_ratio"] = median(self.ratios)
        self.ratios = []

    def figures(self) -> Mapping[str, float]:
        return self._figures


class DropPathSoftmax(Softmax):
    """Softmax mixtures whose operations leave whole paths out at random while the search trains.

    The probability rises from 0, linearly with the epoch, as it does when the answer is trained. Identities are never
    left out. Finite differences see the same paths on both sides.

    Args:
        p: final probability.
    """

    def __init__(self, p: float) -> None:
        if not 0.0 <= p < 1.0:
            raise UsageError(f"DropPathSoftmax: p is a probability below 1, not {p!r}.")
        self.p = p
        self.now = 0.0

    def edge(  # type: ignore[override]
        self, name: str, ops: Mapping[str, OpFactory], C: int, stride: int, blend_only: Sequence[str] = ()
    ) -> nn.Module:
        def dropping(make: OpFactory) -> OpFactory:
            def made(c: int, s: int) -> nn.Module:
                op = make(c, s)
                return op if isinstance(op, nn.Identity | Zero) else nn.Sequential(op, DropPath(0.0))

            return made

        return choice_edge(name, {label: dropping(make) for label, make in ops.items()}, C, stride, blend_only)

    def started(self, state: SearchState) -> None:
        self.supernet = state.supernet

    def step_ended(self, state: SearchState) -> None:
        self._set(self.p * state.moment.step / state.moment.steps)

    def _set(self, p: float) -> None:
        self.now = p
        set_drop_path(self.supernet, p)

    def state_dict(self) -> dict[str, Any]:
        return {"now": self.now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._set(state["now"])


@register(
    "amended-darts",
    card=56,
    family="search.differentiable",
    slots=["arch-gradient"],
    paper=Paper(
        "Stabilizing DARTS with Amended Gradient Estimation on Architectural Parameters",
        2019,
        "https://arxiv.org/abs/1910.11831",
    ),
)
def amended_darts(
    eta: float = 0.1,
    hessian: str = "finite",
    drop_path: float = 0.0,
    cutout: int = 0,
    schedule: Schedule | None = None,
    **slots: Any,
) -> DifferentiableSearch:
    """Differentiable search with the amended architecture gradient; two to three times the time of first order.

    Args:
        eta, hessian: see :class:`AmendedGradient`.
        drop_path: final probability of leaving a path out, as in the training of the answer.
        cutout: side of the square erased from each image, as in the training of the answer.
        schedule: that of DARTS by default.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    Raises:
        UsageError: drop-path with a mix that makes its own edges.

    >>> amended_darts(eta=0.2, cutout=16).arch_gradient.eta
    0.2
    """
    if drop_path:
        if "mix" in slots:
            raise UsageError("amended-darts: drop_path makes a mix of its own; give either drop_path or mix.")
        slots["mix"] = DropPathSoftmax(drop_path)
    chosen = schedule or Schedule()
    slots.setdefault("arch_gradient", AmendedGradient(eta, hessian))
    return DifferentiableSearch(schedule=replace(chosen, cutout=cutout) if cutout else chosen, **slots)
