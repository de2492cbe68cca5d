"""The state of a differentiable search: supernet, architecture parameters, optimisers, and the losses of both.

Slots act on it. Weights may be passed in from outside (``torch.func.functional_call``), logits too; unless the weights
take a step of their own, batch-norm statistics are left as they are, and so every loss is a function without effects.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Decider, Fixed
from archipel.core.decision import Arch
from archipel.core.errors import RunError, UsageError
from archipel.core.supernet import Supernet
from archipel.data.dataset import Split
from archipel.nets.batch_norm import batch_norms, batch_statistics, frozen_statistics
from archipel.search.differentiable.arch_gradient import Batch, Tensors
from archipel.search.differentiable.mix import Mix, Mixture
from archipel.search.differentiable.objective import SearchObjective
from archipel.search.differentiable.parameters import ArchParameters, Moment
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import Diverged, loss_of


class SearchState:
    """See the module's docstring; implements :class:`~archipel.search.differentiable.arch_gradient.Bilevel`.

    Attributes:
        supernet: weights of all options.
        parameters: the logits.
        mix, objective, schedule: slots that losses and steps depend on.
        task: of the data set.
        moment: where the search is; the loop moves it.
        halves: the training data of the weights and of the architecture.
    """

    def __init__(
        self,
        supernet: Supernet,
        parameters: ArchParameters,
        mix: Mix,
        objective: SearchObjective,
        schedule: Schedule,
        task: str,
        halves: tuple[Split, Split],
    ) -> None:
        self.supernet = supernet
        self.parameters = parameters
        self.mix, self.objective, self.schedule = mix, objective, schedule
        self.task = task
        self.halves = halves
        self.weights: Tensors = {n: p for n, p in supernet.named_parameters() if p.requires_grad}
        self.logits: Tensors = dict(parameters.logits)
        self.weight_optimizer = schedule.weight_optimizer(self.weights.values())
        self.alpha_optimizer = schedule.alpha_optimizer(self.logits.values())
        self._norms = batch_norms(supernet)
        self.move_to(0, 0)

    def reparametrise(self, logits: Mapping[str, Tensor]) -> None:
        """Begin with other architecture parameters than one small random logit an option; for ``Slot.started``."""
        self.parameters.logits = {name: nn.Parameter(t.detach().clone()) for name, t in logits.items()}
        self.logits = dict(self.parameters.logits)
        self.alpha_optimizer = self.schedule.alpha_optimizer(self.logits.values())

    def move_to(self, epoch: int, step: int) -> None:
        """Set the moment: a step of an epoch."""
        epochs, steps = self.schedule.epochs, self.steps_per_epoch
        self.moment = Moment(epoch, epochs, epoch * steps + step, epochs * steps)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.halves[0]) // self.schedule.batch_size)

    @property
    def step_size(self) -> float:
        return self.schedule.rate(self.moment)

    # --- losses ----------------------------------------------------------------------------------------------------

    def mixture_weights(self, logits: Mapping[str, Tensor] | None = None, training: bool = False) -> Tensors:
        """Weights of every row; without noise unless ``training``."""
        m = self.moment
        moment = m if training else Moment(m.epoch, m.epochs, m.step, m.steps, training=False)
        return self.mix.weights(self.logits if logits is None else logits, self.parameters.rows, moment)

    def scores(self) -> Tensors:
        """What the options of every row are ranked by when the answer is read off."""
        m = self.moment
        return self.mix.scores(self.logits, self.parameters.rows, Moment(m.epoch, m.epochs, m.step, m.steps, False))

    def output(self, x: Tensor, mixture: Mapping[str, Tensor], weights: Tensors | None = None) -> Tensor:
        """What the supernet computes under mixture weights, perhaps with other weights of its own."""
        self.supernet.decider = Mixture(mixture, self.mix.blend, self.parameters.fixed)
        return self.supernet(x) if weights is None else torch.func.functional_call(self.supernet, weights, (x,))

    def train_loss(self, batch: Batch, weights: Tensors | None = None, logits: Tensors | None = None) -> Tensor:
        with frozen_statistics(self._norms):
            mixture = self.mixture_weights(logits, training=True)
            return self.objective.weight_loss(self, self.output(batch[0], mixture, weights), *batch)

    def val_loss(self, batch: Batch, weights: Tensors | None = None, logits: Tensors | None = None) -> Tensor:
        with frozen_statistics(self._norms):
            mixture = self.mixture_weights(logits, training=True)
            loss = self.objective.arch_loss(self, self.output(batch[0], mixture, weights), *batch)
            return self.objective.total(loss, mixture, self.moment)

    def descent(self, gradient: Mapping[str, Tensor]) -> Tensors:
        s = self.schedule
        if s.optimizer != "sgd":
            raise UsageError(
                f"Looking a step of the weights ahead needs their SGD, but the schedule has {s.optimizer!r}. Take "
                f"optimizer='sgd', or a first-order gradient."
            )
        out = {}
        for n, g in gradient.items():
            step = g + s.weight_decay * self.weights[n].detach()
            buffer = self.weight_optimizer.state.get(self.weights[n], {}).get("momentum_buffer")
            out[n] = step if buffer is None else step + s.momentum * buffer
        return out

    # --- steps -----------------------------------------------------------------------------------------------------

    def alpha_step(self, gradient: Mapping[str, Tensor]) -> None:
        """Adam on the logits, then the projection of the objective."""
        for name, p in self.logits.items():
            p.grad = gradient.get(name)
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.objective.project(self.parameters, self.moment)

    def weight_step(self, batch: Batch, mixture: Mapping[str, Tensor] | None = None) -> float:
        """SGD on the weights; only options that were computed are updated.

        Args:
            mixture: weights of the rows; those that the mix gives for the current logits by default.

        Raises:
            Diverged: the loss is not finite.
        """
        if mixture is None:
            constant = {n: p.detach() for n, p in self.logits.items()}
            mixture = self.mixture_weights(constant, training=True)
        loss = self.objective.weight_loss(self, self.output(batch[0], mixture), *batch)
        value = self.checked(loss)
        self.weight_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.step_weights()
        return value

    def joint_step(self, batch: Batch) -> float:
        """Weights and logits step by one backward pass of the training loss and the penalty (searches of one level).

        Raises:
            Diverged: the loss is not finite.
        """
        mixture = self.mixture_weights(training=True)
        loss = self.objective.weight_loss(self, self.output(batch[0], mixture), *batch)
        value = self.checked(loss)
        loss = self.objective.total(loss, mixture, self.moment)
        self.weight_optimizer.zero_grad(set_to_none=True)
        self.alpha_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.step_weights()
        # The gradient dictionary keeps what `alpha_step` does in one place.
        self.alpha_step({n: p.grad for n, p in self.logits.items() if p.grad is not None})
        return value

    def step_weights(self) -> None:
        """Clip the gradients that are there, and let the weights' optimiser step at this epoch's learning rate."""
        if self.schedule.clip:
            nn.utils.clip_grad_norm_(self.weights.values(), self.schedule.clip)
        for group in self.weight_optimizer.param_groups:
            group["lr"] = self.step_size
        self.weight_optimizer.step()

    def checked(self, loss: Tensor) -> float:
        """The value of a training loss.

        Raises:
            Diverged: it is not finite.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(f"the search's training loss is {value} in epoch {self.moment.epoch}")
        return value

    # --- looking ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def metrics(
        self, data: Split, mixture: Mapping[str, Tensor] | None = None, arch: Arch | None = None
    ) -> dict[str, float]:
        """Loss and accuracy (or R²) with batch statistics; changes nothing.

        Args:
            mixture: weights of the rows; the current ones by default.
            arch: a discrete architecture instead, of which only the path is computed.
        """
        decider: Decider = (
            Fixed(arch)
            if arch is not None
            else Mixture(self.mixture_weights() if mixture is None else mixture, self.mix.blend, self.parameters.fixed)
        )
        self.supernet.decider = decider
        with batch_statistics(self.supernet):
            output = torch.cat([self.supernet(x) for x in data.x.chunk(-(-len(data) // 512))])
        found = {"loss": float(loss_of(self.task, output, data.y))}
        if self.task == "regression":
            total = float(((data.y - data.y.mean(0)) ** 2).sum())
            found["r2"] = 1.0 - float(((output - data.y) ** 2).sum()) / total
        else:
            found["accuracy"] = float((output.argmax(-1) == data.y).double().mean())
        return found

    # --- saving ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that a step depends on."""
        return copy.deepcopy(
            {
                "net": self.supernet.state_dict(),
                "logits": {n: p.detach() for n, p in self.logits.items()},
                "weight_optimizer": self.weight_optimizer.state_dict(),
                "alpha_optimizer": self.alpha_optimizer.state_dict(),
                "mix": self.mix.state_dict(),
                "objective": self.objective.state_dict(),
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Raises:
            RunError: the state is of another space or other settings.
        """
        state = copy.deepcopy(dict(state))
        shapes = {n: tuple(p.shape) for n, p in self.logits.items()}
        saved = {n: tuple(t.shape) for n, t in state["logits"].items()}
        if shapes != saved:
            raise RunError(
                f"The saved search has {len(saved)} rows of architecture parameters, this one has {len(shapes)}, or "
                f"of other lengths. Resume with the settings that it was begun with, or begin a new run."
            )
        self.supernet.load_state_dict(state["net"])
        with torch.no_grad():
            for n, p in self.logits.items():
                p.copy_(state["logits"][n])
        self.weight_optimizer.load_state_dict(state["weight_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.mix.load_state_dict(state["mix"])
        self.objective.load_state_dict(state["objective"])
