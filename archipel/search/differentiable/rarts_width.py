"""RARTS for widths: the architecture is the scaling factors of the batch norms, and small ones prune their channels.

Xue, Qi, Xin. RARTS: An Efficient First-Order Relaxed Architecture Search Method. 2020.
https://arxiv.org/abs/2008.03901

    α = the γ of every batch norm of a decided width;   w, y = all other weights
    L(y, w, α) = L_val(y, α) + λ L_train(w, α) + β/2 ‖y − w‖² + μ ‖α‖₁

are descended on by :class:`~archipel.search.differentiable.split_weights.SplitWeights` (or any other architecture
gradient), the ℓ1 term by its subgradient. Then the channels with the smallest |γ|, a given share of all, go, and what
is left is trained again, from scratch. As networks with fewer channels are architectures of a space whose layers are
elastic, any such space can be searched: a width becomes the number of its channels that are kept, rounded to the
nearest option. A channel that several norms of one width scale counts with its largest |γ|. Where limits are given, the
share that is pruned grows until they are kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.core.choice import Fixed, Width
from archipel.core.decision import Arch, Decision
from archipel.core.errors import InfeasibleError, SpaceError, UsageError
from archipel.core.supernet import Supernet
from archipel.search.differentiable.arch_gradient import ArchGradient, Tensors
from archipel.search.differentiable.hessian import plus
from archipel.search.differentiable.loop import halves, run_epoch
from archipel.search.differentiable.mix import Softmax
from archipel.search.differentiable.objective import CrossEntropy
from archipel.search.differentiable.parameters import ArchParameters
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.split_weights import SplitWeights
from archipel.search.differentiable.state import SearchState
from archipel.search.strategy import Context, Problem, Strategy, Trial
from archipel.spaces.layers import ElasticBatchNorm1d, ElasticBatchNorm2d
from archipel.spaces.module_space import ModuleSpace

CHECKPOINT = "rarts-width"
ATTEMPTS = 21  # shares of channels that are tried, up to all of them, where limits are not kept


class Scales(ArchParameters):
    """Scaling factors as architecture parameters.

    Attributes:
        widths: decision -> names of the γ that scale its channels.

    Raises:
        SpaceError: a decision that is neither a width scaled by a batch norm nor fixed; says which.
    """

    def __init__(self, supernet: Supernet, fixed: Mapping[str, Any]) -> None:
        space = supernet.space
        single = {d.name: d.options[0] for d in space.decisions if isinstance(d, Decision) and not d.mutable}
        fixed = {**single, **fixed}
        super().__init__({}, {}, fixed)
        self.widths: dict[str, list[str]] = {}
        for name, m in supernet.named_modules():
            scaling = isinstance(m, ElasticBatchNorm1d | ElasticBatchNorm2d) and m.affine
            if scaling and isinstance(m.size, Width) and m.size.name not in fixed:
                self.widths.setdefault(m.size.name, []).append(f"{name}.weight")
        for d in space.decisions:
            if d.name not in fixed and d.name not in self.widths:
                raise SpaceError(
                    f"Decision {d.name!r} ({d.describe()}) is no width that an affine batch norm scales, so its "
                    f"scaling factors cannot decide it. Fix it, as in fixed={{{d.name!r}: …}}, or put an "
                    f"ElasticBatchNorm of that width behind the layer."
                )
        parameters = dict(supernet.named_parameters())
        self.logits = {n: parameters[n] for names in self.widths.values() for n in names}  # type: ignore[assignment]

    def check_finite(self) -> None:
        for n, scale in self.logits.items():
            if not torch.isfinite(scale).all():
                raise SpaceError(f"Scaling factors {n!r} are not finite. Lower the learning rates of the search.")

    def channels(self, width: str) -> Tensor:
        """Size of each channel of a width: its largest |γ|."""
        return torch.stack([self.logits[n].detach().abs() for n in self.widths[width]]).amax(0)


class WidthState(SearchState):
    """The largest network as the state of a search: its scaling factors are the architecture.

    Args:
        l1: μ.
    """

    def __init__(self, supernet: Supernet, parameters: Scales, l1: float, *rest: Any) -> None:
        super().__init__(supernet, parameters, Softmax(), CrossEntropy(), *rest)
        self.weights = {n: w for n, w in self.weights.items() if n not in self.logits}
        self.weight_optimizer = self.schedule.weight_optimizer(self.weights.values())
        self.l1 = l1
        largest = {d.name: d.options[-1] for d in supernet.space.decisions if isinstance(d, Decision)}
        self.decider = Fixed({**largest, **parameters.fixed})

    def output(self, x: Tensor, mixture: Mapping[str, Tensor], weights: Tensors | None = None) -> Tensor:
        self.supernet.decider = self.decider
        return self.supernet(x) if weights is None else torch.func.functional_call(self.supernet, weights, (x,))

    def alpha_step(self, gradient: Mapping[str, Tensor]) -> None:
        signs = {n: p.detach().sign() for n, p in self.logits.items() if n in gradient}
        super().alpha_step(plus(gradient, self.l1, signs))


class WidthSearch(Strategy):
    """Trains the largest network and its scaling factors, then proposes the widths that pruning leaves.

    Args:
        prune: share of all channels that is pruned.
        l1: μ, the weight of the ℓ1 norm of the factors.
        arch_gradient: how factors learn; split weights by default.
        schedule: that of DARTS by default; its ``alpha_decay`` also shrinks the factors.
        fixed: values of decisions that are not searched.

    Attributes:
        log: for each epoch the loss, what the gradient measures, and the factors' mean size.

    Raises:
        UsageError: a share outside [0, 1), or a negative ``l1``.
    """

    def __init__(
        self,
        prune: float = 0.5,
        l1: float = 1e-3,
        arch_gradient: ArchGradient | None = None,
        schedule: Schedule | None = None,
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0.0 <= prune < 1.0:
            raise UsageError(f"WidthSearch: prune is a share of the channels, at least 0 and below 1, not {prune!r}.")
        if not l1 >= 0:
            raise UsageError(f"WidthSearch: l1 must not be negative, got {l1!r}.")
        self.prune, self.l1, self.fixed = prune, l1, dict(fixed or {})
        self.arch_gradient = arch_gradient or SplitWeights()
        self.schedule = schedule or Schedule()
        self._reset()

    def _reset(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.state: WidthState | None = None
        self._asked = False

    def setup(self, problem: Problem) -> None:
        super().setup(problem)
        self._reset()

    def start(self, context: Context) -> WidthState:
        """The state before the first epoch."""
        if not isinstance(self.problem.space, ModuleSpace):
            raise SpaceError(f"{self.problem.space.name} is not made of a module; widths need elastic layers.")
        schedule = self.schedule if context.epochs is None else self.schedule.over(context.epochs)
        supernet = self.problem.space.supernet(seed=context.seed)
        parts = halves(context.dataset.train, schedule.alpha_share, context.dataset.task, context.seed)
        scales = Scales(supernet, self.fixed)
        return WidthState(supernet, scales, self.l1, schedule, context.dataset.task, parts)

    def prepare(self, context: Context) -> None:
        state = self.state = self.start(context)
        gradient = copy.deepcopy(self.arch_gradient)
        gradient.started(state)
        saved = context.checkpoints.load(CHECKPOINT)
        begin = 0
        if saved is not None:
            state.load_state_dict(saved["state"])
            gradient.load_state_dict(saved["arch_gradient"])
            begin, self.log = saved["epoch"], list(saved["log"])
        with torch.random.fork_rng(devices=[]):
            for epoch in range(begin, state.schedule.epochs):
                losses = run_epoch(state, gradient, epoch, context.seed, context.deadline, (gradient,))
                if losses is None:
                    break
                size = float(torch.cat([p.detach().abs() for p in state.logits.values()]).mean())
                self.log.append({"epoch": epoch, **losses, **gradient.figures(), "scale": size})
                context.checkpoints.save(
                    CHECKPOINT,
                    {
                        "epoch": epoch + 1,
                        "state": state.state_dict(),
                        "arch_gradient": gradient.state_dict(),
                        "log": copy.deepcopy(self.log),
                    },
                )
                context.progress("search", (epoch + 1) / state.schedule.epochs)

    def pruned(self, share: float) -> Arch:
        """The widths that are left when the smallest channels, a share of all, are gone."""
        assert self.state is not None
        scales = self.state.parameters
        assert isinstance(scales, Scales)
        sizes = {name: scales.channels(name) for name in scales.widths}
        every = torch.cat(list(sizes.values())).sort().values
        gone = min(round(share * len(every)), len(every))
        threshold = float(every[gone - 1]) if gone else -1.0
        arch: Arch = dict(scales.fixed)
        for name, size in sizes.items():
            kept = int((size > threshold).sum())
            options: list[int] = list(self.problem.space.by_name[name].options)  # type: ignore[union-attr,arg-type]
            arch[name] = min(options, key=lambda o: (abs(o - kept), -o))
        return self.problem.space.validate({d.name: arch[d.name] for d in self.problem.space.decisions})

    def ask(self) -> Trial | None:
        """
        Raises:
            UsageError: nothing was trained yet.
            InfeasibleError: even the smallest widths break the limits.
        """
        if self.state is None:
            raise UsageError("A search for widths proposes what it has trained: call prepare(context) before ask().")
        if self._asked:
            return None
        for share in np.linspace(self.prune, 1.0, ATTEMPTS).tolist():
            arch = self.pruned(share)
            if self.problem.feasible is None or self.problem.feasible(arch):
                self._asked = True
                return self.new_trial(arch, info={"epochs": len(self.log), "pruned": share})
        raise InfeasibleError(
            f"Even the smallest widths of {self.problem.space.name} break the limits: {self.problem.describe_limits()}."
        )

    def tell(self, trial: Trial) -> None:
        pass

    @property
    def finished(self) -> bool:
        return self._asked
