"""MANAS: agents by exponential weights and by least squares, on games worked by hand and on supernets."""

from __future__ import annotations

import itertools
import math
import warnings
from functools import partial

import pytest
import torch

from archipel.core.errors import SpaceError, UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.catalogue import make_strategy
from archipel.search.differentiable import DifferentiableSearch, Schedule
from archipel.search.differentiable.bandits import (
    Agents,
    Exp3,
    GaussianSqueeze,
    LeastSquares,
    play,
    regret_bound,
    simple_regret_rate,
    zipf,
)
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.manas import EPOCHS, Bandits, SampledPolicies, constant_loss, manas
from archipel.search.differentiable.pc_darts import pc_darts
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace, cell_names
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)

QUICK = Schedule(epochs=2, batch_size=8, lr=0.1)


def images(n: int = 32, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    data = Dataset("bars", images(), images(seed=1), None, "classification", 2)
    return Context(**{"dataset": data, "recipe": Recipe(epochs=1), **kw})


def micro(cells: int = 1) -> MicroNB201:
    return MicroNB201((1, 8, 8), 2, C=2, cells=cells, tie="cell")


def prepared(space=None, ctx=None, **settings) -> DifferentiableSearch:
    search = manas(**{"schedule": QUICK, "samples": 60, **settings})
    search.setup(Problem(space or micro()))
    search.prepare(ctx or context())
    return search


def started(space=None, gradient=None):
    gradient = gradient or Bandits()
    search = DifferentiableSearch(arch_gradient=gradient, schedule=QUICK)
    search.setup(Problem(space or micro()))
    state = search.start(context())
    state.supernet.train()
    gradient.started(state)
    return state, gradient


def as_batch(start: int = 0):
    data = images()
    return data.x[start : start + 8], data.y[start : start + 8]


# --- EXP3 ----------------------------------------------------------------------------------------------------------


def test_the_importance_weighted_loss_is_unbiased_by_enumeration():
    agents = Exp3([3, 3], horizon=10, eta=0.3)
    agents.B_NK = torch.tensor([[0.0, 1.0, 4.0], [2.0, 0.0, 1.0]], dtype=torch.float64)
    before, pi = agents.B_NK.clone(), agents.policies()

    def loss(a, b):
        return (1 + a + 2 * b * b) / 11

    expected = torch.zeros(2, 3, dtype=torch.float64)
    for a, b in itertools.product(range(3), repeat=2):
        told = Exp3([3, 3], horizon=10, eta=0.3)
        told.B_NK = before.clone()
        told.tell(torch.tensor([a, b]), loss(a, b))
        gained = told.B_NK - before
        # What is subtracted to keep B small is the same for all options of an agent; take it back by one not played.
        for i, played in enumerate((a, b)):
            gained[i] -= gained[i][(played + 1) % 3].clone()
        expected += pi[0, a] * pi[1, b] * gained
    for k in range(3):
        assert float(expected[0, k]) == pytest.approx(sum(float(pi[1, b]) * loss(k, b) for b in range(3)))
        assert float(expected[1, k]) == pytest.approx(sum(float(pi[0, a]) * loss(a, k) for a in range(3)))


def test_an_option_that_lost_becomes_less_probable_not_more():
    agents = Exp3([4], horizon=10)
    agents.tell(torch.tensor([2]), 1.0)
    p = agents.policies()[0]
    eta = math.sqrt(2 * math.log(4) / (10 * 4))
    expected = torch.tensor([1.0, 1.0, math.exp(-eta * 4), 1.0], dtype=torch.float64)  # loss / π = 4
    torch.testing.assert_close(p, expected / expected.sum())
    assert float(p[2]) < 0.25


def test_policies_are_probability_vectors_whatever_was_told():
    torch.manual_seed(0)
    for agents in (Exp3([2, 5, 3], 50, eta=5.0), LeastSquares([2, 5, 3], samples=20)):
        for _ in range(200):
            actions = agents.draw()
            assert (actions < agents.sizes).all()
            agents.tell(actions, float(torch.rand(())))
            p = agents.policies()
            assert float(p.min()) >= 0
            torch.testing.assert_close(p.sum(1), torch.ones(3, dtype=torch.float64))
            assert p[0, 2:].tolist() == [0, 0, 0]
            assert p[2, 3:].tolist() == [0, 0]


def test_a_constant_added_to_all_losses_changes_the_policies_of_exp3():
    torch.manual_seed(0)
    plain, raised = Exp3([3, 3], 100), Exp3([3, 3], 100)
    for _ in range(20):
        actions, loss = plain.draw(), 0.5 * float(torch.rand(()))
        plain.tell(actions, loss)
        raised.tell(actions, loss + 0.4)
    assert float((plain.policies() - raised.policies()).abs().max()) > 0.01


def test_agents_together_are_no_joint_bandit():
    agents = Exp3([3, 3], 10)
    agents.tell(torch.tensor([0, 1]), 1.0)
    p = agents.policies()
    assert p.shape == (2, 3)
    torch.testing.assert_close(p[0], p[1][[1, 0, 2]])
    assert float(p[0, 0]) < float(p[0, 1]) == float(p[0, 2])


def test_regret_of_one_agent_keeps_the_bound_on_average():
    torch.manual_seed(0)
    means, T, regrets = torch.tensor([0.4, 0.6, 0.6, 0.7]), 400, []
    for _ in range(5):
        agents, lost = Exp3([4], T), 0.0
        for _ in range(T):
            actions = agents.draw()
            loss = float(torch.rand(()) < means[actions[0]])
            lost += loss
            agents.tell(actions, loss)
        regrets.append(lost - 0.4 * T)
    assert sum(regrets) / 5 < regret_bound(1, 4, T)
    assert regret_bound(3, 4, T) == pytest.approx(3 * math.sqrt(2 * T * 4 * math.log(4)))
    assert simple_regret_rate(20, 10.0) == pytest.approx(math.exp(-2))


# --- least squares -------------------------------------------------------------------------------------------------


def test_golden_numbers_of_zipf():
    torch.testing.assert_close(zipf(4), torch.tensor([12.0, 6, 4, 3], dtype=torch.float64) / 25)
    assert 1 / float(zipf(8)[0]) == pytest.approx(761 / 280)
    assert float(zipf(8)[0]) == pytest.approx(0.367937, abs=1e-6)


def enumerated(beta, samples=None, constant=0.0):
    """An agents object that was told all joint choices of a linear game once."""
    sizes = [len(b) for b in beta]
    choices = list(itertools.product(*map(range, sizes)))
    agents = LeastSquares(sizes, samples=samples or len(choices))
    for choice in choices:
        agents.tell(torch.tensor(choice), constant + sum(b[a] for b, a in zip(beta, choice)))
    return agents


def test_least_squares_recovers_a_linear_loss_up_to_a_constant_for_each_agent():
    beta = [[0.3, -1.0, 2.0], [0.0, 0.5, 0.25], [4.0, 1.0, 3.0]]
    found = enumerated(beta).coefficients()
    truth = torch.tensor(beta, dtype=torch.float64)
    torch.testing.assert_close(found - found.mean(1, keepdim=True), truth - truth.mean(1, keepdim=True))
    ranks = truth.argsort(1).argsort(1)
    torch.testing.assert_close(enumerated(beta).policies(), zipf(3)[ranks])


def test_a_design_of_just_enough_rank_suffices():
    torch.manual_seed(3)
    N, K = 4, 3
    beta = torch.randn(N, K, dtype=torch.float64)
    rows: list[list[int]] = []
    while torch.linalg.matrix_rank(one_hots(rows, N, K)) < N * (K - 1) + 1 if rows else True:
        row = torch.randint(K, (N,)).tolist()
        if torch.linalg.matrix_rank(one_hots([*rows, row], N, K)) > len(rows):
            rows.append(row)
    assert len(rows) == N * (K - 1) + 1
    agents = LeastSquares([K] * N, samples=len(rows))
    for row in rows:
        agents.tell(torch.tensor(row), float(beta[torch.arange(N), torch.tensor(row)].sum()))
    found = agents.coefficients()
    torch.testing.assert_close(found - found.mean(1, keepdim=True), beta - beta.mean(1, keepdim=True))
    assert torch.equal(agents.policies().argsort(1, descending=True), beta.argsort(1))


def one_hots(rows, N, K):
    return torch.nn.functional.one_hot(torch.tensor(rows), K).double().view(len(rows), N * K)


def test_a_constant_added_to_all_losses_changes_no_rank_of_least_squares():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        plain, raised = (LeastSquares([4, 4, 4], samples=6) for _ in range(2))  # too few to identify all
    for _ in range(30):
        actions, loss = plain.draw(), float(torch.rand(()))
        plain.tell(actions, loss)
        raised.tell(actions, loss + 100.0)
        torch.testing.assert_close(plain.policies(), raised.policies())


def test_an_option_that_was_never_tried_counts_as_average():
    with pytest.warns(UserWarning, match=r"Each fit of 2 samples has 3 unknowns.*Take samples=3"):
        agents = LeastSquares([3], samples=2)
    agents.tell(torch.tensor([0]), 0.2)
    agents.tell(torch.tensor([1]), 0.6)
    torch.testing.assert_close(agents.coefficients(), torch.tensor([[-0.2, 0.2, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(agents.policies()[0], zipf(3)[[0, 2, 1]])


def test_fits_use_the_last_samples_or_keep_a_share_of_the_earlier_ones():
    for keep, expected in ((0.0, [0.5, -0.5]), (1.0, [-0.25, 0.25])):
        agents = LeastSquares([2], samples=2, keep=keep)
        for choice, loss in ((0, 0.0), (1, 2.0), (0, 1.0), (1, 0.0)):
            agents.tell(torch.tensor([choice]), loss)
        torch.testing.assert_close(agents.coefficients()[0], torch.tensor(expected, dtype=torch.float64))
    assert agents.policies()[0].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_the_fit_equals_that_of_all_rows_at_once():
    torch.manual_seed(1)
    agents, rows, losses = LeastSquares([3, 4], samples=40), [], []
    for _ in range(40):
        actions = agents.draw()
        rows.append([int(actions[0]), int(actions[1])])
        losses.append(float(torch.rand(())))
        agents.tell(actions, losses[-1])
    Z = torch.zeros(40, 8, dtype=torch.float64)
    for s, (a, b) in enumerate(rows):
        Z[s, a] = Z[s, 4 + b] = 1.0
    y = torch.tensor(losses, dtype=torch.float64)
    expected = torch.linalg.lstsq(Z, (y - y.mean())[:, None], driver="gelsd").solution
    torch.testing.assert_close(agents.coefficients().flatten(), expected.flatten())


# --- the squeeze game ----------------------------------------------------------------------------------------------


def test_golden_numbers_of_the_squeeze_game():
    game = GaussianSqueeze(10, 4, mu=10, sigma=5)
    assert game.optimum == pytest.approx(11.1237, abs=1e-4)
    assert game.value(game.optimum) == pytest.approx(10.5758, abs=1e-4)
    assert all(game.value(game.optimum) > game.value(game.optimum + d) for d in (-0.01, 0.01))
    assert game.loss(torch.tensor([1] * 9 + [2])) == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("make", [partial(Exp3, horizon=1500), partial(LeastSquares, samples=50)])
def test_agents_learn_the_squeeze_game_and_uniform_ones_do_not(make):
    torch.manual_seed(0)
    game = GaussianSqueeze()
    losses = play(make([4] * 10), game, 1500)
    random = play(Agents([4] * 10), game, 500)
    assert sum(losses[-150:]) / 150 < 0.6 * sum(random) / 500
    assert sum(losses[-150:]) / 150 < sum(losses[:150]) / 150


# --- on a supernet -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", ["exp3", "least-squares"])
def test_only_the_sampled_operations_learn_and_the_agents_see_that_very_network(credit, monkeypatch):
    state, gradient = started(gradient=Bandits(credit, samples=30))
    before = {n: p.clone() for n, p in state.weights.items()}
    seen = []
    monkeypatch.setattr(type(state), "output", _spy(type(state).output, seen))
    told = []
    monkeypatch.setattr(gradient.agents, "tell", lambda actions, loss: told.append(actions))
    gradient.update(state, as_batch(0), as_batch(8))
    (validated, val_x), (trained, train_x) = seen
    assert validated is trained
    assert torch.equal(val_x, as_batch(8)[0])
    assert torch.equal(train_x, as_batch(0)[0])
    assert [int(w.argmax()) for w in trained.values()] == told[0].tolist()
    for n, p in state.weights.items():
        if ".edges." in n:
            j, i = int(n.split("sums.")[1][0]), int(n.split("edges.")[1][0])
            if trained[f"cell0.e{i}{j + 1}"][int(n.split("blended.")[1][0])] == 0:
                assert torch.equal(p, before[n]), n
                assert p.grad is None
    assert any(not torch.equal(p, before[n]) for n, p in state.weights.items())


def _spy(output, seen):
    def spied(self, x, mixture, weights=None):
        seen.append((mixture, x))
        return output(self, x, mixture, weights)

    return spied


def test_a_path_keeps_a_fraction_of_the_activations_of_the_mixture():
    state, gradient = started(MicroNB201((1, 8, 8), 2, C=8, cells=2, tie="cell"))
    x, y = as_batch()
    mixed = saved_bytes(partial(state.val_loss, (x, y)), state.supernet)
    paths = []
    torch.manual_seed(0)
    for _ in range(10):
        mixture = gradient.draw(state)
        loss = partial(state.output, x, mixture)
        paths.append(saved_bytes(loss, state.supernet))
    assert sum(paths) / 10 < mixed / 3


def test_agents_start_uniform_and_their_policies_are_the_mixture_weights():
    state, gradient = started()
    for w in state.mixture_weights().values():
        assert w.tolist() == pytest.approx([0.2] * 5)
    torch.manual_seed(0)
    for _ in range(5):
        gradient.update(state, as_batch(0), as_batch(8))
    for w, p in zip(state.mixture_weights().values(), gradient.agents.policies()):
        torch.testing.assert_close(w.detach().double(), p, atol=1e-6, rtol=0)
    assert float(gradient.agents.policies().max()) > 0.2


def test_losses_are_scaled_to_the_unit_interval_by_the_loss_of_a_constant():
    state, gradient = started()
    assert constant_loss(state) == pytest.approx(math.log(2))
    path = gradient.draw(state)
    raw = Bandits("least-squares", samples=30)
    raw.started(state)
    loss = raw.observed(state, path, as_batch())
    assert gradient.observed(state, path, as_batch()) == pytest.approx(loss / (loss + math.log(2)))
    state.supernet.net.classifier.bias.data = torch.tensor([1e30, 0.0])
    assert 0 <= gradient.observed(state, path, as_batch()) <= 1
    errors = Bandits(loss="error")
    errors.started(state)
    assert errors.observed(state, path, as_batch()) == 0.5


def test_looking_at_a_path_changes_no_statistics():
    state, gradient = started()
    before = {n: t.clone() for n, t in state.supernet.state_dict().items()}
    gradient.observed(state, gradient.draw(state), as_batch())
    assert all(torch.equal(t, before[n]) for n, t in state.supernet.state_dict().items())


@pytest.mark.parametrize("settings", [{}, {"credit": "least-squares"}, {"recommend": "sample", "proposals": 2}])
def test_a_search_proposes_architectures_of_the_space(settings):
    search = prepared(micro(2), **settings)
    trial = search.ask()
    assert len(trial.arch) == 12
    assert search.log[-1]["agents_loss"] > 0
    assert (search.ask() is None) == (settings.get("proposals", 1) == 1)


def test_the_most_probable_operations_are_recommended_and_samples_follow_the_policies():
    state, gradient = started()
    gradient.agents.B_NK = torch.full((6, 5), 200.0, dtype=torch.float64)
    gradient.agents.B_NK[:, 3] = 0.0
    gradient._publish(state)
    conv = dict.fromkeys(state.logits, "conv3x3")
    assert DifferentiableSearch().select(state) == conv
    assert SampledPolicies()(state) == conv
    gradient.agents.B_NK[:] = 0.0
    gradient._publish(state)
    assert len({str(a) for a in SampledPolicies(6).answers(state)}) > 1


def test_whole_networks_of_darts_cells_are_searched_without_shared_cells():
    space = DartsSpace((1, 8, 8), 2, C=2, layers=3, nodes=2, tie="cell")
    search = prepared(space, schedule=Schedule(epochs=1, batch_size=8))
    assert len(search.state.logits) == 3 * 5
    assert space.validate(search.ask().arch)


def test_golden_sizes_of_the_paper_s_spaces():
    space = DartsSpace((3, 32, 32), 10, C=4, layers=8, tie="cell")
    edges = [d for d in space.decisions if ".e" in d.name]
    assert {d.size + 1 for d in edges} == {8}  # seven operations and none
    assert len(edges) == 112  # 8 ** 112 choices
    assert len(set(cell_names(20, "cell"))) * len(edges) / 8 == 280


def test_an_interrupted_search_ends_the_same(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction >= 0.5:
            raise Killed

    for credit in ("exp3", "least-squares"):
        settings = {"credit": credit, "samples": 3, "keep": 0.5}
        whole = prepared(**settings)
        folder = tmp_path / credit
        folder.mkdir()
        with pytest.raises(Killed):
            prepared(ctx=context(checkpoints=Checkpoints(folder), progress=kill), **settings)
        resumed = prepared(ctx=context(checkpoints=Checkpoints(folder)), **settings)
        assert resumed.log == whole.log
        assert resumed.ask().info == whole.ask().info


def test_agents_rest_while_the_weights_warm_up():
    search = prepared(schedule=Schedule(epochs=2, warmup=1, batch_size=8))
    assert "agents_loss" not in search.log[0]
    assert search.log[0]["entropy"] == pytest.approx(1.0)
    assert search.log[1]["entropy"] < 1.0


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [-0.1, 1.1, float("nan")])
def test_exp3_refuses_losses_outside_the_unit_interval(loss):
    with pytest.raises(UsageError, match=r"losses between 0 and 1, got .* Scale them"):
        Exp3([2], 10).tell(torch.tensor([0]), loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exp3([3, 1], 10), "at least two options"),
        (lambda: Exp3([], 10), "at least two options"),
        (lambda: Exp3([3], 10, eta=0.0), "eta must be positive, not 0.0"),
        (lambda: Exp3([3], 10, eta=-1.0), "eta must be positive"),
        (lambda: Exp3([3], 0), "at least one round"),
        (lambda: LeastSquares([3], samples=0), "positive number of samples"),
        (lambda: LeastSquares([3], keep=1.5), "between 0 and 1"),
        (lambda: LeastSquares([3]).tell(torch.tensor([0]), float("inf")), "finite losses"),
        (lambda: manas(credit="exp4"), "Did you mean: exp3"),
        (lambda: manas(loss="losses"), "Agents cannot see a loss"),
        (lambda: manas(eta=0.0), "eta must be positive"),
        (lambda: manas(recommend="best"), "'argmax' or 'sample'"),
        (lambda: manas(proposals=2), "1 with recommend='argmax'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_nodes_that_weigh_their_inputs_and_errors_of_regressions_are_refused():
    search = pc_darts(K=1, schedule=QUICK, arch_gradient=Bandits())
    search.setup(Problem(micro()))
    with pytest.raises(SpaceError, match=r"node 'cell0\.n2' weighs its inputs"):
        search.prepare(context())
    x = images().x
    y = x.mean((1, 2, 3))[:, None]
    data = Dataset("means", Split(x, y), Split(x, y), None, "regression", 1)
    space = MicroNB201((1, 8, 8), 1, C=2, cells=1)
    with pytest.raises(UsageError, match="no share of wrong predictions"):
        prepared(space, context(dataset=data), loss="error")
    search = prepared(space, context(dataset=data), schedule=Schedule(epochs=1, batch_size=8))
    assert search.ask().arch
    assert search.selection is not None


def test_it_is_made_by_name_and_has_the_paper_s_schedule():
    search = make_strategy("manas", {"credit": "least-squares", "samples": 100})
    assert search.arch_gradient.samples == 100
    assert search.schedule.epochs == EPOCHS[20] == 50
