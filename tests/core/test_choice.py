"""Choice modules and the deciders who sit in their seat."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from archipel.core.choice import (
    EVERYTHING,
    Blend,
    Choice,
    Decider,
    Depth,
    Fixed,
    Inputs,
    Kernel,
    Seat,
    Width,
    decisions_in,
    largest,
    size_at,
)
from archipel.core.errors import ShapeError, SpaceError
from archipel.core.supernet import Supernet
from archipel.spaces.layers import ElasticLinear
from archipel.spaces.module_space import ModuleSpace


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def seated(module, decider):
    seat = Seat(decider)
    for m in module.modules():
        if hasattr(m, "own_decisions"):
            m.seat = seat
    return module


x = torch.tensor([1.0, 2.0])


def test_a_choice_computes_only_what_was_chosen():
    class Explodes(nn.Module):
        def forward(self, x):
            raise AssertionError("this option was not chosen")

    choice = seated(Choice("op", {"a": Scale(3.0), "b": Explodes()}), Fixed({"op": "a"}))
    assert choice(x).tolist() == [3.0, 6.0]


def test_a_choice_accepts_labels_with_dots_and_several_arguments():
    class Plus(nn.Module):
        def forward(self, x, y):
            return x + y

    choice = seated(Choice("op", {"0.5": Plus(), "1.0": Plus()}), Fixed({"op": "0.5"}))
    assert choice(x, x).tolist() == [2.0, 4.0]


def test_depth_applies_the_first_blocks():
    depth = Depth("d", [Scale(2.0), Scale(3.0), Scale(5.0)], min=1)
    assert depth.decision.options == (1, 2, 3)
    for d, factor in ((1, 2.0), (2, 6.0), (3, 30.0)):
        assert seated(depth, Fixed({"d": d}))(x).tolist() == [factor, 2 * factor]


def test_inputs_sum_the_chosen_sources_through_their_own_edges():
    join = Inputs("j", [Scale(1.0), Scale(10.0), Scale(100.0)], k=2)
    assert join.decision.options == ("0,1", "0,2", "1,2")
    states = [x, x, x]
    assert seated(join, Fixed({"j": "0,2"}))(states).tolist() == [101.0, 202.0]
    with pytest.raises(ShapeError, match="'j' has 3 sources but got 2"):
        join(states[:2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inputs("j", [nn.Identity()], k=2), "takes 2 of 1 sources"),
        (lambda: Inputs("j", [nn.Identity()], k=0), "takes 0 of 1 sources"),
        (lambda: Depth("d", [nn.Identity()], min=2), "min is 2, but there are 1 blocks"),
        (lambda: Depth("d", [nn.Identity()], min=-1), "min is -1"),
        (lambda: Choice("c", {}), "'c' has no options"),
    ],
)
def test_choices_that_cannot_be_are_refused(make, message):
    with pytest.raises(SpaceError, match=message):
        make()


def test_sizes_can_be_computed_from_decided_sizes():
    a, b = Width("a", [2, 4]), Width("b", [1, 3])
    size = (a * b + 5) // 2
    assert largest(size) == (4 * 3 + 5) // 2
    assert size_at(size, Fixed({"a": 2, "b": 3})) == 5
    assert decisions_in(2 * a + b) == [a, b]
    assert size_at(7, EVERYTHING) == 7
    assert size_at(3 + a, Fixed({"a": 2})) == 5


def test_where_nobody_decides_sizes_are_largest_and_lists_begin():
    assert EVERYTHING.value(Kernel("k", [5, 3])) == 5
    assert Choice("op", {"a": Scale(2.0), "b": Scale(3.0)})(x).tolist() == [2.0, 4.0]
    with pytest.raises(NotImplementedError):
        Decider().value(Kernel("k", [3]))


def weighted(options, w, *args):
    return sum(wi * option(*args) for wi, option in zip(w, options))


def test_a_blend_mixes_all_options_also_those_that_can_never_be_chosen():
    choice = Choice("op", {"a": Scale(1.0), "b": Scale(10.0)}, blend_only={"none": Scale(0.0)})
    assert choice.decision.options == ("a", "b")
    assert choice.blend_labels == ("a", "b", "none")
    w = torch.tensor([0.5, 0.25, 0.25], requires_grad=True)
    y = seated(choice, Blend({"op": w}, weighted))(x)
    assert y.tolist() == [3.0, 6.0]
    y.sum().backward()
    assert w.grad.tolist() == [3.0, 30.0, 0.0]


def test_a_blend_follows_an_architecture_where_it_has_no_weights():
    net = nn.Sequential(
        Choice("a", {"x": Scale(2.0), "y": Scale(3.0)}), Choice("b", {"x": Scale(5.0), "y": Scale(7.0)})
    )
    seated(net, Blend({"a": torch.tensor([1.0, 1.0])}, weighted, arch={"b": "y"}))
    assert net(x).tolist() == [35.0, 70.0]


def test_a_blend_weights_all_sources_of_an_inputs_decision():
    join = Inputs("j", [Scale(1.0), Scale(10.0)], k=1)
    states = [x, x]
    assert seated(join, Blend({"j": torch.tensor([0.5, 2.0])}, weighted))(states).tolist() == [20.5, 41.0]
    assert seated(join, Blend({}, weighted))(states).tolist() == [11.0, 22.0]
    assert seated(join, Blend({}, weighted, arch={"j": "1"}))(states).tolist() == [10.0, 20.0]


def test_networks_have_seats_of_their_own():
    def factory():
        return Choice("op", {"a": Scale(2.0), "b": nn.Linear(2, 2)})

    space = ModuleSpace(factory, torch.zeros(1, 2))
    first, second = space.supernet(), space.supernet()
    first.activate({"op": "a"})
    second.activate({"op": "b"})
    assert first(x).tolist() == [2.0, 4.0]
    assert first.decider is not second.decider


def test_a_supernet_says_when_nothing_is_active():
    space = ModuleSpace(lambda: Choice("op", {"a": nn.Linear(2, 2), "b": nn.Identity()}), torch.zeros(1, 2))
    net = space.supernet()
    with pytest.raises(SpaceError, match="need an active architecture"):
        net.live_slices()
    with pytest.raises(SpaceError, match="'op' is one of"):
        net.activate({"op": "c"})
    assert isinstance(net, Supernet)


def test_shared_modules_in_two_places_stay_one_module():
    shared = nn.Linear(2, 2)

    def factory():
        return nn.Sequential(Choice("op", {"a": shared, "b": nn.Identity()}), shared)

    net = factory()
    seated(net, Fixed({"op": "a"}))
    torch.testing.assert_close(net(x), shared(shared(x)))


def test_live_slices_of_an_elastic_layer_are_its_first_units():
    w = Width("w", [2, 4])
    space = ModuleSpace(lambda: nn.Sequential(ElasticLinear(3, w), ElasticLinear(w, 1)), torch.zeros(1, 3))
    live = space.supernet().activate({"w": 2}).live_slices()
    assert live == {
        "net.0.weight": (slice(2), slice(3)),
        "net.0.bias": (slice(2),),
        "net.1.weight": (slice(1), slice(2)),
        "net.1.bias": (slice(1),),
    }
