"""Policy gradients over architectures: a recurrent controller that takes a space's decisions one after the other.

Shared by searches with reinforcement learning. Sources:
Zoph, Le. Neural Architecture Search with Reinforcement Learning. 2016. https://arxiv.org/abs/1611.01578
Williams. Simple statistical gradient-following algorithms (REINFORCE). 1992. https://doi.org/10.1007/BF00992696
Schulman, Wolski, Dhariwal, Radford, Klimov. Proximal Policy Optimization Algorithms. 2017.
https://arxiv.org/abs/1707.06347

    p(arch) = prod over open decisions t of softmax(W_t h_t + b_t)[a_t],   h_t = LSTM(embedding of a_{t-1}, h_{t-1})
    REINFORCE   loss = -mean_B A_B sum_t log p(a_t)
    PPO         loss = -mean_B sum_t min(r_t A_B, clip(r_t, 1 - eps, 1 + eps) A_B),   r_t = p(a_t) / p_old(a_t)

A_B is the reward minus a moving average of rewards. Each decision has a softmax and embeddings of its own; closed
decisions take no step. Axes: B sequences, T steps, D decisions, K options of the largest decision, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.decision import Arch, Decision
from archipel.core.errors import SpaceError, UsageError
from archipel.core.space import Space


@dataclass(frozen=True)
class Sequences:
    """Architectures as the controller takes them; shorter ones are padded at the end.

    Attributes:
        decision_BT: index of the decision taken at each step.
        option_BT: index of its option.
        mask_BT: 1 where there is a step, 0 in the padding.
    """

    decision_BT: Tensor
    option_BT: Tensor
    mask_BT: Tensor


class Controller(nn.Module):
    """An LSTM with a softmax for each decision of a space.

    Args:
        space: of finitely many options everywhere; closed decisions are skipped.
        hidden: units of the LSTM and size of the embeddings.
        generator: draws the initial weights, uniform in [-0.1, 0.1].

    Raises:
        SpaceError: a decision is a range of numbers, which has no softmax.

    >>> from archipel.core.decision import Decision
    >>> space = Space([Decision("op", ["conv", "skip"]), Decision("k", [3, 5, 7])])
    >>> controller = Controller(space, hidden=8)
    >>> log_p_BT, entropy_BT = controller(controller.encode([{"op": "skip", "k": 7}]))
    >>> log_p_BT.shape
    torch.Size([1, 2])
    """

    def __init__(self, space: Space, hidden: int = 100, generator: torch.Generator | None = None) -> None:
        super().__init__()
        for d in space.decisions:
            if not isinstance(d, Decision):
                raise SpaceError(f"A controller chooses among options, but {d.name!r} is {d.describe()}.")
        self.space = space
        self.decisions: list[Decision] = list(space.decisions)  # type: ignore[arg-type]
        self._index = {d.name: i for i, d in enumerate(self.decisions)}
        D, K = len(self.decisions), max(d.size for d in self.decisions)
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.start_H = nn.Parameter(torch.empty(hidden))
        self.embedding_DKH = nn.Parameter(torch.empty(D, K, hidden))
        self.weight_DKH = nn.Parameter(torch.empty(D, K, hidden))
        self.bias_DK = nn.Parameter(torch.empty(D, K))
        for p in self.parameters():
            nn.init.uniform_(p, -0.1, 0.1, generator=generator)
        options_DK = torch.arange(K) < torch.tensor([[d.size] for d in self.decisions])
        self.register_buffer("absent_DK", torch.where(options_DK, 0.0, -torch.inf))

    def logits(self, h: Tensor, decision: Tensor) -> Tensor:
        """Scores ``[..., K]`` of the options of decisions ``[...]`` from ``[..., H]``; minus infinity if absent."""
        if bool((decision == decision[:1]).all()):  # without closed decisions all rows share their softmaxes
            decision = decision[:1]
        scores = torch.einsum("...h,...kh->...k", h, self.weight_DKH[decision])
        return scores + (self.bias_DK + self.absent_DK)[decision]  # type: ignore[operator]

    def encode(self, archs: Sequence[Arch]) -> Sequences:
        """Valid architectures as sequences of their open decisions."""
        steps = [[(i, d.index(a[d.name])) for i, d in enumerate(self.decisions) if d.name in a] for a in archs]
        T = max(map(len, steps))
        padded = torch.tensor([s + [(0, 0)] * (T - len(s)) for s in steps])
        mask_BT = torch.arange(T) < torch.tensor([[len(s)] for s in steps])
        return Sequences(padded[..., 0], padded[..., 1], mask_BT.to(self.bias_DK.dtype))

    def forward(self, seq: Sequences) -> tuple[Tensor, Tensor]:
        """Log-probability of each step taken and entropy of the distribution it was drawn from, ``[B, T]`` each."""
        taken_BTH = self.embedding_DKH[seq.decision_BT, seq.option_BT]
        start_B1H = self.start_H.expand(len(taken_BTH), 1, -1)
        h_BTH, _ = self.lstm(torch.cat([start_B1H, taken_BTH[:, :-1]], dim=1))
        log_p_BTK = F.log_softmax(self.logits(h_BTH, seq.decision_BT), dim=-1)
        log_p_BT = log_p_BTK.gather(-1, seq.option_BT[..., None]).squeeze(-1)
        # An absent option has p log p = 0 x -inf; its logarithm is set to 0 to keep values and gradients finite.
        entropy_BT = -(log_p_BTK.exp() * log_p_BTK.clamp_min(-1e4)).sum(-1)
        return log_p_BT * seq.mask_BT, entropy_BT * seq.mask_BT

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> list[Arch]:
        """Architectures drawn from the policy, decision after decision."""
        archs: list[Arch] = [{} for _ in range(n)]
        position = [-1] * n
        x_BH = self.start_H.repeat(n, 1)
        h_BH = c_BH = torch.zeros_like(x_BH)
        weights = [getattr(self.lstm, name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")]
        while True:
            position = [self._next_open(i, arch) for i, arch in zip(position, archs)]
            alive = [b for b, i in enumerate(position) if i < len(self.decisions)]
            if not alive:
                return archs
            h_BH, c_BH = torch.lstm_cell(x_BH, (h_BH, c_BH), *weights)  # rows that have ended run along idly
            decision_B = torch.tensor([min(i, len(self.decisions) - 1) for i in position])
            p_BK = F.softmax(self.logits(h_BH, decision_B), dim=-1)
            option_B = torch.multinomial(p_BK, 1, generator=generator)[:, 0]
            x_BH = self.embedding_DKH[decision_B, option_B]
            for b, option in zip(alive, option_B[alive].tolist()):
                d = self.decisions[position[b]]
                archs[b][d.name] = d.options[option]

    def _next_open(self, position: int, arch: Arch) -> int:
        position += 1
        while position < len(self.decisions) and not self.space.is_open(self.decisions[position].name, arch):
            position += 1
        return position


class MovingBaseline:
    """Exponential moving average of rewards, ``b <- decay b + (1 - decay) reward``, starting at the first one.

    Raises:
        UsageError: a decay outside [0, 1).

    >>> baseline = MovingBaseline(0.75)
    >>> baseline.update(2.0), baseline.update(4.0)
    (2.0, 2.5)
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise UsageError(f"The decay of a baseline is in [0, 1), not {decay!r}.")
        self.decay = decay
        self.value: float | None = None

    def update(self, reward: float) -> float:
        """Take in a reward; returns the new value."""
        self.value = reward if self.value is None else self.decay * self.value + (1.0 - self.decay) * reward
        return self.value


def reinforce_loss(log_p_BT: Tensor, advantage_B: Tensor) -> Tensor:
    """Minus the score-function estimate of the expected advantage; its gradient is REINFORCE's.

    >>> float(reinforce_loss(torch.tensor([[-1.0, -2.0]]), torch.tensor([0.5])))
    1.5
    """
    return -(log_p_BT.sum(-1) * advantage_B).mean()


def ppo_loss(log_p_BT: Tensor, old_log_p_BT: Tensor, advantage_B: Tensor, clip: float = 0.2) -> Tensor:
    """Minus PPO's clipped surrogate, summed over the steps of a sequence; padding (both 0) adds a constant.

    At the old policy its gradient equals REINFORCE's. A step whose ratio has left [1 - clip, 1 + clip] in the
    direction that its advantage favours has no gradient any more.

    >>> old = torch.tensor([[0.0]])
    >>> [round(float(ppo_loss(torch.tensor([[r]]).log(), old, torch.tensor([1.0]))), 3) for r in (0.5, 1.1, 1.5)]
    [-0.5, -1.1, -1.2]
    """
    ratio_BT = (log_p_BT - old_log_p_BT).exp()
    advantage_B1 = advantage_B[:, None]
    surrogate_BT = torch.minimum(ratio_BT * advantage_B1, ratio_BT.clamp(1.0 - clip, 1.0 + clip) * advantage_B1)
    return -surrogate_BT.sum(-1).mean()
