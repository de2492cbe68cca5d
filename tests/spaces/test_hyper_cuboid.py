"""The hyper-cuboid: a grid of channels and operations, of which an architecture is a path."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import SpaceError
from archipel.search.differentiable.mix import Mixture
from archipel.search.differentiable.parameters import ArchParameters
from archipel.spaces.hyper_cuboid import Between, HyperCuboid, PathLayer

torch.set_num_threads(1)


def small(**kw) -> HyperCuboid:
    return HyperCuboid((1, 8, 8), 3, **{"channels": (2, 3), "layers": 2, **kw})


def test_the_grid_of_weights_has_its_golden_shape_and_size():
    space = HyperCuboid((3, 32, 32), 10)
    assert space.weights_shape == (2, 2, 4, 4, 2)  # strides, pairs of layers, C_in, C_out, operations
    with torch.device("meta"):
        net = space._network()
    assert [len(layer.triples) for layer in net.layers] == [32] * 4
    assert space.size == 4**5 * 2**4


def test_layers_alternate_between_stride_one_and_two():
    net = small(layers=4).supernet().net
    x = net.stem(torch.randn(2, 1, 8, 8))
    sides = []
    for layer in net.layers:
        layer.seat.decider = Mixture({f"layer{i}": torch.ones(8) for i in range(1, 5)})
        x = layer(x)
        sides.append({t.shape[-1] for t in x.values()})
    assert sides == [{8}, {4}, {4}, {2}]


def test_states_are_sums_over_all_that_share_their_channels():
    space = small()
    supernet = space.supernet()
    layer = supernet.net.layers[0]
    assert isinstance(layer, PathLayer)
    w = torch.rand(8)
    supernet.decider = Mixture({"layer1": w, "layer2": torch.ones(8)})
    states = {c: torch.randn(2, c, 8, 8) for c in (2, 3)}
    with torch.no_grad():
        found = layer(states)
        for c in (2, 3):
            terms = [w_t * op.op(states[i]) for w_t, (i, o, _), op in zip(w, layer.triples, layer.blended) if o == c]
            assert len(terms) == 4
            torch.testing.assert_close(found[c], sum(terms))


def test_what_is_left_out_is_not_computed_and_neither_is_what_hangs_on_it():
    space = small()
    supernet = space.supernet()
    called = []
    for layer in supernet.net.layers:
        for option in layer.blended:
            assert isinstance(option, Between)
            option.op.register_forward_hook(lambda *_, o=option: called.append((o.c_in, o.c_out)))
    into_two = torch.tensor([1.0 if o == 2 else 0.0 for _, o, _ in supernet.net.layers[0].triples])
    supernet.decider = Mixture({"layer1": into_two, "layer2": torch.ones(8)})
    supernet(torch.randn(2, 1, 8, 8))
    assert {pair[1] for pair in called[:4]} == {2}
    assert {pair[0] for pair in called[4:]} == {2}
    assert len(called) == 8


def test_one_hot_weights_compute_the_extracted_path():
    space = small(layers=4)
    supernet = space.supernet()
    parameters = ArchParameters.of(supernet)
    assert list(parameters.rows) == ["layer1", "layer2", "layer3", "layer4"]
    for seed in range(5):
        arch, x = space.sample(Random(seed)), torch.randn(3, 1, 8, 8)
        supernet.decider = Mixture(parameters.one_hot(arch))
        with torch.no_grad():
            torch.testing.assert_close(supernet(x), supernet.extract(arch)(x), rtol=0, atol=1e-6)


def test_an_extracted_path_is_a_plain_chain():
    space = small()
    net = space.build(space.path([2, 3, 3], ["resizable_pool", "sharp_sep_conv"]))
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert not any(isinstance(m, Between) for m in net.modules())
    assert sum(isinstance(m, nn.Linear) for m in net.modules()) == 1


def test_no_path_at_all_is_an_error():
    space = small()
    supernet = space.supernet()
    triples = supernet.net.layers[0].triples
    into_two = torch.tensor([float(o == 2) for _, o, _ in triples])
    from_three = torch.tensor([float(i == 3) for i, _, _ in triples])
    supernet.decider = Mixture({"layer1": into_two, "layer2": from_three})
    with pytest.raises(SpaceError, match="No path of matching channels"):
        supernet(torch.randn(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small(layers=3), "must be even: 3"),
        (lambda: small(channels=(2, 0)), "positive integers"),
        (lambda: small(ops=("conv",)), "no operation 'conv'"),
        (lambda: HyperCuboid((5,), 3), "takes images"),
        (lambda: small().path([2, 2], ["resizable_pool"]), "3 numbers of channels and 2 operations, not 2 and 1"),
        (lambda: small().path([2, 5, 2], ["resizable_pool"] * 2), "'c1'"),
        (lambda: ArchParameters.of(small().supernet(), fixed={"c0": 2}), "'c0' is one part of choice 'layer1'"),
    ],
)
def test_what_makes_no_grid_is_refused(make, message):
    with pytest.raises(SpaceError, match=message):
        make()
