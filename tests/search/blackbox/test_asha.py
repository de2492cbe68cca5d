"""Asynchronous successive halving: rungs, both variants, both rules, failures, and what it refuses."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from archipel.core.decision import Decision, Real
from archipel.core.errors import InfeasibleError, UsageError
from archipel.core.registry import get_method
from archipel.core.space import Space
from archipel.search.blackbox.asha import ASHA
from archipel.search.schedulers import Rung, rung_levels
from archipel.search.simulator import TrialFailure, simulate
from archipel.search.strategy import Objective, Problem

LOSS = Objective("loss", "min")


def problem(max_resource=27, seed=0, objective=LOSS, **settings):
    return Problem(Space([Real("x", 0.0, 1.0)]), [objective], Random(seed), max_resource=max_resource, **settings)


def curve(arch, resource):
    """Learning curves that cross: a slow starter ends better."""
    x = arch["x"]
    return {"loss": x + math.exp(-resource * x / 3) + 0.05 * math.sin(1000 * x * resource)}


def tell(strategy, trial, **metrics):
    trial.metrics = metrics
    strategy.tell(trial)


# --- rungs ------------------------------------------------------------------------------------------------------------


def test_golden_rungs():
    assert rung_levels(81, 3, r_min=1) == [1, 3, 9, 27, 81]
    assert rung_levels(81) == [1, 3, 9, 27, 81]
    assert rung_levels(243, 3, 1)[-1] == 243  # an exact power is not lost to rounding
    assert rung_levels(16, 4, 4) == [4, 16]


def test_rungs_divided_down_always_end_with_the_full_resource():
    for r_max in range(1, 60):
        for eta in (1.5, 2, 3, 4):
            levels = rung_levels(r_max, eta)
            assert levels[-1] == r_max
            assert levels[0] >= 1
            assert levels == sorted(set(levels))


@pytest.mark.parametrize("eta", [1, 0.5, -3, math.nan, math.inf])
def test_eta_of_one_or_less_is_refused(eta):
    with pytest.raises(UsageError, match="must be above 1"):
        rung_levels(9, eta)
    with pytest.raises(UsageError, match="must be above 1"):
        ASHA(eta=eta)


def test_rungs_that_miss_the_full_resource_are_refused_with_what_would_fit():
    with pytest.raises(UsageError, match=r"\[1, 3, 9\] .* never reach r_max=10.*Use r_max=9 or 27, or r_min=None"):
        rung_levels(10, 3, r_min=1)
    with pytest.raises(UsageError, match="never reach r_max=10"):
        ASHA(r_min=1).setup(problem(10))
    with pytest.raises(UsageError, match="r_min=5, r_max=3"):
        rung_levels(3, 3, r_min=5)


def test_the_quantile_rule_continues_where_the_floor_rule_stops():
    for rule, passes in (("quantile", True), ("floor", False)):
        rung = Rung(1, eta=3, rule=rule, min_results=3)
        for key, loss in enumerate([0.5, 0.4, 0.6]):
            rung.record(key, loss)
        assert rung.continues(1)
        rung.record(3, 0.45)
        assert rung.continues(3) is passes


def test_quantile_equals_numpy_and_the_floor_rule_an_exact_top_k():
    rng = np.random.default_rng(0)
    for eta in (2, 3, 4, 2.5):
        quantile, floor = (Rung(1, eta, rule, 1) for rule in ("quantile", "floor"))
        losses = []
        for key in range(80):
            losses.append(float(rng.integers(0, 30)) / 7)  # with ties
            for rung in (quantile, floor):
                rung.record(key, losses[-1])
            assert quantile.quantile() == pytest.approx(np.quantile(losses, 1 / eta), abs=1e-12)
            top = np.argsort(losses, kind="stable")[: max(1, math.floor(len(losses) / eta))]
            assert [floor.passes(k) for k in range(key + 1)] == [k in top for k in range(key + 1)]


def test_results_that_failed_count_as_worst_and_never_pass():
    rung = Rung(1, eta=3, rule="quantile", min_results=1)
    for key, loss in enumerate([math.inf, math.nan, math.inf]):
        rung.record(key, loss)
        assert not rung.continues(key)
        assert rung.promote() is None
    rung.record(3, 5.0)
    assert rung.passes(3)
    assert rung.promote() == 3
    assert rung.promote() is None


def test_a_second_result_of_a_configuration_at_a_rung_is_refused():
    rung = Rung(3, 3, "quantile", 3)
    rung.record(8, 0.1)
    with pytest.raises(UsageError, match="Configuration 8 already has a result at 3 epochs"):
        rung.record(8, 0.2)


# --- decisions, recomputed by brute force at every event ------------------------------------------------------------


def passes(losses, mine, eta, rule):
    """The rule, from the list of everything recorded so far (in order of arrival) and the index of one of them."""
    if losses[mine] == math.inf:
        return False
    if rule == "quantile":
        return losses[mine] <= np.quantile(np.minimum(losses, 1e9), 1 / eta) + 1e-12
    return sorted(range(len(losses)), key=lambda i: (losses[i], i)).index(mine) < max(1, len(losses) // eta)


def flaky(arch, resource):
    if int(1e6 * arch["x"]) % 11 == resource % 11:
        raise TrialFailure("unlucky")
    return curve(arch, resource)


each_rule = pytest.mark.parametrize("rule", ["quantile", "floor"])
each_seed = pytest.mark.parametrize("seed", [0, 1])
each_curve = pytest.mark.parametrize("evaluate", [curve, flaky])


@each_rule
@each_seed
@each_curve
def test_every_stopping_decision_equals_the_brute_force_one(rule, seed, evaluate):
    run = simulate(ASHA("stopping", rule=rule), problem(seed=seed), evaluate, workers=4, horizon=200)
    recorded: dict[int, list[float]] = {1: [], 3: [], 9: [], 27: []}
    last: dict[int, int] = {}
    stopped = 0
    for i, e in enumerate(run.events):
        if e.kind == "report" and e.resource in recorded:
            at = recorded[e.resource]
            at.append(e.metrics["loss"])
            goes_on = len(at) < 3 or passes(at, len(at) - 1, 3, rule)
            after = next((f for f in run.events[i + 1 :] if f.trial == e.trial), None)
            if e.resource < 27 and after is not None:
                assert (after.kind == "stop") == (not goes_on)
                stopped += not goes_on
        elif e.kind == "fail":
            due = next(level for level in recorded if level > last.get(e.trial, 0))
            recorded[due].append(math.inf)
        last[e.trial] = e.resource
    assert stopped > 20
    assert len(recorded[27]) > 2


@each_rule
@each_seed
@each_curve
def test_every_promotion_equals_the_brute_force_one(rule, seed, evaluate):
    run = simulate(ASHA(rule=rule), problem(seed=seed), evaluate, workers=4, horizon=200)
    recorded: dict[int, list[tuple[int, float]]] = {1: [], 3: [], 9: [], 27: []}
    promoted: dict[int, set[int]] = {level: set() for level in recorded}
    configuration = {t.id: t.info["configuration"] for t in run.trials}
    targets = {t.id: t.resource for t in run.trials}
    promotions = 0
    for e in run.events:
        if e.kind == "finish":
            recorded[e.resource].append((configuration[e.trial], e.metrics["loss"]))
        elif e.kind == "fail":
            recorded[targets[e.trial]].append((configuration[e.trial], math.inf))
        elif e.kind == "start":
            expected = None  # (configuration, next level)
            for level in (9, 3, 1):
                losses = [loss for _, loss in recorded[level]]
                waiting = [(loss, i) for i, (c, loss) in enumerate(recorded[level]) if c not in promoted[level]]
                if len(losses) >= 3 and waiting and passes(losses, min(waiting)[1], 3, rule):
                    expected = (recorded[level][min(waiting)[1]][0], 3 * level)
                    promoted[level].add(expected[0])
                    break
            if expected is None:
                assert (configuration[e.trial], targets[e.trial], e.resource) == (e.trial, 1, 0)
            else:
                assert (configuration[e.trial], targets[e.trial]) == expected
                assert e.resource == expected[1] // 3
                promotions += 1
    assert promotions > 20
    assert len(recorded[27]) > 1


@pytest.mark.parametrize("variant", ["stopping", "promotion"])
def test_maximising_the_negated_metric_gives_the_same_decisions(variant):
    def accuracy(arch, resource):
        return {"accuracy": -curve(arch, resource)["loss"]}

    runs = [
        simulate(ASHA(variant), problem(objective=objective), evaluate, workers=4, horizon=150)
        for objective, evaluate in [(LOSS, curve), (Objective("accuracy"), accuracy)]
    ]
    assert [e[:5] for e in runs[0].events] == [e[:5] for e in runs[1].events]
    with pytest.raises(ValueError, match="mode must be 'max' or 'min'"):
        Objective("loss", "minimise")


@pytest.mark.parametrize("variant", ["stopping", "promotion"])
def test_nobody_waits_and_no_configuration_trains_longer_than_the_full_resource(variant):
    run = simulate(ASHA(variant), problem(), curve, lambda a, r: 0.2 + a["x"], workers=5, horizon=120)
    np.testing.assert_allclose(run.idle_seconds(), 0, atol=1e-9)
    epochs = run.epochs()
    assert max(epochs.values()) == 27
    assert sum(v < 27 for v in epochs.values()) > len(epochs) / 2


def test_promotions_resume_the_trial_that_paused_last():
    asha = ASHA(min_results=1)
    asha.setup(problem(9))
    first = asha.ask()
    tell(asha, first, loss=0.5)
    second = asha.ask()
    assert (second.resource, second.resume, second.arch) == (3, first.id, first.arch)
    tell(asha, second, loss=0.4)
    third = asha.ask()  # the top of the ladder is looked at first
    assert (third.resource, third.resume) == (9, second.id)
    tell(asha, third, loss=0.3)
    assert asha.ask().resume is None


def test_asha_never_waits_for_pending_trials():
    asha = ASHA()
    asha.setup(problem())
    trials = [asha.ask() for _ in range(50)]
    assert all(t is not None and t.resource == 1 and t.resume is None for t in trials)
    for trial in reversed(trials[10:20]):  # outcomes in any order
        tell(asha, trial, loss=trial.arch["x"])
    resumed = asha.ask()
    assert resumed.resume == min(trials[10:20], key=lambda t: t.arch["x"]).id


def test_stopping_without_reports_is_recorded_at_the_full_resource_and_declared():
    assert ASHA("stopping").needs_reports
    assert not ASHA("promotion").needs_reports
    asha = ASHA("stopping")
    asha.setup(problem())
    trial = asha.ask()
    assert trial.resource == 27
    tell(asha, trial, loss=0.5)
    assert asha.configurations[0].losses == {27: 0.5}


def test_brackets_start_at_higher_rungs_in_hyperband_proportions():
    asha = ASHA(brackets=3)
    asha.setup(problem(9))
    starts = [asha.ask().resource for _ in range(3000)]
    shares = np.array([starts.count(level) for level in (1, 3, 9)]) / 3000
    np.testing.assert_allclose(shares, np.array([9, 5, 3]) / 17, atol=0.03)
    with pytest.raises(UsageError, match="4 brackets need as many rungs"):
        ASHA(brackets=4).setup(problem(9))


# --- proposals --------------------------------------------------------------------------------------------------------


def test_a_small_space_is_covered_once_before_anything_repeats():
    space = Space([Decision("a", list(range(7))), Decision("b", list(range(9)))])
    asha = ASHA()
    asha.setup(Problem(space, [LOSS], Random(3), feasible=lambda arch: arch["a"] != 3, max_resource=9))
    archs = [space.canonical(asha.ask().arch) for _ in range(6 * 9)]
    assert len(set(archs)) == 54
    assert space.canonical(asha.ask().arch) in archs  # nothing is left
    assert all('"a": 3' not in arch for arch in archs)


def test_limits_that_nothing_keeps_are_named():
    asha = ASHA()
    asha.setup(problem(feasible=lambda arch: False))
    with pytest.raises(InfeasibleError, match="No architecture within the limits"):
        asha.ask()


def test_equal_seeds_and_outcomes_restore_the_same_state():
    def play(strategy):
        strategy.setup(problem(seed=4))
        pending, rng, log = [], Random(1), []
        for _ in range(120):
            pending.append(strategy.ask())
            log.append((pending[-1].arch["x"], pending[-1].resource, pending[-1].resume))
            if len(pending) == 3:
                trial = pending.pop(rng.randrange(3))
                tell(strategy, trial, **curve(trial.arch, trial.resource))
        return log

    assert play(ASHA()) == play(ASHA())


# --- failures and misuse ----------------------------------------------------------------------------------------------


def test_failed_and_nan_trials_are_never_promoted():
    asha = ASHA(min_results=1)
    asha.setup(problem())
    failed, nan, good = asha.ask(), asha.ask(), asha.ask()
    failed.failure = "out of memory"
    asha.tell(failed)
    tell(asha, nan, loss=math.nan)
    assert asha.ask().resume is None
    tell(asha, good, loss=100.0)
    assert asha.ask().resume == good.id
    assert asha.configurations[0].losses == {1: math.inf}


def test_a_nan_report_stops_the_trial_and_counts_as_worst():
    asha = ASHA("stopping", min_results=1)
    asha.setup(problem())
    trial = asha.ask()
    assert asha.report(trial, 1, {"loss": 0.5})
    assert not asha.report(trial, 2, {"loss": math.nan})
    trial.failure = "loss is NaN"
    asha.tell(trial)
    assert asha.configurations[0].losses == {1: 0.5, 3: math.inf}


def test_unknown_and_repeated_trials_are_refused():
    asha = ASHA()
    asha.setup(problem())
    trial = asha.ask()
    tell(asha, trial, loss=0.5)
    with pytest.raises(UsageError, match="Trial 0 is not running"):
        asha.tell(trial)
    with pytest.raises(UsageError, match="Trial 0 is not running"):
        asha.report(trial, 1, {"loss": 0.5})


def test_reports_out_of_order_or_past_a_rung_are_refused():
    asha = ASHA("stopping")
    asha.setup(problem())
    trial = asha.ask()
    with pytest.raises(UsageError, match="reports 2 epochs after 0, with a rung at 1"):
        asha.report(trial, 2, {"loss": 0.5})
    assert asha.report(trial, 1, {"loss": 0.5})
    with pytest.raises(UsageError, match="reports 1 epochs after 1"):
        asha.report(trial, 1, {"loss": 0.5})
    with pytest.raises(UsageError, match="ended after 1 epochs without being stopped"):
        tell(asha, trial, loss=0.5)


def test_unknown_options_are_named_with_the_known_ones():
    with pytest.raises(UsageError, match=r"No variant 'promote'\. Did you mean: promotion"):
        ASHA("promote")
    with pytest.raises(UsageError, match="No promotion rule 'median'"):
        ASHA(rule="median")
    with pytest.raises(UsageError, match="brackets=0"):
        ASHA(brackets=0)
    with pytest.raises(UsageError, match="min_results=0"):
        ASHA(min_results=0)


def test_asha_is_registered_with_its_paper():
    method = get_method("asha")
    assert method.obj is ASHA
    assert method.paper.link == "https://arxiv.org/abs/1810.05934"
