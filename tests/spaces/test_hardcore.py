"""The space of HardCoRe-NAS: published networks by their size, operations by their labels, shared weights."""

from __future__ import annotations

from random import Random

import pytest
import torch

from archipel.core.errors import SpaceError
from archipel.nets.mbconv import MBConv
from archipel.spaces.hardcore import ElasticMBConv, HardCoReSpace

# From the published network definitions: expansion, kernel and attention of each stage's blocks.
PUBLISHED = {
    5_259_336: "e3k5 e3k5se|e3k5 e6k5se|e6k5se e6k5se|e6k5se e6k5se|e6k5se e6k5se",
    5_175_648: "e3k5 e3k5se e3k3|e3k5 e3k5 e3k5|e3k5 e3k5 e3k3 e3k3|e3k5 e3k3 e3k3 e3k3|e6k5se e6k5se e3k3se",
    5_520_328: "e3k5 e3k5se|e3k5 e3k5 e3k5 e3k5|e4k5 e6k5se e3k3 e3k3|e6k5se e3k3 e3k3 e3k3|e6k5se e6k5se e3k3se",
}
SMALL = HardCoReSpace((1, 8, 8), 3, depth=(1, 2), expand=(2, 3))


@pytest.mark.parametrize("params", PUBLISHED)
def test_published_networks_have_their_published_sizes(params):
    space = HardCoReSpace((3, 224, 224), 1000)
    label = {o.label: i for i, o in enumerate(space.operations)}
    blocks = [[label[name] for name in stage.split()] for stage in PUBLISHED[params].split("|")]
    arch = space.arch_of(blocks)
    assert space.cost.params(arch) == params
    assert space.blocks_of(arch) == blocks


def test_the_number_of_networks_is_that_of_the_paper():
    assert HardCoReSpace((3, 224, 224), 1000).size == (12**2 + 12**3 + 12**4) ** 5


@pytest.mark.parametrize("seed", range(3))
def test_networks_compute_with_shared_weights_what_they_compute_alone(seed):
    arch, supernet = SMALL.sample(Random(seed)), SMALL.supernet().eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(supernet.activate(arch)(x), supernet.extract(arch)(x))
    assert sum(p.numel() for p in SMALL.build(arch).parameters()) == SMALL.cost.params(arch)


def test_the_largest_block_is_an_inverted_residual():
    elastic = ElasticMBConv("b", 8, 8, 1, (3,), (5,), (True,), "relu")
    plain = MBConv(8, 8, 5, 3, se=0.25, act="relu")
    assert sum(p.numel() for p in elastic.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": (0, 2)}, r"1 <= smallest <= largest, not \(0, 2\)"),
        ({"widths": (4, 8, 8)}, r"3 widths need as many strides, not 2"),
        ({"input_shape": (8,)}, r"takes images \(channels, height, width\), not shape \(8,\)"),
    ],
)
def test_sizes_that_make_no_network_are_refused(settings, message):
    with pytest.raises(SpaceError, match=message):
        HardCoReSpace(**{"input_shape": (1, 8, 8), "classes": 2, **settings})
