"""MOBSTER: what the model is given, how pending trials count, what is proposed, and how fast."""

from __future__ import annotations

import math
import time
from random import Random

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from archipel.core.decision import Decision, Real
from archipel.core.errors import UsageError
from archipel.core.registry import get_method
from archipel.core.space import Space, when
from archipel.search.blackbox import mobster as module
from archipel.search.blackbox.asha import ASHA
from archipel.search.blackbox.mobster import MOBSTER, acquisition_resource, shrink
from archipel.search.simulator import TrialFailure, simulate
from archipel.search.strategy import Objective, Problem

LOSS = Objective("loss", "min")
CUBE = Space([Real(f"x{i}", 0.0, 1.0) for i in range(3)])
each_kernel = pytest.mark.parametrize("kernel", ["matern", "decay"])


def problem(space=CUBE, max_resource=27, seed=0, **settings):
    return Problem(space, [LOSS], Random(seed), max_resource=max_resource, **settings)


def curve(arch, resource):
    """Best at x = (.3, .6, .5); all learn at the same speed."""
    q = (arch["x0"] - 0.3) ** 2 + 2 * (arch["x1"] - 0.6) ** 2 + 0.5 * (arch["x2"] - 0.5) ** 2
    return {"loss": q + 0.5 * math.exp(-0.2 * resource)}


def rough(arch, resource):
    """Wavy enough to leave a model of a few results in doubt."""
    return {"loss": math.sin(15 * arch["x0"]) + math.cos(12 * arch["x1"]) + curve(arch, resource)["loss"]}


def distance(arch):
    return math.dist([arch["x0"], arch["x1"], arch["x2"]], [0.3, 0.6, 0.5])


def tell(strategy, trial, **metrics):
    trial.metrics = metrics
    strategy.tell(trial)


def after(strategy, outcomes, the_problem=None, evaluate=curve):
    """The strategy after so many trials, one at a time."""
    strategy.setup(the_problem or problem())
    for _ in range(outcomes):
        trial = strategy.ask()
        tell(strategy, trial, **evaluate(trial.arch, trial.resource))
    return strategy


# --- pending trials -------------------------------------------------------------------------------------------------


@each_kernel
def test_idle_workers_agree_if_pending_trials_are_ignored_and_differ_with_fantasies(kernel):
    differ = {}
    for pending in ("ignore", "fantasies", "believer"):
        mobster = after(MOBSTER(kernel=kernel, pending=pending, min_results=10_000), 15, evaluate=rough)
        candidates = [mobster.problem.sample() for _ in range(300)]
        chosen = []
        for _ in range(3):  # three workers, one candidate set
            chosen.append(candidates[np.argmax(mobster.acquisition(*mobster.observations())(candidates))])
            mobster.propose = chosen[-1].copy
            assert mobster.ask().arch == chosen[-1]
        differ[pending] = len({arch["x0"] for arch in chosen})
    assert differ == {"ignore": 1, "fantasies": 3, "believer": 3}


@each_kernel
def test_a_pending_trial_reduces_the_variance_where_it_runs(kernel):
    mobster = after(MOBSTER(kernel=kernel), 20)
    while (trial := mobster.ask()).resume is not None:
        pass
    model = mobster.posterior(*mobster.observations())
    pending = mobster.pending_points()
    assert pending[-1].tolist() == [*CUBE.encode(trial.arch), 1]
    fantasised = module.fantasise(model, pending, 20, np.random.default_rng(0))
    assert (fantasised.predict(pending)[1] < model.predict(pending)[1]).all()


def test_pending_points_are_the_next_rungs_of_running_trials():
    mobster = MOBSTER(variant="stopping", min_results=1, eta=3)
    mobster.setup(problem(max_resource=9))
    slow, fast = mobster.ask(), mobster.ask()
    assert [p[-1] for p in mobster.pending_points()] == [1, 1]
    for epoch, loss in ((1, 0.5), (2, 0.4)):
        assert mobster.report(fast, epoch, {"loss": loss})
    assert [p[-1] for p in mobster.pending_points()] == [1, 3]
    assert not mobster.report(slow, 1, {"loss": 0.9})  # stopped: no longer pending
    assert [p[-1] for p in mobster.pending_points()] == [3]


# --- what the model is given ----------------------------------------------------------------------------------------


def test_the_model_sees_all_rungs_and_the_latest_report():
    def played(latest):
        mobster = MOBSTER(variant="stopping", min_results=1, latest=latest)
        mobster.setup(problem())
        trial = mobster.ask()
        for epoch in range(1, 6):
            assert mobster.report(trial, epoch, curve(trial.arch, epoch))
        Z, losses = mobster.observations()
        assert losses.tolist() == [curve(trial.arch, r)["loss"] for r in Z[:, -1]]
        return Z[:, -1].tolist()

    assert played(latest=True) == [1, 3, 5]
    assert played(latest=False) == [1, 3]


def test_failures_and_nan_never_enter_the_model_and_are_never_promoted():
    def evaluate(arch, resource):
        if arch["x0"] < 0.2:
            raise TrialFailure("crashed")
        return {"loss": math.nan} if arch["x1"] > 0.9 else curve(arch, resource)

    mobster = MOBSTER(candidates=20)
    run = simulate(mobster, problem(max_resource=9), evaluate, workers=3, horizon=24)
    failed = [t for t in run.trials if t.failure]
    assert {t.failure.split()[0] for t in failed} == {"crashed", "loss"}
    Z, losses = mobster.observations()
    assert np.isfinite(losses).all()
    assert Z[:, 0].min() >= 0.2
    assert Z[:, 1].max() <= 0.9
    assert not {t.id for t in failed} & {t.resume for t in run.trials}


def test_beyond_the_cap_the_highest_resources_are_kept():
    mobster = after(MOBSTER(initial=1000, max_observations=45), 90)
    levels = np.concatenate([list(c.losses) for c in mobster.configurations.values()])
    Z, losses = mobster.observations()
    assert len(losses) == 45
    assert (Z[:, -1] > 1).sum() == (levels > 1).sum() < 45
    rows = {tuple(row) for row in Z}
    assert len(rows) == 45


def test_acquisition_resource_is_the_highest_rung_with_enough_results():
    mobster = after(MOBSTER(initial=1000), 60)
    counts = {level: len(rung) for level, rung in mobster.ladders[0].items()}
    configurations = list(mobster.configurations.values())
    for dimension in (1, 3, 6, 20, 10_000):
        enough = [level for level, n in counts.items() if n >= dimension]
        assert acquisition_resource(configurations, mobster.levels, dimension) == max(enough, default=1)
    assert counts[1] > counts[3] > counts[9] > 0


def test_hyperparameters_are_fitted_every_few_results_only(monkeypatch):
    sizes = []

    def counting(kernel, Z, y, *rest):
        sizes.append(len(y))
        return kernel.start()

    monkeypatch.setattr(module, "fit", counting)
    after(MOBSTER(refit_every=7, candidates=10), 90)
    steps = np.diff(sizes)
    assert len(sizes) > 6
    assert steps.min() >= 7
    assert max(steps[:5]) <= 12  # promotions ask for no proposal, so a fit may be a little late
    assert all(step >= size // 10 for step, size in zip(steps, sizes))


def test_the_cap_on_observations_does_not_end_refitting(monkeypatch):
    fits = []
    monkeypatch.setattr(module, "fit", lambda kernel, Z, y, *rest: fits.append(len(y)) or kernel.start())
    after(MOBSTER(max_observations=20, candidates=10), 60)
    assert fits.count(20) >= 3


def test_the_model_is_computed_on_one_thread_so_that_a_search_replays_on_any_number_of_cores(monkeypatch):
    seen, fit = [], module.fit

    def watched(*args):
        seen.extend(p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas")
        return fit(*args)

    monkeypatch.setattr(module, "fit", watched)
    with threadpool_limits(2, user_api="blas"):
        after(MOBSTER(candidates=10), 12)
        outside = [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]
    assert set(seen) == {1}
    assert set(outside) == {2}


# --- proposals ------------------------------------------------------------------------------------------------------


def test_the_first_configurations_are_those_of_random_proposals():
    mobster, asha = MOBSTER(initial=5), ASHA()
    for strategy in (mobster, asha):
        strategy.setup(problem())
    for _ in range(5):
        assert mobster.ask().arch == asha.ask().arch


@each_kernel
@pytest.mark.parametrize("variant", ["promotion", "stopping"])
def test_proposals_come_from_the_model_and_close_in_on_the_optimum(kernel, variant):
    run = simulate(
        MOBSTER(kernel=kernel, variant=variant, candidates=50), problem(max_resource=9), curve, workers=4, horizon=30
    )
    fresh = [t.arch for t in run.trials if t.resume is None]
    assert len(fresh) > 20
    early, late = np.mean([distance(a) for a in fresh[:5]]), np.median([distance(a) for a in fresh[-10:]])
    assert late < 0.25 < early
    random = simulate(ASHA(variant), problem(max_resource=9), curve, workers=4, horizon=30)
    assert run.best_so_far(LOSS, [30])[0] > random.best_so_far(LOSS, [30])[0]
    np.testing.assert_allclose(run.idle_seconds(), 0, atol=1e-9)
    assert max(run.epochs().values()) <= 9


@each_kernel
def test_results_of_the_lowest_rung_alone_already_guide_proposals(kernel):
    """The model is not confined to full evaluations: there is none yet."""
    mobster = MOBSTER(kernel=kernel, min_results=10_000)
    after(mobster, 25)
    assert {r for c in mobster.configurations.values() for r in c.losses} == {1}
    assert np.median([distance(mobster.propose()) for _ in range(3)]) < 0.2


def test_a_finite_space_is_covered_before_anything_repeats_and_limits_are_kept():
    space = Space([Decision("op", ["a", "b", "c", "d"]), Decision("width", [8, 16, 32, 64], ordered=True)])

    def evaluate(arch, resource):
        return {"loss": 1 / arch["width"] + (arch["op"] != "c") / resource}

    def feasible(arch):
        return arch["op"] != "a" or arch["width"] < 64

    run = simulate(MOBSTER(), problem(space, 3, feasible=feasible), evaluate, workers=2, horizon=60)
    fresh = [space.canonical(t.arch) for t in run.trials if t.resume is None]
    assert len(set(fresh[:15])) == 15  # all that is feasible
    assert len(fresh) > 15
    assert set(fresh) == set(fresh[:15])
    assert all(feasible(t.arch) for t in run.trials)


def test_conditional_and_integer_decisions_are_searched():
    space = Space(
        [
            Decision("op", ["conv", "skip"]),
            Decision("kernel", [3, 5, 7], ordered=True),
            Real("lr", 1e-4, 1.0, log=True),
            Real("layers", 1, 6, integer=True),
        ],
        {"kernel": [when(op=["conv"])]},
    )

    def evaluate(arch, resource):
        loss = abs(math.log10(arch["lr"]) + 2) + 0.2 * abs(arch["layers"] - 4) + (arch.get("kernel", 3) != 5)
        return {"loss": loss + 1 / resource}

    run = simulate(MOBSTER(candidates=50), problem(space, 9), evaluate, workers=4, horizon=30)
    for trial in run.trials:
        space.validate(trial.arch)
    best = min((t for t in run.trials if t.ok), key=lambda t: evaluate(t.arch, 9)["loss"]).arch
    assert best.get("kernel") == 5
    assert abs(math.log10(best["lr"]) + 2) < 0.5


def test_shrunk_mutations_move_only_real_values_and_only_part_of_the_way():
    reals = [Real("x", 0.0, 2.0), Real("lr", 1e-4, 1.0, log=True)]
    near = shrink({"x": 0.0, "lr": 1e-4, "op": "a"}, {"x": 2.0, "lr": 1.0, "op": "b"}, reals, 0.5)
    assert near["x"] == pytest.approx(1.0)
    assert near["lr"] == pytest.approx(1e-2)
    assert near["op"] == "b"


def test_an_architecture_without_feasible_neighbours_can_still_be_proposed():
    space = Space([Decision("a", [0, 1, 2, 3]), Decision("b", [0, 1, 2, 3])])
    mobster = MOBSTER(initial=1, min_results=99)
    mobster.setup(problem(space, 3, feasible=lambda arch: arch["a"] == arch["b"]))
    for _ in range(4):
        trial = mobster.ask()
        assert trial.arch["a"] == trial.arch["b"]
        tell(mobster, trial, loss=1.0 + trial.arch["a"])
    assert len(mobster.configurations) == 4


def test_equal_seeds_and_outcomes_restore_the_same_state():
    first, second = (
        simulate(MOBSTER(candidates=30), problem(max_resource=9, seed=3), curve, workers=3, horizon=25)
        for _ in range(2)
    )
    assert first.events == second.events
    assert [t.arch for t in first.trials] == [t.arch for t in second.trials]


@each_kernel
def test_a_proposal_at_500_observations_takes_less_than_a_second(kernel):
    mobster = after(MOBSTER(kernel=kernel, initial=10_000), 520)
    for _ in range(4):
        mobster.ask()
    assert len(mobster.observations()[1]) == 500
    assert len(mobster.pending_points()) == 4
    mobster.initial, mobster.theta, mobster._fitted_on = 5, mobster.kernel.start(), 10_000  # no refit is due
    start = time.perf_counter()
    mobster.propose()
    assert time.perf_counter() - start < 1.0


# --- misuse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "rbf"}, r"No kernel 'rbf'\. .*decay, matern"),
        ({"pending": "fantasy"}, r"No treatment 'fantasy' of pending trials\. Did you mean: fantasies"),
        ({"fantasies": 0}, "fantasies=0 must be at least 1"),
        ({"max_observations": 0}, "max_observations=0 must be at least 1"),
        ({"eta": 1}, "must be above 1"),
        ({"variant": "sync"}, "No variant 'sync'"),
    ],
)
def test_unknown_options_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        MOBSTER(**settings)


def test_a_full_resource_that_no_rung_reaches_is_refused():
    with pytest.raises(UsageError, match="never reach r_max=50"):
        MOBSTER(r_min=1).setup(problem(max_resource=50))


def test_mobster_is_registered_under_its_card():
    method = get_method("mobster")
    assert (method.card, method.family, method.slots) == (78, "search.blackbox", ("propose", "fidelity"))
    assert method.obj is MOBSTER
