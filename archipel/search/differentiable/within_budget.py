"""The answer of a search brought within a budget: `select` :class:`WithinBudget`, usable behind any mix.

Reading off one architecture breaks a budget that the mixture keeps: the options taken may cost more than those they are
averaged with. While a bound is broken, one decision is changed at a time, the one that gives up least likelihood for
the cost it saves:

    argmin over (edge, other option)   (log p_current - log p_other) / (cost saved)

Where no other option helps, a node that keeps k of its sources exchanges one of them. A lower bound is mirrored. Each
change brings the broken bounds nearer in sum, so the repair ends; the costs are those of the discrete network, counted
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from archipel.core.choice import Choice
from archipel.core.decision import Arch
from archipel.core.errors import InfeasibleError, SpaceError, UsageError
from archipel.search.differentiable.budget import Budget, CostEntries, Limit
from archipel.search.differentiable.costs import METRICS
from archipel.search.differentiable.parameters import ArchParameters
from archipel.search.differentiable.select import Argmax, Select
from archipel.spaces.module_space import ModuleSpace

if TYPE_CHECKING:
    from archipel.search.differentiable.state import SearchState


class Repair:
    """Architectures of a search changed until they keep a budget.

    Args:
        budget: to keep.
        space, parameters: of the search.
    """

    def __init__(self, budget: Budget, space: ModuleSpace, parameters: ArchParameters) -> None:
        self.bounds, self.parameters, self.space = budget.bounds, parameters, space
        self.costs = budget.costs(space, parameters, kept=False)
        self._table = [{n: c.tolist() for n, c in cost.table.items()} for cost in self.costs]

    def cost(self, arch: Arch) -> list[float]:
        """One for each metric of the budget.

        Raises:
            SpaceError: costs of this space are no sums over its choices.
        """
        totals = self._sums(arch)
        for cost, total in zip(self.costs, totals):
            exact = getattr(self.space.cost, cost.metric)(arch) if cost.metric in METRICS else total
            if abs(exact - total) > 0.5:
                raise SpaceError(
                    f"{cost.metric} of {self.space.name} are no sum over its choices: {total:,.0f} by the sum, "
                    f"{exact:,} counted. A budget on them cannot be kept option by option."
                )
        return totals

    def __call__(self, arch: Arch, weights: Mapping[str, Sequence[float]]) -> Arch:
        """The architecture, changed where a bound is broken.

        Args:
            weights: of the mixture, by row.

        Raises:
            InfeasibleError: no change brings the broken bounds nearer.
        """
        arch = dict(arch)
        costs = self._sums(arch)
        while self._excess(costs) > 0.0:
            best = self._best(self._options(arch, weights), costs) or self._best(self._sources(arch, weights), costs)
            if best is None:
                broken = ", ".join(f"{c.metric} {v:,.6g}" for c, v in zip(self.costs, costs))
                raise InfeasibleError(
                    f"The searched architecture has {broken}, and no change of one decision brings it nearer to "
                    f"{' and '.join(map(str, self.bounds))}. Widen the bounds."
                )
            arch, costs = best, self._sums(best)
        self.cost(arch)  # refuses a space in which the sums are not what is counted
        return arch

    def attainable(self) -> list[tuple[float, float]]:
        """For each metric, the costs of the cheapest and the most expensive architecture that can be chosen."""
        found = []
        for cost, table in zip(self.costs, self._table):
            least, most = cost.constant, cost.constant
            noded: set[str] = set()
            for inputs in self.parameters.inputs.values():
                ranges = [self._range(table, self._rows(edge)) for edge in inputs.edges]
                noded.update(n for edge in inputs.edges for n in self._rows(edge))
                least += sum(sorted(low for low, _ in ranges)[: inputs.k])
                most += sum(sorted(high for _, high in ranges)[-inputs.k :])
            low, high = self._range(table, [n for n in table if n not in noded])
            found.append((least + low, most + high))
        return found

    # --- inside ----------------------------------------------------------------------------------------------------

    def _excess(self, costs: Sequence[float]) -> float:
        return sum(e for b in self.bounds if (e := b.excess(costs[b.resource])) > 0.0)

    def _best(self, moves: Iterator[tuple[float, Arch]], costs: Sequence[float]) -> Arch | None:
        """Of (log-likelihood given up, architecture), the one that gives up least for what broken bounds gain."""
        now, broken = self._excess(costs), [b for b in self.bounds if b.excess(costs[b.resource]) > 0.0]
        best, least = None, math.inf
        for given_up, arch in moves:
            after = self._sums(arch)
            gained = sum(b.slope * (costs[b.resource] - after[b.resource]) for b in broken)
            if gained > 0.0 and self._excess(after) < now and given_up / gained < least:
                best, least = arch, given_up / gained
        return best

    def _sums(self, arch: Arch) -> list[float]:
        return [
            cost.constant + math.fsum(t[n][self._index(n, arch[n])] for n in t if n in arch)
            for cost, t in zip(self.costs, self._table)
        ]

    def _options(self, arch: Arch, weights: Mapping[str, Sequence[float]]) -> Iterator[tuple[float, Arch]]:
        for name, row in self.parameters.rows.items():
            if row.is_choice and name in arch:
                now = _log(weights[name][self._index(name, arch[name])])
                for i in row.derivable:
                    if row.labels[i] != str(arch[name]):
                        yield now - _log(weights[name][i]), {**arch, name: self._value(name, i)}

    def _sources(self, arch: Arch, weights: Mapping[str, Sequence[float]]) -> Iterator[tuple[float, Arch]]:
        """One source of a node exchanged for another, there with any option."""
        for node, inputs in self.parameters.inputs.items():
            taken = inputs.sources[arch[node]]
            for out in taken:
                gone = self._rows(inputs.edges[out])
                if any(n not in arch for n in gone):
                    continue
                lost = sum(_log(weights[n][self._index(n, arch[n])]) for n in gone)
                rest = {n: v for n, v in arch.items() if n not in gone}
                for new in sorted(set(range(len(inputs.edges))) - set(taken)):
                    label = ",".join(map(str, sorted({*taken, new} - {out})))
                    for chosen, log in self._ways(self._rows(inputs.edges[new]), weights):
                        moved = {**rest, node: label, **chosen}
                        yield lost - log, {d.name: moved[d.name] for d in self.space.decisions if d.name in moved}

    def _ways(self, rows: Sequence[str], weights: Mapping[str, Sequence[float]]) -> Iterator[tuple[Arch, float]]:
        if len(rows) != 1:  # an edge without operations; several on one edge are no cell of ours
            if not rows:
                yield {}, 0.0
            return
        for i in self.parameters.rows[rows[0]].derivable:
            yield {rows[0]: self._value(rows[0], i)}, _log(weights[rows[0]][i])

    def _rows(self, edge: nn.Module) -> list[str]:
        names = [m.decision.name for m in edge.modules() if isinstance(m, Choice)]
        return [n for n in dict.fromkeys(names) if n in self.parameters.rows]

    def _range(self, table: Mapping[str, Sequence[float]], names: Sequence[str]) -> tuple[float, float]:
        costs = [[table[n][i] for i in self.parameters.rows[n].derivable] for n in names]
        return sum(map(min, costs)), sum(map(max, costs))

    def _index(self, name: str, value: object) -> int:
        return self.parameters.rows[name].labels.index(str(value))

    def _value(self, name: str, i: int) -> object:
        choice = self.parameters.rows[name].modules[0]
        assert isinstance(choice, Choice)
        return choice.decision.options[i]


def _log(p: float) -> float:
    return math.log(max(p, 1e-30))  # sparse mixtures have exact zeros


class WithinBudget(Select):
    """What another part reads off, changed until it keeps a budget.

    Args:
        upper, lower, tables: see :class:`~archipel.search.differentiable.budget.Budget`; without bounds, those of the
            search's objective hold (:class:`~archipel.search.differentiable.rc_darts.HardCost`).
        inner: reads the architecture off; the largest weights by default.
    """

    def __init__(
        self,
        upper: Mapping[str, Limit] | None = None,
        lower: Mapping[str, Limit] | None = None,
        tables: Mapping[str, CostEntries] | None = None,
        inner: Select | None = None,
    ) -> None:
        self.budget = Budget(upper or {}, lower, tables) if upper or lower else None
        self.inner = inner or Argmax()

    def started(self, state: SearchState) -> None:
        """
        Raises:
            UsageError: no budget, neither here nor in the objective.
            InfeasibleError: no architecture keeps it.
        """
        self.inner.started(state)
        budget = self.budget or getattr(state.objective, "budget", None)
        space = state.supernet.space
        if not isinstance(budget, Budget) or not isinstance(space, ModuleSpace):
            raise UsageError(
                f"WithinBudget needs a budget, its own or one of the objective, and a space made of a module; the "
                f"objective is {type(state.objective).__name__}, the space {space.name}."
            )
        self._repair = Repair(budget, space, state.parameters)
        budget.check(self._repair.attainable())

    def __call__(self, state: SearchState) -> Arch:
        return self.answers(state)[0]

    def answers(self, state: SearchState) -> list[Arch]:
        weights = {n: w.detach().tolist() for n, w in state.scores().items()}
        return [self._repair(arch, weights) for arch in self.inner.answers(state)]

    # What the inner part does meanwhile.

    def further(self, state: SearchState) -> int:
        return self.inner.further(state)

    def restored(self, state: SearchState) -> None:
        self.inner.restored(state)

    def step_ended(self, state: SearchState) -> None:
        self.inner.step_ended(state)

    def epoch_ended(self, state: SearchState) -> None:
        self.inner.epoch_ended(state)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)
