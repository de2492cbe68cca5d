"""Claim: superkernels need the weights of one network, less time than several paths, and trade accuracy for runtime.

Stamoulis et al. Single-Path NAS: Designing Hardware-Efficient ConvNets in less than 4 Hours. 2019.
https://arxiv.org/abs/1904.02877

Five layers that choose among MBConv blocks of kernel 3, 5 and expansion 3, 6, or are skipped; runtime is in MACs, by
the paper's formula. Its weight λ is swept. Rivals search the same blocks by separate weights for as many steps: two
sampled paths (ProxylessNAS), and all of them blended (DARTS), of which only costs are measured. Half of the epochs are
warm-up, as in the reference. Nothing is tuned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache, partial
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import torch

from archipel.claims.chains import random_chains, retrained
from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import RECIPE, micro_data, searched, spread
from archipel.core.decision import Arch
from archipel.cost.model import count_params
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.loop import DifferentiableSearch, batch
from archipel.search.differentiable.proxylessnas import TwoCosines, proxylessnas
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.single_path_nas import OneOptimizer, single_path_nas
from archipel.search.differentiable.state import SearchState
from archipel.search.strategy import Context, Problem
from archipel.spaces.mbconv import MBConvSpace, digits_space

LAYERS, BATCH, TIMED, PER_WEIGHT = 5, 40, 15, 2
SCHEDULE = OneOptimizer(
    epochs=20, warmup=10, batch_size=BATCH, lr=5e-3, lr_min=0.0, weight_decay=1e-5, clip=0.0, alpha_share=0.0
)
# Half of the data are for the weights of a rival, so half the batch makes as many steps; logits move by up to 4.
RIVAL = TwoCosines(
    epochs=20, warmup=4, batch_size=BATCH // 2, lr_min=0.0, weight_decay=4e-5, clip=0.0, alpha_lr=2.5e-2,
    alpha_betas=(0.0, 0.999), alpha_decay=0.0,
)  # fmt: skip
WEIGHTS = {"λ=0": 0.0, "λ=3": 3.0, "λ=10": 10.0, "λ=30": 30.0}
TWO, SOFT, RANDOM = "two paths", "all blended", "random, same MACs"


@cache
def _space() -> MBConvSpace:
    return digits_space(LAYERS, (3, 5), (3, 6))


def _strategy(arm: str) -> DifferentiableSearch:
    if arm == TWO:
        return proxylessnas(every=1, schedule=RIVAL)
    if arm == SOFT:
        return darts(schedule=Schedule(epochs=20, batch_size=BATCH // 2))
    return single_path_nas(WEIGHTS[arm], schedule=SCHEDULE)


@cache
def _found(arm: str, seed: int) -> tuple[DifferentiableSearch, Arch]:
    return searched(_strategy(arm), _space(), micro_data(), seed)


def _costs(state: SearchState, gradient: Any) -> dict[str, float]:
    """Weights of the supernet, bytes that a step keeps, and its processor time for so many images, in the median."""
    state.supernet.train()
    state.move_to(state.schedule.warmup, 0)
    pair = [batch(half, torch.arange(BATCH)) for half in state.halves]
    kept = saved_bytes(lambda: gradient.gradient(state, *pair), state.supernet)
    times = []
    for _ in range(TIMED):
        began = time.thread_time()
        gradient.update(state, *pair)
        times.append(time.thread_time() - began)
    return {"weights": float(count_params(state.supernet)), "kB": kept / 1e3, "ms": 1e3 * float(np.median(times))}


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What an arm's chain reaches after retraining and costs, and what its search costs."""
    torch.set_num_threads(1)
    space = _space()
    if arm == RANDOM:
        figures, vals, tests = {}, [], []
        for other in WEIGHTS:
            archs = random_chains(space, seed, space.cost.macs(_found(other, seed)[1]))[:PER_WEIGHT]
            both = np.array([retrained(space, a, seed) for a in archs])
            figures |= {f"test {other}": float(both[:, 1].mean())}
            figures |= {f"kMACs {other}": sum(space.cost.macs(a) for a in archs) / 1e3 / len(archs)}
            vals.append(both[:, 0].mean())
            tests.append(both[:, 1])
        figures["between"] = float(np.sqrt(np.mean([t.var(ddof=1) for t in tests])))
        return Measurement(float(np.mean(vals)), figures)
    if arm == SOFT:
        search = _strategy(arm)
        search.setup(Problem(space, rng=Random(seed)))
        state = search.start(Context(micro_data().without_test(), RECIPE, seed=seed))
        return Measurement(0.0, _costs(state, search.arch_gradient))  # nothing is trained to be judged
    search, arch = _found(arm, seed)
    state = search.state
    assert state is not None
    val, test = retrained(space, arch, seed)
    figures = {"test": test, "kMACs": space.cost.macs(arch) / 1e3, "skipped": float(list(arch.values()).count("skip"))}
    figures |= {"mixture": search.log[-1]["mixture"], "gap": search.log[-1]["gap"]}
    return Measurement(val, figures | _costs(state, search.arch_gradient))


# --- checks -----------------------------------------------------------------------------------------------------------


def runtime_falls(t: Table) -> tuple[bool, str]:
    """It never rises with λ, and falls from the first to the last."""
    values = [t.mean(a, "kMACs") for a in WEIGHTS]
    text = ", ".join(f"{v:.1f} ({a})" for a, v in zip(WEIGHTS, values))
    return all(a >= b for a, b in pairwise(values)) and values[0] > values[-1], f"kMACs: {text}"


def as_good_as_random(t: Table) -> tuple[bool, str]:
    """Over all λ, by no more than one deviation between random chains below."""
    ours = float(np.mean([t.mean(a, "test") for a in WEIGHTS]))
    theirs = float(np.mean([t.mean(RANDOM, f"test {a}") for a in WEIGHTS]))
    sd = t.mean(RANDOM, "between")
    pairs = ", ".join(f"{t.mean(a, 'test'):.4f}/{t.mean(RANDOM, f'test {a}'):.4f} ({a})" for a in WEIGHTS)
    return ours >= theirs - sd, f"{ours:.4f} against {theirs:.4f}, deviation {sd:.4f}; {pairs}"


def fewer_weights(t: Table) -> tuple[bool, str]:
    ours, theirs = t.mean("λ=0", "weights"), t.mean(SOFT, "weights")
    return 2 * ours <= theirs, f"{ours:,.0f} against {theirs:,.0f}: {theirs / ours:.2f} times"


def lower(figure: str, other: str, t: Table) -> tuple[bool, str]:
    """Every λ costs less than a rival."""
    text = ", ".join(f"{t.mean(a, figure):.4g} ({a})" for a in (*WEIGHTS, TWO, SOFT))
    return all(t.mean(a, figure) < t.mean(other, figure) for a in WEIGHTS), f"{figure}: {text}"


def as_good_as_two_paths(t: Table) -> tuple[bool, str]:
    """Some λ is at least as accurate, and not more expensive."""
    better = [
        a for a in WEIGHTS if t.mean(a, "test") >= t.mean(TWO, "test") and t.mean(a, "kMACs") <= t.mean(TWO, "kMACs")
    ]
    texts = ", ".join(f"{spread(t, a, 'test')} at {t.mean(a, 'kMACs'):.0f} kMACs" for a in (*WEIGHTS, TWO))
    return bool(better), texts


def beats_random_everywhere(t: Table) -> tuple[bool, str]:
    holds = all(t.mean(a, "test") > t.mean(RANDOM, f"test {a}") for a in WEIGHTS)
    return holds, ", ".join(f"{t.mean(a, 'test') - t.mean(RANDOM, f'test {a}'):+.4f} ({a})" for a in WEIGHTS)


CLAIM = Claim(
    slug="single-path-nas",
    statement="A superkernel a layer needs half the weights of separate blocks and less time than blending them, and "
    "the weight of the runtime trades accuracy for it, no worse than random networks of the same runtime.",
    scale=f"Chains of {LAYERS} residual layers (C = 8, 5 options each) on noisy digits (400/400/997), "
    f"{SCHEDULE.epochs} epochs of search with {SCHEDULE.warmup} of warm-up, retrained for 12; "
    f"{PER_WEIGHT} random chains for each λ and seed.",
    arms=[
        *(ClaimArm(a, "method" if w else "untreated") for a, w in WEIGHTS.items()),
        ClaimArm(TWO, "rival"),
        ClaimArm(SOFT, "rival"),
        ClaimArm(RANDOM, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("The runtime of the derived network falls with λ", runtime_falls),
        Check("Half as many weights as separate blocks", fewer_weights),
        Check("A step takes less time than blending all blocks", partial(lower, "ms", SOFT)),
        Check("No worse than random chains of the same MACs by more than one deviation", as_good_as_random),
        Check("A step keeps less than blending all blocks", partial(lower, "kB", SOFT), False),
        Check("A step takes less time than sampling two paths", partial(lower, "ms", TWO), False),
        Check("Better than random chains of the same MACs at every λ", beats_random_everywhere, False),
        Check("Some λ is as accurate as two paths at no more MACs", as_good_as_two_paths, False),
    ],
    code=("archipel.claims.chains", "archipel.search.differentiable.cost_loss", "archipel.spaces.superkernel"),
)
