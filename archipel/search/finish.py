"""The end of a run: train the chosen network and random ones alike, open the test split once, export, report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from archipel.core.decision import Arch
from archipel.core.errors import RunError
from archipel.core.export import export_network
from archipel.core.storage import write_json
from archipel.search.config import Budget
from archipel.search.loop import Arm, run_crew
from archipel.search.page import write_html
from archipel.search.report import build_report
from archipel.search.strategy import Problem, Strategy, Trial
from archipel.search.training import evaluate
from archipel.search.worker import Job

if TYPE_CHECKING:
    from archipel.search.driver import Search


class GivenList(Strategy):
    """Proposes the given architectures, in order."""

    def __init__(self, archs: list[Arch]) -> None:
        self.archs = archs

    def ask(self) -> Trial | None:
        return None if self.finished else self.new_trial(self.archs[self._next_id])

    def tell(self, trial: Trial) -> None:
        pass

    @property
    def finished(self) -> bool:
        return self._next_id >= len(self.archs)


class FinalNetworks:
    """The best few architectures of the search and a few random ones, trained longer and alike.

    The best of the former on validation data is handed over. The random ones answer the question that a leaderboard
    number cannot: what the same training would have made of an architecture that nobody searched for.
    """

    def __init__(self, search: Search, arms: list[Arm]) -> None:
        self.search = search
        self.candidates = self._best_archs(arms[0])
        self.archs = [*self.candidates, *self._random_archs(arms)]
        self.epochs = search.config.final_epochs or 2 * search.config.recipe.epochs

    def _best_archs(self, arm: Arm) -> list[Arch]:
        """Different architectures with the best scores after the most training that any had, best first."""
        limits, best = self.search.limits, {}
        for trial in sorted(arm.contenders(), key=arm.score, reverse=True):
            if not limits.feasible(trial.arch):
                raise RunError(f"{trial} breaks the limits ({limits.describe()}); this is a defect of the strategy.")
            best.setdefault(self.search.parts.space.canonical(trial.arch), trial.arch)
            if len(best) == self.search.config.final_candidates:
                break
        return list(best.values())

    def _random_archs(self, arms: list[Arm]) -> list[Arch]:
        """The first feasible ones of the random baseline, or fresh draws if there was none."""
        wanted = self.search.config.final_random
        archs = [t.arch for arm in arms[1:] for t in sorted(arm.trials, key=lambda t: t.id)][:wanted]
        problem = self.search.problem(f"{self.search.config.seed}/final")
        return archs + [problem.sample() for _ in range(wanted - len(archs))]

    def train(self) -> Arm:
        """An arm with one trial for each network; their weights are in the checkpoints ``final-<i>``.

        Its ``best`` is the chosen network: candidates only.

        Raises:
            RunError: the training of every candidate failed.
        """
        strategy = GivenList(self.archs)
        base = self.search.problem("")
        problem = Problem(base.space, base.objectives, base.rng, max_resource=self.epochs)
        strategy.setup(problem)
        # Every network is trained, even if two are the same: nothing is cached.
        journal, costs = self.search.run.journal, self.search.costs
        arm = Arm("final", strategy, problem, Budget(trials=len(self.archs)), journal, None, costs)
        self.search.progress.phase("final training", len(self.archs))
        arm.replay()
        run_crew(arm, self.search.crew, self._job, lambda a: self.search.progress.update(len(a.trials)))
        arm.trials.sort(key=lambda t: t.id)
        done = [t for t in arm.trials[: len(self.candidates)] if t.ok]
        if not done:
            reason = arm.trials[0].failure
            raise RunError(f"The final training of every candidate failed ({reason}). `resume` reports it again.")
        arm.best = max(done, key=arm.score)
        return arm

    def _job(self, trial: Trial) -> Job:
        return Job(
            f"final-{trial.id}", trial.arch, self.epochs, full_epochs=self.epochs, save_above=float("-inf"), metric=""
        )


def finish(search: Search, arms: list[Arm], finals: Arm | None) -> None:
    """Test, export, report. Without final networks (interrupted), the best network of the search so far."""
    run = search.run
    if finals is not None:
        test = _open_test_once(search, finals)
        chosen = finals.best
        assert chosen is not None
        net = _load(search, chosen.arch, f"final-{chosen.id}")
    else:
        best = arms[0].best if arms else None
        state = None if best is None else run.checkpoints.load(f"search-{best.id}")
        if best is None or state is None:
            run.log("nothing to hand over yet")
            return
        test = None
        chosen, net = best, _load(search, best.arch, f"search-{best.id}")
    search.progress.phase("export")
    report = build_report(search, arms, finals, chosen, test)
    example = search.parts.dataset.train.x[:3]
    about = {
        "data": search.parts.dataset.info | {"name": search.parts.dataset.name, "task": search.parts.dataset.task},
        "metrics": report["chosen"]["metrics"],
        "status": report["status"],
    }
    files = export_network(net, example, run.model_path, chosen.arch, about)
    report["files"] = {name: f"model/{name}" for name in files}
    write_json(run.path / "pareto.json", report["pareto"])
    write_json(run.path / "report.json", report)
    write_html(run.path / "report.html", report, search.parts.space, chosen.arch)
    if finals is not None:
        run.journal.note("finished", True)
        _drop_checkpoints(search, finals)


def _load(search: Search, arch: Arch, name: str) -> nn.Module:
    state = search.run.checkpoints.load(name)
    if state is None:
        raise RunError(f"The weights {name} are missing from {search.run.checkpoints.folder}.")
    net = search.parts.space.build(arch, seed=search.config.seed)
    net.load_state_dict(state["model"])
    return net.eval()


def _open_test_once(search: Search, finals: Arm) -> list[dict[str, float] | None]:
    """Metrics of the final networks on the test split, which is opened here and nowhere else, once in a run's life."""
    journal = search.run.journal
    known: Any = journal.recall("test")
    if known is not None:
        return known
    dataset = search.parts.dataset
    if dataset.sealed_test is None:
        return [None] * len(finals.trials)
    nets = [None if t.failure else _load(search, t.arch, f"final-{t.id}") for t in finals.trials]
    purpose = f"final evaluation of {len(nets)} networks: the candidates of the search and random ones"
    test = dataset.open_test(purpose)
    with torch.no_grad():
        results = [None if net is None else evaluate(net, test, dataset.task) for net in nets]
    journal.note("test", results)
    search.run.log("test opened", purpose=purpose, examples=len(test))
    return results


def _drop_checkpoints(search: Search, finals: Arm) -> None:
    """The exported network holds the weights; what only served resuming goes."""
    folder = search.run.checkpoints.folder
    if folder is not None:
        for path in folder.glob("*.pt"):
            if finals.best is None or path.stem != f"final-{finals.best.id}":
                path.unlink(missing_ok=True)
