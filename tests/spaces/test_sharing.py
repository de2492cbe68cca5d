from functools import partial
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.choice import Fixed, Width
from archipel.core.errors import SpaceError
from archipel.search.live_update import LiveUpdate
from archipel.spaces.dynamic import DropPath, DynamicConv2d, DynamicLinear, pooled
from archipel.spaces.sharing import Sharing, cell_space, elastic_mlp_space

CELLS = partial(cell_space, (1, 8, 8), 5, channels=8, cells=2)
SHARINGS = [
    Sharing(),
    Sharing(channels="random"),
    Sharing(channels="interpolate"),
    Sharing(kernels="crop"),
    Sharing(kernels="transform"),
    Sharing(weights_on="node"),
    Sharing(path_dropout=0.3),
    Sharing(global_dropout=0.3),
    Sharing(layers=0.5),
    Sharing(width=0.5),
    Sharing(channels="interpolate", kernels="transform", weights_on="node"),
    Sharing(channels="random", kernels="crop", weights_on="node", path_dropout=0.2),
]


@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda s: ",".join(s.changed()) or "default")
def test_architectures_are_the_same_data_and_extraction_computes_what_the_supernet_does(sharing):
    space = CELLS(sharing=sharing)
    assert space.decisions == CELLS().decisions
    assert space.size == 54
    torch.manual_seed(0)
    supernet = space.supernet(seed=3)
    x = torch.randn(4, 1, 8, 8)
    rng = Random(0)
    for _ in range(6):
        supernet.train().activate(space.sample(rng))(x)  # statistics, and a random chunk to forget
    supernet.eval()
    for _ in range(6):
        arch = space.sample(rng)
        torch.testing.assert_close(supernet.activate(arch)(x), supernet.extract(arch)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sharing", SHARINGS, ids=lambda s: ",".join(s.changed()) or "default")
def test_steps_change_only_what_the_path_uses(sharing):
    space = CELLS(sharing=sharing)
    supernet = space.supernet().train()
    update = LiveUpdate(supernet, torch.optim.SGD(supernet.parameters(), 0.1, momentum=0.9, weight_decay=0.1))
    rng, x = Random(1), torch.randn(4, 1, 8, 8)
    torch.manual_seed(1)
    for _ in range(8):
        before = {n: p.detach().clone() for n, p in supernet.named_parameters()}
        update.optimizer.zero_grad(set_to_none=True)
        supernet.activate(space.sample(rng))(x).square().sum().backward()
        live: dict[int, list] = {}
        for n, slices in supernet.live_slices().items():
            live.setdefault(id(supernet.get_parameter(n)), []).append(slices)
        update.mark()
        update.step()
        for n, p in supernet.named_parameters():
            rest = torch.ones_like(p, dtype=torch.bool)
            for slices in live.get(id(p), []):
                rest[slices] = False
            assert torch.equal(p[rest], before[n][rest])
            assert torch.isfinite(p).all()


def test_default_cells_have_the_parameters_of_a_hand_count():
    space = CELLS()
    wide = {"op01": "conv3", "op02": "conv1", "op12": "skip", "concat": 1}
    conv_bn = lambda i, o, k: i * o * k * k + 2 * o  # noqa: E731
    cell = 2 * conv_bn(8, 8, 1) + conv_bn(8, 8, 3) + conv_bn(8, 8, 1)
    assert space.cost.params(wide) == conv_bn(1, 8, 3) + 2 * cell + 8 * 5 + 5
    cell = 2 * conv_bn(8, 4, 1) + conv_bn(4, 4, 3) + conv_bn(4, 4, 1)
    assert space.cost.params({**wide, "concat": 2}) == conv_bn(1, 8, 3) + 2 * cell + 8 * 5 + 5


def test_interpolated_channels_are_adaptive_averages_of_all_of_them():
    w = torch.arange(12.0).view(6, 2)
    torch.testing.assert_close(pooled(w, 0, 3), torch.stack([w[:2].mean(0), w[2:4].mean(0), w[4:].mean(0)]))
    assert pooled(w, 0, 6) is w
    layer = DynamicLinear(4, Width("w", [2, 4]), channels="interpolate")
    layer.seat.decider  # noqa: B018  (a seat is there before a space gives one)
    plain = layer.extract(Fixed({"w": 2}), lambda m: m)
    torch.testing.assert_close(plain.weight, layer.weight.view(2, 2, 4).mean(1))
    torch.testing.assert_close(plain.bias, layer.bias.view(2, 2).mean(1))
    assert layer.live(Fixed({"w": 2})) == {}  # every weight takes part


def test_random_channels_are_chunks_that_reach_every_place_while_training_and_the_first_ones_after():
    space = elastic_mlp_space((6,), 3, widths=(2, 4), hidden=1, sharing=Sharing(channels="random"))
    supernet = space.supernet().train()
    layer = supernet.net[1]
    supernet.activate({"width0": 2})
    torch.manual_seed(0)
    places = []
    for _ in range(60):
        supernet(torch.randn(3, 6))
        places.append(layer.live(supernet.decider)["weight"][0])
    assert {(s.start, s.stop) for s in places} == {(0, 2), (1, 3), (2, 4)}
    supernet.eval()(torch.randn(3, 6))
    assert layer.live(supernet.decider)["weight"][0] == slice(0, 2)


def test_a_cropped_kernel_is_the_centre_of_the_largest_and_a_transformed_one_starts_there():
    largest = DynamicConv2d(2, 2, 5)
    cropped, transformed = DynamicConv2d(2, 2, 3, largest=largest), DynamicConv2d(2, 2, 3, "fixed", largest, True)
    assert cropped.weight is largest.weight is transformed.weight
    for conv in (cropped, transformed):
        plain = conv.extract(Fixed({}), lambda m: m)
        assert plain.kernel_size == (3, 3)
        torch.testing.assert_close(plain.weight, largest.weight[:, :, 1:4, 1:4])
        assert conv(torch.randn(1, 2, 7, 7)).shape == (1, 2, 7, 7)
    nn.init.constant_(transformed.transform, 1.0)
    plain = transformed.extract(Fixed({}), lambda m: m)
    torch.testing.assert_close(plain.weight[0, 0], largest.weight[0, 0, 1:4, 1:4].sum().expand(3, 3))


def test_weights_on_nodes_are_shared_by_all_edges_into_a_node():
    edge, node = CELLS().supernet(), CELLS(sharing=Sharing(weights_on="node")).supernet()
    for supernet, same in ((edge, False), (node, True)):
        cell = supernet.net[3]
        assert (cell.edge02.options["conv3"] is cell.edge12.options["conv3"]) == same
        assert cell.edge01.options["conv3"] is not cell.edge02.options["conv3"]


def test_path_dropout_drops_examples_grows_with_depth_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(20_000, 2)
    y = drop(x)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(y[:, 0], y[:, 1])
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert drop.eval()(x) is x
    supernet = CELLS(sharing=Sharing(path_dropout=0.4)).supernet()
    assert [m.rate for m in supernet.modules() if isinstance(m, DropPath)] == [0.2, 0.4]


def test_proxies_shorten_and_narrow_the_network():
    def cells(space):
        return sum(type(m).__name__ == "SharedCell" for m in space.supernet().modules())

    assert cells(CELLS()) == 2
    assert cells(CELLS(sharing=Sharing(layers=0.5))) == 1
    arch = {"op01": "conv3", "op02": "conv3", "op12": "conv3", "concat": 1}
    assert CELLS(sharing=Sharing(width=0.5)).cost.params(arch) == cell_space((1, 8, 8), 5, 4, 2).cost.params(arch)


def test_the_perceptron_host_has_64_networks_and_refuses_what_means_nothing_there():
    space = elastic_mlp_space((64,), 10)
    assert space.size == 64
    assert elastic_mlp_space((64,), 10, activations=("relu", "tanh")).size == 512
    assert space.cost.params({"width0": 4, "width1": 8, "width2": 16}) == 260 + 40 + 144 + 170 + 2 * (4 + 8 + 16)
    with pytest.raises(SpaceError, match=r"neither edges nor kernels nor cells, so \['kernels'\] mean nothing"):
        elastic_mlp_space((64,), 10, sharing=Sharing(kernels="crop"))


def test_bad_options_are_refused():
    with pytest.raises(SpaceError, match=r"channels='radnom' is unknown. Did you mean: random\?"):
        Sharing(channels="radnom")
    with pytest.raises(SpaceError, match=r"path_dropout must be in \[0, 1\), not 1\.0"):
        Sharing(path_dropout=1.0)
    with pytest.raises(SpaceError, match=r"width is a fraction in \(0, 1\], not 0\.0"):
        Sharing(width=0.0)
    with pytest.raises(SpaceError, match="even channels"):
        cell_space((1, 8, 8), 10, channels=7)
    with pytest.raises(SpaceError, match="vanish in 5 cells"):
        cell_space((1, 8, 8), 10, cells=5)
    with pytest.raises(SpaceError, match="is unknown"):
        DynamicLinear(2, 2, channels="last")
