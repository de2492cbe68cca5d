"""Which paths of a supernet a training step uses: the `sampler` slot of one-shot training.

Guo et al. Single Path One-Shot Neural Architecture Search with Uniform Sampling. 2019.
https://arxiv.org/abs/1904.00420   (one uniform path a step, perhaps within limits)
Chu, Zhang, Xu. FairNAS: Rethinking Evaluation Fairness of Weight Sharing Neural Architecture Search. 2019.
https://arxiv.org/abs/1907.01845   (strict fairness)
Li, Talwalkar. Random Search and Reproducibility for Neural Architecture Search. 2019.
https://arxiv.org/abs/1902.07638   (one option after the other)

A sampler maps a random generator to the deciders of one step; the gradients of all of them are summed before the one
update. The last sampler, all options at once, is no single-path method: it is the untreated arm that shows what
co-adaptation does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Blend, Choice, Fixed
from archipel.core.decision import Arch, Decision
from archipel.core.errors import InfeasibleError, UsageError, suggest
from archipel.core.space import Space
from archipel.core.supernet import Supernet

# How often a constrained draw is retried before it is called infeasible.
MAX_DRAWS = 10_000
# Most backward passes of a strictly fair step.
MAX_PATHS = 64

Sampler = Callable[[Random], Sequence[Fixed]]


def uniform_paths(space: Space) -> Sampler:
    """One architecture a step, uniformly among all architectures of the space (Guo et al. 2019).

    >>> from archipel.core.space import Space
    >>> sampler = uniform_paths(Space([Decision("op", ["a", "b"])]))
    >>> [d.arch["op"] in ("a", "b") for d in sampler(Random(0))]
    [True]
    """
    return lambda rng: [Fixed(space.sample(rng))]


def option_paths(space: Space) -> Sampler:
    """One architecture a step, each decision uniform among its options once those before it are made.

    Differs from :func:`uniform_paths` where decisions are conditional: an option that leaves more open is not favoured,
    so architectures are not equally likely (Li, Talwalkar 2019).
    """
    return lambda rng: [Fixed(space.sample_choices(rng))]


def feasible_paths(space: Space, feasible: Callable[[Arch], bool], describe: str = "the given limits") -> Sampler:
    """One architecture a step, uniformly among those within the limits, by rejection.

    Raises:
        InfeasibleError: none in 10,000 draws (when a path is drawn); repeats ``describe``.
    """

    def draw(rng: Random) -> list[Fixed]:
        for _ in range(MAX_DRAWS):
            arch = space.sample(rng)
            if feasible(arch):
                return [Fixed(arch)]
        raise InfeasibleError(f"No legal architecture in {MAX_DRAWS} draws from {space.name}: {describe}.")

    return draw


def fair_paths(space: Space) -> Sampler:
    """Strict fairness (Chu et al. 2019): K paths a step that use every option of every decision equally often.

    With K options everywhere each is used exactly once: path k takes the k-th entry of every decision's own
    permutation. For unequal numbers of options we take their least common multiple of paths.

    Raises:
        UsageError: a conditional decision (equal use cannot be arranged), a real-valued one, or too many paths.

    >>> sampler = fair_paths(Space([Decision("op", ["a", "b"])]))
    >>> sorted(d.arch["op"] for d in sampler(Random(0)))
    ['a', 'b']
    """
    if space.conditions:
        raise UsageError(
            f"Strictly fair sampling needs decisions that are always open, but in {space.name} "
            f"{sorted(space.conditions)[:3]} depend on others. Use sampling='uniform'."
        )
    decisions = [d for d in space.decisions if isinstance(d, Decision)]
    if len(decisions) < len(space.decisions):
        raise UsageError(f"Strictly fair sampling needs lists of options, but {space.name} has real-valued decisions.")
    paths = math.lcm(*(d.size for d in decisions))
    if paths > MAX_PATHS:
        raise UsageError(
            f"Strictly fair sampling would take {paths} backward passes a step, the least common multiple of the "
            f"numbers of options {sorted({d.size for d in decisions})}; at most {MAX_PATHS} are allowed."
        )

    def draw(rng: Random) -> list[Fixed]:
        columns = {}
        for d in decisions:
            column = list(d.options) * (paths // d.size)
            rng.shuffle(column)
            columns[d.name] = column
        return [Fixed({name: column[k] for name, column in columns.items()}) for k in range(paths)]

    return draw


def _sum(options: Sequence[nn.Module], weights: Tensor, *args: Any) -> Any:
    outputs = [w * option(*args) for w, option in zip(weights, options)]
    return sum(outputs[1:], outputs[0])


def all_paths(space: Space, supernet: Supernet) -> Sampler:
    """All options of every choice at once, averaged; sizes and depths are still drawn. The arm without single paths.

    Raises:
        UsageError: the supernet has no choice among modules, so there is nothing to average.
    """
    choices = {m.decision.name: len(m.options) for m in supernet.modules() if isinstance(m, Choice)}
    if not choices:
        raise UsageError(f"{space.name} decides sizes only, not among modules, so there are no paths to sum.")
    weights = {name: torch.full((n,), 1.0 / n) for name, n in choices.items()}
    sized = [d for d in space.decisions if d.name not in choices]
    # Options of every branch compute, so decisions inside all of them need a value, open or not.
    return lambda rng: [Blend(weights, _sum, {d.name: d.sample(rng) for d in sized})]


SAMPLING = ("uniform", "random-nas", "fairnas", "all-paths")


def make_sampler(sampling: str, supernet: Supernet, feasible: Callable[[Arch], bool] | None = None,
                 describe: str = "the given limits") -> Sampler:  # fmt: skip
    """The sampler of a name, for a supernet.

    Args:
        sampling: of :data:`SAMPLING`.
        feasible: limits that every drawn path must keep; only with ``"uniform"``.

    Raises:
        UsageError: an unknown name, or limits with a sampler that cannot keep them.
    """
    space = supernet.space
    if sampling not in SAMPLING:
        raise UsageError(f"Sampling {sampling!r} is unknown. {suggest(sampling, SAMPLING)}")
    if feasible is not None:
        if sampling != "uniform":
            raise UsageError(f"Only uniform sampling can be kept within limits, not {sampling!r}.")
        return feasible_paths(space, feasible, describe)
    if sampling == "uniform":
        return uniform_paths(space)
    if sampling == "random-nas":
        return option_paths(space)
    return fair_paths(space) if sampling == "fairnas" else all_paths(space, supernet)
