"""Claim: tasks that find their own routes through one network do as well as with less sharing, in fewer weights.

Choi, Im. Dynamic Neural Network for Multi-Task Learning Searching across Diverse Network Topologies. 2023.
https://arxiv.org/abs/2303.06856

Three tasks on noisy digits (which digit, odd or even, five or more). One search a seed is reduced to eight and to five
edges a task by flow, by the size of the weights and at random, and measured before and after fine-tuning.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import micro_data, spread
from archipel.cost.model import count_params
from archipel.data.multitask import MultiTaskDataset, label_tasks
from archipel.search.differentiable.dynamic_mtl_topology import DynamicTopology, Trunk
from archipel.search.differentiable.flows import Route, Score, by_flow, by_weight, reduce_route

NODES, REACH, WIDTH = 6, 3, 32
WARMUP, EPOCHS, TUNE = 5, 15, 5
TARGETS = (8, 5)
DRAWS = 8
FLOW, WEIGHT, CHANCE, LOOSE = "flow", "smallest weights", "random edges", "no squeeze"
CHAIN, SINGLE = "hard sharing", "single tasks"


@lru_cache(maxsize=1)
def data() -> MultiTaskDataset:
    return label_tasks(micro_data(), ["digit", "parity", "upper"])


def settings(squeeze: float) -> DynamicTopology:
    return DynamicTopology(TARGETS[0], WARMUP, EPOCHS, TUNE, squeeze=squeeze, kappa=1.0, route_lr=0.05)


@lru_cache(maxsize=4)
def searched(squeeze: float, seed: int) -> DynamicTopology:
    method = settings(squeeze)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method.train(Trunk.perceptron(64, WIDTH, NODES, REACH), data().without_test(), seed)
    return method


def chance(seed: int) -> Score:
    generator = torch.Generator().manual_seed(seed)

    def score(route: Route) -> Tensor:
        return torch.rand(route.gamma_NN.shape, generator=generator)

    return score


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    torch.set_num_threads(1)
    if arm in (CHAIN, SINGLE):
        return _fixed(arm, seed)
    method = searched(0.0 if arm == LOOSE else 2.0, seed)
    routes = [method.route(i, True) for i in range(3)]
    score = {FLOW: by_flow, LOOSE: by_flow, WEIGHT: by_weight, CHANCE: chance(seed)}[arm]
    figures = {"digit depth": routes[0].depth()}
    validation = 0.0
    for target in TARGETS:
        if arm == CHANCE:  # what random deletion costs on the mean; the first of them is trained on
            drawn = [
                {t.name: reduce_route(r, target, score) for t, r in zip(data().tasks, routes)} for _ in range(DRAWS)
            ]
            cuts = [float(np.mean(list(method.measure(data().val, d).values()))) for d in drawn]
            reduced = drawn[0]
        else:
            reduced = {t.name: reduce_route(r, target, score) for t, r in zip(data().tasks, routes)}
            cuts = [float(np.mean(list(method.measure(data().val, reduced).values())))]
        tuned = copy.deepcopy(method)
        tuned.use(reduced)
        tuned.fine_tune(data(), reduced, seed)
        test = tuned.measure(data().open_test("claim"), reduced)
        validation += float(np.mean(list(tuned.measure(data().val, reduced).values())))
        figures |= {
            f"cut {target}": float(np.mean(cuts)),
            f"test {target}": float(np.mean(list(test.values()))),
            f"params {target}": float(count_params(tuned.network)),
        }
    return Measurement(validation, figures)


def _fixed(arm: str, seed: int) -> Measurement:
    """A chain that all tasks share, or one for each task: trained as long as search and fine-tuning together."""
    test, val, params = [], [], 0
    groups = [data().tasks] if arm == CHAIN else [(t,) for t in data().tasks]
    for tasks in groups:
        method = DynamicTopology(tune=WARMUP + EPOCHS + TUNE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = _chain(method, tasks, seed)
        test += list(found[0].values())
        val += list(found[1].values())
        params += count_params(method.network)
    figures = {f"test {target}": float(np.mean(test)) for target in TARGETS}
    return Measurement(float(np.mean(val)), figures | {f"params {t}": float(params) for t in TARGETS})


def _chain(method: DynamicTopology, tasks: Any, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    from archipel.nets.central import CentralNetwork
    from archipel.search.differentiable.flows import band

    trunk = Trunk.perceptron(64, WIDTH, NODES, 1)
    method.tasks, method.allowed = tuple(tasks), band(NODES, 1)
    method.network = CentralNetwork(
        method.allowed, trunk.block, {t.name: trunk.adapter(t) for t in tasks}, {t.name: trunk.head(t) for t in tasks}
    )
    first, last = torch.zeros(NODES), torch.zeros(NODES)
    first[0], last[-1] = 1.0, 1.0
    routes = {t.name: Route(first, last, method.allowed.float()) for t in tasks}
    method.fine_tune(data(), routes, seed)
    return method.measure(data().open_test("claim"), routes), method.measure(data().val, routes)


def flow_beats_chance(t: Table) -> tuple[bool, str]:
    """Before fine-tuning, in the mean over seeds, at both numbers of edges."""
    figures = [f"cut {n}" for n in TARGETS]
    text = "; ".join(f"{f}: {spread(t, FLOW, f)}, {spread(t, CHANCE, f)}" for f in figures)
    return all(t.mean(FLOW, f) > t.mean(CHANCE, f) for f in figures), text


def squeeze_shortens(t: Table) -> tuple[bool, str]:
    return t.mean(FLOW, "digit depth") < t.mean(LOOSE, "digit depth"), ", ".join(
        spread(t, a, "digit depth") for a in (FLOW, LOOSE)
    )


def as_good_in_fewer_weights(t: Table) -> tuple[bool, str]:
    """Not below hard sharing by more than its deviation, with fewer weights than three networks."""
    f, p = f"test {TARGETS[0]}", f"params {TARGETS[0]}"
    holds = t.mean(FLOW, f) >= t.mean(CHAIN, f) - t.std(CHAIN, f) and t.mean(FLOW, p) < t.mean(SINGLE, p)
    return holds, ", ".join(f"{spread(t, a, f)} ({t.mean(a, p):,.0f} weights)" for a in (FLOW, CHAIN, SINGLE))


def flow_beats_weights(t: Table) -> tuple[bool, str]:
    figures = [f"{kind} {n}" for n in TARGETS for kind in ("cut", "test")]
    text = "; ".join(f"{f}: {spread(t, FLOW, f)}, {spread(t, WEIGHT, f)}" for f in figures)
    return all(t.mean(FLOW, f) > t.mean(WEIGHT, f) for f in figures), text


def gains_over_single(t: Table) -> tuple[bool, str]:
    f = f"test {TARGETS[0]}"
    gain = 100 * (t.mean(FLOW, f) / t.mean(SINGLE, f) - 1)
    return gain > 0, f"{gain:+.2f} % relative to networks of their own"


CLAIM = Claim(
    slug="dynamic-mtl-topology",
    statement="Tasks that take routes of their own through one central network do as well as with hard sharing and "
    "need fewer weights than networks of their own; edges of little flow can be deleted.",
    scale=f"Three tasks on noisy digits (400/400/997), {NODES} nodes of width {WIDTH}, edges over up to {REACH}; "
    f"{WARMUP} + {EPOCHS} + {TUNE} epochs; {TARGETS[0]} and {TARGETS[1]} edges a task.",
    arms=[
        ClaimArm(FLOW, "method"),
        ClaimArm(LOOSE, "untreated"),
        ClaimArm(WEIGHT, "rival"),
        ClaimArm(CHANCE, "trivial"),
        ClaimArm(CHAIN, "rival"),
        ClaimArm(SINGLE, "reference"),
    ],
    measure=measure,
    checks=[
        Check("Deleting by flow costs less than deleting at random, before fine-tuning", flow_beats_chance),
        Check("The squeeze loss shortens the route of the digit task", squeeze_shortens),
        Check("As good as hard sharing, in fewer weights than three networks", as_good_in_fewer_weights),
        Check("Deleting by flow is better than by the weights alone", flow_beats_weights, False),
        Check("Better than networks of their own", gains_over_single, False),
    ],
    seeds=5,
    code=("archipel.search.differentiable.flows", "archipel.nets.central"),
)
