"""PC-DARTS: invariants, golden numbers and errors of partial channels and weighed edges."""

from __future__ import annotations

from functools import partial
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.choice import Choice, Inputs, Seat
from archipel.core.errors import ShapeError, SpaceError
from archipel.cost.model import count_params
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import Argmax, DifferentiableSearch, FirstOrder, Schedule
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.loop import make_supernet
from archipel.search.differentiable.mix import Mixture
from archipel.search.differentiable.parameters import ArchParameters
from archipel.search.differentiable.pc_darts import PartialChannelEdge, PartialChannels, channel_shuffle, pc_darts
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.operations import DARTS_OPS, Zero, choice_edge, darts_operations

torch.set_num_threads(1)

OPS = darts_operations(searching=True)
QUICK = Schedule(epochs=2, batch_size=8, alpha_lr=0.05)


def images(n: int = 32, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context() -> Context:
    return Context(Dataset("bars", images(), images(seed=1), None, "classification", 2), Recipe(epochs=1))


def state_of(space, mix=None):
    search = DifferentiableSearch(mix=mix or PartialChannels(2), schedule=QUICK)
    search.setup(Problem(space))
    state = search.start(context())
    state.supernet.train()
    return state


def cells(C: int = 8) -> DartsSpace:
    return DartsSpace((1, 8, 8), 2, C=C, layers=3, nodes=2)


def mixed(edge: nn.Module, weights: torch.Tensor) -> nn.Module:
    """An edge under mixture weights."""
    seat = Seat(Mixture({"e": weights}))
    for m in edge.modules():
        if isinstance(m, Choice):
            m.seat = seat
    return edge


# --- the shuffle ---------------------------------------------------------------------------------------------------


def test_the_shuffle_interleaves_groups_and_is_undone_by_the_other_number_of_groups():
    x = torch.arange(8.0).reshape(1, 8, 1, 1)
    y = channel_shuffle(x, 4)
    assert y.flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    for C, K in [(8, 4), (12, 3), (16, 4), (6, 1)]:
        x = torch.randn(2, C, 3, 3)
        y = channel_shuffle(x, K)
        assert torch.equal(channel_shuffle(y, C // K), x)
    assert torch.equal(channel_shuffle(x, 1), x)


def test_the_front_after_a_shuffle_holds_a_channel_of_each_part():
    x = torch.arange(16).reshape(1, 16, 1, 1)
    assert [c // 4 for c in channel_shuffle(x, 4)[0, :4].flatten().tolist()] == [0, 1, 2, 3]


# --- the edge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
def test_one_part_is_the_plain_darts_edge_exactly(stride):
    torch.manual_seed(0)
    ours = PartialChannels(1).edge("e", OPS, 4, stride, ("none",))
    plain = choice_edge("e", OPS, 4, stride, ("none",))
    plain.load_state_dict(ours.inner.state_dict())
    w, x = torch.softmax(torch.randn(8), 0), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(mixed(ours, w)(x), mixed(plain, w)(x))
        by_hand = sum(p * op(x) for p, op in zip(w, plain.blended))
        torch.testing.assert_close(plain(x), by_hand)


@pytest.mark.parametrize("stride", [1, 2])
def test_bypassed_channels_appear_unchanged_at_shuffled_positions(stride):
    C, K = 8, 4
    edge = mixed(PartialChannels(K).edge("e", OPS, C, stride, ("none",)), torch.full((8,), 1 / 8))
    x = torch.randn(2, C, 8, 8)
    y = channel_shuffle(edge(x), C // K)  # undo the shuffle
    expected = x[:, C // K :]
    if stride == 2:
        expected = nn.functional.max_pool2d(expected, 2)
    assert torch.equal(y[:, C // K :], expected)
    torch.testing.assert_close(y[:, : C // K], edge.inner(x[:, : C // K]))


def test_operations_are_built_with_a_share_of_the_channels():
    edge = PartialChannels(4).edge("e", OPS, 16, 1, ("none",))
    pointwise = [m for m in edge.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    assert pointwise
    assert {tuple(m.weight.shape) for m in pointwise} == {(4, 4, 1, 1)}
    full = choice_edge("e", OPS, 16, 1, ("none",))
    weights = [
        sum(m.weight.numel() for m in e.modules() if isinstance(m, nn.Conv2d) and m.groups == 1) for e in (edge, full)
    ]
    assert weights[1] == 16 * weights[0]


def test_a_plane_with_an_odd_side_at_a_stride_says_what_differs():
    edge = mixed(PartialChannels(2).edge("e", OPS, 4, 2, ("none",)), torch.eye(8)[0])
    with pytest.raises(ShapeError, match=r"Feature maps of 4x4 and 3x3 cannot be joined: an input of 7x7 at stride 2"):
        edge(torch.randn(2, 4, 7, 7))


# --- the node ------------------------------------------------------------------------------------------------------


def test_equal_edge_weights_give_the_mean_of_the_edges():
    node = Inputs("n", [nn.Conv2d(2, 2, 1) for _ in range(3)], k=2)
    states = [torch.randn(2, 2, 4, 4) for _ in range(3)]
    node.seat = Seat(Mixture({}))
    darts_sum = node(states)
    node.seat = Seat(Mixture({"n": torch.softmax(torch.zeros(3), 0)}))
    torch.testing.assert_close(node(states), darts_sum / 3)


def test_edge_weights_sum_to_one_for_each_node_alone():
    state = state_of(DartsSpace((1, 8, 8), 2, C=4, layers=3))
    for p in state.logits.values():
        p.data.normal_()
    weights = state.mixture_weights()
    nodes = {n: w for n, w in weights.items() if not state.parameters.rows[n].is_choice}
    assert {n: len(w) for n, w in nodes.items()} == {f"{k}.n{j}": j for k in ("normal", "reduce") for j in range(2, 6)}
    for w in weights.values():
        assert w.sum().item() == pytest.approx(1.0)


def test_gradients_reach_operations_and_edges():
    state = state_of(cells())
    data = images()
    g = FirstOrder().gradient(state, (data.x, data.y), (data.x, data.y))
    assert set(g) == set(state.logits)
    assert all(t.abs().max() > 0 for t in g.values())
    assert any(float(t[-1]) != 0 for n, t in g.items() if ".e" in n)  # none too: it takes mass from the others


# --- one architecture ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [1, 2, 4])
def test_one_hot_weights_compute_the_extracted_network(K):
    for space in (cells(), MicroNB201((1, 8, 8), 2, C=8)):
        state = state_of(space, PartialChannels(K))
        arch, x = space.sample(Random(K)), torch.randn(3, 1, 8, 8)
        with torch.no_grad():
            extracted = state.supernet.extract(arch)(x)
            blended = state.output(x, state.parameters.one_hot(arch))
            torch.testing.assert_close(blended, extracted, rtol=0, atol=1e-6)
            torch.testing.assert_close(state.supernet.activate(arch)(x), extracted, rtol=0, atol=0)


def set_rows(state, **rows):
    for name, p in state.logits.items():
        p.data = torch.tensor(rows.get(name.replace(".", "_"), [0.0] * len(p)))


def test_edges_are_ranked_by_both_weights_not_by_operations_alone():
    state = state_of(cells())
    strong, weak = [0.0, 0, 0, 2.0, 0, 0, 0, 0], [0.0, 0, 0, 1.0, 0, 0, 0, 0]
    rows = {"normal_e03": strong, "normal_e13": weak, "normal_e23": weak}
    set_rows(state, **rows)
    assert "0" in Argmax()(state)["normal.n3"].split(",")
    set_rows(state, **rows, normal_n3=[-3.0, 0.0, 0.0])
    assert Argmax()(state)["normal.n3"] == "1,2"


def test_none_has_mass_and_is_never_chosen():
    state = state_of(cells())
    assert all(state.parameters.rows[n].labels == (*DARTS_OPS, "none") for n in state.logits if ".e" in n)
    for n, p in state.logits.items():
        if ".e" in n:
            p.data[-1] = 9.0
    assert state.mixture_weights()["normal.e02"][-1].item() > 0.9
    assert "none" not in Argmax()(state).values()


def test_the_genotype_does_not_change_when_a_row_is_shifted():
    space = DartsSpace((1, 8, 8), 2, C=4, layers=3)
    state = state_of(space)
    for p in state.logits.values():
        p.data.normal_()
    before = space.to_genotype(Argmax()(state))
    for i, p in enumerate(state.logits.values()):
        p.data += i - 7.0
    assert space.to_genotype(Argmax()(state)) == before


# --- golden numbers and memory -------------------------------------------------------------------------------------


def test_the_supernet_of_four_parts_has_its_golden_number_of_weights():  # of one part: see the tests of the space
    with torch.device("meta"):
        net = DartsSpace((3, 32, 32), 10, C=16, layers=8).cells(PartialChannels(4).edge)
    assert count_params(net) == 299_578


def test_there_are_252_architecture_parameters():
    supernet = make_supernet(DartsSpace((3, 8, 8), 10, C=8, layers=3), PartialChannels(4), seed=0)
    rows = ArchParameters.of(supernet, weigh_edges=True).rows
    assert sum(len(row.labels) for row in rows.values()) == 2 * (14 * 8 + 14) == 252


def test_saved_activations_fall_with_the_number_of_parts():
    data, bytes_of = images(4), {}
    for K in (1, 2, 4):
        state = state_of(DartsSpace((1, 8, 8), 2, C=16, layers=3, nodes=2), PartialChannels(K))
        bytes_of[K] = saved_bytes(partial(state.val_loss, (data.x, data.y)), state.supernet)
    assert bytes_of[1] > bytes_of[2] > bytes_of[4]


def test_the_mixed_part_of_an_edge_keeps_one_part_of_the_activations():
    x = torch.randn(8, 16, 8, 8)
    kept = {}
    for K in (1, 2, 4):
        edge = mixed(PartialChannels(K).edge("e", OPS, 16, 1, ("none",)), torch.full((8,), 1 / 8, requires_grad=True))
        part = x[:, : 16 // K].clone().requires_grad_()
        kept[K] = saved_bytes(partial(edge.inner, part), edge)
    assert kept[2] / kept[1] == pytest.approx(1 / 2, abs=0.01)
    assert kept[4] / kept[1] == pytest.approx(1 / 4, abs=0.01)


# --- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [cells(C=4), MicroNB201((1, 8, 8), 2, C=4)], ids=["darts", "micro"])
def test_a_search_ends_with_an_architecture_of_the_space(space):
    search = pc_darts(K=2, schedule=QUICK)
    search.setup(Problem(space))
    search.prepare(context())
    trial = search.ask()
    assert space.validate(trial.arch) == trial.arch
    assert any(isinstance(m, PartialChannelEdge) for m in search.state.supernet.modules())
    assert not any(isinstance(m, PartialChannelEdge) for m in space.build(trial.arch).modules())
    assert search.log[0]["alpha"] != search.log[1]["alpha"]


def test_the_schedule_is_that_of_the_paper():
    s = pc_darts().schedule
    assert (s.epochs, s.warmup, s.batch_size, s.lr, s.lr_min, s.alpha_lr) == (50, 15, 256, 0.1, 0.0, 6e-4)
    assert (s.alpha_betas, s.alpha_decay, s.momentum, s.weight_decay, s.clip) == ((0.5, 0.999), 1e-3, 0.9, 3e-4, 5.0)


def test_edge_weights_can_be_left_out():
    state = state_of(cells(), PartialChannels(2, weigh_edges=False))
    assert all(row.is_choice for row in state.parameters.rows.values())


# --- bad input -----------------------------------------------------------------------------------------------------


def test_channels_that_cannot_be_divided_name_channels_parts_and_layer():
    with pytest.raises(ShapeError, match=r"Cell 0 of 3: Edge 'normal\.e02' has C=6 channels, .* K=4 parts"):
        make_supernet(cells(C=6), PartialChannels(4), seed=0)


@pytest.mark.parametrize("K", [0, -1, 2.0, "4", True])
def test_the_number_of_parts_must_be_a_positive_integer(K):
    with pytest.raises(ValueError, match="K, the number of parts, must be a positive integer"):
        PartialChannels(K)


def test_an_edge_with_nothing_but_none_has_no_derivable_operation():
    with pytest.raises(SpaceError, match=r"'e' has no derivable operation"):
        PartialChannels(2).edge("e", {"none": lambda c, s: Zero(s)}, 4, 1)


def test_a_space_whose_edges_cannot_be_replaced_is_refused():
    def net():
        return nn.Sequential(nn.Flatten(), Choice("op", {"a": nn.Linear(64, 2), "b": nn.Linear(64, 2)}))

    search = pc_darts(schedule=QUICK)
    search.setup(Problem(ModuleSpace(net, torch.zeros(2, 1, 8, 8))))
    with pytest.raises(SpaceError, match=r"PartialChannels makes the edges .* net has no edges that can be replaced"):
        search.prepare(context())
