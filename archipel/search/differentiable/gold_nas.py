"""GOLD-NAS: one level, sigmoid gates, a growing price of resources, and operations removed a few at a time.

Bi, Xie, Chen, Wei, Tian. GOLD-NAS: Gradual, One-Level, Differentiable. 2020. https://arxiv.org/abs/2007.03331

    node    x_j = Σ_{i<j} Σ_o σ(α^o_ij) · o(x_i)
    loss    L = CE(θ, α) + λ (R_FLOPs(α) + μ R_uniform(α)),   R(α) = Σ ln(1 + σ(α)/σ̄) · c_o     both from all data
    prune   each epoch: gates below ξ_min, then the smallest below ξ_max up to n_0 in all; never a node's last input
    price   fewer than n_0 removed: Δλ *= c_0, λ += Δλ;   else: Δλ = λ_0, λ /= c_0
    emit    the network, once t_0 epochs in a row removed too little and it is new

σ̄ is the mean gate of what is left, a constant for the gradient, so ∂R/∂σ = c/(σ̄ + σ): of equal costs, smaller gates
get the larger push. c_o is the operation's FLOPs (here: multiply-accumulates) over their mean for R_FLOPs, and 1 for
R_uniform, without which a skip-connection would never be pushed. What was pruned is never computed again; what is left
keeps its weights. One search gives a nested series of networks, each of which is then trained anew.

Fills `mix`, `arch-gradient`, `objective` and `select`, in spaces whose nodes take any subset
(:mod:`archipel.spaces.subsets`). Departures: the thresholds, n_0, c_0, t_0 and λ_0 are as recalled, and the rule for λ
is a precise reading of the paper's, to be replaced by a subclass of
:class:`~archipel.search.differentiable.resource_penalty.Pressure`. No cutout during the search.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.arch_gradient import OneLevel
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.pruned_gates import PrunedGates, subsets_of
from archipel.search.differentiable.resource_penalty import Pressure, ResourcePenalty
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Select

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


class ParetoSet(Select):
    """Every network that stood still: emitted once ``t0`` epochs in a row removed too little.

    If none did before the search ended, the network at the end is the only answer.

    Args:
        t0: epochs.

    Attributes:
        points: for each emitted network its epoch, architecture, number of operations and gates.

    Raises:
        UsageError: ``t0`` below 1; in use: another objective than :class:`ResourcePenalty`.
    """

    def __init__(self, t0: int = 3) -> None:
        if t0 < 1:
            raise UsageError(f"ParetoSet: t0 is a number of epochs, at least 1, not {t0!r}.")
        self.t0 = t0
        self.points: list[dict[str, Any]] = []

    def started(self, state: SearchState) -> None:
        if not isinstance(state.objective, ResourcePenalty):
            raise UsageError("ParetoSet waits for the pruning to stand still: it needs objective=ResourcePenalty().")

    def epoch_ended(self, state: SearchState) -> None:
        objective = state.objective
        assert isinstance(objective, ResourcePenalty)  # checked at the start
        arch = self(state)
        if objective.pressure.stale >= self.t0 and all(arch != p["arch"] for p in self.points):
            gates = {n: w.tolist() for n, w in state.mixture_weights().items()}
            ops = sum(sum(w > 0 for w in row) for row in gates.values())
            self.points.append({"epoch": state.moment.epoch, "arch": arch, "ops": ops, "gates": gates})

    def __call__(self, state: SearchState) -> Arch:
        """The network as it stands: all that has not been pruned."""
        assert isinstance(state.mix, PrunedGates)
        arch: Arch = {}
        for name, subset in subsets_of(state.parameters.rows).items():
            live = state.mix.live[name]
            arch |= subset.arch([label for label, alive in zip(subset.labels, live.tolist()) if alive])
        return state.supernet.space.validate(arch)

    glance = __call__

    def answers(self, state: SearchState) -> list[Arch]:
        return [p["arch"] for p in self.points] or [self(state)]

    def figures(self) -> dict[str, Any]:
        return {"points": len(self.points)}

    def state_dict(self) -> dict[str, Any]:
        return {"points": list(self.points)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = list(state["points"])


# The paper's constant learning rate of the weights; no L2 on α, which would hold gates at one half.
SCHEDULE = Schedule(epochs=200, batch_size=96, lr=0.01, lr_min=0.01, alpha_lr=0.01, alpha_decay=0.0, alpha_share=0.0)


@register(
    "gold-nas",
    card=90,
    family="search.differentiable",
    slots=["mix", "arch-gradient", "objective", "select"],
    paper=Paper("GOLD-NAS: Gradual, One-Level, Differentiable", 2020, "https://arxiv.org/abs/2007.03331"),
)
def gold_nas(
    lam0: float = 1e-5, c0: float = 2.0, n0: int = 4, t0: int = 3, xi_max: float = 0.05, xi_min: float = 0.01,
    mu: float = 1.0, costs: str | dict[str, float] = "macs", minimum: float | None = None,
    epochs: int | None = None, schedule: Schedule | None = None, **slots: Any,
) -> DifferentiableSearch:  # fmt: skip
    """One-level search that prunes gradually under a growing price and proposes a series of networks.

    Args:
        lam0, c0: see :class:`Pressure`.
        n0, xi_max, xi_min: see :class:`~archipel.search.differentiable.pruned_gates.PrunedGates`.
        t0: see :class:`ParetoSet`.
        mu, costs, minimum: see :class:`ResourcePenalty`.
        epochs: at most so many, instead of the schedule's.
        schedule: all data for both levels (``alpha_share=0``).
        slots: other slots of :class:`DifferentiableSearch`.

    Raises:
        UsageError: a schedule of two levels, or a setting out of range.

    >>> gold_nas(n0=2).mix.n0
    2
    """
    schedule = schedule or SCHEDULE
    if schedule.alpha_share:
        raise UsageError("GOLD-NAS trains weights and gates together on all data; its schedule needs alpha_share=0.")
    slots.setdefault("mix", PrunedGates(xi_max, xi_min, n0))
    slots.setdefault("arch_gradient", OneLevel())
    slots.setdefault("objective", ResourcePenalty(mu, costs, minimum, Pressure(lam0, c0)))
    slots.setdefault("select", ParetoSet(t0))
    return DifferentiableSearch(schedule=schedule if epochs is None else replace(schedule, epochs=epochs), **slots)
