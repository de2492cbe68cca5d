"""GM-NAS: distances of gradients, partitions, and supernets that are split without losing or sharing anything."""

from __future__ import annotations

import itertools
import time
from random import Random

import pytest
import torch
from torch import nn

from archipel.core.choice import Choice
from archipel.core.errors import ShapeError, UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.catalogue import make_strategy
from archipel.search.differentiable import DifferentiableSearch, Schedule, Softmax
from archipel.search.differentiable.darts_pt import Frozen
from archipel.search.differentiable.gm_nas import gm_nas
from archipel.search.differentiable.gradient_matching import (
    GradientMatching,
    best_partition,
    drawn_mixture,
    gradient_distances,
    only,
    shared_weights,
    training_batches,
)
from archipel.search.differentiable.manas import Bandits
from archipel.search.differentiable.sampling import BestOfPaths, SampledPaths, path_score
from archipel.search.differentiable.select import Select
from archipel.search.differentiable.splitting import (
    FewShot,
    RandomSplit,
    Restricted,
    encodings_of_children,
    holds,
    levels_of,
    partitions,
    scaled_splits,
)
from archipel.search.differentiable.splitting import Split as Division
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.module_space import ModuleSpace

torch.set_num_threads(1)

QUICK = Schedule(epochs=4, batch_size=8, lr=0.1)
GOLDEN = torch.tensor([[0.0, 1, 4, 5], [1, 0, 4, 4], [4, 4, 0, 2], [5, 4, 2, 0]])


def images(n: int = 32, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 6, 6, generator=g)
    x[:, 0, :3] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    data = Dataset("bars", images(), images(seed=1), None, "classification", 2)
    return Context(**{"dataset": data, "recipe": Recipe(epochs=1), **kw})


def micro() -> MicroNB201:
    return MicroNB201((1, 6, 6), 2, C=2, cells=1)


def prepared(space=None, ctx=None, **settings):
    settings = {"split_epochs": [1, 2], "batches": 2, "samples": 4, "schedule": QUICK, **settings}
    search = gm_nas(**settings)
    search.setup(Problem(space or micro()))
    search.prepare(ctx or context())
    return search


@pytest.fixture(scope="module")
def searched():
    return prepared()


def state_of(space=None, mix=None):
    search = DifferentiableSearch(mix=mix, schedule=QUICK)
    search.setup(Problem(space or micro()))
    state = search.start(context())
    state.supernet.train()
    return state


# --- partitions ----------------------------------------------------------------------------------------------------


def test_golden_partition():
    p = best_partition(GOLDEN)
    assert (p.groups, p.within, p.cut) == (((0, 1), (2, 3)), 3.0, 17.0)
    assert best_partition(GOLDEN, 2) == p


@pytest.mark.parametrize(("n", "smallest", "count"), [(5, 2, 10), (7, 2, 56), (8, 2, 119), (4, 1, 7)])
def test_golden_numbers_of_partitions(n, smallest, count):
    found = partitions(n, smallest)
    assert len(found) == len({frozenset(map(frozenset, p)) for p in found}) == count
    assert all(min(len(a), len(b)) >= smallest and sorted(a + b) == list(range(n)) for a, b in found)


def test_the_best_partition_is_that_of_brute_force_over_all_labellings():
    g = torch.Generator().manual_seed(0)
    for K in (4, 5, 6):
        D = torch.rand(K, K, generator=g, dtype=torch.double)
        D = (D + D.T).fill_diagonal_(0)
        found = best_partition(D, 2)
        within = {}
        for sides in itertools.product((0, 1), repeat=K):
            if 2 <= sum(sides) <= K - 2:
                pairs = [(i, j) for i, j in itertools.combinations(range(K), 2) if sides[i] == sides[j]]
                within[sides] = sum(float(D[i, j]) for i, j in pairs)
        assert found.within == pytest.approx(min(within.values()))
        assert found.within + found.cut == pytest.approx(float(D.sum()) / 2)


def test_matrices_that_are_no_distances_and_too_few_options_are_refused():
    with pytest.raises(ShapeError, match="symmetric matrix with a zero diagonal"):
        best_partition(torch.tensor([[0.0, 1], [2, 0]]))
    with pytest.raises(ShapeError, match="zero diagonal"):
        best_partition(torch.eye(4))
    with pytest.raises(UsageError, match="Two groups of at least 2 need 4 options, but there are 3"):
        best_partition(torch.zeros(3, 3), 2)


# --- distances -----------------------------------------------------------------------------------------------------


def random_gradients(K: int = 4, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return [[torch.randn(*shape, generator=g) for shape in ((3, 2, 3, 3), (3,), (2, 3))] for _ in range(K)]


@pytest.mark.parametrize(("kind", "most"), [("cos", 2.0), ("per-filter-cos", 2.0 * 5), ("mse", float("inf"))])
def test_distances_are_symmetric_with_zero_diagonal_and_bounded(kind, most):
    D = gradient_distances(random_gradients(), kind)
    assert D.shape == (4, 4)
    assert torch.equal(D, D.T) or torch.allclose(D, D.T, atol=1e-12)
    assert float(D.diagonal().abs().max()) <= 1e-6
    assert float(D.min()) >= 0
    assert float(D.max()) <= most


def test_cosine_distances_by_definition():
    a, b = random_gradients(2)
    flat = [torch.cat([t.flatten() for t in g]).double() for g in (a, b)]
    expected = 1 - torch.cosine_similarity(flat[0], flat[1], dim=0)
    assert float(gradient_distances([a, b], "cos")[0, 1]) == pytest.approx(float(expected))
    per_filter = sum(
        float(1 - torch.cosine_similarity(s[f].flatten().double(), t[f].flatten().double(), dim=0))
        for s, t in zip(a, b)
        if s.ndim > 1  # norms and biases are left out
        for f in range(len(s))
    )
    assert float(gradient_distances([a, b], "per-filter-cos")[0, 1]) == pytest.approx(per_filter)
    mse = float(((flat[0] - flat[1]) ** 2).mean())
    assert float(gradient_distances([a, b], "mse")[0, 1]) == pytest.approx(mse)


@pytest.mark.parametrize("kind", ["cos", "per-filter-cos"])
def test_distances_do_not_change_when_the_loss_of_an_option_is_scaled(kind):
    gradients = random_gradients()
    scaled = [[c * t for t in g] for c, g in zip((1.0, 0.1, 7.0, 100.0), gradients)]
    torch.testing.assert_close(gradient_distances(scaled, kind), gradient_distances(gradients, kind))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(gradient_distances(scaled, "mse"), gradient_distances(gradients, "mse"))


def test_absent_gradients_count_as_zeros_which_are_alike_and_unlike_all_others():
    one = torch.tensor([[1.0, 0.0]])
    D = gradient_distances([[None], [one], [torch.zeros(1, 2)], [-one]])
    assert D.tolist() == [[0, 1, 0, 1], [1, 0, 1, 2], [0, 1, 0, 1], [1, 2, 1, 0]]
    with pytest.raises(UsageError, match="compares nothing"):
        gradient_distances([[torch.ones(2)], [torch.ones(2)]], "per-filter-cos")


def test_gradients_of_the_edge_s_own_weights_are_refused_by_name():
    own = [[torch.ones(3), torch.ones(2, 2)], [torch.ones(3), torch.ones(2, 3)]]
    with pytest.raises(
        ShapeError, match=r"Gradients of 'edge\.weight' have shapes \[\(2, 2\), \(2, 3\)\]: options do not"
    ):
        gradient_distances(own, names=["stem.bias", "edge.weight"])


# --- the score on a supernet ---------------------------------------------------------------------------------------


def test_gradients_are_those_of_all_weights_but_the_edges_own():
    state = state_of()
    row = state.parameters.rows["e12"]
    own = {n for n in state.weights if n not in shared_weights(state, row)}
    assert own == {n for n in state.weights if ".sums.1.edges.1." in n}
    assert own
    tied = state_of(MicroNB201((1, 6, 6), 2, C=2, cells=2))
    row = tied.parameters.rows["e12"]
    assert len(row.modules) == 2
    assert len(tied.weights) - len(shared_weights(tied, row)) == 2 * len(own)  # both cells' edges are left out


def test_distances_on_a_supernet_equal_those_of_the_extracted_networks():
    state = state_of()
    (data,) = training_batches(state, 1, 0)
    arch = dict(micro().sample(Random(3)), e01="conv1x1", e23="conv3x3")

    class OnePath(SampledPaths):
        def draw(self, state):
            return state.parameters.one_hot(arch)

    D = GradientMatching().distances(state, OnePath(), "e12", [data])
    shared = shared_weights(state, state.parameters.rows["e12"])
    found = []
    for op in state.parameters.rows["e12"].labels:
        state.supernet.activate({**arch, "e12": op})
        loss = nn.functional.cross_entropy(state.supernet(data[0]), data[1])
        found.append(torch.autograd.grad(loss, list(shared.values()), allow_unused=True))
    torch.testing.assert_close(D, gradient_distances(found))
    assert float(D.max()) > 0.01


def test_scoring_leaves_weights_statistics_and_gradients_alone():
    state = state_of()
    before = {n: t.clone() for n, t in state.supernet.state_dict().items()}
    division = GradientMatching(batches=2).split(state, SampledPaths(), 0, None)
    assert all(torch.equal(t, before[n]) for n, t in state.supernet.state_dict().items())
    assert all(p.grad is None for p in state.weights.values())
    assert set(division.scores) == set(state.parameters.rows)
    assert division.scores[division.row] == max(division.scores.values())


class Twins(nn.Module):
    """An edge on which the second and fourth option are the same operation with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(36, 6)
        options = {"a": nn.Linear(6, 6), "b": nn.Tanh(), "c": nn.Linear(6, 6), "d": nn.Linear(6, 6)}
        options["c"].load_state_dict(options["a"].state_dict())
        self.op = Choice("op", options)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.op(torch.relu(self.stem(x.flatten(1)))))


def test_identical_operations_have_no_distance_and_stay_together():
    state = state_of(ModuleSpace(Twins, torch.zeros(2, 1, 6, 6)))
    twins = state.supernet.net.op.blended
    twins[2].load_state_dict(twins[0].state_dict())
    gm = GradientMatching(batches=3)
    D = gm.distances(state, SampledPaths(), "op", list(training_batches(state, 3, 0)))
    assert float(D[0, 2]) == pytest.approx(0.0, abs=1e-6)
    assert float(D[0, 1]) > 0.01
    division = gm.split(state, SampledPaths(), 0, None)
    assert any({0, 2} <= set(group) for group in division.groups)


def test_the_edge_score_of_the_published_darts_code_is_not_the_largest_cut(monkeypatch):
    matrices = {"e01": GOLDEN, "e02": 0.01 * GOLDEN, "e12": 0.5 * GOLDEN}
    padded = {}
    for name, D in matrices.items():
        padded[name] = torch.zeros(5, 5)
        padded[name][:4, :4] = D
    monkeypatch.setattr(GradientMatching, "candidates", lambda self, state: dict.fromkeys(matrices, 5))
    monkeypatch.setattr(GradientMatching, "distances", lambda self, s, g, name, *_: padded[name])
    state = state_of()
    assert GradientMatching().split(state, SampledPaths(), 0, None).row == "e01"
    assert GradientMatching(edge_score="within").split(state, SampledPaths(), 0, None).row == "e02"


def test_the_active_option_has_its_weight_in_a_mixture_and_weight_one_on_a_path():
    assert only(torch.tensor([0.2, 0.3, 0.5]), 1).tolist() == pytest.approx([0, 0.3, 0])
    assert only(torch.tensor([0.0, 0.0, 1.0]), 1).tolist() == [0, 1, 0]
    state = state_of()
    path = drawn_mixture(state, SampledPaths())
    assert all(sorted(w.tolist()) == [0, 0, 0, 0, 1] for n, w in path.items() if n.startswith("e"))
    mixture = drawn_mixture(state, Frozen())
    assert all(float(w.min()) > 0 and not w.requires_grad for w in mixture.values())


def test_batches_are_many_different_ones_of_the_training_half():
    state = state_of()
    found = list(training_batches(state, 5, 0))
    assert len({float(x.sum()) for x, _ in found}) == 5
    assert all(any(torch.equal(x[0], other) for other in state.halves[0].x) for x, _ in found)


# --- encodings -----------------------------------------------------------------------------------------------------


def test_children_are_disjoint_on_the_split_edge_equal_elsewhere_and_together_the_parent(searched):
    for part in searched.parts:
        if part.split is not None:
            children = [p for p in searched.parts if p.path[:-1] == part.path and p.path]
            a, b = (c.encoding for c in children)
            assert set(a) == set(b) == {*part.encoding, part.split.row}
            assert not set(a[part.split.row]) & set(b[part.split.row])
            assert sorted(a[part.split.row] + b[part.split.row]) == list(range(5))
            assert all(a[n] == b[n] == part.encoding[n] for n in part.encoding)


def test_every_architecture_belongs_to_exactly_one_leaf(searched):
    assert [p.path for p in searched.leaves] == ["00", "01", "10", "11"]
    counts = dict.fromkeys([p.path for p in searched.leaves], 0)
    for arch in itertools.islice(micro().enumerate(), 0, None, 7):
        owners = [p.path for p in searched.leaves if holds(p.encoding, p.state.parameters.rows, arch)]
        assert len(owners) == 1
        assert searched.leaf_of(arch).path == owners[0]
        counts[owners[0]] += 1
    assert min(counts.values()) > 0


def test_an_edge_that_is_not_taken_belongs_to_one_leaf_too():
    space = DartsSpace((1, 8, 8), 2, C=2, layers=3, nodes=2)
    rows = state_of(space).parameters.rows
    division = Division("normal.e03", ((0, 3, 4), (1, 2, 5, 6)))
    children = encodings_of_children({}, division, rows["normal.e03"])
    assert [c["normal.e03"] for c in children] == [(0, 3, 4, 7), (1, 2, 5, 6, 7)]  # 'none' only takes part in mixtures
    for seed in range(20):
        arch = space.sample(Random(seed))
        assert sum(holds(c, rows, arch) for c in children) == 1


def test_an_edge_is_split_only_once_and_groups_must_divide_its_options():
    row = state_of().parameters.rows["e01"]
    with pytest.raises(UsageError, match="'e01' is already divided, into"):
        encodings_of_children({"e01": (0, 1)}, Division("e01", ((0, 1), (2, 3, 4))), row)
    for groups in (((0, 1), (2, 3)), ((0, 1, 2), (2, 3, 4)), ((0, 1, 2, 3, 4), ())):
        with pytest.raises(UsageError, match="do not divide the 5 options"):
            encodings_of_children({}, Division("e01", groups), row)


def test_options_outside_an_encoding_weigh_exactly_zero_and_are_not_computed():
    state = state_of()
    state.mix = Restricted(Softmax(), {"e01": (0, 2)})
    state.logits["e01"].data = torch.tensor([0.0, 9.0, 1.0, 9.0, 9.0])
    weights = state.mixture_weights()
    torch.testing.assert_close(weights["e01"][[0, 2]], torch.softmax(torch.tensor([0.0, 1.0]), 0))
    assert weights["e01"][[1, 3, 4]].tolist() == [0, 0, 0]
    computed = []
    for i, option in enumerate(state.parameters.rows["e01"].modules[0].blended):
        option.register_forward_hook(lambda m, a, y, i=i: computed.append(i))
    x, y = images().x[:4], images().y[:4]
    state.val_loss((x, y)).backward()
    assert computed == [2]  # option 0 is the zero operation
    assert state.logits["e01"].grad[[1, 3, 4]].tolist() == [0, 0, 0]
    assert float(state.logits["e01"].grad[[0, 2]].abs().min()) > 0


# --- the tree ------------------------------------------------------------------------------------------------------


def test_a_child_computes_what_its_parent_computes_bitwise_and_shares_no_memory():
    search = gm_nas(split_epochs=[1], batches=1, samples=2, base="darts", schedule=Schedule(epochs=2, batch_size=8))
    search.setup(Problem(micro()))
    search.prepare(context())
    search._reset()
    search.leaves = [search._begin(context(), "", {})]
    search.parts = list(search.leaves)
    (parent,) = search.leaves
    search._train(parent, 1, context())
    children = search._divide(context(), last=True)
    x = images(seed=2).x
    for arch in (micro().sample(Random(s)) for s in range(8)):
        (child,) = [c for c in children if holds(c.encoding, c.state.parameters.rows, arch)]
        for state in (parent.state, child.state):
            state.supernet.activate(arch)
        with torch.no_grad():
            assert torch.equal(parent.state.supernet(x), child.state.supernet(x))
    for child in children:
        assert child.epoch == parent.epoch == 1
        momenta = [s["momentum_buffer"] for s in child.state.weight_optimizer.state.values()]
        assert momenta
        for n, p in parent.state.weights.items():
            assert child.state.weights[n].data_ptr() != p.data_ptr()
            ours, theirs = (
                s.weight_optimizer.state[s.weights[n]]["momentum_buffer"] for s in (parent.state, child.state)
            )
            assert torch.equal(ours, theirs)
            assert ours.data_ptr() != theirs.data_ptr()
        for n, p in parent.state.logits.items():
            assert torch.equal(child.state.logits[n], p)
            assert child.state.alpha_optimizer.state[child.state.logits[n]]["step"] == 2
    before = {n: p.clone() for n, p in parent.state.weights.items()}
    search._train(children[0], 2, context())
    assert all(torch.equal(p, before[n]) for n, p in parent.state.weights.items())
    assert any(not torch.equal(p, before[n]) for n, p in children[0].state.weights.items())


def test_leaves_train_and_answer_within_their_encoding_and_the_best_is_proposed():
    search = prepared(proposals=4)
    assert search.trained_epochs == 1 + 2 * 1 + 4 * 2
    assert [len(p.log) for p in search.leaves] == [4] * 4
    trials = []
    while not search.finished:
        trials.append((search.ask(), search.leaves.index(search._sources[len(trials)])))
    assert len({leaf for _, leaf in trials}) == 4
    scores = []
    for trial, leaf in trials:
        part = search.leaves[leaf]
        assert search.leaf_of(trial.arch) is part
        assert trial.info["epochs"] == 4
        scores.append(path_score(part.state, trial.arch))
    assert scores == sorted(scores, reverse=True)


def test_shared_scores_are_those_of_the_leaf_that_holds_the_architecture(searched):
    archs = [micro().sample(Random(s)) for s in range(5)]
    val = context().dataset.val
    for arch, score in zip(archs, searched.shared_scores(archs)):
        assert score == searched.leaf_of(arch).state.metrics(val, arch=arch)["accuracy"]


def test_mixtures_are_split_too():
    search = prepared(base="darts", split_epochs=[1], schedule=Schedule(epochs=2, batch_size=8, alpha_lr=0.05))
    trial = search.ask()
    leaf = search.leaf_of(trial.arch)
    assert leaf is search._sources[0]
    for name, allowed in leaf.encoding.items():
        w = torch.tensor(trial.info["weights"][name])
        assert float(w.sum()) == pytest.approx(1.0)
        assert set(w.nonzero().flatten().tolist()) == set(allowed)


def test_equal_mixtures_are_read_off_by_perturbation_within_each_leaf():
    ctx = context(checkpoints=Checkpoints())
    settings = {"base": "equal", "split_epochs": [1], "tune": 1, "schedule": Schedule(epochs=2, batch_size=8)}
    search = prepared(ctx=ctx, proposals=2, **settings)
    assert [p.retrained for p in search.leaves] == [6, 6]  # one epoch after each of six edges
    assert search.trained_epochs == 1 + 2 * (1 + 6)
    again = prepared(ctx=ctx, proposals=2, **settings)
    for leaf in search.leaves:
        w = Restricted(leaf.state.mix.inner.inner, leaf.encoding).weights(
            leaf.state.logits, leaf.state.parameters.rows, leaf.state.moment
        )
        for name, allowed in leaf.encoding.items():
            torch.testing.assert_close(w[name][list(allowed)], torch.full((len(allowed),), 1 / len(allowed)))
    while not search.finished:
        trial, repeated = search.ask(), again.ask()
        assert search.leaf_of(trial.arch) is search._sources[trial.id]
        assert (repeated.arch, repeated.info) == (trial.arch, trial.info)


def test_few_shot_has_a_leaf_for_each_operation_and_random_halves_are_random():
    search = prepared(splitter="few-shot", split_epochs=[1], schedule=Schedule(epochs=2, batch_size=8))
    (row,) = {n for p in search.leaves for n in p.encoding}
    assert [p.encoding[row] for p in search.leaves] == [(i,) for i in range(5)]
    assert search.ask().arch
    state = state_of()
    divisions = [RandomSplit(2).split(state, SampledPaths(), seed, None) for seed in range(20)]
    assert len({d.row for d in divisions}) > 3
    assert len({d.groups for d in divisions}) > 5
    assert len({FewShot().split(state, SampledPaths(), seed, None).row for seed in range(20)}) > 3


def test_a_restarted_last_level_has_new_weights_and_a_whole_schedule():
    search = prepared(split_epochs=[1], restart="final", schedule=Schedule(epochs=2, batch_size=8))
    assert search.trained_epochs == 1 + 2 * 2
    a, b = (p.state.supernet.state_dict() for p in search.leaves)
    assert not torch.equal(a["net.stem.0.weight"], b["net.stem.0.weight"])
    first, second = (p.state.halves[1].x for p in search.leaves)
    assert torch.equal(first, second)


def test_an_interrupted_search_ends_the_same(tmp_path, searched):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction > 0.8:  # two of four leaves are trained
            raise Killed

    with pytest.raises(Killed):
        prepared(ctx=context(checkpoints=Checkpoints(tmp_path), progress=kill))
    torch.rand(3)
    resumed = prepared(ctx=context(checkpoints=Checkpoints(tmp_path)))
    again = prepared(ctx=context(checkpoints=Checkpoints(tmp_path)))
    for search in (resumed, again):
        assert search._answers == searched._answers
        assert search.trained_epochs == searched.trained_epochs
        for ours, theirs in zip(search.leaves, searched.leaves):
            assert (ours.path, ours.encoding, ours.log) == (theirs.path, theirs.encoding, theirs.log)
            for n, t in theirs.state.supernet.state_dict().items():
                assert torch.equal(t, ours.state.supernet.state_dict()[n])


def test_a_deadline_leaves_the_supernets_that_there_are():
    search = prepared(ctx=context(deadline=time.monotonic() - 1))
    assert [p.path for p in search.leaves] == [""]
    assert micro().validate(search.ask().arch)
    gm = GradientMatching(batches=1)
    assert gm.split(state_of(), SampledPaths(), 0, time.monotonic() - 1) is None


def test_a_selection_that_asks_for_further_epochs_gets_them_in_each_leaf():
    class Longer(Select):
        left = 1

        def further(self, state):
            return self.left

        def epoch_ended(self, state):
            self.left -= 1

        def __call__(self, state):
            return BestOfPaths(1)(state)

    search = prepared(split_epochs=[1], select=Longer(), schedule=Schedule(epochs=2, batch_size=8))
    assert search.trained_epochs == 1 + 2 * 1 + 2 * 1


def test_random_search_with_sharing_draws_within_rows_and_trains_only_its_path():
    state = state_of()
    x, y = images().x[:8], images().y[:8]
    before = {n: p.clone() for n, p in state.weights.items()}
    torch.manual_seed(1)
    path = SampledPaths().draw(state)
    torch.manual_seed(1)
    SampledPaths().update(state, (x, y), (x, y))
    for n, p in state.weights.items():
        if ".edges." in n:
            j, i = int(n.split("sums.")[1][0]), int(n.split("edges.")[1][0])
            option = int(n.split("blended.")[1][0])
            if path[f"e{i}{j + 1}"][option] == 0:
                assert torch.equal(p, before[n]), n
    assert any(not torch.equal(p, before[n]) for n, p in state.weights.items())


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"supernets": 6}, r"Halving gives 2, 4, 8 … supernets, not 6\. Take supernets=8"),
        ({"supernets": 8}, "8 supernets come from 3 splits, but split_epochs has 2"),
        ({"splitter": "few-shot"}, "Few-shot splits once"),
        ({"splitter": "gradients"}, "Did you mean: gradient"),
        ({"base": "rpss"}, "Did you mean: rsps"),
        ({"distance": "cosine"}, "No gradient distance 'cosine'"),
        ({"edge_score": "max"}, "scored by cut or within"),
        ({"batches": 0}, "batches must be a positive integer"),
        ({"smallest": 0}, "at least one option"),
        ({"samples": 0}, "samples must be a positive integer"),
        ({"restart": "all"}, "restart is one of none, final"),
        ({"proposals": 0}, "proposals must be a positive integer"),
        ({"split_epochs": []}, "split_epochs is empty"),
        ({"arch_gradient": Bandits()}, "Bandits draws from all options, so its supernet cannot be split"),
        ({"split_epochs": [30, 15]}, "they must increase"),
        ({"split_epochs": [15, 50]}, "they must increase"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        gm_nas(**settings)


def test_an_edge_with_too_few_operations_cannot_be_split_in_groups_of_two():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = Choice("op", {"a": nn.Tanh(), "b": nn.ReLU(), "c": nn.Identity()})
            self.head = nn.Linear(36, 2)

        def forward(self, x):
            return self.head(self.op(x.flatten(1)))

    space = ModuleSpace(Three, torch.zeros(2, 1, 6, 6))
    with pytest.raises(UsageError, match=r"two groups of 2 need 4 options, and the 1 edges .* have at most 3"):
        prepared(space, split_epochs=[1])


def test_splits_scale_with_the_epochs_and_supernets_are_a_power_of_two():
    assert scaled_splits([15, 30], 50, 50) == [15, 30]
    assert [levels_of(n) for n in (2, 4, 8)] == [1, 2, 3]
    search = prepared(split_epochs=[2], ctx=context(epochs=2))
    assert [p.epoch for p in search.parts] == [1, 2, 2]
    with pytest.raises(UsageError, match="A search of 2 epochs cannot be split after epochs"):
        prepared(ctx=context(epochs=2))


def test_it_is_made_by_name_with_plain_settings():
    search = make_strategy("gm-nas", {"split_epochs": [2, 4, 6], "supernets": 8, "distance": "mse", "batches": 3})
    assert search.splitter.distance == "mse"
    assert search.schedule.epochs == 50
