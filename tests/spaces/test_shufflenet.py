from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import SpaceError
from archipel.spaces.shufflenet import BLOCKS, FACTORS, ShuffleBlock, from_codes, shufflenet_space

# The network that the paper's authors released.
RELEASED = [2, 1, 0, 1, 2, 0, 2, 0, 2, 0, 2, 3, 0, 0, 0, 0, 3, 2, 3, 3]


@pytest.fixture(scope="module")
def paper():
    return shufflenet_space()


@pytest.fixture(scope="module")
def small():
    return shufflenet_space(
        image=16, in_channels=1, classes=10, stem=4, widths=(8, 16), depths=(2, 2), head=24, stem_stride=1
    )


@pytest.mark.parametrize(
    ("codes", "params", "macs"),
    [(RELEASED, 3_558_464, 322_918_720), ([0] * 20, 3_154_880, 295_842_496), ([3] * 20, 3_870_816, 358_825_920)],
    ids=["released", "all 3x3", "all xception"],
)
def test_golden_parameters_and_macs_at_224(paper, codes, params, macs):
    arch = from_codes(paper, codes)
    assert paper.cost.params(arch) == params
    assert paper.cost.macs(arch) == macs


def test_the_space_has_four_to_the_twenty_networks(paper):
    assert paper.size == 4**20 == 1_099_511_627_776


def test_channel_search_adds_eight_sizes_a_block_and_factor_one_is_the_released_network():
    space = shufflenet_space(factors=FACTORS)
    assert space.size == 4**20 * 8**20
    arch = from_codes(space, RELEASED, [4] * 20)
    assert space.cost.params(arch) == 3_558_464
    # int(32 * 0.2) and int(32 * 1.6): rounded down.
    assert space.by_name["middle0"].options == (6, 12, 19, 25, 32, 38, 44, 51)


def test_channel_search_costs_what_a_hand_formula_says():
    space = shufflenet_space(factors=FACTORS)
    narrow, wide = from_codes(space, [0] * 20, [0] + [4] * 19), from_codes(space, [0] * 20, [7] + [4] * 19)

    def block0(m):  # 16 -> m (1x1), 3x3 depthwise, m -> 48 (1x1), with two batch norms of m
        return 16 * m + 9 * m + 48 * m + 4 * m

    assert space.cost.params(wide) - space.cost.params(narrow) == block0(51) - block0(6)


def test_a_stride_one_block_keeps_even_channels_and_replaces_odd_ones():
    torch.manual_seed(0)
    block = ShuffleBlock("shuffle5", 8, 8, 4, stride=1).eval()
    x = torch.randn(2, 8, 6, 6)
    y = block(x)
    assert torch.equal(y[:, :4], x[:, [0, 2, 4, 6]])
    x_other = x.clone()
    x_other[:, 0::2] += 1.0  # what is kept does not reach the main branch
    assert torch.equal(block(x_other)[:, 4:], y[:, 4:])


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_have_the_papers_layers(kind):
    def layout(branch):
        out = []
        for m in branch:
            if isinstance(m, nn.Conv2d):
                out.append(f"{'dw' if m.groups > 1 else 'pw'}{m.kernel_size[0]}/{m.stride[0]}")
                assert m.bias is None
            else:
                out.append("bn" if isinstance(m, nn.BatchNorm2d) else "relu")
        return " ".join(out)

    k = 3 if kind == "xception" else int(kind[-1])
    halving, keeping = ShuffleBlock(kind, 8, 16, 8, 2), ShuffleBlock(kind, 16, 16, 8, 1)
    pw = "pw1/1 bn relu"
    if kind == "xception":
        assert layout(halving.main) == f"dw3/2 bn {pw} dw3/1 bn {pw} dw3/1 bn {pw}"
        assert layout(keeping.main) == f"dw3/1 bn {pw} dw3/1 bn {pw} dw3/1 bn {pw}"
    else:
        assert layout(halving.main) == f"{pw} dw{k}/2 bn {pw}"
        assert layout(keeping.main) == f"{pw} dw{k}/1 bn {pw}"
    assert layout(halving.side) == f"dw{k}/2 bn {pw}"
    x = torch.randn(2, 8, 6, 6)
    assert halving(x).shape == (2, 16, 3, 3)
    assert keeping(halving(x)).shape == (2, 16, 3, 3)


def test_the_supernet_computes_what_the_extracted_network_computes(small):
    rng = Random(0)
    supernet = small.supernet(seed=1).eval()
    x = torch.randn(3, 1, 16, 16)
    for _ in range(4):
        arch = small.sample(rng)
        alone = supernet.extract(arch)
        assert torch.allclose(supernet.activate(arch)(x), alone(x), atol=1e-6)
        assert not any("Elastic" in type(m).__name__ for m in alone.modules())


def test_built_networks_have_the_parameters_that_costs_say_and_train(small):
    arch = from_codes(small, [3, 0, 1, 2])
    net = small.build(arch)
    assert sum(p.numel() for p in net.parameters()) == small.cost.params(arch)
    net(torch.randn(4, 1, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_list_of_the_wrong_length_or_an_index_out_of_range_names_the_place(small):
    with pytest.raises(SpaceError, match="4 block decisions, but the list has 3 entries"):
        from_codes(small, [0, 1, 2])
    with pytest.raises(SpaceError, match=r"block2: index 4 is not one of 0 to 3"):
        from_codes(small, [0, 1, 4, 0])
    with pytest.raises(SpaceError, match=r"block0: index -1"):
        from_codes(small, [-1, 1, 0, 0])
    with pytest.raises(SpaceError, match="0 middle decisions"):
        from_codes(small, [0, 0, 0, 0], [1, 1, 1, 1])


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(SpaceError, match="one width and one positive depth"):
        shufflenet_space(widths=(64,), depths=(4, 4))
    with pytest.raises(SpaceError, match="even and more than the 16 before, not 17"):
        shufflenet_space(widths=(17,), depths=(1,))
    with pytest.raises(SpaceError, match="more than the 64 before"):
        shufflenet_space(widths=(64, 32), depths=(1, 1))
    with pytest.raises(SpaceError, match="at least one of 32 channels"):
        shufflenet_space(factors=(0.01, 1.0))
    with pytest.raises(SpaceError, match="vanish in 4 stages"):
        shufflenet_space(image=16)
