"""Types of layers: equality, composition, generated layers, and the check of whole spaces."""

from __future__ import annotations

import itertools
import random
import time

import pytest
import torch
from torch import nn

from archipel.core.choice import Choice, Inputs
from archipel.core.errors import ShapeError, SpaceError, UsageError
from archipel.search.differentiable.loop import make_supernet
from archipel.search.differentiable.mix import Softmax
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.neuralarts import Window, chain_space, equivalent_windows, with_equivalents
from archipel.spaces.operations import Zero, darts_operations, pool, sep_conv
from archipel.spaces.shape_types import ShapeType, Step, axis_out, same_function, type_of, window
from archipel.spaces.type_check import check_types

REFERENCE = Window(3, 1)


def conv(k=3, p=1, d=1, s=1, i=2, o=2):
    return nn.Conv2d(i, o, k, s, p, d)


def shape(layer, size, channels=2):
    try:
        return tuple(layer(torch.empty(1, channels, size, size, device="meta")).shape[1:])
    except RuntimeError:
        return None


def random_window(rng):
    k, p, d, s = rng.randint(1, 7), rng.randint(0, 4), rng.randint(1, 3), rng.randint(1, 3)
    return k, p, d, s


def layer_of(w):
    with torch.device("meta"):
        return conv(*w)


# --- one layer -----------------------------------------------------------------------------------------------------


def test_types_give_the_shapes_of_torch_and_refuse_what_torch_refuses():
    rng = random.Random(0)
    for _ in range(60):
        layer = layer_of(random_window(rng))
        t = type_of(layer)
        for size in range(1, 20):
            assert t((2, size, size)) == shape(layer, size), (layer, size)


def test_types_of_pools_transposed_and_keeping_layers_are_those_of_torch():
    layers = [
        nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.MaxPool2d(3, 1, 1), nn.ConvTranspose2d(2, 2, 3, 2, 1, 1),
        nn.ConvTranspose2d(2, 4, 5, 1, 2), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((3, None)),
        nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.Identity(), Zero(2),
    ]  # fmt: skip
    for layer in layers:
        t = type_of(layer.to("meta").eval())
        for size in range(2, 15):
            assert t((2, size, size)) == shape(layer, size), (layer, size)


def test_type_equality_is_equality_of_shapes_on_all_acceptable_inputs():
    rng = random.Random(1)
    for _ in range(2000):
        a, b = (random_window(rng) for _ in range(2))
        first, second = window(*a), window(*b)
        both = range(max(first.least, second.least), max(first.least, second.least) + 40)
        assert same_function((first,), (second,)) == all(first(i) == second(i) for i in both), (a, b)


def test_complete_equality_implies_type_implies_instant_and_not_the_other_way():
    a, b, c = Window(3, 1), Window(5, 2), Window(3, 1, 1, 2)
    assert a.same_type(b)
    assert a != b
    assert a.same_at(b, 7)
    d = Window(4, 1, 1, 2)  # halves even sizes like c, but not odd ones
    assert c.same_at(d, 8)
    assert not c.same_at(d, 7)
    assert not c.same_type(d)


def test_type_equality_is_an_equivalence_relation():
    rng = random.Random(2)
    windows = [Window(*random_window(rng)) for _ in range(60)]
    for a in windows:
        assert a.same_type(a)
        for b in windows:
            assert a.same_type(b) == b.same_type(a)
            for c in windows:
                assert not (a.same_type(b) and b.same_type(c)) or a.same_type(c)


# --- chains --------------------------------------------------------------------------------------------------------


def test_a_chain_has_the_type_of_its_sequence():
    rng = random.Random(3)
    for _ in range(60):
        layers = [layer_of(random_window(rng)) for _ in range(3)]
        whole = type_of(nn.Sequential(*layers))
        assert whole == type_of(layers[0]).then(type_of(layers[1])).then(type_of(layers[2]))
        for size in range(1, 40, 3):
            assert whole((2, size, size)) == shape(nn.Sequential(*layers), size)


def test_equal_chains_are_found_with_strides_and_with_transposed_layers():
    down = nn.Sequential(conv(3, 1, s=2), conv(3, 1, s=2))
    assert type_of(down).same(type_of(conv(7, 3, s=4)))
    assert not type_of(down).same(type_of(conv(4, 0, s=4)))  # halving twice keeps one more at some sizes
    up = nn.ConvTranspose2d(2, 2, 2, 2)
    assert not type_of(nn.Sequential(conv(2, 0, s=2), up)).same(ShapeType())  # odd sizes lose one
    assert type_of(nn.Sequential(up, conv(2, 0, s=2))).same(ShapeType((2, 2), ((Step(1, 1, -1),),) * 2, 2))
    assert same_function((Step(1, 2, 0), Step(2, 1, -1)), (Step(1, 2, 0), Step(2, 1, -1)))


def test_a_type_equal_layer_leaves_everything_downstream_as_it_is():
    tail = nn.Sequential(conv(3, 1, s=2), conv(1, 0))
    for w in equivalent_windows(REFERENCE, k=range(1, 5), d=range(1, 5)):
        for size in (8, 9, 15):
            if size >= window(w.k, w.p, w.d, w.s).least:
                with_it = nn.Sequential(conv(w.k, w.p, w.d), tail).to("meta")
                assert shape(with_it, size) == shape(nn.Sequential(conv(), tail).to("meta"), size)


def test_forward_compatibility_asks_every_output_to_be_acceptable():
    shrink, wide = type_of(conv(5, 0)), type_of(conv(7, 0))
    assert wide.accepts_all_of(shrink, range(11, 20))
    assert not wide.accepts_all_of(shrink, range(5, 20))
    assert axis_out((window(5, 0, 1, 1), window(7, 0, 1, 1)), 10) is None


def test_complete_compatibility_asks_for_all_that_is_acceptable_and_no_more():
    keep, shrink, wide = type_of(conv()), type_of(conv(5, 0)), type_of(conv(7, 0))
    assert keep.covered_exactly_by(keep, range(1, 20))
    assert keep.covered_exactly_by(shrink, range(5, 20))  # 1, 2, … is all that a padded 3x3 takes
    assert not wide.covered_exactly_by(keep, range(1, 20))  # sizes below 7 are not acceptable
    assert not keep.covered_exactly_by(type_of(conv(2, 0, s=2)), range(6, 20))  # nothing below 3 arrives
    assert not keep.covered_exactly_by(type_of(nn.AdaptiveAvgPool2d(4)), range(1, 20))
    fixed = [type_of(nn.Sequential(conv(s=stride), nn.AdaptiveAvgPool2d(4))) for stride in (1, 2)]
    assert fixed[0].same(fixed[1])  # a constant codomain forgets what was before


def test_layers_that_do_not_fit_one_behind_the_other_are_refused():
    with pytest.raises(ShapeError, match="gives 2 channels cannot be followed by one that takes 3"):
        type_of(nn.Sequential(conv(), conv(i=3)))
    with pytest.raises(ShapeError, match="2 spatial axes cannot be followed by one on 1"):
        type_of(conv()).then(type_of(nn.Conv1d(2, 2, 3)))
    with pytest.raises(ShapeError, match="cannot be compared"):
        type_of(conv()).same(type_of(nn.Conv1d(2, 2, 3)))
    assert type_of(nn.Conv2d(2, 2, 3, padding="same")) is None


# --- generated layers ----------------------------------------------------------------------------------------------


def test_the_generator_finds_the_published_numbers_of_equivalent_layers():
    found = equivalent_windows(REFERENCE, k=range(1, 5), d=range(1, 5))
    assert [(w.k, w.p, w.d) for w in found] == [
        (1, 0, 1), (1, 0, 2), (1, 0, 3), (1, 0, 4), (2, 1, 2), (2, 2, 4), (3, 1, 1), (3, 2, 2), (3, 3, 3), (3, 4, 4),
        (4, 3, 2), (4, 6, 4),
    ]  # fmt: skip
    for top, number in [(8, 48), (12, 108), (16, 192)]:
        assert len(equivalent_windows(REFERENCE, k=range(1, top + 1), d=range(1, top + 1))) == number
    assert len(equivalent_windows(REFERENCE, k=range(2, 5), p=range(1, 5))) == 9
    assert len(equivalent_windows(REFERENCE, p=range(1, 5), d=range(1, 5))) == 11


def test_what_is_generated_is_exactly_what_a_search_over_all_windows_finds():
    for reference in (Window(3, 1), Window(4, 1, 1, 2), Window(3, 0), Window(2, 2)):
        everything = [
            Window(k, p, d, reference.s) for k in range(1, 6) for p in range(0, 14) for d in range(1, 4)
        ]  # fmt: skip
        brute = {w for w in everything if w.same_type(reference)}
        assert set(equivalent_windows(reference, k=range(1, 6), d=range(1, 4))) == brute
        by_padding = {w for w in brute if w.p < 5 and w.k > 1}
        found = equivalent_windows(reference, k=range(2, 6), p=range(0, 5))
        assert {w for w in found if w.d < 4} == by_padding
        found = equivalent_windows(reference, p=range(0, 5), d=range(1, 4))
        assert {w for w in found if w.k < 6} == {w for w in brute if w.p < 5}
        assert all(w.same_type(reference) for w in found)


def test_a_larger_space_keeps_the_balance_with_pools():
    base = {
        "conv3": lambda c, s: conv(i=c, o=c), "conv5": lambda c, s: conv(5, 2, i=c, o=c),
        "sep3": lambda c, s: sep_conv(c, 3, s), "sep5": lambda c, s: sep_conv(c, 5, s),
        "avg": lambda c, s: pool(nn.AvgPool2d, c, s, False),
        "max": lambda c, s: pool(nn.MaxPool2d, c, s, False),
    }  # fmt: skip
    windows = equivalent_windows(REFERENCE, k=range(1, 5), d=range(1, 5))
    ops = with_equivalents(base, windows, {"avg": base["avg"], "max": base["max"]})
    assert len(ops) == 6 + 12 + 2 * 3
    space = chain_space(ops, (1, 8, 8), 10, C=4, layers=2)
    assert space.size == 24**2
    assert set(check_types(space).by_type.values()) == {True}


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, "Exactly one of k, p, d must be None"),
        ({"k": range(1, 3)}, "but 2 are"),
        ({"k": range(1, 3), "p": [1], "d": [1]}, "but 0 are"),
        ({"k": range(4, 1), "d": [1]}, "range of k"),
        ({"k": [0, 1], "d": [1]}, "range of k"),
        ({"k": range(1, 4), "p": [1]}, "fits with any dilation"),
    ],
)
def test_impossible_questions_are_refused(ranges, message):
    with pytest.raises(UsageError, match=message):
        equivalent_windows(REFERENCE, **ranges)


def test_windows_that_cannot_be_are_refused():
    with pytest.raises(ShapeError, match="at least 1"):
        Window(0, 1)


def test_ten_thousand_layers_are_compared_within_a_second():
    rng = random.Random(4)
    steps = [(window(*random_window(rng)),) for _ in range(10_000)]
    began = time.process_time()
    for a, b in itertools.pairwise(steps):
        same_function(a, b)
    assert time.process_time() - began < 1.0


# --- whole spaces --------------------------------------------------------------------------------------------------


def one_choice(**options):
    def net():
        return nn.Sequential(Choice("op", {k: make() for k, make in options.items()}), nn.Flatten(), nn.Linear(8, 2))

    return ModuleSpace(net, torch.zeros(1, 2, 2, 2), "tiny")


def test_a_space_whose_options_agree_for_this_input_only_is_told_apart_from_one_that_agrees_for_all():
    space = one_choice(a=lambda: conv(3, 1), b=lambda: conv(1, 0))
    assert check_types(space).by_type == {"op": True}
    assert check_types(space).choices == {"op": ((1, 2, 2, 2), (1, 2, 2, 2))}
    halves = one_choice(a=lambda: nn.MaxPool2d(2, 2), b=lambda: nn.AvgPool2d(2, 1))  # 2 -> 1 both
    with pytest.raises(RuntimeError):
        check_types(halves)  # what comes after does not fit: the linear layer wants eight features
    unknown = one_choice(a=lambda: nn.Identity(), b=lambda: nn.ChannelShuffle(2))
    assert check_types(unknown).by_type == {"op": None}


@pytest.mark.parametrize("bad", [lambda: conv(3, 1, s=2), lambda: conv(3, 0), lambda: conv(o=3)])
def test_an_option_of_another_type_is_named_before_anything_is_mixed(bad):
    space = one_choice(good=lambda: nn.Identity(), bad=bad)
    for check in (lambda: check_types(space), lambda: make_supernet(space, Softmax(), 0)):
        with pytest.raises(SpaceError, match=r"Choice 'op'.*option 'good' gives|Option 'bad' of choice 'op'"):
            check()


def test_sources_of_different_shapes_are_not_spread_over_each_other_in_silence():
    def net():
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.op = Choice("op", {"a": nn.Identity(), "b": nn.Tanh()})
                self.node = Inputs("node", [nn.Identity(), nn.AdaptiveAvgPool2d(1)], k=1)

            def forward(self, x):
                return self.node([x, self.op(x)]).flatten(1)

        return Two()

    with pytest.raises(SpaceError, match=r"Node 'node': source 0 arrives as .* but source 1"):
        check_types(ModuleSpace(net, torch.zeros(1, 2, 4, 4), "two"))


def test_the_spaces_of_the_library_are_well_typed():
    found = check_types(MicroNB201((1, 8, 8), 10))
    assert set(found.by_type.values()) == {True}
    assert len(found.choices) == 6
    chain = chain_space(darts_operations(False), (1, 8, 8), 10, layers=1)
    assert set(check_types(chain).choices) == {"layer0"}
