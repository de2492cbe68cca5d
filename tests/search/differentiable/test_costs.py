"""Costs of options and their expectation: equal to the counted cost of every discrete network."""

from __future__ import annotations

from random import Random

import pytest
import torch

from archipel.core.errors import SpaceError, UsageError
from archipel.search.differentiable.costs import expected_cost
from archipel.search.differentiable.loop import make_supernet
from archipel.search.differentiable.mix import Softmax
from archipel.search.differentiable.parameters import ArchParameters
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201


def parameters_of(space):
    return ArchParameters.of(make_supernet(space, Softmax(), 0))


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("tie", ["kind", "cell"])
def test_one_hot_weights_cost_exactly_what_the_discrete_network_costs(metric, tie):
    space = MicroNB201((1, 8, 8), 10, tie=tie)
    parameters = parameters_of(space)
    phi = expected_cost(space, parameters, metric)
    for seed in range(10):
        arch = space.sample(Random(seed))
        assert float(phi(parameters.one_hot(arch))) == getattr(space.cost, metric)(arch)


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_edges_of_a_node_that_keeps_two_count_by_their_share(metric):
    space = DartsSpace((1, 8, 8), 2, C=8, layers=3, nodes=3)
    parameters = parameters_of(space)
    phi = expected_cost(space, parameters, metric)
    uniform = {n: torch.full((len(r.labels),), 1 / len(r.labels)) for n, r in parameters.rows.items()}
    # Uniform over kept pairs of edges and over derivable options: the mean cost of random architectures.
    for name, row in parameters.rows.items():
        uniform[name] = torch.zeros(len(row.labels))
        uniform[name][row.derivable] = 1 / len(row.derivable)
    rng = Random(0)
    costs = torch.tensor([getattr(space.cost, metric)(space.sample(rng)) for _ in range(1500)], dtype=torch.float64)
    assert abs(float(phi(uniform)) - float(costs.mean())) < 4 * float(costs.std()) / len(costs) ** 0.5


def test_the_expectation_is_differentiable_and_its_range_is_attained():
    space = MicroNB201((1, 8, 8), 10)
    parameters = parameters_of(space)
    phi = expected_cost(space, parameters, "params")
    logits = {n: torch.zeros(5, dtype=torch.float64, requires_grad=True) for n in parameters.rows}
    cost = phi({n: torch.softmax(t, 0) for n, t in logits.items()})
    cost.backward()
    assert phi.range[0] < cost.item() < phi.range[1]
    for name, t in logits.items():
        c = phi.table[name]
        torch.testing.assert_close(t.grad, (c - c.mean()) / 5)
    cost = space.cost.params
    assert phi.range == (cost(dict.fromkeys(parameters.rows, "none")), cost(dict.fromkeys(parameters.rows, "conv3x3")))


def test_an_unknown_metric_and_missing_weights_are_refused():
    space = MicroNB201((1, 8, 8), 10)
    parameters = parameters_of(space)
    with pytest.raises(UsageError, match="params or macs, not 'joules'"):
        expected_cost(space, parameters, "joules")
    with pytest.raises(SpaceError, match="no mixture weights"):
        expected_cost(space, parameters, "params")({})
