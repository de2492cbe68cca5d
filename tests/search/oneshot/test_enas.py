"""ENAS: weights and controller in turns, rewards in two modes, and interruptions that change nothing."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import nn
from toy_images import bars, bars_dataset

from archipel.core.errors import UsageError
from archipel.core.storage import Checkpoints
from archipel.search.oneshot.enas import ENAS
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.macro import MacroSpace

torch.set_num_threads(1)

QUICK = {"epochs": 2, "batch_size": 8, "updates": 2, "children": 3, "hidden": 8}


def ops():
    return {"id": lambda C, s: nn.Identity(), "conv": lambda C, s: nn.Conv2d(C, C, 3, padding=1, bias=False)}


def searched(space=None, checkpoints=None, feasible=None, **settings):
    data = bars_dataset(test=False)
    search = ENAS(**{**QUICK, **settings})
    search.setup(Problem(space or MacroSpace((1, 6, 6), 2, ops(), C=4, layers=3), rng=Random(0), feasible=feasible))
    search.prepare(Context(data, Recipe(epochs=1), checkpoints=checkpoints or Checkpoints()))
    return search


def test_it_proposes_one_network_of_the_space():
    search = searched()
    trial = search.ask()
    assert search.problem.space.validate(trial.arch) == trial.arch
    assert search.ask() is None
    assert search.finished
    assert len(search.shared_scores([trial.arch])) == 1
    fresh = ENAS(**QUICK)
    fresh.setup(search.problem)
    with pytest.raises(UsageError, match="call prepare"):
        fresh.ask()


def test_only_the_weights_of_the_drawn_child_move():
    search = searched(learn=False, epochs=1)
    net = search.supernet
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=0.1)
    search._draw = lambda n, rng: [dict.fromkeys(("l1.op", "l2.op", "l3.op"), "conv") | {"l2.skip0": "no", "l3.skip0": "no", "l3.skip1": "no"}]  # fmt: skip  # noqa: E501
    before = {n: p.clone() for n, p in net.named_parameters()}
    search._train_weights(bars(8, 3), optimizer, 0, 0, torch.Generator())
    assert not torch.equal(before["net.layers.0.op.blended.1.weight"], net.net.layers[0].op.blended[1].weight)
    search._draw = lambda n, rng: [dict.fromkeys(("l1.op", "l2.op", "l3.op"), "id") | {"l2.skip0": "no", "l3.skip0": "no", "l3.skip1": "no"}]  # fmt: skip  # noqa: E501
    before = {n: p.clone() for n, p in net.named_parameters()}
    search._train_weights(bars(8, 3), optimizer, 0, 1, torch.Generator())
    assert torch.equal(before["net.layers.0.op.blended.1.weight"], net.net.layers[0].op.blended[1].weight)


def test_the_controller_learns_what_is_rewarded(monkeypatch):
    monkeypatch.setattr(
        ENAS, "_rewards", lambda self, archs, data, rng: torch.tensor([float(a["l1.op"] == "conv") for a in archs])
    )
    search = searched(epochs=6, updates=15, children=8, controller_lr=0.02)
    drawn = search.controller.sample(200, torch.Generator().manual_seed(5))
    assert sum(a["l1.op"] == "conv" for a in drawn) > 150
    still = searched(learn=False, epochs=1).controller.sample(200, torch.Generator().manual_seed(5))
    assert 60 < sum(a["l1.op"] == "conv" for a in still) < 140


def test_skips_are_drawn_towards_their_target(monkeypatch):
    monkeypatch.setattr(ENAS, "_rewards", lambda self, archs, data, rng: torch.zeros(len(archs)))
    shares = {}
    for target in (0.1, 0.9):
        search = searched(epochs=6, updates=15, children=8, controller_lr=0.02, skip_target=target, skip_weight=2.0)
        drawn = search.controller.sample(200, torch.Generator().manual_seed(5))
        shares[target] = sum(a["l3.skip0"] == "yes" for a in drawn) / 200
    assert shares[0.1] < 0.3
    assert shares[0.9] > 0.7


def test_rewards_in_training_mode_feel_what_evaluation_hides():
    def with_dropout():
        return {"drop": lambda C, s: nn.Dropout(1.0), "conv": lambda C, s: nn.Conv2d(C, C, 3, padding=1, bias=False)}

    search = searched(MacroSpace((1, 6, 6), 2, with_dropout(), C=4, layers=1), epochs=1)
    data = bars(16, 2)
    assert search.score({"l1.op": "drop"}, data, "train") == 0.5  # zeros: one class for all
    kept = {n: b.clone() for n, b in search.supernet.named_buffers()}
    search.score({"l1.op": "conv"}, data, "train")
    assert all(torch.equal(kept[n], b) for n, b in search.supernet.named_buffers())


def test_an_interrupted_search_ends_bit_identical(tmp_path):
    class Killed(Exception):
        pass

    whole = searched(epochs=3)

    class Dying(Checkpoints):
        def save(self, name, state):
            super().save(name, state)
            if state["epoch"] == 1:
                raise Killed

    with pytest.raises(Killed):
        searched(epochs=3, checkpoints=Dying(tmp_path))
    resumed = searched(epochs=3, checkpoints=Checkpoints(tmp_path))
    assert resumed.ask().arch == whole.ask().arch
    for n, t in whole.supernet.state_dict().items():
        assert torch.equal(t, resumed.supernet.state_dict()[n]), n


def test_children_keep_the_limits():
    search = searched(feasible=lambda arch: arch["l1.op"] == "id")
    assert search.ask().arch["l1.op"] == "id"


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"reward": "test"}, {"lr": 0}, {"skip_target": 1.0}, {"decay": 1.0}, {"children": True}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError):
        ENAS(**settings)
