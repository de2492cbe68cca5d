"""``archipel probe poisoning``: from names to a table."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from archipel.app.cli import main

QUICK = ["--epochs", "1", "--layers", "1", "--seeds", "1", "--searcher", "random"]


def run(*arguments):
    return CliRunner().invoke(main, ["probe", "poisoning", *arguments])


def test_a_probe_from_the_command_line():
    result = run("--poison", "dropout1+identity", "--instances", "0,2", *QUICK)
    assert result.exit_code == 0, result.output
    assert "clean, random" in result.stdout
    assert "dropout1+identity x2, random" in result.stdout
    found = json.loads(run("--poison", "dropout1", "--instances", "2", *QUICK, "--json").stdout)
    assert set(found) == {"dropout1 x2, random"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instances", "many"], "takes numbers"),
        (["--instances", "-1"], "-1 instances"),
        (["--poison", "arsenic", "--instances", "1"], "No poison 'arsenic'"),
        (["--searcher", "spos"], "No searcher 'spos'"),
        (["--seeds", "0"], "1 or more"),
    ],
)
def test_what_cannot_be_probed_is_said(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
