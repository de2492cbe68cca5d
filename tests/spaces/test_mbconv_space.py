"""Chains of MBConv layers: golden numbers of the published networks, skipping, and errors."""

from __future__ import annotations

from random import Random

import pytest
import torch

from archipel.core.errors import SpaceError
from archipel.cost.model import count_params
from archipel.search.differentiable.pc_darts import PartialChannels
from archipel.spaces.mbconv import Macro, MBConvSpace, digits_space, small_macro
from archipel.spaces.operations import choice_edge

torch.set_num_threads(1)


def published(macro: str, **settings) -> MBConvSpace:
    return MBConvSpace((3, 224, 224), 1000, macro, **settings)


def multi_path_weights(space: MBConvSpace) -> int:
    with torch.device("meta"):
        return count_params(space.cells(choice_edge))


def test_the_proxyless_space_has_its_golden_numbers():
    space = published("proxylessnas")
    assert len(space.decisions) == 21
    assert sum("skip" in d.options for d in space.decisions) == 15
    assert sum(d.size for d in space.decisions) == 141
    assert space.size == 6**6 * 7**15 == pytest.approx(2.2e17, rel=0.02)
    assert multi_path_weights(space) == 16_034_168
    assert space.cost.params({d.name: "k3e3" for d in space.decisions}) == 3_191_928


def test_the_single_path_space_has_its_golden_numbers():
    space = published("single-path-nas", kernels=(3, 5))
    assert len(space.decisions) == 20
    assert space.size == 4**5 * 5**15 == pytest.approx(3.125e13)
    assert multi_path_weights(space) == 9_680_424
    assert space.cost.params({d.name: "k5e6" for d in space.decisions}) == 4_833_768


def test_published_networks_map_images_to_classes():
    space = MBConvSpace((3, 64, 64), 10, "proxylessnas")
    arch = {d.name: d.options[-1] for d in space.decisions}  # skipped wherever that is possible
    assert space.build(arch).eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_skipped_layers_pass_their_input_on_and_cost_nothing():
    space = digits_space(2, (3,), (3,))
    both, none = ({"layer0": o, "layer1": o} for o in ("k3e3", "skip"))
    net = space.build(none)
    assert torch.equal(net.layers(torch.ones(1, 8, 2, 2)), torch.ones(1, 8, 2, 2))
    block = 8 * 24 + 2 * 24 + 9 * 24 + 2 * 24 + 24 * 8 + 2 * 8
    assert space.cost.params(both) - space.cost.params(none) == 2 * block


def test_only_layers_that_keep_shape_can_be_skipped():
    macro = Macro(8, 1, (8, 16), (2, 2), (1, 2))
    space = MBConvSpace((1, 8, 8), 3, macro)
    assert ["skip" in d.options for d in space.decisions] == [True, True, False, True]
    chosen = MBConvSpace((1, 8, 8), 3, macro, skip=[3])
    assert ["skip" in d.options for d in chosen.decisions] == [False, False, False, True]
    assert not any("skip" in d.options for d in MBConvSpace((1, 8, 8), 3, macro, skip=False).decisions)
    with pytest.raises(SpaceError, match=r"layer 2 cannot be skipped, .* 8 to 16 channels with stride 2\. .*: 0, 1, 3"):
        MBConvSpace((1, 8, 8), 3, macro, skip=[2])
    with pytest.raises(SpaceError, match="skip names layer 4, but layers are 0 to 3"):
        MBConvSpace((1, 8, 8), 3, macro, skip=[4])


def test_small_chains_halve_images_down_to_a_side_of_about_four():
    assert small_macro(8).strides == (1, 2)
    assert small_macro(28).strides == (1, 2, 2)
    assert small_macro(32).widths == (16, 24, 40, 56)
    space = MBConvSpace((1, 28, 28), 10, width=8, depth=1)
    assert space.build(space.sample(Random(0))).eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    with pytest.raises(SpaceError, match=r"3 stages .* do not fit images of side 8; give from 1 to 2 stages"):
        small_macro(8, stages=3)


def test_wrong_settings_say_what_is_wrong():
    with pytest.raises(SpaceError, match=r"takes images .*, not shape \(5,\)"):
        MBConvSpace((5,), 2)
    with pytest.raises(SpaceError, match=r"No macro-structure 'proxyless'\. Did you mean: proxylessnas"):
        published("proxyless")
    with pytest.raises(SpaceError, match="at least one kernel and one expansion"):
        published("proxylessnas", kernels=())


def test_a_search_that_gives_operations_a_part_of_the_channels_is_refused():
    with pytest.raises(SpaceError, match=r"An MBConv layer from 8 to 8 channels takes all .* not 4\."):
        digits_space(2, (3,), (3,)).cells(PartialChannels(2).edge)
