"""What claims share that are checked on short chains of MBConv layers: retraining, random chains, and their costs.

Data are those of :mod:`archipel.claims.micro`. A chain is trained from scratch by the same recipe whatever found it,
and tested once.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch

from archipel.claims.micro import RECIPE, micro_data
from archipel.core.decision import Arch
from archipel.search.training import evaluate, train
from archipel.spaces.mbconv import MBConvSpace

RANDOM_CHAINS = 8
NEAR = 0.1  # relative difference of MACs that still counts as matched
_done: dict[tuple[str, int], tuple[float, float]] = {}


def retrained(space: MBConvSpace, arch: Arch, seed: int) -> tuple[float, float]:
    """Validation and test accuracy of a chain after training from scratch; each is trained once in a process."""
    key = (f"{space.macro} {space.canonical(arch)}", seed)
    if key not in _done:
        data = micro_data()
        net = space.build(arch, seed)
        train(net, data.train, data.task, RECIPE, seed)
        val = evaluate(net, data.val, data.task)["accuracy"]
        _done[key] = val, evaluate(net, data.open_test("claim"), data.task)["accuracy"]
    return _done[key]


def random_chains(space: MBConvSpace, seed: int, macs: float | None = None, draws: int = 20_000) -> list[Arch]:
    """Chains drawn at random; of about so many MACs, if given: the nearest where too few are within a tenth."""
    rng = Random(seed)
    if macs is None:
        return [space.sample(rng) for _ in range(RANDOM_CHAINS)]
    cost = macs_of(space)
    found, spare = [], []
    for _ in range(draws):
        arch = space.sample(rng)
        distance = abs(cost(arch) / max(macs, 1.0) - 1)
        if distance <= NEAR:
            found.append(arch)
        spare.append((distance, len(spare), arch))
        if len(found) == RANDOM_CHAINS:
            return found
    return [arch for _, _, arch in sorted(spare)[:RANDOM_CHAINS]]


def macs_of(space: MBConvSpace) -> Callable[[Arch], float]:
    """MACs of the layers that choose, which add up over layers."""
    base = {d.name: d.options[0] for d in space.decisions}  # type: ignore[union-attr]
    first = space.cost.macs(base)
    table = {
        d.name: {o: space.cost.macs({**base, d.name: o}) - first for o in d.options}  # type: ignore[union-attr]
        for d in space.decisions
    }
    return lambda arch: first + sum(table[n][o] for n, o in arch.items())


def mean_of_retrained(space: MBConvSpace, archs: list[Arch], seed: int) -> dict[str, float]:
    """Mean validation and test accuracy and MACs, and the deviation of the test accuracy between chains."""
    val, test = torch.tensor([retrained(space, a, seed) for a in archs], dtype=torch.float64).unbind(1)
    macs = sum(space.cost.macs(a) for a in archs) / len(archs)
    return {"val": float(val.mean()), "test": float(test.mean()), "between": float(test.std()), "kMACs": macs / 1e3}
