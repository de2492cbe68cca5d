"""The learning curves that multi-fidelity searches are compared on."""

from __future__ import annotations

import math

import pytest
import torch

from archipel.claims.curves import SHAPE, TRAINING, Curves, Perceptrons, curves
from archipel.search.training import Diverged

ARCH = {"depth": 2, "width": 16, "skip": True, "activation": "relu", "dropout": 0.1}
ARCH |= {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


@pytest.fixture(scope="module")
def table():
    return Curves(split=5)


def test_the_space_has_the_eight_joint_decisions(table):
    assert [d.name for d in table.space.decisions] == [*SHAPE, *TRAINING]
    assert table.space.hyper(ARCH) == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


def test_skips_are_around_every_hidden_layer_but_the_first():
    shape = {name: ARCH[name] for name in SHAPE} | {"depth": 3}
    with_skips, without = (Perceptrons().build({**shape, "skip": skip}, seed=1).eval() for skip in (True, False))
    x = torch.randn(4, 1, 8, 8)
    h = without[1](without[0](x))
    for layer in without[2:4]:
        h = h + layer(h)
    torch.testing.assert_close(with_skips(x), without[4](h))


def test_a_curve_is_one_training_and_a_budget_has_a_schedule_of_its_own(table):
    curve = table.curve(ARCH, 4)
    assert len(curve) == 4
    assert table.along(4)(ARCH, 2) == {"accuracy": curve[1]}
    assert table.from_scratch(ARCH, 4) == {"accuracy": curve[-1]}
    assert table.recipe(ARCH, 2).epochs == 2  # its cosine ends after two epochs, not after four
    assert table.curve(ARCH, 2)[1] != curve[1]
    assert Curves(split=5).curve(ARCH, 4) == curve


def test_a_training_that_diverges_is_not_a_number_from_then_on(monkeypatch):
    def bursts_in_epoch_two(net, data, task, recipe, seed, start, *rest):
        if start == 2:
            raise Diverged("loss is inf")

    monkeypatch.setattr("archipel.claims.curves.train", bursts_in_epoch_two)
    assert [math.isnan(a) for a in Curves(split=5).curve(ARCH, 4)] == [False, False, True, True]


def test_the_test_split_is_opened_by_purpose_and_only_on_request():
    fresh = Curves(split=6)
    fresh.from_scratch(ARCH, 1)
    assert fresh.data.openings == []
    assert 0 < fresh.test_accuracy(ARCH, 1, "here") < 1
    assert fresh.data.openings == ["here"]
    assert (len(fresh.data.train), len(fresh.data.val)) == (600, 600)


def test_a_table_of_random_rows_serves_a_search_that_is_limited_to_them(table):
    rows = table.table(2, 1, seed=3)
    first = table.sample(2, seed=3)[0]
    assert first in rows
    assert ARCH not in rows
    assert rows.evaluate(first, 1) == table.from_scratch(first, 1)


def test_all_arms_of_a_claim_share_the_curves_of_a_split():
    assert curves(7) is curves(7)
