"""Any part in any slot: a search runs and proposes a network of the space, or says why it cannot, before it trains."""

from __future__ import annotations

from random import Random

import pytest
import torch
from toy_images import bars_dataset

from archipel.core.errors import ArchipelError
from archipel.search.differentiable import DifferentiableSearch, Schedule
from archipel.search.differentiable.parts import SLOTS, part_named, parts
from archipel.search.strategy import Context, Problem
from archipel.search.training import Diverged, Recipe
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)

QUICK = Schedule(epochs=1, batch_size=16)
SHORT = {"perturbation": "perturbation:tune=1", "neumann": "neumann:K=1"}


def searched(space=None, **slots):
    space = space or MicroNB201((1, 6, 6), 2, C=4, cells=1)
    search = DifferentiableSearch(**{"schedule": QUICK, **slots})
    search.setup(Problem(space, rng=Random(0)))
    search.prepare(Context(bars_dataset(test=False), Recipe(epochs=1)))
    trial = search.ask()
    assert space.validate(trial.arch) == trial.arch
    return search, trial


@pytest.mark.parametrize("slot", [s for s in SLOTS if s != "schedule"])
def test_every_part_works_beside_the_defaults_or_says_what_it_needs(slot):
    refused: dict[str, str] = {}
    for name in parts(slot):
        try:
            searched(**{slot: part_named(slot, SHORT.get(name, name))})
        except (ArchipelError, Diverged) as error:
            refused[name] = str(error)
    unclear = {name: text for name, text in refused.items() if len(text) < 40 or " object at 0x" in text}
    assert not unclear
    assert len(parts(slot)) - len(refused) >= 3


def test_schedules_of_all_methods_drive_the_same_loop():
    for name in parts("schedule"):
        rise = {"cosine-power": ",rise=0"}.get(name, "")
        searched(schedule=part_named("schedule", f"{name}:epochs=2,batch_size=16{rise}"))


def test_four_methods_in_one_search():
    search, trial = searched(
        mix="partial-channels:K=2",
        arch_gradient="amended-gradient:eta=0.1",
        objective="hard-cost:upper.params=400",
        select="perturbation:tune=1",
    )
    assert search.mix.K == 2
    assert trial.arch
