from random import Random

import pytest
import torch
from torch import nn

from archipel.core.choice import Choice, Decider, Depth, Kernel, Width
from archipel.core.errors import SpaceError
from archipel.search.live_update import LiveUpdate
from archipel.spaces.dynamic import DynamicConv2d
from archipel.spaces.layers import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear
from archipel.spaces.module_space import ModuleSpace

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, weight_decay=0.1, momentum=0.9),
}


def net():
    w, v = Width("w", [2, 3, 5]), Width("v", [2, 4])
    op = Choice("op", {"a": nn.Conv2d(1, 1, 1), "b": nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), "c": nn.Identity()})
    return nn.Sequential(
        op,
        ElasticConv2d(1, w, Kernel("k", [1, 3, 5])),
        ElasticBatchNorm2d(w),
        Depth("d", [ElasticConv2d(w, w, 1), nn.ReLU()], min=0),
        ElasticConv2d(w, w, 3, depthwise=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        ElasticLinear(w, v),
        ElasticLinear(v, 3),
    )


@pytest.fixture
def space():
    return ModuleSpace(net, torch.zeros(2, 1, 6, 6))


def outside(p, slices):
    mask = torch.ones_like(p, dtype=torch.bool)
    mask[slices] = False
    return mask


def run(supernet, update, archs, x, y):
    """One step over the summed gradients of some architectures."""
    update.optimizer.zero_grad(set_to_none=True)
    for arch in archs:
        loss = nn.functional.cross_entropy(supernet.activate(arch)(x), y)
        loss.backward()
        update.mark()
    update.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_the_drawn_slice_of_every_tensor_changes_bitwise(space, name):
    rng = Random(0)
    supernet = space.supernet()
    update = LiveUpdate(supernet, OPTIMIZERS[name](supernet.parameters()))
    x, y = torch.randn(8, 1, 6, 6), torch.randint(0, 3, (8,))
    sliced = moved = 0
    for _ in range(25):
        arch = space.sample(rng)
        before = {n: p.detach().clone() for n, p in supernet.named_parameters()}
        run(supernet, update, [arch], x, y)
        live = supernet.activate(arch).live_slices()
        for n, p in supernet.named_parameters():
            if n not in live:
                assert torch.equal(p, before[n]), f"{n} is not on the path of {arch}"
                continue
            rest = outside(p, live[n])
            assert torch.equal(p[rest], before[n][rest]), f"{n} changed outside {live[n]}"
            sliced += bool(rest.any())
            moved += not torch.equal(p, before[n])
    assert sliced > 50  # the test looked at tensors in partial use
    assert moved > 50


def test_an_ordinary_step_would_move_the_rest_of_a_sliced_tensor(space):
    supernet = space.supernet()
    optimizer = torch.optim.SGD(supernet.parameters(), 0.1, weight_decay=0.1)
    arch = {"op": "a", "w": 2, "k": 1, "d": 0, "v": 2}
    before = supernet.net[1].weight.detach().clone()
    supernet.activate(arch)(torch.randn(4, 1, 6, 6)).sum().backward()
    optimizer.step()
    assert not torch.equal(supernet.net[1].weight[3:], before[3:])


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw"])
def test_a_slice_evolves_exactly_as_the_extracted_network_does(space, name):
    arch = {"op": "b", "w": 3, "k": 3, "d": 1, "v": 2}
    supernet = space.supernet()
    alone = supernet.extract(arch).train()
    update = LiveUpdate(supernet, OPTIMIZERS[name](supernet.parameters()))
    optimizer = OPTIMIZERS[name](alone.parameters())
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x, y = torch.randn(8, 1, 6, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        run(supernet, update, [arch], x, y)
        optimizer.zero_grad()
        nn.functional.cross_entropy(alone(x), y).backward()
        optimizer.step()
    for p, q in zip(supernet.extract(arch).parameters(), alone.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_momentum_of_a_slice_outlives_steps_of_other_sizes_and_does_not_decay_in_them():
    w = Width("w", [1, 2])
    space = ModuleSpace(lambda: ElasticLinear(1, w, bias=False), torch.zeros(1, 1))
    supernet = space.supernet()
    p = supernet.net.weight
    nn.init.zeros_(p)
    optimizer = torch.optim.SGD(supernet.parameters(), 1.0, momentum=0.5)
    update = LiveUpdate(supernet, optimizer)

    def step(width):
        optimizer.zero_grad(set_to_none=True)
        supernet.activate({"w": width})(torch.ones(1, 1)).sum().backward()
        update.mark()
        update.step()

    step(1)  # row 0: momentum 1
    assert optimizer.state[p]["momentum_buffer"].flatten().tolist() == [1.0, 0.0]
    step(2)  # row 0: 1.5; row 1: 1
    step(1)  # row 0: 1.75; row 1 rests, momentum and all
    assert optimizer.state[p]["momentum_buffer"].flatten().tolist() == [1.75, 1.0]
    assert p.flatten().tolist() == [-(1 + 1.5 + 1.75), -1.0]
    assert p.grad is not None
    assert p.grad.shape == p.shape


def test_several_networks_in_a_step_change_the_union_of_their_slices_only():
    def make():
        return nn.Sequential(
            ElasticLinear(2, Width("a", [1, 3])), ElasticLinear(Width("a", [1, 3]), Width("b", [1, 4]))
        )

    space = ModuleSpace(make, torch.zeros(2, 2))
    for name in OPTIMIZERS:
        supernet = space.supernet()
        update = LiveUpdate(supernet, OPTIMIZERS[name](supernet.parameters()))
        weight = supernet.net[1].weight  # [4, 3]
        for _ in range(3):
            before = weight.detach().clone()
            update.optimizer.zero_grad(set_to_none=True)
            for arch in ({"a": 3, "b": 1}, {"a": 1, "b": 4}):  # a row and a column: their union is no box
                supernet.activate(arch)(torch.randn(5, 2)).sum().backward()
                update.mark()
            update.step()
            changed = weight != before
            assert not changed[1:, 1:].any()
            assert changed[0].all()
            assert changed[:, 0].all()
            for state in update.optimizer.state[weight].values():
                if state.shape == weight.shape:
                    assert (state[1:, 1:] == 0).all()


def test_whole_tensors_take_an_ordinary_step():
    torch.manual_seed(0)
    space = ModuleSpace(lambda: Choice("op", {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}), torch.zeros(2, 3))
    supernet, twin = space.supernet(), space.supernet()
    optimizer = OPTIMIZERS["momentum"](twin.parameters())
    update = LiveUpdate(supernet, OPTIMIZERS["momentum"](supernet.parameters()))
    for op in "abba":
        x = torch.randn(4, 3)
        update.optimizer.zero_grad(set_to_none=True)
        supernet.activate({"op": op})(x).square().sum().backward()
        update.mark()
        update.step()
        optimizer.zero_grad(set_to_none=True)
        twin.activate({"op": op})(x).square().sum().backward()
        optimizer.step()
    for p, q in zip(supernet.parameters(), twin.parameters()):
        assert torch.equal(p, q)


def test_a_parameter_that_a_plain_layer_shares_is_used_whole():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow = ElasticLinear(3, Width("w", [1, 3]), bias=False)
            self.plain = nn.Linear(3, 3, bias=False)
            self.plain.weight = self.narrow.weight

        def forward(self, x):
            return self.narrow(x).sum(1) + self.plain(x).sum(1)

    supernet = ModuleSpace(Tied, torch.zeros(2, 3)).supernet()
    update = LiveUpdate(supernet, torch.optim.SGD(supernet.parameters(), 0.1))
    before = supernet.net.plain.weight.detach().clone()
    supernet.activate({"w": 1})(torch.ones(2, 3)).sum().backward()
    update.mark()
    update.step()
    assert (supernet.net.plain.weight != before).all()


def test_a_fixed_part_is_found_where_nothing_about_it_is_decided():
    def make():
        largest = DynamicConv2d(1, 1, 3)
        return Choice("op", {"large": largest, "centre": DynamicConv2d(1, 1, 1, largest=largest)})

    supernet = ModuleSpace(make, torch.zeros(2, 1, 5, 5)).supernet()
    update = LiveUpdate(supernet, torch.optim.SGD(supernet.parameters(), 0.1, momentum=0.9, weight_decay=0.1))
    weight = supernet.net.options["large"].weight
    for op in ("large", "centre"):
        before = weight.detach().clone()
        update.optimizer.zero_grad(set_to_none=True)
        supernet.activate({"op": op})(torch.randn(2, 1, 5, 5)).sum().backward()
        update.mark()
        update.step()
        assert (weight != before).sum() == (9 if op == "large" else 1)


def test_a_failing_optimizer_leaves_parameters_and_gradients_in_place(space):
    supernet = space.supernet()
    optimizer = torch.optim.SGD(supernet.parameters(), 0.1)
    update = LiveUpdate(supernet, optimizer)
    shapes = {n: p.shape for n, p in supernet.named_parameters()}
    supernet.activate({"op": "a", "w": 2, "k": 1, "d": 0, "v": 2})(torch.randn(4, 1, 6, 6)).sum().backward()
    update.mark()
    optimizer.step = lambda: 1 / 0  # type: ignore[method-assign, assignment]
    with pytest.raises(ZeroDivisionError):
        update.step()
    for n, p in supernet.named_parameters():
        assert p.shape == shapes[n]
        assert p.grad is None or p.grad.shape == shapes[n]


def test_marking_without_an_architecture_is_refused(space):
    supernet = space.supernet()
    supernet.decider = Decider()
    with pytest.raises(SpaceError, match="call activate"):
        LiveUpdate(supernet, torch.optim.SGD(supernet.parameters(), 0.1)).mark()
