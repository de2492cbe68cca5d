"""Claim: one run serves several tasks, because every evaluated network teaches all of them.

Wu, Li, Zhang, Dai, Zhang, Yu, Wang, Lin, Vajda. FBNetV5: Neural Architecture Search for Multiple Tasks in One Run.
2021. https://arxiv.org/abs/2111.10007

First without networks: rewards R_t(a) = −|a ⊕ a*_t|/B − 0.3 |a|/B + 0.05 N(0, 1) over B = 24 bits, the optima a*_t a
common base with f bits flipped. 600 evaluations together, 600 for each task alone, 600 split between the tasks, the
best of 600 random masks; Hamming distance of the answers to the optima of the noiseless reward. Then on noisy digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import micro_data, spread
from archipel.data.multitask import MultiTaskDataset, label_tasks
from archipel.nets.masked_trunk import MaskedNet, MaskedTrunk, WithMask
from archipel.search.differentiable.fbnetv5 import FBNetV5
from archipel.search.differentiable.mask_policies import MaskPolicies
from archipel.search.multitask import measure_tasks, train_tasks

B, N, EVALUATIONS = 24, 20, 600
FLIPS, COUNTS = (0, 4, 8), (3, 6)
C, UNITS, EPOCHS, RETRAIN, RANDOM_MASKS = 8, 4, 30, 12, 8
JOINT, SIMPLE, ALONE, SHARED_BUDGET, RANDOM = "together", "together, simple weights", "each alone", "split", "random"


# --- synthetic rewards ----------------------------------------------------------------------------------------------


def optima(T: int, flips: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed * 1000 + flips)
    targets = (torch.rand(B, generator=g) < 0.5).repeat(T, 1)
    for t in range(T):
        targets[t, torch.randperm(B, generator=g)[:flips]] ^= True
    return targets


def rewards(masks: Tensor, targets: Tensor, g: torch.Generator) -> Tensor:
    """``[N, T]``."""
    a = masks.double()
    wrong = (masks[:, None] != targets[None]).double().sum(-1)
    noise = 0.05 * torch.randn(wrong.shape, generator=g, dtype=torch.float64)
    return -wrong / B - 0.3 * a.sum(-1, keepdim=True) / B + noise


def learnt(targets: Tensor, evaluations: int, weighting: str, seed: int) -> Tensor:
    """Modes after so many evaluations ``[T, B]``."""
    g = torch.Generator().manual_seed(seed)
    policies, steps = MaskPolicies(len(targets), B, weighting=weighting), evaluations // N
    for step in range(steps):
        masks, samplers = policies.sample(N, g)
        policies.step(masks, samplers, rewards(masks, targets, g), step / steps)
    return policies.modes()


def distance(arm: str, T: int, flips: int, seed: int) -> float:
    """Mean Hamming distance of an arm's answers to the best masks."""
    targets = optima(T, flips, seed)
    if arm == RANDOM:
        g = torch.Generator().manual_seed(seed)
        masks = torch.rand(EVALUATIONS, B, generator=g) < 0.5
        answers = masks[rewards(masks, targets, g).argmax(0)]
    elif arm in (JOINT, SIMPLE):
        answers = learnt(targets, EVALUATIONS, "balance" if arm == JOINT else "simple", seed)
    else:
        budget = EVALUATIONS if arm == ALONE else EVALUATIONS // T
        answers = torch.cat([learnt(targets[t : t + 1], budget, "balance", seed + t) for t in range(T)])
    return float((answers != targets).double().sum(-1).mean())  # 0.3 < 1: the targets are the optima


# --- digits ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def data() -> MultiTaskDataset:
    return label_tasks(micro_data(), ["digit", "parity", "upper"])


def make() -> MaskedNet:
    return MaskedNet(MaskedTrunk(1, C, UNITS), {t.name: nn.Linear(2 * C, t.classes) for t in data().tasks})


def costs() -> Tensor:
    """Multiply-accumulates of each block: 64 positions at full resolution, 16 at half."""
    return torch.tensor([9.0 * C * C * (64 if b % 2 == 0 else 16) for b in range(2 * UNITS)])


@cache
def retrained(mask: tuple[bool, ...], seed: int) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = WithMask(make(), torch.tensor(mask))
    train_tasks(net, data(), RETRAIN, 40, 0.05, seed)
    return measure_tasks(net, data().open_test("claim"), data().tasks)


@lru_cache(maxsize=4)
def searched(seed: int) -> tuple[dict[str, tuple[bool, ...]], float]:
    method = FBNetV5(EPOCHS)
    found = method.search(make, costs(), data().without_test(), seed)
    cost = float(np.mean([method.cost(m) for m in found.masks.values()]))
    return {t: tuple(m.tolist()) for t, m in found.masks.items()}, cost


def matched(share: float, seed: int) -> list[tuple[bool, ...]]:
    """Random masks whose cost is within a tenth of a share."""
    g, out, c = torch.Generator().manual_seed(seed), [], costs() / costs().sum()
    while len(out) < RANDOM_MASKS:
        mask = torch.rand(2 * UNITS, generator=g) < torch.rand((), generator=g)
        if abs(float((c * mask).sum()) - share) <= 0.1:
            out.append(tuple(mask.tolist()))
    return out


def digits(arm: str, seed: int) -> dict[str, float]:
    masks, cost = searched(seed)
    if arm == JOINT:
        return {"digits test": float(np.mean([retrained(m, seed)[t] for t, m in masks.items()])), "digits cost": cost}
    if arm == RANDOM:
        found = [float(np.mean(list(retrained(m, seed).values()))) for m in matched(cost, seed)]
        return {"digits test": float(np.mean(found)), "digits cost": cost}
    return {}


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    torch.set_num_threads(1)
    figures = {f"T={T} f={f}": distance(arm, T, f, seed) for T in COUNTS for f in FLIPS}
    return Measurement(0.0, figures | (digits(arm, seed) if seed < 3 else {}))  # nothing is tuned


# --- checks ---------------------------------------------------------------------------------------------------------


def far_better_than_split(t: Table) -> tuple[bool, str]:
    """Less than half the distance, for every number of tasks and of flipped bits."""
    cells = [f"T={T} f={f}" for T in COUNTS for f in FLIPS]
    text = "; ".join(f"{c}: {t.mean(JOINT, c):.2f}, {t.mean(SHARED_BUDGET, c):.2f}" for c in cells)
    return all(t.mean(JOINT, c) < 0.5 * t.mean(SHARED_BUDGET, c) for c in cells), text


def close_to_alone(t: Table) -> tuple[bool, str]:
    """Within one bit of the runs that spend as much on each task, where the optima are equal or nearly so."""
    cells = [f"T={T} f={f}" for T in COUNTS for f in FLIPS[:2]]
    text = "; ".join(f"{c}: {spread(t, JOINT, c)}, {spread(t, ALONE, c)}" for c in cells)
    return all(t.mean(JOINT, c) <= t.mean(ALONE, c) + 1.0 for c in cells), text


def worse_as_tasks_part(t: Table) -> tuple[bool, str]:
    text = "; ".join(", ".join(spread(t, JOINT, f"T={T} f={f}") for f in FLIPS) for T in COUNTS)
    return all(t.mean(JOINT, f"T={T} f={FLIPS[-1]}") >= t.mean(JOINT, f"T={T} f=0") for T in COUNTS), text


def balance_is_better(t: Table) -> tuple[bool, str]:
    cells = [f"T={T} f={f}" for T in COUNTS for f in FLIPS[1:]]
    text = "; ".join(f"{c}: {t.mean(JOINT, c):.2f}, {t.mean(SIMPLE, c):.2f}" for c in cells)
    return all(t.mean(JOINT, c) <= t.mean(SIMPLE, c) for c in cells), text


def beats_random(t: Table) -> tuple[bool, str]:
    cells = [f"T={T} f={f}" for T in COUNTS for f in FLIPS]
    text = "; ".join(f"{c}: {t.mean(JOINT, c):.2f}, {t.mean(RANDOM, c):.2f}" for c in cells)
    return all(t.mean(JOINT, c) < t.mean(RANDOM, c) for c in cells), text


def digits_above_matched(t: Table) -> tuple[bool, str]:
    """Over the three seeds with networks."""
    pair = [[f["digits test"] for f in t.figures[a] if "digits test" in f] for a in (JOINT, RANDOM)]
    cost = [f["digits cost"] for f in t.figures[JOINT] if "digits cost" in f]
    a, b = (np.array(v) for v in pair)
    texts = [f"{v.mean():.4f} ± {v.std(ddof=1):.4f}" for v in (a, b)]
    return a.mean() > b.mean(), f"{texts[0]} against {texts[1]} at {np.mean(cost):.2f} of the cost"


CLAIM = Claim(
    slug="fbnetv5",
    statement="With importance sampling one run searches architectures for several tasks at the cost of one.",
    scale=f"Synthetic rewards over {B} bits, {EVALUATIONS} evaluations, 3 and 6 tasks; three tasks on noisy digits "
    f"(400/400/997) with {2 * UNITS} blocks, {EPOCHS} epochs, on the first three seeds.",
    arms=[
        ClaimArm(JOINT, "method"),
        ClaimArm(SIMPLE, "rival"),
        ClaimArm(ALONE, "reference"),
        ClaimArm(SHARED_BUDGET, "untreated"),
        ClaimArm(RANDOM, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("Much closer to the optima than with the budget split between the tasks", far_better_than_split),
        Check("Close to the full budget for each task alone, where the optima are close", close_to_alone),
        Check("Closer than the best of as many random masks", beats_random),
        Check("Worse as the optima part", worse_as_tasks_part, False),
        Check("The balance heuristic is at least as good as simple weights", balance_is_better, False),
        Check("Digits: better than random masks of equal cost", digits_above_matched, False),
    ],
    seeds=10,
    code=("archipel.search.differentiable.mask_policies", "archipel.nets.masked_trunk", "archipel.search.multitask"),
)
