"""A factorised policy over architectures, and the set of those that keep the limits: what TabNAS draws from.

Yang et al. TabNAS: Rejection Sampling for Neural Architecture Search on Tabular Datasets. 2022.
https://arxiv.org/abs/2204.07615

    p(y) = prod over open decisions i of softmax(l_i)[y_i],    V = {y : y keeps the limits}

Everything is asked about many architectures at once. Axes: N architectures (rows of an index matrix, see
:mod:`archipel.cost.table`), D decisions, K options of the decision with most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from archipel.core.decision import Arch, Decision
from archipel.core.errors import InfeasibleError, SpaceError, UsageError
from archipel.core.space import Space
from archipel.cost.limits import Limits, limits_behind
from archipel.cost.table import archs_of, index_matrix

# Spaces up to this size are listed: P(V) exactly, the most likely feasible architecture exactly.
LISTED = 100_000
# Without tables each feasibility costs milliseconds, so fewer are listed.
LISTED_SLOWLY = 2_000


class FactorisedPolicy:
    """Independent softmaxes, one for each decision; closed decisions take no part.

    >>> space = Space([Decision("a", [1, 2, 3]), Decision("b", ["x", "y"])])
    >>> policy = FactorisedPolicy(space)
    >>> round(float(policy.log_prob(np.array([[0, 1]]))[0].detach().exp()), 4)
    0.1667
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        for d in space.decisions:
            if not isinstance(d, Decision):
                raise SpaceError(f"Decision {d.name!r} is a range of numbers, which has no softmax; give it options.")
        sizes = [int(d.size) for d in space.decisions]
        D, K = len(sizes), max(sizes)
        self.sizes = np.array(sizes)
        # float64: probabilities of 1e5 architectures are summed, and identities hold to 1e-12.
        self.logits = torch.zeros(D, K, dtype=torch.float64, requires_grad=True)
        options = torch.arange(K + 1)[None, :]
        self._invalid = options[:, :K] >= torch.tensor(sizes)[:, None]
        self._closed = options >= torch.tensor(sizes)[:, None]
        self._offset = torch.arange(D) * (K + 1)
        column = {d.name: i for i, d in enumerate(space.decisions)}
        # column -> clauses, each a list of (column of a parent, which of its positions are allowed)
        self._conditions: dict[int, list[list[tuple[int, np.ndarray]]]] = {}
        for d in space.decisions:
            clauses = []
            for clause in space.conditions.get(d.name, ()):
                tests = []
                for parent, values in clause:
                    owner: Any = space.by_name[parent]
                    tests.append((column[parent], np.array([*(o in values for o in owner.options), False])))
                clauses.append(tests)
            if clauses:
                self._conditions[column[d.name]] = clauses

    def log_options(self) -> Tensor:
        """Log probabilities of the options ``[D, K + 1]``; 0 from the position that means closed."""
        log_p_DK = torch.log_softmax(self.logits.masked_fill(self._invalid, -math.inf), dim=1)
        return torch.nn.functional.pad(log_p_DK, (0, 1)).masked_fill(self._closed, 0.0)

    def log_prob(self, index: np.ndarray, log_options: Tensor | None = None) -> Tensor:
        """Log probabilities ``[N]`` of an index matrix ``[N, D]``."""
        table = self.log_options() if log_options is None else log_options
        rows = torch.from_numpy(np.ascontiguousarray(index)) + self._offset
        return table.reshape(-1)[rows.reshape(-1)].view(rows.shape).sum(1)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw an index matrix ``[N, D]``."""
        p_DK = torch.softmax(self.logits.detach().masked_fill(self._invalid, -math.inf), dim=1).numpy()
        u_ND = rng.random((n, len(self.sizes)))
        # One decision at a time: the place of a number among the partial sums.
        columns = [np.searchsorted(np.cumsum(p)[:-1], u) for p, u in zip(p_DK, u_ND.T)]
        index = np.minimum(np.stack(columns, axis=1), self.sizes - 1)
        return self.close(index)

    def mode(self) -> np.ndarray:
        """The most likely option of every decision, ``[1, D]``."""
        best = self.logits.detach().masked_fill(self._invalid, -math.inf).argmax(1)
        return self.close(best.numpy()[None].copy())

    def close(self, index: np.ndarray) -> np.ndarray:
        """Mark decisions that the others close; in place."""
        for column in self._conditions:
            index[~self._is_open(index, column), column] = self.sizes[column]
        return index

    def list_all(self) -> np.ndarray:
        """Index matrix of the whole space."""
        index = np.zeros((1, 0), dtype=np.int64)
        for column, size in enumerate(self.sizes.tolist()):
            is_open = self._is_open(index, column)
            opened, closed = index[is_open], index[~is_open]
            grown = np.column_stack([np.repeat(opened, size, axis=0), np.tile(np.arange(size), len(opened))])
            index = np.concatenate([grown, np.column_stack([closed, np.full(len(closed), size)])])
        return index

    def _is_open(self, index: np.ndarray, column: int) -> np.ndarray:
        """Whether a decision is open ``[N]``, by the columns before it."""
        if column not in self._conditions:
            return np.ones(len(index), dtype=bool)
        clauses = [np.all([ok[index[:, parent]] for parent, ok in tests], axis=0) for tests in self._conditions[column]]
        return np.any(clauses, axis=0)


class FeasibleSet:
    """Which architectures keep the limits: many at once, each asked at most once.

    Args:
        policy: over the space.
        feasible: test of one architecture; exact tables are used if it belongs to :class:`Limits`. None: no limits.
        describe: the limits in words.

    Attributes:
        listed: index matrix ``[M, D]`` of all feasible architectures, or None where there are too many to list.
        inactive: whether all listed architectures are feasible.

    Raises:
        InfeasibleError: none is feasible; names the one that comes closest.
    """

    def __init__(
        self,
        policy: FactorisedPolicy,
        feasible: Callable[[Arch], bool] | None,
        describe: Callable[[], str] = lambda: "the given limits",
    ) -> None:
        self.policy, self.space, self.feasible, self.describe = policy, policy.space, feasible, describe
        self.limits: Limits | None = limits_behind(feasible)
        self.tables: Limits | None = None
        if self.limits is not None:
            try:
                self.tables = self.limits.tabulated()
            except SpaceError:
                self.tables = None  # a cost without exact table is asked for each architecture
        self._known: dict[bytes, bool] = {}
        self.listed: np.ndarray | None = None
        self.inactive = feasible is None
        fast = feasible is None or self.tables is not None
        if self.space.size <= (LISTED if fast else LISTED_SLOWLY):
            everything = policy.list_all()
            good = self.contains(everything)
            self.listed = everything[good]
            if len(self.listed) == 0:
                raise InfeasibleError(self._nothing(everything))
            self.inactive = bool(good.all())

    def contains(self, index: np.ndarray) -> np.ndarray:
        """Feasibility ``[N]`` of an index matrix ``[N, D]``."""
        if self.feasible is None:
            return np.ones(len(index), dtype=bool)
        if self.tables is not None:
            return self.tables.feasible_batch(index)
        rows = np.ascontiguousarray(index)
        keys = [row.tobytes() for row in rows]
        new = {k: i for i, k in enumerate(keys) if k not in self._known}
        for (key, _), arch in zip(new.items(), archs_of(self.space, rows[list(new.values())])):
            self._known[key] = bool(self.feasible(arch))
        return np.array([self._known[k] for k in keys], dtype=bool)

    def excess(self, index: np.ndarray) -> np.ndarray:
        """T(y)/T0 of each row; the largest if several costs are limited.

        Raises:
            UsageError: the limits are not of a kind that says by how much they are broken.
        """
        owner = self.tables or self.limits
        if owner is None:
            raise UsageError("A penalised reward needs limits on costs (archipel.cost.limits.Limits), not just a test.")
        return owner.excess_batch(index)

    def draw(self, rng: Random, tries: int = 10_000) -> np.ndarray:
        """One feasible row ``[1, D]``, uniformly.

        Raises:
            InfeasibleError: none in so many draws.
        """
        if self.listed is not None:
            return self.listed[[rng.randrange(len(self.listed))]]
        for _ in range(tries):
            index = index_matrix(self.space, [self.space.sample(rng)])
            if self.contains(index)[0]:
                return index
        if self.limits is not None:
            self.limits.check_possible()  # says by how much the smallest one is too large
        raise InfeasibleError(f"No architecture within {self.describe()} in {tries:,} draws from {self.space.name}.")

    def _nothing(self, everything: np.ndarray) -> str:
        head = f"None of the {len(everything):,} architectures of {self.space.name} is within {self.describe()}."
        if self.limits is None:
            return head
        closest = archs_of(self.space, everything[[int(np.argmin(self.excess(everything)))]])[0]
        costs = ", ".join(f"{m} {self.limits.cost(m, closest):,}" for m in self.limits.metrics)
        return f"{head} The smallest, {closest}, has {costs}. Raise the limit."
