"""The registry of methods, and the small tools for errors beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from archipel.core import registry
from archipel.core.errors import (
    ArchipelError,
    DataError,
    InfeasibleError,
    MissingExtraError,
    RunError,
    ShapeError,
    SpaceError,
    UsageError,
    require,
    suggest,
)
from archipel.core.registry import METHODS, Paper, discover, get_method, register

PAPER = Paper("A Title", 2020, "https://example.org")


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", {})
    return registry


def test_a_registered_class_is_returned_and_described(empty_registry):
    @register("demo", family="search.blackbox", slots=["propose"], paper=PAPER, card=7)
    class Demo:
        """First line.

        More.
        """

    method = empty_registry.METHODS["demo"]
    assert method.obj is Demo
    assert (method.slug, method.card, method.family, method.slots) == ("demo", 7, "search.blackbox", ("propose",))
    assert (method.summary, method.module, method.paper.year) == ("First line.", __name__, 2020)


def test_a_slug_that_is_taken_names_its_owner(empty_registry):
    @register("demo", family="f", slots=["s"], paper=PAPER)
    def first():
        """First."""

    with pytest.raises(ValueError, match=r"'demo' is already registered by .*first"):

        @register("demo", family="f", slots=["s"], paper=PAPER)
        def second():
            """Second."""


def test_registering_the_same_object_again_is_no_error(empty_registry):
    def method():
        """A method."""

    for _ in range(2):  # a module that is imported again
        register("demo", family="f", slots=["s"], paper=PAPER)(method)
    assert list(empty_registry.METHODS) == ["demo"]


def test_discovery_finds_methods_of_all_families():
    found = discover()
    assert list(found) == sorted(found)
    assert found is not METHODS
    assert "random" in found
    assert all(m.paper.link.startswith("https://") and m.paper.title and m.slots for m in found.values())
    assert all((m.obj.__doc__ or "").strip() for m in found.values())


def test_card_numbers_are_not_used_twice():
    cards = [m.card for m in discover().values() if m.card is not None]
    assert len(cards) == len(set(cards))


def test_an_unknown_slug_suggests_close_ones():
    with pytest.raises(UsageError, match=r"No method 'randon'\. Did you mean: random\?"):
        get_method("randon")
    assert get_method("random").slug == "random"


def test_every_error_has_an_exit_code_of_its_own():
    kinds = [UsageError, DataError, SpaceError, InfeasibleError, RunError, MissingExtraError]
    assert len({k.exit_code for k in kinds}) == len(kinds)
    assert all(issubclass(k, ArchipelError) for k in kinds)
    assert issubclass(ShapeError, ValueError)
    assert issubclass(MissingExtraError, ImportError)


def test_a_missing_library_names_the_extra():
    with pytest.raises(MissingExtraError, match=r"needs 'no_such_library'.*pip install 'archipel\[nothing\]'"):
        require("no_such_library.part", "nothing")
    assert require("json", "x").dumps({}) == "{}"


def test_suggestions_are_short():
    assert suggest("b", []) == "Known: none."
    assert suggest("zzz", ["a"]) == "Known: a."
    many = suggest("zzz", [f"name{i:03}" for i in range(100)])
    assert "(100 in all)" in many
    assert len(many) < 400


def test_importing_the_package_does_not_import_torch():
    code = "import sys, archipel; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
