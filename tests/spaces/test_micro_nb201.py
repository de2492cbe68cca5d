"""The small network of NAS-Bench-201 cells."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import SpaceError
from archipel.cost.model import count_params
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.nb201_codec import EDGE_NAMES, OPS

torch.set_num_threads(1)


def test_decisions_are_those_of_the_benchmark():
    space = MicroNB201((1, 8, 8), 10)
    assert space.size == 5**6
    assert {d.name: d.options for d in space.decisions} == dict.fromkeys(EDGE_NAMES, OPS)
    assert MicroNB201((1, 8, 8), 10, tie="cell").size == 5**12


def test_activated_and_extracted_networks_compute_the_same():
    space = MicroNB201((1, 8, 8), 10)
    supernet, x = space.supernet(), torch.randn(3, 1, 8, 8)
    for seed in range(5):
        arch = space.sample(Random(seed))
        plain = supernet.extract(arch)
        torch.testing.assert_close(supernet.activate(arch)(x), plain(x), rtol=0, atol=0)
        built = space.build(arch)
        assert count_params(built) == space.cost.params(arch)


def test_all_conv3x3_has_its_parameters_by_hand():
    space = MicroNB201((1, 8, 8), 10, C=8)
    arch = dict.fromkeys(EDGE_NAMES, "conv3x3")
    stem, norm, linear = 9 * 8 + 16, 16, 8 * 10 + 10
    assert space.cost.params(arch) == stem + 2 * 6 * (9 * 8 * 8 + 16) + norm + linear


def test_node_three_sums_its_three_edges():
    space = MicroNB201((1, 8, 8), 10, cells=1)
    net = space.build({**dict.fromkeys(EDGE_NAMES, "none"), "e03": "skip", "e01": "skip", "e13": "skip"})
    x = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(net.cells[0](x), 2 * x)
    cut = space.build({**dict.fromkeys(EDGE_NAMES, "conv3x3"), "e03": "none", "e13": "none", "e23": "none"})
    assert not cut.cells[0](x).any()


def test_searched_networks_have_no_affine_norms_in_cells():
    net = MicroNB201((1, 8, 8), 10).supernet().net
    assert not any(m.affine for m in net.cells.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_shape": (64,)}, r"not shape \(64,\)"),
        ({"cells": 0}, "at least one cell"),
        ({"tie": "level"}, "tied by kind or cell"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings, message):
    with pytest.raises(SpaceError, match=message):
        MicroNB201(**{"input_shape": (1, 8, 8), "classes": 10, **settings})
