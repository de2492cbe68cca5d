"""Claim: agents that only see the loss of the network they sampled find better networks than chance, in less memory.

Lopes, Carlucci, Esperança, Singh, Yang, Gabillon, Xu, Chen, Wang. MANAS: Multi-Agent Neural Architecture Search. 2019.
https://arxiv.org/abs/1909.01051

Twice: the paper's synthetic game, in which ten agents must agree on a sum (mean loss of the last tenth of the rounds);
and the micro network with two cells of their own, hence twelve agents. DARTS has the same epochs and data, and a
learning rate of the logits at which Adam can move them as far as in its published number of steps. ``best of 8`` trains
the random network that the supernet of MANAS ranks first. Nothing is tuned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, partial
from random import Random
from typing import Any

import numpy as np
import torch

from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table
from archipel.claims.micro import RANDOM_CELLS, RECIPE, clearly_above, micro_data, searched, spread
from archipel.core.decision import Arch
from archipel.search.differentiable.bandits import Agents, Exp3, GaussianSqueeze, LeastSquares, play
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.loop import DifferentiableSearch, batch
from archipel.search.differentiable.manas import manas
from archipel.search.differentiable.sampling import SampledPaths
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import evaluate, train
from archipel.spaces.micro_nb201 import MicroNB201

EXP3, LS, DARTS = "MANAS", "MANAS-LS", "DARTS"
RANDOM, BEST, CONV = "random", "best of 8 by the supernet", "all conv3x3"
METHODS = (EXP3, LS)
ROUNDS, SAMPLES = 3_000, 50
# 3e-4 in 50 epochs of 390 steps moves a logit by up to 5.9; so does this in 40 epochs of 5.
SCHEDULE = Schedule(epochs=40, batch_size=40, lr=0.1, lr_min=0.0, alpha_lr=3e-2)


def _space() -> MicroNB201:
    return MicroNB201((1, 8, 8), 10, C=8, tie="cell")


def _game(arm: str, seed: int) -> float:
    """Mean loss of the last tenth of the rounds of the squeeze game."""
    game = GaussianSqueeze(agents=10, options=4, mu=22.0, sigma=5.0)
    sizes = [game.options] * game.agents
    agents = {EXP3: Exp3(sizes, ROUNDS), LS: LeastSquares(sizes, SAMPLES), RANDOM: Agents(sizes)}[arm]
    torch.manual_seed(seed)
    return float(np.mean(play(agents, game, ROUNDS)[-ROUNDS // 10 :]))


@cache
def _search(arm: str, seed: int) -> tuple[DifferentiableSearch, Arch]:
    if arm == DARTS:
        strategy = darts(schedule=SCHEDULE)
    else:
        strategy = manas("exp3" if arm == EXP3 else "least-squares", samples=SAMPLES, schedule=SCHEDULE)
    return searched(strategy, _space(), micro_data(), seed)


def _random(seed: int) -> list[Arch]:
    rng = Random(seed)
    return [_space().sample(rng) for _ in range(RANDOM_CELLS)]


def _retrained(arch: Arch, seed: int) -> tuple[float, float]:
    return _trained(json.dumps(arch), seed)


@cache
def _trained(text: str, seed: int) -> tuple[float, float]:
    """Validation and test accuracy of a network after training from scratch."""
    data = micro_data()
    net = _space().build(json.loads(text), seed)
    train(net, data.train, data.task, RECIPE, seed)
    val = evaluate(net, data.val, data.task)["accuracy"]
    return val, evaluate(net, data.open_test("claim"), data.task)["accuracy"]


def _memory(search: DifferentiableSearch) -> float:
    """kB kept for the backward pass of one step: of a path (the mean of ten), or of the mixture."""
    state = search.state
    assert state is not None
    x, y = batch(state.halves[1], torch.arange(SCHEDULE.batch_size))
    state.supernet.train()
    if not isinstance(search.arch_gradient, SampledPaths):
        return saved_bytes(partial(state.val_loss, (x, y)), state.supernet) / 1e3
    torch.manual_seed(0)
    paths = [state.parameters.one_hot(arch) for arch in _random(0)]
    return float(np.mean([saved_bytes(partial(state.output, x, p), state.supernet) for p in paths])) / 1e3


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """What an arm's network reaches after training alone, and what its search costs."""
    torch.set_num_threads(1)
    if arm == RANDOM:
        val, test = np.array([_retrained(arch, seed) for arch in _random(seed)]).T
        figures = {"test": float(test.mean()), "between": float(test.std(ddof=1)), "game": _game(RANDOM, seed)}
        return Measurement(float(val.mean()), figures)
    if arm == CONV:
        val, test = _retrained({d.name: "conv3x3" for d in _space().decisions}, seed)
        return Measurement(val, {"test": test})
    if arm == BEST:
        search, _ = _search(EXP3, seed)
        archs = _random(seed)
        scores = search.shared_scores(archs)
        assert scores is not None
        val, test = _retrained(archs[int(np.argmax(scores))], seed)
        return Measurement(val, {"test": test})
    search, arch = _search(arm, seed)
    figures = {"kB": _memory(search), "entropy": search.log[-1]["entropy"]}
    if arm in METHODS:
        figures["game"] = _game(arm, seed)
    val, test = _retrained(arch, seed)
    return Measurement(val, {"test": test, **figures})


# --- checks -----------------------------------------------------------------------------------------------------------


def learns_the_game(arm: str, t: Table) -> tuple[bool, str]:
    """Less than half of the loss of uniform agents, in every seed."""
    mine, uniform = t.values(arm, "game"), t.values(RANDOM, "game")
    return bool((mine < 0.5 * uniform).all()), f"{spread(t, arm, 'game')}, {spread(t, RANDOM, 'game')}"


def paths_are_small(t: Table) -> tuple[bool, str]:
    """Below a third; with five operations, of which some keep nothing, a fifth would be even."""
    share = t.mean(EXP3, "kB") / t.mean(DARTS, "kB")
    return share < 1 / 3, f"{t.mean(EXP3, 'kB'):.0f} kB a path, {t.mean(DARTS, 'kB'):.0f} kB the mixture ({share:.3f})"


def above_random(arm: str, t: Table) -> tuple[bool, str]:
    holds, text = clearly_above(t, arm, RANDOM, "test")
    return holds, f"{text}; between random networks {t.mean(RANDOM, 'between'):.4f}"


def better_than(other: str, t: Table) -> tuple[bool, str]:
    text = ", ".join(spread(t, a, "test") for a in (*METHODS, other))
    return all(t.mean(a, "test") > t.mean(other, "test") for a in METHODS), text


def policies_decided(t: Table) -> tuple[bool, str]:
    return all(t.mean(a, "entropy") < 0.9 for a in METHODS), ", ".join(spread(t, a, "entropy") for a in METHODS)


CLAIM = Claim(
    slug="manas",
    statement="One agent on each edge that only sees the loss of sampled networks finds networks better than random "
    "ones, in the memory of a single path.",
    scale=f"Squeeze game, 10 agents with 4 options, {ROUNDS:,} rounds. Micro-NB201 on noisy digits (400/400/997), "
    f"C = 8, two cells of their own (12 agents), {SCHEDULE.epochs} epochs, then trained; {RANDOM_CELLS} random ones.",
    arms=[
        ClaimArm(EXP3, "method"),
        ClaimArm(LS, "method"),
        ClaimArm(DARTS, "rival"),
        ClaimArm(RANDOM, "trivial"),
        ClaimArm(BEST, "untreated"),
        ClaimArm(CONV, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("MANAS learns the squeeze game", partial(learns_the_game, EXP3)),
        Check("MANAS-LS learns the squeeze game", partial(learns_the_game, LS)),
        Check("A path keeps less than a third of the mixture's activations", paths_are_small),
        Check("MANAS is clearly above the mean random network", partial(above_random, EXP3)),
        Check("MANAS-LS is clearly above the mean random network", partial(above_random, LS)),
        Check("Both are better than the best of 8 random networks by the supernet", partial(better_than, BEST), False),
        Check("Both are better than DARTS", partial(better_than, DARTS), False),
        Check("Both are better than convolutions everywhere", partial(better_than, CONV), False),
        Check("Policies have left the uniform ones behind", policies_decided, False),
    ],
    code=(
        "archipel.claims.micro",
        "archipel.search.differentiable.bandits",
        "archipel.search.differentiable.sampling",
    ),
)
