"""Taking one network out of a module with choices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from archipel.core.choice import Choice, Depth, Fixed, Inputs, SumOf, Undecided, Width
from archipel.core.extract import extract
from archipel.spaces.layers import ElasticLinear
from archipel.spaces.module_space import ModuleSpace


def test_chosen_modules_take_the_place_of_their_choice():
    net = nn.Sequential(
        Choice("c", {"a": nn.Linear(2, 2), "b": nn.Tanh()}),
        Depth("d", [nn.ReLU(), nn.Sigmoid()], min=0),
        nn.Linear(2, 1),
    )
    plain = extract(net, Fixed({"c": "b", "d": 1}))
    assert [type(m).__name__ for m in plain] == ["Tanh", "Sequential", "Linear"]
    assert [type(m).__name__ for m in plain[1]] == ["ReLU"]
    assert not any(isinstance(m, Undecided) for m in plain.modules())
    assert len(extract(net, Fixed({"c": "a", "d": 0}))[1]) == 0


def test_inputs_become_a_sum_with_only_the_chosen_edges():
    join = extract(Inputs("j", [nn.Linear(2, 2), nn.Linear(2, 2), nn.Tanh()], k=2), Fixed({"j": "0,2"}))
    assert isinstance(join, SumOf)
    assert join.index == (0, 2)
    assert len(join.edges) == 2


def test_weights_are_copied_and_the_original_is_left_alone():
    net = nn.Sequential(ElasticLinear(3, Width("w", [2, 4])), nn.BatchNorm1d(4))
    net[1].weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    plain = extract(net, Fixed({"w": 4}))
    with torch.no_grad():
        for t in [*plain.parameters(), *plain.buffers()]:
            t.add_(1)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert [p.requires_grad for p in plain.parameters()] == [True, True, False, True]


def test_shared_modules_and_tied_parameters_stay_shared():
    shared = nn.Linear(2, 2)
    tied = nn.Linear(2, 2)
    tied.weight = shared.weight
    net = nn.ModuleList([shared, Choice("c", {"a": shared, "b": nn.Identity()}), tied])
    plain = extract(net, Fixed({"c": "a"}))
    assert plain[0] is plain[1]
    assert plain[0].weight is plain[2].weight
    assert plain[0].weight is not shared.weight
    assert sum(p.numel() for p in plain.parameters()) == 4 + 2 + 2


def test_modules_keep_their_class_attributes_mode_and_frozen_parts():
    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = 3
            self.inner = Choice("c", {"a": nn.Dropout(0.5), "b": nn.Identity()})
            self.register_buffer("table", torch.arange(3.0))
            self.register_buffer("nothing", None)
            self.absent = None

        def forward(self, x):
            return self.inner(x) * self.factor + self.table

    net = Custom().eval()
    plain = extract(net, Fixed({"c": "a"}))
    assert type(plain) is Custom
    assert (plain.factor, plain.nothing, plain.absent) == (3, None, None)
    assert not plain.training
    assert not plain.inner.training
    assert plain(torch.ones(3)).tolist() == [3.0, 4.0, 5.0]
    net.train()
    net.inner.eval()
    assert not extract(net, Fixed({"c": "a"})).inner.training
    assert extract(net, Fixed({"c": "a"})).training


def test_a_module_that_refers_to_its_parent_is_copied_once():
    class Child(nn.Module):
        pass

    parent = nn.Sequential(nn.Linear(2, 2))
    child = Child()
    child.parent = parent
    parent.append(child)
    plain = extract(parent, Fixed({}))
    assert plain[1].parent is plain


def test_hooks_stay_with_the_original():
    calls = []
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].register_forward_hook(lambda *_: calls.append("forward"))
    extract(net, Fixed({}))(torch.zeros(1, 2))
    assert calls == []
    net(torch.zeros(1, 2))
    assert calls == ["forward"]


def test_it_works_without_memory():
    with torch.device("meta"):
        net = nn.Sequential(ElasticLinear(1000, Width("w", [10, 10_000])), nn.ReLU())
    plain = extract(net, Fixed({"w": 10}))
    assert plain[0].weight.is_meta
    assert plain[0].weight.shape == (10, 1000)


def test_state_dicts_of_two_extractions_have_the_same_names():
    net = nn.Sequential(ElasticLinear(3, Width("w", [2, 4])), nn.ReLU())
    assert list(extract(net, Fixed({"w": 2})).state_dict()) == list(extract(net, Fixed({"w": 4})).state_dict())


@pytest.mark.parametrize("depth", [0, 2])
def test_an_extracted_network_can_be_trained_and_exported(depth):
    space = ModuleSpace(
        lambda: nn.Sequential(Depth("d", [nn.Linear(2, 2), nn.Tanh()]), nn.Linear(2, 1)), torch.zeros(2, 2)
    )
    plain = space.supernet().extract({"d": depth})
    program = torch.export.export(plain, (torch.zeros(2, 2),)).module()
    x = torch.randn(2, 2)
    torch.testing.assert_close(program(x), plain(x))
    plain(x).sum().backward()
    assert all(p.grad is not None for p in plain.parameters())
