"""Claim: rejecting what breaks a limit finds better feasible networks than penalising it, with no penalty to tune.

Yang, Bender, Liu, Kindermans, Udell, Lu, Le, Huang. TabNAS: Rejection Sampling for Neural Architecture Search on
Tabular Datasets. 2022. https://arxiv.org/abs/2204.07615

On the paper's toy (known qualities) and on noisy digits with a supernet. The *answer* of an arm that rejects is its
most likely feasible architecture, as published; that of a penalty is its most likely one, which may break the limit.
``kept`` figures and test accuracies use the most likely feasible one for every arm, which is kinder to penalties. The
controller's learning rate is tuned on the quality of the answer (toy: known; digits: validation accuracy with shared
weights), 0 where it breaks the limit. Under the tuning seed nothing is trained alone and the test split stays closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from random import Random
from typing import Any

import numpy as np
import torch

from archipel.claims.harness import TUNING_SEED, Check, Claim, ClaimArm, Measurement, Table
from archipel.core.decision import Arch
from archipel.core.space import Space
from archipel.cost.limits import Limits
from archipel.data.dataset import Dataset
from archipel.data.load import load
from archipel.search.oneshot.feasible_policy import FactorisedPolicy, FeasibleSet
from archipel.search.oneshot.rejection import PolicySearch, learn_from_oracle
from archipel.search.oneshot.tabnas import TabNAS
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.mlp import mlp_space

EXACT, SAMPLED, SKIP = "tabnas, exact P(V)", "tabnas, sampled P(V)", "skip, no correction"
MILD, STRONG, ONE_SIDED = "abs reward, beta -0.5", "abs reward, beta -2", "max penalty, beta -1"
RANDOM = "random feasible"
ARMS: dict[str, dict[str, Any]] = {
    EXACT: {"probability": "exact"},
    SAMPLED: {"probability": "monte-carlo"},
    SKIP: {"correction": False},
    MILD: {"reward": "abs", "beta": -0.5},
    STRONG: {"reward": "abs", "beta": -2.0},
    ONE_SIDED: {"reward": "max", "beta": -1.0},
}
ON_DIGITS = (EXACT, SKIP, MILD)
TOY_STEPS, TOY_RUNS, TUNING_RUNS = 600, 3, 2  # runs for each seed of the claim
STEPS, BATCH, ALONE, DRAWN = 400, 64, Recipe(epochs=25, batch_size=64), 5
GAIN = 0.20  # asserted

TOY = mlp_space((2,), 1, widths=[2, 3, 4], depth=2, activations=["relu"], norms=["none"])
TOY_LIMITS = Limits.parse(["params=25"], TOY)
BEST = {"width0": 4, "width1": 2}  # of the feasible ones


def oracle(arch: Arch) -> float:
    """A quality that favours a wide first layer."""
    return float(0.6 * np.log(arch["width0"]) + 0.2 * np.log(arch["width1"]))


@cache
def digits() -> Dataset:
    """800 to train on, 400 for validation, 597 for the test."""
    return load("noisy-digits?noise=0.3&train=800")


@cache
def digits_space() -> tuple[Space, Limits]:
    """216 perceptrons, and a quarter of the largest's parameters as their limit."""
    widths = [2, 4, 8, 16, 32, 64]
    space = mlp_space(digits().input_shape, 10, widths=widths, depth=3, activations=["relu"], norms=["none"])
    largest = space.cost.params({f"width{i}": 64 for i in range(3)})
    return space, Limits.parse([f"params={largest // 4}"], space)


def _toy(arm: str, lr: float, seed: int) -> tuple[float, dict[str, float]]:
    """Mean quality of the answers of some runs, and what they were."""
    answers, kept, first = [], [], seed * TOY_RUNS
    for run in range(first, first + (TUNING_RUNS if seed == TUNING_SEED else TOY_RUNS)):
        policy = FactorisedPolicy(TOY)
        feasible = FeasibleSet(policy, TOY_LIMITS.feasible, TOY_LIMITS.describe)
        if arm == RANDOM:
            chosen = feasible.listed
            assert chosen is not None  # six of nine
            row = chosen[Random(run).randrange(len(chosen))]
            kept.append({"width0": int(row[0]) + 2, "width1": int(row[1]) + 2})
            answers.append(kept[-1])
            continue
        search = PolicySearch(policy, feasible, lr=lr, **ARMS[arm])
        learn_from_oracle(search, oracle, TOY_STEPS, seed=run)
        rejects, rng = search.reward == "rejection", np.random.default_rng(run)
        kept.append(search.most_likely(rng)[0][0])
        answers.append(kept[-1] if rejects else search.most_likely(rng, within=False)[0][0])
    fits = [TOY.cost.params(a) <= 25 for a in answers]
    figures = {
        "toy 4-2": float(np.mean([a == BEST for a in answers])),
        "toy kept 4-2": float(np.mean([a == BEST for a in kept])),
        "toy feasible": float(np.mean(fits)),
    }
    return float(np.mean([oracle(a) * ok for a, ok in zip(answers, fits)])), figures


def _alone(arch: Arch, seed: int) -> float:
    """Test accuracy of an architecture trained from new weights."""
    torch.manual_seed(seed)
    net = digits_space()[0].build(arch)
    train(net, digits().train, "classification", ALONE, seed=seed)
    return evaluate(net, digits().open_test("claim: stand-alone accuracy"), "classification")["accuracy"]


def _digits(arm: str, lr: float, seed: int) -> tuple[float, dict[str, float]]:
    """Validation accuracy of the answer with shared weights, and figures of it and of the most likely feasible one."""
    space, limits = digits_space()
    settings = {"steps": STEPS, "batch_size": BATCH, "lr": 1e-2, "controller_lr": lr, **ARMS[arm]}
    strategy = TabNAS(**settings)
    strategy.setup(Problem(space, rng=Random(seed), feasible=limits.feasible, describe_limits=limits.describe))
    strategy.prepare(Context(digits().without_test(), Recipe(), seed=seed))
    trial = strategy.ask()
    assert trial is not None  # asked once
    assert strategy.favourite is not None
    answer = trial.arch if strategy.reward == "rejection" else strategy.favourite
    fits = bool(limits.feasible(answer))
    shared = strategy.shared_scores([answer])
    assert shared is not None  # prepared
    figures = {"feasible": float(fits), "params": float(space.cost.params(answer))}
    if seed != TUNING_SEED:
        figures["test"] = _alone(trial.arch, seed)
    return shared[0] * fits, figures


def _random_digits(seed: int) -> dict[str, float]:
    """Feasible architectures drawn uniformly without replacement, each trained alone."""
    space, limits = digits_space()
    archs = Random(seed).sample([a for a in space.enumerate() if limits.feasible(a)], DRAWN)
    accuracy = [_alone(a, seed) for a in archs]
    params = [space.cost.params(a) for a in archs]
    return {
        "feasible": float(np.mean([limits.feasible(a) for a in archs])),
        "params": float(np.mean(params)),
        "test": float(np.mean(accuracy)),
        "best drawn": float(np.max(accuracy)),
    }


def measure(arm: str, setting: Mapping[str, Any], seed: int) -> Measurement:
    """Both parts where the arm has both."""
    torch.set_num_threads(1)
    validation, figures = _toy(arm, setting["lr"], seed)
    if arm == RANDOM:  # nothing to tune
        return Measurement(0.0, figures if seed == TUNING_SEED else figures | _random_digits(seed))
    if arm in ON_DIGITS:
        accuracy, more = _digits(arm, setting["lr"], seed)
        validation, figures = (validation + accuracy) / 2, figures | more
    return Measurement(validation, figures)


# --- checks -----------------------------------------------------------------------------------------------------------


def _shown(t: Table, arm: str, figure: str) -> str:
    return f"{arm}: {t.mean(arm, figure):.3f} ({', '.join(f'{v:.2f}' for v in t.values(arm, figure))})"


def always_feasible(t: Table) -> tuple[bool, str]:
    parts = [(EXACT, "toy feasible"), (SAMPLED, "toy feasible"), (EXACT, "feasible")]
    return all((t.values(*p) == 1).all() for p in parts), "; ".join(f"{f}, {_shown(t, a, f)}" for a, f in parts)


def finds_the_best(t: Table) -> tuple[bool, str]:
    arms = (EXACT, SAMPLED)
    return all((t.values(a, "toy 4-2") == 1).all() for a in arms), "; ".join(_shown(t, a, "toy 4-2") for a in arms)


def beats_random(t: Table) -> tuple[bool, str]:
    gain = t.mean(EXACT, "test") - t.mean(RANDOM, "test")
    return gain >= GAIN, f"{_shown(t, EXACT, 'test')}; {_shown(t, RANDOM, 'test')}; gain {gain:+.3f}"


def reaches_best_drawn(t: Table) -> tuple[bool, str]:
    text = f"{_shown(t, EXACT, 'test')}; {_shown(t, RANDOM, 'best drawn')}"
    return t.mean(EXACT, "test") >= t.mean(RANDOM, "best drawn"), text


def higher(figure: str, arm: str, other: str, t: Table) -> tuple[bool, str]:
    return t.mean(arm, figure) > t.mean(other, figure), f"{_shown(t, arm, figure)}; {_shown(t, other, figure)}"


def correction_is_inert(t: Table) -> tuple[bool, str]:
    same = (t.values(EXACT, "toy 4-2") == t.values(SKIP, "toy 4-2")).all()
    return bool(same), "; ".join(_shown(t, a, "toy 4-2") for a in (EXACT, SKIP))


def penalty_breaks_the_limit(t: Table) -> tuple[bool, str]:
    broken = 1 - t.values(MILD, "feasible")
    text = f"{broken.sum():.0f} of {len(broken)}; parameters, {_shown(t, MILD, 'params')}"
    return bool(broken.mean() > 0.5), text


def one_sided_works(t: Table) -> tuple[bool, str]:
    return t.mean(ONE_SIDED, "toy 4-2") >= 0.9, _shown(t, ONE_SIDED, "toy 4-2")


CLAIM = Claim(
    slug="tabnas",
    statement="Under a hard limit a policy that rejects infeasible samples finds better feasible networks than one "
    "whose reward penalises them, with no penalty to tune.",
    scale="Toy: 9 networks with known qualities, 6 feasible, 600 steps, 3 runs a seed. Digits with noise of 0.3 "
    "(800/400/597): 216 perceptrons of three layers, a quarter of the largest's parameters allowed, 400 supernet "
    "steps, 325 steps alone. Learning rates of the controller 0.01, 0.02, 0.05 for every arm.",
    arms=[
        ClaimArm(EXACT, "method"),
        ClaimArm(SAMPLED, "method"),
        ClaimArm(SKIP, "untreated"),
        ClaimArm(MILD, "rival"),
        ClaimArm(STRONG, "rival"),
        ClaimArm(ONE_SIDED, "rival"),
        ClaimArm(RANDOM, "trivial"),
    ],
    measure=measure,
    checks=[
        Check("The answer keeps the limit in every run", always_feasible),
        Check("On the toy the best feasible network, 4-2, is found in every run, with P(V) exact or sampled",
              finds_the_best),
        Check("On digits the answer is better than the mean random feasible network by at least 20 points",
              beats_random),
        Check("On digits it is no worse than the best of 5 random feasible networks", reaches_best_drawn, False),
        Check("On the toy it finds 4-2 more often than the absolute reward with beta -0.5",
              partial(higher, "toy 4-2", EXACT, MILD), False),
        Check("On the toy it finds 4-2 more often than the absolute reward with beta -2",
              partial(higher, "toy 4-2", EXACT, STRONG), False),
        Check("On the toy a one-sided penalty finds 4-2 in 9 of 10 runs", one_sided_works, False),
        Check("On the toy the correction changes nothing beside an up-to-date baseline", correction_is_inert, False),
        Check("On digits most answers of the absolute reward with beta -0.5 break the limit",
              penalty_breaks_the_limit, False),
        Check("On digits it is better than the best feasible choice of the absolute reward with beta -0.5",
              partial(higher, "test", EXACT, MILD), False),
        Check("On digits it is better than without the correction", partial(higher, "test", EXACT, SKIP), False),
    ],
    grid=[{"lr": lr} for lr in (0.01, 0.02, 0.05)],
    seeds=3,
    code=(
        "archipel.search.oneshot.child_quality",
        "archipel.search.oneshot.feasible_policy",
        "archipel.search.oneshot.rejection",
        "archipel.search.training",
        "archipel.spaces.mlp",
    ),
)  # fmt: skip
