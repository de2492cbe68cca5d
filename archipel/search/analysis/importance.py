"""Which decisions matter, alone and in pairs: functional ANOVA of a random forest.

Hutter, Hoos, Leyton-Brown. An Efficient Approach for Assessing Hyperparameter Importance. 2014.
https://proceedings.mlr.press/v32/hutter14.html — as used for architecture x hyperparameter interactions by Zela et al.
2018, https://arxiv.org/abs/1807.06906

A tree is constant on boxes: leaf l has value v_l (centred), extent |l_j| along decision j, volume |l| = prod_j |l_j|.
For a set U of decisions its marginal a_U (prediction averaged over all other decisions) has the exact second moment

    E[a_U^2] = sum_{l,m} v_l |l| v_m |m| prod_{j in U} |l_j ∩ m_j| / (|l_j| |m_j|)
    V_j = E[a_j^2],   V_jk = E[a_jk^2] - V_j - V_k,   importance F_U = V_U / V, the mean over trees

The forest is scikit-learn's; the marginals are computed here, by matrix products over pairs of leaves, without grids.
The measure is uniform: over the options of a decision, over the (logarithmic) range of a number.

Conditional decisions: the score is extended to the product of all decisions by ignoring closed ones. A closed decision
therefore takes several random values in copies of its row, so that the forest learns that it has no effect there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from archipel.core.decision import AnyDecision, Arch, Real
from archipel.core.errors import UsageError
from archipel.core.space import Space

MIN_CONFIGURATIONS = 10
MAX_LEAVES = 256  # time and memory grow with the square of the number of leaves


@dataclass(frozen=True)
class Importance:
    """Shares of the variance of the forest's predictions.

    Attributes:
        single: decision -> share explained by it alone.
        pair: two decisions, in the space's order -> share explained by their interaction beyond each alone.
        marginals: decision -> (value, mean, spread over the trees) of the score averaged over all other decisions.
        r2: of the forest on configurations it did not see (five folds); near or below 0 the shares mean nothing.
    """

    single: dict[str, float]
    pair: dict[tuple[str, str], float]
    marginals: dict[str, list[tuple[Any, float, float]]]
    r2: float

    def between(self, first: Iterable[str], second: Iterable[str]) -> float:
        """Summed interaction of two groups, such as architecture and training hyperparameters."""
        first, second = set(first), set(second)
        return sum(v for (a, b), v in self.pair.items() if (a in first and b in second) or (a in second and b in first))


@dataclass(frozen=True)
class Boxes:
    """A tree as boxes: edges in measure coordinates, ``low_LD`` and ``high_LD`` in [0, 1], and values ``[L]``."""

    low_LD: np.ndarray
    high_LD: np.ndarray
    value_L: np.ndarray

    @property
    def weight_L(self) -> np.ndarray:
        """Centred value times volume."""
        volume_L = (self.high_LD - self.low_LD).prod(axis=1)
        return (self.value_L - self.value_L @ volume_L) * volume_L

    def variance_shares(self) -> np.ndarray | None:
        """F ``[D, D]``: single shares on the diagonal, interactions beside it; None if the tree is constant."""
        L, D = self.low_LD.shape
        extent_LD = self.high_LD - self.low_LD
        w_L = self.weight_L
        mean = self.value_L @ extent_LD.prod(axis=1)
        total = np.square(self.value_L - mean) @ extent_LD.prod(axis=1)
        if total <= 1e-15 * max(1.0, mean**2):
            return None
        overlap_DP = np.empty((D, L * L))  # P: pairs of leaves
        for j in range(D):
            low, high, extent = self.low_LD[:, j], self.high_LD[:, j], extent_LD[:, j]
            shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
            # an extent of 0 has weight 0: whatever stands there does not count
            overlap_DP[j] = (np.maximum(shared, 0.0) / np.maximum(extent[:, None] * extent, 1e-300)).ravel()
        weighted_DP = overlap_DP * np.outer(w_L, w_L).ravel()
        moment_DD = weighted_DP @ overlap_DP.T
        single_D = weighted_DP.sum(axis=1)
        moment_DD -= single_D[:, None] + single_D
        np.fill_diagonal(moment_DD, single_D)
        return np.maximum(moment_DD, 0.0) / total  # rounding may leave -1e-17

    def marginal(self, j: int, at_M: np.ndarray) -> np.ndarray:
        """Prediction averaged over all decisions but j, at measure coordinates ``[M]``."""
        inside_ML = (self.low_LD[:, j] < at_M[:, None]) & (at_M[:, None] <= self.high_LD[:, j])
        others_L = np.delete(self.high_LD - self.low_LD, j, axis=1).prod(axis=1)
        return inside_ML @ (self.value_L * others_L)


def _levels(decision: AnyDecision) -> int:
    """Number of options of a decision with finitely many; 0 for a number from a range."""
    return 0 if isinstance(decision, Real) else decision.size


def _matrix(decisions: Sequence[AnyDecision], archs: Sequence[Arch], copies: int, seed: int) -> np.ndarray:
    """Codes ``[N * copies, D]``, the copies of a row together; closed decisions drawn uniformly in each copy."""
    rng = np.random.default_rng(seed)
    X = np.full((len(archs), len(decisions)), np.nan)
    for j, d in enumerate(decisions):
        for n, arch in enumerate(archs):
            if d.name in arch:
                X[n, j] = d.encode(arch[d.name])[0] if isinstance(d, Real) else d.index(arch[d.name])
    X = X.repeat(copies, axis=0)
    for j, d in enumerate(decisions):
        closed = np.isnan(X[:, j])
        X[closed, j] = rng.integers(_levels(d), size=closed.sum()) if _levels(d) else rng.random(closed.sum())
    return X


def boxes_of(tree: Any, levels_D: np.ndarray) -> Boxes:
    """The leaves of a fitted scikit-learn tree (its ``tree_``) over codes 0 … c - 1, or [0, 1] where levels are 0."""
    low = np.full((tree.node_count, len(levels_D)), -np.inf)
    high = np.full_like(low, np.inf)
    for node in range(tree.node_count):  # parents come before their children
        left, right = tree.children_left[node], tree.children_right[node]
        if left >= 0:
            low[left], high[left], low[right], high[right] = low[node], high[node], low[node], high[node]
            high[left, tree.feature[node]] = low[right, tree.feature[node]] = tree.threshold[node]
    leaf = tree.children_left < 0

    def measure(edge_LD: np.ndarray) -> np.ndarray:
        codes = (np.floor(np.clip(edge_LD, -1, levels_D - 1)) + 1) / np.maximum(levels_D, 1)
        return np.where(levels_D > 0, codes, np.clip(edge_LD, 0, 1))

    return Boxes(measure(low[leaf]), measure(high[leaf]), tree.value[leaf, 0, 0])


def _marginals(trees: Sequence[Boxes], decisions: Sequence[AnyDecision], points: int) -> dict[str, list]:
    out = {}
    for j, d in enumerate(decisions):
        if isinstance(d, Real):
            at_M = np.linspace(0, 1, points)
            values = [d.decode(x) for x in at_M]
        else:
            at_M, values = (np.arange(d.size) + 0.5) / d.size, list(d.options)
        curves_TM = np.stack([t.marginal(j, np.maximum(at_M, 1e-9)) for t in trees])  # boxes are open at their left
        out[d.name] = [(v, float(m), float(s)) for v, m, s in zip(values, curves_TM.mean(0), curves_TM.std(0))]
    return out


def functional_anova(
    space: Space,
    archs: Sequence[Arch],
    scores: Sequence[float],
    trees: int = 64,
    copies: int = 4,
    floor_quantile: float | None = None,
    points: int = 11,
    seed: int = 0,
) -> Importance:
    """Importance of every decision and of every pair of decisions for the score.

    Args:
        space: whose decisions are asked about.
        archs, scores: evaluated on one budget; failures (scores that are not finite) are left out.
        trees: in the forest.
        copies: of each row where decisions are closed, see above.
        floor_quantile: scores below this quantile are lifted to it, so that a few disasters (a diverging learning
            rate) do not make up all the variance.
        points: on the marginal curve of a number.
        seed: of the forest and of the values of closed decisions.

    Raises:
        UsageError: unequal lengths, fewer than ten finite scores, all of them equal, or a space
            without an open decision.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold, cross_val_score

    if len(archs) != len(scores):
        raise UsageError(f"Got {len(archs)} architectures but {len(scores)} scores; give one score for each.")
    y = np.asarray(scores, dtype=float)
    kept = np.flatnonzero(np.isfinite(y))
    if len(kept) < MIN_CONFIGURATIONS:
        raise UsageError(f"Importance needs at least {MIN_CONFIGURATIONS} finite scores, not {len(kept)}.")
    y = y[kept]
    if floor_quantile is not None:
        y = np.maximum(y, np.quantile(y, floor_quantile))
    if np.ptp(y) == 0:
        raise UsageError(f"All {len(y)} scores equal {y[0]}: there is no variance to attribute.")
    decisions = [d for d in space.decisions if d.size > 1]
    if not decisions:
        raise UsageError(f"{space.name} has a single architecture: there is no decision to attribute variance to.")
    copies = copies if space.conditions else 1
    X, y = _matrix(decisions, [archs[n] for n in kept.tolist()], copies, seed), y.repeat(copies)

    forest = RandomForestRegressor(trees, max_leaf_nodes=MAX_LEAVES, random_state=seed)
    folds = GroupKFold(5).split(X, y, np.arange(len(y)) // copies)  # copies of a row never on both sides
    r2 = float(cross_val_score(forest, X, y, cv=folds, scoring="r2").mean())
    levels_D = np.array([_levels(d) for d in decisions])
    boxes = [boxes_of(tree.tree_, levels_D) for tree in forest.fit(X, y).estimators_]
    shares = [s for s in (b.variance_shares() for b in boxes) if s is not None]
    shares_DD = np.mean(shares, axis=0) if shares else np.zeros((len(decisions), len(decisions)))

    names = [d.name for d in decisions]
    single = {d.name: 0.0 for d in space.decisions} | {n: float(shares_DD[j, j]) for j, n in enumerate(names)}
    pair = {(names[j], names[k]): float(shares_DD[j, k]) for j, k in combinations(range(len(names)), 2)}
    return Importance(single, pair, _marginals(boxes, decisions, points), r2)
