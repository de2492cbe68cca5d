"""Search by a controller with policy gradients: learns, is reproducible, and takes outcomes as they come."""

from __future__ import annotations

from random import Random

import pytest
import torch

from archipel.core.decision import Decision, Real
from archipel.core.errors import InfeasibleError, SpaceError, UsageError
from archipel.core.registry import METHODS
from archipel.core.space import Space, when
from archipel.search.blackbox.nasnet import PolicyGradientSearch
from archipel.search.blackbox.random_search import RandomSearch
from archipel.search.strategy import Objective, Problem
from archipel.spaces.nasnet import NASNetSpace

torch.set_num_threads(1)
CELLS = NASNetSpace(torch.zeros(1, 1, 8, 8), B=2, ops=["identity", "sep3x3", "max3x3", "avg3x3", "conv1x1"],
                    filters=4, repeats=1)  # fmt: skip
SMALL = Space([Decision("a", ["x", "y", "z"]), Decision("b", [1, 2]), Decision("c", ["p", "q"])], {"c": [when(b=[2])]})


def started(seed=0, space=SMALL, objective=Objective("accuracy"), feasible=None, **settings):  # noqa: B008
    search = PolicyGradientSearch(**{"batch": 4, "hidden": 8, "lr": 1e-2, **settings})
    search.setup(Problem(space, [objective], Random(seed), feasible))
    return search


def told(search, trial, value):
    trial.metrics = {"accuracy": value}
    search.tell(trial)


def failed(search, trial):
    trial.failure = "out of memory"
    search.tell(trial)


def reward(arch, noise):
    """Separable convolutions in the normal cell, maximum pooling in the other one; and noise."""
    normal = sum(arch[f"normal.{b}.op{k}"] == "sep3x3" for b in (0, 1) for k in (1, 2))
    reduction = sum(arch[f"reduction.{b}.op{k}"] == "max3x3" for b in (0, 1) for k in (1, 2))
    return (normal + reduction) / 8 + noise.gauss(0, 0.1)


def rewards_of(search, seed, children):
    search.setup(Problem(CELLS, rng=Random(seed)))
    noise, out = Random(1000 + seed), []
    for _ in range(children):
        trial = search.ask()
        out.append(reward(trial.arch, noise))
        told(search, trial, out[-1])
    return out


# --- the mechanism -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["ppo", "reinforce"])
def test_late_children_are_better_than_random_ones_under_three_seeds(rule):
    for seed in range(3):
        children = rewards_of(PolicyGradientSearch(batch=10, hidden=32, lr=2e-2, rule=rule), seed, 120)
        late, random = sum(children[-30:]) / 30, sum(rewards_of(RandomSearch(), seed, 120)) / 120
        assert random < 0.3  # two of ten operations
        assert late > random + 0.15


def test_the_entropy_weight_keeps_the_controller_exploring():
    def final_entropy(weight):
        search = started(entropy=weight, lr=3e-2)
        for _ in range(80):
            trial = search.ask()
            told(search, trial, float(trial.arch["a"] == "x"))
        with torch.no_grad():
            return float(search.controller(search.controller.encode([{"a": "x", "b": 1}]))[1][0, 0])

    assert final_entropy(5.0) > final_entropy(0.0) + 0.2


def test_the_first_proposals_are_near_uniform():
    search = started(batch=300)
    counts = dict.fromkeys("xyz", 0)
    for _ in range(300):
        counts[search.ask().arch["a"]] += 1
    assert all(60 < n < 140 for n in counts.values())


# --- updates -------------------------------------------------------------------------------------------------------


def test_the_policy_changes_after_each_batch_and_not_before():
    search = started()
    before = [p.clone() for p in search.controller.parameters()]
    trials = [search.ask() for _ in range(4)]
    for i, trial in enumerate(trials[:3]):
        told(search, trial, float(i))
    assert search.updates == 0
    assert all(torch.equal(a, b) for a, b in zip(before, search.controller.parameters()))
    told(search, trials[3], 9.0)
    assert search.updates == 1
    assert not any(torch.equal(a, b) for a, b in zip(before, search.controller.parameters()) if a.ndim > 2)


def test_an_update_makes_better_children_likelier_and_worse_ones_less_likely():
    search = started(batch=6, epochs=3)
    trials = [search.ask() for _ in range(6)]
    archs = [t.arch for t in trials]

    def log_p(arch):
        with torch.no_grad():
            return float(search.controller(search.controller.encode([arch]))[0].sum())

    best, worst = next((a, b) for a in archs for b in archs if a["a"] != b["a"])
    before = log_p(best) - log_p(worst)
    for trial in trials:
        told(search, trial, 1.0 if trial.arch == best else 0.0 if trial.arch == worst else 0.5)
    assert log_p(best) - log_p(worst) > before


def test_a_child_keeps_the_probabilities_of_the_policy_that_proposed_it(monkeypatch):
    import archipel.search.blackbox.nasnet as module

    seen, real = [], module.ppo_loss

    def spy(log_p, old, advantage, clip):
        seen.append((log_p.detach().clone(), old.clone()))
        return real(log_p, old, advantage, clip)

    monkeypatch.setattr(module, "ppo_loss", spy)
    search = started(batch=2, epochs=2)
    late = search.ask()
    said = late.info["log_prob"]
    for _ in range(6):
        told(search, search.ask(), search.problem.rng.random())
    assert search.updates == 3
    told(search, search.ask(), 0.3)
    told(search, late, 0.5)  # proposed three updates ago
    log_p, old = seen[-2]
    assert float(old[1].sum()) == pytest.approx(said, abs=1e-6)
    assert float(log_p[1].sum()) != pytest.approx(said, abs=1e-4)
    torch.testing.assert_close(seen[0][0], seen[0][1])  # in the first pass of an on-policy batch all ratios are 1


def test_the_advantage_is_taken_over_the_average_of_earlier_rewards(monkeypatch):
    import archipel.search.blackbox.nasnet as module

    seen, real = [], module.ppo_loss
    monkeypatch.setattr(
        module, "ppo_loss", lambda lp, old, a, clip: (seen.append(a.tolist()), real(lp, old, a, clip))[1]
    )
    search = started(batch=2, epochs=1, decay=0.5)
    for value in (1.0, 3.0, 4.0, 0.0):
        told(search, search.ask(), value)
    assert seen[0] == pytest.approx([-1.0, 1.0])  # nothing before: centred
    assert seen[1] == pytest.approx([4.0 - 2.0, 0.0 - 2.0])  # (1 + 3) / 2 with decay one half
    assert search.baseline.value == pytest.approx(1.5)  # then 4: 3, then 0: 1.5


def test_proposals_that_were_not_handed_out_are_discarded_at_an_update():
    search = started(batch=4)
    pending = [search.ask() for _ in range(5)]  # the fifth opens a second batch of proposals
    for trial in pending[:4]:
        told(search, trial, search.problem.rng.random())
    assert search.ask().info["updates"] == 1


def test_less_is_better_for_an_objective_that_is_minimised():
    search = started(objective=Objective("accuracy", "min"), batch=10, lr=5e-2)
    for _ in range(150):
        trial = search.ask()
        told(search, trial, float(trial.arch["a"] == "x"))
    assert sum(search.ask().arch["a"] == "x" for _ in range(50)) < 5


# --- ask and tell --------------------------------------------------------------------------------------------------


def history(seed, order):
    search, out = started(seed), []
    for _ in range(6):
        trials = [search.ask() for _ in range(5)]
        for i in order:
            told(search, trials[i], len(str(trials[i].arch)) / 50)
        out += [(t.id, t.arch, t.info) for t in trials]
    return out


def test_the_same_seed_and_order_give_the_same_search():
    assert history(3, range(5)) == history(3, range(5)) != history(4, range(5))


def test_outcomes_may_come_in_any_order():
    assert [len(history(3, order)) for order in ((4, 2, 0, 1, 3), (1, 0, 3, 2, 4))] == [30, 30]


def test_many_trials_may_be_pending_and_no_outcome_is_needed_for_a_proposal():
    search = started()
    trials = [search.ask() for _ in range(50)]
    assert [t.id for t in trials] == list(range(50))
    for trial in reversed(trials):
        told(search, trial, 0.5)
    assert search.updates == 12


def test_failures_count_as_the_worst_reward_so_far():
    search = started(batch=3)
    a, b, c = (search.ask() for _ in range(3))
    failed(search, a)
    told(search, b, -2.0)
    told(search, c, 5.0)
    assert search.updates == 1
    d, e, f = (search.ask() for _ in range(3))
    told(search, d, float("nan"))
    told(search, e, float("inf"))
    f.metrics = {"loss": 0.1}  # the objective is missing
    search.tell(f)
    assert search.updates == 2
    assert all(p.isfinite().all() for p in search.controller.parameters())


def test_nothing_is_learned_while_all_children_fail_and_the_search_goes_on():
    search = started(batch=2)
    for _ in range(5):
        failed(search, search.ask())
    assert search.updates == 0
    told(search, search.ask(), 0.5)
    assert search.updates == 1


def test_all_proposals_keep_the_limits():
    search = started(feasible=lambda arch: arch["a"] == "z", batch=5)
    for i in range(40):
        trial = search.ask()
        assert trial.arch["a"] == "z"
        told(search, trial, i / 40)


def test_limits_that_nothing_keeps_are_an_error_that_names_them(monkeypatch):
    monkeypatch.setattr("archipel.search.blackbox.nasnet.MAX_DRAWS", 40)
    search = started(feasible=lambda arch: False)
    search.problem.describe_limits = lambda: "macs=5"
    with pytest.raises(InfeasibleError, match=r"within the limits in 40 draws: macs=5"):
        search.ask()


def test_the_best_children_are_listed_once_each():
    search = started(batch=4)
    for _ in range(40):
        trial = search.ask()
        told(search, trial, {"x": 3.0, "y": 2.0, "z": 1.0}[trial.arch["a"]] + trial.arch["b"] / 10)
    best = search.top(3)
    assert best[0]["a"] == best[1]["a"] == "x"
    assert len({str(a) for a in best}) == 3
    assert len(search.top(250)) <= SMALL.size == 9


# --- bad input -----------------------------------------------------------------------------------------------------


def test_a_trial_that_is_not_running_is_refused():
    search = started()
    trial = search.ask()
    told(search, trial, 0.5)
    with pytest.raises(UsageError, match="Trial 0 is not running"):
        search.tell(trial)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rule": "sarsa"}, "trained by one of"),
        ({"rule": "reinforce", "epochs": 3}, "so one pass, not epochs=3"),
        ({"batch": 0}, "batch must be a positive integer"),
        ({"hidden": 1.5}, "hidden must be a positive integer"),
        ({"epochs": 0}, "epochs must be a positive integer"),
        ({"lr": 0.0}, "lr > 0"),
        ({"clip": 1.0}, "0 < clip < 1"),
        ({"entropy": -1.0}, "entropy >= 0"),
        ({"decay": 1.0}, "decay of a baseline"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        PolicyGradientSearch(**wrong)


def test_a_space_with_real_valued_decisions_is_refused_when_the_search_starts():
    with pytest.raises(SpaceError, match="chooses among options"):
        started(space=Space([Decision("a", [1, 2]), Real("lr", 0.1, 1.0)]))


def test_it_is_registered_with_the_papers_settings():
    method = METHODS["nasnet"]
    assert (method.card, method.family, method.slots, method.obj) == (
        106,
        "search.blackbox",
        ("propose",),
        PolicyGradientSearch,
    )
    search = PolicyGradientSearch()
    assert (search.hidden, search.lr, search.entropy, search.decay, search.batch) == (100, 3.5e-4, 1e-5, 0.95, 20)
