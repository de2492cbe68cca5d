"""The commands, their exit codes, and that bad input never ends in a traceback."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from archipel.app.cli import main
from archipel.app.inspection import costs_text
from archipel.app.options import byte_count
from archipel.app.options import settings as parse_settings
from archipel.app.progress import Terminal
from archipel.app.search_commands import _print_summary, _summary
from archipel.app.tables import print_table
from archipel.claims import harness, stored
from archipel.core.errors import ArchipelError
from archipel.core.registry import get_method
from archipel.search.config import Budget, SearchConfig


def run(*args):
    result = CliRunner().invoke(main, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_methods_are_listed_as_json_and_as_a_table():
    rows = json.loads(run("methods", "--json").output)
    assert {"random", "mobster", "spos"} <= {r["slug"] for r in rows}
    assert all(r["family"].startswith("search.blackbox") for r in json.loads(
        run("methods", "--family", "search.blackbox", "--json").output))  # fmt: skip
    assert "mobster" in run("methods").output


def test_show_prints_the_paper_and_refuses_unknown_methods_with_a_suggestion():
    assert "arxiv.org" in run("show", "mobster").output
    assert json.loads(run("show", "mobster", "--json").output)["card"] == 78
    wrong = run("show", "mobstr")
    assert wrong.exit_code == 2
    assert "Did you mean: mobster" in wrong.output


def test_cost_of_an_architecture_and_over_a_space():
    spread = json.loads(run("cost", "--space", "mlp", "--data", "wine", "--samples", 5, "--json").output)
    assert spread["params min"] <= spread["params median"] <= spread["params max"]
    from random import Random

    from archipel.data.load import load
    from archipel.spaces.catalogue import make_space

    space = make_space("mlp", load("wine"))
    arch = space.sample(Random(1))
    cost = json.loads(run("cost", "--space", "mlp", "--data", "wine", "--arch", json.dumps(arch), "--json").output)
    assert cost["params"] == space.cost.params(arch)
    assert cost["macs"] == space.cost.macs(arch)


def test_data_are_listed_and_described():
    assert "digits" in run("data").output
    assert json.loads(run("data", "wine", "--json").output)
    wrong = run("data", "whine")
    assert wrong.exit_code in (2, 3)
    assert "wine" in wrong.output


def test_drawing_a_random_architecture(tmp_path):
    assert run("draw", "--space", "nb201", "--out", tmp_path / "a.svg").exit_code == 0
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (["search", "--budget", "later"], 2, "Budget"),
        (["search", "--limit", "weight=3"], 2, "no cost"),
        (["search", "--limit", "params=10"], 5, "smallest"),
        (["search", "--data", "nowhere.csv"], 3, "nowhere.csv"),
        (["search", "--space", "mobil"], 2, "mobile"),
        (["search", "--space", "missing.py:Net"], 2, "missing.py"),
        (["search", "--strategy", "evolutoin"], 2, "Did you mean"),
        (["search", "--set", "popultion=3"], 2, "population"),
        (["search", "--recipe", "lr"], 2, "name=value"),
        (["search", "--recipe", "lr=-1"], 2, "lr must be positive"),
        (["search", "--executor", "slurm"], 2, "Unknown executor"),
        (["search", "--objective", "acuracy"], 2, "Did you mean: accuracy"),
        (["search", "--objective", "accuracy:up"], 2, "mode must be"),
        (["search", "--data", "wine", "--strategy", "asha", "--set", "r_min=9", "--epochs", "2"], 2, "rungs need"),
        (["search", "--data", "table:nb201", "--objective", "test_accuracy"], (2, 7), "metric"),
        (["search", "--workers", "0"], 2, "workers"),
        (["search", "--data", "table:nb301"], 2, "nb201"),
        (["resume", "nothing-here"], 6, "holds no run"),
        (["report", "nothing-here"], 6, "nothing-here holds no run"),
        (["export", "nothing-here"], 6, "nothing-here holds no run"),
        (["draw", "nothing-here"], 6, "nothing-here holds no run"),
        (["cost", "--arch", "."], 6, "holds no run"),
        (["cost", "--samples", "0"], 2, "at least 1"),
        (["methods", "--family", "nothing"], 2, "search.blackbox"),
        (["claim"], 2, "Name one claim"),
        (["claim", "--check", "mobster", "--fresh"], 2, "runs nothing"),
        (["claim", "mobstr"], 2, "Did you mean"),
        (["claim", "mobster", "--seeds", "1"], 2, "3 seeds"),
        (["cost", "--arch", "{"], 2, "not valid JSON"),
        (["cost", "--arch", '{"a": 1}'], 4, "no decision"),
    ],
)
def test_mistakes_have_a_code_and_a_sentence(args, code, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    if isinstance(code, tuple) and result.exit_code == 7:
        pytest.skip("the extra with the table is not installed")
    assert result.exit_code == (code[0] if isinstance(code, tuple) else code), result.output
    assert word.lower() in result.output.lower()
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []  # what was refused leaves nothing behind


def test_errors_in_json_mode_are_an_object():
    result = run("show", "nothing", "--json")
    assert result.exit_code == 2


def test_a_table_search_reports_its_rank(tmp_path):
    result = run("search", "--data", "table:nb201", "--budget", 300, "--out", tmp_path / "run", "--json")
    if result.exit_code == 7:
        pytest.skip("the extra with the table is not installed")
    summary = json.loads(result.output.splitlines()[-1])
    assert summary["status"] == "finished"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["table"]["of"] == 15625
    assert report["table"]["rank_from_worst"] > 14000
    printed = run("report", tmp_path / "run").output
    assert re.search(r"^rank +(better than \d+\.\d %|the best) of 15,625$", printed, re.MULTILINE)
    assert "costs" not in printed
    assert "epoch" not in printed
    for command in ("export", "draw", "report"):  # none of them sends a finished table run to `resume`
        done = run(command, tmp_path / "run", *(["--out", tmp_path / "a.svg"] if command == "draw" else []))
        assert "resume" not in done.output
        assert done.exit_code == (6 if command == "export" else 0)
    assert "no network" in run("export", tmp_path / "run").output
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_the_best_of_a_table_is_called_so_and_another_metric_is_shown_too(capsys):
    summary: dict = dict.fromkeys(["epochs", "random"]) | {key: {} for key in ("arch", "costs", "test", "files")}
    summary |= {"status": "finished", "validation": {"analog": 0.5}, "run": "r", "report": "p"}
    summary |= {"table": {"rank_from_worst": 9, "of": 9}}
    _print_summary(summary)
    assert "the best of 9\n" in capsys.readouterr().out
    _print_summary(summary | {"table": {"rank_from_worst": 15624, "of": 15625}})
    assert "better than 99.9 % of 15,625\n" in capsys.readouterr().out  # not 100: one is better
    table = {"chosen": {"arch": {}, "metrics": {"analog": 0.5}, "costs": {}}, "table": {}, "random": None, "notes": []}
    assert _summary({**table, "table": {"of": 9}, "run": "r", "status": "finished"})["validation"] == {"analog": 0.5}


def test_a_folder_that_was_there_stays_empty_and_one_with_a_run_in_it_stays_whole(tmp_path):
    (tmp_path / "old").mkdir()
    assert run("search", "--data", "wine", "--executor", "moon", "--out", tmp_path / "old").exit_code == 2
    assert list((tmp_path / "old").iterdir()) == []
    assert run("search", "--data", "wine", "--executor", "moon", "--out", tmp_path / "a" / "b" / "c").exit_code == 2
    assert not (tmp_path / "a").exists()
    (tmp_path / "old" / "config.json").write_text("{}")
    assert run("search", "--data", "wine", "--executor", "moon", "--out", tmp_path / "old").exit_code == 6
    assert (tmp_path / "old" / "config.json").exists()


def test_piped_tables_are_not_cut_and_on_a_narrow_terminal_names_stay_whole(capsys):
    rows = [["a-method-with-a-long-name", "needs pip install 'archipel[tables]' " * 5], ["b", "c"]]
    print_table(["method", "what"], rows)
    piped = capsys.readouterr().out.splitlines()
    assert piped[1] == "  ".join(rows[0]).rstrip()
    assert piped[2].startswith("b ")
    out = io.StringIO()
    print_table(["method", "what"], rows, Console(file=out, force_terminal=True, width=40, color_system=None))
    assert "a-method-with-a-long-name" in out.getvalue()
    assert "archipel[tables]" in "".join(line[27:].strip() for line in out.getvalue().splitlines())
    assert "…" not in out.getvalue()


def test_show_takes_short_names_and_lists_settings_with_defaults_and_explanations():
    assert run("show", "evolution").output == run("show", "nas-evolution-patterns").output
    settings = {s["name"]: s for s in json.loads(run("show", "bohb", "--json").output)["settings"]}
    assert settings["candidates"] == {"name": "candidates", "default": "64", "text": "drawn for each proposal."}
    assert settings["eta"]["text"].startswith("factor between")  # explained by the base class
    assert "remove = 'oldest'" in run("show", "evolution").output
    assert set(settings) == set(inspect.signature(get_method("bohb-joint").obj).parameters)


def test_costs_are_aligned_with_separators_and_units():
    text = costs_text({"params": 1234567, "macs": 89, "memory_bytes": 3 * 2**19, "latency_ms": 0.25})
    assert text.splitlines() == ["params   1,234,567", "macs            89", "memory      1.5000 MiB",
                                 "latency     0.2500 ms"]  # fmt: skip
    lines = run("cost", "--space", "mlp", "--data", "wine", "--samples", 5).output.splitlines()
    assert len({len(line) for line in lines[-3:]}) == 1
    assert re.fullmatch(r"size +[\d,]+", lines[1])


def test_sizes_of_data_read_as_text_and_graphs_say_what_they_are_for():
    assert re.search(r"^sizes +train 1,079, val 359, test 359$", run("data", "digits").output, re.MULTILINE)
    assert "table:graph-" in run("data", "cora").output


def test_a_claim_is_checked_without_running_it_and_8_says_that_it_is_stale_or_absent(tmp_path, monkeypatch):
    absent = run("claim", "--check", "mobster", "--results", tmp_path)
    assert absent.exit_code == 8
    assert absent.output == "mobster: not run\n"
    claim = harness.get_claim("mobster")
    stored = {"statement": "s", "verdict": "holds", "seeds": [0, 1, 2], "fingerprint": harness.fingerprint(claim)}
    (tmp_path / "mobster.json").write_text(json.dumps(stored))
    assert run("claim", "--check", "mobster", "--results", tmp_path).exit_code == 0
    (tmp_path / "mobster.json").write_text(json.dumps(stored | {"fingerprint": "older"}))
    old = run("claim", "--check", "mobster", "--results", tmp_path)
    assert old.exit_code == 8
    assert old.output == "mobster: holds, out of date: code changed since\n"
    assert run("claim", "--check", "--results", tmp_path).exit_code == 8
    assert json.loads(run("claim", "--check", "mobster", "--results", tmp_path, "--json").output)[0]["stale"]


def test_results_of_an_installed_package_go_to_the_working_folder(tmp_path, monkeypatch):
    inside = tmp_path / "site-packages" / "archipel" / "claims" / "results"
    inside.mkdir(parents=True)
    monkeypatch.setattr(stored, "RESULTS", inside)
    assert stored.default_results() == Path("claims-results")
    (tmp_path / "site-packages" / "pyproject.toml").touch()
    assert stored.default_results() == inside


def test_an_interrupted_bar_stays_where_it_was():
    def bar(error):
        with contextlib.suppress(KeyboardInterrupt), Terminal() as progress:
            progress.phase("search", 10)
            progress.update(4)
            if error:
                raise KeyboardInterrupt
        return progress.bars.tasks[0].completed

    assert (bar(True), bar(False)) == (4, 10)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = list(SearchConfig.__dataclass_fields__)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), json_values, max_size=6) | json_values)
def test_any_configuration_is_taken_or_refused_with_a_clear_error(raw):
    try:
        config = SearchConfig.from_dict(raw)
    except ArchipelError:
        return
    assert SearchConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_architecture_json_is_valid_or_refused_with_a_clear_error(data):
    from archipel.core.decision import Decision
    from archipel.core.errors import SpaceError
    from archipel.core.space import Space, when

    space = Space(
        [Decision("op", ["a", "b"]), Decision("k", [3, 5]), Decision("f", [True, False])], {"k": [when(op=["a"])]}
    )
    values = st.sampled_from(["a", "b", 3, 5, 3.0, True, 1, None]) | json_values
    keyed = st.dictionaries(st.sampled_from(["op", "k", "f"]) | st.text(max_size=3), values, max_size=4)
    arch = data.draw(keyed | json_values)
    try:
        checked = space.validate(arch)
    except SpaceError:
        return
    assert space.canonical(checked) in {space.canonical(a) for a in space.enumerate()}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_budgets_settings_and_amounts_never_crash(text):
    for parse in (Budget.parse, byte_count, lambda t: parse_settings([t], "--set")):
        with contextlib.suppress(ArchipelError):
            parse(text)
