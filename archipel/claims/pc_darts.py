"""Claim: mixing one K-th of the channels saves memory and time, and with weighed edges finds no worse cells.

Xu, Xie, Zhang, Chen, Qi, Tian, Xiong. PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search.
2019. https://arxiv.org/abs/1907.05737

Six searches that differ in K and in whether nodes weigh their edges (β); K = 1 without β is first-order DARTS. All
have the paper's share of warm-up, and a learning rate of the logits at which Adam can move them as far as in the
paper's number of steps. The learning rate of the weights is tuned on the validation accuracy of the retrained cell.
Arms that search nothing get the same settings, which change nothing for them. Time is that of the processor, in the
median over steps, so that other work on the machine matters less.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
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
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.loop import batch
from archipel.search.differentiable.mix import Mixture
from archipel.search.differentiable.pc_darts import PartialChannelEdge, pc_darts
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.state import SearchState

PARTS, C, BATCH, TIMED = (1, 2, 4), 16, 40, 30
EPOCHS, WARMUP, ALPHA_LR = 40, 12, 1.5e-2  # 6e-4 in 35 epochs of 97 steps moves a logit by 2.0; so does this in 140
SUMMED = {f"K={K}": (K, False) for K in PARTS}
WEIGHED = {f"K={K}, β": (K, True) for K in PARTS}
SEARCHES = SUMMED | WEIGHED
DARTS, METHODS = "K=1", ("K=2, β", "K=4, β")
RANDOM, CONV = "random", "all conv3x3"


def _seconds_per_step(state: SearchState, gradient: Any) -> float:
    """Processor time of a step of architecture and weights, in the median."""
    state.supernet.train()
    pair = [batch(half, torch.arange(BATCH)) for half in state.halves]
    times = []
    for _ in range(TIMED):
        began = time.thread_time()
        gradient.update(state, *pair)
        times.append(time.thread_time() - began)
    return float(np.median(times))


def _memory(state: SearchState) -> dict[str, float]:
    """Bytes that a step keeps for its backward pass: of the whole supernet, and of the mixed operations alone."""
    x, y = batch(state.halves[1], torch.arange(BATCH))
    whole = saved_bytes(partial(state.val_loss, (x, y)), state.supernet)
    state.supernet.decider = Mixture(state.mixture_weights())
    mixed = 0
    for edge in (m for m in state.supernet.modules() if isinstance(m, PartialChannelEdge)):
        part = torch.randn(BATCH, C // edge.K, *x.shape[2:], requires_grad=True)
        mixed += saved_bytes(partial(edge.inner, part), edge)
    return {"kB": whole / 1e3, "mixed kB": mixed / 1e3}


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What an arm's cell reaches after retraining, and what its search costs."""
    torch.set_num_threads(1)
    if arm == RANDOM:
        val, test, between = random_retrained(seed)
        return Measurement(val, {"test": test, "between cells": between})
    if arm == CONV:
        val, test = retrained(ALL_CONV, seed)
        return Measurement(val, {"test": test})
    K, weigh = SEARCHES[arm]
    schedule = Schedule(EPOCHS, WARMUP, BATCH, lr=setting["lr"], lr_min=0.0, alpha_lr=ALPHA_LR)
    search, cell = searched(pc_darts(K, weigh, schedule), micro_space(C), micro_data(), seed)
    last, state = search.log[-1], search.state
    assert state is not None
    figures = {"gap": last["gap"], "entropy": last["entropy"], "skip": float(list(cell.values()).count("skip"))}
    cost = _memory(state) | {"ms": 1e3 * _seconds_per_step(state, search.arch_gradient)}
    val, test = retrained(cell, seed)
    return Measurement(val, {"test": test, **cost, **figures})


# --- checks -----------------------------------------------------------------------------------------------------------


def falls(figure: str, t: Table) -> tuple[bool, str]:
    """Whether a cost falls strictly with K, with and without weighed edges."""
    series = [[t.mean(a, figure) for a in arms] for arms in (SUMMED, WEIGHED)]
    text = "; ".join(", ".join(f"{t.mean(a, figure):.4g} ({a})" for a in arms) for arms in (SUMMED, WEIGHED))
    return all(a > b for s in series for a, b in pairwise(s)), f"{figure}: {text}"


def mixed_part_is_one_kth(t: Table) -> tuple[bool, str]:
    """Within a tenth of 1/K."""
    arms = [(a, K, one) for group, one in ((SUMMED, "K=1"), (WEIGHED, "K=1, β")) for a, (K, _) in group.items()]
    ratios = {a: K * t.mean(a, "mixed kB") / t.mean(one, "mixed kB") for a, K, one in arms}
    text = "K times the share of K=1: " + ", ".join(f"{r:.4f} ({a})" for a, r in ratios.items())
    return all(abs(r - 1) <= 0.1 for r in ratios.values()), text


def not_worse_than_darts(arm: str, t: Table) -> tuple[bool, str]:
    """By no more than one standard deviation over seeds, pooled over both arms."""
    sd = float(np.sqrt((t.std(arm, "test") ** 2 + t.std(DARTS, "test") ** 2) / 2))
    text = f"{spread(t, arm, 'test')}, {spread(t, DARTS, 'test')}, pooled {sd:.4f}"
    return t.mean(arm, "test") >= t.mean(DARTS, "test") - sd, text


def above_random(arm: str, t: Table) -> tuple[bool, str]:
    holds, text = clearly_above(t, arm, RANDOM, "test")
    return holds, f"{text}; between random cells {t.mean(RANDOM, 'between cells'):.4f}"


def weighing_steadies(t: Table) -> tuple[bool, str]:
    """Higher in the mean where channels are sampled."""
    pairs = [(f"K={K}, β", f"K={K}") for K in PARTS[1:]]
    return all(t.mean(a, "test") > t.mean(b, "test") for a, b in pairs), _tests(t, [a for p in pairs for a in p])


def beats_all_conv(t: Table) -> tuple[bool, str]:
    return all(t.mean(a, "test") > t.mean(CONV, "test") for a in METHODS), _tests(t, [*METHODS, CONV])


def cut_costs_less(t: Table) -> tuple[bool, str]:
    gaps = ", ".join(spread(t, a, "gap") for a in SEARCHES)
    return all(t.mean(a, "gap") < t.mean(DARTS, "gap") for a in METHODS), gaps


def _tests(t: Table, arms: list[str]) -> str:
    return ", ".join(spread(t, a, "test") for a in arms)


CLAIM = Claim(
    slug="pc-darts",
    statement="Mixing only one K-th of the channels cuts the memory and time of a DARTS step, and with weighed edges "
    "the cells it finds are no worse than those of DARTS.",
    scale=f"Micro-NB201 on noisy digits (400/400/997), searched with C = {C} for {EPOCHS} epochs, retrained with C = 8 "
    "for 12; 8 random cells a seed.",
    arms=[
        *(ClaimArm(a, "method") for a in reversed(METHODS)),
        *(ClaimArm(a, "untreated") for a in SEARCHES if a not in METHODS),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("Saved bytes of a step fall strictly with K", partial(falls, "kB")),
        Check("The mixed operations keep one K-th", mixed_part_is_one_kth),
        Check("The time of a step falls strictly with K", partial(falls, "ms")),
        Check("K=4 with β is not worse than DARTS by more than one deviation", partial(not_worse_than_darts, "K=4, β")),
        Check("K=2 with β is not worse than DARTS by more than one deviation", partial(not_worse_than_darts, "K=2, β")),
        Check("K=4 with β is clearly above the mean random cell", partial(above_random, "K=4, β")),
        Check("K=2 with β is clearly above the mean random cell", partial(above_random, "K=2, β")),
        Check("DARTS is clearly above the mean random cell", partial(above_random, DARTS), False),
        Check("Weighed edges are better where channels are sampled", weighing_steadies, False),
        Check("PC-DARTS is better than convolutions everywhere", beats_all_conv, False),
        Check("The cut to one cell costs less accuracy than with DARTS", cut_costs_less, False),
    ],
    grid=[{"lr": 0.025}, {"lr": 0.1}],
    code=(
        "archipel.claims.micro",
        "archipel.search.differentiable.arch_gradient",
        "archipel.search.differentiable.diagnostics",
        "archipel.search.differentiable.loop",
        "archipel.search.differentiable.mix",
        "archipel.search.differentiable.select",
        "archipel.search.differentiable.state",
        "archipel.spaces.micro_nb201",
        "archipel.spaces.nb201",
    ),
)
