"""Hyperband: bracket tables, the ladder, parallel workers."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import pytest

from archipel.core.decision import Decision, Real
from archipel.core.errors import UsageError
from archipel.core.space import Space
from archipel.search.blackbox.hyperband_search import Hyperband
from archipel.search.hyperband import epochs, halvings, hyperband_brackets
from archipel.search.strategy import Problem, Trial

SPACE = Space([Real("x", 0.0, 1.0), Decision("op", ["a", "b"])])


def table(*args, **kwargs):
    return [[(r.size, r.budget) for r in bracket] for bracket in hyperband_brackets(*args, **kwargs)]


def search(max_resource: int = 27, seed: int = 0, **settings) -> Hyperband:
    strategy = Hyperband(**settings)
    strategy.setup(Problem(SPACE, rng=Random(seed), max_resource=max_resource))
    return strategy


def ask(strategy) -> Trial:
    trial = strategy.ask()
    assert trial is not None
    return trial


def place(trial: Trial) -> tuple[int, int]:
    assert trial.info is not None
    return trial.info["bracket"], trial.info["stage"]


def run(strategy, score=lambda t: t.arch["x"], trials: int | None = None):
    done = []
    while (trials is None or len(done) < trials) and (trial := strategy.ask()) is not None:
        value = score(trial)
        if value is None:
            trial.failure = "crashed"
        else:
            trial.metrics = {"accuracy": value}
        strategy.tell(trial)
        done.append(trial)
    return done


# --- the table ---------------------------------------------------------------------------------------------------


def test_golden_table_of_the_floor_form():
    assert table(400, 10800, 3, "floor") == [
        [(27, 400), (9, 1200), (3, 3600), (1, 10800)],
        [(9, 1200), (3, 3600), (1, 10800)],
        [(6, 3600), (2, 10800)],
        [(4, 10800)],
    ]


def test_golden_table_of_the_ceil_form_starts_its_second_bracket_with_twelve():
    assert table(400, 10800, 3, "ceil") == [
        [(27, 400), (9, 1200), (3, 3600), (1, 10800)],
        [(12, 1200), (4, 3600), (1, 10800)],
        [(6, 3600), (2, 10800)],
        [(4, 10800)],
    ]


def test_published_table_of_eighty_one_epochs():
    sizes = [[n for n, _ in bracket] for bracket in table(1, 81, 3, "ceil")]
    assert sizes == [[81, 27, 9, 3, 1], [34, 11, 3, 1], [15, 5, 1], [8, 2], [5]]


@pytest.mark.parametrize("eta", [2, 3, 4, 5, 10])
def test_no_level_is_lost_at_exact_powers(eta: int):
    assert [halvings(1, eta**k, eta) for k in range(9)] == list(range(9))
    assert [halvings(1, eta**k - 1, eta) for k in range(1, 9)] == list(range(8))
    assert math.floor(math.log(3**5) / math.log(3)) == 4  # the trap


@pytest.mark.parametrize(("b_min", "b_max", "eta"), [(1, 27, 3), (2, 64, 2), (1, 243, 3), (5, 5, 3), (3, 192, 4)])
def test_epochs_of_a_floor_bracket_equal_the_formula_and_exceed_half_of_the_largest(b_min, b_max, eta):
    brackets = hyperband_brackets(b_min, b_max, eta, "floor")
    s_max = len(brackets) - 1
    costs = [epochs(bracket) for bracket in brackets]
    assert costs == [(s_max + 1) // (s + 1) * (s + 1) * b_max for s in range(s_max, -1, -1)]
    assert min(costs) > max(costs) / 2


@pytest.mark.parametrize("form", ["ceil", "floor"])
@pytest.mark.parametrize("eta", [2, 3, 2.5])
def test_tables_equal_the_formula_for_any_eta(form, eta):
    e = Fraction(str(eta))
    brackets = hyperband_brackets(1, 100, eta, form)
    s_max = len(brackets) - 1
    assert e**s_max <= 100 < e ** (s_max + 1)
    for bracket, s in zip(brackets, range(s_max, -1, -1)):
        n = Fraction(s_max + 1, s + 1) * e**s if form == "ceil" else ((s_max + 1) // (s + 1)) * e**s
        n = math.ceil(n) if form == "ceil" else math.floor(n)
        assert [r.size for r in bracket] == [max(1, math.floor(n / e**i)) for i in range(s + 1)]
        assert [r.budget for r in bracket] == [round(100 / e ** (s - i)) for i in range(s + 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9, 3, 3), "b_min=9 exceeds the full budget b_max=3"),
        ((1, 9, 1), "eta=1: .* above 1"),
        ((1, 9, 0.5), "eta=0.5: .* above 1"),
        ((1, 9, float("nan")), "eta=nan"),
        ((0, 9, 3), "b_min=0: .* at least 1"),
        ((1, 2.5, 3), "b_max=2.5: .* whole numbers"),
        ((1, 9, 3, "round"), "'round'; it is one of ceil, floor"),
        ((2, 20, 1.1), "gives equal budgets"),
    ],
)
def test_impossible_ladders_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        hyperband_brackets(*arguments)


def test_the_strategy_refuses_the_same_before_it_starts():
    with pytest.raises(UsageError, match="eta=1"):
        Hyperband(eta=1)
    with pytest.raises(UsageError, match="b_min=-1"):
        Hyperband(b_min=-1)
    with pytest.raises(UsageError, match="rounds=0"):
        Hyperband(rounds=0)
    with pytest.raises(UsageError, match="b_min=9 exceeds the full budget b_max=3"):
        search(max_resource=3, b_min=9)


@pytest.mark.parametrize(
    ("b_max", "budgets"), [(27, [1, 3, 9, 27]), (108, [4, 12, 36, 108]), (10, [1, 3, 10]), (1, [1])]
)
def test_default_ladder_has_four_budgets_where_they_fit(b_max, budgets):
    assert [r.budget for r in search(b_max).brackets[0]] == budgets


# --- the ladder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ceil", "floor"])
def test_exactly_the_best_of_each_stage_are_promoted(form):
    strategy = search(form=form, rounds=2)
    trials = run(strategy)
    assert strategy.finished
    assert strategy.ask() is None
    for index in range(8):
        bracket = strategy.brackets[index % 4]
        for level, stage in enumerate(bracket):
            here = [t for t in trials if place(t) == (index, level)]
            assert [t.resource for t in here] == [stage.budget] * stage.size
            if level:
                below = [t for t in trials if place(t) == (index, level - 1)]
                best = sorted(below, key=lambda t: -t.metrics["accuracy"])[: len(below) // 3]
                assert [t.info["promoted_from"] for t in here] == [t.id for t in best]
                assert [t.arch for t in here] == [t.arch for t in best]


def test_promoted_trials_resume_unless_from_scratch():
    for from_scratch in (False, True):
        promoted = [t for t in run(search(rounds=1, from_scratch=from_scratch)) if t.info["stage"]]
        assert [t.resume for t in promoted] == [None if from_scratch else t.info["promoted_from"] for t in promoted]


def test_ties_go_to_the_earlier_trial():
    trials = run(search(rounds=1), score=lambda t: 0.5)
    assert [t.info["promoted_from"] for t in trials[27:36]] == list(range(9))


def test_failures_rank_last_and_are_never_promoted():
    trials = run(search(rounds=1), score=lambda t: None if t.info["stage"] == 0 and t.id % 5 else t.id / 100)
    survivors = [t for t in trials if t.info["bracket"] == 0 and t.info["stage"] == 1]
    assert [t.info["promoted_from"] for t in survivors] == [
        25,
        20,
        15,
        10,
        5,
        0,
    ]  # six of 27 succeeded, nine could go on


def test_nan_counts_as_failure():
    trials = run(search(rounds=1), score=lambda t: math.nan if t.id < 20 else 0.1)
    assert {t.info["promoted_from"] for t in trials if t.info["bracket"] == 0 and t.info["stage"] == 1} == set(
        range(20, 27)
    )


def test_a_bracket_in_which_everything_fails_ends_and_the_next_begins():
    strategy = search(rounds=1)
    trials = run(strategy, score=lambda t: None)
    assert strategy.finished
    assert [len([t for t in trials if t.info["bracket"] == b]) for b in range(4)] == [27, 12, 6, 4]


def test_telling_a_trial_twice_is_an_error():
    strategy = search()
    trial = ask(strategy)
    strategy.tell(trial)
    with pytest.raises(UsageError, match="Trial 0 was not asked for, or was told before"):
        strategy.tell(trial)


# --- parallel workers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 5, 40])
def test_no_worker_idles_and_no_stage_promotes_before_all_its_results(workers):
    strategy, rng = search(), Random(workers)
    running, told, promotions = [], [], 0
    for _ in range(600):
        while len(running) < workers:
            trial = ask(strategy)  # an endless search always has work
            bracket, stage = place(trial)
            if stage:
                below = [t for t in told if place(t) == (bracket, stage - 1)]
                assert len(below) == strategy.brackets[bracket % 4][stage - 1].size
                promotions += 1
            running.append(trial)
        trial = running.pop(rng.randrange(workers))  # whoever happens to end first
        trial.metrics = {"accuracy": trial.arch["x"]}
        strategy.tell(trial)
        told.append(trial)
    assert promotions > 50
    assert len(strategy._active) <= workers + 1  # complete brackets are let go


def test_a_second_bracket_opens_while_the_first_waits():
    strategy = search()
    pending = [ask(strategy) for _ in range(28)]
    assert [place(t) for t in pending] == [(0, 0)] * 27 + [(1, 0)]
    for t in pending[:27]:
        t.metrics = {"accuracy": t.arch["x"]}
        strategy.tell(t)
    assert place(ask(strategy)) == (0, 1)  # the oldest bracket with work comes first


def test_with_limited_rounds_it_waits_for_pending_trials_and_is_not_finished():
    strategy = search(max_resource=1, rounds=1)
    trial = ask(strategy)
    assert strategy.ask() is None
    assert not strategy.finished
    strategy.tell(trial)
    assert strategy.finished


def test_same_seed_same_trajectory():
    first, second, other = ([t.arch for t in run(search(seed=s), trials=100)] for s in (3, 3, 4))
    assert first == second != other


def test_proposals_keep_the_limits():
    strategy = Hyperband()
    strategy.setup(Problem(SPACE, feasible=lambda a: a["x"] < 0.1, max_resource=9))
    assert all(t.arch["x"] < 0.1 for t in run(strategy, trials=40))
