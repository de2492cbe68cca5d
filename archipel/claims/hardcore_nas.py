"""Claim: Frank-Wolfe steps within a hard limit keep it throughout, without a weight to tune, and find good networks.

Nayman, Aflalo, Noy, Zelnik-Manor. HardCoRe-NAS: Hard Constrained diffeRentiable Neural Architecture Search. 2021.
https://arxiv.org/abs/2102.11646

All arms of a seed share one one-shot training and search with its weights held. The rival descends on logits of
operations and depths, on the loss plus w max(0, LAT/T - 1), for three w, and takes the likeliest network. Without the
penalty (w = 0), that network is brought within the limit by the changes that give up least likelihood for what they
save. Limits are shares of the largest network's MACs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import RECIPE, micro_data, spread
from archipel.nets.batch_norm import batch_statistics
from archipel.search.differentiable.hardcore_nas import HardCoReNAS
from archipel.search.differentiable.loop import batch
from archipel.search.differentiable.stage_blend import blended
from archipel.search.differentiable.stage_costs import Rows, StageCosts
from archipel.search.strategy import Context, Problem
from archipel.search.training import evaluate, loss_of, train
from archipel.spaces.hardcore import HardCoReSpace

LIMITS = (0.3, 0.5, 0.7)
HEAVY_EPOCHS, EPOCHS, STEPS, BATCH, LOGIT_LR = 5, 15, 40, 40, 0.1
JUDGED, RETRAINED = 8, 4  # random networks a limit and seed: judged by shared weights, and trained alone
PENALTIES = (0.1, 1.0, 10.0)
HARD, REPAIRED, RANDOM = "HardCoRe", "argmax, then repair", "random"
PENALISED = {f"penalty w={w:g}": w for w in PENALTIES}
Blocks = list[list[int]]


@cache
def space() -> HardCoReSpace:
    return HardCoReSpace(
        (1, 8, 8), 10, stem=8, widths=(8, 8), strides=(1, 2), head=(32, 32), depth=(1, 3), expand=(1, 3),
        kernels=(1, 3, 5), attention=(False,),
    )  # fmt: skip


@cache
def one_shot(seed: int) -> tuple[HardCoReNAS, float]:
    """A search with trained weights, and the processor time that they took."""
    largest = float(space().cost.macs(space().heaviest()))
    search = HardCoReNAS(
        {"macs": largest}, heavy_epochs=HEAVY_EPOCHS, epochs=EPOCHS, batch_size=BATCH, paths=4, steps=1, lr=0.1
    )
    search.setup(Problem(space()))
    began = time.thread_time()
    search.prepare(Context(micro_data().without_test(), RECIPE, seed=seed))
    took = time.thread_time() - began
    search.steps = STEPS
    return search, took


@cache
def _trained(blocks: tuple[tuple[int, ...], ...], seed: int) -> tuple[float, float]:
    data, net = micro_data(), space().build(space().arch_of(blocks), seed)
    train(net, data.train, data.task, RECIPE, seed)
    return evaluate(net, data.val, data.task)["accuracy"], evaluate(net, data.open_test("claim"), data.task)["accuracy"]


def trained(blocks: Blocks, seed: int) -> tuple[float, float]:
    """Validation and test accuracy after training from scratch."""
    return _trained(tuple(map(tuple, blocks)), seed)


def cost(costs: StageCosts, blocks: Sequence[Sequence[int]]) -> float:
    return costs(*costs.one_hot(blocks))


def descended(search: HardCoReNAS, limit: float, weight: float) -> tuple[Rows, Rows]:
    """α and β by Adam on their logits, for the loss and a penalty above the limit."""
    costs, rng = search.costs, Random(search.seed)
    logits = [[torch.zeros(len(x), requires_grad=True) for x in rows] for rows in costs.uniform()]
    optimizer = torch.optim.Adam([p for rows in logits for p in rows], LOGIT_LR)
    assert search.training is not None
    for _ in range(STEPS):
        alpha, beta = ([torch.softmax(p, 0) for p in rows] for rows in logits)
        x, y = batch(search.theirs, torch.tensor(rng.sample(range(len(search.theirs)), BATCH)))
        with batch_statistics(search.training.supernet):
            loss = loss_of(search.task, blended(search.training.supernet, space(), alpha, beta, x), y)
        held = [b.detach().double().numpy() for b in beta]
        of_alpha = _product(alpha, costs.of_operations(held))
        of_beta = _product(beta, costs.of_depths([a.detach().double().numpy() for a in alpha]))
        latency = costs.fixed + of_alpha + of_beta - of_beta.detach()  # the value once, the slopes of both
        loss = loss + weight * torch.relu(latency / limit - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = [[torch.softmax(p.detach(), 0).double().numpy() for p in rows] for rows in logits]
    return found[0], found[1]


def _product(rows: Sequence[Tensor], costs: Rows) -> Tensor:
    return torch.stack([(x * torch.tensor(c)).sum() for x, c in zip(rows, costs)]).sum()


def repaired(costs: StageCosts, limit: float, alpha: Rows, beta: Rows) -> Blocks:
    """The likeliest network, changed one decision at a time until it keeps the limit."""
    blocks, depth = costs.blocks(alpha, beta), len(costs.tables[0])
    logs = [np.log(np.maximum(a, 1e-30)) for a in alpha]
    while (now := cost(costs, blocks)) > limit:
        best: tuple[float, Blocks] | None = None
        for s, ops in enumerate(blocks):
            changes = []
            for b, c in enumerate(ops):
                row = logs[s * depth + b]
                changes += [(row[c] - row[o], [*ops[:b], o, *ops[b + 1 :]]) for o in range(len(row)) if o != c]
            if len(ops) > costs.depths[s][0]:
                i = costs.depths[s].index(len(ops))
                changes.append((float(np.log(beta[s][i] / beta[s][i - 1])), ops[:-1]))
            for lost, ops_after in changes:
                after = [ops_after if k == s else o for k, o in enumerate(blocks)]
                saved = now - cost(costs, after)
                if saved > 0 and (best is None or lost / saved < best[0]):
                    best = lost / saved, after
        assert best is not None  # the cheapest network keeps every limit here
        blocks = best[1]
    return blocks


def random_within(costs: StageCosts, limit: float, rng: Random) -> Blocks:
    while True:
        blocks = space().blocks_of(space().sample(rng))
        if cost(costs, blocks) <= limit:
            return blocks


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """At each limit: cost / limit, accuracy by shared weights (``shared``) and after retraining (``test``)."""
    torch.set_num_threads(1)
    search, took = one_shot(seed)
    costs, val = search.costs, micro_data().val
    figures: dict[str, float] = {}
    validation = []
    for share in LIMITS:
        limit, at = share * costs.range[1], f"{share:.0%}"
        if arm == RANDOM:
            rng = Random(seed * 1000 + round(100 * share))
            found = [random_within(costs, limit, rng) for _ in range(JUDGED)]
            judged = [search.judged(space().arch_of(b), val) for b in found]
            figures |= {f"shared {at}": float(np.mean(judged)), f"best {at}": max(judged)}
            pairs = [trained(b, seed) for b in found[:RETRAINED]]
        else:
            began = time.thread_time()
            if arm == HARD:
                blocks, log = search.within(limit)
                figures[f"during {at}"] = max(entry["latency"] for entry in log)
                figures[f"searching {at}"] = (time.thread_time() - began) / took
            else:
                alpha, beta = descended(search, limit, PENALISED.get(arm, 0.0))
                figures[f"expected {at}"] = costs(alpha, beta) / limit
                blocks = repaired(costs, limit, alpha, beta) if arm == REPAIRED else costs.blocks(alpha, beta)
            figures[f"cost {at}"] = cost(costs, blocks) / limit
            figures[f"shared {at}"] = search.judged(space().arch_of(blocks), val)
            if arm in PENALISED:  # it is their costs that are in question
                validation.append(figures[f"shared {at}"])
                continue
            pairs = [trained(blocks, seed)]
        figures[f"test {at}"] = float(np.mean([test for _, test in pairs]))
        validation.append(float(np.mean([v for v, _ in pairs])))
    return Measurement(float(np.mean(validation)), figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def _worst(t: Table, figure: str) -> dict[float, float]:
    return {s: float(t.values(HARD, f"{figure} {s:.0%}").max()) for s in LIMITS}


def _text(values: Mapping[float, float]) -> str:
    return ", ".join(f"{v:.6f} at {s:.0%}" for s, v in values.items())


def always_feasible(t: Table) -> tuple[bool, str]:
    worst = _worst(t, "during")
    return max(worst.values()) <= 1 + 1e-6, f"largest LAT / T of any step: {_text(worst)}"


def network_fits(t: Table) -> tuple[bool, str]:
    worst = _worst(t, "cost")
    least = min(float(t.values(HARD, f"cost {s:.0%}").min()) for s in LIMITS)
    return max(worst.values()) <= 1.0, f"largest cost / T: {_text(worst)}; smallest of all {least:.3f}"


def penalties_miss(t: Table) -> tuple[bool, str]:
    """At every limit some weight ends above it, or below 0.8 of it, on the mean."""
    rows = {s: {a: t.mean(a, f"cost {s:.0%}") for a in PENALISED} for s in LIMITS}
    text = "; ".join(f"at {s:.0%} " + ", ".join(f"{v:.2f} ({a})" for a, v in r.items()) for s, r in rows.items())
    return all(any(not 0.8 <= v <= 1.0 for v in r.values()) for r in rows.values()), f"mean cost / T: {text}"


def not_below(other: str, share: float, t: Table) -> tuple[bool, str]:
    figure = f"test {share:.0%}"
    return t.mean(HARD, figure) >= t.mean(other, figure), f"{spread(t, HARD, figure)}, {spread(t, other, figure)}"


def above_best_random(t: Table) -> tuple[bool, str]:
    """By shared weights, at every limit and seed."""
    gaps = {s: t.values(HARD, f"shared {s:.0%}") - t.values(RANDOM, f"best {s:.0%}") for s in LIMITS}
    text = ", ".join(f"{float(g.min()):+.4f} to {float(g.max()):+.4f} at {s:.0%}" for s, g in gaps.items())
    return all(float(g.min()) >= 0.0 for g in gaps.values()), text


def search_is_cheap(t: Table) -> tuple[bool, str]:
    shares = {s: t.mean(HARD, f"searching {s:.0%}") for s in LIMITS}
    return max(shares.values()) < 1.0, f"time for one more limit, of the one-shot training's: {_text(shares)}"


def above_repaired(t: Table) -> tuple[bool, str]:
    results = [not_below(REPAIRED, s, t) for s in LIMITS]
    return all(holds for holds, _ in results), "; ".join(text for _, text in results)


def uses_the_limit(t: Table) -> tuple[bool, str]:
    means = {s: t.mean(HARD, f"cost {s:.0%}") for s in LIMITS}
    return math.isfinite(sum(means.values())) and min(means.values()) >= 0.8, f"mean cost / T: {_text(means)}"


CLAIM = Claim(
    slug="hardcore-nas",
    statement="A search whose steps never leave the latency constraint satisfies it strictly and without tuning, and "
    "finds better networks for it than other ways to keep it.",
    scale=f"Two stages of up to 3 blocks (expansions 1 and 3, kernels 1, 3 and 5, C = 8), noisy digits (400/400/997), "
    f"{HEAVY_EPOCHS} + {EPOCHS} epochs of one-shot training, {STEPS} steps at limits of "
    f"{', '.join(f'{s:.0%}' for s in LIMITS)} of the largest network's MACs; {JUDGED} random networks a limit and "
    f"seed, {RETRAINED} of them retrained.",
    arms=[
        ClaimArm(HARD, "method"),
        *(ClaimArm(a, "rival") for a in PENALISED),
        ClaimArm(REPAIRED, "untreated"),
        ClaimArm(RANDOM, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("The expected cost is within the limit at every step", always_feasible),
        Check("Every network found keeps its limit", network_fits),
        Check("A penalty misses every limit for some weight", penalties_miss),
        *(Check(f"Not below random networks at {s:.0%}", partial(not_below, RANDOM, s)) for s in LIMITS),
        Check("By shared weights above the best random network, always", above_best_random, False),
        Check("Not below a repaired network at any limit", above_repaired, False),
        Check("Rounding leaves no more than a fifth of the limit unused, on the mean", uses_the_limit, False),
        Check("Another limit costs less than the one-shot training", search_is_cheap, False),
    ],
    code=(
        "archipel.search.differentiable.frank_wolfe",
        "archipel.search.differentiable.sandwiched",
        "archipel.search.differentiable.stage_blend",
        "archipel.search.differentiable.stage_costs",
        "archipel.spaces.hardcore",
    ),
)
