"""Claim: one sampled path at a time finds chains of blocks that train better than random ones and cost no more.

Cai, Zhu, Han. ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware. 2018.
https://arxiv.org/abs/1812.00332

Six residual layers that choose among MBConv blocks of kernel 1, 3, 5 and expansion 1, 3, or are skipped; cost is in
MACs, the target half of what random chains cost in the mean. The reference's settings, but for its number of steps:
the logits learn at every step, and at a rate at which Adam can move them by 4 in the 200 there are. Nothing is tuned.
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

from archipel.claims.chains import macs_of, mean_of_retrained, random_chains, retrained
from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import clearly_above, micro_data, searched, spread
from archipel.core.decision import Arch
from archipel.search.differentiable.arch_gradient import FirstOrder
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.loop import DifferentiableSearch, batch
from archipel.search.differentiable.mix import Softmax
from archipel.search.differentiable.proxylessnas import GateGradient, TwoCosines, proxylessnas
from archipel.search.differentiable.state import SearchState
from archipel.spaces.mbconv import MBConvSpace, digits_space

LAYERS, BATCH, TIMED, DRAWN = 6, 20, 20, 20
SCHEDULE = TwoCosines(
    epochs=25, warmup=5, batch_size=BATCH, lr_min=0.0, weight_decay=4e-5, clip=0.0, alpha_lr=2e-2,
    alpha_betas=(0.0, 0.999), alpha_decay=0.0,
)  # fmt: skip
TWO, LATE, SOFT = "two", "full_v2", "all options blended"
WEIGHTS = {"two, λ=0": 0.0, TWO: 0.1, "two, λ=10": 10.0}
RANDOM, MATCHED = "random", "random, MACs of two"


@cache
def _space() -> MBConvSpace:
    return digits_space(LAYERS, (1, 3, 5), (1, 3))


@cache
def _target() -> float:
    """Half of the mean MACs of random chains."""
    rng, cost = Random(0), macs_of(_space())
    return 0.5 * float(np.mean([cost(_space().sample(rng)) for _ in range(2000)]))


def _strategy(arm: str) -> DifferentiableSearch:
    slots: dict[str, Any] = {"mix": Softmax(), "arch_gradient": FirstOrder()} if arm == SOFT else {}
    paths = LATE if arm == LATE else TWO
    return proxylessnas(paths, _target(), weight=WEIGHTS.get(arm, 0.1), every=1, schedule=SCHEDULE, **slots)


@cache
def _found(arm: str, seed: int) -> tuple[DifferentiableSearch, Arch]:
    return searched(_strategy(arm), _space(), micro_data(), seed)


def _memory(state: SearchState, gradient: Any) -> dict[str, float]:
    """Bytes kept for a backward pass, as multiples of what the average sampled chain keeps on its own."""
    x, y = batch(state.halves[1], torch.arange(BATCH))
    state.supernet.train()
    constant = {n: torch.zeros_like(p) for n, p in state.logits.items()}
    rng, alone = Random(0), []
    for _ in range(DRAWN):
        net = state.supernet.extract(state.supernet.space.sample(rng)).train()
        alone.append(saved_bytes(partial(net, x), net))
    one = float(np.mean(alone))
    mixtures = [state.mixture_weights(constant, training=True) for _ in range(DRAWN)]
    weights = [saved_bytes(partial(state.output, x, m), state.supernet) for m in mixtures]
    steps = [saved_bytes(partial(gradient.gradient, state, (x, y), (x, y)), state.supernet) for _ in range(DRAWN)]
    return {"w paths": float(np.mean(weights)) / one, "α paths": float(np.mean(steps)) / one}


def _ms(state: SearchState, gradient: Any) -> float:
    """Processor time of a step of weights and architecture, in the median."""
    state.supernet.train()
    pair = [batch(half, torch.arange(BATCH)) for half in state.halves]
    times = []
    for _ in range(TIMED):
        began = time.thread_time()
        gradient.update(state, *pair)
        times.append(time.thread_time() - began)
    return 1e3 * float(np.median(times))


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What an arm's chain reaches after retraining and costs, and what its search costs."""
    torch.set_num_threads(1)
    space = _space()
    if arm in (RANDOM, MATCHED):
        macs = space.cost.macs(_found(TWO, seed)[1]) if arm == MATCHED else None
        found = mean_of_retrained(space, random_chains(space, seed, macs), seed)
        return Measurement(found.pop("val"), found)
    search, arch = _found(arm, seed)
    state = search.state
    assert state is not None
    val, test = retrained(space, arch, seed)
    expected = float(state.objective.expected(state.mixture_weights()).detach())  # type: ignore[attr-defined]
    figures = {"test": test, "kMACs": space.cost.macs(arch) / 1e3, "expected kMACs": expected / 1e3}
    figures |= {"gap": search.log[-1]["gap"], "entropy": search.log[-1]["entropy"]}
    if arm in (TWO, LATE, SOFT):
        gradient = search.arch_gradient
        figures |= _memory(state, gradient)
        if arm == TWO:
            figures["α paths, full"] = _memory(state, GateGradient("full"))["α paths"]
        figures["ms"] = _ms(state, gradient)
    return Measurement(val, figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def one_path(t: Table) -> tuple[bool, str]:
    """A weight step within a tenth of one path."""
    values = {a: t.mean(a, "w paths") for a in (TWO, LATE, SOFT)}
    text = ", ".join(f"{v:.2f} ({a})" for a, v in values.items())
    return abs(values[TWO] - 1) <= 0.1 and abs(values[LATE] - 1) <= 0.1, f"paths that a weight step keeps: {text}"


def few_paths(t: Table) -> tuple[bool, str]:
    """At most 2 (two) and 1 (full_v2), where blending keeps at least 5."""
    two, late, soft = (t.mean(a, "α paths") for a in (TWO, LATE, SOFT))
    text = f"{two:.2f} ({TWO}), {late:.2f} ({LATE}), {t.mean(TWO, 'α paths, full'):.2f} (full), {soft:.2f} ({SOFT})"
    return two <= 2 and late <= 1.1 and soft >= 5, f"paths that an architecture step keeps: {text}"


def above_random(arm: str, t: Table) -> tuple[bool, str]:
    """More accurate than the mean random chain, and not more expensive."""
    better, cheaper = t.mean(arm, "test") > t.mean(RANDOM, "test"), t.mean(arm, "kMACs") <= t.mean(RANDOM, "kMACs")
    text = "; ".join(f"{spread(t, arm, f)}, {spread(t, RANDOM, f)}" for f in ("test", "kMACs"))
    return better and cheaper, f"{text}; between random chains {t.mean(RANDOM, 'between'):.4f}"


def cost_falls(t: Table) -> tuple[bool, str]:
    values = [t.mean(a, "expected kMACs") for a in WEIGHTS]
    return all(a > b for a, b in pairwise(values)), ", ".join(
        f"{v:.1f} (λ={w:g})" for v, w in zip(values, WEIGHTS.values())
    )


def above_matched(t: Table) -> tuple[bool, str]:
    return clearly_above(t, TWO, MATCHED, "test")


def not_worse_than_blending(t: Table) -> tuple[bool, str]:
    return t.mean(TWO, "test") >= t.mean(SOFT, "test"), ", ".join(spread(t, a, "test") for a in (TWO, LATE, SOFT))


def faster(t: Table) -> tuple[bool, str]:
    text = ", ".join(f"{t.mean(a, 'ms'):.1f} ({a})" for a in (TWO, LATE, SOFT))
    return t.mean(TWO, "ms") < t.mean(LATE, "ms") and t.mean(TWO, "ms") < t.mean(SOFT, "ms"), f"ms a step: {text}"


CLAIM = Claim(
    slug="proxylessnas",
    statement="Sampling one path at a time trains a search at the memory of one network, and finds networks that are "
    "more accurate than random ones and cost no more, the less the more the cost weighs.",
    scale=f"Chains of {LAYERS} residual layers (C = 8, 7 options each) on noisy digits (400/400/997), "
    f"{SCHEDULE.epochs} epochs of search with {SCHEDULE.warmup} of warm-up, retrained for 12; 8 random chains a seed.",
    arms=[
        ClaimArm(TWO, "method"),
        ClaimArm(LATE, "method"),
        ClaimArm("two, λ=0", "untreated"),
        ClaimArm("two, λ=10", "method"),
        ClaimArm(SOFT, "rival"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(MATCHED, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("A weight step keeps one path", one_path),
        Check("An architecture step keeps one or two paths, blending all", few_paths),
        Check("A step with two paths takes less time than with all", faster),
        Check("The expected cost falls strictly with its weight", cost_falls),
        Check("Two paths: above random chains at no larger cost", partial(above_random, TWO)),
        Check("All paths, late: above random chains at no larger cost", partial(above_random, LATE)),
        Check("Two paths: clearly above random chains of the same cost", above_matched, False),
        Check("Two paths are as accurate as blending all", not_worse_than_blending, False),
    ],
    code=(
        "archipel.claims.chains",
        "archipel.search.differentiable.cost_loss",
        "archipel.search.differentiable.gates",
        "archipel.search.differentiable.reinforce",
        "archipel.spaces.mbconv",
    ),
)
