"""L²NAS: the quantile critic, the state, the queries, and the learner on tables and supernets."""

from __future__ import annotations

import copy
import itertools
from random import Random

import pytest
import torch

from archipel.core.decision import Decision, Real
from archipel.core.errors import InfeasibleError, SpaceError, UsageError
from archipel.core.space import Space, when
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.catalogue import make_strategy
from archipel.search.differentiable import DifferentiableSearch, Schedule
from archipel.search.differentiable.actor_critic import ActorCritic, Proposal
from archipel.search.differentiable.actor_critic_settings import Settings, check_loss
from archipel.search.differentiable.gm_nas import gm_nas
from archipel.search.differentiable.l2nas import BestEvaluated, ContinuousActions, CriticAscent, l2nas
from archipel.search.differentiable.l2nas_trials import L2NASQueries
from archipel.search.differentiable.sampling import path_score
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.nb201_codec import NB201Codes

torch.set_num_threads(1)

SMALL = Settings(k=3, hidden=16, batch=8, updates=2, start=4)


def space(E: int = 3, K: int = 3) -> Space:
    return Space([Decision(f"e{i}", list(range(K))) for i in range(E)])


def learner(settings: Settings = SMALL, explore: int = 20, seed: int = 0, of: Space | None = None) -> ActorCritic:
    return ActorCritic(of or space(), settings, explore, seed)


def told(agent: ActorCritic, arch, reward: float) -> None:
    action = torch.zeros(agent.D)
    action[list(agent.hot(arch))] = 1.0
    agent.observe(Proposal(agent.state(), action, arch, "random"), reward)


# --- the quantile --------------------------------------------------------------------------------------------------


def test_golden_numbers_of_the_check_loss():
    assert float(check_loss(torch.tensor(1.0), 0.9)) == pytest.approx(0.9)
    assert float(check_loss(torch.tensor(-1.0), 0.9)) == pytest.approx(0.1)
    r = torch.arange(1.0, 11.0)
    losses = {q: float(check_loss(r - q, 0.9).mean()) for q in (9.0, 9.5, 10.0, 5.5)}
    assert losses[9.0] == pytest.approx(0.45)
    assert losses[10.0] == pytest.approx(0.45)
    assert losses[5.5] == pytest.approx(1.25)


def test_the_gradient_of_the_check_loss_has_the_sign_of_tau_minus_the_indicator():
    u = torch.tensor([2.0, -3.0], requires_grad=True)
    check_loss(u, 0.9).sum().backward()
    assert u.grad.tolist() == pytest.approx([0.9, -0.1])


@pytest.mark.parametrize(("tau", "low", "high"), [(0.9, 9.0, 10.0), (0.5, 5.0, 6.0), (None, 5.45, 5.55)])
def test_a_constant_critic_ends_at_the_quantile_of_its_rewards(tau, low, high):
    agent = learner(Settings(tau=tau, k=3))
    q = torch.tensor([0.0], requires_grad=True)
    agent.critic = lambda sa: q.expand(len(sa), 1)
    adam = torch.optim.SGD([q], 1.0)
    empty = torch.zeros(10, agent.D)
    for step in range(250):
        adam.param_groups[0]["lr"] = 1.0 / (1 + step / 20)
        adam.zero_grad()
        agent.critic_loss(empty, empty, torch.arange(1.0, 11.0)).backward()
        adam.step()
    assert low - 0.05 <= q.item() <= high + 0.05


def test_the_targets_are_the_standardised_rewards_and_nothing_else():
    agent = learner(Settings(k=3, start=100))
    for i, reward in enumerate([0.1, 0.5, 0.9]):
        told(agent, {"e0": i, "e1": 0, "e2": 0}, reward)
    expected = torch.tensor([-1.0, 0.0, 1.0]) * 1.5**0.5
    torch.testing.assert_close(agent.targets(), expected)
    assert agent.rewards == [0.1, 0.5, 0.9]  # stored as they are
    for p in agent.critic.parameters():
        p.data += 10.0  # whatever the critic says of other states
    agent.states_nD = torch.rand(3, agent.D)
    torch.testing.assert_close(agent.targets(), expected)
    sharp = learner(Settings(k=3, start=100, sharpen=2.0))
    sharp.rewards = agent.rewards
    torch.testing.assert_close(sharp.targets(), torch.exp(2.0 * expected))
    assert (sharp.targets().argsort() == expected.argsort()).all()


def test_each_network_learns_from_its_own_loss_only():
    agent = learner()
    for i in range(3):
        told(agent, {"e0": i, "e1": 0, "e2": 0}, float(i))
    s, a = agent.states_nD, agent.actions_nD
    before = {n: copy.deepcopy(m.state_dict()) for n, m in (("actor", agent.actor), ("critic", agent.critic))}

    def changed(name):
        now = getattr(agent, name).state_dict()
        return any(not torch.equal(t, before[name][n]) for n, t in now.items())

    agent._step(agent.actor_adam, agent.actor_loss(s))
    assert changed("actor")
    assert not changed("critic")
    before["actor"] = copy.deepcopy(agent.actor.state_dict())
    agent._step(agent.critic_adam, agent.critic_loss(s, a, agent.targets()))
    assert changed("critic")
    assert not changed("actor")


def test_the_actor_climbs_the_critic():
    agent = learner(Settings(k=3, actor_lr=1e-2))
    s = torch.zeros(4, agent.D)
    before = float(agent.actor_loss(s).detach())
    for _ in range(50):
        agent._step(agent.actor_adam, agent.actor_loss(s))
    assert float(agent.actor_loss(s).detach()) < before


# --- states and actions --------------------------------------------------------------------------------------------


def test_the_state_is_the_mean_of_the_best_distinct_architectures_and_zero_before_there_are_enough():
    agent = learner()
    archs = [{"e0": i, "e1": j, "e2": 0} for i, j in itertools.product(range(3), range(2))]
    told(agent, archs[0], 0.1)
    told(agent, archs[0], 0.1)
    told(agent, archs[1], 0.2)
    assert agent.state().tolist() == [0.0] * 9
    told(agent, archs[2], 0.3)
    expected = torch.zeros(9)
    for a in archs[:3]:
        expected[list(agent.hot(a))] += 1 / 3
    torch.testing.assert_close(agent.state(), expected)
    told(agent, archs[3], 0.0)  # not among the best
    torch.testing.assert_close(agent.state(), expected)
    told(agent, archs[4], 1.0)
    assert not torch.equal(agent.state(), expected)


def test_the_state_does_not_depend_on_the_order_of_the_history():
    archs = [{"e0": i, "e1": j, "e2": k} for i, j, k in itertools.product(range(3), repeat=3)]
    history = [(a, float((7 * i) % 5)) for i, a in enumerate(archs)] + [(archs[0], 3.0)]
    states = []
    for order in range(3):
        shuffled = history[:]
        Random(order).shuffle(shuffled)
        agent = learner(Settings(k=4, start=1000))
        for arch, reward in shuffled:
            told(agent, arch, reward)
        states.append(agent.state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_actions_stay_in_the_unit_cube_and_start_random():
    agent = learner(Settings(k=3, noise=0.9, start=1000), explore=10)
    by = []
    for _ in range(40):
        p = agent.propose()
        assert float(p.action.min()) >= 0
        assert float(p.action.max()) <= 1
        by.append(p.by)
        agent.observe(p, 0.0)
    assert set(by[:1]) == {"random"}
    assert by[10:].count("actor") > 20
    assert agent.epsilon == pytest.approx(0.05)


def test_epsilon_falls_linearly_over_the_first_half():
    search = L2NASQueries(SMALL, queries=40)
    search.setup(Problem(space()))
    epsilons = []
    for _ in range(30):
        trial = search.ask()
        epsilons.append(trial.info["epsilon"])
        trial.metrics = {"accuracy": 0.5}
        search.tell(trial)
    assert epsilons[0] == 1.0
    assert epsilons[10] == pytest.approx(1 - 0.95 / 2)
    assert epsilons[20:] == pytest.approx([0.05] * 10)


def test_noise_that_keeps_the_order_changes_no_architecture():
    agent = learner()
    torch.manual_seed(0)
    for _ in range(20):
        action = torch.rand(agent.D)
        monotone = 0.2 + 0.5 * action**3
        assert agent.decode(action) == agent.decode(monotone)
    assert agent.decode(torch.tensor([0.1, 0.3, 0.2, 0.9, 0.1, 0.1, 0.0, 0.0, 1.0])) == {"e0": 1, "e1": 0, "e2": 2}


def test_closed_decisions_are_left_out_of_architectures_and_states():
    conditional = Space([Decision("op", ["a", "b"]), Decision("k", [3, 5])], {"k": [when(op=["a"])]})
    agent = learner(of=conditional)
    assert agent.decode(torch.tensor([1.0, 0.0, 0.0, 1.0])) == {"op": "a", "k": 5}
    assert agent.decode(torch.tensor([0.0, 1.0, 0.0, 1.0])) == {"op": "b"}
    assert agent.hot({"op": "b"}) == (1,)


def test_golden_numbers_of_the_benchmark_space():
    agent = learner(of=NB201Codes())
    assert len(agent.decisions) == 6
    assert agent.D == 30
    assert NB201Codes().size == 15625


# --- queries -------------------------------------------------------------------------------------------------------


def run(search: L2NASQueries, queries: int, evaluate, over: Space, seed: int = 0, trials: int | None = None):
    search.setup(Problem(over, rng=Random(seed), trials=trials))
    for _ in range(queries):
        trial = search.ask()
        trial.metrics = {"accuracy": evaluate(trial.arch)}
        search.tell(trial)
    return search


def test_queries_are_calls_of_the_evaluator_and_repeats_are_counted():
    calls = []

    def evaluate(arch):
        calls.append(tuple(arch.values()))
        return sum(arch.values()) / 6

    search = run(L2NASQueries(SMALL), 60, evaluate, space(), trials=60)
    report = search.learner.report()
    assert report["queries"] == len(calls) == 60
    assert report["repeats"] == 60 - len(set(calls))
    assert report["best by all"] == max(sum(c) / 6 for c in calls)
    assert report["best by all"] == max(report["best by actor"], report["best by random"])
    assert space().validate(report["actor"])


def test_it_learns_a_table_that_random_search_does_not_exhaust():
    target = {"e01": "conv3x3", "e02": "skip", "e12": "conv1x1", "e03": "none", "e13": "avgpool3x3", "e23": "conv3x3"}

    def evaluate(arch):
        return sum(arch[n] == op for n, op in target.items()) / 6

    fast = Settings(k=8, hidden=32, batch=32, updates=4, critic_lr=3e-3, actor_lr=1e-3)
    found, random = [], []
    for seed in range(2):
        search = run(L2NASQueries(fast), 120, evaluate, NB201Codes(), seed, trials=120)
        found.append(search.learner.report()["best by actor"])
        rng = Random(seed)
        random.append(max(evaluate(NB201Codes().sample(rng)) for _ in range(120)))
    assert sum(found) > sum(random)


def test_failures_count_as_queries_and_teach_nothing():
    search = L2NASQueries(SMALL, queries=20)
    search.setup(Problem(space()))
    for metrics, failure in (({}, "timeout"), ({"accuracy": float("nan")}, None), ({"accuracy": 0.5}, None)):
        trial = search.ask()
        trial.metrics, trial.failure = metrics, failure
        search.tell(trial)
    assert (search.failed, search.learner.queries, len(search.learner.rewards)) == (2, 3, 1)
    with pytest.raises(UsageError, match=r"gave nan; a reward must be a finite number"):
        search.learner.observe(search.learner.propose(), float("nan"))


def test_several_trials_may_be_pending_and_a_replay_gives_the_same():
    def go():
        search = L2NASQueries(SMALL, queries=40)
        search.setup(Problem(space(), rng=Random(3)))
        archs = []
        for _ in range(10):
            pending = [search.ask() for _ in range(3)]
            for trial in reversed(pending):
                trial.metrics = {"accuracy": sum(trial.arch.values()) / 6}
                search.tell(trial)
            archs += [t.arch for t in pending]
        return archs

    assert go() == go()


def test_limits_are_kept_and_impossible_ones_end_in_an_error():
    search = L2NASQueries(SMALL, queries=60)
    search.setup(Problem(space(), feasible=lambda a: a["e0"] == 1))
    for _ in range(40):
        trial = search.ask()
        assert trial.arch["e0"] == 1
        trial.metrics = {"accuracy": trial.arch["e1"] / 2}
        search.tell(trial)
    search.setup(Problem(space(), feasible=lambda a: False, describe_limits=lambda: "nothing fits"))
    with pytest.raises(InfeasibleError, match=r"400 proposals .* nothing fits"):
        search.ask()


def test_a_warm_learner_keeps_its_networks_and_forgets_its_history():
    first = run(L2NASQueries(SMALL), 30, lambda a: a["e0"] / 2, space(), trials=30)
    warm = L2NASQueries(SMALL, queries=20, explore=5, warm=first.learner)
    warm.setup(Problem(space(), rng=Random(1)))
    for ours, theirs in zip(warm.learner.actor.parameters(), first.learner.actor.parameters()):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    assert (warm.learner.queries, warm.learner.explore, warm.learner.rewards) == (0, 5, [])
    before = copy.deepcopy(first.learner.actor.state_dict())
    for _ in range(10):
        trial = warm.ask()
        trial.metrics = {"accuracy": 0.5 + trial.arch["e1"] / 4}
        warm.tell(trial)
    assert all(torch.equal(t, before[n]) for n, t in first.learner.actor.state_dict().items())
    assert any(not torch.equal(t, before[n]) for n, t in warm.learner.actor.state_dict().items())


def test_a_saved_learner_goes_on_as_if_nothing_had_happened():
    one = run(L2NASQueries(SMALL), 20, lambda a: a["e0"] / 2, space(), trials=40).learner
    other = learner(one.settings, seed=5)
    other.load_state_dict(one.state_dict())
    for _ in range(5):
        a, b = one.propose(), other.propose()
        assert a.arch == b.arch
        one.observe(a, float(a.arch["e0"]))
        other.observe(b, float(b.arch["e0"]))
    assert one.report() == other.report()


# --- supernets -----------------------------------------------------------------------------------------------------


QUICK = Schedule(epochs=3, warmup=1, batch_size=8, lr=0.1)


def images(n: int = 32, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    data = Dataset("bars", images(), images(seed=1), None, "classification", 2)
    return Context(**{"dataset": data, "recipe": Recipe(epochs=1), **kw})


def micro() -> MicroNB201:
    return MicroNB201((1, 8, 8), 2, C=2, cells=1)


def prepared(over=None, ctx=None, **settings) -> DifferentiableSearch:
    search = l2nas(**{"schedule": QUICK, "updates": 1, **settings})
    assert isinstance(search, DifferentiableSearch)
    search.setup(Problem(over or micro()))
    search.prepare(ctx or context())
    return search


@pytest.mark.parametrize("over", [micro(), DartsSpace((1, 8, 8), 2, C=2, layers=3, nodes=2)], ids=["micro", "darts"])
def test_a_supernet_is_evaluated_once_a_step_after_the_warm_up(over):
    search = prepared(over)
    agent = search.state.mix.learner
    assert agent.queries == 2 * search.state.steps_per_epoch
    assert agent.settings.k == 1
    trial = search.ask()
    assert over.validate(trial.arch) == trial.arch
    assert all(max(w) == 1.0 for w in trial.info["weights"].values())  # the mixture is the best so far
    assert search.log[-1]["l2nas queries"] == agent.queries
    assert search.log[-1]["l2nas actor"] == agent.report()["actor"]
    candidates = agent.top(10)
    assert trial.arch in candidates
    assert path_score(search.state, trial.arch) == max(path_score(search.state, a) for a in candidates)


def test_evaluations_are_accuracies_of_the_path_and_leave_no_trace(monkeypatch):
    search = l2nas(schedule=QUICK)
    search.setup(Problem(micro()))
    state = search.start(context())
    state.supernet.train()
    state.move_to(1, 0)
    x, y = images().x[:8], images().y[:8]
    monkeypatch.setattr(type(state), "weight_step", lambda self, batch, mixture=None: 0.0)
    before = copy.deepcopy(state.supernet.state_dict())
    CriticAscent().update(state, (x, y), (x, y))
    agent = state.mix.learner
    state.supernet.activate(agent.archs[0])
    with torch.no_grad():
        expected = float((state.supernet(x).argmax(1) == y).double().mean())
    assert agent.rewards == [expected]
    assert state.supernet.training
    norms = {n for n in before if "running" in n or "num_batches" in n}
    assert all(torch.equal(t, before[n]) for n, t in state.supernet.state_dict().items() if n not in norms)


def test_weights_learn_on_uniform_paths_or_on_those_of_the_actions(monkeypatch):
    for paths in ("uniform", "actions"):
        search = l2nas(schedule=QUICK, paths=paths)
        search.setup(Problem(micro()))
        state = search.start(context())
        state.move_to(1, 0)
        stepped = []
        monkeypatch.setattr(type(state), "weight_step", lambda self, batch, m=None, log=stepped: log.append(m) or 0.0)
        same = 0
        for _ in range(8):
            CriticAscent(paths).update(state, (images().x, images().y), (images().x, images().y))
            one_hot = state.parameters.one_hot(state.mix.learner.archs[-1])
            same += all(torch.equal(one_hot[n], stepped[-1][n]) for n in one_hot)
        assert (same == 8) == (paths == "actions")


def test_an_interrupted_search_ends_the_same(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction >= 0.6:
            raise Killed

    whole = prepared()
    with pytest.raises(Killed):
        prepared(ctx=context(checkpoints=Checkpoints(tmp_path), progress=kill))
    resumed = prepared(ctx=context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.log == whole.log
    assert resumed.ask().arch == whole.ask().arch
    assert resumed.state.mix.learner.report() == whole.state.mix.learner.report()


def test_searches_with_other_seeds_have_other_actors():
    first, second = (prepared(ctx=context(seed=s)).state.mix.learner for s in (0, 1))
    assert not torch.equal(first.actions_nD[0], second.actions_nD[0])


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settings(tau=0.0), "quantile tau lies between 0 and 1"),
        (lambda: Settings(tau=1.0), "quantile tau lies between"),
        (lambda: l2nas(tau=1.5), "quantile tau lies between"),
        (lambda: Settings(k=0), "k must be a positive integer"),
        (lambda: l2nas(k=0), "k must be a positive integer"),
        (lambda: Settings(noise=2.0), "noise must be at least"),
        (lambda: Settings(sharpen=-1.0), "sharpen must be at least"),
        (lambda: l2nas("tables"), "supernet or trials"),
        (lambda: l2nas("trials", schedule=QUICK), "no supernet for schedule"),
        (lambda: l2nas(queries=5), "follows from the schedule"),
        (lambda: CriticAscent("best"), "uniform or actions"),
        (lambda: BestEvaluated(0), "candidates must be a positive integer"),
        (lambda: gm_nas(arch_gradient=CriticAscent()), "its supernet cannot be split"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_state_of_more_architectures_than_queries_is_refused():
    with pytest.raises(UsageError, match="k=64 best architectures, but there are only 20"):
        l2nas("trials", k=64).setup(Problem(space(), trials=20))
    with pytest.raises(UsageError, match="k=64 best architectures, but there are only 4"):
        prepared(k=64)


@pytest.mark.parametrize("over", [Space([]), Space([Real("lr", 0.1, 1.0)])], ids=["empty", "real"])
def test_a_space_without_options_to_score_is_refused(over):
    with pytest.raises(SpaceError, match=r"has no decision|which is"):
        learner(of=over)


def test_parts_that_need_the_actor_say_so():
    for part in ({"arch_gradient": CriticAscent()}, {"select": BestEvaluated()}):
        search = DifferentiableSearch(schedule=Schedule(epochs=1, batch_size=16), **part)
        search.setup(Problem(micro()))
        with pytest.raises(UsageError, match=r"needs mix=ContinuousActions\(\), not Softmax"):
            search.prepare(context())
    search = DifferentiableSearch(schedule=Schedule(epochs=1, batch_size=16), mix=ContinuousActions())
    search.setup(Problem(micro()))
    with pytest.raises(UsageError, match=r"needs arch_gradient=CriticAscent\(\)"):
        search.prepare(context())
    with pytest.raises(UsageError, match="'e01' cannot be fixed"):
        prepared(fixed={"e01": "skip"})


def test_it_is_made_by_name_for_supernets_and_for_trials():
    assert isinstance(make_strategy("l2nas", {"tau": 0.8}), DifferentiableSearch)
    assert isinstance(make_strategy("l2nas", {"evaluation": "trials", "k": 8}), L2NASQueries)
