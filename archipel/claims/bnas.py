"""Claim: measuring the operations that α likes least, and dropping the worst, finds good one-bit cells.

Chen, Zhang, Liu, Liu, Doermann, Ji, Guo. Binarized Neural Architecture Search. 2019. https://arxiv.org/abs/1911.10862

Every convolution but the first has one bit for each weight and input. The untreated arm trains the same supernet with
partial channels, by the same schedule, and takes the largest α. Every cell is trained from scratch by the same recipe;
that of the method also in full precision. Nothing is tuned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache, partial
from random import Random
from typing import Any

import torch

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import ALL_CONV, RANDOM_CELLS, clearly_above, micro_data, searched, spread
from archipel.core.decision import Arch
from archipel.search.differentiable.bnas import bnas
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.pc_darts import PartialChannels
from archipel.search.differentiable.performance_drop import PerformanceDrop
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.binary_operations import weight_bits
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.nb201_codec import Genome, NB201Codes, arch_of, genome_of

BNAS, ARGMAX, RANDOM, CONV = "BNAS", "argmax", "random", "all binary conv3x3"
K, C = 4, 16
# Four epochs for each of the four options that are dropped.
SCHEDULE = Schedule(epochs=16, batch_size=40, lr=1e-2, lr_min=0.0, weight_decay=0.0, alpha_lr=9e-3, optimizer="adam")
RECIPE = Recipe(epochs=15, batch_size=40, optimizer="adamw", lr=1e-2, weight_decay=0.0)


def _space(operations: str) -> MicroNB201:
    return MicroNB201((1, 8, 8), 10, C=C, operations=operations)


@cache
def _retrained(genome: Genome, operations: str, seed: int) -> tuple[float, float, float]:
    """Validation and test accuracy of a cell after training from scratch, and its weights' bits."""
    data = micro_data()
    net = _space(operations).build(arch_of(genome), seed)
    train(net, data.train, data.task, RECIPE, seed)
    val = evaluate(net, data.val, data.task)["accuracy"]
    return val, evaluate(net, data.open_test("claim"), data.task)["accuracy"], float(weight_bits(net))


def retrained(arch: Arch, seed: int, operations: str = "binary") -> tuple[float, float, float]:
    return _retrained(genome_of(arch), operations, seed)


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What an arm's cell reaches in one bit, what it stores, and what finding it took."""
    torch.set_num_threads(1)
    if arm == RANDOM:
        rng = Random(seed)
        found = [retrained(NB201Codes().sample(rng), seed) for _ in range(RANDOM_CELLS)]
        val, test, bits = torch.tensor(found, dtype=torch.float64).unbind(1)
        figures = {"test": float(test.mean()), "between cells": float(test.std()), "bits": float(bits.mean())}
        return Measurement(float(val.mean()), figures)
    if arm == CONV:
        val, test, bits = retrained(ALL_CONV, seed)
        return Measurement(val, {"test": test, "bits": bits})
    plain = DifferentiableSearch(mix=PartialChannels(K, weigh_edges=False), schedule=SCHEDULE)
    began = time.thread_time()
    search, cell = searched(bnas(K, schedule=SCHEDULE) if arm == BNAS else plain, _space("binary"), micro_data(), seed)
    figures = {"seconds": time.thread_time() - began}
    val, test, bits = retrained(cell, seed)
    figures |= {"test": test, "bits": bits, "conv": float(sum(op.startswith("conv") for op in cell.values()))}
    if isinstance(search.selection, PerformanceDrop):
        figures["networks"] = float(search.selection.networks)
        _, twin, twin_bits = retrained(cell, seed, "plain")
        figures |= {"twin test": twin, "twin bits": twin_bits}
    return Measurement(val, figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def fewer_than_one_an_edge_and_option(t: Table) -> tuple[bool, str]:
    """Perturbation of single options would take 6 edges times 5 options."""
    n = t.mean(BNAS, "networks")
    return n == 24.0, f"{n:.0f} networks (T = 3, 5 to 2 options), whatever the number of edges; 6 x 5 = 30 options"


def better(arm: str, other: str, t: Table) -> tuple[bool, str]:
    return t.mean(arm, "test") >= t.mean(other, "test"), f"{spread(t, arm, 'test')}, {spread(t, other, 'test')}"


def bits_are_few(t: Table) -> tuple[bool, str]:
    """By at least a factor of 4: the first convolution, the classifier and the norms stay in full precision."""
    ours, twin = t.mean(BNAS, "bits"), t.mean(BNAS, "twin bits")
    conv, random = t.mean(CONV, "bits"), t.mean(RANDOM, "bits")
    text = f"{ours:.0f} bits, in full precision {twin:.0f}; random {random:.0f}, all conv3x3 {conv:.0f}"
    return twin >= 4 * ours, text


def bits_cost_accuracy(t: Table) -> tuple[bool, str]:
    gap = t.mean(BNAS, "twin test") - t.mean(BNAS, "test")
    return gap > 0, f"{spread(t, BNAS, 'twin test')} in full precision ({gap:+.4f})"


def faster(t: Table) -> tuple[bool, str]:
    ours, theirs = t.mean(BNAS, "seconds"), t.mean(ARGMAX, "seconds")
    return ours < theirs, f"{ours:.1f} s with all measurements, {theirs:.1f} s for the largest α"


CLAIM = Claim(
    slug="bnas",
    statement="In a space of one-bit convolutions, dropping the operations that measure worst finds good cells where "
    "the largest architecture weights do not.",
    scale=f"Micro-NB201 in one bit on noisy digits (400/400/997), C = {C}, K = {K}, {SCHEDULE.epochs} epochs of "
    f"search, retrained for {RECIPE.epochs}; 8 random cells a seed.",
    arms=[
        ClaimArm(BNAS, "method"),
        ClaimArm(ARGMAX, "untreated"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("BNAS is clearly above the mean random cell", lambda t: clearly_above(t, BNAS, RANDOM, "test")),
        Check("It measures as many networks as the formula says", fewer_than_one_an_edge_and_option),
        Check("Its cells store at most a quarter of the bits of full precision", bits_are_few),
        Check("BNAS is at least as good as the largest α", partial(better, BNAS, ARGMAX), False),
        Check("The largest α is clearly above random", lambda t: clearly_above(t, ARGMAX, RANDOM, "test"), False),
        Check("BNAS is at least as good as binary convolutions everywhere", partial(better, BNAS, CONV), False),
        Check("One bit costs accuracy", bits_cost_accuracy, False),
        Check("The search is faster than without measuring and dropping", faster, False),
    ],
    code=(
        "archipel.claims.micro",
        "archipel.search.differentiable.performance_drop",
        "archipel.spaces.binary_operations",
    ),
)
