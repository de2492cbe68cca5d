"""Recurrent cells: the reduced space that is known in full, and the cell's equations."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.errors import SpaceError
from archipel.data import Split
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.recurrent import RecurrentSpace

torch.set_num_threads(1)
SPACE = RecurrentSpace((6,), 5, width=4)
IDS = torch.randint(0, 5, (3, 6), generator=torch.Generator().manual_seed(0))


def test_the_reduced_space_has_32_cells_of_which_26_differ():
    archs = list(SPACE.enumerate())
    assert len(archs) == SPACE.size == 32
    assert len({SPACE.canonical(a) for a in archs}) == 16 + 10  # a chain of two; or an unordered pair beside each other
    assert RecurrentSpace((6,), 5, nodes=8).size == 4**8 * math.factorial(8)


def test_the_cell_computes_its_equations():
    arch = {"f1": "relu", "f2": "sigmoid", "from2": "1"}
    net = SPACE.build(arch)
    w = dict(net.named_parameters())
    h = torch.zeros(3, 4)
    outputs = []
    for t in range(6):
        x = w["embed.weight"][IDS[:, t]]
        c, g = (torch.cat([x, h], 1) @ w["cell.first.weight"].T).split(4, 1)
        s0 = h + torch.sigmoid(c) * (torch.tanh(g) - h)
        c, g = (s0 @ w["cell.matrices.0.weight"].T).split(4, 1)
        s1 = s0 + torch.sigmoid(c) * (torch.relu(g) - s0)
        c, g = (s1 @ w["cell.matrices.1.weight"].T).split(4, 1)
        s2 = s1 + torch.sigmoid(c) * (torch.sigmoid(g) - s1)
        h = (s1 + s2) / 2
        outputs.append(h @ w["out.weight"].T + w["out.bias"])
    torch.testing.assert_close(net(IDS), torch.stack(outputs, 1))


def test_equal_canonical_forms_compute_equal_functions_with_their_matrices_exchanged():
    a = {"f1": "relu", "f2": "tanh", "from2": "0"}
    b = {"f1": "tanh", "f2": "relu", "from2": "0"}
    assert SPACE.canonical(a) == SPACE.canonical(b)
    assert SPACE.canonical(a) != SPACE.canonical({**a, "from2": "1"})
    first, second = SPACE.build(a), SPACE.build(b)
    state = first.state_dict()
    one, two = "cell.matrices.0.weight", "cell.matrices.1.weight"
    second.load_state_dict({**state, one: state[two], two: state[one]})
    torch.testing.assert_close(first(IDS), second(IDS))


def test_supernet_extract_and_cost_agree_for_every_cell():
    supernet = SPACE.supernet()
    for arch in SPACE.enumerate():
        torch.testing.assert_close(supernet.activate(arch)(IDS), supernet.extract(arch)(IDS), rtol=0, atol=0)
        assert SPACE.cost.params(arch) == sum(p.numel() for p in SPACE.build(arch).parameters())


def test_a_cell_learns_which_token_follows():
    x = (torch.arange(64)[:, None] + torch.arange(6)) % 5
    data = Split(x, (x + 1) % 5)
    net = SPACE.build(SPACE.sample(Random(0)))
    train(net, data, "language", Recipe(epochs=30, batch_size=32, lr=2e-2), seed=0)
    assert evaluate(net, data, "language")["accuracy"] > 0.9
    assert isinstance(net, nn.Module)


def test_spaces_that_cannot_be_are_refused():
    with pytest.raises(SpaceError, match="token ids"):
        RecurrentSpace((1, 8, 8), 5)
    with pytest.raises(SpaceError, match="must be positive"):
        RecurrentSpace((6,), 5, nodes=0)
    with pytest.raises(SpaceError, match="'gelu' is unknown"):
        RecurrentSpace((6,), 5, activations=["gelu"])
