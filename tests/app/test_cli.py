"""The commands, their exit codes, and that bad input never ends in a traceback."""

from __future__ import annotations

import contextlib
import json

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archipel.app.cli import main
from archipel.app.options import byte_count
from archipel.app.options import settings as parse_settings
from archipel.core.errors import ArchipelError
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
        (["search", "--workers", "0"], 2, "workers"),
        (["search", "--data", "table:nb301"], 2, "nb201"),
        (["resume", "nothing-here"], 6, "holds no run"),
        (["report", "nothing-here"], 6, "no report"),
        (["export", "nothing-here"], 6, "no exported network"),
        (["draw", "nothing-here"], 6, "no chosen network"),
        (["claim"], 2, "Name one claim"),
        (["claim", "mobstr"], 2, "Did you mean"),
        (["claim", "mobster", "--seeds", "1"], 2, "3 seeds"),
        (["cost", "--arch", "{"], 2, "not valid JSON"),
        (["cost", "--arch", '{"a": 1}'], 4, "no decision"),
    ],
)
def test_mistakes_have_a_code_and_a_sentence(args, code, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*args)
    assert result.exit_code == code, result.output
    assert word.lower() in result.output.lower()
    assert "Traceback" not in result.output


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
