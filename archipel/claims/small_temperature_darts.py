"""Claim: a small temperature during the search closes the gap between the mixture and the network cut from it.

Zhang, Ding. Small Temperature is All You Need for Differentiable Architecture Search. 2023.
https://arxiv.org/abs/2306.06855

The components are added one by one to first-order DARTS on the micro network. The gap is the mixture's accuracy on the
validation data, which no search sees, less that of its discretisation with the same weights. All searches have the
same steps and a learning rate of the logits at which Adam can move them by 1.35. The learning rate of the weights is
tuned on the validation accuracy of the retrained cell; arms that search nothing get the same settings, which change
nothing for them. What skipping saves is measured on the searched network, in processor time.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import (
    ALL_CONV,
    clearly_above,
    micro_data,
    micro_space,
    random_retrained,
    retrained,
    searched,
    spread,
)
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.loop import DifferentiableSearch, batch
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.small_temperature_darts import SparseNoisySoftmax, small_temperature_darts
from archipel.search.differentiable.state import SearchState

EPOCHS, BATCH, ALPHA_LR, TIMED = 30, 40, 9e-3, 20
SKIPPED = 1e-3
DARTS, COOLED, NOISY, FULL = "DARTS", "schedule", "schedule + noise", "full"
SCALED, UNDECAYED = "full, lr with τ", "full, no decay of α"
TEMPERED: dict[str, dict[str, Any]] = {
    COOLED: {"sigma": 0.0, "adapt": False},
    NOISY: {"adapt": False},
    FULL: {},
    SCALED: {"scale_lr": True},
    UNDECAYED: {},
}
RANDOM, CONV = "random", "all conv3x3"


def _strategy(arm: str, lr: float) -> DifferentiableSearch:
    decay = 0.0 if arm == UNDECAYED else 1e-3
    schedule = Schedule(EPOCHS, batch_size=BATCH, lr=lr, alpha_lr=ALPHA_LR, alpha_decay=decay)
    return darts(1, schedule) if arm == DARTS else small_temperature_darts(schedule=schedule, **TEMPERED[arm])


def _skipping(state: SearchState, gradient: Any) -> dict[str, float]:
    """Median processor time of a step and mean number of options with weight, without and with skipping."""
    mix = state.mix
    assert isinstance(mix, SparseNoisySoftmax)
    pair = [batch(half, torch.arange(BATCH)) for half in state.halves]
    saved, found = copy.deepcopy(state.state_dict()), {}
    for label, threshold in (("all", 0.0), ("skip", SKIPPED)):
        state.load_state_dict(saved)
        mix.skip_below = threshold
        torch.manual_seed(0)
        state.supernet.train()
        times, options = [], []
        for _ in range(TIMED):
            began = time.thread_time()
            gradient.update(state, *pair)
            times.append(time.thread_time() - began)
            options.append(sum(int((w > 0).sum()) for w in state.mixture_weights(training=True).values()))
        found |= {f"ms {label}": 1e3 * float(np.median(times)), f"options {label}": float(np.mean(options))}
    return found


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """The gap of an arm's search and what its cell reaches after retraining."""
    torch.set_num_threads(1)
    if arm == RANDOM:
        val, test, between = random_retrained(seed)
        return Measurement(val, {"test": test, "between cells": between})
    if arm == CONV:
        val, test = retrained(ALL_CONV, seed)
        return Measurement(val, {"test": test})
    search, cell = searched(_strategy(arm, setting["lr"]), micro_space(), micro_data(), seed)
    state = search.state
    assert state is not None
    figures = {k: search.log[-1][k] for k in ("mixture", "one_hot", "gap", "entropy")}
    figures["skip"] = float(list(cell.values()).count("skip"))
    figures["range of α"] = float(torch.stack([p.max() - p.min() for p in state.logits.values()]).mean().detach())
    if isinstance(state.mix, SparseNoisySoftmax):
        figures["saturation"] = state.mix.saturation
        figures |= _skipping(state, search.arch_gradient)
    val, test = retrained(cell, seed)
    return Measurement(val, {"test": test, **figures})


# --- checks -----------------------------------------------------------------------------------------------------------


def gap_shrinks(arm: str, share: float, t: Table) -> tuple[bool, str]:
    """The mean gap is below a share of that of DARTS."""
    return t.mean(arm, "gap") < share * t.mean(DARTS, "gap"), f"{spread(t, arm, 'gap')}, {spread(t, DARTS, 'gap')}"


def not_worse_than_darts(t: Table) -> tuple[bool, str]:
    """By no more than one standard deviation over seeds, pooled over both arms."""
    sd = float(np.sqrt((t.std(FULL, "test") ** 2 + t.std(DARTS, "test") ** 2) / 2))
    text = f"{spread(t, FULL, 'test')}, {spread(t, DARTS, 'test')}, pooled {sd:.4f}"
    return t.mean(FULL, "test") >= t.mean(DARTS, "test") - sd, text


def skipping_saves(figure: str, t: Table) -> tuple[bool, str]:
    """Less with skipping, on every seed."""
    every, few = t.values(FULL, f"{figure} all"), t.values(FULL, f"{figure} skip")
    text = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(every, few))
    return bool((few < every).all()), f"{figure}: {text} (ratio {float((few / every).mean()):.3f})"


def noise_closes_further(t: Table) -> tuple[bool, str]:
    return t.mean(NOISY, "gap") < t.mean(COOLED, "gap"), f"{spread(t, NOISY, 'gap')}, {spread(t, COOLED, 'gap')}"


def adaptation_closes_further(t: Table) -> tuple[bool, str]:
    return t.mean(FULL, "gap") < t.mean(NOISY, "gap"), f"{spread(t, FULL, 'gap')}, {spread(t, NOISY, 'gap')}"


def scaled_steps_saturate_less(t: Table) -> tuple[bool, str]:
    text = ", ".join(spread(t, a, "saturation") for a in TEMPERED)
    return t.mean(SCALED, "saturation") < t.mean(FULL, "saturation"), text


def decay_shrinks_logits(t: Table) -> tuple[bool, str]:
    text = ", ".join(spread(t, a, "range of α") for a in (DARTS, *TEMPERED))
    return t.mean(FULL, "range of α") < t.mean(UNDECAYED, "range of α"), text


def above_random(t: Table) -> tuple[bool, str]:
    holds, text = clearly_above(t, FULL, RANDOM, "test")
    return holds, f"{text}; between random cells {t.mean(RANDOM, 'between cells'):.4f}"


def beats_all_conv(t: Table) -> tuple[bool, str]:
    return t.mean(FULL, "test") > t.mean(CONV, "test"), f"{spread(t, FULL, 'test')}, {spread(t, CONV, 'test')}"


def no_collapse(t: Table) -> tuple[bool, str]:
    """No more skip connections in the cell than DARTS chooses."""
    return t.mean(FULL, "skip") <= t.mean(DARTS, "skip"), ", ".join(spread(t, a, "skip") for a in (DARTS, *TEMPERED))


CLAIM = Claim(
    slug="small-temperature-darts",
    statement="Searching at a temperature that falls to a small value, with sparse noise and an adaptation by entropy, "
    "closes the gap between the searched mixture and the network that is cut from it, and avoids collapse.",
    scale=f"Micro-NB201 on noisy digits (400/400/997), C = 8, searched for {EPOCHS} epochs of 5 steps, retrained for "
    "12; 8 random cells a seed.",
    arms=[
        ClaimArm(FULL, "method"),
        ClaimArm(SCALED, "method"),
        ClaimArm(UNDECAYED, "method"),
        ClaimArm(NOISY, "untreated"),
        ClaimArm(COOLED, "untreated"),
        ClaimArm(DARTS, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("The full method's gap is below a third of that of DARTS", partial(gap_shrinks, FULL, 1 / 3)),
        Check("The schedule alone makes the gap smaller than that of DARTS", partial(gap_shrinks, COOLED, 1.0)),
        Check("The retrained cell is not worse than that of DARTS by more than one deviation", not_worse_than_darts),
        Check("Skipping weights below 0.001 computes fewer options", partial(skipping_saves, "options")),
        Check("Skipping weights below 0.001 makes a step faster", partial(skipping_saves, "ms")),
        Check("Noise makes the gap smaller than the schedule alone", noise_closes_further, False),
        Check("Adaptation makes the gap smaller still", adaptation_closes_further, False),
        Check("Steps in proportion to τ also bring the gap below a third", partial(gap_shrinks, SCALED, 1 / 3), False),
        Check("Steps in proportion to τ leave fewer saturated edges", scaled_steps_saturate_less, False),
        Check("Weight decay of the logits keeps them closer together", decay_shrinks_logits, False),
        Check("The cell is clearly above the mean random cell", above_random, False),
        Check("The cell is better than convolutions everywhere", beats_all_conv, False),
        Check("The cell has no more skip connections than that of DARTS", no_collapse, False),
    ],
    grid=[{"lr": 0.025}, {"lr": 0.1}],
    code=("archipel.search.differentiable.temperature",),
)
