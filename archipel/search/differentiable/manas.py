"""MANAS: on every edge an agent plays a bandit with the operations, and all see the loss of the network they chose.

Lopes, Carlucci, Esperança, Singh, Yang, Gabillon, Xu, Chen, Wang. MANAS: Multi-Agent Neural Architecture Search. 2019.
https://arxiv.org/abs/1909.01051

    each step     every agent draws a^i ~ π^i;   loss = L_val(Z, w) on one batch;   the agents learn from it
                  w <- w - lr dL_train(Z, w)     on the same sampled network
    MANAS         π^i ∝ exp(-η B^i),  B^i[k] += loss 1[a^i = k] / π^i[k]
    MANAS-LS      π^i Zipfian in the rank of β^i,  loss ≈ βᵀZ fitted by least squares every S steps
    in the end    the most probable operation of each agent, or a sample

Only the sampled path is computed, so memory is that of one network and deep networks can be searched whole; the paper
does so without shared cells (``tie="cell"``). Fills the `arch-gradient` slot; the logits are the agents' log-policies.

Differences: the text writes exp(+ηB) for a sum of losses, which would favour the worst; the sign is negative here.
EXP3 needs losses in [0, 1]: by default L / (L + L0) with L0 the loss of a constant prediction. The paper takes the best
of four searches by validation, which is four searches here too. For the centring of MANAS-LS see
:mod:`~archipel.search.differentiable.bandits`.
"""

from __future__ import annotations

import math
from random import Random
from typing import Any

import torch
from torch import Tensor

from archipel.core.decision import Arch
from archipel.core.errors import SpaceError, UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.nets.batch_norm import batch_norms, frozen_statistics
from archipel.search.differentiable.arch_gradient import Batch, Tensors
from archipel.search.differentiable.bandits import Agents, Exp3, LeastSquares
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.sampling import SampledPaths, fresh_random
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Argmax, Select, strongest
from archipel.search.differentiable.state import SearchState

CREDITS = ("exp3", "least-squares")
LOSSES = ("relative", "error", "raw")
# Search epochs by number of cells (section 4); otherwise as DARTS.
EPOCHS = {20: 50, 14: 400, 8: 500}


class Bandits(SampledPaths):
    """Agents that learn from the validation loss of the path that they sampled.

    Args:
        credit: ``"exp3"`` (MANAS) or ``"least-squares"`` (MANAS-LS).
        loss: what agents see: ``"relative"``, L / (L + L0); ``"error"``, the share of wrong predictions; or ``"raw"``,
            L itself. By default relative for EXP3, raw for least squares.
        eta: of EXP3; by default for as many rounds as the search has.
        samples, keep: of :class:`~archipel.search.differentiable.bandits.LeastSquares`.

    Raises:
        UsageError: a setting out of range.
    """

    restrictable = False  # agents of a part of the options would have to forget the others

    def __init__(
        self,
        credit: str = "exp3",
        loss: str | None = None,
        eta: float | None = None,
        samples: int = 50,
        keep: float = 0.0,
    ) -> None:
        if credit not in CREDITS:
            raise UsageError(f"No credit assignment {credit!r}. {suggest(credit, CREDITS)}")
        if loss is not None and loss not in LOSSES:
            raise UsageError(f"Agents cannot see a loss {loss!r}. {suggest(loss, LOSSES)}")
        self.credit, self.eta, self.samples, self.keep = credit, eta, samples, keep
        self.loss = loss or ("relative" if credit == "exp3" else "raw")
        self._seen: list[float] = []
        self._epoch: dict[str, float] = {}
        self.make([2], horizon=1)  # settings are checked before anything is trained

    def make(self, sizes: list[int], horizon: int) -> Agents:
        if self.credit == "exp3":
            return Exp3(sizes, horizon, self.eta)
        return LeastSquares(sizes, self.samples, self.keep)

    def started(self, state: SearchState) -> None:
        """
        Raises:
            SpaceError: nodes choose or weigh their inputs, which no agent does.
            UsageError: ``loss="error"`` for a regression.
        """
        rows = state.parameters.rows
        other = [name for name, row in rows.items() if not row.is_choice]
        if other:
            raise SpaceError(
                f"Agents choose operations, but node {other[0]!r} weighs its inputs. Take a mix that does not weigh "
                f"edges, or fix the node's inputs."
            )
        if self.loss == "error" and state.task == "regression":
            raise UsageError("A regression has no share of wrong predictions; take loss='relative'.")
        warmup = state.schedule.warmup * state.steps_per_epoch
        sizes = [len(row.labels) for row in rows.values()]
        self.agents = self.make(sizes, state.moment.steps - warmup)
        self.reference = constant_loss(state)
        self._publish(state)

    def draw(self, state: SearchState) -> Tensors:
        return self.mixture(state, self.agents.draw())

    def mixture(self, state: SearchState, actions: Tensor) -> Tensors:
        """The one-hot weights of all rows for the agents' choices ``[N]``."""
        found = {}
        for (name, row), a in zip(state.parameters.rows.items(), actions.tolist()):
            found[name] = torch.zeros(len(row.labels))
            found[name][a] = 1.0
        return found

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        actions = self.agents.draw()
        mixture = self.mixture(state, actions)
        if state.moment.epoch >= state.schedule.warmup:
            loss = self.observed(state, mixture, val)
            self._seen.append(loss)
            self.agents.tell(actions, loss)
            self._publish(state)
        return state.weight_step(train, mixture)

    @torch.no_grad()
    def observed(self, state: SearchState, mixture: Tensors, val: Batch) -> float:
        """What the agents see of a path on a batch; leaves batch-norm statistics alone."""
        with frozen_statistics(batch_norms(state.supernet)):
            output = state.output(val[0], mixture)
            if self.loss == "error":
                return float((output.argmax(-1) != val[1]).double().mean())
            loss = float(state.objective.arch_loss(state, output, *val))
        if self.loss == "raw":
            return loss
        return 1.0 if math.isinf(loss) else loss / (loss + self.reference)

    @torch.no_grad()
    def _publish(self, state: SearchState) -> None:
        """Let the logits be the log-policies, with their largest at 0."""
        log_p = self.agents.logits()
        log_p = log_p - log_p.max(1, keepdim=True).values
        for p, row in zip(state.logits.values(), log_p):
            p.copy_(row[: len(p)].clamp_min(-1e4))

    # --- over steps ------------------------------------------------------------------------------------------------

    def epoch_ended(self, state: SearchState) -> None:
        self._epoch = {"agents_loss": sum(self._seen) / len(self._seen)} if self._seen else {}
        self._seen = []

    def figures(self) -> dict[str, float]:
        """The mean loss that the agents saw in the epoch."""
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        return self.agents.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.agents.load_state_dict(state)


def constant_loss(state: SearchState) -> float:
    """L0: the loss of the best constant prediction on the architecture's half: entropy of classes, or variance."""
    y = state.halves[1].y
    if state.task == "regression":
        return float(y.var(0, unbiased=False).mean())
    p = torch.bincount(y.flatten()).double() / y.numel()
    return float(torch.special.entr(p).sum())


class SampledPolicies(Select):
    """Architectures drawn from the agents' policies, instead of the most probable one.

    Args:
        number: how many are proposed.
    """

    def __init__(self, number: int = 1) -> None:
        self.number = number

    def __call__(self, state: SearchState) -> Arch:
        rng, weights = fresh_random(), {}
        for name, p in state.mixture_weights().items():
            weights[name] = _only_one(p.tolist(), state.parameters.rows[name].derivable, rng)
        return strongest(state.supernet.space, state.parameters, weights)

    def answers(self, state: SearchState) -> list[Arch]:
        return [self(state) for _ in range(self.number)]


def _only_one(p: list[float], derivable: list[int], rng: Random) -> list[float]:
    """The probability of one option, drawn from those that may be chosen; 0 for all others."""
    drawn = rng.choices(derivable, [max(p[i], 1e-12) for i in derivable])[0]
    return [q if i == drawn else 0.0 for i, q in enumerate(p)]


@register(
    "manas",
    card=10,
    family="search.differentiable",
    slots=["arch-gradient"],
    paper=Paper("MANAS: Multi-Agent Neural Architecture Search", 2019, "https://arxiv.org/abs/1909.01051"),
)
def manas(
    credit: str = "exp3",
    loss: str | None = None,
    eta: float | None = None,
    samples: int = 50,
    keep: float = 0.0,
    recommend: str = "argmax",
    proposals: int = 1,
    schedule: Schedule | None = None,
    **slots: Any,
) -> DifferentiableSearch:
    """Search by bandit agents, one on each edge, over sampled paths.

    Args:
        credit, loss, eta, samples, keep: see :class:`Bandits`.
        recommend: ``"argmax"`` of the policies, or ``"sample"``.
        proposals: how many samples are proposed.
        schedule: by default the paper's for 20 cells, 50 epochs; for 14 cells it has 400, for 8 it has 500.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    Raises:
        UsageError: a setting out of range.

    >>> manas(credit="least-squares", samples=100).arch_gradient.loss
    'raw'
    """
    if recommend not in ("argmax", "sample"):
        raise UsageError(f"MANAS recommends by 'argmax' or 'sample', not {recommend!r}.")
    if not isinstance(proposals, int) or proposals < 1 or (recommend == "argmax" and proposals > 1):
        raise UsageError(f"proposals must be a positive integer, and 1 with recommend='argmax'; got {proposals!r}.")
    slots.setdefault("arch_gradient", Bandits(credit, loss, eta, samples, keep))
    slots.setdefault("select", Argmax() if recommend == "argmax" else SampledPolicies(proposals))
    return DifferentiableSearch(schedule=schedule or Schedule(epochs=EPOCHS[20]), **slots)
