"""``archipel compare``: from names to a table."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from archipel.app.cli import main
from archipel.app.compare_commands import _split


def run(*arguments):
    return CliRunner().invoke(main, ["compare", *arguments])


def test_a_comparison_from_the_command_line(tmp_path):
    quick = ["--seeds", "1", "--search-epochs", "1", "--epochs", "1", "--random", "1", "--space-option", "cells=1"]
    result = run("--vary", "select=argmax", "--hold", "mix=partial-channels:K=2", *quick, "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["rows"]) == {"argmax", "random", "largest"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "select"], "takes SLOT=PART"),
        (["--vary", "select=argmux"], "No part 'argmux'"),
        (["--vary", "select=argmax", "--hold", "select=argmax"], "both varied and held"),
        (["--vary", "select=argmax", "--vary", "select=argmax"], "twice"),
        (["--vary", "select=argmax", "--family", "fleet"], "Families that can be compared"),
        (["--vary", "schedule=schedule:epochs=1", "--schedule", "lr=1"], "given twice"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_commas_inside_settings_do_not_part_the_parts():
    assert _split("a:x=1,y=2,b,c:z=3") == ["a:x=1,y=2", "b", "c:z=3"]
