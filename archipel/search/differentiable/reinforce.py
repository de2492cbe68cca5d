"""Binary gates learnt by the score function of a reward, and the mix that samples them.

Cai, Zhu, Han. ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware. 2018, section 3.3.2.
https://arxiv.org/abs/1812.00332. The gradient is that of Williams, 1992, https://doi.org/10.1007/BF00992696.

    ∂L/∂α = −E_{g ~ p(α)}[(R(g) − b) ∂ log p(g) / ∂α],   R = accuracy · (T / cost)^w
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.errors import SpaceError, UsageError
from archipel.nets.batch_norm import batch_norms, frozen_statistics
from archipel.search.differentiable.arch_gradient import ArchGradient, Batch, Bilevel, Tensors
from archipel.search.differentiable.cost_loss import CostLoss
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.parameters import Moment, Row

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


class BinaryGates(Mix):
    """While training, one option drawn from softmax(α); the softmax itself where the mixture is looked at."""

    def started(self, state: SearchState) -> None:
        """
        Raises:
            SpaceError: nodes that choose among sources, of which several are taken at once.
        """
        for name, row in state.parameters.rows.items():
            if not row.is_choice:
                raise SpaceError(
                    f"Binary gates choose one of several operations, but {name!r} chooses among incoming edges. Use a "
                    f"space whose decisions are all operations, or fix the edges."
                )

    def coefficients(self, logits: Tensor, row: Row, moment: Moment) -> Tensor:
        """
        Raises:
            UsageError: a gradient for the logits is wanted, which a sample does not have.
        """
        p = torch.softmax(logits, 0)
        if not moment.training:
            return p
        if logits.requires_grad:
            raise UsageError(
                "A sampled gate has no derivative for the logits. Give a search with binary gates "
                "arch_gradient=GateGradient() or Reinforce()."
            )
        return torch.zeros_like(p).index_fill_(0, torch.multinomial(p, 1), 1.0)


def check_gates(state: SearchState, gradient: ArchGradient) -> None:
    """
    Raises:
        UsageError: weight steps that do not sample one path.
    """
    if not isinstance(state.mix, BinaryGates):
        raise UsageError(
            f"{type(gradient).__name__} is for searches that sample one path, but the mix is "
            f"{type(state.mix).__name__}. Give mix=BinaryGates()."
        )


class Reinforce(ArchGradient):
    """The score-function gradient of a reward, every so many weight steps.

    Args:
        archs: architectures drawn for a step.
        power: w of the cost in the reward; without a :class:`CostLoss` the reward is the accuracy.
        decay: of the running mean reward, which begins at the first step's.
        every: weight steps to one architecture step.

    Raises:
        UsageError: a number out of range.
    """

    def __init__(self, archs: int = 10, power: float = 0.1, decay: float = 0.99, every: int = 5) -> None:
        if archs < 1 or every < 1 or not 0 <= decay <= 1 or power < 0:
            raise UsageError(
                f"Reinforce takes at least one architecture and step, a decay within [0, 1] and a power that is not "
                f"negative, not archs={archs}, every={every}, decay={decay}, power={power}."
            )
        self.archs, self.power, self.decay, self.every = archs, power, decay, every
        self.baseline: float | None = None

    def started(self, state: SearchState) -> None:
        """
        Raises:
            UsageError: no binary gates, or rewards without accuracy or target.
        """
        check_gates(state, self)
        if state.task == "regression":
            raise UsageError("Reinforce is rewarded by accuracy, which a regression does not have.")
        if isinstance(state.objective, CostLoss) and state.objective.target is None:
            raise UsageError(
                "Reinforce is rewarded by target over cost, but the objective's form add-log has no target."
            )

    @torch.no_grad()
    def reward(self, state: SearchState, gates: Mapping[str, Tensor], val: Batch) -> float:
        """R = accuracy · (T / cost)^w of one architecture on a batch."""
        with frozen_statistics(batch_norms(state.supernet)):
            accuracy = float((state.output(val[0], gates).argmax(-1) == val[1]).double().mean())
        objective = state.objective
        if not isinstance(objective, CostLoss):
            return accuracy
        assert objective.expected is not None  # since `started`
        assert objective.target is not None
        return accuracy * (objective.target / float(objective.expected(gates))) ** self.power

    def gradient(self, problem: Bilevel, train: Batch, val: Batch) -> Tensors:
        state: SearchState = problem  # type: ignore[assignment]
        constant = {n: a.detach() for n, a in state.logits.items()}
        drawn = [state.mixture_weights(constant, training=True) for _ in range(self.archs)]
        rewards = [self.reward(state, gates, val) for gates in drawn]
        mean = sum(rewards) / self.archs
        self.baseline = mean if self.baseline is None else self.decay * self.baseline + (1 - self.decay) * mean
        out = {}
        for name, alpha in constant.items():
            score = torch.stack([gates[name] for gates in drawn]) - torch.softmax(alpha, 0)  # ∂ log p(g) / ∂α
            out[name] = -((torch.tensor(rewards).to(score) - self.baseline)[:, None] * score).mean(0)
        return out

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        loss = state.weight_step(train)
        if state.moment.epoch >= state.schedule.warmup and (state.moment.step + 1) % self.every == 0:
            state.alpha_step(self.gradient(state, train, val))
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"baseline": self.baseline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.baseline = state["baseline"]
