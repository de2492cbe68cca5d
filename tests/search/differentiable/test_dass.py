"""DASS: masks, scores and architecture in turns, and the sparse training afterwards."""

from __future__ import annotations

import copy

import pytest
import torch

from archipel.core.errors import UsageError
from archipel.core.storage import Checkpoints
from archipel.cost.model import count_params
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import Schedule
from archipel.search.differentiable.dass import SparseSteps, dass, keep_ratio
from archipel.search.differentiable.sparse_training import baked, pruned_and_tuned, train_scores
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe, train
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.sparse_operations import kept, nonzero_params, sparse_layers, sparsified

torch.set_num_threads(1)

QUICK = Schedule(epochs=4, warmup=1, batch_size=8, alpha_lr=0.05)
RECIPE = Recipe(epochs=2, batch_size=8)


def images(n: int = 32, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    data = Dataset("bars", images(), images(seed=1), None, "classification", 2)
    return Context(**{"dataset": data, "recipe": RECIPE, **kw})


def micro(operations: str = "sparse") -> MicroNB201:
    return MicroNB201((1, 8, 8), 2, C=4, cells=1, operations=operations)


def prepared(space=None, ctx=None, **kw):
    search = dass(**{"sparsity": 0.8, "schedule": QUICK, **kw})
    search.setup(Problem(space or micro()))
    search.prepare(ctx or context())
    return search


def started(sparsity: float = 0.8):
    search = dass(sparsity, schedule=QUICK)
    search.setup(Problem(micro()))
    state = search.start(context())
    state.supernet.train()
    search.arch_gradient.started(state)
    return state, search.arch_gradient


def pair(n: int = 8):
    data = images()
    return (data.x[:n], data.y[:n]), (data.x[n : 2 * n], data.y[n : 2 * n])


# --- the search ----------------------------------------------------------------------------------------------------


def test_the_keep_ratio_is_one_then_falls_linearly_then_stays_at_the_target():
    found = [keep_ratio(e, 20, 0.05) for e in range(20)]
    assert found[:5] == [1.0] * 5
    assert found[5:10] == pytest.approx([0.81, 0.62, 0.43, 0.24, 0.05])
    assert found[10:] == [0.05] * 10


def test_every_layer_has_as_many_weights_as_its_ratio_says_after_every_step():
    state, steps = started()
    for epoch in range(4):
        for step in range(2):
            state.move_to(epoch, step)
            steps.update(state, *pair())
            k = keep_ratio(epoch, 4, 1 - 0.8)
            for layer in sparse_layers(state.supernet).values():
                assert layer.nonzeros == kept(layer.weight.numel(), k)
                assert int((layer.effective_weight() != 0).sum()) == layer.nonzeros


def test_a_score_step_changes_scores_alone_and_every_second_step_is_one():
    state, steps = started()
    state.move_to(3, 0)
    steps.mask(state)
    before = copy.deepcopy(state.state_dict())
    steps.score_step(state, pair()[0])
    after = state.state_dict()
    changed = {
        n for n, t in before["net"].items() if isinstance(t, torch.Tensor) and not torch.equal(t, after["net"][n])
    }
    assert changed
    assert all(n.endswith((".score", ".mask")) for n in changed)
    assert all(torch.equal(t, after["logits"][n]) for n, t in before["logits"].items())
    assert not any(m.score.requires_grad for m in sparse_layers(state.supernet).values())
    calls = []
    steps.score_step = lambda state, batch: calls.append(state.moment.step)
    for step in range(4):
        state.move_to(3, step)
        steps.update(state, *pair())
    assert len(calls) == 2


def test_the_score_gradient_is_that_of_the_formula():
    state, steps = started()
    state.move_to(3, 0)
    steps.mask(state)
    train_batch, _ = pair()
    name, layer = next((n, m) for n, m in sparse_layers(state.supernet).items() if "classifier" in n)
    S = layer.score.clone()
    W, m = layer.weight.detach().clone(), layer.mask.clone()
    masked = (W * m).requires_grad_()
    layer.effective_weight = lambda: masked
    (g,) = torch.autograd.grad(state.train_loss(train_batch), masked)
    del layer.effective_weight
    steps.score_step(state, train_batch)
    torch.testing.assert_close(layer.score, S - 0.1 * g * W * torch.sign(S), rtol=1e-4, atol=1e-7)
    steps.score_step(state, train_batch)  # with momentum
    assert name in steps.momenta


def test_the_architecture_learns_from_the_sparse_network():
    state, steps = started()
    state.move_to(3, 0)
    steps.mask(state)
    train_batch, val_batch = pair()
    first = steps.gradient(state, train_batch, val_batch)
    layer = next(m for n, m in sparse_layers(state.supernet).items() if "blended" in n)
    layer.mask.copy_(layer.mask.flip(0, 1))
    second = steps.gradient(state, train_batch, val_batch)
    assert any(not torch.equal(first[n], second[n]) for n in first)


def test_a_mask_of_ones_gives_the_dense_gradient_and_masked_weights_do_not_move_by_it():
    state, steps = started()
    state.move_to(0, 0)
    steps.mask(state)
    dense = state.train_loss(pair()[0])
    for layer in sparse_layers(state.supernet).values():
        layer.keep = 0.999  # the masked path
    torch.testing.assert_close(state.train_loss(pair()[0]), dense, rtol=0, atol=0)
    state.move_to(3, 0)
    steps.mask(state)
    state.train_loss(pair()[0]).backward()
    for layer in sparse_layers(state.supernet).values():
        assert not layer.weight.grad[layer.mask == 0].any()


def test_a_search_ends_with_dense_operations_whichever_version_won():
    search = prepared()
    state = search.state
    for p in state.logits.values():
        p.data = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 5.0])
    assert set(search.select(state).values()) == {"conv3x3"}
    arch = search.ask().arch
    assert not any(v.startswith("sparse_") for v in arch.values())
    assert micro().validate(arch) == arch
    assert search.log[0]["alpha"] != search.log[-1]["alpha"]
    assert {m.keep for m in sparse_layers(state.supernet).values()} == {1 - 0.8}


def test_darts_cells_are_searched_too():
    space = DartsSpace((1, 8, 8), 2, C=2, layers=3, nodes=1, operations="sparse")
    search = prepared(space, schedule=Schedule(epochs=2, batch_size=16), dense=0.0, falling=0.5)
    arch = search.ask().arch
    assert space.validate(arch) == arch
    assert any("dw" not in n for n in sparse_layers(search.state.supernet))


def test_a_search_that_was_interrupted_ends_bit_identical(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction >= 0.75:
            raise Killed

    whole = prepared()
    with pytest.raises(Killed):
        prepared(ctx=context(checkpoints=Checkpoints(tmp_path), progress=kill))
    resumed = prepared(ctx=context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.log == whole.log
    again = prepared(ctx=context(checkpoints=Checkpoints(tmp_path)))  # all done: nothing but looking
    arch = whole.ask().arch
    assert again.ask().info == resumed.ask().info
    assert again.shared_scores([arch]) == whole.shared_scores([arch])
    for (name, m), other in zip(
        sparse_layers(whole.state.supernet).items(), sparse_layers(resumed.state.supernet).values()
    ):
        assert torch.equal(m.score, other.score), name
        assert torch.equal(m.effective_weight(), other.effective_weight())


def test_the_default_schedule_searches_the_architecture_at_the_target_alone():
    s = dass().schedule
    assert (s.epochs, s.warmup, s.lr, s.alpha_lr) == (50, 25, 0.025, 3e-4)
    assert keep_ratio(s.warmup, s.epochs, 0.05) == 0.05
    assert keep_ratio(s.warmup - 2, s.epochs, 0.05) > 0.05


# --- training one network ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    net = micro("plain").build(dict.fromkeys([d.name for d in micro().decisions], "conv1x1"))
    train(net, images(), "classification", RECIPE, 0)
    return net


@pytest.mark.parametrize("score_epochs", [0, 1])
def test_tuning_never_changes_the_mask_and_keeps_the_share_in_every_layer(trained, score_epochs, monkeypatch):
    masks = []

    def spied(net, *args):
        masks.append({n: m.mask.clone() for n, m in sparse_layers(net).items()})
        return train(net, *args)

    monkeypatch.setattr("archipel.search.differentiable.sparse_training.train", spied)
    sparse = pruned_and_tuned(trained, images(), "classification", RECIPE, 0.75, 0, score_epochs)
    assert set(masks[0]) == {"stem.0", "classifier", *[n for n in masks[0] if n.startswith("cells")]}
    for name, layer in sparse_layers(sparse).items():
        assert torch.equal(layer.mask, masks[0][name])
        assert int((layer.effective_weight() != 0).sum()) == kept(layer.weight.numel(), 0.25)
        assert not torch.equal(layer.weight, trained.get_submodule(name).weight)


def test_without_score_epochs_what_is_kept_is_largest_in_magnitude(trained):
    sparse = pruned_and_tuned(trained, images(), "classification", RECIPE, 0.5, 0)
    for name, layer in sparse_layers(sparse).items():
        W = trained.get_submodule(name).weight.abs()
        assert W[layer.mask == 1].min() >= W[layer.mask == 0].max()


def test_scores_learn_with_weights_frozen(trained):
    net = sparsified(copy.deepcopy(trained))
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    scores = {n: m.score.clone() for n, m in sparse_layers(net).items()}
    train_scores(net, images(), "classification", RECIPE, 0.25, 0, epochs=1)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert all(not torch.equal(m.score, scores[n]) for n, m in sparse_layers(net).items())


def test_a_baked_network_is_plain_and_computes_the_same(trained):
    sparse = pruned_and_tuned(trained, images(), "classification", RECIPE, 0.9, 0).eval()
    plain = baked(sparse).eval()
    x = images(seed=3).x
    assert torch.equal(plain(x), sparse(x))
    assert not sparse_layers(plain)
    assert set(plain.state_dict()) == set(trained.state_dict())
    nonzeros = sum(int((p != 0).sum()) for p in plain.parameters())
    assert nonzeros <= nonzero_params(sparse) < count_params(trained) / 2


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dass(sparsity=1.0), "above 0 and at most 1"),
        (lambda: dass(sparsity=-0.5), "above 0 and at most 1"),
        (lambda: dass(dense=0.5, falling=0.5), "must sum to less than 1"),
        (lambda: SparseSteps(every=0), "at least 1 step"),
        (lambda: SparseSteps(score_lr=0.0), "make no SGD"),
        (lambda: prepared(micro("plain")), "has no sparse layers. Take a space with operations='sparse'"),
        (
            lambda: pruned_and_tuned(torch.nn.ReLU(), images(), "classification", RECIPE, 0.5, 0),
            "neither convolutions nor linear layers",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_the_architecture_cannot_learn_before_there_are_masks():
    state, steps = started()
    with pytest.raises(UsageError, match=r"layer 'net\..*' has no mask yet"):
        steps.gradient(state, *pair())
