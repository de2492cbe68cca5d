"""ENAS: a controller and the shared weights of all its children learn in turns.

Pham, Guan, Zoph, Le, Dean. Efficient Neural Architecture Search via Parameter Sharing. 2018.
https://arxiv.org/abs/1802.03268

    each epoch   weights      for every batch one child a ~ π: one SGD step on the weights that a uses
                 controller   n updates by REINFORCE, each from m children:
                              reward = accuracy of a on a validation batch + w_H · H(π)
                              loss   = −(reward − b) Σ_t log π(a_t) + w_S · KL(target ‖ π(skip))
    answer       the best of k sampled children on one validation batch

b is a moving average of rewards. The controller is that of :mod:`archipel.search.policy`. Rewards are measured in
evaluation mode with the batch's own statistics (``reward="eval"``, as published but for the statistics), or in training
mode (``"train"``), in which what only acts while training, such as dropout, is felt.

Fills the `propose` and `evaluator` slots. Differs from the paper in that half of the training data, not of the
validation data, gives the rewards: the validation split judges, and takes no part in the search.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.decision import Arch
from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.core.supernet import Supernet
from archipel.data.dataset import Split
from archipel.nets.batch_norm import batch_norms, batch_statistics, frozen_statistics
from archipel.search.policy import Controller, MovingBaseline, reinforce_loss
from archipel.search.strategy import Context, Problem, Strategy, Trial
from archipel.search.training import loss_of, shuffled
from archipel.spaces.module_space import ModuleSpace

CHECKPOINT = "enas"
SKIP = ".skip"  # in the names of decisions whose second option is a skip connection
REWARDS = ("eval", "train")


@register(
    "enas",
    family="search.oneshot",
    slots=["propose", "evaluator"],
    paper=Paper("Efficient Neural Architecture Search via Parameter Sharing", 2018, "https://arxiv.org/abs/1802.03268"),
)
class ENAS(Strategy):
    """Search by a controller over shared weights.

    Args:
        epochs, batch_size: of the weights.
        lr, lr_min: of the weights' SGD, by a cosine over the epochs (momentum 0.9, decay 2.5e-4, clipped at 5).
        updates, children: of the controller in an epoch, and sampled for each.
        controller_lr, hidden: its Adam's learning rate and its LSTM's units.
        entropy, decay: weight of the entropy in rewards, and of the old in their moving average.
        skip_target, skip_weight: probability of a skip that is aimed at, and how strongly; 0 not at all.
        reward: ``"eval"`` or ``"train"``: the mode in which children are measured.
        candidates: children that the answer is the best of.
        learn: False leaves the controller as it was made, which samples nearly uniformly (the baseline).

    Raises:
        UsageError: a setting out of its range.

    Attributes:
        log: for each epoch the training loss, the mean reward and the controller's entropy a decision.

    >>> ENAS(epochs=2).updates
    50
    """

    def __init__(
        self,
        epochs: int = 300,
        batch_size: int = 128,
        lr: float = 0.05,
        lr_min: float = 5e-4,
        updates: int = 50,
        children: int = 20,
        controller_lr: float = 1e-3,
        hidden: int = 64,
        entropy: float = 1e-4,
        decay: float = 0.99,
        skip_target: float = 0.4,
        skip_weight: float = 0.8,
        reward: str = "eval",
        candidates: int = 10,
        learn: bool = True,
    ) -> None:
        counts = {"epochs": epochs, "batch_size": batch_size, "children": children, "candidates": candidates}
        for name, value in {**counts, "updates": updates, "hidden": hidden}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"ENAS: {name} must be a positive integer, not {value!r}.")
        if reward not in REWARDS:
            raise UsageError(f"ENAS: reward is 'eval' or 'train' (the mode of the children), not {reward!r}.")
        if not (lr > 0 and controller_lr > 0 and entropy >= 0 and skip_weight >= 0 and 0 < skip_target < 1):
            raise UsageError(
                "ENAS needs lr, controller_lr > 0, entropy, skip_weight >= 0 and skip_target between 0 and 1."
            )
        MovingBaseline(decay)
        self.epochs, self.batch_size, self.lr, self.lr_min = epochs, batch_size, lr, lr_min
        self.updates, self.children, self.controller_lr, self.hidden = updates, children, controller_lr, hidden
        self.entropy, self.decay, self.reward, self.candidates = entropy, decay, reward, candidates
        self.skip_target, self.skip_weight, self.learn = skip_target, skip_weight, learn

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self.supernet: Supernet | None = None
        self.log: list[dict[str, float]] = []
        self._answer: Arch | None = None
        self._asked = False

    # --- training --------------------------------------------------------------------------------------------------

    def prepare(self, context: Context) -> None:
        """Train weights and controller in turns; goes on where a checkpoint left off.

        Raises:
            SpaceError: the space has no supernet, or a decision is no list of options.
        """
        space, epochs = self.problem.space, context.epochs or self.epochs
        self.supernet = space.supernet(context.seed) if isinstance(space, ModuleSpace) else space.supernet()
        self.controller = Controller(space, self.hidden, torch.Generator().manual_seed(context.seed))
        self.task, self.baseline = context.dataset.task, MovingBaseline(self.decay)
        self._skips = [i for i, d in enumerate(self.controller.decisions) if SKIP in d.name]
        weights = torch.optim.SGD(self.supernet.parameters(), self.lr, 0.9, weight_decay=2.5e-4)
        policy = torch.optim.Adam(self.controller.parameters(), self.controller_lr)
        ours, theirs = _halves(context.dataset.train, context.seed)
        begin = self._restore(context.checkpoints.load(CHECKPOINT), weights, policy)
        with torch.random.fork_rng(devices=[]):
            for epoch in range(begin, epochs):
                if context.deadline is not None and time.monotonic() > context.deadline:
                    break
                torch.manual_seed(context.seed * 100_003 + epoch)
                rng = torch.Generator().manual_seed(context.seed * 99_991 + epoch)
                for group in weights.param_groups:
                    cosine = 0.5 * (1.0 + torch.cos(torch.tensor(torch.pi * epoch / epochs)).item())
                    group["lr"] = self.lr_min + (self.lr - self.lr_min) * cosine
                loss = self._train_weights(ours, weights, context.seed, epoch, rng)
                figures = self._train_controller(theirs, policy, rng) if self.learn else {}
                self.log.append({"epoch": float(epoch), "loss": loss, **figures})
                self._save(context, epoch + 1, weights, policy)
                context.progress("shared weights and controller", (epoch + 1) / epochs)
            torch.manual_seed(context.seed)
            self._answer = self._best_of(theirs, torch.Generator().manual_seed(context.seed))
        self._validation = context.dataset.val

    def _train_weights(
        self, data: Split, optimizer: torch.optim.Optimizer, seed: int, epoch: int, rng: torch.Generator
    ) -> float:
        """One epoch, a child a batch; weights that a child does not use keep still."""
        assert self.supernet is not None
        self.supernet.train()
        order, total, steps = shuffled(len(data), seed, epoch), 0.0, max(1, len(data) // self.batch_size)
        for step in range(steps):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            self.supernet.activate(self._draw(1, rng)[0], validate=False)
            loss = loss_of(self.task, self.supernet(data.x[index]), data.y[index])
            optimizer.zero_grad(set_to_none=True)
            if loss.requires_grad:
                loss.backward()
                nn.utils.clip_grad_norm_(self.supernet.parameters(), 5.0)
                optimizer.step()
            total += float(loss.detach())
        return total / steps

    def _train_controller(
        self, data: Split, optimizer: torch.optim.Optimizer, rng: torch.Generator
    ) -> dict[str, float]:
        rewards, entropies = [], []
        for _ in range(self.updates):
            archs = self._draw(self.children, rng)
            sequences = self.controller.encode(archs)
            log_p_BT, entropy_BT = self.controller(sequences)
            entropy = entropy_BT.sum(-1).detach()
            reward_B = self._rewards(archs, data, rng) + self.entropy * entropy
            before = float(reward_B.mean()) if self.baseline.value is None else self.baseline.value
            for r in reward_B.tolist():
                self.baseline.update(r)
            loss = reinforce_loss(log_p_BT, reward_B - before)
            if self.skip_weight and self._skips:
                loss = loss + self.skip_weight * self._skip_penalty(sequences, log_p_BT)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rewards.append(float(reward_B.mean()))
            entropies.append(float(entropy.mean() / sequences.mask_BT.sum(-1).mean()))
        return {"reward": sum(rewards) / len(rewards), "entropy": sum(entropies) / len(entropies)}

    def _skip_penalty(self, sequences: Any, log_p_BT: Tensor) -> Tensor:
        """KL(target ‖ π) of the skip decisions, from the probability of what was taken."""
        is_skip = torch.isin(sequences.decision_BT, torch.tensor(self._skips)) & (sequences.mask_BT > 0)
        p = log_p_BT[is_skip].exp().clamp(1e-6, 1 - 1e-6)
        yes = torch.where(sequences.option_BT[is_skip] == 1, p, 1.0 - p)
        t = self.skip_target
        return (t * (t / yes).log() + (1 - t) * ((1 - t) / (1 - yes)).log()).mean()

    # --- measuring -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _rewards(self, archs: Sequence[Arch], data: Split, rng: torch.Generator) -> Tensor:
        """Accuracy (or minus the squared error) of each child on a batch of its own."""
        out = []
        for arch in archs:
            index = torch.randint(len(data), (min(self.batch_size, len(data)),), generator=rng)
            out.append(self.score(arch, Split(data.x[index], data.y[index])))
        return torch.tensor(out)

    @torch.no_grad()
    def score(self, arch: Arch, data: Split, mode: str | None = None) -> float:
        """Accuracy of a child by shared weights, or minus the squared error of a regression.

        Args:
            mode: ``"eval"`` or ``"train"``; the strategy's own by default. Batch statistics in both.
        """
        assert self.supernet is not None
        self.supernet.activate(arch, validate=False)
        if (mode or self.reward) == "train":
            self.supernet.train()
            with frozen_statistics(batch_norms(self.supernet)):
                output = self.supernet(data.x)
        else:
            with batch_statistics(self.supernet):
                output = self.supernet(data.x)
        if self.task == "regression":
            return -float(F.mse_loss(output, data.y))
        return float((output.argmax(-1) == data.y).double().mean())

    def _best_of(self, data: Split, rng: torch.Generator) -> Arch:
        index = torch.randint(len(data), (min(self.batch_size, len(data)),), generator=rng)
        part = Split(data.x[index], data.y[index])
        return max(self._draw(self.candidates, rng), key=lambda arch: self.score(arch, part))

    def _draw(self, n: int, rng: torch.Generator) -> list[Arch]:
        """Children of the present policy within the limits; random ones where it has none."""
        archs = self.controller.sample(n, rng)
        feasible = self.problem.feasible
        return archs if feasible is None else [a if feasible(a) else self.problem.sample() for a in archs]

    # --- saving and proposing --------------------------------------------------------------------------------------

    def _save(self, context: Context, epoch: int, weights: Any, policy: Any) -> None:
        assert self.supernet is not None
        parts = {"net": self.supernet, "controller": self.controller, "weights": weights, "policy": policy}
        state = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        context.checkpoints.save(
            CHECKPOINT, {**state, "epoch": epoch, "baseline": self.baseline.value, "log": list(self.log)}
        )

    def _restore(self, saved: Any, weights: Any, policy: Any) -> int:
        if saved is None:
            return 0
        assert self.supernet is not None
        self.supernet.load_state_dict(saved["net"])
        self.controller.load_state_dict(saved["controller"])
        weights.load_state_dict(saved["weights"])
        policy.load_state_dict(saved["policy"])
        self.baseline.value, self.log = saved["baseline"], list(saved["log"])
        return saved["epoch"]

    def ask(self) -> Trial | None:
        """
        Raises:
            UsageError: ``prepare`` was not called.
        """
        if self._asked:
            return None
        if self._answer is None:
            raise UsageError("ENAS proposes what it has trained: call prepare(context) before ask().")
        self._asked = True
        return self.new_trial(self.problem.space.validate(self._answer), info=dict(self.log[-1]) if self.log else {})

    def tell(self, trial: Trial) -> None:
        pass

    @property
    def finished(self) -> bool:
        return self._asked

    def shared_scores(self, archs: Sequence[Arch]) -> list[float] | None:
        """Scores on the validation data by shared weights, in evaluation mode."""
        if self.supernet is None:
            return None
        return [self.score(a, self._validation, "eval") for a in archs]


def _halves(data: Split, seed: int) -> tuple[Split, Split]:
    """The weights' and the controller's part of the training data."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    cut = len(data) // 2
    return data.take(order[:cut]), data.take(order[cut:])
