"""Trees of tasks: partitions that only refine, how probable they are, and what they cost.

Bruggemann, Kanakis, Georgoulis, Van Gool. Automated Search for Resource-Efficient Branched Multi-Task Networks. 2020.
https://arxiv.org/abs/2008.10292

    layer ℓ      task t takes copy j with probability p_ℓ[t, j], each task for itself; equal copies: one branch
    q_ℓ(π)       probability that the choices of layer ℓ group the tasks as the partition π
    tree         effective partition κ_ℓ = κ_{ℓ-1} ∧ π_ℓ (common refinement): what has split never merges again
    exact        P_ℓ(κ) = Σ_{π ∧ ρ = κ} q_ℓ(π) P_{ℓ-1}(ρ)
    paper        P_ℓ(κ) = q_ℓ(κ) Σ_{ρ coarser than or equal to κ} P_{ℓ-1}(ρ) for all κ but the finest, which gets the
                 rest; equal to the exact value for two tasks, too large from three on
    cost         Σ_ℓ c_ℓ Σ_κ P_ℓ(κ) |κ|

A partition is a tuple with the number of each task's block, blocks numbered in the order of their first task. Axes:
T tasks, L layers, B partitions (the Bell number of T).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from random import Random

import torch
from torch import Tensor

from archipel.core.errors import UsageError

Partition = tuple[int, ...]
MOST_TASKS = 7
RULES = ("exact", "paper")


def normal(labels: Sequence[object]) -> Partition:
    """The partition that groups equal labels.

    >>> normal(["b", "a", "b"])
    (0, 1, 0)
    """
    numbers: dict[object, int] = {}
    return tuple(numbers.setdefault(label, len(numbers)) for label in labels)


def refine(first: Partition, second: Partition) -> Partition:
    """The common refinement: together only who is together in both.

    >>> refine((0, 0, 1), (0, 1, 1))
    (0, 1, 2)
    """
    return normal(list(zip(first, second)))


def blocks(partition: Partition) -> int:
    return len(set(partition))


class Lattice:
    """All partitions of T tasks with the tables that probabilities are summed by.

    Raises:
        UsageError: fewer than two tasks, or more than seven (877 partitions).

    Attributes:
        partitions: ``[B]``, the coarsest first and the finest last.
        sizes_B: number of blocks of each.
    """

    def __init__(self, T: int) -> None:
        if T < 2:
            raise UsageError(f"Branching needs at least two tasks, not {T}.")
        if T > MOST_TASKS:
            raise UsageError(
                f"{T} tasks have too many groupings for the exact cost (more than 4,140): use at most {MOST_TASKS}, or "
                f"group tasks beforehand."
            )
        self.T = T
        choices_AT = list(itertools.product(range(T), repeat=T))  # A = T^T joint choices of copies
        grouped = [normal(a) for a in choices_AT]
        self.partitions = sorted(set(grouped), key=lambda p: (blocks(p), p))
        position = {p: i for i, p in enumerate(self.partitions)}
        self.choices_AT = torch.tensor(choices_AT)
        self.partition_of_A = torch.tensor([position[g] for g in grouped])
        self.sizes_B = torch.tensor([blocks(p) for p in self.partitions], dtype=torch.float64)
        self.meet_BB = torch.tensor([[position[refine(a, b)] for b in self.partitions] for a in self.partitions])
        self.coarser_BB = self.meet_BB == torch.arange(len(self.partitions))[:, None]  # [κ, ρ]: ρ ∧ κ = κ

    def grouping(self, p_TT: Tensor) -> Tensor:
        """q: probability of each partition ``[B]`` when every task draws a copy from its row of ``[T, T]``."""
        tasks = torch.arange(self.T)
        joint_A = p_TT[tasks, self.choices_AT].prod(-1)
        return torch.zeros(len(self.partitions), dtype=p_TT.dtype).index_add(0, self.partition_of_A, joint_A)

    def after(self, P_B: Tensor, q_B: Tensor, rule: str = "exact") -> Tensor:
        """Probabilities of the effective partitions of the next layer ``[B]``."""
        if rule == "exact":
            joint = torch.outer(q_B, P_B).flatten()
            return torch.zeros_like(P_B).index_add(0, self.meet_BB.flatten(), joint)
        P = q_B * (self.coarser_BB.to(P_B.dtype) @ P_B)
        return torch.cat([P[:-1], (1.0 - P[:-1].sum())[None]])


@lru_cache(maxsize=8)
def lattice(T: int) -> Lattice:
    return Lattice(T)


def expected_branches(p_LTT: Tensor, rule: str = "exact") -> Tensor:
    """Expected number of branches in each layer ``[L]``; differentiable.

    Args:
        p_LTT: of every layer and task the probabilities of its copies.
        rule: ``"exact"`` or ``"paper"``.

    Raises:
        UsageError: another rule.

    >>> expected_branches(torch.full((2, 2, 2), 0.5, dtype=torch.float64)).tolist()
    [1.5, 1.75]
    """
    if rule not in RULES:
        raise UsageError(f"The expected number of branches is 'exact' or that of the 'paper', not {rule!r}.")
    of = lattice(p_LTT.shape[-1])
    P_B = torch.zeros(len(of.partitions), dtype=p_LTT.dtype)
    P_B[0] = 1.0  # before the first layer all tasks are together
    out = []
    for p_TT in p_LTT:
        P_B = of.after(P_B, of.grouping(p_TT), rule)
        out.append((P_B * of.sizes_B.to(P_B.dtype)).sum())
    return torch.stack(out)


def tree_of(choices: Sequence[Sequence[int]]) -> list[Partition]:
    """The tree that copies ``[L][T]`` make: partitions that only refine."""
    tree: list[Partition] = []
    for row in choices:
        own = normal(list(row))
        tree.append(refine(tree[-1], own) if tree else own)
    return tree


def random_tree(T: int, L: int, rng: Random) -> list[Partition]:
    """A tree, uniformly among all that can be reached.

    >>> tree = random_tree(3, 4, Random(0))
    >>> all(refine(a, b) == b for a, b in zip(tree, tree[1:]))
    True
    """
    of = lattice(T)
    finer = of.coarser_BB.T.double()  # [ρ, κ]: κ refines ρ
    ways = [torch.ones(len(of.partitions), dtype=torch.float64)]  # trees that go on from each partition
    for _ in range(L - 1):
        ways.append(finer @ ways[-1])
    at, tree = 0, []
    for remaining in reversed(ways):
        weights = (finer[at] * remaining).tolist()
        at = rng.choices(range(len(weights)), weights)[0]
        tree.append(of.partitions[at])
    return tree
