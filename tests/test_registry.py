"""What every registered method owes, checked once for all."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from archipel.app.catalogue import entries
from archipel.core.registry import METHODS, Paper, discover, get_method, register

TESTS = Path(__file__).parent
CARDS = {23, 41, 61, 65, 78, 82, 92, 106, 120, 137}


@pytest.mark.parametrize("method", discover().values(), ids=lambda m: m.slug)
def test_every_method_is_cited_documented_and_tested(method):
    assert re.fullmatch(r"[a-z0-9-]+", method.slug)
    assert method.paper.title
    assert 1950 < method.paper.year <= 2030
    assert method.paper.link.startswith("https://")
    assert method.obj.__doc__
    assert method.slots
    module = importlib.import_module(method.module)
    assert method.paper.link in (module.__doc__ or ""), "the module's docstring cites the paper"
    name = method.slug.replace("-", "_")
    assert list(TESTS.rglob(f"test_{name}*.py")), f"no test file for {method.slug}"


def test_the_methods_of_the_catalogue_are_all_there_once():
    cards = [m.card for m in discover().values() if m.card is not None]
    assert len(cards) == len(set(cards))
    assert set(cards) >= CARDS


def test_json_entries_have_the_promised_keys():
    keys = {"slug", "card", "title", "year", "link", "family", "slots", "module", "claims"}
    for e in entries():
        assert keys <= set(e)
        for claim in e["claims"]:
            assert set(claim) == {"statement", "verdict", "seeds", "stale"}


def test_registering_a_slug_twice_names_the_first_owner(monkeypatch):
    monkeypatch.setattr("archipel.core.registry.METHODS", dict(METHODS))

    class Other:
        """Other."""

    with pytest.raises(ValueError, match="RandomSearch"):
        register("random", family="x", slots=["y"], paper=Paper("t", 2000, "https://example.org"))(Other)


def test_an_unknown_method_is_an_error_with_suggestions():
    from archipel.core.errors import UsageError

    with pytest.raises(UsageError, match="Did you mean: mobster"):
        get_method("mobsters")


def test_method_modules_import_without_optional_libraries():
    import subprocess
    import sys

    blocked = ["pymoo", "mnist1d", "pyarrow", "ray", "distributed", "onnxruntime"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import archipel; archipel.discover()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_strategies_take_their_settings_as_keyword_arguments_with_defaults():
    from archipel.search.catalogue import strategies

    for method in strategies().values():
        for p in list(inspect.signature(method.obj).parameters.values()):
            assert p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL), (method.slug, p.name)
