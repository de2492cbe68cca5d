"""DARTS-PT: invariants, golden numbers and errors of selection by perturbation."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from random import Random

import pytest
import torch

from archipel.core.errors import DataError, UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import DifferentiableSearch, Schedule, Softmax
from archipel.search.differentiable.darts_pt import RandomSmoothing, Uniform, darts_pt, least_variance_weights
from archipel.search.differentiable.loop import make_supernet
from archipel.search.differentiable.parameters import ArchParameters, Moment
from archipel.search.differentiable.pc_darts import PartialChannels
from archipel.search.differentiable.perturbation import Perturbation, _rounds
from archipel.search.differentiable.projected import Projected
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)

QUICK = Schedule(epochs=1, batch_size=8, alpha_lr=0.05)


def images(n: int = 16, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    data = Dataset("bars", images(), images(seed=1), None, "classification", 2)
    return Context(**{"dataset": data, "recipe": Recipe(epochs=1), **kw})


def micro(**kw) -> MicroNB201:
    return MicroNB201((1, 8, 8), 2, C=2, cells=kw.pop("cells", 1), **kw)


def cells(nodes: int = 2, C: int = 2) -> DartsSpace:
    return DartsSpace((1, 8, 8), 2, C=C, layers=3, nodes=nodes)


def state_of(space, mix=None, seed: int = 0, fixed=None):
    search = DifferentiableSearch(mix=mix, schedule=QUICK, fixed=fixed)
    search.setup(Problem(space))
    state = search.start(context())
    state.supernet.train()
    g = torch.Generator().manual_seed(seed)
    for p in state.logits.values():
        p.data = torch.randn(p.shape, generator=g)
    return state


def prepared(space, ctx=None, **kw):
    search = darts_pt(**{"tune": 1, "schedule": QUICK, **kw})
    search.setup(Problem(space))
    search.prepare(ctx or context())
    return search


class Told:
    """A state whose accuracies are those of a table: (edge, left-out option) -> accuracy."""

    def __init__(self, state, accuracy):
        self.masked, self.mixtures = [], []
        whole = {n: w.clone() for n, w in state.mixture_weights().items()}

        def metrics(data, mixture):
            assert data is state.halves[1]
            changed = [(n, int(i)) for n, w in mixture.items() for i in (w != whole[n]).nonzero()]
            self.mixtures.append(mixture)
            self.masked.append(changed[-1])
            return {"accuracy": accuracy(*changed[-1]), "loss": 1.0}

        state.metrics = metrics


# --- measuring -----------------------------------------------------------------------------------------------------


def test_leaving_an_option_out_changes_its_weight_alone():
    state = state_of(micro())
    whole = state.mixture_weights()
    told = Told(state, lambda edge, option: 0.5)
    Perturbation().project(state, "e02")
    assert told.masked == [("e02", o) for o in range(5)]
    for o, mixture in enumerate(told.mixtures):
        expected = whole["e02"].detach().clone()
        expected[o] = 0.0
        assert torch.equal(mixture["e02"], expected)  # not rescaled: what is left sums to 1 - p_o
        assert float(mixture["e02"].detach().sum()) == pytest.approx(1 - float(whole["e02"][o].detach()))
        assert all(torch.equal(w, whole[n]) for n, w in mixture.items() if n != "e02")


def test_measuring_leaves_weights_logits_optimisers_and_statistics_bitwise():
    state = state_of(cells())
    data = images()
    state.weight_step((data.x[:8], data.y[:8]))
    select = Perturbation()
    select._begin(state)
    state.weight_step((data.x[:8], data.y[:8]))
    before = state.state_dict()
    random = torch.get_rng_state()
    select.project(state, "normal.e02")
    select.cut(state, "reduce.n3")
    after = state.state_dict()
    assert torch.equal(random, torch.get_rng_state())
    for part in ("net", "logits"):
        assert all(torch.equal(t, after[part][n]) for n, t in before[part].items())
    for part in ("weight_optimizer", "alpha_optimizer"):
        for i, saved in before[part]["state"].items():
            assert all(
                torch.equal(torch.as_tensor(v), torch.as_tensor(after[part]["state"][i][k]))
                for k, v in saved.items()
                if v is not None
            )


def test_measurements_use_the_statistics_of_the_batch_not_stale_ones():
    state = state_of(micro())
    for name, buffer in state.supernet.named_buffers():
        if "running" in name:
            buffer.fill_(1e4)
    select = Perturbation()
    select.project(state, "e01")
    fresh = state_of(micro())
    other = Perturbation()
    other.project(fresh, "e01")
    assert select.record == other.record


def test_one_edge_is_decided_as_by_brute_force():
    state = state_of(micro())
    data = state.halves[1]
    whole = state.mixture_weights()
    select = Perturbation()
    label = select.project(state, "e13")
    accuracies, losses = [], []
    for o in range(5):  # by hand, without the masks of the selection
        w = {n: v.detach().clone() for n, v in whole.items()}
        w["e13"] = torch.tensor([0.0 if i == o else float(v) for i, v in enumerate(w["e13"])])
        with torch.no_grad():
            output = state.output(data.x, w)
        accuracies.append(float((output.argmax(1) == data.y).double().mean()))
        losses.append(float(torch.nn.functional.cross_entropy(output, data.y)))
    labels = state.parameters.rows["e13"].labels
    assert select.record[0]["accuracy"] == dict(zip(labels, accuracies))
    assert list(select.record[0]["loss"].values()) == pytest.approx(losses, rel=1e-5)
    assert label == min(labels, key=lambda l: (accuracies[labels.index(l)], -losses[labels.index(l)]))
    assert select.evaluations == 5


def test_what_is_kept_is_whose_absence_hurts_not_what_is_best_alone_or_heaviest():
    harmful = {"e01": 3, "e02": 1}
    state = state_of(micro())
    state.logits["e01"].data = torch.tensor([0.0, 9.0, 0.0, -9.0, 0.0])  # α says skip
    Told(state, lambda edge, option: 0.4 if option == harmful[edge] else 0.8)
    select = Perturbation()
    assert select.project(state, "e01") == "conv3x3"
    assert select.project(state, "e02") == "skip"


def test_the_criterion_decides_between_accuracy_and_loss():
    found = [{"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.6, "loss": 2.0}]
    assert [max(range(2), key=lambda i: Perturbation(criterion=c)._harm(found[i])) for c in ("accuracy", "loss")] == [
        0,
        1,
    ]
    equal = [{"accuracy": 0.5, "loss": 1.0}, {"accuracy": 0.5, "loss": 2.0}]
    assert max(range(2), key=lambda i: Perturbation()._harm(equal[i])) == 1


def test_a_zero_operation_is_measured_as_the_whole_mixture():
    state = state_of(micro())
    select = Perturbation()
    whole = state.metrics(state.halves[1])["accuracy"]
    select.project(state, "e23")
    assert select.record[0]["accuracy"]["none"] == whole


def test_darts_cells_never_keep_the_zero_operation():
    state = state_of(cells())
    none = state.parameters.rows["normal.e02"].labels.index("none")
    Told(state, lambda edge, option: 0.1 if option == none else 0.9)
    assert Perturbation().project(state, "normal.e02") == "max_pool_3x3"
    state = state_of(micro())
    Told(state, lambda edge, option: 0.1 if option == 0 else 0.9)
    assert Perturbation().project(state, "e01") == "none"  # here the space has it as an option


# --- nodes ---------------------------------------------------------------------------------------------------------


def test_a_node_leaves_out_the_source_whose_absence_hurts_least_until_two_are_left():
    state = state_of(cells(nodes=3))
    told = {4: {0: 0.7, 1: 0.9, 2: 0.6, 3: 0.8}, 3: {0: 0.7, 2: 0.6, 3: 0.8}}
    asked = []

    def metrics(data, mixture):
        weights = mixture["normal.n4"].tolist()
        assert set(weights) == {0.0, 1.0}
        asked.append(weights)
        now = told[4] if sum(weights) == 3 else told[3]
        left_out = [i for i in now if weights[i] == 0.0]
        return {"accuracy": now[left_out[0]], "loss": 1.0}

    state.metrics = metrics
    select = Perturbation()
    select._begin(state)
    assert select.cut(state, "normal.n4") == [0, 2]
    assert len(asked) == 4 + 3
    assert [e["kept"] for e in select.record] == [[0, 2, 3], [0, 2]]


def test_weighed_edges_keep_their_weights_until_the_node_is_decided():
    state = state_of(cells(C=4), PartialChannels(2))
    β = state.mixture_weights()["normal.n3"].detach()
    seen = []

    def metrics(data, mixture):
        seen.append(mixture["normal.n3"].detach())
        return {"accuracy": 0.5, "loss": 1.0 - len(seen) / 10}

    state.metrics = metrics
    select = Perturbation()
    select._begin(state)
    select.cut(state, "normal.n3")
    assert [w[i].item() for i, w in enumerate(seen)] == [0.0] * 3
    assert torch.equal(seen[0][1:], β[1:])
    assert sorted(state.mixture_weights()["normal.n3"].tolist()) == [0.0, 1.0, 1.0]


# --- the whole selection -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "mix"),
    [(cells(), None), (cells(C=4), PartialChannels(2)), (micro(tie="cell", cells=2), None)],
    ids=["darts", "pc-darts", "micro"],
)
def test_in_the_end_every_edge_is_one_hot_and_every_node_has_its_sources(space, mix):
    given = {n: v for n, v in space.sample(Random(0)).items() if n.startswith("reduce")}
    state, select = state_of(space, mix, fixed=given), Perturbation()
    arch = select(state)
    assert given.items() <= arch.items()
    assert space.validate(arch) == arch
    weights = state.mixture_weights()
    for name, row in state.parameters.rows.items():
        if row.is_choice:
            assert sorted(weights[name].tolist()) == [0.0] * (len(row.labels) - 1) + [1.0]
            if name in arch:
                assert row.labels[weights[name].argmax()] == arch[name]
    for name, node in state.parameters.inputs.items():
        if len(node.edges) > 2:
            assert sorted(weights[name].tolist()) == [0.0] * (len(node.edges) - 2) + [1.0, 1.0]
    x = images(seed=3).x
    with torch.no_grad():  # the supernet now is the discrete network
        if mix is None:
            torch.testing.assert_close(state.output(x, weights), state.supernet.activate(arch)(x), rtol=0, atol=1e-5)
    assert len(select.record) == sum(map(len, select.rounds))


def test_a_search_proposes_what_its_selection_decided():
    search = prepared(micro(tie="cell", cells=2))
    select, arch = search.selection, search.ask().arch
    assert arch == {name: search.state.parameters.rows[name].labels[o] for name, o in sorted(select.decided.items())}
    assert [len(names) for names in select.rounds] == [2] * 6
    assert select.tuned == len(search.log) - QUICK.epochs == 6


def test_golden_numbers_of_evaluations_and_of_epochs_of_training_on():
    search = prepared(micro())
    assert search.selection.evaluations == 6 * 5 == 30
    state = state_of(cells(nodes=4))
    state.metrics = lambda data, mixture: {"accuracy": 0.5, "loss": 1.0}
    select = Perturbation(tune=10)
    select(state)
    normal = [e for e in select.record if e["what"].startswith("normal")]
    edges = [e for e in normal if ".e" in e["what"]]
    assert sum(len(e["accuracy"]) for e in edges) == 14 * 8 == 112
    assert sum(len(e["accuracy"]) for e in normal if ".n" in e["what"]) == 3 + 7 + 12 == 22
    assert select.evaluations == 2 * (112 + 22)
    assert len(select.rounds) == 14 + 3
    assert (state.schedule.epochs, state.schedule.warmup) == (161, 0)
    assert (state.schedule.lr, state.schedule.learning_rate(0)) == (0.0025, 0.0025)  # lr / 10, along a cosine
    assert state.schedule.learning_rate(161) == pytest.approx(0.001)


def test_the_supernet_is_trained_between_decisions_with_decided_edges_fixed():
    search = prepared(micro(), tune=2)
    log, record = search.log, search.selection.record
    assert len(log) == 1 + 2 * 5 + 1
    assert [e["epoch"] for e in record] == [0, 2, 4, 6, 8, 10]
    first = record[0]["what"]
    alpha = [entry["alpha"] for entry in log]
    assert all(a[first] == alpha[0][first] for a in alpha)  # a decided edge has no gradient
    last = record[-1]["what"]
    assert len({tuple(a[last]) for a in alpha[:-1]}) == len(alpha) - 1  # an undecided one learns on
    assert all(e["train_loss"] > 0 for e in log)
    assert [e for entry in log for e in entry.get("perturbation", [])] == record


def test_the_order_is_random_each_cell_decides_one_edge_a_round_and_nodes_come_last():
    orders, state = set(), state_of(cells(nodes=3))
    for seed in range(4):
        torch.manual_seed(seed)
        rounds = _rounds(state)
        assert len(rounds) == 9 + 2
        assert all({n.split(".")[0] for n in names} == {"normal", "reduce"} for names in rounds)
        assert all(".e" in n for names in rounds[:9] for n in names)
        assert all(".n" in n for names in rounds[9:] for n in names)
        orders.add(tuple(map(tuple, rounds)))
    assert len(orders) == 4
    in_order = [n for n in state.parameters.rows if n.startswith("normal.e")]
    assert all([names[0] for names in rounds[:9]] != in_order for rounds in orders)


def test_the_order_depends_on_the_seed_of_the_search():
    late = time.monotonic() - 1  # nothing is trained, only measured
    first, second = (prepared(micro(), context(seed=s, deadline=late)).selection.rounds for s in (0, 1))
    assert first != second


def test_a_temperature_that_falls_does_not_start_again():
    class Annealed(Softmax):
        def coefficients(self, logits, row, moment):
            return torch.softmax(logits * (moment.step + 1) / moment.steps, 0)

    state = state_of(micro(), Annealed())
    end = Moment(4, 5, 24, 25)
    mix = Projected(state.mix, state.parameters, end, {}, {})
    start = mix.weights(state.logits, state.parameters.rows, Moment(0, 26, 0, 100))
    torch.testing.assert_close(start["e01"], torch.softmax(state.logits["e01"], 0))


class Killed(Exception):
    pass


def test_a_selection_that_was_interrupted_ends_bit_identical(tmp_path):
    seen, after = [], 3

    def kill(what, fraction):
        seen.append((what, fraction))
        if len(seen) == after:
            raise Killed

    whole = prepared(micro())
    with pytest.raises(Killed):
        prepared(micro(), context(checkpoints=Checkpoints(tmp_path), progress=kill))
    assert seen[0] == ("search", 1.0)
    assert seen[-1] == ("selection", pytest.approx((after - 1) / 6))
    resumed = prepared(micro(), context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.log == whole.log
    assert resumed.selection.record == whole.selection.record
    trial = whole.ask()
    assert resumed.ask().info == trial.info
    again = prepared(micro(), context(checkpoints=Checkpoints(tmp_path)))
    assert (again.ask().arch, again._asked) == (trial.arch, 1)
    assert again.selection.record == whole.selection.record


def test_past_the_deadline_what_is_left_is_measured_without_training():
    search = prepared(micro(), context(deadline=time.monotonic() - 1))
    assert search.log == []
    assert search.selection.evaluations == 30
    assert [e["epoch"] for e in search.selection.record] == [0, 1, 1, 1, 1, 1]
    assert micro().validate(search.ask().arch)


# --- variants ------------------------------------------------------------------------------------------------------


def test_blank_selection_has_equal_weights_that_never_learn():
    search = prepared(micro(), blank=True)
    assert all(e["weights"] == pytest.approx([0.2] * 5) for e in search.selection.record)
    first = search.log[0]["alpha"]
    assert all(e["alpha"] == first for e in search.log)
    assert isinstance(search.state.mix.inner, Uniform)


def test_smoothing_adds_small_noise_to_the_weights_before_each_step_of_w():
    state = state_of(micro())
    seen = []
    state.weight_step = lambda batch, mixture: seen.append(mixture) or 0.0
    data = images()
    pair = (data.x[:8], data.y[:8])
    gradient = RandomSmoothing(0.01)
    for epoch in range(2):
        state.schedule = replace(QUICK, epochs=2)
        state.move_to(epoch, 0)
        gradient.update(state, pair, pair)
        exact = state.mixture_weights()
        noise = torch.cat([seen[-1][n] - w.detach() for n, w in exact.items()])
        assert 0 < noise.abs().max() <= 0.01 * (epoch + 1) / 2
    assert not torch.equal(seen[0]["e01"], seen[1]["e01"])


def test_smoothing_leaves_decided_edges_alone():
    search = prepared(micro(), smoothing=1e-3)
    assert len(search.selection.rounds) == 6
    assert micro().validate(search.ask().arch)


def test_proposition_1_by_samples_and_a_grid():
    g = torch.Generator().manual_seed(0)
    m, a, b = torch.randn(3, 100_000, generator=g, dtype=torch.float64)
    x, o = m + 0.5 * a, m + 1.0 * b
    θ_conv, θ_skip = least_variance_weights(x, o, m)
    assert θ_conv == pytest.approx(0.2, abs=0.005)
    assert θ_conv + θ_skip == pytest.approx(1.0)
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    variance = torch.stack([(t * o + (1 - t) * x - m).var() for t in grid])
    assert float(grid[variance.argmin()]) == pytest.approx(θ_conv, abs=0.011)
    better = least_variance_weights(m + 0.1 * a, o, m)  # a better input, made by convolutions, favours the skip
    assert better[1] > θ_skip


# --- bad input -----------------------------------------------------------------------------------------------------


def test_an_edge_that_is_decided_or_has_no_weights_is_named():
    state = state_of(micro())
    select = Perturbation()
    label = select.project(state, "e01")
    with pytest.raises(UsageError, match=rf"'e01' is already projected, to '{label}'"):
        select.project(state, "e01")
    with pytest.raises(UsageError, match=r"sets the weights of edges, and 'e10' has none\. Did you mean"):
        select.project(state, "e10")
    state, select = state_of(cells()), Perturbation()
    select.cut(state, "normal.n3")
    with pytest.raises(UsageError, match=r"'normal\.n3' has only the 2 source"):
        select.cut(state, "normal.n3")
    with pytest.raises(UsageError, match=r"No node 'normal\.n9'"):
        select.cut(state, "normal.n9")


def test_nothing_to_measure_on_is_refused():
    state = state_of(micro())
    state.halves = (state.halves[0], Split(images().x[:0], images().y[:0]))
    with pytest.raises(DataError, match="which is empty"):
        Perturbation()(state)


def test_a_space_whose_nodes_take_any_subset_is_refused():
    space = micro()
    state = state_of(space)
    state.parameters.rows["n"] = replace(state.parameters.rows["e01"], name="n")
    with pytest.raises(UsageError, match=r"'n' of micro-nb201 is made of several decisions"):
        Perturbation().started(state)


def test_a_mix_that_blends_nothing_is_refused():
    class Hard(Softmax):
        def coefficients(self, logits, row, moment):
            return torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()

    with pytest.raises(UsageError, match=r"one option of 'e\d\d' out of the mixture.*or select by Argmax"):
        prepared(micro(), mix=Hard())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Perturbation(criterion="accurate"), "'accurate' is unknown. Did you mean: accuracy"),
        (lambda: Perturbation(tune=0), "at least 1, not 0"),
        (lambda: Perturbation(tune=1.5), "at least 1, not 1.5"),
        (lambda: Perturbation(lr=0.0), "lr must be positive"),
        (lambda: RandomSmoothing(0.0), "epsilon must be between"),
        (lambda: darts_pt(blank=True, smoothing=1e-3), "leave the other variants out"),
        (lambda: darts_pt(order=2, smoothing=1e-3), "smoothing is of first order"),
        (lambda: least_variance_weights(*torch.ones(3, 4)), "any weights are optimal"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_the_settings_of_a_search_are_not_touched():
    search = darts_pt(tune=1, schedule=QUICK)
    before = copy.deepcopy(search.select.state_dict())
    search.setup(Problem(micro()))
    search.prepare(context())
    assert search.select.state_dict() == before
    assert isinstance(ArchParameters.of(make_supernet(micro(), Softmax(), 0)), ArchParameters)
