"""A search step of PC-DARTS for K = 1, 2 and 4: bytes kept for the backward pass and seconds, against plain DARTS.

The paper's searched network (Xu et al. 2019, https://arxiv.org/abs/1907.05737): 8 cells, 16 channels, 32x32 images. A
step is one update of the architecture on one batch and one of the weights on another, of first order, from the search's
own loop. Equal batch: all on the same small batch. Equal memory: K times the batch, seconds per example of it.

Bytes are those of the activations that autograd keeps, for the whole network and for the mixed operations alone; the
rest of a cell, and the outputs that a node weighs, do not shrink with K.
"""

from __future__ import annotations

from functools import partial

import torch
from measure import Figures, side_by_side

from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mixture
from archipel.search.differentiable.pc_darts import PartialChannelEdge, pc_darts
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.state import SearchState
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace

SHAPE, CLASSES, C, LAYERS, BATCH, ROUNDS = (3, 32, 32), 10, 16, 8, 4, 5
PARTS = (1, 2, 4)


def make_state(space: DartsSpace, search: DifferentiableSearch, data: Dataset) -> SearchState:
    search.setup(Problem(space))
    state = search.start(Context(data, Recipe()))
    state.supernet.train()
    return state


def random_images(examples: int) -> Dataset:
    """Values do not change what a step costs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, *SHAPE, generator=generator)
    split = Split(x, torch.arange(examples) % CLASSES)
    return Dataset("random", split, split, None, "classification", CLASSES)


def step(search: DifferentiableSearch, state: SearchState, batch: int) -> None:
    """One update of the architecture and one of the weights."""
    ours, theirs = state.halves
    search.arch_gradient.update(state, (ours.x[:batch], ours.y[:batch]), (theirs.x[:batch], theirs.y[:batch]))


def kept_bytes(state: SearchState, batch: int) -> int:
    """Of the whole network, in the forward pass of an architecture update."""
    half = state.halves[1]
    return saved_bytes(partial(state.val_loss, (half.x[:batch], half.y[:batch])), state.supernet)


def mixed_bytes(state: SearchState, batch: int) -> int:
    """Of one stride-1 edge's operations alone, on the channels that it mixes."""
    edge = next(m for m in state.supernet.modules() if isinstance(m, PartialChannelEdge))
    x = torch.randn(batch, C // edge.K, *SHAPE[1:], requires_grad=True)
    state.supernet.decider = Mixture(state.mixture_weights())
    return saved_bytes(lambda: edge.inner(x), edge)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    schedule = Schedule(epochs=50, warmup=0, batch_size=BATCH)
    space = DartsSpace(SHAPE, CLASSES, C=C, layers=LAYERS)
    data = random_images(2 * max(PARTS) * BATCH + 2 * CLASSES)
    searches = {"DARTS": darts(schedule=schedule), **{f"K={K}": pc_darts(K, schedule=schedule) for K in PARTS}}
    states = {name: make_state(space, search, data) for name, search in searches.items()}
    batches = dict.fromkeys(searches, BATCH) | {f"K={K}, {K}x batch": K * BATCH for K in PARTS if K > 1}
    base = {name: name.partition(",")[0] for name in batches}
    arms = {name: partial(step, searches[base[name]], states[base[name]], batches[name]) for name in batches}

    settings = {"input": SHAPE, "cells": LAYERS, "C": C, "batch": BATCH, "threads": 1, "order": 1}
    figures = Figures("pc_darts_step", __doc__.splitlines()[0], settings)
    kept = {name: kept_bytes(states[base[name]], batch) for name, batch in batches.items()}
    mixed = {f"K={K}": mixed_bytes(states[f"K={K}"], BATCH) for K in PARTS}
    assert kept["K=1"] > kept["K=2"] > kept["K=4"], f"memory does not fall with K: {kept}"
    seconds, _ = side_by_side(arms, ROUNDS)
    for name, spent in seconds.items():
        figures.row(name, spent, "s/step", kept_mib=round(kept[name] / 2**20, 1), batch=batches[name])
    for name, count in kept.items():
        figures.row(f"{name}: activations kept", [count / 2**20], "MiB")
    for K in PARTS[1:]:
        figures.ratio(f"mixed operations' bytes, K={K} / K=1", [mixed[f"K={K}"] / mixed["K=1"]], f"<= {1.1 / K:.3g}")
        figures.ratio(f"all bytes, K={K} / DARTS", [kept[f"K={K}"] / kept["DARTS"]], "<= 1")
        times = [a / b for a, b in zip(seconds[f"K={K}"], seconds["DARTS"])]
        figures.ratio(f"seconds of a step, K={K} / DARTS, equal batch", times)
        times = [a / b / K for a, b in zip(seconds[f"K={K}, {K}x batch"], seconds["DARTS"])]
        figures.ratio(f"seconds per example, K={K} with {K}x batch / DARTS", times)
    times = [a / b for a, b in zip(seconds["K=1"], seconds["DARTS"])]
    figures.ratio("seconds of a step, K=1 (with weighed edges) / DARTS", times)
    figures.save()


if __name__ == "__main__":
    main()
