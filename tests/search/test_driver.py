"""The main job from Python: phases, limits, test split, interruption, resuming."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch
from torch import nn

from archipel.core.choice import Choice, Width
from archipel.core.errors import InfeasibleError, RunError, UsageError
from archipel.core.run import RunFolder
from archipel.data.dataset import Dataset, Split
from archipel.search import api
from archipel.search.api import load_result, resume, search
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.config import Budget, SearchConfig
from archipel.search.training import Recipe
from archipel.spaces.layers import ElasticLinear
from archipel.spaces.module_space import ModuleSpace


class Scale(nn.Module):
    """Multiplies; for options that misbehave."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Hang(nn.Module):
    def forward(self, x):
        if x.device.type != "meta":
            time.sleep(30.0)
        return x


class Crash(nn.Module):
    def forward(self, x):
        if x.device.type != "meta":
            raise ValueError("cannot do this")
        return x


class Greedy(nn.Module):
    def forward(self, x):
        if x.device.type != "meta":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 TB")
        return x


def net():
    w = Width("w", [2, 4, 8, 16])
    act = Choice("act", {"relu": nn.ReLU(), "tanh": nn.Tanh(), "none": nn.Identity()})
    return nn.Sequential(ElasticLinear(4, w), act, ElasticLinear(w, 3))


def troubled():
    odd = {"ok": nn.Identity(), "nan": Scale(math.nan), "crash": Crash(), "hang": Hang(), "greedy": Greedy()}
    return nn.Sequential(ElasticLinear(4, Width("w", [4, 8])), Choice("odd", odd), nn.Linear(8, 3, bias=False))


def space():
    return ModuleSpace(net, torch.zeros(2, 4))


def data(seed=0):
    g = torch.Generator().manual_seed(seed)

    def split(n):
        y = torch.randint(0, 3, (n,), generator=g)
        return Split(torch.randn(n, 4, generator=g) + 2 * nn.functional.one_hot(y, 4), y)

    return Dataset("blobs", split(96), split(60), split(60), "classification", 3)


RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05)


@pytest.fixture(autouse=True)
def _light_export(monkeypatch):
    """Exporting has its own tests and takes seconds; here it only writes the architecture."""

    def export(net, example, folder, arch, about):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "architecture.json").write_text(json.dumps(arch))
        with torch.no_grad():
            assert net(example).shape[0] == len(example)
        return {"architecture.json": ""}

    monkeypatch.setattr("archipel.search.finish.export_network", export)


def go(out, **settings):
    given = {"space": space(), "data": data(), "strategy": RandomSearch(), "budget": 8, "recipe": RECIPE, "out": out}
    return search(**{**given, **settings})


def test_a_search_finds_trains_checks_and_hands_over_a_network(tmp_path):
    blobs = data()
    result = go(tmp_path / "run", data=blobs, limit={"params": 80})
    report = result.report
    assert report["status"] == "finished"
    assert space().cost.params(result.arch) <= 80
    assert all(p["metrics"]["params"] <= 80 for p in report["trials"] + report["pareto"])
    assert report["chosen"]["metrics"]["test_accuracy"] > 0.5
    random = report["random"]
    assert {"mean", "std", "p_random_better", "budget_matched"} <= set(random)
    final = random["final_test"]
    expected = 100 * (final["chosen"] - sum(final["random"]) / 3) / (sum(final["random"]) / 3)
    assert final["relative_improvement_percent"] == pytest.approx(expected)
    low, high = final["relative_improvement_interval"]
    assert low <= expected <= high
    for name in ("config.json", "environment.json", "log.jsonl", "trials.sqlite", "pareto.json", "report.html"):
        assert (tmp_path / "run" / name).exists(), name


def test_the_test_split_is_opened_once_and_that_is_recorded(tmp_path):
    blobs = data()
    report = go(tmp_path / "run", data=blobs).report
    assert len(blobs.openings) == 1
    assert len(report["test_openings"]) == 1
    resume(tmp_path / "run")  # finished: nothing to do
    assert len(blobs.openings) == 1


def test_workers_never_get_the_test_split(tmp_path):
    from archipel.search.worker import Blueprint, Workshop

    shop = Workshop(Blueprint("k", data(), space(), RECIPE, 0, None))
    assert shop.dataset.sealed_test is None


def test_an_impossible_limit_is_refused_with_the_smallest_possible_named(tmp_path):
    with pytest.raises(InfeasibleError, match=r"19"):  # 4*2+2 + 2*3+3 = 19 parameters
        go(tmp_path / "run", limit=["params=10"])


@pytest.mark.parametrize(
    "bad", [{"budget": "soon"}, {"limit": ["size=3"]}, {"seed": -1}, {"executor": "moon"}, {"flavour": 1}]
)
def test_bad_settings_are_usage_errors(tmp_path, bad):
    with pytest.raises(UsageError):
        go(tmp_path / "run", **bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["acuracy", "r2", "seconds", "epochs", ""])
def test_an_objective_that_no_trial_will_have_is_refused_at_the_start(tmp_path, wrong):
    with pytest.raises(UsageError, match=r"no metric .*accuracy.*latency_ms.*macs"):
        go(tmp_path / "run", objectives=[wrong])
    assert not (tmp_path / "run").exists()


def test_objectives_are_metrics_of_training_or_costs_by_the_names_that_limits_have(tmp_path):
    report = go(tmp_path / "a", objectives=["loss:min"], budget=3, baseline=0.0).report
    assert report["objective"] == {"metric": "loss", "mode": "min"}
    report = go(tmp_path / "b", objectives=["memory:min", "accuracy"], budget=3).report
    assert report["objective"] == {"metric": "memory_bytes", "mode": "min"}
    assert "final_test" not in report["random"]  # a test split says nothing about memory


def test_a_run_that_something_broke_while_it_ran_keeps_its_folder(tmp_path, monkeypatch):
    def fails(self, trial):
        raise UsageError("late")

    monkeypatch.setattr(RandomSearch, "tell", fails)
    with pytest.raises(UsageError, match="late"):
        go(tmp_path / "run")
    assert (tmp_path / "run" / "config.json").exists()


def test_a_result_gives_metrics_and_costs_and_says_after_how_many_epochs(tmp_path):
    result = go(tmp_path / "run", budget=3, final_epochs=5)
    assert result.metrics == result.report["chosen"]["metrics"]
    assert {"val_accuracy", "test_accuracy", "val_loss"} <= set(result.metrics)
    assert result.costs == {k: result.metrics[k] for k in ("params", "macs")}
    assert result.report["chosen"]["epochs"] == 5
    assert result.report["random"]["epochs"] == RECIPE.epochs


def test_what_is_no_run_or_not_finished_is_said(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        load_result(tmp_path / "none")
    RunFolder.create(tmp_path / "run", SearchConfig(data="wine").as_dict()).close()
    with pytest.raises(RunError, match=r"no report yet. `archipel resume"):
        load_result(tmp_path / "run")
    with pytest.raises(RunError, match=r"no exported network yet. `archipel resume"):
        api.export_run(tmp_path / "run")


def test_a_graph_is_refused_with_where_graphs_are_searched(tmp_path):
    from archipel.data.graph import GraphData

    nodes = Split(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    graph = GraphData("cora", nodes, nodes, nodes, "node-classification", 2, nodes=torch.zeros(12, 3))
    with pytest.raises(UsageError, match=r"graph methods, from Python.* --data table:graph-cora"):
        search(data=graph, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_result_and_another_seed_another_search(tmp_path):
    a, b = go(tmp_path / "a"), go(tmp_path / "b")
    c = go(tmp_path / "c", seed=1)

    def trials(result):
        return [(t["arch"], t["metrics"]["accuracy"]) for t in result.report["trials"]]

    assert trials(a) == trials(b) != trials(c)
    assert a.report["chosen"]["metrics"]["test_accuracy"] == b.report["chosen"]["metrics"]["test_accuracy"]


class Stop(BaseException):
    """Stands for a SIGKILL: nobody catches it."""


@pytest.mark.parametrize("after", [0, 3, 7, 10, 12])
def test_a_run_that_is_killed_anywhere_ends_like_an_undisturbed_one(tmp_path, monkeypatch, after):
    whole = go(tmp_path / "whole", strategy="evolution", strategy_options={"population": 4, "sample": 2}).report
    from archipel.search.worker import Workshop

    calls, run = 0, Workshop.run

    def dies(self, job):
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise Stop
        return run(self, job)

    monkeypatch.setattr(Workshop, "run", dies)
    objects = {"space": space(), "data": data()}
    with pytest.raises(Stop):
        go(tmp_path / "run", strategy="evolution", strategy_options={"population": 4, "sample": 2}, **objects)
    resumed = resume(tmp_path / "run", **objects).report
    for part in ("chosen", "trials", "pareto", "curves"):
        clean = [json.dumps(_timeless(r[part])) for r in (whole, resumed)]
        assert clean[0] == clean[1], part


def _timeless(value):
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k != "seconds"}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def test_trials_that_crash_hang_diverge_or_eat_memory_are_recorded_and_the_search_goes_on(tmp_path):
    s = ModuleSpace(troubled, torch.zeros(2, 4))
    result = go(tmp_path / "run", space=s, budget=40, trial_seconds=0.4, baseline=0.0, final_random=0, limit=[], seed=3)
    reasons = " | ".join(f["reason"] for f in result.report["failures"])
    for word in ("NaN", "cannot do this", "timeout", "out of memory"):
        assert word in reasons, word
    assert result.arch["odd"] == "ok"


def test_if_every_trial_fails_the_error_says_why(tmp_path):
    s = ModuleSpace(lambda: nn.Sequential(ElasticLinear(4, Width("w", [3, 4])), Crash()), torch.zeros(2, 4), "doomed")
    with pytest.raises(RunError, match="cannot do this"):
        go(tmp_path / "run", space=s, budget=3, final_random=0, baseline=0.0)


def test_ctrl_c_leaves_the_best_network_so_far_and_a_run_that_can_be_resumed(tmp_path, monkeypatch):
    from archipel.search.worker import Workshop

    calls, run = 0, Workshop.run

    def interrupted(self, job):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return run(self, job)

    monkeypatch.setattr(Workshop, "run", interrupted)
    objects = {"space": space(), "data": data(), "strategy": RandomSearch()}
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", **objects)
    report = load_result(tmp_path / "run").report
    assert report["status"] == "interrupted"
    assert report["chosen"]["metrics"]["val_accuracy"] == max(t["metrics"]["accuracy"] for t in report["trials"])
    assert report["test_openings"] == []
    assert (tmp_path / "run" / "model" / "architecture.json").exists()
    assert resume(tmp_path / "run", **{**objects, "strategy": RandomSearch()}).report["status"] == "finished"


def test_a_run_from_objects_says_that_it_needs_them_to_be_resumed(tmp_path):
    RunFolder.create(tmp_path / "run", SearchConfig(data="object:blobs", space="object:net").as_dict()).close()
    with pytest.raises(UsageError, match="from Python"):
        resume(tmp_path / "run")


def test_only_the_final_weights_stay_on_disk(tmp_path):
    go(tmp_path / "run")
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    go(tmp_path / "run", budget=2, baseline=0.0, final_random=0)
    with pytest.raises(RunError, match="already holds a run"):
        go(tmp_path / "run")


def test_a_multi_objective_search_reports_a_front_within_the_limits(tmp_path):
    pytest.importorskip("pymoo")
    report = go(tmp_path / "run", strategy="nsga2", budget=16, limit=["params=100"]).report
    front = [(p["metrics"]["accuracy"], p["metrics"]["macs"]) for p in report["pareto"]]
    assert front
    assert all(not (a2 >= a and m2 <= m and (a2, m2) != (a, m)) for a, m in front for a2, m2 in front)
    assert all(p["metrics"]["params"] <= 100 for p in report["pareto"])


def test_regression_maximises_r2(tmp_path):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(120, 4, generator=g)
    y = x.sum(1, keepdim=True)
    splits = [Split(x[i : i + 40], y[i : i + 40]) for i in (0, 40, 80)]
    plane = Dataset("plane", *splits, "regression", 1)

    def regressor():
        w = Width("w", [4, 8])
        return nn.Sequential(ElasticLinear(4, w), ElasticLinear(w, 1))

    report = go(tmp_path / "run", data=plane, space=ModuleSpace(regressor, torch.zeros(2, 4)), budget=2).report
    assert report["objective"] == {"metric": "r2", "mode": "max"}
    assert report["chosen"]["metrics"]["test_r2"] > 0.0


def test_the_baseline_spends_what_the_strategy_spent(tmp_path):
    spent = go(tmp_path / "run", budget=6).report["spent"]
    assert spent["search"]["epochs"] > 0
    assert spent["baseline"]["epochs"] >= spent["search"]["epochs"] - RECIPE.epochs
    assert go(tmp_path / "b", budget=6, baseline=0.0).report["random"] is None


def test_budgets_parse_and_refuse():
    assert Budget.parse("1.5min").seconds == 90.0
    for bad in ("", "-3", "0", "3 apples", "nan", "1e3s", None, {"trials": 3, "seconds": 2}, {"apples": 1}):
        with pytest.raises(UsageError):
            Budget.parse(bad)
    assert api.default_folder(SearchConfig(data="a/b c.csv")).name.endswith("-b-c-csv")


def test_hyperparameters_are_searched_together_with_the_architecture(tmp_path):
    run = go(tmp_path / "run", strategy="bohb", budget="30epochs", joint=["lr", "batch_size"], limit=["params=80"])
    assert {"lr", "batch_size", "w"} <= set(run.arch)
    assert run.report["chosen"]["costs"]["params"] <= 80
    rates = {t["arch"]["lr"] for t in run.report["trials"]}
    assert len(rates) > 3
    with pytest.raises(UsageError, match="No training hyperparameter"):
        go(tmp_path / "other", joint=["learning"])


def test_a_full_disk_stops_the_run_without_blaming_the_trial_and_it_can_be_resumed(tmp_path, monkeypatch):
    from archipel.core.storage import Checkpoints

    objects = {"space": space(), "data": data(), "strategy": RandomSearch()}
    whole = go(tmp_path / "whole", **objects).report
    saves, save = 0, Checkpoints.save

    def full(self, name, state):
        nonlocal saves
        saves += 1
        if saves == 3:
            raise RunError("The disk is full")
        save(self, name, state)

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(RunError, match="disk is full"):
        go(tmp_path / "run", **{**objects, "strategy": RandomSearch()})
    report = resume(tmp_path / "run", **{**objects, "strategy": RandomSearch()}).report
    assert report["failures"] == []
    assert report["chosen"] == whole["chosen"]
