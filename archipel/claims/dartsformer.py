"""Claim: with a reversible network, the memory of a differentiable Transformer search does not grow with depth.

Zhao, Dong, Shen, Zhang, Wei, Chen. Memory-Efficient Differentiable Transformer Architecture Search. 2021.
https://arxiv.org/abs/2105.14669

Memory: a searched stack of 2 to 16 two-split layers with all 13 operations, once reconstructed, once by ordinary
backpropagation, once by checkpoints at every layer; the bytes that a forward pass keeps, and the processor time of
forward and backward pass at 16 layers. Task: strings of 12 symbols are to be written backwards, position by position,
by an encoder of two layers; the searched operations, random ones and the Transformer's (attention and feed-forward in
turn), all in the same reversible layers and trained alike from scratch. Nothing is tuned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import clearly_above, searched, spread
from archipel.core.decision import Arch
from archipel.data.dataset import Dataset, Split
from archipel.nets.reversible import ReversibleStack
from archipel.search.differentiable.dartsformer import InverseSqrt, dartsformer
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.reversible_transformer import SearchedStack, reversible_transformer_space

SYMBOLS, LENGTH, TRAIN, VAL, TEST = 10, 12, 3200, 200, 500
RECIPE = Recipe(epochs=4, batch_size=32, lr=1e-2, weight_decay=1e-4, label_smoothing=0.1)  # 400 steps
SEARCH = InverseSqrt(epochs=4, batch_size=32, lr=5e-3, rise=20, alpha_lr=1.5e-2)  # 200 steps of each
RANDOM_ARCHS = 8
DEPTHS, WIDE, LONG, BATCH, TIMED = (2, 4, 8, 16), 64, 32, 16, 3
SEARCHED, BLOCK, RANDOM = "searched", "Transformer block", "random"
FLAT, ORDINARY, CHECKPOINTS = "reconstruction", "ordinary backward", "checkpoints"


# --- memory -----------------------------------------------------------------------------------------------------------


def _stack(depth: int, seed: int) -> tuple[SearchedStack, Callable[[], None]]:
    """The encoder of a search, and a function that seats its mixture."""
    space = reversible_transformer_space((LONG,), 2, d=WIDE, embed=4, layers=2, repeats=depth // 2, dropout=0.1)
    search = DifferentiableSearch()
    search.setup(Problem(space))
    data = Split(torch.zeros(4, LONG, dtype=torch.int64), torch.zeros(4, LONG, dtype=torch.int64))
    state = search.start(Context(Dataset("none", data, data, None, "language", 2), RECIPE, seed=seed))
    (stack,) = [m for m in state.supernet.modules() if isinstance(m, SearchedStack)]
    state.supernet.train()

    def seat() -> None:
        state.output(data.x[:1], state.mixture_weights(training=True))

    return stack, seat


def _checkpointed(stack: ReversibleStack) -> Callable[[Tensor], Tensor]:
    """The usual way to save memory: each layer's input is kept, and the layer computed again."""
    layers = [list(layer.nodes) for layer in stack.layers]  # type: ignore[union-attr]
    single = [ReversibleStack([nodes], stack.width, stack.splits, reconstruct=False) for nodes in layers]

    def compute(x: Tensor) -> Tensor:
        for layer in single:
            x = checkpoint(partial(layer.run, extras=(), seed=None), x, use_reentrant=False)  # type: ignore[assignment]
        return x

    return compute


def _memory(arm: str, seed: int) -> dict[str, float]:
    found, x = {}, torch.randn(BATCH, LONG, WIDE)
    for depth in DEPTHS:
        stack, seat = _stack(depth, seed)
        stack.reconstruct = arm == FLAT
        compute = _checkpointed(stack) if arm == CHECKPOINTS else stack
        seat()
        found[f"kB L={depth}"] = saved_bytes(partial(compute, x.clone().requires_grad_()), stack) / 1e3
    times = []
    for _ in range(TIMED):
        seat()
        began = time.thread_time()
        compute(x.clone().requires_grad_()).sum().backward()
        times.append(time.thread_time() - began)
    return {**found, "ms": 1e3 * float(np.median(times))}


# --- task -------------------------------------------------------------------------------------------------------------


@cache
def _strings() -> Dataset:
    """Random strings and their reversals; the same for all seeds."""
    x = torch.randint(0, SYMBOLS, (TRAIN + VAL + TEST, LENGTH), generator=torch.Generator().manual_seed(0))
    train_, val, test = (Split(part, part.flip(1)) for part in x.split([TRAIN, VAL, TEST]))
    return Dataset("reversal", train_, val, test, "language", SYMBOLS)


def _space() -> ModuleSpace:
    return reversible_transformer_space((LENGTH,), SYMBOLS, d=32, embed=16)


def _trained(arch: Arch, seed: int) -> tuple[float, float]:
    """Token accuracy on validation and test strings after training from scratch."""
    data, net = _strings(), _space().build(arch, seed)
    train(net, data.train, data.task, RECIPE, seed)
    val = evaluate(net, data.val, data.task)["accuracy"]
    return val, evaluate(net, data.open_test("claim"), data.task)["accuracy"]


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """Token accuracy of an arm's networks; or, of a way to go backwards, what it keeps and takes."""
    torch.set_num_threads(1)
    if arm in (FLAT, ORDINARY, CHECKPOINTS):
        return Measurement(0.0, _memory(arm, seed))
    if arm == RANDOM:
        rng = Random(seed)
        pairs = [_trained(_space().sample(rng), seed) for _ in range(RANDOM_ARCHS)]
        val, test = torch.tensor(pairs, dtype=torch.float64).unbind(1)
        return Measurement(float(val.mean()), {"test": float(test.mean()), "between": float(test.std())})
    if arm == BLOCK:
        val, test = _trained({f"enc{i}.g{k}": ("attention", "ffn")[k] for i in (0, 1) for k in (0, 1)}, seed)
        return Measurement(val, {"test": test})
    search, arch = searched(dartsformer(schedule=SEARCH), _space(), _strings(), seed)
    figures = {k: search.log[-1][k] for k in ("mixture", "one_hot", "gap", "entropy")}
    mixing = sum(op == "attention" or op.startswith(("conv", "dynamic")) for op in arch.values())
    val, test = _trained(arch, seed)
    return Measurement(val, {"test": test, **figures, "mix positions": float(mixing)})


# --- checks -----------------------------------------------------------------------------------------------------------


def _kept(t: Table, arm: str) -> list[float]:
    return [t.mean(arm, f"kB L={d}") for d in DEPTHS]


def _kept_text(t: Table) -> str:
    return "; ".join(f"{a}: {', '.join(f'{v:.1f}' for v in _kept(t, a))} kB" for a in (FLAT, ORDINARY, CHECKPOINTS))


def flat_in_depth(t: Table) -> tuple[bool, str]:
    """Equal within one per cent."""
    kept = _kept(t, FLAT)
    return max(kept) <= 1.01 * min(kept), _kept_text(t)


def grows_linearly(arm: str, t: Table) -> tuple[bool, str]:
    """Each further layer keeps as much as the one before, within 5 per cent, and more than nothing."""
    kept = _kept(t, arm)
    steps = [(b - a) / (e - d) for a, b, d, e in zip(kept, kept[1:], DEPTHS, DEPTHS[1:])]
    return min(steps) > 0 and max(steps) <= 1.05 * min(
        steps
    ), f"{arm}: {', '.join(f'{s:.2f}' for s in steps)} kB a layer"


def at_least_the_block(t: Table) -> tuple[bool, str]:
    return t.mean(SEARCHED, "test") >= t.mean(
        BLOCK, "test"
    ), f"{spread(t, SEARCHED, 'test')}, {spread(t, BLOCK, 'test')}"


def above_random(t: Table) -> tuple[bool, str]:
    holds, text = clearly_above(t, SEARCHED, RANDOM, "test")
    return holds, f"{text}; between random networks {t.mean(RANDOM, 'between'):.4f}"


def takes_a_third_more(t: Table) -> tuple[bool, str]:
    """Between 1.15 and 1.6 times the time of ordinary backpropagation; the paper's count of operations gives 1.33."""
    ratio, other = (t.mean(a, "ms") / t.mean(ORDINARY, "ms") for a in (FLAT, CHECKPOINTS))
    return 1.15 <= ratio <= 1.6, f"{ratio:.3f} times ordinary backpropagation (checkpoints {other:.3f})"


CLAIM = Claim(
    slug="dartsformer",
    statement="A reversible network with reconstruction keeps the memory of a Transformer search flat in depth for a "
    "third more time, and what is searched is at least as good as the Transformer's own block.",
    scale=f"Stacks of 2 to 16 two-split layers, d = {WIDE}, length {LONG}, batch {BATCH}, 13 operations; reversal of "
    f"strings of {LENGTH} of {SYMBOLS} symbols with d = 32, two layers, searched for 200 + 200 steps, trained for 400; "
    f"{RANDOM_ARCHS} random networks a seed.",
    arms=[
        ClaimArm(FLAT, "method"),
        ClaimArm(ORDINARY, "untreated"),
        ClaimArm(CHECKPOINTS, "rival"),
        ClaimArm(SEARCHED, "method"),
        ClaimArm(BLOCK, "rival"),
        ClaimArm(RANDOM, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("What a reconstructed stack keeps does not grow with depth", flat_in_depth),
        Check("What ordinary backpropagation keeps grows linearly", partial(grows_linearly, ORDINARY)),
        Check("Searched networks are at least as good as the Transformer's block", at_least_the_block),
        Check("Searched networks are clearly above the mean random network", above_random),
        Check("What checkpoints keep grows linearly", partial(grows_linearly, CHECKPOINTS), False),
        Check("Reconstruction takes about a third more time", takes_a_third_more, False),
    ],
    code=(
        "archipel.nets.reversible",
        "archipel.nets.sequence_ops",
        "archipel.spaces.reversible_transformer",
    ),
)
