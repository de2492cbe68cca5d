"""SD-DARTS: the supernet learns from its own earlier states, several of which vote.

Zhu, Li, Liu, Wang. Improving Differentiable Architecture Search via Self-Distillation. 2023.
https://arxiv.org/abs/2302.05629

    weights       L = CE(z, y) + λ T² KL(p̄ ‖ softmax(z/T))
    soft vote     p̄ = 1/V Σ_v softmax(z_v/T)
    hard vote     p̄ = 1/V Σ_v [argmax_c z_v],   a tie of a teacher split equally
    teachers      the last V states of weights and logits, one taken every τ steps
    architecture  cross entropy alone, as in DARTS

The paper sees the gap between supernet and derived network as a matter of sharp minima; :mod:`.sharpness` measures
both. λ rises linearly from 0 over the first V·τ steps. Teachers normalise by the batch as the student does, leave its
running statistics alone and get no gradient.

Fills `objective`. Only the paper's abstract was at hand: the loss is its direct reading and V = 3, T = 2, λ = 1, τ = an
epoch are ours. Other differences: those of :mod:`~archipel.search.differentiable.darts`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.errors import ShapeError, UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.nets.batch_norm import batch_norms, frozen_statistics
from archipel.search.differentiable.arch_gradient import Tensors
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.objective import SearchObjective
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import loss_of

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

Teacher = dict[str, Tensors]  # "weights" and "logits", by name
VOTES = ("soft", "hard")


def soft_vote(z_VBC: Tensor, T: float) -> Tensor:
    """Mean of the teachers' softened probabilities, ``[B, C]``.

    >>> soft_vote(torch.zeros(3, 1, 2), 2.0)
    tensor([[0.5000, 0.5000]])
    """
    return torch.softmax(z_VBC / T, -1).mean(0)


def hard_vote(z_VBC: Tensor) -> Tensor:
    """Share of the teachers that put each class first, ``[B, C]``; a teacher's tie is split equally.

    >>> hard_vote(torch.tensor([[[1.0, 0.0]], [[2.0, 2.0]]]))
    tensor([[0.7500, 0.2500]])
    """
    first = (z_VBC == z_VBC.amax(-1, keepdim=True)).to(z_VBC)
    return (first / first.sum(-1, keepdim=True)).mean(0)


def distillation(z_BC: Tensor, p_BC: Tensor, T: float) -> Tensor:
    """T² KL(p ‖ softmax(z/T)), the mean over the batch; its gradient for one row of ``z`` is T (softmax(z/T) − p)/B."""
    log_q = torch.log_softmax(z_BC / T, -1)
    return T**2 * (torch.xlogy(p_BC, p_BC) - p_BC * log_q).sum(-1).mean()


def entropy(p_BC: Tensor) -> float:
    """Mean entropy of the rows, in nats."""
    return float(-torch.xlogy(p_BC, p_BC).sum(-1).mean())


class SelfDistillation(SearchObjective):
    """Cross entropy, and for the weights the vote of the supernet's earlier states.

    Args:
        teachers: V, how many states are kept.
        every: τ, steps between two states; an epoch's steps if None.
        weight: λ after the ramp.
        temperature: T.
        vote: ``"soft"`` or ``"hard"``.

    Attributes:
        pool: the states kept, the oldest first.

    Raises:
        UsageError: a number out of range or another vote; in use: a regression, or teachers of another search.
        ShapeError: in use: teachers with another number of classes.
    """

    def __init__(
        self, teachers: int = 3, every: int | None = None, weight: float = 1.0, temperature: float = 2.0,
        vote: str = "soft",
    ) -> None:  # fmt: skip
        for name, value in (("teachers", teachers), ("every", every)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"SelfDistillation: {name} must be a positive integer, not {value!r}.")
        if not temperature > 0:
            raise UsageError(f"SelfDistillation: the temperature must be positive, not {temperature!r}.")
        if not weight >= 0:
            raise UsageError(f"SelfDistillation: the weight must not be negative, not {weight!r}.")
        if vote not in VOTES:
            raise UsageError(f"SelfDistillation: vote {vote!r} is unknown. {suggest(vote, VOTES)}")
        if vote == "hard" and teachers == 1:
            warnings.warn("The hard vote of a single teacher is plain pseudo-labels.", stacklevel=2)
        self.teachers, self.every, self.weight = teachers, every, weight
        self.temperature, self.vote = temperature, vote
        self.pool: list[Teacher] = []
        self._seen: list[tuple[float, float]] = []
        self._figures: dict[str, float] = {}

    def started(self, state: SearchState) -> None:
        if state.task == "regression":
            raise UsageError("Teachers vote for classes, so SelfDistillation needs a classification task.")

    # --- the loss --------------------------------------------------------------------------------------------------

    def weight_loss(self, state: SearchState, output: Tensor, x: Tensor, y: Tensor) -> Tensor:
        loss = loss_of(state.task, output, y)
        lam = self.weight * min(1.0, state.moment.step / (self.teachers * self._interval(state)))
        if not self.pool or lam == 0.0:
            return loss
        z = (output[0] if isinstance(output, tuple) else output).flatten(0, -2)
        z_VBC = self.answers(state, x, z.shape)
        p = soft_vote(z_VBC, self.temperature) if self.vote == "soft" else hard_vote(z_VBC)
        with torch.no_grad():  # what hard labels and the vote at T = 1 say together, weighed as in the loss
            labels = torch.nn.functional.one_hot(y.flatten(), z.shape[-1])
            target = (labels + lam * soft_vote(z_VBC, 1.0)) / (1 + lam)
            self._seen.append((entropy(p), entropy(target)))
        return loss + lam * distillation(z, p, self.temperature)

    @torch.no_grad()
    def answers(self, state: SearchState, x: Tensor, shape: torch.Size) -> Tensor:
        """The logits ``[V, B, C]`` of all teachers, where the student's have ``shape``."""
        seated = state.supernet.decider
        found = []
        with frozen_statistics(batch_norms(state.supernet)):
            for teacher in self.pool:
                _check_rows(teacher["logits"], state.logits)
                z = state.output(x, state.mixture_weights(teacher["logits"]), teacher["weights"])
                z = (z[0] if isinstance(z, tuple) else z).flatten(0, -2)
                if z.shape != shape:
                    raise ShapeError(f"A teacher answers {tuple(z.shape)}, but the student answers {tuple(shape)}.")
                found.append(z)
        state.supernet.decider = seated
        return torch.stack(found)

    # --- the pool --------------------------------------------------------------------------------------------------

    def _interval(self, state: SearchState) -> int:
        return state.steps_per_epoch if self.every is None else self.every

    def step_ended(self, state: SearchState) -> None:
        if (state.moment.step + 1) % self._interval(state) == 0:
            self.add({"weights": state.weights, "logits": state.logits})

    def add(self, teacher: Teacher) -> None:
        """Take up a copy of a state; beyond V, the oldest is dropped."""
        self.pool.append({kind: {n: t.detach().clone() for n, t in part.items()} for kind, part in teacher.items()})
        del self.pool[: -self.teachers]

    def epoch_ended(self, state: SearchState) -> None:
        means = torch.tensor(self._seen, dtype=torch.float64).mean(0).tolist() if self._seen else [0.0, 0.0]
        self._figures = {"teachers": len(self.pool), "teacher_entropy": means[0], "target_entropy": means[1]}
        self._seen = []

    def figures(self) -> dict[str, Any]:
        """Teachers held after the epoch, and in nats the mean entropy of their vote and of vote and labels together."""
        return self._figures

    def state_dict(self) -> dict[str, Any]:
        return {"pool": list(self.pool)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pool = list(state["pool"])


def _check_rows(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> None:
    theirs, ours = ({n: tuple(t.shape) for n, t in rows.items()} for rows in (teacher, student))
    if theirs != ours:
        name = next(n for n in {**theirs, **ours} if theirs.get(n) != ours.get(n))
        raise UsageError(
            f"A teacher has architecture parameters {name!r} of shape {theirs.get(name)}, the search has "
            f"{ours.get(name)}. Teachers must be states of the same search."
        )


@register(
    "sd-darts",
    card=46,
    family="search.differentiable",
    slots=["objective"],
    paper=Paper(
        "Improving Differentiable Architecture Search via Self-Distillation", 2023, "https://arxiv.org/abs/2302.05629"
    ),
)
def sd_darts(
    teachers: int = 3, every: int | None = None, weight: float = 1.0, temperature: float = 2.0, vote: str = "soft",
    schedule: Schedule | None = None, **slots: Any,
) -> DifferentiableSearch:  # fmt: skip
    """DARTS whose supernet is distilled from its own earlier states.

    Args:
        teachers, every, weight, temperature, vote: see :class:`SelfDistillation`.
        schedule: that of DARTS by default.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    >>> sd_darts(teachers=1).objective.teachers
    1
    """
    slots.setdefault("objective", SelfDistillation(teachers, every, weight, temperature, vote))
    return DifferentiableSearch(schedule=schedule or Schedule(), **slots)
