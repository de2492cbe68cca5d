"""Costs of options and their expectation: equal to the counted cost of every discrete network."""

from __future__ import annotations

from random import Random

import pytest
import torch

from archipel.core.errors import SpaceError, UsageError
from archipel.search.differentiable.costs import expected_cost, tabled_cost
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
    space = DartsSpace((1, 8, 8), 2, C=4, layers=3, nodes=3)
    parameters = parameters_of(space)
    phi = expected_cost(space, parameters, metric)
    uniform = {n: torch.full((len(r.labels),), 1 / len(r.labels)) for n, r in parameters.rows.items()}
    # Uniform over kept pairs of edges and over derivable options: the mean cost of random architectures.
    for name, row in parameters.rows.items():
        uniform[name] = torch.zeros(len(row.labels))
        uniform[name][row.derivable] = 1 / len(row.derivable)
    rng = Random(0)
    costs = torch.tensor([getattr(space.cost, metric)(space.sample(rng)) for _ in range(60)], dtype=torch.float64)
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


def test_choices_that_are_fixed_belong_to_every_network():
    space = DartsSpace((1, 8, 8), 2, C=4, layers=3, nodes=2)
    fixed = {"normal.n2": "0,1", "normal.n3": "0,2", "normal.e02": "sep_conv_3x3", "normal.e03": "sep_conv_5x5"}
    parameters = ArchParameters.of(make_supernet(space, Softmax(), 0), fixed=fixed)
    phi = expected_cost(space, parameters, "params")
    arch = {"reduce.n2": "0,1", "reduce.n3": "0,1", **fixed}
    arch = space.complete({**arch, **dict.fromkeys(parameters.rows, "skip_connect")}, Random(0))
    one_hot = parameters.one_hot(arch)
    pools = phi({**one_hot, **{n: torch.eye(8)[0] for n in parameters.rows if n.startswith("reduce.")}})
    arch = {n: "max_pool_3x3" if n.startswith("reduce.e") else v for n, v in arch.items()}
    assert float(pools) == space.cost.params(arch)


def test_given_costs_are_taken_row_by_row_and_option_by_option():
    space = MicroNB201((1, 8, 8), 10)
    parameters = parameters_of(space)
    entries = {n: {label: float(i) for i, label in enumerate(r.labels)} for n, r in parameters.rows.items()}
    cost = tabled_cost(space, parameters, "ms", entries, constant=0.5)
    assert cost.range == (0.5, 24.5)
    assert float(cost(parameters.one_hot(dict.fromkeys(parameters.rows, "conv1x1")))) == 12.5
    entries["e12"]["skip"] = float("nan")
    with pytest.raises(SpaceError, match=r"table for ms gives nan for option 'skip' of 'e12'"):
        tabled_cost(space, parameters, "ms", entries)
