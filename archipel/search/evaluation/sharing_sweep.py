"""Rank disorder against the amount of weight sharing, from one supernet for all networks to one for each.

Yu, Sciuto, Jaggi, Musat, Salzmann. Evaluating the Search Phase of Neural Architecture Search. 2020.
https://arxiv.org/abs/1902.08142

Networks that differ in some decisions stop sharing: each combination of these decisions gets a supernet of its own,
which only trains the networks that agree with it. The space and the K architectures stay the same. The paper instead
takes operations and parents out of its spaces, which changes what is ranked, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np

from archipel.core.counting import Clause
from archipel.core.decision import Arch, Decision
from archipel.core.errors import UsageError, suggest
from archipel.core.space import Space
from archipel.core.supernet import Supernet
from archipel.search.evaluation.compare import shown, text_table
from archipel.search.evaluation.notebook import Notebook
from archipel.search.evaluation.policies import SearchTask
from archipel.search.evaluation.weight_sharing import Make, rank_disorder, score_all
from archipel.spaces.module_space import ModuleSpace


class Agreeing(Space):
    """The part of a space whose architectures agree in some decisions; its supernet is shared by these only.

    Args:
        space: the whole.
        fixed: decisions in which they agree, and their values.
        seed: of the supernet's initial weights, where the space takes one.

    Strategies that draw paths from the space then train no others; a strategy that blends all options of a choice is
    not held back by this.

    Raises:
        UsageError: an unknown decision, or one that is not always open.

    >>> space = Space([Decision("a", [1, 2]), Decision("b", [1, 2, 3])])
    >>> Agreeing(space, {"a": 1}).size
    3
    """

    def __init__(self, space: Space, fixed: Mapping[str, Any], seed: int = 0) -> None:
        check_always_open(space, fixed)
        self.inner, self.fixed, self.seed = space, dict(fixed), seed
        decisions, conditions = [], {}
        for d in space.decisions:
            clauses = self._reachable(space.conditions.get(d.name))
            if clauses is None or clauses:
                decisions.append(Decision(d.name, [fixed[d.name]], d.ordered) if d.name in fixed else d)
                conditions |= {} if clauses is None else {d.name: clauses}
        super().__init__(decisions, conditions)
        listing = ", ".join(f"{n}={v}" for n, v in fixed.items())
        self.name = f"{space.name} with {listing}" if listing else space.name

    def _reachable(self, condition: Any) -> list[Clause] | None:
        """A condition without what is fixed; None if the decision is always open, nothing if never."""
        if condition is None:
            return None
        possible = [c for c in condition if all(p not in self.fixed or self.fixed[p] in vs for p, vs in c)]
        return [frozenset((p, vs) for p, vs in clause if p not in self.fixed) for clause in possible]

    def canonical(self, arch: Arch) -> str:
        return self.inner.canonical(arch)

    def build(self, arch: Arch, seed: int = 0) -> Any:
        return self.inner.build(arch, seed)

    @property
    def cost(self) -> Any:
        return self.inner.cost

    def supernet(self) -> Supernet:
        inner = self.inner.supernet(self.seed) if isinstance(self.inner, ModuleSpace) else self.inner.supernet()
        return Supernet(inner.net, self)


def check_always_open(space: Space, names: Iterable[str]) -> None:
    """
    Raises:
        UsageError: a decision that is unknown, real-valued, or not always open.
    """
    for name in names:
        if name not in space.by_name:
            raise UsageError(f"{space.name} has no decision {name!r}. {suggest(str(name), space.by_name)}")
        if name in space.conditions or not isinstance(space.by_name[name], Decision):
            raise UsageError(f"Networks can only stop sharing by decisions that are always open, unlike {name!r}.")


def sharing_sweep(
    make: Make,
    task: SearchTask,
    archs: Sequence[Arch],
    alone_SK: Any,
    levels: Sequence[Sequence[str]],
    seeds: int = 3,
    epochs: int | None = None,
    executor: Executor | None = None,
    notebook: Notebook | None = None,
) -> dict[str, Any]:
    """Rank disorder against the amount of sharing.

    Args:
        levels: for each, the decisions in which networks must agree to share weights: ``[]`` is one supernet for all.
        epochs: of each supernet. All are trained equally long, so the cost grows with their number.

    Returns:
        ``rows`` (from :func:`rank_disorder`, with ``apart``, how many ``supernets`` there are, how many of them the
        architectures needed, and how many ``networks`` share one) and ``text``.

    Raises:
        UsageError: an unknown decision, or one that is not always open.
    """
    names = [task.space.canonical(a) for a in archs]
    rows = []
    for apart in levels:
        check_always_open(task.space, apart)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, arch in enumerate(archs):
            groups.setdefault(tuple(arch[name] for name in apart), []).append(i)
        calls, places, sizes = [], [], []
        for values, members in groups.items():
            for s in range(seeds):
                space = Agreeing(task.space, dict(zip(apart, values)), s)
                own = replace(task, space=space)
                calls.append((make, own, tuple(archs[i] for i in members), s, epochs))
                places.append((s, members))
                sizes.append(space.size)
        scores = np.empty((seeds, len(archs)))
        for (s, members), found in zip(places, score_all(calls, executor, notebook)):
            scores[s, members] = found
        rows.append({
            "apart": list(apart),
            "supernets": math.prod(int(task.space.by_name[n].size) for n in apart),
            "trained": len(groups),
            "networks": float(np.mean(sizes)),
            **rank_disorder(scores, alone_SK, names, [f"seed {s}" for s in range(seeds)]),
        })  # fmt: skip
    table = [["apart in", "supernets", "networks each", "tau", "± (architectures)", "± (seeds)", "ceiling"]]
    for r in rows:
        cells = (shown(r[k], ".3f") for k in ("tau", "tau_error", "tau_std", "ceiling"))
        table.append([", ".join(r["apart"]) or "nothing", str(r["supernets"]), f"{r['networks']:g}", *cells])
    return {"rows": rows, "text": text_table(table)}
