"""Searches that train one path at a time, and the plainest of them: random search with parameter sharing (RSPS).

Li, Talwalkar. Random Search and Reproducibility for Neural Architecture Search. 2019. https://arxiv.org/abs/1902.07638

    each step     a ~ uniform;  w <- w - lr dL_train(w_a)         only the path of a is computed
    in the end    argmax of Acc_val(w_a) over n random a

Each decision is drawn uniformly among the options that its row allows, one after the other; decisions that this closes
are left out. A drawn path is a mixture with one-hot weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import torch

from archipel.core.decision import Arch, Decision
from archipel.core.errors import UsageError
from archipel.search.differentiable.arch_gradient import ArchGradient, Batch, Tensors
from archipel.search.differentiable.select import Select
from archipel.search.differentiable.state import SearchState


class SampledPaths(ArchGradient):
    """One path is drawn each step, uniformly, and only its weights learn (RSPS). Others override :meth:`draw`.

    Attributes:
        restrictable: whether paths keep to the options that rows allow, so that the supernet may be split.
    """

    restrictable = True

    def draw(self, state: SearchState) -> Tensors:
        """Mixture weights of a path; the randomness is that of PyTorch."""
        return state.parameters.one_hot(random_path(state, fresh_random()))

    def update(self, state: SearchState, train: Batch, val: Batch) -> float:
        return state.weight_step(train, self.draw(state))


class BestOfPaths(Select):
    """The best of random paths on the architecture's half of the data, with shared weights and batch statistics.

    Args:
        samples: paths drawn.

    Raises:
        UsageError: fewer than one.
    """

    def __init__(self, samples: int = 100) -> None:
        if not isinstance(samples, int) or samples < 1:
            raise UsageError(f"BestOfPaths: samples must be a positive integer, not {samples!r}.")
        self.samples = samples

    def __call__(self, state: SearchState) -> Arch:
        rng = fresh_random()
        drawn = [random_path(state, rng) for _ in range(self.samples)]
        distinct = {state.supernet.space.canonical(a): a for a in drawn}
        return max(distinct.values(), key=lambda a: path_score(state, a))


def random_path(state: SearchState, rng: Random) -> Arch:
    """A random architecture of a search: within what its rows allow, and with what is fixed."""
    space, rows, fixed = state.supernet.space, state.parameters.rows, state.parameters.fixed
    arch: Arch = {}
    for d in space.decisions:
        if space.is_open(d.name, arch):
            row = rows.get(d.name)
            if d.name in fixed:
                arch[d.name] = fixed[d.name]
            elif isinstance(d, Decision) and row is not None and row.allowed is not None:
                arch[d.name] = rng.choice([d.options[i] for i in row.allowed if i < d.size])
            else:
                arch[d.name] = d.sample(rng)
    return arch


def path_score(state: SearchState, arch: Mapping[str, object]) -> float:
    """Accuracy (or R²) of a path on the architecture's half of the data."""
    found = state.metrics(state.halves[1], arch=dict(arch))
    return found["r2" if state.task == "regression" else "accuracy"]


def fresh_random() -> Random:
    """A generator seeded by PyTorch's."""
    return Random(int(torch.randint(2**62, ())))
