"""An actor that writes architectures as numbers, and a critic that predicts the upper tail of their rewards.

See :mod:`archipel.search.differentiable.l2nas` for the method. D = Σ options over a space's decisions; an action
``a ∈ [0, 1]^D`` has a piece for each decision, whose largest entry decides.

    s      mean of the one-hot vectors of the k best distinct architectures so far; zeros before there are k
    actor  μ(s) = sigmoid(MLP(s));     action: U(0, 1)^D with probability ε, else clip(μ(s) + U(-ξ, ξ), 0, 1)
    critic minimises ρ_τ(u) = u (τ - 1[u < 0]),  u = z(r) - Q(s, a)      z: standardised by the whole history
    actor  minimises -Q(s, μ(s))

There is no next state: an evaluation does not depend on the one before, so nothing is bootstrapped (γ = 0).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.decision import Arch, Decision
from archipel.core.errors import SpaceError, UsageError
from archipel.core.space import Space
from archipel.search.differentiable.actor_critic_settings import Settings, check_loss


@dataclass(frozen=True)
class Proposal:
    """An action, the state ``[D]`` in which it was taken, the architecture it decodes to, and who took it."""

    state: Tensor
    action: Tensor
    arch: Arch
    by: str


class ActorCritic:
    """The learner; deterministic in its seed and the order of calls.

    Args:
        space: of finitely many options everywhere.
        settings: see :class:`Settings`.
        explore: evaluations over which ε falls linearly from 1 to its end.
        seed: of networks and actions.

    Attributes:
        queries: evaluations so far; ``repeats`` of them were of an architecture seen before.

    Raises:
        SpaceError: a space without decisions, or with a range of numbers.
    """

    def __init__(self, space: Space, settings: Settings, explore: int, seed: int = 0) -> None:
        self.decisions = [d for d in space.decisions if isinstance(d, Decision)]
        if not self.decisions or len(self.decisions) < len(space.decisions):
            odd = next((d for d in space.decisions if not isinstance(d, Decision)), None)
            what = "has no decision" if odd is None else f"has {odd.name!r}, which is {odd.describe()}"
            raise SpaceError(f"An action has a number for each option of each decision, but {space.name} {what}.")
        self.space, self.settings, self.explore = space, settings, explore
        self.pieces = torch.tensor([d.size for d in self.decisions]).cumsum(0).tolist()
        self.D = self.pieces[-1]
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            h = settings.hidden
            self.actor = nn.Sequential(*_layers(self.D, h, self.D), nn.Sigmoid())
            self.critic = nn.Sequential(*_layers(2 * self.D, h, 1))
        self._optimizers()
        self.forget()

    def _optimizers(self) -> None:
        s = self.settings
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), s.critic_lr, fused=True)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), s.actor_lr, fused=True)

    def forget(self) -> None:
        """Empty the history; what the networks have learnt stays."""
        self.queries, self.repeats = 0, 0
        self.states_nD = torch.zeros(0, self.D)
        self.actions_nD = torch.zeros(0, self.D)
        self.rewards: list[float] = []
        self.by: list[str] = []
        self.archs: list[Arch] = []
        self._seen: dict[tuple[int, ...], tuple[float, int]] = {}  # hot entries -> sum of rewards and their number
        self._state: Tensor | None = None

    def transfer(self, explore: int) -> ActorCritic:
        """A learner for another task that starts from what the networks have learnt, with an empty history."""
        other = copy.deepcopy(self)
        other.explore = explore
        other.forget()
        return other

    # --- acting ----------------------------------------------------------------------------------------------------

    @property
    def epsilon(self) -> float:
        return 1.0 - (1.0 - self.settings.epsilon) * min(1.0, self.queries / max(1, self.explore))

    def state(self) -> Tensor:
        """s ``[D]``; depends on the set of the k best distinct architectures only."""
        if self._state is None:
            k = self.settings.k
            s = torch.zeros(self.D)
            if len(self._seen) >= k:
                best = sorted(self._seen, key=lambda hot: (-self._seen[hot][0] / self._seen[hot][1], hot))[:k]
                for hot in best:
                    s[list(hot)] += 1.0 / k
            self._state = s
        return self._state

    def propose(self, spread: float = 1.0) -> Proposal:
        """The next action; counts nothing until it is observed.

        Args:
            spread: factor on ξ.
        """
        s, g = self.state(), self.generator
        if float(torch.rand((), generator=g)) < self.epsilon:
            action, by = torch.rand(self.D, generator=g), "random"
        else:
            noise = spread * self.settings.noise * (2.0 * torch.rand(self.D, generator=g) - 1.0)
            action, by = (self.act(s) + noise).clamp(0.0, 1.0), "actor"
        return Proposal(s, action, self.decode(action), by)

    @torch.no_grad()
    def act(self, state: Tensor) -> Tensor:
        """μ(s), without noise."""
        return self.actor(state)

    def decode(self, action: Tensor) -> Arch:
        """The largest entry of each piece; closed decisions are left out."""
        arch: Arch = {}
        for d, piece in zip(self.decisions, self._split(action.tolist())):
            if self.space.is_open(d.name, arch):
                arch[d.name] = d.options[piece.index(max(piece))]
        return arch

    def hot(self, arch: Arch) -> tuple[int, ...]:
        """Positions of an architecture's options in an action."""
        starts = [0, *self.pieces]
        pairs = zip(self.decisions, starts)
        return tuple(start + d.index(arch[d.name]) for d, start in pairs if d.name in arch)

    def _split(self, values: list[float]) -> list[list[float]]:
        return [values[a:b] for a, b in zip([0, *self.pieces], self.pieces)]

    # --- learning --------------------------------------------------------------------------------------------------

    def observe(self, proposal: Proposal, reward: float) -> None:
        """Take up an evaluation and learn from the history.

        Raises:
            UsageError: the reward is not finite.
        """
        self.queries += 1
        if not math.isfinite(reward):
            raise UsageError(f"The evaluation of {proposal.arch} gave {reward}; a reward must be a finite number.")
        hot = self.hot(proposal.arch)
        total, number = self._seen.get(hot, (0.0, 0))
        self.repeats += number > 0
        self._seen[hot] = total + reward, number + 1
        self._state = None
        self.states_nD = torch.cat([self.states_nD, proposal.state[None]])
        self.actions_nD = torch.cat([self.actions_nD, proposal.action[None]])
        self.rewards.append(reward)
        self.by.append(proposal.by)
        self.archs.append(proposal.arch)
        if len(self.rewards) >= self.settings.start:
            self.learn(self.settings.updates)

    def targets(self) -> Tensor:
        """What the critic is fitted to ``[n]``: rewards, standardised over the history (and sharpened)."""
        r = torch.tensor(self.rewards, dtype=torch.float64)
        z = (r - r.mean()) / r.std(correction=0).clamp_min(1e-12)
        return (torch.exp(self.settings.sharpen * z) if self.settings.sharpen else z).float()

    def learn(self, updates: int) -> None:
        """So many updates of the critic and of the actor, on batches from the history."""
        target_n = self.targets()
        index = torch.randint(len(target_n), (updates, self.settings.batch), generator=self.generator)
        for i in index:
            s, a = self.states_nD[i], self.actions_nD[i]
            self._step(self.critic_adam, self.critic_loss(s, a, target_n[i]))
            self._step(self.actor_adam, self.actor_loss(s))

    def critic_loss(self, s: Tensor, a: Tensor, target: Tensor) -> Tensor:
        u = target - self.critic(torch.cat([s, a], 1)).squeeze(1)
        return u.square().mean() if self.settings.tau is None else check_loss(u, self.settings.tau).mean()

    def actor_loss(self, s: Tensor) -> Tensor:
        return -self.critic(torch.cat([s, self.actor(s)], 1)).mean()

    @staticmethod
    def _step(adam: torch.optim.Optimizer, loss: Tensor) -> None:
        """Only the optimiser's own parameters: the actor's loss goes through the critic and leaves it alone."""
        parameters = adam.param_groups[0]["params"]
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters)):
            p.grad = g
        adam.step()

    # --- what came out ---------------------------------------------------------------------------------------------

    def best(self, by: str | None = None) -> tuple[Arch, float] | None:
        """The best evaluation, of all or of those proposed ``by`` the actor or at random; None if there is none."""
        found = [i for i, who in enumerate(self.by) if by in (None, who)]
        top = max(found, key=lambda i: self.rewards[i], default=None)
        return None if top is None else (self.archs[top], self.rewards[top])

    def top(self, number: int) -> list[Arch]:
        """The best distinct architectures by their mean reward."""
        mean = {hot: total / n for hot, (total, n) in self._seen.items()}
        by_hot = {self.hot(arch): arch for arch in self.archs}
        return [by_hot[hot] for hot in sorted(mean, key=lambda hot: (-mean[hot], hot))[:number]]

    def report(self) -> dict[str, Any]:
        """Counts, the best of all, of the actor's and of the random proposals, and what the actor says in the end."""
        found = {who: self.best(None if who == "all" else who) for who in ("all", "actor", "random")}
        best = {f"best by {who}": None if pair is None else pair[1] for who, pair in found.items()}
        return {"queries": self.queries, "repeats": self.repeats, **best, "actor": self.decode(self.act(self.state()))}

    # --- saving ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        modules = ("actor", "critic", "critic_adam", "actor_adam")
        plain = ("queries", "repeats", "states_nD", "actions_nD", "rewards", "by", "archs", "explore")
        saved = {n: getattr(self, n).state_dict() for n in modules} | {n: getattr(self, n) for n in plain}
        return copy.deepcopy(saved) | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)
        self.generator.set_state(state.pop("generator"))
        for name in ("actor", "critic", "critic_adam", "actor_adam"):
            getattr(self, name).load_state_dict(state.pop(name))
        self.forget()
        for name, value in state.items():
            setattr(self, name, value)
        for arch, reward in zip(self.archs, self.rewards):
            total, number = self._seen.get(self.hot(arch), (0.0, 0))
            self._seen[self.hot(arch)] = total + reward, number + 1


def _layers(inputs: int, hidden: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    ]  # fmt: skip
