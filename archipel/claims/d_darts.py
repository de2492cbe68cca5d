"""Claim: cells that are searched one by one become different, and the networks are better than of one shared cell.

Heuillet, Tabia, Arioui, Youcef-Toumi. D-DARTS: Distributed Differentiable Architecture Search. 2021.
https://arxiv.org/abs/2108.09306

Four searches by gates in a space of three cells: with one cell for all (FairDARTS), and with cells of their own without
ablation, with the ablation reported (as the reference code has it: a number without a gradient), and with the ablation
scaling each cell's gradient. All read the network off by the same threshold. Distances between the cells of a network
weigh operations by the validation accuracy of the network that has nothing else. Random networks have two inputs a
node, with a random operation each. Nothing is tuned.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from random import Random
from typing import Any

import numpy as np
import torch

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import RANDOM_CELLS, RECIPE, clearly_above, micro_data, searched, spread
from archipel.core.decision import Arch
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable.d_darts import d_darts
from archipel.search.differentiable.nested_cells import cell_matrix, cells_of, hausdorff
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import evaluate, train
from archipel.spaces.subsets import MicroSubsets

EPOCHS, CELLS, THRESHOLD = 12, 3, 0.85
OPS = ("skip", "conv1x1", "conv3x3", "avgpool3x3")
EDGES = [(f"n{j}", i) for j in (1, 2, 3) for i in range(j)]
SCHEDULE = Schedule(EPOCHS, 0, 40, alpha_lr=0.03)
SHARED, OFF, REPORTED, GRADIENT = "one cell for all", "no ablation", "ablation reported", "ablation in the gradient"
RANDOM = "random"
ABLATION = {SHARED: "off", OFF: "off", REPORTED: "reported", GRADIENT: "gradient"}


@cache
def space(tie: str = "cell") -> MicroSubsets:
    return MicroSubsets((1, 8, 8), 10, cells=CELLS, ops=OPS, tie=tie)


def all_data() -> Dataset:
    """Training and validation images as one set, which the search halves."""
    data = micro_data().without_test()
    both = Split(torch.cat([data.train.x, data.val.x]), torch.cat([data.train.y, data.val.y]))
    return Dataset(data.name, both, data.val, None, data.task, data.classes)


def retrained(cells: Sequence[Mapping[str, Sequence[str]]], seed: int) -> tuple[float, float]:
    """Validation and test accuracy of a network of certain cells after training from scratch."""
    data = micro_data()
    arch = space().from_pairs({f"cell{k}.{n}": ps for k, cell in enumerate(cells) for n, ps in cell.items()})
    net = space().build(arch, seed)
    train(net, data.train, data.task, RECIPE, seed)
    val = evaluate(net, data.val, data.task)["accuracy"]
    return val, evaluate(net, data.open_test("claim"), data.task)["accuracy"]


@cache
def operation_accuracy() -> tuple[float, ...]:
    """Validation accuracy of the network that holds one operation on every edge, for each operation."""
    return tuple(retrained([{f"n{j}": [f"{op}<{i}" for i in range(j)] for j in (1, 2, 3)}] * CELLS, 0)[0] for op in OPS)


def mean_distance(cells: Sequence[Mapping[str, Sequence[str]]]) -> float:
    """Mean Hausdorff distance over the pairs of cells of a network."""
    matrices = [cell_matrix(c, EDGES, OPS) for c in cells]
    return float(np.mean([hausdorff(a, b, operation_accuracy()) for a, b in itertools.combinations(matrices, 2)]))


def random_cells(rng: Random) -> list[dict[str, list[str]]]:
    def node(j: int) -> list[str]:
        return [f"{rng.choice(OPS)}<{i}" for i in sorted(rng.sample(range(j), min(2, j)))]

    return [{f"n{j}": node(j) for j in (1, 2, 3)} for _ in range(CELLS)]


def found_cells(arch: Arch, tie: str) -> list[dict[str, list[str]]]:
    cells = cells_of(space(tie).pairs(arch))
    return cells * CELLS if tie == "kind" else cells


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    torch.set_num_threads(1)
    if arm == RANDOM:
        rng = Random(seed)
        drawn = [random_cells(rng) for _ in range(RANDOM_CELLS)]
        val, test = np.mean([retrained(cells, seed) for cells in drawn], 0).tolist()
        return Measurement(val, {"test": test, "distance": float(np.mean([mean_distance(c) for c in drawn]))})
    tie = "kind" if arm == SHARED else "cell"
    began = time.thread_time()
    search, arch = searched(
        d_darts(ABLATION[arm], threshold=THRESHOLD, schedule=SCHEDULE), space(tie), all_data(), seed
    )
    seconds = time.thread_time() - began
    state = search.state
    assert state is not None
    gates = torch.cat(list(state.mixture_weights().values())).detach()
    cells = found_cells(arch, tie)
    val, test = retrained(cells, seed)
    figures = {
        "test": test,
        "distance": mean_distance(cells),
        "decided": float(((gates <= 1 - THRESHOLD) | (gates >= THRESHOLD)).double().mean()),
        "operations": float(sum(len(ps) for cell in cells for ps in cell.values())),
        "gap": search.log[-1]["gap"],
        "ms": 1e3 * seconds / (EPOCHS * state.steps_per_epoch),
        "gates": float(gates @ torch.arange(1.0, len(gates) + 1)),  # tells results apart
    }
    return Measurement(val, figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def cells_differ(arm: str, t: Table) -> tuple[bool, str]:
    """With every seed."""
    return bool((t.values(arm, "distance") > 0).all()), spread(t, arm, "distance")


def reporting_changes_nothing(t: Table) -> tuple[bool, str]:
    pairs = [(t.values(REPORTED, f), t.values(OFF, f)) for f in ("gates", "test")]
    return all((a == b).all() for a, b in pairs), "; ".join(f"{a.tolist()} and {b.tolist()}" for a, b in pairs)


def a_gradient_changes_the_gates(t: Table) -> tuple[bool, str]:
    a, b = t.values(GRADIENT, "gates"), t.values(OFF, "gates")
    return bool((a != b).all()), f"{a.tolist()} and {b.tolist()}"


def higher(arm: str, other: str, t: Table) -> tuple[bool, str]:
    """In the mean."""
    return t.mean(arm, "test") > t.mean(other, "test"), f"{spread(t, arm, 'test')}, {spread(t, other, 'test')}"


def above_random(arm: str, t: Table) -> tuple[bool, str]:
    return clearly_above(t, arm, RANDOM, "test")


def mostly_decided(t: Table) -> tuple[bool, str]:
    return t.mean(GRADIENT, "decided") > 0.5, ", ".join(spread(t, a, "decided") for a in ABLATION)


CLAIM = Claim(
    slug="d-darts",
    statement="Cells with architecture parameters and losses of their own become different from each other, and the "
    "networks are better than those of one shared cell.",
    scale=f"Three cells of four nodes, {', '.join(OPS)}, C = 8, noisy digits: searched for {EPOCHS} epochs on "
    f"400 + 400 images, retrained for 12 on 400, tested on 997; {RANDOM_CELLS} random networks a seed.",
    arms=[
        ClaimArm(GRADIENT, "method"),
        ClaimArm(REPORTED, "method"),
        ClaimArm(OFF, "method"),
        ClaimArm(SHARED, "untreated"),
        ClaimArm(RANDOM, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("Cells searched without ablation differ", partial(cells_differ, OFF)),
        Check("Cells searched with ablation in the gradient differ", partial(cells_differ, GRADIENT)),
        Check("An ablation that is only reported changes nothing", reporting_changes_nothing),
        Check("One in the gradient changes the gates", a_gradient_changes_the_gates),
        Check("Cells of their own are better than one for all", partial(higher, OFF, SHARED), False),
        Check("So are those with ablation in the gradient", partial(higher, GRADIENT, SHARED), False),
        Check("Ablation in the gradient is better than none", partial(higher, GRADIENT, OFF), False),
        Check("Cells of their own are clearly above random ones", partial(above_random, OFF), False),
        Check("Most gates are beyond the threshold either way", mostly_decided, False),
    ],
    code=(
        "archipel.core.subset",
        "archipel.search.differentiable.nested_cells",
        "archipel.search.differentiable.thresholds",
        "archipel.spaces.subsets",
    ),
)
