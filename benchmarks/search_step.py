"""A differentiable search step: against a plain loop over all operations, on one live path, and reversible in depth.

*Plain* is DARTS as one would write it down: every option of every edge computed, the zero operation too, summed with
its weight. Same supernet, same batches, first order. *One path* is a weight step under one-hot weights, as searches by
sampling take it. *Reversible* is a stack of two-split residual blocks, forwards and backwards, with activations
reconstructed, checkpointed layer by layer, or kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

import torch
from measure import Figures, side_by_side
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from archipel.core.choice import Blend, Choice, Inputs
from archipel.data.dataset import Dataset, Split
from archipel.nets.reversible import ReversibleStack
from archipel.search.differentiable.arch_gradient import FirstOrder
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.state import SearchState
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace

SHAPE, CLASSES, C, LAYERS, BATCH, ROUNDS = (3, 32, 32), 10, 16, 5, 4, 5
DEPTHS, WIDTH, LENGTH = (2, 4, 8, 16), 64, 256


class Plain(Blend):
    """Every option computed and summed."""

    def choose(self, choice: Choice, *args: Any) -> Any:
        return sum(w * option(*args) for w, option in zip(self.weights[choice.decision.name], choice.blended))

    def gather(self, inputs: Inputs, states: Sequence[Tensor]) -> Tensor:
        return sum(edge(state) for edge, state in zip(inputs.edges, states))  # type: ignore[return-value]


def make_state() -> SearchState:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * CLASSES, *SHAPE, generator=generator)
    split = Split(x, torch.arange(len(x)) % CLASSES)
    search = darts(schedule=Schedule(epochs=50, batch_size=BATCH))
    search.setup(Problem(DartsSpace(SHAPE, CLASSES, C=C, layers=LAYERS)))
    state = search.start(Context(Dataset("random", split, split, None, "classification", CLASSES), Recipe()))
    state.supernet.train()
    return state


def batches(state: SearchState) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return tuple((h.x[:BATCH], h.y[:BATCH]) for h in state.halves)  # type: ignore[return-value]


def our_step(state: SearchState) -> None:
    train, val = batches(state)
    FirstOrder().update(state, train, val)


def plain_step(state: SearchState) -> None:
    """The same two updates by hand."""
    train, val = batches(state)
    for (x, y), optimizer in ((val, state.alpha_optimizer), (train, state.weight_optimizer)):
        state.supernet.decider = Plain({n: torch.softmax(a, 0) for n, a in state.logits.items()}, None)  # type: ignore[arg-type]
        optimizer.zero_grad()
        nn.functional.cross_entropy(state.supernet(x), y).backward()
        if optimizer is state.weight_optimizer:
            nn.utils.clip_grad_norm_(state.weights.values(), state.schedule.clip)
        optimizer.step()


def one_path(state: SearchState) -> dict[str, Tensor]:
    return state.parameters.one_hot(state.supernet.space.sample(Random(0)))


def path_step(state: SearchState, mixture: dict[str, Tensor] | None) -> None:
    state.weight_step(batches(state)[0], mixture)


def kept(state: SearchState, mixture: dict[str, Tensor]) -> int:
    x = batches(state)[0][0]
    return saved_bytes(lambda: state.output(x, mixture), state.supernet)


class Node(nn.Module):
    """ReLU, two linear layers and a norm on half of the features."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        self.body = nn.Sequential(nn.LayerNorm(half), nn.Linear(half, 4 * half), nn.ReLU(), nn.Linear(4 * half, half))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.body(inputs[0])


def stacks(depth: int, reconstruct: bool) -> ReversibleStack:
    torch.manual_seed(0)
    return ReversibleStack([[Node(), Node()] for _ in range(depth)], WIDTH, 2, reconstruct)


def stack_bytes(stack: ReversibleStack, x: Tensor) -> int:
    return saved_bytes(lambda: stack(x), stack)


def checkpointed(stack: ReversibleStack) -> Callable[[Tensor], Tensor]:
    singles = [ReversibleStack([list(layer.nodes)], WIDTH, 2, False) for layer in stack.layers]  # type: ignore[arg-type]

    def forward(x: Tensor) -> Tensor:
        for single in singles:
            x = checkpoint(single, x, use_reentrant=False)  # type: ignore[assignment]
        return x

    return forward


def backwards(forward: Callable[[Tensor], Tensor], x: Tensor) -> None:
    forward(x).square().mean().backward()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    state = make_state()
    full, path = state.mixture_weights(), one_path(state)
    settings = {"input": SHAPE, "cells": LAYERS, "C": C, "batch": BATCH, "threads": 1, "depths": DEPTHS, "d": WIDTH}
    figures = Figures("search_step", __doc__.splitlines()[0], settings)
    x = torch.randn(16, LENGTH, WIDTH, requires_grad=True)
    arms: dict[str, Callable[[], Any]] = {
        "DARTS step": partial(our_step, state),
        "DARTS step, plain loop": partial(plain_step, state),
        "weight step, all options": partial(path_step, state, None),
        "weight step, one path": partial(path_step, state, path),
    }
    deep = stacks(DEPTHS[-1], True)
    forwards = {"reversible": deep, "kept": stacks(DEPTHS[-1], False), "checkpointed": checkpointed(deep)}
    arms |= {f"16 layers, {name}": partial(backwards, f, x) for name, f in forwards.items()}
    seconds, _ = side_by_side(arms, ROUNDS)
    for name, spent in seconds.items():
        figures.row(name, spent, "s")
    sizes, plain = ({d: stack_bytes(stacks(d, reconstruct), x) for d in DEPTHS} for reconstruct in (True, False))
    for d in DEPTHS:
        figures.row(f"{d} layers, reversible: kept", [sizes[d] / 2**20], "MiB")
        figures.row(f"{d} layers, ordinary: kept", [plain[d] / 2**20], "MiB")

    def ratio(a: str, b: str) -> list[float]:
        return [p / q for p, q in zip(seconds[a], seconds[b])]

    figures.ratio("seconds of a DARTS step / plain loop", ratio("DARTS step", "DARTS step, plain loop"), "<= 1.05")
    figures.ratio(
        "seconds of a weight step, one path / all", ratio("weight step, one path", "weight step, all options")
    )
    figures.ratio("bytes of a weight step, one path / all", [kept(state, path) / kept(state, full)], "<= 0.5")
    figures.ratio("bytes, 16 reversible layers / 2", [sizes[16] / sizes[2]], "<= 1.05")
    figures.ratio("bytes, 16 ordinary layers / 2", [plain[16] / plain[2]])
    figures.ratio("seconds, reversible / kept", ratio("16 layers, reversible", "16 layers, kept"))
    figures.ratio("seconds, reversible / checkpointed", ratio("16 layers, reversible", "16 layers, checkpointed"))
    figures.save()


if __name__ == "__main__":
    main()
