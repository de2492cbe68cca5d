"""Small temperature: sharpen the softmax while searching, so that the cut to one operation costs little.

Zhang, Ding. Small Temperature is All You Need for Differentiable Architecture Search. 2023.
https://arxiv.org/abs/2306.06855

    mix         z = α/τ_e,  g_e = max(1, z_(1) − z_(2)),  p = softmax(z + σ g_e (ε ⊙ m)),  ε ~ N(0, 1), m ~ Bernoulli(q)
    schedule    τ_i = τ_0 (τ_T/τ_0)^(i/N)                        i counts steps, the first is 0 and the last is N
    adaptation  τ_e,i = clip(τ_i exp(κ (h*_i − h_e)), τ_T, τ_0)  h_e = H(p_e)/ln K, an average over steps

An edge whose softmax is saturated has ∂p/∂α = (diag p − p pᵀ)/τ near 0. Noise in proportion to the gap g_e between its
two largest scaled logits moves it off that plateau now and then; noise of a fixed size could not. An edge sharper than
planned is warmed, one that lags is cooled (the target h* falls from 1 to 0.1). Noise enters training alone, never what
is evaluated or read off.

Fills the `mix` slot; ``TemperedSteps`` is an `arch-gradient`. The abstract names the three components; the concrete
forms here (sparsity by masking the noise, its scaling by the gap, linear target of the entropy, clipping) are ours.
Axes: R rows of logits (edges), K options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from archipel.core.errors import UsageError
from archipel.core.registry import Paper, register
from archipel.search.differentiable.arch_gradient import ArchGradient, Batch, Bilevel, FirstOrder, Tensors
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mix
from archipel.search.differentiable.parameters import Moment, Row
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.temperature import (
    EntropyAdaptation,
    ExponentialTemperature,
    row_entropy,
    tempered,
)

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState

SATURATED = 0.999  # a largest weight above this leaves hardly any gradient
EULER = 0.5772156649015329  # mean of a standard Gumbel variable
NOISES = ("normal", "gumbel")


def sparse_noise(z_RK: Tensor, sigma: float, q: float, noise: str = "normal") -> Tensor:
    """σ g_e (ε ⊙ m) for scaled logits z: zero mean, a share q of entries, sd σ g_e √q (times π/√6 for Gumbel noise)."""
    top = z_RK.detach().topk(min(2, z_RK.shape[-1]), -1).values
    gap_R1 = (top[:, :1] - top[:, -1:]).clamp(1.0, torch.finfo(z_RK.dtype).max)
    if noise == "gumbel":
        epsilon = -torch.empty_like(z_RK).exponential_().log() - EULER
    else:
        epsilon = torch.randn_like(z_RK)
    return torch.where(torch.rand_like(z_RK) < q, sigma * gap_R1 * epsilon, 0.0)


class SparseNoisySoftmax(Mix):
    """Softmax at a falling temperature, with sparse noise while training.

    Args:
        temperature: schedule of τ.
        sigma, q: σ and q of the noise; a zero in either leaves the tempered softmax alone.
        noise: ``"normal"``, or ``"gumbel"`` (centred).
        adaptation: edges' own temperatures by their entropy; None for one temperature.
        skip_below: options with a smaller weight are not computed (0: all are); the others then sum to 1.

    Attributes:
        entropy: row -> average h_e so far.
        saturation: share of row-steps with a largest weight above 0.999 (without noise) in the last third of the
            search; NaN before.

    Raises:
        UsageError: a number out of range, or another kind of noise.
    """

    def __init__(
        self,
        temperature: ExponentialTemperature | None = None,
        sigma: float = 1.0,
        q: float = 0.3,
        noise: str = "normal",
        adaptation: EntropyAdaptation | None = None,
        skip_below: float = 0.0,
    ) -> None:
        if not (math.isfinite(sigma) and sigma >= 0):
            raise UsageError(f"SparseNoisySoftmax: sigma must not be negative, got {sigma!r}.")
        if not 0.0 <= q <= 1.0:
            raise UsageError(f"SparseNoisySoftmax: q is the share of entries with noise, from 0 to 1, not {q!r}.")
        if noise not in NOISES:
            raise UsageError(f"SparseNoisySoftmax: noise is {' or '.join(NOISES)}, not {noise!r}.")
        if not 0.0 <= skip_below < 0.5:
            raise UsageError(f"SparseNoisySoftmax: skip_below must be at least 0 and below 0.5, not {skip_below!r}.")
        self.schedule = temperature or ExponentialTemperature()
        self.sigma, self.q, self.noise = sigma, q, noise
        self.adaptation = adaptation
        self.skip_below = skip_below
        self.entropy: dict[str, float] = {}
        self._saturated = self._counted = 0

    # --- temperatures ----------------------------------------------------------------------------------------------

    def temperature(self, name: str, moment: Moment) -> float:
        """τ of a row."""
        N = moment.steps - 1
        tau = self.schedule(moment.step, N)
        if self.adaptation is None or name not in self.entropy:
            return tau
        target = self.adaptation.target(moment.step, N)
        return self.adaptation.temperature(tau, self.entropy[name], target, self.schedule)

    def step_ended(self, state: SearchState) -> None:
        """Take the entropies and the saturation down, without noise."""
        rows = state.parameters.rows
        with torch.no_grad():
            p = self._softmax({n: a.detach() for n, a in state.logits.items()}, rows, state.moment, noisy=False)
            names = [n for group in p for n in group[0]]
            h = torch.cat([row_entropy(p_RK) for _, p_RK in p]).tolist()
            top = torch.cat([p_RK.max(-1).values for _, p_RK in p]).tolist()
        keep = self.adaptation.momentum if self.adaptation else 0.0
        for name, value in zip(names, h):
            self.entropy[name] = keep * self.entropy[name] + (1 - keep) * value if name in self.entropy else value
        if 3 * state.moment.step >= 2 * state.moment.steps:
            self._saturated += sum(t > SATURATED for t in top)
            self._counted += len(top)

    @property
    def saturation(self) -> float:
        return self._saturated / self._counted if self._counted else math.nan

    def figures(self) -> dict[str, float]:
        """Mean entropy h_e without skipping, and in the last third the saturation."""
        out = {"row_entropy": sum(self.entropy.values()) / len(self.entropy)} if self.entropy else {}
        return {**out, "saturation": self.saturation} if self._counted else out

    # --- weights ---------------------------------------------------------------------------------------------------

    def _softmax(
        self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment, noisy: bool
    ) -> list[tuple[list[str], Tensor]]:
        """Weights of rows of equal length, stacked: (names, ``[R, K]``)."""
        lengths: dict[int, list[str]] = {}
        for name in rows:
            lengths.setdefault(len(logits[name]), []).append(name)
        out = []
        for names in lengths.values():
            a_RK = torch.stack([logits[n] for n in names])
            z_RK = tempered(a_RK, torch.tensor([self.temperature(n, moment) for n in names], dtype=torch.float64))
            if noisy and self.sigma > 0 and self.q > 0:
                z_RK = z_RK + sparse_noise(z_RK, self.sigma, self.q, self.noise)
            out.append((names, torch.softmax(z_RK, -1).to(a_RK.dtype)))
        return out

    def weights(self, logits: Mapping[str, Tensor], rows: Mapping[str, Row], moment: Moment) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for names, p_RK in self._softmax(logits, rows, moment, moment.training):
            if self.skip_below:
                small = (p_RK < self.skip_below) & (p_RK < p_RK.max(-1, keepdim=True).values)  # the largest stays
                p_RK = torch.where(small, 0.0, p_RK)
                p_RK = p_RK / p_RK.sum(-1, keepdim=True)
            out.update(zip(names, p_RK.unbind()))
        return {name: out[name] for name in rows}

    def coefficients(self, logits: Tensor, row: Row, moment: Moment) -> Tensor:
        return self.weights({row.name: logits}, {row.name: row}, moment)[row.name]

    # --- saving ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"entropy": dict(self.entropy), "saturated": self._saturated, "counted": self._counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entropy = dict(state["entropy"])
        self._saturated, self._counted = state["saturated"], state["counted"]


class TemperedSteps(ArchGradient):
    """Another gradient's steps, with a learning rate of the logits in proportion to the mean temperature.

    A step in α of size lr is one of lr/τ in z: at a constant rate, late steps would throw edges to and fro.

    Args:
        inner: whose gradient is followed; first order by default.
    """

    def __init__(self, inner: ArchGradient | None = None) -> None:
        self.inner = inner or FirstOrder()

    def started(self, state: SearchState) -> None:
        """
        Raises:
            UsageError: the mix has no temperature.
        """
        if not isinstance(state.mix, SparseNoisySoftmax):
            raise UsageError(
                f"TemperedSteps follows the mix's temperature, but {type(state.mix).__name__} has none. "
                f"Use SparseNoisySoftmax, or the inner arch-gradient alone."
            )
        self.inner.started(state)

    def gradient(self, problem: Bilevel, train: Batch, val: Batch) -> Tensors:
        return self.inner.gradient(problem, train, val)

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        mix = state.mix
        assert isinstance(mix, SparseNoisySoftmax)  # checked at the start
        tau = [mix.temperature(name, state.moment) for name in state.parameters.rows]
        for group in state.alpha_optimizer.param_groups:
            group["lr"] = state.schedule.alpha_lr * sum(tau) / len(tau) / mix.schedule.start
        return self.inner.update(state, train, val)

    def step_ended(self, state: SearchState) -> None:
        self.inner.step_ended(state)

    def epoch_ended(self, state: SearchState) -> None:
        self.inner.epoch_ended(state)

    @property
    def finished(self) -> bool:
        return self.inner.finished

    def figures(self) -> Mapping[str, Any]:
        return self.inner.figures()

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


@register(
    "small-temperature-darts",
    card=115,
    family="search.differentiable",
    slots=["mix", "arch-gradient"],
    paper=Paper(
        "Small Temperature is All You Need for Differentiable Architecture Search",
        2023,
        "https://arxiv.org/abs/2306.06855",
    ),
)
def small_temperature_darts(
    start: float = 1.0,
    end: float = 0.05,
    sigma: float = 1.0,
    q: float = 0.3,
    noise: str = "normal",
    adapt: bool = True,
    kappa: float = 1.0,
    scale_lr: bool = False,
    skip_below: float = 0.0,
    schedule: Schedule | None = None,
    **slots: Any,
) -> DifferentiableSearch:
    """Differentiable search by a softmax whose temperature falls, with sparse noise and edges of their own pace.

    Args:
        start, end: τ_0 and τ_T.
        sigma, q, noise, skip_below: see :class:`SparseNoisySoftmax`.
        adapt, kappa: whether, and how strongly, edges follow the target of their entropy.
        scale_lr: whether the logits' learning rate falls with the temperature (:class:`TemperedSteps`).
        schedule: that of DARTS by default (50 epochs). Its weight decay of the logits pulls a saturated edge, whose
            gradient is nearly zero, back to equal logits; ``Schedule(alpha_decay=0)`` leaves it where it is.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    >>> small_temperature_darts(end=0.1).mix.schedule(7, 7)
    0.1
    """
    mix = SparseNoisySoftmax(
        ExponentialTemperature(start, end), sigma, q, noise, EntropyAdaptation(kappa) if adapt else None, skip_below
    )
    if scale_lr:
        slots["arch_gradient"] = TemperedSteps(slots.get("arch_gradient"))
    return DifferentiableSearch(mix=mix, schedule=schedule or Schedule(), **slots)
