"""Comparing searches slot by slot: arms alike, baselines beside them, failures named, interruptions survived."""

from __future__ import annotations

import json

import pytest
import torch
from toy_images import bars_dataset

from archipel.core.errors import RunError, SpaceError, UsageError
from archipel.search import comparison as module
from archipel.search.comparison import LARGEST, RANDOM, Comparison, compare, grid, table
from archipel.search.differentiable import Argmax, DifferentiableSearch, Schedule, SecondOrder
from archipel.search.differentiable.darts import darts
from archipel.search.differentiable.parts import as_part, part_named, parts
from archipel.search.training import Recipe
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)

QUICK = {"epochs": 1, "batch_size": 16}


def comparison(vary, **changes):
    arms = grid(vary, lambda **slots: DifferentiableSearch(schedule=Schedule(**QUICK), **slots))
    settings = {"recipe": Recipe(epochs=1, batch_size=16), "seeds": 2, "random": 2} | changes
    return Comparison(MicroNB201((1, 6, 6), 2, C=4, cells=1), bars_dataset(), arms, **settings)


def test_every_arm_has_its_seeds_beside_random_and_the_largest(tmp_path):
    result = compare(comparison({"mix": ["softmax", "partial-channels:K=2"]}), tmp_path)
    assert list(result["rows"]) == ["softmax", "partial-channels:K=2", RANDOM, LARGEST]
    assert all(len(seeds) == 2 for seeds in result["rows"].values())
    assert {"validation", "test", "gap", "search seconds"} <= set(result["rows"]["softmax"][0])
    assert "between" in result["rows"][RANDOM][0]
    assert json.loads((tmp_path / "comparison.json").read_text())["table"] == result["table"]
    assert (tmp_path / "comparison.svg").read_text().startswith("<?xml")


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch):
    what = comparison({"mix": ["softmax"]}, seeds=1)
    first = compare(what, tmp_path)
    monkeypatch.setattr(module, "_measure", lambda *args: pytest.fail("measured again"))
    assert compare(what, tmp_path)["rows"] == first["rows"]
    with pytest.raises(RunError, match="other settings"):
        compare(comparison({"mix": ["softmax"]}, random=3), tmp_path)


def test_an_arm_that_cannot_work_says_why_and_the_others_go_on():
    result = compare(comparison({"mix": ["softmax", "partial-channels:K=3"]}, seeds=1))
    assert "K=3" in result["failed"]["partial-channels:K=3"]
    assert "partial-channels:K=3: cannot run: Edge" in result["table"]
    assert list(result["rows"]) == ["softmax", RANDOM, LARGEST]


def test_the_largest_architecture_is_the_largest():
    space = MicroNB201((1, 6, 6), 2, C=4, cells=1)
    assert set(module._largest(space).values()) == {"conv3x3"}


def test_an_arm_for_each_combination():
    arms = grid({"mix": ["a", "b"], "select": ["c", "d", "e"]}, dict)
    assert len(arms) == 6
    assert arms["b, d"]() == {"mix": "b", "select": "d"}


def test_impossible_comparisons_are_refused():
    with pytest.raises(UsageError, match="at least one seed"):
        comparison({"mix": ["softmax"]}, seeds=0)
    with pytest.raises(UsageError, match="there anyway"):
        Comparison(MicroNB201((1, 6, 6), 2), bars_dataset(), {RANDOM: darts})


def test_the_table_shows_mean_and_spread():
    text = table({"a": [{"test": 0.5}, {"test": 0.7}], "b": [{"test": 0.1}]}, {"c": "why"})
    assert text.splitlines()[1].split() == ["a", "0.6", "±", "0.14"]
    assert text.splitlines()[3] == "c: cannot run: why"


# --- parts by name -------------------------------------------------------------------------------------------------


def test_parts_are_found_by_their_names_with_settings():
    assert {"first-order", "second-order", "one-level"} <= set(parts("arch-gradient"))
    assert {"softmax", "partial-channels"} <= set(parts("mix"))
    second = part_named("arch_gradient", "second-order:xi=0.1,hessian=exact")
    assert isinstance(second, SecondOrder)
    assert (second.xi, second.hessian) == (0.1, "exact")
    assert part_named("schedule", "schedule:epochs=3").epochs == 3
    search = darts(mix="partial-channels:K=2", select="argmax", schedule={"epochs": 4})
    assert (search.mix.K, search.schedule.epochs) == (2, 4)
    assert isinstance(search.select, Argmax)


@pytest.mark.parametrize(
    ("slot", "text", "message"),
    [
        ("mix", "softmux", "No part 'softmux' for the slot mix. Did you mean: softmax"),
        ("mixture", "softmax", "no slot 'mixture'"),
        ("mix", "partial-channels:k=2", "no setting 'k'"),
        ("mix", "partial-channels:K", "no setting 'K'|Write partial-channels:key=value"),
        ("arch_gradient", "second-order:xi=-1", "must not be negative"),
        ("schedule", "schedule:epochs=0", "positive integer"),
    ],
)
def test_wrong_names_and_settings_are_named(slot, text, message):
    with pytest.raises((UsageError, SpaceError), match=message):
        part_named(slot, text)


def test_a_slot_takes_only_its_own_kind():
    with pytest.raises(UsageError, match="The slot mix takes a Mix or a name, not Argmax"):
        as_part("mix", Argmax())
    with pytest.raises(UsageError, match="no setting 'epoch'"):
        as_part("schedule", {"epoch": 3})
    with pytest.raises(UsageError, match="give one of them"):
        darts(order=2, arch_gradient="first-order")
