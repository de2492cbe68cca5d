"""Reversible stacks: exact inverses, gradients of ordinary backpropagation, and memory that is flat in depth."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from archipel.core.errors import ShapeError, UsageError
from archipel.nets.reversible import ReversibleStack

torch.set_num_threads(1)


class Mixing(nn.Module):
    """A node: the other parts, pooled, through a small network with dropout; perhaps with a scale from outside."""

    def __init__(self, C: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(C, C), nn.Tanh(), nn.Dropout(dropout), nn.Linear(C, C), nn.LayerNorm(C))

    def forward(self, inputs, *extras: Tensor) -> Tensor:
        y = self.net(torch.stack(list(inputs)).amax(0))
        return y * extras[0] if extras else y


def stack(n: int = 2, L: int = 3, C: int = 4, dropout: float = 0.0, dtype=torch.float64, **kw) -> ReversibleStack:
    torch.manual_seed(0)
    return ReversibleStack([[Mixing(C, dropout) for _ in range(n)] for _ in range(L)], n * C, n, **kw).to(dtype)


def gradients(net: ReversibleStack, x: Tensor, *extras: Tensor, reconstruct: bool):
    net.reconstruct = reconstruct
    inputs = [t.clone().requires_grad_() for t in (x, *extras)]
    torch.manual_seed(1)
    loss = (net(*inputs) ** 2).sin().sum()
    return loss, torch.autograd.grad(loss, [*inputs, *net.parameters()])


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_inverse_gives_the_input_back(n, dtype, limit):
    net = stack(n, dtype=dtype).eval()
    x = torch.randn(5, 7, n * 4, dtype=dtype)
    assert float((net.inverse(net(x)) - x).abs().max()) < limit


def test_golden_numbers_of_a_layer():
    class Half(nn.Module):
        def forward(self, inputs):
            return 0.5 * torch.stack(list(inputs)).amax(0)

    net = ReversibleStack([[Half(), Half(), Half()]], 3, 3)
    x = torch.tensor([[1.0, 4.0, -2.0]])
    assert net(x).tolist() == [[3.0, 5.5, 0.75]]
    assert net.inverse(torch.tensor([[3.0, 5.5, 0.75]])).tolist() == x.tolist()


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_gradients_equal_those_of_ordinary_backpropagation(n, dropout, dtype, limit):
    net = stack(n, dropout=dropout, dtype=dtype).train()
    x, scale = torch.randn(2, 3, n * 4, dtype=dtype), torch.rand(3, 4, dtype=dtype)
    ours, plain = (gradients(net, x, scale, reconstruct=r) for r in (True, False))
    assert torch.equal(ours[0], plain[0])  # the same dropout, too
    for a, b in zip(ours[1], plain[1]):
        assert float((a - b).norm() / b.norm().clamp_min(1e-12)) < limit


def test_dropout_is_really_on_while_reconstructing():
    net, x = stack(dropout=0.5).train(), torch.randn(2, 3, 8, dtype=torch.float64)
    with_dropout = gradients(net, x, reconstruct=True)
    without = gradients(net.eval(), x, reconstruct=True)
    assert not torch.allclose(with_dropout[0], without[0])
    net.train()
    torch.manual_seed(5)
    first, second = net(x), net(x)
    assert not torch.equal(first, second)  # every forward pass draws afresh
    masks = [net.layers[0].nodes[k].net[2](torch.ones(64)) for k in (0, 1)]
    assert not torch.equal(*masks)


def test_the_random_numbers_of_the_process_move_on_by_one_draw():
    net, x = stack(dropout=0.5).train(), torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    y = net(x)
    after = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(0)
    torch.randint(2**62, ())
    assert torch.equal(torch.get_rng_state(), after)


def test_a_tensor_that_all_nodes_read_gathers_gradients_from_all():
    net, x = stack(), torch.randn(2, 8, dtype=torch.float64)
    found = gradients(net, x, torch.ones(4, dtype=torch.float64), reconstruct=True)[1][1]
    assert float(found.abs().min()) > 0


def test_shared_weights_of_two_layers_gather_both_gradients():
    nodes = [Mixing(4).double(), Mixing(4).double()]
    net, x = ReversibleStack([nodes, nodes], 8, 2), torch.randn(2, 8, dtype=torch.float64)
    assert len(list(net.parameters())) == len(list(nodes[0].parameters())) * 2
    for a, b in zip(gradients(net, x, reconstruct=True)[1], gradients(net, x, reconstruct=False)[1]):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_weights_from_outside_are_those_of_the_backward_pass_too():
    net, x = stack(), torch.randn(2, 8, dtype=torch.float64)
    ours = {n: (2 * p.detach()).requires_grad_() for n, p in net.named_parameters()}
    loss = torch.func.functional_call(net, ours, (x,)).sin().sum()
    found = torch.autograd.grad(loss, list(ours.values()))
    twice = copy.deepcopy(net)
    with torch.no_grad():
        for p in twice.parameters():
            p.mul_(2)
    twice.reconstruct = False
    expected = torch.autograd.grad(twice(x).sin().sum(), list(twice.parameters()))
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def kept(net: ReversibleStack, x: Tensor) -> int:
    owned = {p.untyped_storage().data_ptr() for p in net.parameters()}
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in owned:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = net(x)
    del y
    return sum(sizes.values())


def test_what_is_kept_does_not_grow_with_depth():
    x = torch.randn(4, 6, 8)
    flat = [kept(stack(L=L, dtype=torch.float32), x) for L in (2, 4, 8, 16)]
    assert flat == [x.nbytes] * 4  # the last output and nothing else
    linear = [kept(stack(L=L, dtype=torch.float32, reconstruct=False), x) for L in (2, 4, 8, 16)]
    steps = [(b - a) / d for (a, b), d in zip(pairwise(linear), (2, 4, 8))]
    assert steps == pytest.approx([steps[0]] * 3, rel=0.05)
    assert linear[0] > 5 * flat[0]


def test_no_graph_of_the_forward_pass_is_kept():
    net = stack()
    y = net(torch.randn(2, 8, dtype=torch.float64))
    assert type(y.grad_fn).__name__ == "_ReconstructBackward"
    before = {id(p) for p in net.parameters()}
    following = {id(f.variable) for f, _ in y.grad_fn.next_functions if hasattr(f, "variable")}
    assert following == before  # straight to the leaves


@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_node_does_not_see_its_own_part(k):
    net = stack(3, L=1)
    seen = []
    net.layers[0].nodes[k].register_forward_pre_hook(lambda m, args: seen.append([t.clone() for t in args[0]]))
    x = torch.randn(2, 12, dtype=torch.float64)
    moved = x.clone()
    moved[:, 4 * k : 4 * k + 4] += 1.0
    with torch.no_grad():
        before, after = net.eval()(x), net(moved)
    first, second = ([t for i, t in enumerate(s) if i >= k] for s in seen)  # X_{i>k}
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    if k == 0:  # Y_1 = X_1 + G_1(X_2, X_3)
        torch.testing.assert_close(after[:, :4] - before[:, :4], torch.ones(2, 4, dtype=torch.float64))


# --- bad input -----------------------------------------------------------------------------------------------------


class InPlace(nn.Module):
    def forward(self, inputs):
        return inputs[0].relu_()


class Wider(nn.Module):
    def forward(self, inputs):
        return torch.cat([inputs[0], inputs[0]], -1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ReversibleStack([], 9, 2), ShapeError, "9 cannot be divided into 2 equal parts"),
        (lambda: ReversibleStack([], 8, 1), ShapeError, "at least 2 parts"),
        (lambda: ReversibleStack([[nn.Identity()]], 8, 2), ShapeError, "layer 0 has 1 nodes for 2 parts"),
        (
            lambda: ReversibleStack([[InPlace(), InPlace()]], 8, 2)(torch.randn(2, 8)),
            UsageError,
            "layer 0, node 0: the node changed its input in place",
        ),
        (
            lambda: ReversibleStack([[Mixing(4), Wider()]], 8, 2)(torch.randn(2, 8)),
            ShapeError,
            r"layer 0, node 1: the node gives \(2, 8\), but what it updates is \(2, 4\)",
        ),
        (
            lambda: ReversibleStack([[nn.BatchNorm1d(4), Mixing(4)]], 8, 2),
            UsageError,
            "BatchNorm1d with running statistics, which reconstruction would update twice",
        ),
    ],
)
def test_what_cannot_be_reconstructed_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_batch_norm_without_running_statistics_is_welcome():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4, track_running_stats=False)

        def forward(self, inputs):
            return self.norm(inputs[0])

    net, x = ReversibleStack([[Normed(), Normed()]], 8, 2).double(), torch.randn(6, 8, dtype=torch.float64)
    for a, b in zip(gradients(net, x, reconstruct=True)[1], gradients(net, x, reconstruct=False)[1]):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_switching_to_evaluation_before_the_backward_pass_is_an_error():
    net = stack(dropout=0.5).train()
    loss = net(torch.randn(2, 8, dtype=torch.float64)).sum()
    net.eval()
    with pytest.raises(UsageError, match="switched between training and evaluation"):
        loss.backward()
