"""Relative improvement, the protocol ladder and the studies, against the results that were published with them."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from archipel.core.decision import Decision
from archipel.core.errors import SpaceError, UsageError
from archipel.core.space import Space
from archipel.data import Dataset, Split
from archipel.nets.drop_path import DropPath as ScaledDropPath
from archipel.search import metrics as ranking
from archipel.search.evaluation.compare import ENOUGH_RUNS, compare_to_random
from archipel.search.evaluation.eval_nas import Truth
from archipel.search.evaluation.judging import StandAlone, drop_path_rise
from archipel.search.evaluation.ladder import (
    ARMS,
    TRICKS,
    Network,
    Strength,
    _spread,
    protocol_ladder,
    random_architectures,
    unavailable,
    with_tricks,
)
from archipel.search.evaluation.nas_eval_is_hard import (
    benchmark,
    cells_study,
    depth_study,
    seed_study,
    spread,
    vary_network,
    width_study,
)
from archipel.search.evaluation.policies import SearchTask, random_policy, run_policies
from archipel.search.evaluation.runs import Runs
from archipel.search.training import AUXILIARY_WEIGHT, Recipe, loss_of
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.mlp import mlp_space
from archipel.spaces.operations import DropPath

torch.set_num_threads(1)

PUBLISHED = json.loads((Path(__file__).parent / "nas_benchmark.json").read_text())
PROTOCOL = {"recipe": {"epochs": 600}}
RUNS = partial(Runs, protocol=PROTOCOL)


def images(n: int, side: int = 8, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = 0.5 * torch.randn(n, 1, side, side, generator=generator)
    for k in range(3):
        x[y == k, :, 2 * k : 2 * k + 2] += 1.0  # a bar at one of three heights
    return Split(x, y)


def dataset(side: int = 8) -> Dataset:
    return Dataset("bars", images(48, side), images(24, side, 1), images(48, side, 2), "classification", 3)


MICRO = Network(MicroNB201, {"input_shape": (1, 8, 8), "classes": 3, "C": 4, "cells": 1})
DARTS = Network(DartsSpace, {"input_shape": (1, 32, 32), "classes": 3, "C": 4, "layers": 3, "nodes": 1})
RECIPE = Recipe(epochs=1, batch_size=24)


def published_pairs(table: str) -> list[tuple[Runs, Runs]]:
    """(method, random) of each; in the table, the random column comes before its method's."""
    runs = [RUNS(n, [math.nan if v is None else v for v in values]) for n, values in PUBLISHED[table].items()]
    return list(zip(runs[1::2], runs[::2]))


# --- relative improvement --------------------------------------------------------------------------------------------


def test_golden_relative_improvements_on_cifar_10():
    rows = {r["method"]: r for r in benchmark(published_pairs("cifar10"))["rows"]}
    golden = {"DARTS": 0.32, "PDARTS": 0.52, "NSGANET": -0.48, "ENAS": 0.01, "CNAS": 0.74, "MANAS-LS": 0.18,
              "StacNAS": 0.43, "NAO": 0.44}  # fmt: skip
    assert {m: r["relative_improvement_percent"] for m, r in rows.items()} == pytest.approx(golden, abs=0.0051)
    darts = rows["DARTS"]
    assert darts["random"]["mean"] == pytest.approx(96.922, abs=5e-4)
    assert darts["random"]["std"] == pytest.approx(0.186, abs=5e-4)  # ddof 1
    assert darts["results"]["mean"] == pytest.approx(97.235, abs=5e-4)
    assert darts["results"]["std"] == pytest.approx(0.196, abs=5e-4)
    assert darts["verdict"] == "better than random"
    assert rows["ENAS"]["verdict"] == "no difference shown"
    assert 0.0 not in ranking.Interval(*darts["welch_interval"])


def test_golden_relative_improvements_on_cifar_100_where_one_method_is_missing():
    pairs = published_pairs("cifar100")
    with pytest.raises(UsageError, match=r"StacNAS: run 0 has no result.*never averaged over"):
        benchmark(pairs)
    rows = benchmark([p for p in pairs if p[0].name != "StacNAS"])["rows"]
    golden = {
        "DARTS": 0.23,
        "PDARTS": 2.00,
        "NSGANET": 1.37,
        "ENAS": -3.44,
        "CNAS": -0.89,
        "MANAS": -0.20,
        "NAO": -0.01,
    }
    found = {r["method"]: r["relative_improvement_percent"] for r in rows}
    assert found == pytest.approx(golden, abs=0.0051)
    assert [r["method"] for r in rows][:2] == ["PDARTS", "NSGANET"]  # by falling improvement


def test_improvement_is_zero_for_the_random_samples_themselves_scale_free_and_signed():
    (random, better), worse = published_pairs("cifar10")[0][::-1], [96.0, 96.5, 96.2]
    same = compare_to_random(replace(random, name="again"), random)
    assert same["relative_improvement_percent"] == 0.0
    percent = compare_to_random(better, random)
    fraction = compare_to_random(
        *(replace(r, values=[v / 100 for v in r.values]) for r in (better, random)), units="fraction"
    )
    for key in ("relative_improvement_percent", "cohens_d", "welch_p"):
        assert fraction[key] == pytest.approx(percent[key], rel=1e-9)
    assert fraction["bootstrap_interval"] == pytest.approx(percent["bootstrap_interval"])
    assert percent["relative_improvement_percent"] > 0
    assert compare_to_random(RUNS("worse", worse), random)["relative_improvement_percent"] < 0


def test_random_against_random_contains_zero_at_twelve_runs():
    space = Space([Decision(f"op{i}", [0, 1, 2, 3]) for i in range(4)])
    values = np.random.default_rng(0).normal(0.9, 0.01, 256)
    truth = Truth.of_values(space, {space.canonical(a): float(v) for a, v in zip(space.enumerate(), values)})
    runs = run_policies([random_policy("a"), random_policy("b")], SearchTask(space, table=truth.value), truth, 12)
    report = compare_to_random(*runs)
    assert 0.0 in ranking.Interval(*report["bootstrap_interval"])
    assert 0.0 in ranking.Interval(*report["welch_interval"])
    assert report["verdict"] == "no difference shown"


@pytest.mark.parametrize(("n", "bootstrap", "welch"), [(20, 0.90, 0.90), (8, 0.85, 0.91)])
def test_coverage_of_the_intervals_for_two_identical_populations(n, bootstrap, welch):
    """200 simulations; the percentile bootstrap under-covers at n = 8, Welch's interval does not."""
    rng = np.random.default_rng(n)
    a, b = rng.normal(97, 0.2, (2, 200, n))
    found = [ranking.relative_improvement(x, y, draws=800) for x, y in zip(a, b)]
    assert np.mean([0.0 in f.bootstrap for f in found]) >= bootstrap
    assert np.mean([0.0 in f.welch for f in found]) >= welch
    test = stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue
    assert [0.0 in f.welch for f in found] == list(test >= 0.05)


def test_coverage_at_eight_runs_is_below_that_at_twenty():
    """The same with 2,000 simulations, vectorised."""
    rng = np.random.default_rng(0)
    covered = {}
    for n in (8, 20):
        a, b = rng.normal(97, 0.2, (2, 2000, n))
        index = rng.integers(0, n, (2, 300, n))
        difference = np.stack([a[:, i].mean(1) - b[:, j].mean(1) for i, j in zip(*index)], 1)
        low, high = np.quantile(difference, [0.025, 0.975], axis=1)
        covered[n] = ((low <= 0) & (high >= 0)).mean()
    assert 0.88 < covered[8] < covered[20] < 0.95


def test_mixing_protocols_or_spaces_raises_and_names_what_differs():
    random = RUNS("random", [96.9, 97.0], space="darts")
    longer = Runs("method", [97.2, 97.3], {"recipe": {"epochs": 1500}}, space="darts")
    with pytest.raises(UsageError, match=r"different protocols \(recipe.epochs: 1500 and 600\)"):
        benchmark([(longer, random)])
    with pytest.raises(UsageError, match=r"own space"):
        benchmark([(RUNS("method", [97.2, 97.3], space="enas"), random)])
    with pytest.raises(UsageError, match="at least one pair"):
        benchmark([])


def test_bad_inputs_are_refused():
    random = RUNS("random", [96.9, 97.0])
    with pytest.raises(UsageError, match="mixed units"):
        benchmark([(RUNS("method", [0.972, 0.973]), random)])
    with pytest.raises(UsageError, match=r"random: 1 run\(s\), need >= 2"):
        benchmark([(RUNS("method", [97.2, 97.3]), RUNS("random", [96.9]))])
    with pytest.raises(UsageError, match=r"method: 1 run\(s\), need >= 2"):
        benchmark([(RUNS("method", [97.2]), random)])
    with pytest.raises(UsageError, match="method: run 1 has no result"):
        benchmark([(RUNS("method", [97.2, math.nan]), random)])
    with pytest.raises(UsageError, match="need >= 2"):
        random_architectures(MICRO.space(), 1)


def test_the_reference_is_the_average_random_architecture_never_the_best():
    report = compare_to_random(RUNS("method", [97.0, 97.0, 97.1]), RUNS("random", [96.0, 97.0, 98.0]))
    assert report["relative_improvement_percent"] == pytest.approx(100 * (97.0333333 - 97.0) / 97.0, abs=1e-6)
    assert report["random"]["best"] == 98.0


# --- the checklist ---------------------------------------------------------------------------------------------------


def test_every_comparison_carries_the_checklist_and_says_what_is_not_met():
    space = Space([Decision("op", [0, 1, 2, 3])])
    truth = Truth.of_values(space, {space.canonical(a): 0.9 + a["op"] / 100 for a in space.enumerate()})
    full = compare_to_random(*run_policies([random_policy("a"), random_policy("b")],
                                           SearchTask(space, table=truth.value), truth, ENOUGH_RUNS))  # fmt: skip
    assert len(full["checklist"]) == 10
    assert all(item["met"] for item in full["checklist"])
    bare = benchmark([(Runs("method", [97.2, 97.3], {}), Runs("random", [96.9, 97.0], {}))])
    unmet = {i["practice"] for i in bare["rows"][0]["checklist"] if not i["met"]}
    assert unmet == {
        "several seeds", "training hyperparameters stated", "search hyperparameters stated", "search space stated",
        "search cost stated", "search and evaluation under different seeds",
    }  # fmt: skip
    assert "method: not met: several seeds (2 runs a side; 8 or more are wanted)" in bare["text"]
    json.dumps(bare, allow_nan=False)
    assert "[" in bare["text"].splitlines()[1]  # never an improvement without its interval


# --- the ladder ------------------------------------------------------------------------------------------------------


def test_golden_ladder_means_and_the_arms_have_the_papers_order():
    means = [float(np.mean(v)) for v in PUBLISHED["ladder"].values()]
    golden = [94.956, 95.036, 95.934, 96.391, 96.845, 96.999, 97.236, 97.309, 97.648, 97.871]
    assert means == pytest.approx(golden, abs=6e-4)
    rows = [{"mean": float(np.mean(v)), "std": float(np.std(v, ddof=1)), "values": [[x] for x in v]}
            for v in PUBLISHED["ladder"].values()]  # fmt: skip
    found = _spread(rows)
    assert found["range_of_tricks"] == pytest.approx(97.871 - 94.956, abs=1e-3)
    assert found["range_of_tricks"] > 3 * found["range_of_architectures"]  # tricks matter most
    assert found["std_of_tricks"] > 3 * found["std_of_architectures"]
    assert len(ARMS) == len(PUBLISHED["ladder"]) == 10
    assert [set(t) for t in ARMS.values()][:6] == [
        set(), {"auxiliary"}, {"drop path"}, {"cutout"}, {"cutout", "drop path"}, {"cutout", "drop path", "auxiliary"},
    ]  # fmt: skip
    cumulative = list(ARMS.values())[5:]
    assert all(set(cumulative[0]) <= set(arm) for arm in cumulative)
    assert set(itertools.chain(*ARMS.values())) == set(TRICKS)


def test_tricks_have_the_papers_strengths():
    base = StandAlone.on(dataset(32), DARTS.space(), Recipe(epochs=600))
    wide = Network(DartsSpace, {**DARTS.options, "C": 36})
    judge = with_tricks(base, wide, TRICKS)
    assert judge.recipe == Recipe(epochs=1500, cutout=16, augmentation="random-operation")
    assert judge.drop_path == 0.2
    assert judge.network["C"] == 50
    assert judge.network["auxiliary"] is True
    assert AUXILIARY_WEIGHT == 0.4
    assert with_tricks(base, wide, ["cutout"], Strength(cutout=6)).recipe.cutout == 6


def test_every_arm_trains_the_same_architectures_under_a_protocol_of_its_own():
    archs = random_architectures(MICRO.space(), 2, seed=3)
    report = protocol_ladder(MICRO, dataset(), RECIPE, archs, seeds=1)
    assert [r["arm"] for r in report["arms"]] == ["Base", "Cutout", "CDA wider", "CDA augmented",
                                                  "CDA augmented longer", "CDA augmented longer wider"]  # fmt: skip
    assert len({r["protocol_hash"] for r in report["arms"]}) == 6
    assert report["archs"] == archs
    for row in report["arms"]:
        values = np.array(row["values"])
        assert values.shape == (2, 1)
        assert row["mean"] == pytest.approx(values.mean())
        assert row["std"] == pytest.approx(values[:, 0].std(ddof=1))
    json.dumps(report, allow_nan=False)


def test_what_a_space_cannot_take_is_left_out_and_said():
    base = StandAlone.on(dataset(), MICRO.space(), RECIPE)
    reasons = unavailable(base, MICRO)
    assert set(reasons) == {"auxiliary", "drop path"}
    assert "no option 'auxiliary'" in reasons["auxiliary"]
    assert "no drop-path modules" in reasons["drop path"]
    report = protocol_ladder(MICRO, dataset(), RECIPE, 2, arms={k: ARMS[k] for k in ("Base", "DropPath", "CD", "CDA")})
    assert report["skipped"] == {"DropPath": "Base", "CDA": "CD"}
    assert report["arms"][1]["left_out"] == ["drop path"]
    assert "CD (without drop path)" in report["text"]
    assert "not possible here: auxiliary:" in report["text"]
    assert "not run: CDA, which without these is CD" in report["text"]


def test_images_too_small_for_the_auxiliary_classifier_and_rows_that_are_no_images_say_so():
    small = DARTS.changed(input_shape=(1, 8, 8))
    reasons = unavailable(StandAlone.on(dataset(), small.space(), RECIPE), small)
    assert set(reasons) == {"auxiliary"}
    assert "images of 32x32 to 40x40" in reasons["auxiliary"]
    flat = Split(torch.zeros(6, 5), torch.arange(6) % 3)
    net = Network(mlp_space, {"input_shape": (5,), "classes": 3})
    rows = Dataset("rows", flat, flat, flat, "classification", 3)
    assert set(unavailable(StandAlone.on(rows, net.space(), RECIPE), net)) == set(TRICKS) - {"longer"}
    with pytest.raises(UsageError, match="Unknown trick 'mixup'"):
        with_tricks(StandAlone.on(rows, net.space(), RECIPE), net, ["mixup"])
    with pytest.raises(UsageError, match="need >= 2"):
        protocol_ladder(MICRO, dataset(), RECIPE, random_architectures(MICRO.space(), 2)[:1])


def test_a_network_with_all_tricks_trains():
    judge = with_tricks(StandAlone.on(dataset(32), DARTS.space(), RECIPE), DARTS, TRICKS)
    short = replace(judge, recipe=replace(judge.recipe, epochs=1))
    assert 0.0 <= short(DARTS.space().sample(Random(0)), 1_000_000) <= 1.0


def test_an_auxiliary_classifier_counts_four_tenths():
    y, main, second = torch.tensor([0, 1]), torch.randn(2, 3), torch.randn(2, 3)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = cross_entropy(main, y) + 0.4 * cross_entropy(second, y)
    torch.testing.assert_close(loss_of("classification", (main, second), y), expected)


def test_drop_path_rises_linearly_and_deeper_paths_further_where_they_say_so():
    net = torch.nn.Sequential(DropPath(0.2), ScaledDropPath(layer_fraction=0.5))
    rise = drop_path_rise(net, 0.2, steps=4)
    seen = [(net[0].p, net[1].p)]
    for _ in range(5):
        rise()
        seen.append((net[0].p, net[1].p))
    assert [p for p, _ in seen] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.2])
    assert [p for _, p in seen] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.1])


def test_a_wider_form_has_another_protocol_and_other_options_are_refused():
    base = StandAlone.on(dataset(), MICRO.space(), RECIPE)
    assert with_tricks(base, MICRO, ["wider"]).protocol != base.protocol
    assert with_tricks(base, MICRO, ["wider"]).network["C"] == 6
    with pytest.raises(UsageError, match="no option 'depth'"):
        MICRO.changed(depth=3)


# --- random baselines ------------------------------------------------------------------------------------------------


def test_random_genotypes_are_valid_and_each_operation_and_source_is_uniform():
    space = DartsSpace((3, 32, 32), 10, C=8, layers=3)
    archs = random_architectures(space, 4000)
    assert random_architectures(space, 3) == archs[:3]
    for arch in archs[:50]:
        space.from_genotype(space.to_genotype(arch))
    operations: dict[str, int] = {}
    for arch in archs:
        for name, value in arch.items():
            if ".e" in name:
                operations[value] = operations.get(value, 0) + 1
    assert len(operations) == 7
    assert sum(operations.values()) == 4000 * 16
    n, p = 4000 * 16, 1 / 7
    for count in operations.values():
        assert abs(count - n * p) < 4 * math.sqrt(n * p * (1 - p))
    for j in range(2, 6):
        options = space.by_name[f"normal.n{j}"].options
        counts = [sum(a[f"normal.n{j}"] == o for a in archs) for o in options]
        assert len(options) == math.comb(j, 2)
        assert len(options) == 1 or stats.chisquare(counts).pvalue > 1e-3


# --- studies ---------------------------------------------------------------------------------------------------------


def test_golden_width_of_the_darts_space_and_of_the_modified_one():
    darts, modified = spread(PUBLISHED["random_darts"]), spread(PUBLISHED["random_modified"])
    assert (darts["n"], modified["n"]) == (214, 56)
    assert (darts["mean"], darts["std"]) == pytest.approx((96.949, 0.233), abs=5e-4)
    assert (darts["worst"], darts["best"]) == (96.03, 97.41)
    assert (modified["mean"], modified["std"]) == pytest.approx((96.769, 0.306), abs=5e-4)


def test_golden_rank_correlations_between_depths_and_between_seeds():
    shallow, deep = np.array(PUBLISHED["cells_8_and_20"]).T
    depth = depth_study(shallow, deep)
    assert depth["tau"] == pytest.approx(0.535, abs=5e-4)
    assert depth["architectures"] == 32
    assert depth["changes"][0]["change"] == depth["changes"][0]["shallow_rank"] - depth["changes"][0]["deep_rank"]
    seeds = seed_study(PUBLISHED["two_seeds"])
    assert seeds["tau"] == pytest.approx(0.583, abs=5e-4)
    assert seeds["std_seeds"] < seeds["std_architectures"] < 3 * seeds["std_seeds"]


def test_golden_means_by_number_of_cells():
    study = cells_study({int(c): v for c, v in PUBLISHED["cells"].items()})
    assert [r["cells"] for r in study["rows"]] == [4, 6, 8, 12, 16, 20, 24]
    golden = [95.571, 96.433, 96.618, 96.821, 96.889, 96.900, 96.921]
    assert [r["mean"] for r in study["rows"]] == pytest.approx(golden, abs=6e-4)
    assert study["gains"][0] == pytest.approx(96.433 - 95.571, abs=1e-3)
    assert study["std_of_cells"] > study["std_of_architectures"]


def test_a_seed_study_recovers_the_two_deviations_it_was_made_from():
    rng = np.random.default_rng(0)
    values = 90 + 0.5 * rng.standard_normal((4000, 1)) + 0.25 * rng.standard_normal((4000, 2))
    study = seed_study(values)
    assert study["std_true"] == pytest.approx(0.5, rel=0.05)
    assert study["std_seeds"] == pytest.approx(0.25, rel=0.05)
    assert study["std_architectures"] == pytest.approx(math.sqrt(0.5**2 + 0.25**2 / 2), rel=0.05)
    noise = seed_study(rng.standard_normal((400, 2)))
    assert noise["std_true"] < 0.4 * noise["std_seeds"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=20))
def test_kendalls_tau_b_equals_the_definition(pairs):
    a, b = np.array(pairs, dtype=float).T
    if len(set(a)) < 2 or len(set(b)) < 2:
        return
    sa, sb = (np.sign(v[:, None] - v) for v in (a, b))
    by_definition = (sa * sb).sum() / math.sqrt((sa**2).sum() * (sb**2).sum())
    assert ranking.kendall_tau(a, b) == pytest.approx(by_definition)
    assert ranking.kendall_tau(a, b) == pytest.approx(stats.kendalltau(a, b)[0])


def test_studies_refuse_what_they_cannot_answer():
    with pytest.raises(UsageError, match=r"S >= 2 seeds\], not of shape \(5, 1\)"):
        seed_study(np.zeros((5, 1)))
    with pytest.raises(UsageError, match="missing or infinite"):
        seed_study([[1.0, 2.0], [1.0, math.nan], [2.0, 3.0]])
    with pytest.raises(UsageError, match="at least two numbers"):
        cells_study({8: [96.0, 97.0]})
    with pytest.raises(UsageError, match="same K architectures"):
        depth_study([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(UsageError, match="at least 2 are needed"):
        spread([96.0])


def test_forms_of_a_network_train_the_same_architectures_by_the_same_recipe():
    archs = random_architectures(MICRO.space(), 3, seed=1)
    judge = StandAlone.on(dataset(), MICRO.space(), RECIPE)
    values = vary_network(MICRO, judge, archs, {"1": {"cells": 1}, "2": {"cells": 2}}, seeds=2)
    assert {k: v.shape for k, v in values.items()} == {"1": (3, 2), "2": (3, 2)}
    assert values["1"][0, 0] == judge(archs[0], 1_000_000)
    assert depth_study(values["1"], values["2"])["architectures"] == 3
    assert len(cells_study({int(k): v for k, v in values.items()})["rows"]) == 2
    with pytest.raises(SpaceError):
        vary_network(MICRO, judge, archs, {"own cells": {"tie": "cell"}})


def test_the_width_of_a_space_is_measured_on_random_architectures():
    judge = StandAlone.on(dataset(), MICRO.space(), RECIPE)
    out = width_study({"narrow": judge}, n=3)["narrow"]
    assert out["archs"] == random_architectures(MICRO.space(), 3)
    assert out["n"] == 3
    assert out["range"] == max(out["values"]) - min(out["values"])
