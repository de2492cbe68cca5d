"""Search by a recurrent controller that is trained with policy gradients, as NASNet was found.

Zoph, Vasudevan, Shlens, Le. Learning Transferable Architectures for Scalable Image Recognition. 2017.
https://arxiv.org/abs/1707.07012

    a ~ LSTM controller, one softmax for each decision of the space (for two NASNet cells: 2 x 5B)
    A = R(a) - b,   R: validation accuracy of the child a,   b: moving average of the rewards before (weight 0.95)
    theta <- Adam on PPO's clipped surrogate (see :mod:`archipel.search.policy`) + 1e-5 entropy, for 20 children a time

Fills the `propose` slot for any space without real-valued decisions. Settings are the paper's (100 units, weights
uniform in [-0.1, 0.1], learning rate 3.5e-4 for 20,000 children); far fewer children need a larger learning rate.

As in the paper, children are trained by many workers at once: outcomes come in any order, a child keeps the
probabilities of the policy that proposed it (the denominator of PPO's ratio), and every update discards the proposals
that were not handed out yet. Not in the paper: the number of passes over a mini-batch (5 here) and the clip (0.2);
the first mini-batch is centred at its own mean, as there is no reward before; a child that fails counts as the worst
reward so far; proposals beyond hard limits are drawn again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from archipel.core.decision import Arch
from archipel.core.errors import InfeasibleError, UsageError
from archipel.core.registry import Paper, register
from archipel.search.policy import Controller, MovingBaseline, ppo_loss, reinforce_loss
from archipel.search.strategy import MAX_DRAWS, Problem, Strategy, Trial

RULES = ("ppo", "reinforce")


@dataclass
class Child:
    """An architecture with what the policy that drew it thought of it: log-probabilities of its steps ``[T]``."""

    arch: Arch
    log_p_T: torch.Tensor
    reward: float | None = None  # None after a failure


@register(
    "nasnet",
    card=106,
    family="search.blackbox",
    slots=["propose"],
    paper=Paper(
        "Learning Transferable Architectures for Scalable Image Recognition", 2017, "https://arxiv.org/abs/1707.07012"
    ),
)
class PolicyGradientSearch(Strategy):
    """A recurrent controller proposes; proximal policy optimisation makes better children more likely.

    Args:
        batch: children in each update.
        hidden: units of the LSTM.
        lr: of Adam.
        entropy: weight of the controller's mean entropy for a step, which keeps it exploring.
        decay: of the moving average of rewards.
        rule: ``"ppo"``, or ``"reinforce"`` for the plain policy gradient.
        epochs: passes over each batch; None: 5 for PPO. REINFORCE is only right for the first.
        clip: of PPO's ratios.

    Raises:
        UsageError: an unknown rule, a setting out of its range, or several passes of REINFORCE.

    >>> from archipel.core.decision import Decision
    >>> from archipel.core.space import Space
    >>> search = PolicyGradientSearch(batch=2)
    >>> search.setup(Problem(Space([Decision("op", ["conv", "skip"])])))
    >>> sorted(search.ask().info)
    ['log_prob', 'updates']
    """

    def __init__(
        self,
        batch: int = 20,
        hidden: int = 100,
        lr: float = 3.5e-4,
        entropy: float = 1e-5,
        decay: float = 0.95,
        rule: str = "ppo",
        epochs: int | None = None,
        clip: float = 0.2,
    ) -> None:
        if rule not in RULES:
            raise UsageError(f"A controller is trained by one of {RULES}, not {rule!r}.")
        if rule == "reinforce" and epochs not in (None, 1):
            raise UsageError(f"REINFORCE needs children of the present policy, so one pass, not epochs={epochs}.")
        epochs = (5 if rule == "ppo" else 1) if epochs is None else epochs
        for name, value in {"batch": batch, "hidden": hidden, "epochs": epochs}.items():
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a positive integer, not {value!r}.")
        if not (lr > 0 and entropy >= 0 and 0 < clip < 1):
            raise UsageError(f"Needed are lr > 0, entropy >= 0 and 0 < clip < 1, not {lr!r}, {entropy!r}, {clip!r}.")
        MovingBaseline(decay)
        self.batch, self.hidden, self.lr, self.entropy, self.decay = batch, hidden, lr, entropy, decay
        self.rule, self.epochs, self.clip = rule, epochs, clip

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self._generator = torch.Generator().manual_seed(problem.rng.getrandbits(63))
        self.controller = Controller(problem.space, self.hidden, self._generator)
        self._optimizer = torch.optim.Adam(self.controller.parameters(), self.lr)
        self.baseline = MovingBaseline(self.decay)
        self.updates = 0
        self._proposals: list[Child] = []
        self._pending: dict[int, Child] = {}
        self._told: list[Child] = []
        self._worst = math.inf
        self._ranking: dict[str, tuple[float, Arch]] = {}

    def ask(self) -> Trial:
        if not self._proposals:
            self._propose()
        child = self._proposals.pop()
        info = {"updates": self.updates, "log_prob": float(child.log_p_T.sum())}
        trial = self.new_trial(child.arch, info=info)
        self._pending[trial.id] = child
        return trial

    def _propose(self) -> None:
        feasible = self.problem.feasible or (lambda arch: True)
        for _ in range(0, MAX_DRAWS, self.batch):
            archs = [a for a in self.controller.sample(self.batch, self._generator) if feasible(a)]
            if archs:
                sequences = self.controller.encode(archs)
                with torch.no_grad():
                    log_p_BT, _ = self.controller(sequences)
                lengths = sequences.mask_BT.sum(-1).long().tolist()
                children = [Child(a, log_p_T[:n]) for a, log_p_T, n in zip(archs, log_p_BT, lengths)]
                self._proposals = children[::-1]
                return
        raise InfeasibleError(
            f"The controller drew no architecture of {self.problem.space.name} within the limits in {MAX_DRAWS} draws: "
            f"{self.problem.describe_limits()}."
        )

    def tell(self, trial: Trial) -> None:
        if trial.id not in self._pending:
            raise UsageError(f"Trial {trial.id} is not running: it was never asked for, or told before.")
        child = self._pending.pop(trial.id)
        score = self.problem.score(trial) if trial.ok else -math.inf
        if math.isfinite(score):
            child.reward = score
            self._worst = min(self._worst, score)
            key = self.problem.space.canonical(child.arch)
            if key not in self._ranking or score > self._ranking[key][0]:
                self._ranking[key] = (score, child.arch)
        self._told.append(child)
        if len(self._told) >= self.batch and self._worst < math.inf:  # nothing to learn while all have failed
            self._update(self._told)
            self._told, self._proposals = [], []

    def _update(self, children: list[Child]) -> None:
        rewards = [self._worst if c.reward is None else c.reward for c in children]
        baseline = sum(rewards) / len(rewards) if self.baseline.value is None else self.baseline.value
        for reward in rewards:
            self.baseline.update(reward)
        advantage_B = torch.tensor([r - baseline for r in rewards], dtype=torch.float32)
        sequences = self.controller.encode([c.arch for c in children])
        old_log_p_BT = pad_sequence([c.log_p_T for c in children], batch_first=True)
        steps = sequences.mask_BT.sum()
        for _ in range(self.epochs):
            log_p_BT, entropy_BT = self.controller(sequences)
            if self.rule == "ppo":
                loss = ppo_loss(log_p_BT, old_log_p_BT, advantage_B, self.clip)
            else:
                loss = reinforce_loss(log_p_BT, advantage_B)
            self._optimizer.zero_grad()
            (loss - self.entropy * entropy_BT.sum() / steps).backward()
            self._optimizer.step()
        self.updates += 1

    def top(self, k: int) -> list[Arch]:
        """The best children so far, isomorphic ones once: those that are then trained in full (250 in the paper)."""
        return [arch for _, arch in sorted(self._ranking.values(), key=lambda entry: -entry[0])[:k]]
