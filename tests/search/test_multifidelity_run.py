"""Runs whose trials are trained in part: promotions, weights on disk, kills, budgets, and what is handed over."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.choice import Choice, Width
from archipel.core.decision import Decision
from archipel.core.errors import UsageError
from archipel.core.run import Journal
from archipel.core.space import Space
from archipel.data.dataset import Dataset, Split
from archipel.search.api import load_result, resume, run_search, search
from archipel.search.blackbox.asha import ASHA
from archipel.search.blackbox.mobster import MOBSTER
from archipel.search.config import Budget, SearchConfig
from archipel.search.loop import Arm
from archipel.search.strategy import Problem, Strategy
from archipel.search.tables import Table
from archipel.search.training import Recipe
from archipel.search.worker import Blueprint, Job, Outcome, Workshop
from archipel.spaces.layers import ElasticLinear
from archipel.spaces.module_space import ModuleSpace

EPOCHS = 9
RECIPE = Recipe(epochs=EPOCHS, batch_size=96, lr=0.1)
CONTINUED, ANEW = ["asha", "mobster", "hyperband"], ["bohb"]
every = pytest.mark.parametrize("strategy", CONTINUED + ANEW)


def net():
    v, w = (Width(name, list(range(2, 18))) for name in "vw")
    act = Choice("act", {"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()})
    return nn.Sequential(ElasticLinear(4, v), act, ElasticLinear(v, w), nn.Tanh(), ElasticLinear(w, 3))


def space():
    return ModuleSpace(net, torch.zeros(2, 4))


def data():
    g = torch.Generator().manual_seed(0)

    def split(n):
        y = torch.randint(0, 3, (n,), generator=g)
        return Split(torch.randn(n, 4, generator=g) + 1.5 * nn.functional.one_hot(y, 4), y)

    return Dataset("blobs", split(96), split(60), split(60), "classification", 3)


@pytest.fixture(autouse=True)
def _light_export(monkeypatch):
    """Exporting has its own tests and takes seconds; here it only writes the architecture."""

    def export(net, example, folder, arch, about):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "architecture.json").write_text(json.dumps(arch))
        return {"architecture.json": ""}

    monkeypatch.setattr("archipel.search.finish.export_network", export)
    for module in ("finish", "table_run"):
        monkeypatch.setattr(f"archipel.search.{module}.write_html", lambda *args: None)


def go(out, strategy, **settings):
    given = {"space": space(), "data": data(), "strategy": strategy, "budget": 20, "recipe": RECIPE, "out": out}
    return search(**{**given, "baseline": 0.0, "final_random": 1, "final_epochs": 2, **settings})


def rows(out, arm="search"):
    journal = Journal(out / "trials.sqlite")
    try:
        return list(journal.trials(arm))
    finally:
        journal.close()


class Stop(BaseException):
    """Stands for a SIGKILL: nobody catches it."""


def raise_at(monkeypatch, when, error=Stop):
    """Raise before the first job for which ``when(number of the job, job)`` is true; returns how to end this."""
    count, run = 0, Workshop.run

    def dies(self, job):
        nonlocal count
        count += 1
        if when(count, job):
            raise error
        return run(self, job)

    monkeypatch.setattr(Workshop, "run", dies)
    return lambda: monkeypatch.setattr(Workshop, "run", run)


def checkpoints(out):
    return sorted(p.stem for p in (out / "checkpoints").iterdir())


# --- promotions -------------------------------------------------------------------------------------------------------


@every
def test_a_run_promotes_finishes_and_leaves_the_final_weights_only(tmp_path, strategy):
    report = go(tmp_path / "run", strategy).report
    trials = rows(tmp_path / "run")
    assert report["status"] == "finished"
    assert report["failures"] == []
    assert not any("No trial of the strategy" in note for note in report["notes"])
    assert {t["resource"] for t in trials} == {1, 3, EPOCHS}
    assert any(t["resume"] is not None for t in trials) == (strategy in CONTINUED)
    assert len(checkpoints(tmp_path / "run")) == 1
    complete = [t for t in trials if t["resource"] == EPOCHS]
    best = sorted(complete, key=lambda t: -t["metrics"]["accuracy"])
    assert [row["arch"] for row in rows(tmp_path / "run", "final")][:-1] == [t["arch"] for t in best[:2]]
    assert all(p["resource"] == EPOCHS for p in report["pareto"])


def test_a_promoted_trial_ends_like_one_that_was_trained_without_a_pause(tmp_path):
    go(tmp_path / "run", "asha")
    promoted = [t for t in rows(tmp_path / "run") if t["resource"] == EPOCHS]
    assert promoted
    shop = Workshop(Blueprint("k", data(), space(), RECIPE, 0, None))
    for t in promoted:
        whole = shop.run(Job("whole", t["arch"])).metrics
        assert {k: t["metrics"][k] for k in ("accuracy", "loss")} == {k: whole[k] for k in ("accuracy", "loss")}
        assert t["metrics"]["epochs"] == 6.0  # it resumed after 3


def test_trials_from_scratch_anneal_over_their_own_epochs(tmp_path):
    go(tmp_path / "run", "bohb")
    shop = Workshop(Blueprint("k", data(), space(), RECIPE, 0, None))
    for t in rows(tmp_path / "run"):
        alone = shop.run(Job("alone", t["arch"], epochs=t["resource"], full_epochs=t["resource"])).metrics
        assert t["metrics"]["loss"] == alone["loss"]


def test_a_network_that_was_answered_from_an_earlier_trial_can_still_be_promoted(tmp_path):
    tiny = ModuleSpace(
        lambda: nn.Sequential(ElasticLinear(4, w := Width("w", [2, 8, 16])), nn.ReLU(), ElasticLinear(w, 3)),
        torch.zeros(2, 4),
    )
    report = go(tmp_path / "run", "hyperband", space=tiny).report
    trials = {t["id"]: t for t in rows(tmp_path / "run")}
    assert any(trials[t["resume"]]["cached"] for t in trials.values() if t["resume"] is not None)
    assert report["failures"] == []


def test_weights_are_not_taken_from_a_network_that_is_labelled_otherwise(tmp_path):
    class Symmetric(Space):
        def canonical(self, arch):
            return "".join(sorted(arch.values()))

    class Pair(Strategy):
        def ask(self):
            return self.new_trial({"a": "xy"[self._next_id % 2], "b": "yx"[self._next_id % 2]}, self.amount)

        def tell(self, trial):
            pass

    s = Symmetric([Decision("a", ["x", "y"]), Decision("b", ["x", "y"])])
    for amount, same in ((3, False), (None, True)):
        strategy, problem = Pair(), Problem(s, max_resource=9)
        strategy.amount = amount
        strategy.setup(problem)
        arm = Arm("search", strategy, problem, Budget(trials=9), Journal(tmp_path / f"{amount}"), s.canonical)
        first, second, third = arm.ask(), arm.ask(), arm.ask()
        arm.tell(first, Outcome({"accuracy": 0.5}))
        assert (arm.known(second) is first) == same
        assert arm.known(third) is first
        arm.tell(third, Outcome({"accuracy": 0.5}), cached=True)
        assert [arm.weights_of(t.id) for t in (first, second, third)] == [0, 1, 0]


# --- weights on disk --------------------------------------------------------------------------------------------------


def test_of_trials_that_none_can_resume_only_the_best_weights_are_kept(tmp_path, monkeypatch):
    raise_at(monkeypatch, lambda n, job: job.name.startswith("final"))
    with pytest.raises(Stop):
        go(tmp_path / "run", "bohb")
    complete = [t for t in rows(tmp_path / "run") if t["resource"] == EPOCHS]
    best = max(complete, key=lambda t: (t["metrics"]["accuracy"], -t["id"]))
    assert checkpoints(tmp_path / "run") == [f"search-{best['id']}"]


def test_partly_trained_weights_stay_as_long_as_they_may_be_promoted(tmp_path, monkeypatch):
    raise_at(monkeypatch, lambda n, job: job.name.startswith("final"))
    with pytest.raises(Stop):
        go(tmp_path / "run", "asha")
    trials = rows(tmp_path / "run")
    best = max((t for t in trials if t["resource"] == EPOCHS), key=lambda t: (t["metrics"]["accuracy"], -t["id"]))
    resumed = {t["resume"] for t in trials}
    paused = {f"search-{t['id']}" for t in trials if t["resource"] < EPOCHS and t["id"] not in resumed}
    assert set(checkpoints(tmp_path / "run")) == paused | {f"search-{best['id']}"}


def test_of_a_bracket_only_those_in_reach_of_the_next_stage_stay(tmp_path, monkeypatch):
    raise_at(monkeypatch, lambda n, job: n == 8)  # in the first stage of nine, of which three are promoted
    with pytest.raises(Stop):
        go(tmp_path / "run", "hyperband")
    trials = sorted(rows(tmp_path / "run"), key=lambda t: (-t["metrics"]["accuracy"], t["id"]))
    assert len(trials) == 7
    assert set(checkpoints(tmp_path / "run")) == {f"search-{t['id']}" for t in trials[:3]}


def test_a_network_whose_weights_are_gone_is_trained_anew_where_it_may_be_promoted(tmp_path):
    tiny = ModuleSpace(
        lambda: nn.Sequential(ElasticLinear(4, w := Width("w", [2, 8, 16])), nn.ReLU(), ElasticLinear(w, 3)),
        torch.zeros(2, 4),
    )
    report = go(tmp_path / "run", "hyperband", space=tiny, budget=60).report
    trials = rows(tmp_path / "run")
    trained = [(str(t["arch"]), t["resource"]) for t in trials if not t["cached"] and t["resume"] is None]
    assert len(trained) > len(set(trained))  # some were trained twice
    assert report["failures"] == []  # and nothing that was resumed was missing


@pytest.mark.parametrize("strategy", ["asha", "hyperband"])
def test_weights_outlive_a_kill_that_loses_the_last_lines_of_the_journal(tmp_path, monkeypatch, strategy):
    """Quick trials are written together (here: five), so a kill loses some; what they resumed must still be there."""
    monkeypatch.setattr("archipel.core.run.QUICK_SECONDS", 1e9)
    monkeypatch.setattr("archipel.core.run.FLUSH_SECONDS", 1e9)
    whole, flush, told, count = go(tmp_path / "whole", strategy, budget=22).report, Journal.flush, Journal.told, 0

    def together(journal, *args):
        nonlocal count
        count += 1
        told(journal, *args)
        if count % 5 == 0:
            flush(journal)

    monkeypatch.setattr(Journal, "told", together)

    def forget(journal):
        journal._trials.clear()
        journal._events.clear()

    for n in (16, 18, 20):

        def killed(count, job, n=n):
            if count == n:
                monkeypatch.setattr(Journal, "flush", forget)
            return count == n

        alive = raise_at(monkeypatch, killed)
        with pytest.raises(Stop):
            go(tmp_path / f"run{n}", strategy, budget=22)
        monkeypatch.setattr(Journal, "flush", flush)
        alive()
        resumed = resume(tmp_path / f"run{n}", space=space(), data=data()).report
        assert resumed["failures"] == []
        assert json.dumps(whole["chosen"]) == json.dumps(resumed["chosen"])


# --- kills ------------------------------------------------------------------------------------------------------------


@every
def test_a_run_that_is_killed_and_killed_again_ends_like_an_undisturbed_one(tmp_path, monkeypatch, strategy):
    whole = go(tmp_path / "whole", strategy).report
    alive = raise_at(monkeypatch, lambda n, job: n in (9, 18, 23))  # the last one in the final training
    with pytest.raises(Stop):
        go(tmp_path / "run", strategy)
    for _ in range(2):
        with pytest.raises(Stop):
            resume(tmp_path / "run", space=space(), data=data())
    alive()
    resumed = resume(tmp_path / "run", space=space(), data=data()).report
    for part in ("chosen", "trials", "pareto", "failures"):
        assert json.dumps(whole[part]) == json.dumps(resumed[part]), part


# --- budgets ----------------------------------------------------------------------------------------------------------


@every
def test_a_budget_in_epochs_counts_the_epochs_that_were_trained(tmp_path, strategy):
    report = go(tmp_path / "run", strategy, budget="50epochs").report
    trained = sum(t["metrics"]["epochs"] for t in rows(tmp_path / "run") if not t["cached"])
    assert report["spent"]["search"]["epochs"] == trained
    asked = trained + sum(t["resource"] for t in rows(tmp_path / "run") if t["cached"])
    assert 50 <= asked < 50 + EPOCHS  # the last trial is not cut short


def test_the_baseline_gets_as_many_epochs_and_trains_all_of_its_networks_in_full(tmp_path):
    spent = go(tmp_path / "run", "asha", baseline=1.0).report["spent"]
    assert spent["search"]["epochs"] <= spent["baseline"]["epochs"] < spent["search"]["epochs"] + EPOCHS
    assert {t["metrics"]["epochs"] for t in rows(tmp_path / "run", "baseline")} == {float(EPOCHS)}


# --- what is handed over ----------------------------------------------------------------------------------------------


def test_if_nothing_was_trained_in_full_the_best_after_most_training_is_taken_and_the_report_says_so(tmp_path):
    report = go(tmp_path / "run", "asha", budget=5, baseline=1.0).report
    trials = rows(tmp_path / "run")
    assert {t["resource"] for t in trials} == {1, 3}
    most = [t["arch"] for t in trials if t["resource"] == 3]
    assert report["chosen"]["arch"] in most
    assert any("No trial of the strategy had all 9 epochs" in n and "after 3" in n for n in report["notes"])
    assert "mean" not in report["random"]  # results after 3 epochs are not set against those after 9
    assert report["random"]["final_test"]["chosen"] == report["chosen"]["metrics"]["test_accuracy"]


@pytest.mark.parametrize("strategy", ["asha", "bohb"])
def test_ctrl_c_before_any_full_training_hands_over_the_best_so_far(tmp_path, monkeypatch, strategy):
    alive = raise_at(monkeypatch, lambda n, job: n == 7, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", strategy)
    report = load_result(tmp_path / "run").report
    trials = rows(tmp_path / "run")
    most = max(t["resource"] for t in trials)
    assert most < EPOCHS
    best = max(t["metrics"]["accuracy"] for t in trials if t["resource"] == most)
    assert report["status"] == "interrupted"
    assert report["chosen"]["metrics"]["val_accuracy"] == best
    alive()
    assert resume(tmp_path / "run", space=space(), data=data()).report["status"] == "finished"


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [ASHA(variant="stopping"), MOBSTER(variant="stopping"), "asha", "mobster"])
def test_a_strategy_that_stops_running_trials_is_refused_before_anything_is_written(tmp_path, strategy):
    options = {"strategy_options": {"variant": "stopping"}} if isinstance(strategy, str) else {}
    with pytest.raises(UsageError, match=r"stops trials by reports .* variant=promotion"):
        go(tmp_path / "run", strategy, **options)
    assert not (tmp_path / "run").exists()


def test_an_arm_prefers_more_training_to_a_better_score(tmp_path):
    problem = Problem(Space([Decision("a", ["x", "y"])]), rng=Random(0), max_resource=9)
    strategy = ASHA()
    strategy.setup(problem)
    arm = Arm("search", strategy, problem, Budget(trials=9), Journal(tmp_path / "t"), None)
    outcomes = [(1, 0.9), (3, 0.4), (3, 0.6), (1, 0.7), (9, 0.2)]
    trials = [arm.ask() for _ in outcomes]
    best = []
    for trial, (resource, accuracy) in zip(trials, outcomes):
        trial.resource = resource
        arm.tell(trial, Outcome({"accuracy": accuracy}))
        best.append((arm.best.id, [t.id for t in arm.contenders()], len(arm.complete_trials())))
    assert best == [(0, [0], 0), (1, [1], 0), (2, [1, 2], 0), (2, [1, 2], 0), (4, [4], 1)]


@pytest.mark.parametrize("strategy", ["asha", "mobster", "hyperband"])
def test_on_a_table_where_a_lookup_is_all_there_is_every_trial_is_complete(tmp_path, monkeypatch, strategy):
    s = Space([Decision(name, [0, 1, 2, 3]) for name in "abc"])
    table = Table(s, ["accuracy"], {s.canonical(a): (sum(a.values()) / 9,) for a in s.enumerate()}, s.canonical)
    monkeypatch.setattr("archipel.search.table_run.open_table", lambda name: table)
    config = SearchConfig(data="table:sums", strategy=strategy, budget=Budget(trials=30))
    report = run_search(config, tmp_path / "run").report
    assert {t["resource"] for t in report["trials"] if t["arm"] == "search"} == {1}
    assert report["chosen"]["metrics"]["val_accuracy"] == max(t["metrics"]["accuracy"] for t in report["trials"][:30])
    assert not any("No trial of the strategy" in note for note in report["notes"])
