"""Training one network to a target sparsity: dense, scores, prune, tune.

The second half of DASS (:mod:`archipel.search.differentiable.dass`), for any network. Every convolution and linear
layer keeps the share k of its weights that score highest; scores start at the trained weights, so that without epochs
of their own this is pruning by magnitude. Masks are fixed from then on, and zeros stay zeros.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from archipel.core.errors import UsageError
from archipel.data.dataset import Split
from archipel.nets.batch_norm import batch_norms, frozen_statistics
from archipel.search.training import Recipe, loss_of, shuffled, train
from archipel.spaces.sparse_operations import kept, sparse_layers, sparsified


def train_scores(
    net: nn.Module, data: Split, task: str, recipe: Recipe, keep: float, seed: int, epochs: int, lr: float = 0.1
) -> None:
    """SGD (momentum 0.9) on the scores of a sparse network with its weights and statistics frozen; masks follow."""
    layers = sparse_layers(net)
    for layer in layers.values():
        layer.set_keep(keep)
    scores = [layer.score for layer in layers.values()]
    optimizer = torch.optim.SGD(scores, lr, momentum=0.9)
    net.train()
    for score in scores:
        score.requires_grad_()
    try:
        for epoch in range(epochs):
            order = shuffled(len(data), seed, epoch)
            for index in order[: max(1, len(data) // recipe.batch_size) * recipe.batch_size].split(recipe.batch_size):
                with frozen_statistics(batch_norms(net)):
                    loss = loss_of(task, net(data.x[index]), data.y[index], recipe.label_smoothing)
                for score, g in zip(scores, torch.autograd.grad(loss, scores)):
                    score.grad = g
                optimizer.step()
                for layer in layers.values():
                    layer.set_keep(keep)
    finally:
        for score in scores:
            score.requires_grad_(False)
            score.grad = None


def pruned_and_tuned(
    net: nn.Module,
    data: Split,
    task: str,
    recipe: Recipe,
    sparsity: float,
    seed: int,
    score_epochs: int = 0,
) -> nn.Module:
    """A sparse copy of a trained network, tuned by a recipe.

    Args:
        net: trained dense; not changed.
        recipe: of the tuning.
        sparsity: share of zeros in every convolution and linear layer.
        score_epochs: epochs in which the scores learn before the masks are fixed.

    Raises:
        UsageError: a sparsity that keeps nothing, or a network without layers to prune.
    """
    keep = 1.0 - sparsity
    kept(1, keep)
    sparse = sparsified(copy.deepcopy(net))
    layers = sparse_layers(sparse)
    if not layers:
        raise UsageError(f"{type(net).__name__} has neither convolutions nor linear layers to prune.")
    if score_epochs:
        train_scores(sparse, data, task, recipe, keep, seed, score_epochs)
    for layer in layers.values():
        layer.set_keep(keep)
    train(sparse, data, task, recipe, seed)
    return sparse


@torch.no_grad()
def baked(net: nn.Module) -> nn.Module:
    """A copy of a sparse network with plain layers, whose masked weights are zeros: what is exported."""
    plain = copy.deepcopy(net)
    for layer in sparse_layers(plain).values():
        layer.weight.copy_(layer.effective_weight())
        del layer.score, layer.mask
        layer.__class__ = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear  # type: ignore[assignment]
    return plain
