"""TabNAS: rejection, the probability of being feasible, and the supernet."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from archipel.core.decision import Decision, Real
from archipel.core.errors import DataError, InfeasibleError, RunError, SpaceError, UsageError
from archipel.core.space import Space, when
from archipel.core.storage import Checkpoints
from archipel.cost.limits import Limits
from archipel.data.dataset import Dataset, Split
from archipel.search.oneshot.child_quality import quality
from archipel.search.oneshot.feasible_policy import FactorisedPolicy, FeasibleSet
from archipel.search.oneshot.rejection import (
    Average,
    PolicySearch,
    exact_log_mass,
    learn_from_oracle,
    sampled_mass,
)
from archipel.search.oneshot.tabnas import InactiveLimit, TabNAS
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.mlp import mlp_space

# Two inputs, two hidden layers of 2, 3 or 4 units, one output, at most 25 parameters.
TOY = mlp_space((2,), 1, widths=[2, 3, 4], depth=2, activations=["relu"], norms=["none"])
LIMITS = Limits.parse(["params=25"], TOY)
FEASIBLE = {(2, 2): 15, (2, 3): 19, (2, 4): 23, (3, 2): 20, (3, 3): 25, (4, 2): 25}
INFEASIBLE = {(3, 4): 30, (4, 3): 31, (4, 4): 37}


def index(*widths):
    return np.array([[w - 2 for w in widths]])


def oracle(arch):
    """A quality that favours a wide first layer."""
    return 0.6 * math.log(arch["width0"]) + 0.2 * math.log(arch["width1"])


def toy(limits=LIMITS, **settings):
    policy = FactorisedPolicy(TOY)
    return PolicySearch(policy, FeasibleSet(policy, limits.feasible, limits.describe), **settings)


def skewed(search):
    """A policy away from the uniform one, towards what is infeasible."""
    with torch.no_grad():
        search.policy.logits.copy_(torch.tensor([[0.0, 0.3, 0.9], [0.1, 0.4, 0.8]]))
    return search


def gradient(value, search):
    return torch.autograd.grad(value, search.policy.logits)[0]


# --- golden numbers ------------------------------------------------------------------------------------------------


def test_parameters_and_the_feasible_set_of_the_toy_are_those_worked_by_hand():
    for (a, b), params in {**FEASIBLE, **INFEASIBLE}.items():
        assert TOY.cost.params({"width0": a, "width1": b}) == params == 3 * a + (a + 1) * b + b + 1
    search = toy()
    assert {(i + 2, j + 2) for i, j in search.feasible.listed.tolist()} == set(FEASIBLE)
    assert not search.feasible.inactive


def test_the_gradient_at_the_uniform_policy_is_the_one_worked_by_hand():
    search = toy()
    log_mass = exact_log_mass(search.policy, search.feasible.listed)
    assert float(log_mass.detach().exp()) == pytest.approx(2 / 3)
    score = search.policy.log_prob(index(4, 2))[0] - log_mass
    assert float(score.detach()) == pytest.approx(-1.791759, abs=1e-6)
    corrected = gradient(score, search)
    assert corrected[0].tolist() == pytest.approx([-1 / 2, -1 / 3, 5 / 6])
    assert corrected[1].tolist() == pytest.approx([1 / 2, -1 / 3, -1 / 6])
    plain = gradient(search.policy.log_prob(index(4, 2))[0], search)
    assert plain[0].tolist() == pytest.approx([-1 / 3, -1 / 3, 2 / 3])
    assert plain[1].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3])


# --- invariants ----------------------------------------------------------------------------------------------------


def test_the_corrected_score_has_zero_mean_on_the_feasible_set_and_the_uncorrected_has_not():
    search = skewed(toy())
    policy, listed = search.policy, search.feasible.listed
    means = {}
    for corrected in (True, False):
        mean = torch.zeros(2, 3, dtype=torch.float64)
        for y in listed:
            log_mass = exact_log_mass(policy, listed)
            log_p = policy.log_prob(y[None])[0]
            weight = float((log_p - log_mass).detach().exp())
            mean += weight * gradient(log_p - log_mass if corrected else log_p, search)
        means[corrected] = float(mean.abs().max())
    assert means[True] < 1e-12
    assert means[False] > 0.05


def test_the_sampled_mass_and_its_gradient_are_unbiased():
    search = skewed(toy())
    policy, feasible = search.policy, search.feasible
    exact = exact_log_mass(policy, feasible.listed).exp()
    exact_gradient = gradient(exact, search)
    drawn = policy.sample(100_000, np.random.default_rng(0))
    estimate = sampled_mass(policy, drawn, feasible.contains(drawn))
    p = float(exact.detach())
    assert float(estimate.detach()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 100_000))
    assert gradient(estimate, search).numpy() == pytest.approx(exact_gradient.numpy(), abs=0.008)
    assert exact_gradient.abs().max() > 0.05


def test_dividing_by_a_probability_without_gradient_would_be_plain_reinforce():
    search = skewed(toy())
    log_mass = exact_log_mass(search.policy, search.feasible.listed)
    log_p = search.policy.log_prob(index(4, 2))[0]
    with_gradient = gradient(log_p - log_mass, search)
    log_p = search.policy.log_prob(index(4, 2))[0]
    plain = gradient(search.policy.log_prob(index(4, 2))[0], search)
    assert torch.equal(gradient(log_p - log_mass.detach(), search), plain)
    assert not torch.allclose(with_gradient, plain)


def test_the_gradient_of_the_sampled_mass_flows_through_p_and_not_through_the_draws():
    search = skewed(toy())
    drawn = search.policy.sample(500, np.random.default_rng(1))
    good = search.feasible.contains(drawn)
    estimate = sampled_mass(search.policy, drawn, good)
    assert float(estimate.detach()) == pytest.approx(good.mean())  # every weight p/q is 1 ...
    p = torch.softmax(search.policy.logits.detach(), 1)
    onehot = torch.nn.functional.one_hot(torch.from_numpy(drawn[good]), 3)
    by_hand = (onehot - p).sum(0) / 500
    torch.testing.assert_close(gradient(estimate, search), by_hand)  # ... but not its gradient


@pytest.mark.parametrize("probability", ["exact", "monte-carlo"])
def test_an_update_is_adams_step_along_the_advantage_times_the_corrected_score(probability):
    search = skewed(toy(lr=0.1, momentum=None, probability=probability))
    before = search.policy.logits.detach().clone()
    y = index(4, 2)
    score = search.policy.log_prob(y)[0] - search.log_mass(np.random.default_rng(5))
    direction = gradient(score, search)
    search.learn(y, 0.7, np.random.default_rng(5))
    moved = search.policy.logits.detach() - before
    assert (moved.sign() == direction.sign()).all()
    assert moved.abs().numpy() == pytest.approx(np.full((2, 3), 0.1), rel=1e-3)  # Adam's first step


def test_without_an_active_limit_the_loss_is_plain_reinforce():
    free = Limits.parse(["params=1000"], TOY)
    updates = []
    for search in (skewed(toy(free, lr=0.1)), skewed(toy(free, lr=0.1, correction=False))):
        assert search.feasible.inactive
        learn_from_oracle(search, oracle, 30, seed=3)
        assert search.rejected == 0
        updates.append(search.policy.logits.detach())
    assert torch.equal(*updates)
    full = exact_log_mass(search.policy, search.feasible.listed)
    assert float(full.detach()) == pytest.approx(0.0, abs=1e-12)  # and log P(V) would be 0, with no gradient
    assert gradient(full, search).abs().max() < 1e-12


def test_a_rejected_architecture_changes_nothing():
    search = toy(lr=0.1)
    with torch.no_grad():
        search.policy.logits[:, 2] = 50.0  # always 4-4
    before = search.state()
    rng = np.random.default_rng(0)
    assert [search.draw(rng) for _ in range(20)] == [None] * 20
    assert search.rejected == 20
    after = search.state()
    assert torch.equal(before["logits"], after["logits"])
    assert before["average"] == after["average"]
    assert not after["optimizer"]["state"]


def test_the_baseline_is_a_bias_corrected_average_that_includes_the_present():
    average = Average(0.9)
    values = [1.0, 5.0, 2.0, 8.0]
    for t, _ in enumerate(values):
        got = average.update(values[t])
        weights = [0.1 * 0.9 ** (t - k) for k in range(t + 1)]
        assert got == pytest.approx(np.dot(weights, values[: t + 1]) / sum(weights))


# --- the policy over any space -------------------------------------------------------------------------------------

CONDITIONAL = Space(
    [Decision("op", ["conv", "skip", "pool"]), Decision("k", [3, 5]), Decision("bias", [True, False])],
    {"k": [when(op=["conv"]), when(op=["pool"])], "bias": [when(op=["conv"], k=[5])]},
)


@pytest.mark.parametrize("space", [TOY, CONDITIONAL], ids=["toy", "conditional"])
def test_probabilities_sum_to_one_and_are_those_of_the_draws(space):
    policy = FactorisedPolicy(space)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(0))
    listed = policy.list_all()
    assert len(listed) == space.size == len({tuple(r) for r in listed.tolist()})
    p = policy.log_prob(listed).detach().exp().numpy()
    assert p.sum() == pytest.approx(1.0)
    drawn = Counter(map(tuple, policy.sample(20_000, np.random.default_rng(0)).tolist()))
    assert set(drawn) <= set(map(tuple, listed.tolist()))
    for row, probability in zip(map(tuple, listed.tolist()), p):
        assert drawn[row] / 20_000 == pytest.approx(probability, abs=4 * math.sqrt(probability / 20_000) + 1e-4)


def test_closed_decisions_get_no_gradient():
    policy = FactorisedPolicy(CONDITIONAL)
    log_p = policy.log_prob(np.array([[1, 2, 2]]))  # skip, the others closed
    g = torch.autograd.grad(log_p.sum(), policy.logits)[0]
    assert g[0].abs().max() > 0
    assert not g[1:].any()


def test_options_that_do_not_exist_are_never_drawn_and_never_learned():
    space = Space([Decision("a", [1, 2, 3]), Decision("b", ["x", "y"])])
    policy = FactorisedPolicy(space)
    with torch.no_grad():
        policy.logits[1, 2] = 100.0
    assert policy.sample(1000, np.random.default_rng(0))[:, 1].max() == 1
    g = torch.autograd.grad(policy.log_prob(np.array([[0, 0]])).sum(), policy.logits)[0]
    assert float(g[1, 2]) == 0.0


def test_any_test_of_feasibility_will_do_and_is_asked_once_for_each_architecture():
    asked = Counter()

    def feasible(arch):
        asked[tuple(arch.values())] += 1
        return arch["width0"] <= 3

    policy = FactorisedPolicy(TOY)
    test = FeasibleSet(policy, feasible)
    drawn = policy.sample(500, np.random.default_rng(0))
    assert (test.contains(drawn) == (drawn[:, 0] <= 1)).all()
    assert set(asked.values()) == {1}
    assert len(test.listed) == 6


def test_uniform_draws_of_the_warm_up_are_feasible_and_uniform():
    test = toy().feasible
    rng = Random(0)
    drawn = Counter(tuple(test.draw(rng)[0].tolist()) for _ in range(3000))
    assert {(i + 2, j + 2) for i, j in drawn} == set(FEASIBLE)
    assert max(drawn.values()) < 1.25 * min(drawn.values())


# --- the toy search ------------------------------------------------------------------------------------------------


def found(steps=600, seeds=range(5), within=True, **settings):
    out = Counter()
    for seed in seeds:
        search = toy(**settings)
        learn_from_oracle(search, oracle, steps, seed)
        arch = search.most_likely(np.random.default_rng(0), within=within)[0][0]
        out[f"{arch['width0']}-{arch['width1']}"] += 1
    return out


def test_rejection_finds_the_bottleneck_with_exact_and_with_sampled_probability():
    assert found(lr=0.05, seeds=range(3)) == {"4-2": 3}
    assert found(lr=0.05, probability="monte-carlo", samples=256, seeds=range(2)) == {"4-2": 2}


def test_the_absolute_reward_ends_beyond_the_limit_if_its_weight_is_small():
    ends = found(lr=0.05, reward="abs", beta=-0.25, within=False, seeds=range(2))
    assert set(ends) <= {"4-3", "4-4"}


def test_a_one_sided_penalty_finds_the_bottleneck_too():
    assert found(lr=0.05, reward="max", beta=-1.0, within=False, seeds=range(2))["4-2"] == 2


def test_without_a_baseline_only_the_corrected_gradient_leads_to_the_bottleneck():
    """The expected update of the first layer's logits at the uniform policy, summed over the feasible set."""
    search = toy()
    expected = {}
    for corrected in (True, False):
        expected[corrected] = torch.zeros(2, 3, dtype=torch.float64)
        for a, b in FEASIBLE:
            score = search.policy.log_prob(index(a, b))[0]
            if corrected:
                score = score - exact_log_mass(search.policy, search.feasible.listed)
            expected[corrected] += oracle({"width0": a, "width1": b}) / 6 * gradient(score, search)
    # Of four first units, few partners are feasible; the uncorrected update takes that for a lack of quality.
    assert expected[True][0].argmax() == 2
    assert expected[True][0, 2] > 0.02
    assert expected[False][0, 2] < -0.05
    assert expected[False][0].argmin() == 2


def test_the_qualities_seen_are_those_of_feasible_architectures_only():
    search = toy(lr=0.05)
    seen = learn_from_oracle(search, lambda arch: TOY.cost.params(arch), 200)
    assert max(seen) <= 25
    assert len(seen) + search.rejected == 200
    assert search.learned == len(seen)


def test_penalised_rewards_learn_from_every_architecture():
    search = toy(lr=0.05, reward="abs")
    assert len(learn_from_oracle(search, oracle, 50)) == 50
    for kind, expected in (("abs", 1.0 - 1.0 * (1 - 15 / 25)), ("max", 1.0)):
        search = toy(reward=kind, beta=-1.0)
        search.learn(index(2, 2), 1.0, np.random.default_rng(0))  # 15 parameters
        assert search.baseline.total / search.baseline.weight == pytest.approx(expected)
        search = toy(reward=kind, beta=-2.0)
        search.learn(index(4, 4), 1.0, np.random.default_rng(0))  # 37 parameters
        assert search.baseline.total / search.baseline.weight == pytest.approx(1.0 - 2.0 * 12 / 25)


def test_a_vanishing_probability_is_sampled_again_and_then_summed(monkeypatch):
    search = toy(probability="monte-carlo", samples=8)
    with torch.no_grad():
        search.policy.logits[:, 2] = 40.0
    asked = []
    real = search.policy.sample
    monkeypatch.setattr(search.policy, "sample", lambda n, rng: asked.append(n) or real(n, rng))
    log_mass = search.log_mass(np.random.default_rng(0))
    assert asked == [8, 16, 32, 64, 128]
    exact = exact_log_mass(search.policy, search.feasible.listed)
    assert float(log_mass.detach()) == pytest.approx(float(exact.detach()))
    search.feasible.listed = None  # a space too large to list: the update is left out, and counted
    before = search.policy.logits.detach().clone()
    search.learn(index(2, 2), 1.0, np.random.default_rng(0))
    assert torch.equal(search.policy.logits.detach(), before)
    assert search.skipped == 1


def test_a_controller_step_with_3072_samples_takes_less_than_five_milliseconds():
    space = mlp_space((64,), 10, widths=[2, 4, 8, 16, 32, 64], depth=3, activations=["relu"], norms=["none"])
    limits = Limits.parse(["params=3282"], space)
    policy = FactorisedPolicy(space)
    search = PolicySearch(policy, FeasibleSet(policy, limits.feasible), probability="monte-carlo", samples=3072)
    rng = np.random.default_rng(0)
    took = []
    for _ in range(40):
        started = time.perf_counter()
        search.learn(search.feasible.listed[:1], 0.5, rng)
        took.append(time.perf_counter() - started)
    assert min(took) < 5e-3  # about 0.9 ms


# --- with a supernet -----------------------------------------------------------------------------------------------


def tiny_data(n=200, task="classification"):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=g)
    y = (x[:, :1] * x[:, 1:]) if task == "regression" else (x[:, 0] * x[:, 1] > 0).long()
    half = Split(x[: n // 2], y[: n // 2]), Split(x[n // 2 :], y[n // 2 :])
    return Dataset("xor", *half, None, task, 1 if task == "regression" else 2)


SPACE = mlp_space((2,), 2, widths=[2, 3, 4], depth=2, activations=["relu"], norms=["none"])


def prepared(strategy, limit="params=28", space=SPACE, data=None, feasible=None, **context):
    limits = Limits.parse([limit] if limit else [], space)
    test = feasible or (limits.feasible if limit else None)
    strategy.setup(Problem(space, rng=Random(0), feasible=test, describe_limits=limits.describe))
    strategy.prepare(Context(data or tiny_data(), Recipe(), **context))
    return strategy


def test_the_masked_child_of_the_supernet_is_the_physically_small_network():
    strategy = prepared(TabNAS(steps=30))
    x = torch.randn(20, 2)
    for arch in SPACE.enumerate():
        small = strategy.supernet.extract(arch)
        assert sum(p.numel() for p in small.parameters()) == SPACE.cost.params(arch)
        with torch.no_grad():
            assert float((strategy.supernet.activate(arch)(x) - small(x)).abs().max()) < 1e-6


def test_the_most_likely_feasible_architecture_is_proposed_once():
    strategy = prepared(TabNAS(steps=120, controller_lr=0.05))
    trial = strategy.ask()
    search = strategy.search
    p = search.policy.log_prob(search.feasible.listed).detach()
    assert trial.info["probability"] == pytest.approx(float(p.exp().max()))
    assert SPACE.cost.params(trial.arch) <= 28
    assert strategy.finished
    assert strategy.ask() is None
    strategy.tell(trial)
    assert trial.info["rejected"] + trial.info["learned"] == 90  # after a warm-up of a quarter
    assert 0 < trial.info["feasible_mass"] <= 1


def test_several_proposals_come_in_the_order_of_their_probability():
    strategy = prepared(TabNAS(steps=60, proposals=4))
    trials = [strategy.ask() for _ in range(4)]
    p = [t.info["probability"] for t in trials]
    assert p == sorted(p, reverse=True)
    assert len({tuple(t.arch.values()) for t in trials}) == 4


def test_the_warm_up_trains_only_weights_and_only_feasible_children(monkeypatch):
    seen = []
    strategy = TabNAS(steps=40, warmup=1.0)
    draw = FeasibleSet.draw
    monkeypatch.setattr(FeasibleSet, "draw", lambda self, rng: seen.append(draw(self, rng)) or seen[-1])
    prepared(strategy)
    assert len(seen) == 40
    assert all(strategy.search.feasible.contains(y)[0] for y in seen)
    assert strategy.search.learned == strategy.search.rejected == 0
    assert not strategy.search.policy.logits.detach().any()


def test_no_rejected_step_moves_a_weight(monkeypatch):
    monkeypatch.setattr(PolicySearch, "draw", lambda self, rng: None)  # everything is rejected
    strategy = prepared(TabNAS(steps=20, warmup=0.0))
    fresh = SPACE.supernet().state_dict()
    assert all(torch.equal(v, fresh[k]) for k, v in strategy.supernet.state_dict().items())


def test_an_interrupted_search_goes_on_to_the_same_result(tmp_path, monkeypatch):
    whole = prepared(TabNAS(steps=60), seed=3, checkpoints=Checkpoints(tmp_path / "a"))
    monkeypatch.setattr("archipel.search.oneshot.tabnas.SAVE_EVERY_SECONDS", 0.0)
    calls = []
    step = TabNAS._step

    def interrupted(self, n, *args):
        calls.append(n)
        if len(calls) == 35:
            raise KeyboardInterrupt
        step(self, n, *args)

    monkeypatch.setattr(TabNAS, "_step", interrupted)
    store = Checkpoints(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        prepared(TabNAS(steps=60), seed=3, checkpoints=store)
    monkeypatch.setattr(TabNAS, "_step", step)
    resumed = prepared(TabNAS(steps=60), seed=3, checkpoints=store)
    assert torch.equal(whole.search.policy.logits, resumed.search.policy.logits)
    ours, theirs = whole.supernet.state_dict(), resumed.supernet.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert whole.ask().arch == resumed.ask().arch
    assert whole.search.rejected == resumed.search.rejected
    again = prepared(TabNAS(steps=60), seed=3, checkpoints=store)  # done: nothing is trained again
    assert torch.equal(again.search.policy.logits, whole.search.policy.logits)
    with pytest.raises(RunError, match="belongs to other settings"):
        prepared(TabNAS(steps=60, lr=0.5), seed=3, checkpoints=store)


def test_seeds_reproduce_and_differ():
    first, again, other = (prepared(TabNAS(steps=40), seed=s).search.policy.logits.detach() for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_time_limit_ends_the_training_early_with_a_proposal():
    started = time.monotonic()
    strategy = prepared(TabNAS(steps=10_000_000), deadline=started + 0.5)
    assert time.monotonic() - started < 5
    assert SPACE.cost.params(strategy.ask().arch) <= 28


def test_a_budget_of_epochs_replaces_the_number_of_steps():
    strategy = prepared(TabNAS(steps=5, batch_size=10, warmup=0.0), epochs=3)
    assert strategy.search.learned + strategy.search.rejected == 30


def test_shared_scores_are_accuracies_of_children():
    strategy = prepared(TabNAS(steps=20))
    archs = list(SPACE.enumerate())[:3]
    scores = strategy.shared_scores(archs)
    data = tiny_data()
    assert scores == [evaluate(strategy.supernet.extract(a), data.val, "classification")["accuracy"] for a in archs]
    assert TabNAS().shared_scores(archs) is None


def test_random_feasible_architectures_are_the_baseline():
    strategy = prepared(TabNAS(steps=10, policy="random", proposals=30))
    trials = [strategy.ask() for _ in range(30)]
    assert all(SPACE.cost.params(t.arch) <= 28 for t in trials)
    assert len({tuple(t.arch.values()) for t in trials}) > 3
    assert strategy.search.learned == 0


@pytest.mark.parametrize("reward", ["abs", "max"])
def test_proposals_keep_the_limit_also_where_a_penalty_prefers_to_break_it(reward):
    strategy = prepared(TabNAS(steps=30, reward=reward, beta=-1e-9, controller_lr=0.05, proposals=3))
    with torch.no_grad():
        strategy.search.policy.logits[:, 2] = 20.0
    strategy._fill_queue(0)
    assert strategy.favourite == {"width0": 4, "width1": 4}
    trial = strategy.ask()
    assert not trial.info["favourite_feasible"]
    assert SPACE.cost.params(trial.arch) <= 28


def test_regression_conditional_spaces_and_batch_norm_are_searched_as_well():
    space = mlp_space((2,), 1, widths=[2, 4], depth=(1, 3), activations=["relu", "tanh"], norms=["none", "batch"])
    strategy = prepared(TabNAS(steps=60, batch_size=32), "params=40", space, tiny_data(task="regression"))
    assert space.cost.params(strategy.ask().arch) <= 40
    strategy.supernet.activate({**space.sample(Random(0)), "norm": "batch"})
    norms = [m for m in strategy.supernet.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    before = [m.running_mean.clone() for m in norms]
    assert -1.0 <= quality(strategy.supernet, tiny_data(task="regression").val, "regression") <= 1.0
    assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before))


def test_spaces_too_large_to_list_are_sampled(monkeypatch):
    monkeypatch.setattr("archipel.search.oneshot.feasible_policy.LISTED", 5)
    strategy = prepared(TabNAS(steps=40, samples=64, proposals=2))
    assert strategy.search.feasible.listed is None
    assert not strategy.search.exact
    assert SPACE.cost.params(strategy.ask().arch) <= 28
    with pytest.raises(UsageError, match=r"cannot be summed exactly over mlp: it has 9 architectures"):
        prepared(TabNAS(steps=40, probability="exact"))


def noisy_digits():
    raw = load_digits()
    g = torch.Generator().manual_seed(0)
    x = torch.tensor(raw.data, dtype=torch.float32) / 16
    x = x + 0.3 * torch.randn(x.shape, generator=g)
    y = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(x), generator=g)
    train_, val, test = (Split(x[i], y[i]) for i in (order[:800], order[800:1200], order[1200:]))
    return Dataset("noisy digits", train_, val, None, "classification", 10), test


def test_on_noisy_digits_the_result_is_feasible_and_far_better_than_a_random_feasible_network():
    data, test = noisy_digits()
    space = mlp_space((64,), 10, widths=[2, 4, 8, 16, 32, 64], depth=3, activations=["relu"], norms=["none"])
    largest = space.cost.params({"width0": 64, "width1": 64, "width2": 64})
    assert largest == 13_130
    limit = f"params={largest // 4}"
    limits = Limits.parse([limit], space)

    def alone(arch):
        net = space.build(arch)
        train(net, data.train, "classification", Recipe(epochs=12, batch_size=64), seed=0)
        return evaluate(net, test, "classification")["accuracy"]

    strategy = prepared(TabNAS(steps=400, controller_lr=0.05, batch_size=64, lr=1e-2), limit, space, data)
    arch = strategy.ask().arch
    assert limits.feasible(arch)
    rng = Random(0)
    drawn = [a for a in (space.sample(rng) for _ in range(20)) if limits.feasible(a)][:5]
    assert alone(arch) >= np.mean([alone(a) for a in drawn]) + 0.20


# --- bad input -----------------------------------------------------------------------------------------------------


def test_an_empty_feasible_set_is_an_error_that_names_the_smallest():
    smallest = (
        r"None of the 9 architectures of mlp is within params <= 17\. The smallest, .*'width0': 2.* has params 18"
    )
    with pytest.raises(InfeasibleError, match=smallest):
        prepared(TabNAS(steps=10), "params=17")
    with pytest.raises(InfeasibleError, match="None of the 9 architectures"):
        prepared(TabNAS(steps=10), None, feasible=lambda arch: False)


def test_an_empty_feasible_set_that_is_not_listed_is_found_out_too(monkeypatch):
    monkeypatch.setattr("archipel.search.oneshot.feasible_policy.LISTED", 5)
    with pytest.raises(InfeasibleError, match="The smallest possible has 18"):
        prepared(TabNAS(steps=10), "params=17")


def test_a_limit_that_does_nothing_is_a_warning():
    with pytest.warns(InactiveLimit, match=r"keeps params <= 1,000: the limit does nothing"):
        prepared(TabNAS(steps=5), "params=1000")
    with warnings.catch_warnings():
        warnings.simplefilter("error", InactiveLimit)
        prepared(TabNAS(steps=5), None)  # none was asked for
        prepared(TabNAS(steps=5), "params=28")


def test_categories_and_holes_in_a_table_are_refused():
    data = tiny_data()
    words = Dataset("words", Split(data.train.x.long(), data.train.y), data.val, None, "classification", 2)
    with pytest.raises(DataError, match=r"words: the training inputs are torch\.int64.*Encode categories"):
        prepared(TabNAS(steps=5), data=words)
    holes = data.val.x.clone()
    holes[3, 1] = math.nan
    holey = Dataset("holes", data.train, Split(holes, data.val.y), None, "classification", 2)
    with pytest.raises(DataError, match="validation inputs are empty or hold NaN"):
        prepared(TabNAS(steps=5), data=holey)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": "relative"}, r"reward 'relative' is unknown\. .*abs, max, rejection"),
        ({"probability": "mc"}, "probability 'mc' is unknown"),
        ({"policy": "greedy"}, "policy 'greedy' is unknown"),
        ({"steps": 0}, "steps must be a positive integer"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer"),
        ({"proposals": True}, "proposals must be a positive integer"),
        ({"samples": 0}, "samples must be a positive integer"),
        ({"warmup": 1.1}, "warmup is a share"),
        ({"beta": 0.5}, "beta must be negative"),
        ({"controller_lr": 0.0}, "controller's learning rate must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"momentum": 1.0}, "momentum must be in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        TabNAS(**settings)


def test_asking_before_preparing_says_what_is_missing():
    strategy = TabNAS()
    strategy.setup(Problem(SPACE))
    assert not strategy.finished
    with pytest.raises(UsageError, match=r"call prepare\(context\) before ask"):
        strategy.ask()


def test_a_penalty_needs_limits_that_can_be_exceeded_by_degrees():
    with pytest.raises(UsageError, match="A penalised reward needs limits on costs"):
        prepared(TabNAS(steps=5, reward="abs"), None, feasible=lambda arch: arch["width0"] < 4)


def test_ranges_of_numbers_and_spaces_without_a_supernet_are_refused():
    with pytest.raises(SpaceError, match="'lr' is a range of numbers"):
        FactorisedPolicy(Space([Decision("a", [1, 2]), Real("lr", 0.1, 1.0)]))
    strategy = TabNAS(steps=5)
    strategy.setup(Problem(Space([Decision("a", [1, 2])])))
    with pytest.raises(SpaceError, match="has no supernet"):
        strategy.prepare(Context(tiny_data(), Recipe()))
