"""Sparse layers: masks, their gradients, counting, and spaces made of them."""

from __future__ import annotations

import copy
import warnings
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import UsageError
from archipel.cost.model import count_macs, count_params
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.sparse_operations import (
    SparseConv2d,
    SparseLinear,
    kept,
    nonzero_macs,
    nonzero_params,
    sparse_layers,
    sparsified,
    top_mask,
)

torch.set_num_threads(1)


def layer(W, S=None, k=0.25) -> SparseLinear:
    W = torch.tensor(W)
    made = SparseLinear(W.shape[1], W.shape[0], bias=False)
    made.weight.data = W
    made.score.copy_(W if S is None else torch.tensor(S))
    made.set_keep(k)
    return made


GOLDEN = [[0.5, -1.0, 0.25, 0.0], [2.0, -0.5, 1.0, -0.1]]


def test_ties_are_broken_by_index_and_exactly_two_of_eight_are_kept():
    made = layer(GOLDEN, [[abs(w) for w in row] for row in GOLDEN])
    assert made.effective_weight().tolist() == [[0.0, -1.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]]
    threshold = made.score.abs() >= made.score.abs().flatten().sort(descending=True).values[1]
    assert int(threshold.sum()) == 3  # what comparing with a threshold would keep


@pytest.mark.parametrize("k", [1.0, 0.5, 0.3, 1 - 0.9, 1 - 0.95, 1 - 0.99])
def test_the_number_kept_is_the_ceiling_also_where_all_scores_are_equal(k):
    for n in (20, 100, 144, 1000):
        expected = next(i for i in range(1, n + 1) if i >= round(k, 10) * n - 1e-9)
        assert int(top_mask(torch.ones(n), k).sum()) == kept(n, k) == expected
        assert int(top_mask(torch.randn(n), k).sum()) == expected


def test_keeping_all_is_the_dense_layer_bitwise():
    torch.manual_seed(0)
    for dense, x in ((nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5)), (nn.Linear(7, 3), torch.randn(2, 7))):
        expected = dense(x)
        made = sparsified(copy.deepcopy(dense))
        assert torch.equal(made(x), expected)
        made.set_keep(1.0)
        assert torch.equal(made(x), expected)
        made.score.requires_grad_()
        assert torch.equal(made(x), expected)


def test_masked_weights_have_no_gradient_but_their_scores_do():
    S = [[-0.5, 1.0, -0.25, 0.1], [2.0, 0.5, -1.0, 0.3]]
    made = layer(GOLDEN, S)
    made.score.requires_grad_()
    g = torch.arange(1.0, 9.0).view(2, 4)
    made.effective_weight().backward(g)
    W, S = torch.tensor(GOLDEN), torch.tensor(S)
    assert torch.equal(made.weight.grad, g * made.mask)
    assert torch.equal(made.score.grad, g * W * torch.sign(S))


@pytest.mark.parametrize("sign_W", [1.0, -1.0])
@pytest.mark.parametrize("sign_S", [1.0, -1.0])
def test_a_masked_weight_that_would_lower_the_loss_comes_back(sign_W, sign_S):
    made = layer([[0.8 * sign_W, 1.0]], [[0.4 * sign_S, 0.5]], k=0.5)
    assert made.mask.tolist() == [[0.0, 1.0]]
    made.score.requires_grad_()
    loss = -sign_W * made(torch.tensor([[1.0, 0.0]])).sum()  # would fall if the first weight were there
    (g,) = torch.autograd.grad(loss, made.score)
    made.score.requires_grad_(False)
    before = made.score.abs()[0, 0].item()
    made.score.sub_(g, alpha=0.5)
    made.set_keep(0.5)
    assert made.score.abs()[0, 0] > before
    assert made.mask.tolist() == [[1.0, 0.0]]
    wrong = 0.4 * sign_S + 0.5 * sign_W * 0.8 * sign_W  # without sign(S), negative scores would shrink
    assert (abs(wrong) > before) == (sign_S > 0)


def test_scaling_scores_leaves_the_mask_unchanged():
    S = torch.randn(10, 10)
    for c in (1e-3, 7.0, 1e4):
        assert torch.equal(top_mask(S, 0.3), top_mask(c * S, 0.3))


def test_masks_apply_in_evaluation_too():
    made = layer(GOLDEN)
    x = torch.randn(3, 4)
    assert torch.equal(made.train()(x), made.eval()(x))
    torch.testing.assert_close(made(x), x @ (torch.tensor(GOLDEN) * made.mask).T)


def test_scores_start_at_scaled_weights():
    torch.manual_seed(0)
    made = SparseConv2d(4, 8, 3)
    expected = (6 / 36) ** 0.5 * made.weight / made.weight.abs().max()
    torch.testing.assert_close(made.score, expected.detach())
    assert "score" not in dict(made.named_parameters())
    depthwise = SparseConv2d(4, 4, 3, groups=4)
    assert depthwise.score.abs().max().item() == pytest.approx((6 / 9) ** 0.5)


def test_masks_and_ratio_survive_saving():
    made = layer(GOLDEN)
    again = SparseLinear(4, 2, bias=False)
    again.load_state_dict(made.state_dict())
    assert again.keep == 0.25
    assert torch.equal(again.effective_weight(), made.effective_weight())


# --- spaces --------------------------------------------------------------------------------------------------------


def test_four_convolutions_exist_twice_and_both_versions_become_the_same_operation():
    space = DartsSpace((1, 8, 8), 2, C=4, layers=3, nodes=2, operations="sparse")
    options = space.by_name["normal.e02"].options
    assert len(options) == 11
    assert "none" not in options
    assert sum(o.startswith("sparse_") for o in options) == 4
    supernet = space.supernet()
    assert "net.classifier" in sparse_layers(supernet)
    sparse, dense = space.sample(Random(0)), {}
    sparse = {n: "sparse_sep_conv_3x3" if ".e" in n else v for n, v in sparse.items()}
    dense = {n: v.removeprefix("sparse_") for n, v in sparse.items()}
    built = [space.build(a) for a in (sparse, dense)]
    assert not sparse_layers(built[0])
    assert str(built[0]) == str(built[1])
    assert space.cost.params(sparse) == space.cost.params(dense) == count_params(built[0])
    x = torch.randn(3, 1, 8, 8)
    for name, m in sparse_layers(supernet).items():
        m.set_keep(0.5 if "classifier" in name else 0.4)
    torch.testing.assert_close(supernet.activate(sparse)(x), supernet.extract(sparse)(x))


def test_micro_cells_have_a_sparse_convolution_as_a_sixth_operation():
    space = MicroNB201((1, 8, 8), 2, C=4, operations="sparse")
    assert space.decisions[0].options == ("none", "skip", "conv1x1", "conv3x3", "avgpool3x3", "sparse_conv3x3")
    names = sparse_layers(space.supernet())
    assert len(names) == 2 * 6 + 1
    assert not sparse_layers(space.build(space.sample(Random(0))))


# --- counting ------------------------------------------------------------------------------------------------------


def test_parameters_and_macs_are_counted_on_what_is_not_zero():
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(5, 2, 4, 4)
    dense = copy.deepcopy(net)
    sparse = sparsified(net)
    assert nonzero_params(sparse) == count_params(dense)
    assert nonzero_macs(sparse, x) == count_macs(copy.deepcopy(dense).to("meta"), x)
    for m in sparse_layers(sparse).values():
        m.set_keep(0.25)
    assert nonzero_params(sparse) == 18 + 4 + 8 + 48 + 3
    assert nonzero_macs(sparse, x) == 18 * 16 + 48


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.0, -0.1, 1.5, float("nan")])
def test_a_keep_ratio_out_of_range_is_refused(k):
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        layer(GOLDEN, k=k)


def test_a_layer_that_keeps_a_single_weight_and_channels_left_empty_are_told():
    with pytest.warns(UserWarning, match=r"layer n=8, k=0\.1 keeps 1"):
        layer(GOLDEN, k=0.1)
    torch.manual_seed(0)
    depthwise = SparseConv2d(8, 8, 1, groups=8)
    with pytest.warns(UserWarning, match=r"layer n=8, k=0\.5 leaves 4 of 8 channels empty"):
        depthwise.set_keep(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        depthwise.set_keep(0.5)  # told once
        depthwise.set_keep(1.0)
