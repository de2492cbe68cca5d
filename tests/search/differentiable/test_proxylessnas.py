"""ProxylessNAS: gate rule, pairs, memory, costs and errors, by hand and against autograd."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from archipel.core.errors import SpaceError, UsageError
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import Argmax, CrossEntropy, DifferentiableSearch, FirstOrder, Softmax
from archipel.search.differentiable.cost_loss import CostLoss
from archipel.search.differentiable.costs import ExpectedCost
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.gates import Gates, gate_rule, rescaled, sample_pair, within
from archipel.search.differentiable.mix import Mixture
from archipel.search.differentiable.proxylessnas import SCHEDULE, GateGradient, TwoCosines, proxylessnas
from archipel.search.differentiable.reinforce import BinaryGates, Reinforce
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.mbconv import digits_space
from archipel.spaces.micro_nb201 import MicroNB201

torch.set_num_threads(1)

LABELS = ("k1e1", "k1e3", "k3e1", "k3e3", "k5e1", "k5e3", "skip")
QUICK = TwoCosines(epochs=3, warmup=1, batch_size=8, alpha_lr=0.05, alpha_betas=(0.5, 0.999), alpha_decay=0.1)


def images(n: int = 24, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context() -> Context:
    return Context(Dataset("bars", images(), images(seed=1), None, "classification", 2), Recipe(epochs=1))


def small_space(layers: int = 2):
    return digits_space(layers, (1, 3, 5), (1, 3), C=4)


def state_of(space=None, **settings):
    search = proxylessnas(**{"schedule": QUICK, "every": 1} | settings)
    search.setup(Problem(space or small_space()))
    state = search.start(context())
    search.arch_gradient.started(state)
    state.supernet.train()
    return state


def gates_of(state, chosen: dict[str, int], involved=None) -> dict[str, Gates]:
    out = {}
    for name, active in chosen.items():
        size = len(state.logits[name])
        leaf = torch.eye(size)[active].requires_grad_()
        out[name] = Gates(involved or list(range(size)), active, leaf)
    return out


def pair_of() -> tuple[torch.Tensor, torch.Tensor]:
    data = images(8)
    return data.x, data.y


def randomise(state, seed: int = 0) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in state.logits.values():
        p.data = torch.randn(p.shape, generator=g)


# --- the rule ------------------------------------------------------------------------------------------------------


def test_golden_numbers_of_the_gate_rule():
    p = torch.softmax(torch.tensor([0.3, -0.2, 0.1]), 0)
    torch.testing.assert_close(p, torch.tensor([0.412327, 0.250089, 0.337585]), rtol=0, atol=2e-6)
    g = gate_rule(p, torch.tensor([1.0, -2.0, 0.5]))
    torch.testing.assert_close(g, torch.tensor([0.378952, -0.520420, 0.141468]), rtol=0, atol=2e-6)


def test_the_rule_is_the_derivative_of_expected_constant_gate_gradients():
    alpha = torch.randn(6, dtype=torch.float64, requires_grad=True)
    G = torch.randn(6, dtype=torch.float64)
    (torch.softmax(alpha, 0) * G).sum().backward()
    p = torch.softmax(alpha.detach(), 0)
    torch.testing.assert_close(gate_rule(p, G), alpha.grad)
    torch.testing.assert_close(gate_rule(p, G + 3.7), alpha.grad)  # so it does not matter on which side a shortcut is


def test_full_and_late_paths_give_the_same_gradients_and_outputs():
    outputs, gradients = [], []
    for paths in ("full", "full_v2"):
        state = state_of(paths=paths)
        randomise(state)
        gradient = GateGradient(paths)
        gates = gates_of(state, {"layer0": 3, "layer1": 5})
        gradients.append(gradient.gradient_for(state, gates, pair_of()))
        outputs.append(state.supernet(pair_of()[0]).detach())
    assert torch.equal(*outputs)
    assert set(gradients[0]) == {"layer0", "layer1"}
    for name, g in gradients[0].items():
        assert g.abs().max() > 1e-6
        assert abs(float(g.sum())) < 1e-6
        torch.testing.assert_close(g, gradients[1][name], rtol=0, atol=1e-5)


def test_gate_gradients_are_inner_products_of_option_outputs_with_the_gradient_of_the_output():
    state = state_of(small_space(1))
    x, y = pair_of()
    net = state.supernet.net
    chosen, gradient = 4, GateGradient("full")
    got = gradient.gradient_for(state, gates_of(state, {"layer0": chosen}), (x, y))["layer0"]
    features = net.before(net.stem(x))
    choice = net.layers[0]
    outputs = [option(features).detach() for option in choice.blended]
    middle = outputs[chosen].clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(net.classifier(net.head(net.after(middle)).mean((2, 3))), y)
    (dy,) = torch.autograd.grad(loss, middle)
    G = torch.stack([(dy * o).sum() for o in outputs])
    p = torch.softmax(state.logits["layer0"].detach(), 0)
    torch.testing.assert_close(got, gate_rule(p, G), rtol=1e-4, atol=1e-7)


def test_the_gradient_of_a_pair_is_zero_outside_it_and_follows_the_rule_within():
    state = state_of(small_space(1))
    randomise(state)
    two = GateGradient("two").gradient_for(state, gates_of(state, {"layer0": 2}, involved=[2, 4]), pair_of())["layer0"]
    assert two[[0, 1, 3, 5, 6]].abs().max() == 0
    assert float(two[2]) == pytest.approx(-float(two[4]), rel=1e-4)
    assert abs(float(two[2])) > 1e-6
    assert within(state.logits["layer0"], [2, 4]).sum().item() == pytest.approx(1)


def test_a_layer_sampled_as_skipped_does_not_learn():
    state = state_of()
    skip = 6
    for paths in ("full", "full_v2", "two"):
        gates = gates_of(state, {"layer0": skip, "layer1": 0}, involved=[0, skip])
        assert set(GateGradient(paths).gradient_for(state, gates, pair_of())) == {"layer1"}
        gates = gates_of(state, {"layer0": skip, "layer1": skip}, involved=[0, skip])
        assert GateGradient(paths).gradient_for(state, gates, pair_of()) == {}


def test_zero_operations_of_cells_work_alike():
    state = state_of(MicroNB201((1, 8, 8), 2, C=4, cells=1))
    names = list(state.logits)
    gates = gates_of(state, dict.fromkeys(names, 3))
    none = state.parameters.rows[names[0]].labels.index("none")
    gates[names[0]] = gates_of(state, {names[0]: none})[names[0]]
    found = [GateGradient(p).gradient_for(state, gates, pair_of()) for p in ("full", "full_v2")]
    assert names[0] not in found[0]
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-6)


# --- steps ---------------------------------------------------------------------------------------------------------


def test_a_step_on_a_pair_leaves_all_other_probabilities_alone_whatever_adam_does():
    state = state_of()  # Adam with first momentum and decay, which would move the others too
    randomise(state)
    gradient = GateGradient("two", every=1)
    state.move_to(1, 0)
    for step in range(4):
        before = {n: torch.softmax(p.detach(), 0) for n, p in state.logits.items()}
        torch.manual_seed(step)
        gradient.update(state, pair_of(), pair_of())
        for n, p in state.logits.items():
            change = (torch.softmax(p.detach(), 0) - before[n]).abs()
            assert int((change > 1e-6).sum()) in (0, 2)
    assert any((torch.softmax(p.detach(), 0) - before[n]).abs().max() > 1e-4 for n, p in state.logits.items())


def test_rescaling_keeps_the_joint_probability_of_the_pair():
    old = torch.randn(5, dtype=torch.float64)
    new = old + torch.randn(5, dtype=torch.float64)
    p, q = torch.softmax(old, 0), torch.softmax(rescaled(new, old, [1, 3]), 0)
    torch.testing.assert_close(q[[0, 2, 4]], p[[0, 2, 4]])
    torch.testing.assert_close(q[[1, 3]].sum(), p[[1, 3]].sum())
    torch.testing.assert_close(torch.log(q[1] / q[3]), new[1] - new[3])


def test_a_weight_step_leaves_options_that_were_not_sampled_bitwise_alone():
    state = state_of()
    layers = state.supernet.net.layers
    for _ in range(6):  # momentum and decay have buffers from earlier steps
        state.weight_step(pair_of())
    before = [[[p.clone() for p in o.parameters()] for o in c.blended] for c in layers]
    gates = {"layer0": torch.eye(7)[1], "layer1": torch.eye(7)[4]}
    state.weight_step(pair_of(), gates)
    for choice, sampled, old in zip(layers, (1, 4), before):
        for o, option in enumerate(choice.blended[:-1]):
            same = all(torch.equal(p, q) for p, q in zip(option.parameters(), old[o]))
            assert same == (o != sampled)


def test_architecture_steps_see_validation_data_and_leave_weights_and_statistics_alone():
    state = state_of(every=2)
    gradient, seen = GateGradient("two", every=2), []
    gradient.gradient_for = lambda state, gates, val: seen.append((state.moment.step, val)) or {}
    for epoch in (0, 1):
        for step in range(4):
            state.move_to(epoch, step)
            gradient.update(state, pair_of(), "validation")
    steps = state.steps_per_epoch
    assert seen == [(s, "validation") for s in range(steps, steps + 4) if s % 2]  # none in the warm-up
    before = {n: t.clone() for n, t in state.supernet.state_dict().items()}
    GateGradient("full_v2").gradient(state, pair_of(), pair_of())
    assert all(torch.equal(t, before[n]) for n, t in state.supernet.state_dict().items())
    assert all(p.requires_grad for p in state.weights.values())


def test_a_sample_is_one_hot_and_follows_the_probabilities():
    state = state_of()
    randomise(state)
    row, alpha = state.parameters.rows["layer0"], state.logits["layer0"].detach()
    torch.manual_seed(0)
    drawn = torch.stack([BinaryGates().coefficients(alpha, row, state.moment) for _ in range(2000)])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn.sum(1) == 1).all()
    p = torch.softmax(alpha, 0)
    assert (((drawn.mean(0) - p) / (p * (1 - p) / 2000).sqrt()).abs() < 4).all()


def test_a_weight_step_keeps_one_path_and_an_architecture_step_no_more_than_two():
    x, y = pair_of()
    state = state_of()
    state.supernet.decider = Mixture({})
    hot = {"layer0": torch.eye(7)[5], "layer1": torch.eye(7)[5]}
    one = saved_bytes(lambda: state.output(x, hot), state.supernet)
    alone = state.supernet.extract({"layer0": "k5e3", "layer1": "k5e3"}).train()
    assert one == pytest.approx(saved_bytes(lambda: alone(x), alone), rel=0.1)  # and the sum of one weighted path
    torch.manual_seed(0)
    mixed = saved_bytes(lambda: state.output(x, state.mixture_weights()), state.supernet)
    kept = {}
    for paths in ("two", "full", "full_v2"):
        gates = gates_of(state, {"layer0": 5, "layer1": 5}, [5, 3] if paths == "two" else None)
        kept[paths] = saved_bytes(partial(GateGradient(paths).gradient_for, state, gates, (x, y)), state.supernet)
    # Weights are frozen in an architecture step, so that even the open path keeps less than in a weight step.
    assert kept["full_v2"] <= kept["two"] < kept["full"] < mixed
    assert kept["two"] < 2 * one
    assert mixed > 3 * one


# --- costs ---------------------------------------------------------------------------------------------------------


def test_the_expected_cost_of_one_network_is_the_sum_of_its_entries_and_its_derivative_is_known():
    F = {"a": torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64), "b": torch.tensor([4.0, 0.5], dtype=torch.float64)}
    cost = ExpectedCost("ms", F, 3.0)
    assert float(cost({"a": torch.tensor([0.0, 1, 0]), "b": torch.tensor([0.0, 1])})) == 5.0 + 0.5 + 3.0
    alpha = {n: torch.randn(len(t), dtype=torch.float64, requires_grad=True) for n, t in F.items()}
    cost({n: torch.softmax(a, 0) for n, a in alpha.items()}).backward()
    for n, a in alpha.items():
        p = torch.softmax(a.detach(), 0)
        torch.testing.assert_close(a.grad, p * (F[n] - (p * F[n]).sum()))


@pytest.mark.parametrize("form", ["mul-log", "add-linear"])
def test_the_loss_with_its_cost_follows_the_formula(form):
    target = 5e4
    state = state_of(target=target, form=form)
    state.move_to(1, 0)
    E = state.objective.expected(state.mixture_weights()).detach()
    loss = torch.tensor(1.7)
    expected = {
        "mul-log": 1.7 * 0.2 * (math.log(float(E)) / math.log(target)) ** 0.3,
        "add-linear": 1.7 + 0.1 * (float(E) - target) / target,
    }[form]
    got = state.objective.total(loss, state.mixture_weights(), state.moment)
    assert got.item() == pytest.approx(expected)


def test_the_cost_takes_part_during_the_search_within_the_pair():
    data = pair_of()
    plain = state_of(small_space(1))
    gates = gates_of(plain, {"layer0": 5}, [1, 5])
    without = GateGradient("two").gradient_for(plain, gates, data)["layer0"]
    state = state_of(small_space(1), target=1e5, weight=10.0)
    state.move_to(1, 0)
    with_cost = GateGradient("two").gradient_for(state, gates_of(state, {"layer0": 5}, [1, 5]), data)["layer0"]
    F = state.objective.expected.table["layer0"][[1, 5]]
    p = torch.softmax(state.logits["layer0"].detach()[[1, 5]], 0)
    by_hand = 10.0 / 1e5 * p * (F - (p * F).sum())
    torch.testing.assert_close((with_cost - without)[[1, 5]].double(), by_hand, rtol=1e-3, atol=1e-6)
    assert by_hand[1] > 1e-3  # the dearer one is pushed down


def test_a_heavier_weight_ends_cheaper():
    ends = []
    for weight in (0.0, 30.0):
        schedule = TwoCosines(epochs=4, warmup=1, batch_size=6, alpha_lr=0.2, alpha_betas=(0.0, 0.999), alpha_decay=0.0)
        search = proxylessnas("two", target=2e4, weight=weight, schedule=schedule, every=1)
        search.setup(Problem(small_space()))
        search.prepare(context())
        state = search.state
        ends.append(state.objective.expected(state.mixture_weights()).item())
    assert ends[1] < 0.9 * ends[0]


def test_weights_are_trained_with_smoothed_labels_and_the_architecture_without():
    state = state_of()
    output, y = torch.randn(8, 2), torch.arange(8) % 2
    smoothed = torch.nn.functional.cross_entropy(output, y, label_smoothing=0.1)
    torch.testing.assert_close(state.objective.weight_loss(state, output, output, y), smoothed)
    plain = torch.nn.functional.cross_entropy(output, y)
    torch.testing.assert_close(state.objective.arch_loss(state, output, output, y), plain)


# --- reinforce -----------------------------------------------------------------------------------------------------


def test_the_score_function_gradient_is_that_of_the_expected_reward():
    state = state_of(small_space(1), paths="reinforce")
    randomise(state)
    R = torch.randn(7, generator=torch.Generator().manual_seed(1))
    gradient = Reinforce(archs=4000)
    gradient.baseline = 0.3
    gradient.reward = lambda state, gates, val: float(R[gates["layer0"].argmax()])
    torch.manual_seed(0)
    got = gradient.gradient(state, None, None)["layer0"]
    p = torch.softmax(state.logits["layer0"].detach(), 0)
    torch.testing.assert_close(got, -p * (R - (p * R).sum()), rtol=0, atol=0.03)


def test_the_reward_is_accuracy_times_a_power_of_target_over_cost():
    state = state_of(small_space(1), paths="reinforce", target=2e4)
    hot = {"layer0": torch.eye(7)[0]}
    x, y = pair_of()
    accuracy = float((state.output(x, hot).argmax(-1) == y).double().mean())
    cost = float(state.objective.expected(hot))
    assert Reinforce().reward(state, hot, (x, y)) == pytest.approx(accuracy * (2e4 / cost) ** 0.1)


def test_the_baseline_is_a_running_mean_that_is_saved():
    state = state_of(paths="reinforce")
    gradient = Reinforce(archs=2, decay=0.9)
    gradient.reward = lambda *args: 1.0
    gradient.gradient(state, None, None)
    gradient.reward = lambda *args: 0.0
    gradient.gradient(state, None, None)
    other = Reinforce()
    other.load_state_dict(gradient.state_dict())
    assert other.baseline == pytest.approx(0.9)


# --- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", ["two", "full", "full_v2", "reinforce"])
def test_a_search_ends_with_the_likeliest_options(paths):
    search = proxylessnas(paths, target=3e4, schedule=QUICK, every=1)
    search.setup(Problem(small_space()))
    search.prepare(context())
    arch = search.ask().arch
    alpha = search.log[-1]["alpha"]
    assert alpha != search.log[0]["alpha"]
    for name, row in search.state.parameters.rows.items():
        assert arch[name] == row.labels[max(range(7), key=alpha[name].__getitem__)]
    assert Argmax()(search.state) == arch


def test_the_schedule_is_that_of_the_reference():
    s = SCHEDULE
    assert (s.epochs, s.warmup, s.batch_size, s.lr, s.weight_decay) == (160, 40, 256, 0.025, 4e-5)
    assert (s.alpha_lr, s.alpha_betas, s.alpha_decay) == (1e-3, (0.0, 0.999), 0.0)
    assert [s.learning_rate(e) for e in (0, 20, 40, 100)] == pytest.approx([0.025, 0.0125, 0.025, 0.0125])
    assert s.weight_optimizer([torch.zeros(1, requires_grad=True)]).param_groups[0]["nesterov"]
    assert isinstance(s.over(8), TwoCosines)
    assert proxylessnas().arch_gradient.every == 5


# --- bad input -----------------------------------------------------------------------------------------------------


def test_a_table_without_an_entry_names_layer_and_option():
    table = {n: dict.fromkeys(LABELS, 1.5) for n in ("layer0", "layer1")}
    assert float(state_of(cost=table, target=2.0).objective.expected.range[1]) == 3.0
    del table["layer1"]["k5e1"]
    with pytest.raises(SpaceError, match=r"gives None for option 'k5e1' of 'layer1'"):
        state_of(cost=table, target=2.0)


def test_targets_whose_logarithm_is_not_positive_are_refused():
    for target in (1, 0.5):
        with pytest.raises(UsageError, match="mul-log divides by ln T, which is not positive for the target"):
            proxylessnas(target=target, form="mul-log")
    nothing = {n: dict.fromkeys(LABELS, 0.0) for n in ("layer0", "layer1")}
    with pytest.raises(SpaceError, match=r"mul-log needs costs above 1, but the cheapest network .* costs 0"):
        state_of(cost=nothing, target=2.0, form="mul-log")


def test_two_paths_need_two_candidates():
    with pytest.raises(SpaceError, match=r"Two paths are drawn .* only one"):
        sample_pair(torch.ones(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": "three"}, "paths='three' is unknown"),
        ({"target": -1.0}, "target must be positive"),
        ({"target": 2.0, "weight": -0.1}, "λ of the cost must not be negative"),
        ({"target": 2.0, "form": "add-log"}, "takes no target"),
        ({"target": 2.0, "form": "linear"}, "no form 'linear'. Did you mean: add-linear"),
        ({"every": 0}, "every must be a positive number"),
        ({"label_smoothing": 1.0}, "Label smoothing must be at least 0 and below 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        proxylessnas(**settings)
    with pytest.raises(UsageError, match="at least one architecture"):
        Reinforce(archs=0)


def test_combinations_that_cannot_work_say_why():
    with pytest.raises(UsageError, match=r"GateGradient is for searches that sample one path, .* mix is Softmax"):
        state_of(mix=Softmax())
    state = state_of()
    with pytest.raises(UsageError, match="A sampled gate has no derivative for the logits"):
        FirstOrder().gradient(state, pair_of(), pair_of())
    with pytest.raises(UsageError, match="form add-log has no target"):
        state_of(paths="reinforce", objective=CostLoss(form="add-log"))
    search = DifferentiableSearch(mix=BinaryGates(), fixed={}, objective=CrossEntropy())
    search.setup(Problem(DartsSpace((1, 8, 8), 2, C=4, layers=3, nodes=2)))
    search.mix.weigh_edges = True
    with pytest.raises(SpaceError, match="chooses among incoming edges"):
        search.start(context())
