import math
import warnings
from dataclasses import fields
from functools import partial
from random import Random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from archipel.core.choice import Choice, Kernel
from archipel.core.errors import SpaceError, UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.metrics import kendall_tau, noise_ceiling, p_surpass_random, rank_from_worst, sparse_kendall_tau
from archipel.search.oneshot.factor_report import Row, Study
from archipel.search.oneshot.factors import BASELINE, FACTORS, Factors
from archipel.search.oneshot.samplers import make_sampler
from archipel.search.oneshot.shared_evaluation import SharedEvaluator
from archipel.search.oneshot.stand_alone import Truth, stand_alone_truth, train_alone
from archipel.search.oneshot.supernet_heuristics import SupernetRandomSearch, factor_study
from archipel.search.oneshot.supernet_training import configure_batch_norm, train_supernet
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.layers import ElasticConv2d
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.sharing import Sharing, cell_space, elastic_mlp_space

QUICK = Factors(epochs=2)
DEFAULT = Sharing()


def perceptrons(sharing=DEFAULT):
    return elastic_mlp_space((1, 8, 8), 10, widths=(4, 16), hidden=2, activations=("relu", "tanh"), sharing=sharing)


def cells(sharing=DEFAULT):
    return cell_space((1, 8, 8), 10, channels=4, cells=2, sharing=sharing)


@pytest.fixture(scope="module")
def digits():
    raw = load_digits()
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(len(raw.target), generator=g)[:480]
    x = torch.tensor(raw.images, dtype=torch.float32)[order][:, None] / 16
    x = x + 0.25 * torch.randn(x.shape, generator=g)
    y = torch.tensor(raw.target)[order]
    return Dataset("digits", Split(x[:320], y[:320]), Split(x[320:], y[320:]), None, "classification", 10)


def architectures(space, n, seed=0):
    rng, out = Random(seed), []
    while len(out) < n:
        arch = space.sample(rng)
        if arch not in out:
            out.append(arch)
    return out


@pytest.fixture(scope="module")
def truth():
    """Made up, with two seeds: these tests are about the study, not about learning."""
    archs = architectures(perceptrons(), 10)
    size = np.array([a["width0"] + a["width1"] for a in archs]) / 100
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 10))
    return Truth(archs, 0.6 + size + noise)


# --- factors -------------------------------------------------------------------------------------------------------


def test_there_are_fourteen_factors_and_the_baseline_is_the_recommended_profile():
    assert sorted(FACTORS) == list(range(1, 15))
    names = [n for group in FACTORS.values() for n in group]
    assert set(names) <= {f.name for f in fields(Factors)}
    assert {n: getattr(BASELINE, n) for n in names if n not in ("lr", "epochs", "weight_decay", "batch_size")} == {
        "batch_norm": "batch", "affine": False, "channels": "fixed", "kernels": "separate", "weights_on": "edge",
        "path_dropout": 0.0, "global_dropout": 0.0, "sampling": "uniform", "layers": 1.0, "width": 1.0, "data": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("host", [perceptrons, cells])
def test_all_factors_at_their_defaults_are_the_plain_single_path_trainer_bitwise(digits, host):
    factors = Factors(epochs=1, clip=0.0)
    supernet = host(factors.sharing).supernet(seed=5)
    configure_batch_norm(supernet, factors.batch_norm, factors.affine)
    train_supernet(supernet, digits.train, "classification", factors, seed=3)

    space = host()
    plain = space.supernet(seed=5)
    configure_batch_norm(plain, "batch", affine=False)
    order = torch.randperm(320, generator=torch.Generator().manual_seed(3 * 100_003))
    rng, buffers = Random("paths of epoch 0 under seed 3"), {}
    for step, index in enumerate(order.split(64)):
        plain.train().activate(space.sample(rng))
        plain.zero_grad(set_to_none=True)
        output = plain(digits.train.x[index])
        torch.nn.functional.cross_entropy(output, digits.train.y[index], label_smoothing=0.1).backward()
        live = plain.live_slices()
        with torch.no_grad():  # SGD with momentum and weight decay by hand, on the live slices alone
            for n, p in plain.named_parameters():
                if n in live:
                    g = p.grad[live[n]].add(p[live[n]], alpha=4e-5)
                    b = buffers.setdefault(n, torch.zeros_like(p))
                    b[live[n]] = b[live[n]] * 0.9 + g
                    p[live[n]] = p[live[n]].add(b[live[n]], alpha=-0.1 * (1 - step / 5))
    for (n, p), q in zip(supernet.named_parameters(), plain.parameters()):
        assert torch.equal(p, q), n


@pytest.mark.parametrize(
    ("factor", "value"),
    [
        ("batch_norm", "recalibrated"), ("affine", True), ("channels", "random"), ("channels", "interpolate"),
        ("kernels", "crop"), ("kernels", "transform"), ("weights_on", "node"), ("path_dropout", 0.3),
        ("global_dropout", 0.3), ("lr", 0.03), ("epochs", 1), ("weight_decay", 1e-2), ("batch_size", 32),
        ("sampling", "fairnas"), ("layers", 0.5), ("width", 0.5), ("data", 0.5),
    ],
)  # fmt: skip
def test_every_factor_changes_the_supernet_that_comes_out(digits, factor, value):
    def trained(factors):
        supernet = cells(factors.sharing).supernet(seed=1)
        configure_batch_norm(supernet, factors.batch_norm, factors.affine)
        train_supernet(supernet, digits.train, "classification", factors, seed=1)
        arch = {"op01": "conv3", "op02": "conv1", "op12": "conv3", "concat": 2}
        SharedEvaluator(supernet, digits.val, "classification", factors.batch_norm, digits.train.x[:64])(arch)
        return supernet.eval()(digits.val.x)

    base = Factors(epochs=2, batch_size=160)
    assert not torch.allclose(trained(base), trained(base.vary(factor, value)))


def test_random_nas_draws_options_and_the_baseline_draws_architectures():
    """In a space with conditional decisions: 3 of 4 architectures have the convolution, but it is 1 of 2 options."""
    kernel = Kernel("k", [1, 3, 5])
    space = ModuleSpace(
        lambda: Choice("op", {"conv": ElasticConv2d(1, 1, kernel), "skip": torch.nn.Identity()}),
        torch.zeros(1, 1, 5, 5),
    )
    supernet, rng = space.supernet(), Random(0)
    share = {}
    for sampling in ("uniform", "random-nas"):
        sampler = make_sampler(sampling, supernet)
        share[sampling] = sum(sampler(rng)[0].arch["op"] == "conv" for _ in range(3000)) / 3000
    assert share == {"uniform": pytest.approx(0.75, abs=0.03), "random-nas": pytest.approx(0.5, abs=0.03)}


def test_a_fair_step_moves_shared_layers_by_k_times_the_mean_single_path_gradient(digits):
    """So that a shared stem effectively sees K times the learning rate."""
    space = ModuleSpace(
        lambda: torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(64, 10),
            Choice("op", {"a": torch.nn.Identity(), "b": torch.nn.ReLU(), "c": torch.nn.Linear(10, 10)}),
        ),
        torch.zeros(2, 1, 8, 8),
    )
    supernet = space.supernet()
    stem, before = supernet.net[1].weight, supernet.net[1].weight.detach().clone()
    single = []
    for arch in space.enumerate():
        loss = torch.nn.functional.cross_entropy(supernet.activate(arch)(digits.train.x), digits.train.y)
        single.append(torch.autograd.grad(loss, stem)[0])
    factors = Factors(
        epochs=1, batch_size=320, sampling="fairnas", label_smoothing=0.0, weight_decay=0.0, clip=0.0, lr=0.1
    )
    log = train_supernet(supernet, digits.train, "classification", factors)
    assert (log.paths, log.steps) == (3, 1)
    torch.testing.assert_close(before - stem, 0.1 * 3 * torch.stack(single).mean(0), rtol=1e-3, atol=1e-6)


def test_batch_norm_loses_what_the_factors_say():
    supernet = perceptrons().supernet()
    configure_batch_norm(supernet, "batch", affine=False)
    norms = [m for m in supernet.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert len(norms) == 2
    assert all(m.weight is None and m.bias is None and m.running_mean is None for m in norms)
    for tracked in ("tracked", "recalibrated"):
        supernet = perceptrons().supernet()
        configure_batch_norm(supernet, tracked, affine=True)
        norms = [m for m in supernet.modules() if isinstance(m, torch.nn.BatchNorm1d)]
        assert all(m.weight is not None and m.running_mean is not None for m in norms)


def test_factors_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match=r"no factor 'leraning_rate'.*Known: affine, batch_norm"):
        BASELINE.vary("leraning_rate", 0.1)
    with pytest.raises(UsageError, match="no factor 'momentum'"):
        BASELINE.vary("momentum", 0.1)  # held fixed: not among the fourteen
    with pytest.raises(UsageError, match=r"batch_norm='ema' is unknown"):
        BASELINE.vary("batch_norm", "ema")
    with pytest.raises(UsageError, match=r"data is a fraction in \(0, 1\], not 1\.5"):
        BASELINE.vary("data", 1.5)
    with pytest.raises(UsageError, match="batch_size must be an integer of at least 2, not 1"):
        BASELINE.vary("batch_size", 1)
    with pytest.raises(UsageError, match="lr must be positive"):
        BASELINE.vary("lr", 0)
    with pytest.raises(SpaceError, match="kernels='ofa' is unknown"):
        BASELINE.vary("kernels", "ofa")


# --- the study -----------------------------------------------------------------------------------------------------


def test_a_study_has_a_row_for_every_setting_and_seed_and_its_metrics_are_those_of_the_scores(digits, truth):
    study = factor_study(perceptrons, digits, truth, {"lr": [0.1, 0.3], "sampling": ["fairnas"]}, QUICK, seeds=(0, 1))
    assert [(r.factor, r.value, r.seed) for r in study.rows] == [
        ("baseline", None, 0), ("baseline", None, 1),  # lr = 0.1 is the baseline
        ("lr", 0.3, 0), ("lr", 0.3, 1), ("sampling", "fairnas", 0), ("sampling", "fairnas", 1),
    ]  # fmt: skip
    row = study.rows[0]
    supernet = perceptrons().supernet(0)
    configure_batch_norm(supernet, "batch", False)
    train_supernet(supernet, digits.train, "classification", QUICK, 0)
    scores = SharedEvaluator(supernet, digits.val, "classification", "batch").scores(truth.archs)
    first = int(np.argmax(scores))
    assert row.accuracy == pytest.approx(np.mean(scores))
    assert row.tau == kendall_tau(truth.mean, scores)
    assert row.sparse_tau == sparse_kendall_tau(truth.mean, scores, 1e-3)
    assert row.picked == truth.archs[first]
    assert row.picked_accuracy == truth.mean[first]
    assert row.p_random == p_surpass_random(rank_from_worst(truth.mean[first], truth.mean), 10, 10)
    assert row.top5_accuracy == pytest.approx(truth.mean[np.argsort(-np.array(scores), kind="stable")[:5]].mean())
    assert study.ceiling == noise_ceiling(list(truth.accuracy_SN))
    assert study.random_accuracy == truth.mean.mean()


def test_one_factor_is_changed_at_a_time(digits, truth, monkeypatch):
    seen = []

    def spy(supernet, data, task, factors, seed, **kwargs):
        seen.append(factors.changed())
        return train_supernet(supernet, data, task, factors, seed, **kwargs)

    monkeypatch.setattr("archipel.search.oneshot.supernet_heuristics.train_supernet", spy)
    vary = {"affine": [True], "data": [0.5], "batch_norm": ["tracked", "recalibrated"]}
    baseline = Factors(epochs=4)  # enough steps for every path's statistics to be tracked
    factor_study(perceptrons, digits, truth, vary, baseline, seeds=(0, 1))
    assert sorted({tuple(c) for c in seen}) == [
        ("affine", "epochs"), ("batch_norm", "epochs"), ("epochs",), ("epochs", "data"),
    ]  # fmt: skip


def test_the_table_begins_with_a_random_architecture_and_shows_spread(digits, truth):
    study = factor_study(perceptrons, digits, truth, {"epochs": [1]}, QUICK, seeds=(0, 1))
    table = study.table()
    assert [e["factor"] for e in table] == ["random architecture", "baseline", "epochs"]
    assert table[0]["picked_accuracy"] == truth.mean.mean()
    assert table[1]["seeds"] == 2
    a = [r.accuracy for r in study.rows[:2]]
    assert table[1]["accuracy"] == pytest.approx(np.mean(a))
    assert table[1]["accuracy_std"] == pytest.approx(np.std(a, ddof=1))
    text = study.text()
    assert "random architecture" in text
    assert "epochs = 1" in text
    assert f"tau between stand-alone seeds: {study.ceiling:.3f}" in text
    assert set(study.correlations()) == {"accuracy", "tau", "sparse_tau"}


def test_the_picked_rank_counts_in_the_whole_space_where_that_is_known(digits, truth):
    population = [*truth.mean, *np.linspace(2, 3, 90)]  # ninety better ones
    row = factor_study(perceptrons, digits, truth, {}, QUICK, (0, 1), population=population).rows[0]
    rank = int((truth.mean <= row.picked_accuracy).sum())
    assert row.p_random == pytest.approx((rank / 100) ** 10)


def rows(*taus_and_picks):
    return [
        Row("lr", i, 0, acc, tau, tau, tau, 0.5, {}, pick, pick, -tau, 1.0)
        for i, (acc, tau, pick) in enumerate(taus_and_picks)
    ]


def test_correlations_tell_accuracy_of_the_supernet_from_its_ranking():
    study = Study(rows((0.9, 0.1, 0.6), (0.8, 0.5, 0.7), (0.7, 0.9, 0.8)), None, 0.5, 0.9, 10, 0)
    assert study.correlations() == pytest.approx({"accuracy": -1.0, "tau": 1.0, "sparse_tau": 1.0})


def test_a_setting_is_only_chosen_by_architectures_that_are_not_reported(digits, truth):
    study = factor_study(perceptrons, digits, truth, {"epochs": [1]}, QUICK, seeds=(0, 1))
    with pytest.raises(UsageError, match=r"must not be chosen by the architectures it is reported on.*tuning=0\.3"):
        study.best_setting()
    study = factor_study(perceptrons, digits, truth, {"epochs": [1]}, QUICK, seeds=(0, 1), tuning=0.4)
    assert (study.reported, study.tuning) == (6, 4)
    assert study.best_setting()[0] in ("baseline", "epochs")
    assert all(r.picked in truth.archs for r in study.rows)
    # The tuning tau decides, against the reported one.
    made = Study(rows((0.9, 0.9, 0.6), (0.8, -0.5, 0.7)), None, 0.5, 0.9, 6, 4)
    assert made.best_setting() == ("lr", 1)


def test_a_study_that_is_run_again_reads_its_supernets_from_the_checkpoints(digits, truth, tmp_path, monkeypatch):
    arguments = (perceptrons, digits, truth, {"epochs": [1]}, QUICK)
    first = factor_study(*arguments, seeds=(0, 1), checkpoints=Checkpoints(tmp_path))
    monkeypatch.setattr("archipel.search.oneshot.supernet_heuristics.train_supernet", None)
    again = factor_study(*arguments, seeds=(0, 1), checkpoints=Checkpoints(tmp_path))
    assert again == first
    assert not list(tmp_path.glob("*training*"))


def test_studies_that_cannot_be_are_refused_before_anything_is_trained(digits, truth, monkeypatch):
    monkeypatch.setattr("archipel.search.oneshot.supernet_heuristics.train_supernet", None)
    study = partial(factor_study, perceptrons, digits, truth)
    for seeds in ((0,), (1, 1)):
        with pytest.raises(UsageError, match="at least two different seeds"):
            study({"lr": [0.3]}, seeds=seeds)
    with pytest.raises(UsageError, match="no factor 'learning'"):
        study({"learning": [0.3]})
    with pytest.raises(SpaceError, match=r"\['kernels'\] mean nothing here"):
        study({"kernels": ["crop"]})
    with pytest.raises(UsageError, match=r"weights_on change how modules share weights, which elastic-mlp does not"):
        factor_study(perceptrons(), digits, truth, {"weights_on": ["node"]})
    with pytest.raises(UsageError, match="at least 3 architectures, but there are 2 to report on"):
        factor_study(perceptrons, digits, truth.take([0, 1]), {})
    with pytest.raises(UsageError, match="but there are 2 to tune on"):
        study({}, tuning=0.2)
    with pytest.raises(UsageError, match=r"tuning is a fraction"):
        study({}, tuning=1.0)


# Networks of four channels that were barely trained may all predict one class.
@pytest.mark.filterwarnings("ignore::archipel.search.metrics.RankingWarning")
def test_sharing_factors_are_studied_on_cells(digits):
    archs = architectures(cells(), 4)
    truth = Truth(archs, [[0.1, 0.2, 0.3, 0.4]])
    study = factor_study(cells, digits, truth, {"weights_on": ["node"], "layers": [0.5]}, Factors(epochs=1), (0, 1))
    assert [r.factor for r in study.rows] == ["baseline"] * 2 + ["weights_on"] * 2 + ["layers"] * 2
    assert study.ceiling is None
    assert "unknown (one seed)" in study.text()


# --- what evaluation does ------------------------------------------------------------------------------------------


def test_tracked_statistics_without_recalibration_score_lower_than_batch_statistics(digits):
    """One training, two ways to evaluate it: the statistics that paths left behind fit none of them."""
    space = elastic_mlp_space((1, 8, 8), 10)
    archs = architectures(space, 12)
    means = {}
    for mode in ("batch", "tracked", "recalibrated"):
        supernet = space.supernet(0)
        configure_batch_norm(supernet, "recalibrated", affine=False)
        train_supernet(supernet, digits.train, "classification", Factors(epochs=30), seed=0)
        evaluator = SharedEvaluator(supernet, digits.val, "classification", mode, digits.train.x)
        means[mode] = np.mean(evaluator.scores(archs))
    assert means["tracked"] < means["batch"] - 0.02
    assert means["tracked"] < means["recalibrated"] - 0.02


def test_tracked_but_never_calibrated_statistics_are_refused(digits):
    space = perceptrons()
    with pytest.raises(UsageError, match="no tracked statistics"):
        SharedEvaluator(space.supernet(), digits.val, "classification", "tracked")(space.sample(Random(0)))


# --- stand-alone truth ---------------------------------------------------------------------------------------------


def test_truth_is_trained_from_new_weights_kept_and_never_trained_twice(digits, tmp_path):
    space, recipe = perceptrons(), Recipe(epochs=1)
    archs = architectures(space, 3)
    truth = stand_alone_truth(space, archs, digits, recipe, 2, Checkpoints(tmp_path))
    assert truth.accuracy_SN.shape == (2, 3)
    assert truth.accuracy_SN[1, 2] == train_alone(space, archs[2], digits, recipe, 10_001)

    def never(*args):
        raise AssertionError("trained again")

    again = stand_alone_truth(space, archs, digits, recipe, 2, Checkpoints(tmp_path),
                              map=lambda f, *columns: map(never, *columns))  # fmt: skip
    assert np.array_equal(again.accuracy_SN, truth.accuracy_SN)


def test_truth_with_missing_runs_or_other_lengths_is_refused():
    with pytest.raises(UsageError, match="3 architectures but 2 accuracies"):
        Truth([{}, {}, {}], [[0.1, 0.2]])
    with pytest.raises(UsageError, match="missing accuracies"):
        Truth([{}], [[math.nan]])


# --- the strategy --------------------------------------------------------------------------------------------------


def test_the_strategy_scores_random_architectures_and_proposes_the_best(digits):
    space = elastic_mlp_space((1, 8, 8), 10)
    strategy = SupernetRandomSearch(samples=12, epochs=2, finalists=3)
    strategy.setup(Problem(space, feasible=lambda a: a["width0"] < 64))
    strategy.prepare(Context(digits, Recipe(), seed=0))
    assert len(strategy.found.scored) == 12
    trials = [strategy.ask() for _ in range(3)]
    assert strategy.finished
    scores = [s for _, s in strategy.found.scored.values()]
    assert [t.info["shared_score"] for t in trials] == sorted(scores, reverse=True)[:3]
    assert all(t.arch["width0"] < 64 for t in trials)
    assert strategy.shared_scores([t.arch for t in trials]) == [t.info["shared_score"] for t in trials]
    with pytest.raises(UsageError, match="samples must be a positive integer"):
        SupernetRandomSearch(samples=0)


def test_a_search_cannot_change_how_the_space_shares_weights(digits):
    strategy = SupernetRandomSearch(samples=2, epochs=1)
    strategy.factors = strategy.factors.vary("kernels", "crop")
    strategy.setup(Problem(perceptrons()))
    with pytest.raises(UsageError, match="kernels change how a space's modules share weights"):
        strategy.prepare(Context(digits, Recipe()))


def test_a_study_warns_of_nothing(digits, truth):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factor_study(perceptrons, digits, truth, {}, QUICK, seeds=(0, 1))
