"""BNAS: invariants, golden numbers and errors of dropping operations by measurement."""

from __future__ import annotations

import math

import pytest
import torch

from archipel.core.choice import Choice
from archipel.core.errors import SpaceError, UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import DifferentiableSearch, Schedule, SecondOrder
from archipel.search.differentiable.bnas import KernelProjection, bnas
from archipel.search.differentiable.performance_drop import (
    PerformanceDrop,
    drawn_networks,
    measured_half,
    new_scores,
)
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.binary_operations import BinaryConv2d, projection_loss
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.operations import Zero

torch.set_num_threads(1)

QUICK = Schedule(epochs=4, batch_size=8, alpha_lr=0.05, lr=0.01, optimizer="adam")


def images(n: int = 16, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(task: str = "classification", **kw) -> Context:
    data = Dataset("bars", images(), images(seed=1), None, task, 2)
    return Context(**{"dataset": data, "recipe": Recipe(epochs=1), **kw})


def micro(operations: str = "binary") -> MicroNB201:
    return MicroNB201((1, 8, 8), 2, C=4, cells=1, operations=operations)


def prepared(space=None, ctx=None, **kw):
    search = bnas(**{"K": 2, "tests": 1, "schedule": QUICK, **kw})
    search.setup(Problem(space or micro()))
    search.prepare(ctx or context())
    return search


def started(space=None, select=None, schedule=QUICK):
    """A state as at the start of a search, and its selection."""
    select = select or PerformanceDrop(tests=2)
    search = DifferentiableSearch(schedule=schedule)
    search.setup(Problem(space or micro()))
    state = search.start(context())
    select.started(state)
    return state, select


def told(select, accuracy):
    """Let a selection hear of networks' accuracies instead of training and measuring them."""
    asked = []

    def measured(state, network):
        asked.append(dict(network))
        select.networks += 1
        return accuracy(network)

    select._measured = measured
    return asked


# --- drawing and scoring -------------------------------------------------------------------------------------------


def test_only_the_half_with_the_smallest_logits_is_measured():
    assert measured_half([0.5, 0.1, 0.4, 0.2, 0.3], [0, 1, 2, 3, 4]) == [1, 3, 4]
    assert measured_half([0.5, 0.1, 0.4, 0.2, 0.3], [0, 2, 3, 4]) == [3, 4]
    state, select = started()
    for p in state.logits.values():
        p.data = torch.tensor([0.5, 0.1, 0.4, 0.2, 0.3])
    asked = told(select, lambda network: 0.5)
    select.drop(state)
    assert {o for network in asked for o in network.values()} == {1, 3, 4}


def test_a_pass_uses_every_option_of_the_half_once_on_every_edge():
    halves = {"a": [4, 1, 3], "b": [0, 2, 5]}
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        networks = drawn_networks(halves)
        assert len(networks) == 3
        for name, options in halves.items():
            assert sorted(n[name] for n in networks) == sorted(options)
        seen.add(tuple(tuple(n.values()) for n in networks))
    assert len(seen) > 1
    uneven = drawn_networks({"a": [4, 1, 3], "b": [0]})
    assert [n["b"] for n in uneven] == [0, 0, 0]


def test_scores_by_hand():
    fresh = new_scores({0: 0.2, 2: 0.6}, [0, 1, 2, 3])
    e = math.exp(0.4)
    assert fresh[0] == pytest.approx(1 / (1 + e))
    assert fresh[2] == pytest.approx(e / (1 + e))
    assert fresh[1] == fresh[3] == pytest.approx((e / (1 + e) + 0.5) / 2)
    assert fresh[0] + fresh[2] == pytest.approx(1.0)
    assert 0.5 < fresh[1] < fresh[2]  # between mean and maximum of those measured


def test_what_is_not_measured_is_never_the_worst_of_the_first_round():
    g = torch.Generator().manual_seed(0)
    for _ in range(50):
        y = torch.rand(4, generator=g).tolist()
        fresh = new_scores(dict(enumerate(y)), list(range(8)))
        assert min(fresh, key=lambda o: fresh[o]) < 4


def test_with_two_options_left_history_decides():
    assert new_scores({1: 0.9}, [0, 1]) == {0: 1.0, 1: 1.0}
    state, select = started()
    for name in select.remaining:
        select.remaining[name] = [1, 3]
        select.scores[name] = {1: 0.4, 3: 0.2}
    told(select, lambda network: 0.9)
    select.drop(state)
    assert all(options == [1] for options in select.remaining.values())


def test_the_worst_measured_is_dropped_and_not_the_smallest_logit():
    state, select = started()
    for p in state.logits.values():
        p.data = torch.tensor([0.5, 0.1, 0.4, 0.2, 0.3])  # 1, 3, 4 are measured; 1 has the smallest logit
    told(select, lambda network: 0.2 if network["e12"] == 3 else 0.8)
    before = {n: p.detach().clone() for n, p in state.logits.items()}
    select.drop(state)
    assert select.remaining["e12"] == [0, 1, 2, 4]
    assert all(len(options) == 4 and {0, 2} <= set(options) for options in select.remaining.values())
    assert all(torch.equal(p, before[n]) for n, p in state.logits.items())  # α of the others is kept
    state, select = started()
    for p in state.logits.values():
        p.data = torch.tensor([0.5, 0.1, 0.4, 0.2, 0.3])
    told(select, lambda network: 0.5)
    select.drop(state)
    assert all(1 not in options for options in select.remaining.values())  # of equals, the smaller logit goes


def test_history_is_halved_each_round():
    state, select = started()
    told(select, lambda network: 0.5)
    select.drop(state)
    first = {n: dict(s) for n, s in select.scores.items()}
    select.drop(state)
    for name, options in select.remaining.items():
        for o in options:
            assert 0.4 <= select.scores[name][o] - first[name][o] / 2 <= 0.6


# --- dropping ------------------------------------------------------------------------------------------------------


def test_dropped_options_weigh_exactly_zero_and_are_not_computed():
    state, select = started()
    told(select, lambda network: 0.5)
    state.logits["e01"].data[3] = -5.0
    select.drop(state)
    assert 3 not in select.remaining["e01"]
    weights = state.mixture_weights()["e01"]
    assert weights[3] == 0.0
    assert float(weights.detach().sum()) == pytest.approx(1.0)
    computed = []
    edge = next(m for m in state.supernet.modules() if isinstance(m, Choice) and m.decision.name == "e01")
    edge.blended[3].register_forward_hook(lambda m, *_: computed.append(m))
    state.metrics(images())
    assert not computed


@pytest.mark.parametrize("K", [1, 2])
def test_a_search_leaves_one_option_of_each_edge_and_the_space_shrinks_by_a_known_factor(K):
    search = prepared(K=K)
    select = search.selection
    assert all(len(options) == 1 for options in select.remaining.values())
    sizes = [round(10 ** entry["log10 size"]) for entry in search.log]
    assert sizes == [4**6, 3**6, 2**6, 1]
    assert [entry["options left"] for entry in search.log] == [4, 3, 2, 1]
    assert select.networks == 3 + 2 + 2 + 1  # T = 1
    arch = search.ask().arch
    assert micro().validate(arch) == arch
    labels = search.state.parameters.rows["e01"].labels
    assert arch == {name: labels[options[0]] for name, options in select.remaining.items()}


def test_eight_options_take_57_networks_and_the_space_of_14_edges_shrinks_as_written():
    options, networks, sizes = list(range(8)), 0, []
    while len(options) > 1:
        sizes.append(14 * math.log10(len(options)))
        networks += 3 * len(drawn_networks({"e": measured_half([0.0] * 8, options)}))
        options.pop()
    assert networks == 57
    assert sizes[:2] == pytest.approx([12.64, 11.83], abs=0.005)


def test_sampled_networks_train_the_shared_weights_of_their_path_alone():
    state, select = started(select=PerformanceDrop(tests=1))
    network = dict.fromkeys(select.remaining, 3)
    before = {n: w.detach().clone() for n, w in state.weights.items()}
    y = select._measured(state, network)
    assert 0.0 <= y <= 1.0
    moved = {n for n, w in state.weights.items() if not torch.equal(w, before[n])}
    edges = {n for n in state.weights if ".blended." in n}
    assert {n.split(".blended.")[1][0] for n in edges & moved} == {"3"}
    binary = {n for n, m in state.supernet.named_modules() if isinstance(m, BinaryConv2d)}
    assert any(n.rsplit(".", 1)[0] in binary for n in moved)


def test_darts_cells_never_end_with_none_and_keep_the_edges_with_the_largest_scores():
    space = DartsSpace((1, 8, 8), 2, C=4, layers=3, nodes=2, operations="binary")
    state, select = started(space, schedule=Schedule(epochs=7, batch_size=8))
    assert space.by_name["normal.e02"].size == 7
    none = 7
    assert isinstance(state.parameters.rows["normal.e02"].modules[0].blended[none], Zero)
    for p in state.logits.values():
        p.data[none] = 9.0
    told(select, lambda network: 0.9 if none in network.values() else 0.1)
    while not select.finished:
        select.drop(state)
    assert all(none not in options for options in select.remaining.values())
    for i, name in enumerate(["normal.e03", "normal.e13", "normal.e23"]):
        select.scores[name][select.remaining[name][0]] = [0.9, 0.1, 0.5][i]
    arch = select(state)
    assert arch["normal.n3"] == "0,2"
    assert space.validate(arch) == arch


def test_a_search_that_was_interrupted_ends_bit_identical(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction >= 0.5:
            raise Killed

    whole = prepared()
    with pytest.raises(Killed):
        prepared(ctx=context(checkpoints=Checkpoints(tmp_path), progress=kill))
    torch.rand(7)
    resumed = prepared(ctx=context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.log == whole.log
    assert resumed.selection.scores == whole.selection.scores
    assert resumed.ask().info == whole.ask().info


def test_a_search_that_was_cut_short_keeps_the_largest_score():
    state, select = started()
    select.scores["e01"] = {0: 0.1, 1: 0.3, 2: 0.9, 3: 0.2, 4: 0.5}
    assert select(state)["e01"] == "conv1x1"


def test_epochs_are_shared_out_among_the_rounds():
    state, select = started(schedule=Schedule(epochs=10, batch_size=8))
    told(select, lambda network: 0.5)
    rounds = []
    for _ in range(10):
        select.epoch_ended(state)
        rounds.append(select.rounds_done)
    assert rounds == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4]


# --- projected kernels ---------------------------------------------------------------------------------------------


def test_the_projection_loss_is_part_of_what_the_weights_descend_on_or_has_its_own_steps():
    ends = {}
    for name, objective in {"none": None, "joint": KernelProjection(0.1), "own": KernelProjection(0.1, lr=0.1)}.items():
        search = DifferentiableSearch(objective=objective, schedule=Schedule(epochs=1, batch_size=8))
        search.setup(Problem(micro()))
        search.prepare(context())
        ends[name] = float(projection_loss(search.state.supernet).detach())
    assert ends["joint"] < ends["none"]
    assert ends["own"] < ends["none"]


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bnas(tests=0), "tests must be at least 1, not 0"),
        (lambda: PerformanceDrop(sample_epochs=0), "sample_epochs must be at least 1"),
        (lambda: new_scores({0: 96.5, 1: 90.0}, [0, 1]), r"not of 96\.5\. Divide percentages by 100"),
        (lambda: new_scores({0: -0.1}, [0]), r"accuracies in \[0, 1\]"),
        (lambda: KernelProjection(theta=0.0), "theta must be positive"),
        (lambda: Schedule(optimizer="lion"), "'sgd' or 'adam', not 'lion'"),
        (lambda: prepared(schedule=Schedule(epochs=3)), "takes at least 4 epochs, not 3"),
        (lambda: prepared(micro("plain"), objective=KernelProjection()), "no binary convolutions"),
        (lambda: prepared(ctx=context(task="regression")), "which a regression does not have"),
        (lambda: prepared(arch_gradient=SecondOrder()), "needs their SGD, but the schedule has 'adam'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_an_edge_with_one_option_has_nothing_to_drop():
    state, _ = started()
    row = state.parameters.rows["e01"]
    object.__setattr__(row, "labels", row.labels[:1])
    with pytest.raises(SpaceError, match=r"'e01' has 1 option\(s\)"):
        PerformanceDrop().started(state)
