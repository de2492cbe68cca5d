import time
from collections import Counter
from random import Random

import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn

from archipel.core.choice import Choice, Depth, Width
from archipel.core.decision import Decision
from archipel.core.errors import InfeasibleError, RunError, SpaceError, UsageError
from archipel.core.space import JointSpace, Space, when
from archipel.core.storage import Checkpoints
from archipel.cost.limits import Limits
from archipel.data.dataset import Dataset, Split
from archipel.search.oneshot.evolution import Evolution, Found, breed, evolve, mutated, random_search
from archipel.search.oneshot.factors import Factors
from archipel.search.oneshot.samplers import (
    all_paths,
    fair_paths,
    feasible_paths,
    make_sampler,
    option_paths,
    uniform_paths,
)
from archipel.search.oneshot.shared_evaluation import (
    OverlapWarning,
    SharedEvaluator,
    batch_statistics,
    calibration_inputs,
    overlap,
    warn_of_overlap,
)
from archipel.search.oneshot.spos import SPOS
from archipel.search.oneshot.supernet_training import configure_batch_norm, train_supernet
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe, recalibrate
from archipel.spaces.layers import ElasticBatchNorm1d, ElasticLinear
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.quantised import Precision, QuantisedLinear, bit_operations
from archipel.spaces.sharing import elastic_mlp_space
from archipel.spaces.shufflenet import shufflenet_space

# The training of the supernet that the paper describes, without the clipping that we add.
PLAIN = Factors(epochs=2, clip=0.0)


def blocks():
    """Three places with three options each, on digits."""

    def option(kind):
        if kind == "skip":
            return nn.Identity()
        layers = [nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU()]
        return nn.Sequential(*layers) if kind == "one" else nn.Sequential(*layers, nn.Linear(12, 12))

    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 12),
        *[Choice(f"op{i}", {k: option(k) for k in ("skip", "one", "two")}) for i in range(3)],
        nn.BatchNorm1d(12),
        nn.Linear(12, 10),
    )


def elastic():
    """Channel search: two hidden layers of decided width, with batch norm."""
    w, v = Width("w", [2, 4, 16]), Width("v", [2, 4, 16])
    return nn.Sequential(
        nn.Flatten(),
        ElasticLinear(64, w), ElasticBatchNorm1d(w), nn.ReLU(),
        ElasticLinear(w, v), ElasticBatchNorm1d(v), nn.ReLU(),
        ElasticLinear(v, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    raw = load_digits()
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(len(raw.target), generator=g)[:480]
    x = torch.tensor(raw.images, dtype=torch.float32)[order][:, None] / 16
    x = x + 0.25 * torch.randn(x.shape, generator=g)
    y = torch.tensor(raw.target)[order]
    return Dataset("digits", Split(x[:320], y[:320]), Split(x[320:], y[320:]), None, "classification", 10)


@pytest.fixture
def block_space():
    return ModuleSpace(blocks, torch.zeros(2, 1, 8, 8))


@pytest.fixture
def width_space():
    return ModuleSpace(elastic, torch.zeros(2, 1, 8, 8))


def state_of(net):
    return {n: t.clone() for n, t in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# --- sampling ------------------------------------------------------------------------------------------------------


def test_uniform_sampling_uses_every_option_of_every_block_equally_often(block_space):
    sampler, rng = uniform_paths(block_space), Random(0)
    draws = [sampler(rng)[0].arch for _ in range(10_000)]
    for d in block_space.decisions:
        counts = Counter(a[d.name] for a in draws)
        assert stats.chisquare([counts[o] for o in d.options]).pvalue > 1e-3
    pairs = Counter((a["op0"], a["op1"]) for a in draws)  # and independently
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-3
    assert len(pairs) == 9


def test_uniform_over_architectures_and_uniform_over_options_differ_where_decisions_are_conditional():
    space = Space([Decision("op", ["conv", "skip"]), Decision("k", [1, 3, 5])], {"k": [when(op=["conv"])]})
    rng = Random(0)
    by_arch = Counter(uniform_paths(space)(rng)[0].arch["op"] for _ in range(4000))
    by_option = Counter(option_paths(space)(rng)[0].arch["op"] for _ in range(4000))
    assert by_arch["conv"] / 4000 == pytest.approx(3 / 4, abs=0.03)
    assert by_option["conv"] / 4000 == pytest.approx(1 / 2, abs=0.03)


def test_constrained_sampling_is_uniform_among_legal_paths_and_names_impossible_limits():
    space = Space([Decision("a", [0, 1, 2, 3]), Decision("b", [0, 1, 2, 3])])
    sampler, rng = feasible_paths(space, lambda a: a["a"] + a["b"] <= 3), Random(0)
    counts = Counter(tuple(sampler(rng)[0].arch.values()) for _ in range(5000))
    assert len(counts) == 10
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    with pytest.raises(InfeasibleError, match=r"No legal architecture .* min is 7"):
        feasible_paths(space, lambda a: False, "sum <= -1, min is 7")(rng)


def test_strict_fairness_uses_every_option_of_every_block_exactly_once():
    space = Space([Decision(f"op{i}", ["a", "b", "c", "d"]) for i in range(5)])
    sampler, rng = fair_paths(space), Random(0)
    seen = set()
    for _ in range(20):
        paths = [d.arch for d in sampler(rng)]
        assert len(paths) == 4
        for i in range(5):
            assert sorted(p[f"op{i}"] for p in paths) == ["a", "b", "c", "d"]
        seen.add(tuple(paths[0].values()))
    assert len(seen) > 10  # permutations are drawn, not fixed
    uneven = fair_paths(Space([Decision("a", [1, 2]), Decision("b", [1, 2, 3])]))(rng)
    assert Counter(d.arch["a"] for d in uneven) == {1: 3, 2: 3}
    assert Counter(d.arch["b"] for d in uneven) == {1: 2, 2: 2, 3: 2}


def test_samplers_that_cannot_be_are_refused(block_space, width_space):
    conditional = Space([Decision("op", ["conv", "skip"]), Decision("k", [1, 3])], {"k": [when(op=["conv"])]})
    with pytest.raises(UsageError, match=r"always open, but in space \['k'\] depend"):
        fair_paths(conditional)
    with pytest.raises(UsageError, match="would take 210 backward passes"):
        fair_paths(Space([Decision("a", range(5)), Decision("b", range(6)), Decision("c", range(7))]))
    with pytest.raises(UsageError, match=r"'fair' is unknown. Did you mean: fairnas\?"):
        make_sampler("fair", block_space.supernet())
    with pytest.raises(UsageError, match="Only uniform sampling"):
        make_sampler("fairnas", block_space.supernet(), feasible=lambda a: True)
    with pytest.raises(UsageError, match="no paths to sum"):
        all_paths(width_space, width_space.supernet())


# --- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [blocks, elastic])
def test_every_step_changes_the_drawn_path_only_under_momentum_and_weight_decay(digits, make):
    space = ModuleSpace(make, torch.zeros(2, 1, 8, 8))
    supernet = space.supernet()
    archs, states = [], []

    def sampler(rng):
        paths = uniform_paths(space)(rng)
        archs.append(paths[0].arch)
        states.append({n: p.detach().clone() for n, p in supernet.named_parameters()})
        return paths

    factors = Factors(epochs=4, weight_decay=0.1, affine=True)
    train_supernet(supernet, digits.train, "classification", factors, sampler=sampler)
    states.append({n: p.detach().clone() for n, p in supernet.named_parameters()})
    assert len(archs) == 20
    for arch, before, after in zip(archs, states, states[1:]):
        live = supernet.activate(arch).live_slices()
        for n, p in after.items():
            rest = torch.ones_like(p, dtype=torch.bool)
            if n in live:
                rest[live[n]] = False
            assert torch.equal(p[rest], before[n][rest])
        assert any(not torch.equal(after[n], before[n]) for n in live)


def test_training_equals_a_plain_loop_over_single_paths_bitwise(digits, block_space):
    supernet, twin = block_space.supernet(seed=5), block_space.supernet(seed=5)
    for net in (supernet, twin):
        configure_batch_norm(net, "recalibrated", affine=False)
    train_supernet(supernet, digits.train, "classification", PLAIN, seed=3)

    # The same in ten lines: draw, forward, backward, SGD; parameters without gradient are skipped by the optimizer.
    optimizer = torch.optim.SGD(twin.parameters(), PLAIN.lr, momentum=0.9, weight_decay=4e-5)
    for epoch in range(2):
        rng = Random(f"paths of epoch {epoch} under seed 3")
        order = torch.randperm(320, generator=torch.Generator().manual_seed(3 * 100_003 + epoch))
        for step, index in enumerate(order.split(64)):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - (epoch + step / 5) / 2)
            twin.activate(block_space.sample(rng)).train()
            loss = nn.functional.cross_entropy(twin(digits.train.x[index]), digits.train.y[index], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    assert same(state_of(supernet), state_of(twin))


@pytest.mark.parametrize("in_memory", [True, False])
def test_training_that_was_killed_after_an_epoch_ends_in_the_same_weights(
    digits, width_space, tmp_path, monkeypatch, in_memory
):
    monkeypatch.setattr("archipel.search.oneshot.supernet_training.SAVE_EVERY_SECONDS", 0.0)
    factors = Factors(epochs=4)
    straight = width_space.supernet(seed=1)
    log = train_supernet(straight, digits.train, "classification", factors, seed=2)
    store = Checkpoints(None if in_memory else tmp_path)

    class Killed(Exception):
        pass

    def kill(fraction):
        if fraction >= 0.5:
            raise Killed

    with pytest.raises(Killed):
        train_supernet(width_space.supernet(seed=1), digits.train, "classification", factors, seed=2,
                       checkpoints=store, progress=kill)  # fmt: skip
    resumed = width_space.supernet(seed=9)  # whatever it was before
    again = train_supernet(resumed, digits.train, "classification", factors, seed=2,
                           checkpoints=store if in_memory else Checkpoints(tmp_path))  # fmt: skip
    assert same(state_of(straight), state_of(resumed))
    assert again == log
    assert log.steps == 4 * 5
    assert log.losses[-1] < log.losses[0]


def test_a_checkpoint_of_other_settings_is_not_continued(digits, width_space, tmp_path):
    store = Checkpoints(tmp_path)
    train_supernet(width_space.supernet(), digits.train, "classification", Factors(epochs=1), checkpoints=store)
    with pytest.raises(RunError, match=r"made with .*Use the settings of the interrupted run"):
        train_supernet(width_space.supernet(), digits.train, "classification", Factors(epochs=2), checkpoints=store)


def test_the_global_random_state_is_left_alone(digits, width_space):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_supernet(width_space.supernet(), digits.train, "classification", Factors(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_deadline_cuts_the_epochs_and_a_passed_one_ends_the_first(digits, width_space):
    def train_until(deadline):
        factors = Factors(epochs=100_000, batch_size=16)
        return train_supernet(width_space.supernet(), digits.train, "classification", factors, deadline=deadline)

    log = train_until(time.monotonic() + 0.3)
    assert 1 <= len(log.losses) == log.epochs < 100_000
    log = train_until(time.monotonic() - 1.0)
    assert log.steps == 1
    assert log.epochs == 1


def test_a_strictly_fair_step_sums_the_gradients_of_all_its_paths(digits, block_space):
    """Its gradient is K times that of the mean path, and it is one optimizer step."""
    supernet = block_space.supernet()
    factors = Factors(
        epochs=1, batch_size=320, momentum=0.0, weight_decay=0.0, clip=0.0, sampling="fairnas", affine=True
    )
    before = state_of(supernet)
    gradients: dict[str, list] = {}
    paths = fair_paths(block_space)(Random("paths of epoch 0 under seed 0"))
    order = torch.randperm(320, generator=torch.Generator().manual_seed(0))
    x, y = digits.train.x[order], digits.train.y[order]
    for path in paths:
        supernet.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(supernet.train().activate(path.arch)(x), y, label_smoothing=0.1).backward()
        for n, p in supernet.named_parameters():
            if p.grad is not None:
                gradients.setdefault(n, []).append(p.grad.clone())
    supernet.load_state_dict(before)
    log = train_supernet(supernet, digits.train, "classification", factors)
    assert (log.steps, log.paths) == (1, 3)
    for n, p in supernet.named_parameters():
        uses = 1 if n.split(".")[1] in "234" else 3  # places 2, 3 and 4 of the sequence are the choices
        assert len(gradients[n]) == uses
        torch.testing.assert_close(p, before[n] - 0.1 * sum(gradients[n]), rtol=1e-4, atol=1e-6)


def test_the_untreated_arm_trains_all_paths_at_once(digits, block_space):
    supernet = block_space.supernet()
    before = state_of(supernet)
    sampler = all_paths(block_space, supernet)
    log = train_supernet(supernet, digits.train, "classification", Factors(epochs=1, affine=True), sampler=sampler)
    assert log.paths == log.steps
    assert all(not torch.equal(p, before[n]) for n, p in supernet.named_parameters() if p.ndim > 1)


def test_training_that_cannot_be_says_what_to_do(digits, block_space):
    with pytest.raises(UsageError, match=r"loss became nan in epoch 0.* Use a smaller lr than 1e\+25"):
        train_supernet(block_space.supernet(), digits.train, "classification", Factors(lr=1e25, clip=0.0))
    with pytest.raises(UsageError, match="cannot be trained on 0 examples"):
        train_supernet(block_space.supernet(), digits.train.take(torch.tensor([], dtype=torch.long)), "classification")


# --- evaluation with inherited weights -----------------------------------------------------------------------------


def garbage(net, seed):
    g = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.copy_(10 * torch.randn(m.running_mean.shape, generator=g))
            m.running_var.copy_(100 * torch.rand(m.running_var.shape, generator=g))
            m.num_batches_tracked.fill_(seed)


@pytest.mark.parametrize("make", [blocks, elastic])
def test_recalibration_forgets_the_statistics_that_were_there(digits, make):
    space = ModuleSpace(make, torch.zeros(2, 1, 8, 8))
    supernet, arch = space.supernet(), space.sample(Random(0))
    supernet.activate(arch)
    statistics = []
    for seed in (1, 2):
        garbage(supernet, seed)
        recalibrate(supernet, digits.train.x[:200], 100)
        statistics.append(state_of(supernet.extract(arch)))
    assert same(*statistics)
    # And they are the cumulative average of the batches' own statistics, on the first norm by hand.
    norm = next(m for m in supernet.extract(arch).modules() if isinstance(m, nn.BatchNorm1d))
    first = supernet.extract(arch)[1](digits.train.x[:200].flatten(1))
    if make is elastic:
        halves = first.split(100)
        torch.testing.assert_close(norm.running_mean, torch.stack([h.mean(0) for h in halves]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([h.var(0) for h in halves]).mean(0))


@pytest.mark.parametrize("make", [blocks, elastic])
def test_the_supernet_computes_what_the_network_alone_with_its_weights_computes_after_recalibration(digits, make):
    space = ModuleSpace(make, torch.zeros(2, 1, 8, 8))
    supernet = space.supernet()
    train_supernet(supernet, digits.train, "classification", Factors(epochs=2))
    evaluator = SharedEvaluator(supernet, digits.val, "classification", "recalibrated", digits.train.x)
    rng = Random(0)
    for _ in range(4):
        arch = space.sample(rng)
        evaluator(arch)
        alone = supernet.extract(arch)
        garbage(alone, 3)
        recalibrate(alone, digits.train.x, 256)
        y, z = supernet.eval().activate(arch)(digits.val.x), alone.eval()(digits.val.x)
        assert float((y - z).detach().abs().max()) < 1e-6 * max(1.0, float(z.detach().abs().max()))
        assert evaluator(arch) == float((z.argmax(1) == digits.val.y).double().mean())


def test_scores_with_batch_statistics_ignore_stored_ones_and_leave_them(digits, width_space):
    supernet, arch = width_space.supernet(), {"w": 4, "v": 16}
    scores = []
    for seed in (1, 2):
        garbage(supernet, seed)
        before = state_of(supernet)
        scores.append(SharedEvaluator(supernet, digits.val, "classification", "batch")(arch))
        assert same(before, state_of(supernet))
    assert scores[0] == scores[1]
    with batch_statistics(supernet):
        assert all(m.running_mean is None for m in supernet.modules() if isinstance(m, nn.BatchNorm1d))


def test_an_architecture_is_scored_once(digits, width_space):
    evaluator = SharedEvaluator(width_space.supernet(), digits.val, "classification", "batch")
    calls = []
    inner = evaluator._score
    evaluator._score = lambda arch: calls.append(arch) or inner(arch)  # type: ignore[method-assign, func-returns-value]
    assert evaluator({"w": 2, "v": 4}) == evaluator({"v": 4, "w": 2})
    assert len(calls) == 1


def test_evaluation_that_cannot_be_is_refused(digits, width_space):
    supernet, none = width_space.supernet(), digits.train.take(torch.tensor([], dtype=torch.long))
    with pytest.raises(UsageError, match="recalibration needs at least 2 training inputs, but got 0"):
        SharedEvaluator(supernet, digits.val, "classification", "recalibrated", none.x)
    with pytest.raises(UsageError, match="at least one batch of two training inputs"):
        recalibrate(supernet, none.x)
    with pytest.raises(UsageError, match="empty validation split"):
        SharedEvaluator(supernet, none, "classification", "batch")
    with pytest.raises(UsageError, match=r"no tracked statistics .* evaluate with batch_norm='recalibrated'"):
        SharedEvaluator(supernet, digits.val, "classification", "tracked")({"w": 2, "v": 2})


def test_validation_examples_that_were_trained_on_are_warned_of(digits):
    both = Split(torch.cat([digits.val.x[:30], digits.train.x[:7]]), torch.cat([digits.val.y[:30], digits.train.y[:7]]))
    assert overlap(digits.train, both) == 7
    assert overlap(digits.train, digits.val) == 0
    with pytest.warns(OverlapWarning, match="7 of 37 validation inputs are also training inputs"):
        warn_of_overlap(digits.train, both)
    assert len(calibration_inputs(digits.train, 50, 0)) == 50
    assert torch.equal(calibration_inputs(digits.train, 50, 1), calibration_inputs(digits.train, 50, 1))


# --- evolution -----------------------------------------------------------------------------------------------------

GRID = Space([Decision(f"x{i}", list(range(6)), ordered=True) for i in range(8)])


def target(arch):
    return -sum((v - 4) ** 2 for v in arch.values())


def light(arch):
    return sum(arch.values()) <= 22


def test_every_member_keeps_the_limits_and_nothing_is_scored_twice():
    scored = []
    found = evolve(GRID, lambda a: scored.append(a) or target(a), feasible=light)  # type: ignore[func-returns-value]
    assert all(light(a) for a in scored)
    assert len({GRID.canonical(a) for a in scored}) == len(scored) == len(found.scored) == 50 * 20


def test_limits_by_table_judge_many_at_once_and_let_only_legal_ones_through():
    space = elastic_mlp_space((4,), 2, widths=(1, 2, 3, 4, 5, 6), hidden=3)
    exact = {space.canonical(a): space.cost.params(a) for a in space.enumerate()}
    limit = sorted(exact.values())[100]
    legal = [v for v in exact.values() if v <= limit]
    limits = Limits({"params": limit}, space).tabulated()
    one_by_one = []
    limits.feasible = lambda arch: one_by_one.append(arch)  # type: ignore[method-assign, assignment]
    settings = Evolution(population=10, generations=4, top=5, crossover=4, mutation=4)
    found = evolve(space, lambda a: float(exact[space.canonical(a)]), settings, feasible=limits)
    assert len(found.scored) == 40 < len(legal)
    assert all(exact[key] <= limit for key in found.scored)
    assert not one_by_one
    assert len(evolve(space, lambda a: 0.0, feasible=limits).scored) == len(legal)  # all of them, and no other


def test_the_best_ten_never_get_worse_and_beat_random_search_at_equal_evaluations():
    wins = 0
    for seed in range(5):
        found = evolve(GRID, target, seed=seed, feasible=light)
        assert found.best == sorted(found.best)
        assert found.mean_top == sorted(found.mean_top)
        chance = random_search(GRID, target, len(found.scored), seed, light)
        assert len(chance.scored) == len(found.scored)
        assert all(light(a) for a, _ in chance.scored.values())
        wins += found.top(1)[0][1] > chance.top(1)[0][1]
    assert wins >= 4


def test_a_crossover_child_takes_every_gene_from_one_of_its_parents():
    rng = Random(0)
    parents = [GRID.sample(rng) for _ in range(2)]
    found = Found({GRID.canonical(p): (p, 0.0) for p in parents})
    children = breed(GRID, found, Evolution(population=40, crossover=40, mutation=0), Random(1))[:40]
    from_first = 0
    hybrids = [c for c in children if all(c[n] in (parents[0][n], parents[1][n]) for n in c)]
    assert len(hybrids) == 40
    for child in hybrids:
        from_first += sum(child[n] == parents[0][n] for n in child if parents[0][n] != parents[1][n])
    different = sum(parents[0][n] != parents[1][n] for n in parents[0])
    assert 0.35 < from_first / (40 * different) < 0.65


def test_mutation_draws_each_decision_anew_with_the_given_probability():
    rng, parent = Random(0), {f"x{i}": 0 for i in range(8)}
    changed = [sum(v != 0 for v in mutated(GRID, parent, 0.3, rng).values()) for _ in range(3000)]
    # Anew, not to another: one in six draws is what it was.
    assert sum(changed) / (3000 * 8) == pytest.approx(0.3 * 5 / 6, abs=0.01)


def test_mutation_of_a_conditional_space_stays_valid():
    space = Space([Decision("op", ["conv", "skip"]), Decision("k", [1, 3, 5])], {"k": [when(op=["conv"])]})
    rng = Random(0)
    arch = space.sample(rng)
    for _ in range(50):
        arch = space.validate(mutated(space, arch, 0.5, rng))


def test_a_search_goes_on_where_it_was_interrupted():
    straight = evolve(GRID, target, Evolution(generations=6), seed=4)
    partial = evolve(GRID, target, Evolution(generations=2), seed=4)
    state = Found.from_dict(partial.as_dict(), GRID)
    assert evolve(GRID, target, Evolution(generations=6), seed=4, found=state).as_dict() == straight.as_dict()


def test_a_small_space_is_searched_to_its_end():
    space = Space([Decision("a", [0, 1, 2]), Decision("b", [0, 1, 2])])
    found = evolve(space, lambda a: a["a"] * a["b"], feasible=lambda a: a["a"] > 0)
    assert len(found.scored) == 6
    assert found.top(1) == [({"a": 2, "b": 2}, 4)]


def test_limits_below_the_cheapest_architecture_say_so():
    with pytest.raises(InfeasibleError, match=r"No legal architecture in space: macs <= 3, min is 8\."):
        evolve(GRID, target, feasible=lambda a: False, describe=lambda: "macs <= 3, min is 8")


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match=r"crossover \(25\) and mutation \(25\) must not exceed the population \(20\)"):
        Evolution(population=20)
    with pytest.raises(UsageError, match="generations must be a positive integer, not 0"):
        Evolution(generations=0)
    with pytest.raises(UsageError, match=r"probability must be in \(0, 1\]"):
        Evolution(probability=0.0)
    with pytest.raises(UsageError, match="finalists must be a positive integer, not 0"):
        SPOS(finalists=0)
    with pytest.raises(UsageError, match="batch_norm='none' is unknown"):
        SPOS(batch_norm="none")


# --- the strategy --------------------------------------------------------------------------------------------------


def quick(**settings):
    return SPOS(**{"epochs": 3, "population": 6, "generations": 3, "top": 3, "crossover": 2, "mutation": 2,
                   "finalists": 4, **settings})  # fmt: skip


def prepared(strategy, space, dataset, checkpoints=None, **context):
    strategy.setup(Problem(space, **context))
    strategy.prepare(Context(dataset, Recipe(), seed=1, checkpoints=checkpoints or Checkpoints()))
    return strategy


def proposals(strategy):
    out = []
    while not strategy.finished:
        out.append(strategy.ask())
    assert strategy.ask() is None
    return out


@pytest.mark.parametrize("make", [blocks, elastic])
def test_the_finalists_are_the_best_by_inherited_weights_best_first(digits, make):
    space = ModuleSpace(make, torch.zeros(2, 1, 8, 8))
    strategy = prepared(quick(), space, digits)
    trials = proposals(strategy)
    assert [t.id for t in trials] == [0, 1, 2, 3]
    scores = [t.info["shared_score"] for t in trials]
    assert scores == sorted(scores, reverse=True)
    assert scores == strategy.shared_scores([t.arch for t in trials])
    assert min(scores) >= max(s for a, s in strategy.found.scored.values() if a not in [t.arch for t in trials])
    assert all(t.resource is None and t.resume is None for t in trials)  # trained in full, from new weights


def test_no_finalist_breaks_a_limit_and_constrained_training_draws_within_it(digits, width_space):
    limit = width_space.cost.params({"w": 4, "v": 4})
    strategy = quick(constrained=True)
    prepared(strategy, width_space, digits, feasible=lambda a: width_space.cost.params(a) <= limit)
    assert all(width_space.cost.params(a) <= limit for a, _ in strategy.found.scored.values())
    untouched = width_space.supernet(seed=1).net[1].weight
    assert torch.equal(strategy.supernet.net[1].weight[4:], untouched[4:])  # rows of widths beyond the limit


def test_a_killed_preparation_resumes_to_the_same_proposals(digits, width_space, tmp_path, monkeypatch):
    monkeypatch.setattr("archipel.search.oneshot.supernet_training.SAVE_EVERY_SECONDS", 0.0)
    straight = [(t.arch, t.info) for t in proposals(prepared(quick(), width_space, digits))]

    class Killed(BaseException):
        pass

    for moment in (("training", 0.3), ("evolving", 0.3), ("evolving", 1.0)):
        folder = tmp_path / f"{moment[0]}{moment[1]}"

        def kill(what, fraction, moment=moment):
            if what.startswith(moment[0]) and fraction >= moment[1]:
                raise Killed

        victim = quick()
        victim.setup(Problem(width_space))
        with pytest.raises(Killed):
            victim.prepare(Context(digits, Recipe(), seed=1, checkpoints=Checkpoints(folder), progress=kill))
        again = prepared(quick(), width_space, digits, Checkpoints(folder))
        assert [(t.arch, t.info) for t in proposals(again)] == straight
        rerun = prepared(quick(), width_space, digits, Checkpoints(folder))  # everything is there already
        assert [(t.arch, t.info) for t in proposals(rerun)] == straight


def test_seeds_differ_in_initial_weights_and_paths(digits, width_space):
    weights = []
    for seed in (1, 2):
        strategy = quick()
        strategy.setup(Problem(width_space))
        strategy.prepare(Context(digits, Recipe(), seed=seed, epochs=1))
        assert strategy.log.epochs == 1  # the context's budget
        weights.append(strategy.supernet.net[1].weight)
    assert not torch.equal(*weights)


def test_the_supernets_batch_norms_have_no_affine_but_networks_trained_alone_do(digits, width_space):
    strategy = prepared(quick(), width_space, digits)
    assert not any(m.affine for m in strategy.supernet.modules() if isinstance(m, nn.BatchNorm1d))
    alone = width_space.build({"w": 4, "v": 4})
    assert all(m.affine for m in alone.modules() if isinstance(m, nn.BatchNorm1d))


def test_asking_unprepared_and_spaces_without_supernet_are_refused(digits, width_space):
    strategy = SPOS()
    strategy.setup(Problem(width_space))
    with pytest.raises(UsageError, match=r"call prepare\(context\) before ask"):
        strategy.ask()
    assert not strategy.finished
    assert strategy.shared_scores([]) is None
    for space in (GRID, JointSpace(width_space, [Decision("lr", [0.1, 0.2])])):
        with pytest.raises(SpaceError, match=r"no supernet|share weights cannot differ"):
            prepared(quick(), space, digits)


def test_overlapping_splits_are_warned_of_in_a_search(digits, width_space):
    bad = Dataset("digits", digits.train, Split(digits.train.x[:50], digits.train.y[:50]), None, "classification", 10)
    with pytest.warns(OverlapWarning, match="50 of 50"):
        prepared(quick(), width_space, bad)


def test_regression_is_searched_by_r_squared():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, :1] - 2 * x[:, 1:2]).contiguous()
    w = Width("w", [1, 8])

    def net():
        return nn.Sequential(ElasticLinear(6, w), nn.ReLU(), ElasticLinear(w, 1))

    space = ModuleSpace(net, torch.zeros(2, 6))
    data = Dataset("line", Split(x[:150], y[:150]), Split(x[150:], y[150:]), None, "regression", 1)
    strategy = prepared(quick(epochs=20, lr=0.03), space, data)
    best = proposals(strategy)[0]
    assert best.arch == {"w": 8}
    assert 0.5 < best.info["shared_score"] <= 1.0


def test_depths_are_searched_too(digits):
    def net():
        body = Depth("d", [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(3)], min=1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), body, nn.Linear(8, 10))

    strategy = prepared(quick(), ModuleSpace(net, torch.zeros(2, 1, 8, 8)), digits)
    assert {t.arch["d"] for t in proposals(strategy)} == {1, 2, 3}


def test_the_picked_architecture_beats_random_ones(digits):
    """A reduced form of the paper's claim: inherited weights find what widths are worth."""
    space = ModuleSpace(elastic, torch.zeros(2, 1, 8, 8))
    strategy = prepared(quick(epochs=30, finalists=1), space, digits)
    picked = proposals(strategy)[0].arch
    assert min(picked.values()) >= 4  # the bottlenecks of two units are found out
    scores = strategy.shared_scores([{"w": 2, "v": 2}, {"w": 16, "v": 16}])
    assert scores is not None
    assert scores[1] > scores[0] + 0.2


def test_bits_are_searched_under_a_limit_of_bit_operations(digits):
    """Mixed precision: one float weight for all precisions, and a hard limit on multiply-accumulates times bits."""

    def net():
        first, second = Precision("b0"), Precision("b1")
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(),
            QuantisedLinear(16, 16, first), nn.BatchNorm1d(16), nn.ReLU(), QuantisedLinear(16, 10, second),
        )  # fmt: skip

    space = ModuleSpace(net, torch.zeros(2, 1, 8, 8))
    meta = torch.zeros(2, 1, 8, 8, device="meta")

    table = {space.canonical(a): bit_operations(space.build_meta(a), meta) for a in space.enumerate()}

    def cost(arch):
        return table[space.canonical(arch)]

    cheapest, dearest = cost({"b0": "w1a2", "b1": "w1a2"}), cost({"b0": "w4a4", "b1": "w4a4"})
    assert dearest - cheapest == (16 * 16 + 16 * 10) * (16 - 2)
    limit = (cheapest + dearest) // 2
    strategy = prepared(quick(), space, digits, feasible=lambda a: cost(a) <= limit)
    assert all(cost(t.arch) <= limit for t in proposals(strategy))


def test_a_channel_search_in_the_shufflenet_space_runs_end_to_end():
    space = shufflenet_space(8, 1, 3, stem=4, widths=(8,), depths=(2,), head=8, stem_stride=1, factors=(0.5, 1.0))
    assert space.size == 4**2 * 2**2
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 1, 8, 8, generator=g), torch.randint(0, 3, (96,), generator=g)
    data = Dataset("noise", Split(x[:64], y[:64]), Split(x[64:], y[64:]), None, "classification", 3)
    trials = proposals(prepared(quick(epochs=1), space, data))
    assert len({space.canonical(t.arch) for t in trials}) == 4
    assert all(set(t.arch) == {"block0", "block1", "middle0", "middle1"} for t in trials)
