"""Measured tables: an entry for every option, sums like whole networks, and the same table after a restart."""

from __future__ import annotations

import torch
from torch import nn

from archipel.core.choice import Choice
from archipel.core.storage import Checkpoints
from archipel.cost import latency
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import latency_table
from archipel.search.differentiable.latency_table import MeasuredLoss, measured_table
from archipel.search.differentiable.proxylessnas import TwoCosines, proxylessnas
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.mbconv import digits_space
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)


class Sleepless:
    """Stands in for the clock: an option takes as many milliseconds as its weights and inputs have entries."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, net: nn.Module, example, batch=1, threads=1, runs=1, **rest) -> latency.Latency:
        self.calls += 1
        choices = [m for m in net.modules() if isinstance(m, Choice)]
        skipped = {id(p) for c in choices for o in list(c.blended)[1:] for p in o.parameters()}  # the first is active
        ms = float(sum(p.numel() for p in net.parameters() if id(p) not in skipped) + batch * example[0].numel())
        return latency.Latency(ms, 0.0, ms, runs, batch, threads)


def test_every_option_is_timed_at_the_size_it_runs_at_and_the_rest_is_the_constant(monkeypatch):
    clock = Sleepless()
    monkeypatch.setattr(latency_table, "measure_latency", clock)
    space = digits_space(2, (3,), (3,), C=4)
    table, rest = measured_table(space, batch=2)
    block = 4 * 12 + 24 + 9 * 12 + 24 + 12 * 4 + 8
    assert table == {n: {"k3e3": block + 2 * 256.0, "skip": 2 * 256.0} for n in ("layer0", "layer1")}
    assert clock.calls == 5
    whole = space.cost.params({"layer0": "k3e3", "layer1": "k3e3"}) + 2 * 64
    assert rest == max(0.0, whole - 2 * (block + 2 * 256))


def test_places_that_share_a_decision_add_up(monkeypatch):
    monkeypatch.setattr(latency_table, "measure_latency", Sleepless())
    one, two = (measured_table(MicroNB201((1, 8, 8), 2, C=2, cells=k))[0] for k in (1, 2))
    assert two["e01"]["conv3x3"] == 2 * one["e01"]["conv3x3"]


def test_real_times_are_positive():
    table, rest = measured_table(digits_space(1, (1, 5), (3,), C=4), runs=5)
    assert all(ms > 0 for ms in table["layer0"].values())
    assert rest >= 0
    assert table["layer0"]["skip"] < table["layer0"]["k5e3"]


def test_a_search_that_goes_on_keeps_the_costs_it_was_begun_with(monkeypatch):
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 2
    data = Dataset("noise", Split(x, y), Split(x, y), None, "classification", 2)
    store = Checkpoints()
    searches = []
    for factor in (1.0, 7.0):  # the second machine is slower

        def clock(*args, factor=factor, **kwargs):
            ms = factor * Sleepless()(*args, **kwargs).median_ms
            return latency.Latency(ms, 0.0, ms, 1, 1, 1)

        monkeypatch.setattr(latency_table, "measure_latency", clock)
        search = proxylessnas(objective=MeasuredLoss(target=300.0), schedule=TwoCosines(2, 1, 8))
        search.setup(Problem(digits_space(1, (1, 3), (3,), C=4)))
        search.prepare(Context(data, Recipe(epochs=1), checkpoints=store))
        searches.append(search.state.objective.expected)
    assert searches[0].constant == searches[1].constant
    assert all(torch.equal(searches[0].table[n], searches[1].table[n]) for n in searches[0].table)
