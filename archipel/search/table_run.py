"""Searching a tabular benchmark: the same run, with a lookup in the place of training.

There is no network to train or to hand over; the run's report compares the strategy with random search, and says what
rank in the whole table it reached.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from archipel.core.decision import Arch
from archipel.core.errors import RunError, UsageError, suggest
from archipel.core.run import RunFolder
from archipel.core.storage import write_json
from archipel.cost.limits import Limits
from archipel.search.config import Budget, SearchConfig
from archipel.search.driver import Parts, Progress, Search, parse_objectives, the_strategy
from archipel.search.loop import Arm, run_table
from archipel.search.metrics import rank_from_worst
from archipel.search.page import write_html
from archipel.search.report import build_report
from archipel.search.strategy import Problem, Strategy
from archipel.search.tables import GRAPHS, GraphTable, NB201Table, Table

PREFIX = "table:"


def open_table(name: str) -> Table:
    """``"nb201"``, or ``"graph-cora"`` and the other graphs of NAS-Bench-Graph.

    Raises:
        UsageError: unknown name.
        MissingExtraError: the package with the table is not installed.
    """
    if name == "nb201":
        return NB201Table()
    if name.startswith("graph-") and name[6:] in GRAPHS:
        return GraphTable(name[6:])
    raise UsageError(f"No table {name!r}. {suggest(name, ['nb201', *(f'graph-{g}' for g in GRAPHS)])}")


class TableSearch(Search):
    """A run whose evaluator is a table.

    Raises:
        UsageError: the configuration asks for what a table has not (limits, another space, unknown objectives).
    """

    def __init__(
        self, config: SearchConfig, run: RunFolder, table: Table, strategy: Strategy, progress: Progress | None = None
    ) -> None:
        if config.limits:
            raise UsageError("A table search takes no limits: the table's networks are not built.")
        if config.space not in ("auto", table.space.name):
            raise UsageError(f"This table has its own space ({table.space.name}); leave --space out.")
        self.progress = progress or Progress()
        metric = "accuracy" if "accuracy" in table.metrics else table.metrics[0]
        wanted = config.objectives or [metric]
        self.objectives = parse_objectives(wanted, {m: m for m in table.metrics})
        for text in wanted:
            if text.startswith("test_"):
                raise UsageError(f"A search must not look at test figures; {text!r} is one. Search on {metric!r}.")
        self.config, self.run = config, run
        # The rest of a row can be looked up again; recording it would only make the journal slow and large.
        self.table = table.only(*dict.fromkeys(o.metric for o in self.objectives))
        self.parts = Parts(None, table.space, strategy)  # type: ignore[arg-type]  # a table has no data to train on
        self.limits = Limits({}, table.space)
        self.feasible = self.limits

    def go(self) -> None:
        """Search, baseline, report."""
        problem = self.problem(f"{self.config.seed}/search")
        self.parts.strategy.setup(problem)
        arms = [self.run_arm("search", self.parts.strategy, problem, self.config.budget)]
        if self.config.baseline > 0:
            queries = max(1, round(arms[0].ledger.queries * self.config.baseline))
            arms.append(self.baseline_of(Budget(trials=queries)))
        chosen = arms[0].best
        if chosen is None:
            raise RunError("No trial was evaluated, so there is nothing to report.")
        report = build_report(self, arms, None, chosen, None) | {"status": "finished"}
        first = self.objectives[0]
        sign = 1.0 if first.mode == "max" else -1.0
        population = sign * self.table.column(first.metric)
        rank = rank_from_worst(sign * chosen.metrics[first.metric], population)
        report["table"] = {"rank_from_worst": rank, "of": len(population), "best": float(sign * population.max())}
        write_json(self.run.path / "pareto.json", report["pareto"])
        write_json(self.run.path / "report.json", report)
        write_html(self.run.path / "report.html", report, self.parts.space, chosen.arch)
        self.run.journal.note("finished", True)
        self.run.log("finished")

    def problem(self, seed: str) -> Problem:
        return replace(super().problem(seed), max_resource=1)  # a lookup is all there is to an evaluation

    def run_arm(self, name: str, strategy: Strategy, problem: Problem, budget: Budget) -> Arm:
        # A table answers the same every time, so nothing needs to be remembered: the key is never asked for twice.
        arm = Arm(name, strategy, problem, budget, self.run.journal, key=None)
        if name == "search":
            self.arm = arm
        self.progress.phase(name, budget.trials)
        arm.replay()
        run_table(arm, self.table.evaluate, self._show)
        return arm

    def costs(self, arch: Arch) -> dict[str, Any]:
        """None are known beyond the table's metrics."""
        return {}


def table_parts(config: SearchConfig, strategy: Strategy | None = None) -> tuple[Table, Strategy]:
    """The table of a configuration whose data is ``table:<name>``, and the strategy."""
    return open_table(config.data.removeprefix(PREFIX)), the_strategy(config, strategy)
