"""FBNetV5: unbiased gradients for all tasks from every sample, and masks found in one run."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from archipel.core.errors import DataError, UsageError
from archipel.data.multitask import MISSING, MultiTaskDataset, Task, TaskSplit
from archipel.nets.masked_trunk import MaskedNet, MaskedTrunk, WithMask
from archipel.search.differentiable.fbnetv5 import FBNetV5
from archipel.search.differentiable.mask_policies import MaskPolicies, effective_samples

torch.set_num_threads(1)

TASKS = (Task("a", "classification", 2), Task("b", "classification", 2))


def every(bits):
    return torch.tensor(list(itertools.product([False, True], repeat=bits)))


def policies_at(pi, **settings):
    policies = MaskPolicies(*torch.tensor(pi).shape, **settings)
    policies.set_probabilities(torch.tensor(pi, dtype=torch.float64))
    return policies


def expected_estimate(policies, rewards_MT, baseline_T):
    """The mean of the estimate over masks and samplers, by enumeration."""
    masks, T = every(policies.logits_TB.shape[1]), len(policies.logits_TB)
    total = torch.zeros_like(policies.logits_TB)
    for s in range(T):
        p = policies.log_prob(masks)[:, s].exp()
        for i, mask in enumerate(masks):
            advantage = (rewards_MT[i] - baseline_T)[None]
            total += p[i] / T * policies.gradient(mask[None], torch.tensor([s]), advantage)
    return total


def exact_gradient(policies, rewards_MT):
    logits = policies.logits_TB.clone().requires_grad_()
    masks = every(logits.shape[1]).double()
    log_p = masks @ nn.functional.logsigmoid(logits).T + (1 - masks) @ nn.functional.logsigmoid(-logits).T
    return torch.autograd.grad((log_p.exp() * rewards_MT).sum(), logits)[0]


# --- the estimator -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["balance", "simple"])
@pytest.mark.parametrize(("T", "bits"), [(2, 2), (3, 4)])
def test_both_weightings_are_unbiased_for_every_task(weighting, T, bits):
    g = torch.Generator().manual_seed(bits)
    pi = (0.1 + 0.8 * torch.rand(T, bits, generator=g)).tolist()
    policies = policies_at(pi, weighting=weighting)
    rewards = torch.rand(2**bits, T, generator=g, dtype=torch.float64)
    for baseline in (torch.zeros(T), torch.tensor([0.7] * T)):
        torch.testing.assert_close(
            expected_estimate(policies, rewards, baseline.double()), exact_gradient(policies, rewards)
        )


def test_two_bits_by_hand():
    policies = policies_at([[0.7, 0.2], [0.4, 0.9]])
    rewards = torch.tensor([[0.1], [0.5], [0.3], [0.9]], dtype=torch.float64).expand(-1, 2)
    pi = policies.probabilities()
    gradient = expected_estimate(policies, rewards, torch.zeros(2).double()) / (pi * (1 - pi))  # for π, not its logit
    torch.testing.assert_close(gradient, torch.tensor([[0.24, 0.54], [0.38, 0.48]], dtype=torch.float64))


def test_the_balance_heuristic_is_bounded_by_the_number_of_tasks_and_simple_weights_are_not():
    mask = torch.tensor([[True, False]])
    simple = policies_at([[0.7, 0.2], [0.4, 0.9]], weighting="simple")
    assert abs(float(simple.weights(mask, torch.tensor([1]))[0, 0]) - 14.0) < 1e-9
    pi = (0.01 + 0.98 * torch.rand(5, 6, generator=torch.Generator().manual_seed(0))).tolist()
    masks = every(6)
    weights = policies_at(pi).weights(masks, torch.zeros(len(masks), dtype=torch.long))
    assert float(weights.max()) <= 5 + 1e-9
    assert (
        float(policies_at(pi, weighting="simple").weights(masks, torch.zeros(len(masks), dtype=torch.long)).max()) > 5
    )


@pytest.mark.parametrize("weighting", ["balance", "simple"])
def test_equal_distributions_make_every_weight_one_and_the_update_reinforce(weighting):
    policies = policies_at([[0.3, 0.8]] * 3, weighting=weighting)
    masks, samplers = policies.sample(50, torch.Generator().manual_seed(0))
    torch.testing.assert_close(policies.weights(masks, samplers), torch.ones(50, 3, dtype=torch.float64))
    advantage = torch.randn(50, 3, dtype=torch.float64)
    plain = (advantage[:, :, None] * (masks.double()[:, None] - policies.probabilities()[None])).mean(0)
    torch.testing.assert_close(policies.gradient(masks, samplers, advantage), plain)


def test_probabilities_sum_to_one_and_a_constant_reward_moves_nothing():
    policies = policies_at([[0.3, 0.8, 0.5], [0.9, 0.1, 0.4]])
    torch.testing.assert_close(policies.log_prob(every(3)).exp().sum(0), torch.ones(2, dtype=torch.float64))
    constant = torch.full((8, 2), 0.4, dtype=torch.float64)
    zero = expected_estimate(policies, constant, torch.zeros(2).double())
    torch.testing.assert_close(zero, torch.zeros_like(zero))


def test_samples_come_from_the_distribution_of_their_task():
    policies = policies_at([[0.9, 0.1], [0.2, 0.6]])
    masks, samplers = policies.sample(20_000, torch.Generator().manual_seed(0))
    for t in range(2):
        mean = masks[samplers == t].double().mean(0)
        assert bool(((mean - policies.probabilities()[t]).abs() < 0.02).all())
    assert abs(float(samplers.double().mean()) - 0.5) < 0.02


def test_all_tasks_learn_from_the_same_samples():
    g, policies = torch.Generator().manual_seed(0), MaskPolicies(3, 8, 0.3)
    targets = torch.rand(3, 8, generator=g) < 0.5
    for step in range(60):
        masks, samplers = policies.sample(20, g)
        rewards = -(masks[:, None] != targets[None]).double().sum(-1)
        figures = policies.step(masks, samplers, rewards, step / 60)
    assert torch.equal(policies.modes(), targets)
    assert 1 <= figures["ess"] <= 20
    assert bool((policies.probabilities() >= 0.01 - 1e-12).all())


def test_the_entropy_bonus_keeps_distributions_open_and_anneals():
    reward = torch.zeros(4, 1, dtype=torch.float64)
    masks, samplers = every(2), torch.zeros(4, dtype=torch.long)
    open_, annealed = (policies_at([[0.9, 0.2]], entropy=1.0) for _ in range(2))
    open_.step(masks, samplers, reward, progress=0.0)
    annealed.step(masks, samplers, reward, progress=1.0)
    assert float((open_.probabilities() - 0.5).abs().max()) < 0.4
    torch.testing.assert_close(annealed.probabilities(), torch.tensor([[0.9, 0.2]], dtype=torch.float64))
    assert effective_samples(torch.ones(7, 2)).tolist() == [7.0, 7.0]


# --- the network ---------------------------------------------------------------------------------------------------


def net(C=4, units=2):
    torch.manual_seed(0)
    return MaskedNet(MaskedTrunk(1, C, units), {t.name: nn.Linear(2 * C, 2) for t in TASKS})


def test_blocks_without_a_bit_are_not_computed_and_the_bare_trunk_is_a_network():
    model, x, seen = net().eval(), torch.randn(3, 1, 8, 8), []
    for i, block in enumerate(model.trunk.blocks):
        block.register_forward_hook(lambda m, a, o, i=i: seen.append(i))
    model(x, torch.tensor([1, 0, 0, 1]))
    assert seen == [0, 3]
    assert {n: tuple(y.shape) for n, y in model(x, torch.zeros(4)).items()} == {"a": (3, 2), "b": (3, 2)}
    assert torch.equal(WithMask(model, torch.tensor([1, 0, 0, 1]))(x)["a"], model(x, torch.tensor([1, 0, 0, 1]))["a"])
    with pytest.raises(UsageError, match="for each of 4 blocks"):
        model(x, torch.ones(3))
    with pytest.raises(UsageError, match="0 or 1"):
        model(x, torch.tensor([0.5, 0, 0, 1]))


# --- the search ----------------------------------------------------------------------------------------------------


def dataset(n=32):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    split = TaskSplit(x, {"a": y, "b": 1 - y})
    return MultiTaskDataset("toy", TASKS, split, split, split)


def quick(**settings):
    return FBNetV5(**({"epochs": 3, "warmup": 1, "samples": 4, "batch_size": 8} | settings))


COSTS = torch.tensor([4.0, 1.0, 4.0, 1.0])


def test_evaluations_do_not_depend_on_the_number_of_tasks():
    one_more = MultiTaskDataset(
        "toy3", (*TASKS, Task("c", "classification", 2)),
        *(TaskSplit(dataset().train.x, {**dataset().train.y, "c": dataset().train.y["a"]}) for _ in range(3)),
    )  # fmt: skip
    counts = []
    for data in (dataset(), one_more):
        made = lambda data=data: MaskedNet(  # noqa: E731
            MaskedTrunk(1, 4, 2), {t.name: nn.Linear(8, 2) for t in data.tasks}
        )
        counts.append(quick().search(made, COSTS, data).evaluations)
    assert counts == [8, 8]


def test_a_search_gives_a_mask_to_every_task_and_its_seed_decides_it():
    first, second = (quick(candidates=2).search(net, COSTS, dataset(), seed=1) for _ in range(2))
    assert set(first.masks) == {"a", "b"}
    assert all(torch.equal(first.masks[t], second.masks[t]) for t in first.masks)
    assert first.log == second.log
    assert "ess" not in first.log[0]
    assert "ess" in first.log[1]


def test_what_is_above_the_target_is_punished_in_proportion():
    method = quick(target=0.5, penalty=2.0)
    method.search(net, COSTS, dataset())
    free = quick(target=0.5, penalty=0.0)
    free.__dict__ |= {k: v for k, v in method.__dict__.items() if k != "penalty"}
    data, mask = dataset().val, torch.ones(4, dtype=torch.bool)
    gap = free.reward(mask, data) - method.reward(mask, data)
    torch.testing.assert_close(gap, torch.full((2,), 2.0, dtype=torch.float64))
    cheap = torch.tensor([False, True, False, True])
    torch.testing.assert_close(free.reward(cheap, data), method.reward(cheap, data))
    assert method.cost(cheap) == 0.2


def test_a_heavy_penalty_leaves_cheap_masks():
    method = quick(epochs=14, samples=20, penalty=50.0, target=0.2, policy_lr=0.5)
    found = method.search(net, COSTS, dataset())
    assert all(method.cost(m) <= 0.5 for m in found.masks.values())


def test_impossible_input_is_refused():
    for settings in ({"epochs": 1}, {"samples": 0}, {"target": 0.0}, {"penalty": -1.0}, {"weighting": "none"}):
        with pytest.raises(UsageError):
            quick(**settings)
    with pytest.raises(UsageError, match="3 costs for 4 blocks"):
        quick().search(net, COSTS[:3], dataset())
    y = {**dataset().train.y, "b": torch.full((32,), MISSING)}
    blind = MultiTaskDataset("toy", TASKS, TaskSplit(dataset().train.x, y), dataset().val, None)
    with pytest.raises(DataError, match="labelled for the task 'b'"):
        quick().search(net, COSTS, blind)
    policies = MaskPolicies(1, 2)
    with pytest.raises(UsageError, match="sample 0 for task 0 is nan"):
        policies.step(every(2)[:1], torch.tensor([0]), torch.tensor([[math.nan]]))
    with pytest.warns(UserWarning, match="moved into"):
        policies.set_probabilities(torch.tensor([[0.0, 1.0]]))
    assert bool(torch.isfinite(policies.log_prob(every(2))).all())
    with pytest.raises(UsageError, match="in \\[0, 1\\]"):
        policies.set_probabilities(torch.tensor([[0.5, 1.5]]))
