"""What holds for every space: the delivered ones, small, and random nested modules with tied names."""

from __future__ import annotations

import copy
import itertools
import json
import math
import pickle
from random import Random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from small_spaces import ALL, BUILDS, MODULES, archs, inputs, space
from torch import nn

from archipel.core.choice import Choice, Depth, Inputs, Width
from archipel.core.decision import Decision, Real
from archipel.core.errors import SpaceError
from archipel.core.space import Space
from archipel.cost.model import count_params
from archipel.spaces.layers import ElasticLinear
from archipel.spaces.module_space import ModuleSpace

torch.set_num_threads(1)
SMALL = [n for n in ALL if space(n).size <= 20_000]
each = pytest.mark.parametrize("name", ALL)
each_module = pytest.mark.parametrize("name", MODULES)
each_built = pytest.mark.parametrize("name", {**MODULES, **BUILDS})


# --- the laws ------------------------------------------------------------------------------------------------------


def outputs(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(7)  # dropout
    with torch.no_grad():
        return net(x)


def check_activation_is_extraction(made, chosen, x, training):
    net = made.supernet()
    for arch in chosen:
        net.train(training)
        extracted = net.extract(arch)
        difference = outputs(net.activate(arch), x) - outputs(extracted, x)
        assert float(difference.abs().max()) < 1e-6, arch
        if training:  # running statistics moved alike, too
            net.eval(), extracted.eval()
            assert float((outputs(net, x) - outputs(extracted, x)).abs().max()) < 1e-6, arch


def check_live_slices_are_what_is_extracted(made, chosen):
    net = made.supernet()
    shapes = dict(net.named_parameters())
    for arch in chosen:
        numel = 0
        for name, slices in net.activate(arch).live_slices().items():
            numel += shapes[name][slices].numel() if slices else shapes[name].numel()
        assert numel == count_params(net.extract(arch)), arch


def check_size_is_the_number_enumerated(made):
    listed = list(made.enumerate())
    distinct = {json.dumps(a, sort_keys=True) for a in listed}
    assert len(distinct) == len(listed) == made.size
    for arch in listed[:: max(1, len(listed) // 50)]:
        assert made.validate(arch) == arch


def check_mutation(made, rng, rounds=20):
    for _ in range(rounds):
        arch = made.sample(rng)
        child = made.validate(made.mutate(arch, rng))
        changed = [n for n in arch if n in child and arch[n] != child[n]]
        assert len(changed) == 1
        if not made.conditions:
            assert set(child) == set(arch)


def check_crossover(made, rng, rounds=20):
    for _ in range(rounds):
        first, second = made.sample(rng), made.sample(rng)
        child = made.validate(made.crossover(first, second, rng))
        for name, value in child.items():
            parents = [p[name] for p in (first, second) if name in p]
            assert not parents or value in parents


def check_corruption_is_rejected(made, arch, rng):
    def rejected(corrupt):
        with pytest.raises(SpaceError) as caught:
            made.validate(corrupt)
        assert len(str(caught.value)) > 10

    for wrong in (None, [], "conv", 3, json.dumps(arch)):
        rejected(wrong)
    rejected({**arch, "no such decision": 1})
    rejected({**arch, 3: 1})
    for name in arch:
        rejected({n: v for n, v in arch.items() if n != name})
        for value in (None, [], {}, "no such option", -17, 1e300, math.nan, math.inf):
            rejected({**arch, name: value})
        kind = type(arch[name])
        others = [int(arch[name]), float(arch[name])] if kind is bool else [str(arch[name]), [arch[name]]]
        if kind is int:
            others.append(float(arch[name]))
            others.append(bool(arch[name]))
        for value in others:
            real = isinstance(made.by_name[name], Real) and kind is float  # takes whole numbers, too
            if not real and type(value) is not kind:
                rejected({**arch, name: value})
    closed = [d for d in made.decisions if d.name not in arch]
    for d in closed:
        rejected({**arch, d.name: d.sample(rng)})


def check_encoding_is_injective(made):
    codes = [made.encode(a) for a in made.enumerate()]
    assert {c.shape for c in codes} == {(made.encoding_size,)}
    assert all(c.min() >= 0 and c.max() <= 1 for c in codes)
    assert len({c.tobytes() for c in codes}) == len(codes)


def check_sampling_is_uniform(made, draws, rng):
    counts = {json.dumps(a, sort_keys=True): 0 for a in made.enumerate()}
    for _ in range(draws):
        counts[json.dumps(made.sample(rng), sort_keys=True)] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-4


# --- the delivered spaces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@each_module
def test_an_activated_supernet_computes_what_the_extracted_network_computes(name, training):
    made = space(name)
    check_activation_is_extraction(made, archs(name), inputs(made), training)


@each_module
def test_live_slices_hold_as_many_values_as_the_extracted_network(name):
    check_live_slices_are_what_is_extracted(space(name), archs(name))


@each_module
def test_extracted_weights_are_copies(name):
    net = space(name).supernet()
    arch = archs(name)[-1]
    before = outputs(net.activate(arch).eval(), inputs(space(name)))
    with torch.no_grad():
        for p in net.extract(arch).parameters():
            p.add_(1.0)
    assert torch.equal(outputs(net, inputs(space(name))), before)


@each_built
def test_a_built_network_has_the_parameters_that_the_cost_says(name):
    made = space(name)
    for arch in archs(name):
        assert made.cost.params(arch) == count_params(made.build(arch))


@each_built
def test_a_built_network_has_finite_outputs_and_holds_no_choice(name):
    from archipel.core.choice import Undecided

    made = space(name)
    for arch in archs(name):
        net = made.build(arch).eval()
        assert torch.isfinite(outputs(net, inputs(made))).all()
        assert not any(isinstance(m, Undecided) for m in net.modules())
        assert not any(t.is_meta for t in [*net.parameters(), *net.buffers()])


@each_built
def test_a_built_network_can_be_copied_and_pickled(name):
    made = space(name)
    net = made.build(archs(name)[-1]).eval()
    expected = outputs(net, inputs(made))
    assert torch.equal(outputs(copy.deepcopy(net), inputs(made)), expected)
    assert torch.equal(outputs(pickle.loads(pickle.dumps(net)), inputs(made)), expected)


@each_built
def test_building_is_reproducible_and_seeds_differ(name):
    made = space(name)
    arch = archs(name)[-1]
    torch.manual_seed(0)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (made.build(arch, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.rand(3), drawn)  # the caller's random numbers are left alone
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@each_module
def test_supernets_are_reproducible(name):
    first, again = space(name).supernet().state_dict(), space(name).supernet().state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)


@each
def test_a_space_can_be_pickled_for_worker_processes(name):
    made = space(name)
    again = pickle.loads(pickle.dumps(made))
    assert again.size == made.size
    assert again.sample(Random(1)) == made.sample(Random(1))


@pytest.mark.parametrize("name", SMALL)
def test_size_is_exact(name):
    check_size_is_the_number_enumerated(space(name))


@pytest.mark.parametrize("name", SMALL)
def test_encoding_has_a_fixed_length_and_tells_architectures_apart(name):
    check_encoding_is_injective(space(name))


@pytest.mark.parametrize("name", ["mlp-fixed", "nested", "conditional", "cells", "elastic-mlp"])
def test_sampling_is_uniform_also_where_decisions_are_conditional(name):
    made = space(name)
    check_sampling_is_uniform(made, 20 * int(made.size), Random(5))


@each
def test_samples_are_valid_and_reproducible(name):
    made = space(name)
    first, again = ([made.sample(r) for _ in range(20)] for r in (Random(3), Random(3)))
    assert first == again
    for arch in first:
        assert made.validate(arch) == arch
        assert made.validate(dict(reversed(arch.items()))) == arch
        assert list(made.validate(dict(reversed(arch.items())))) == list(arch)  # in the space's order
        assert made.validate(made.sample_choices(Random(4)))


@each
def test_mutation_changes_one_decision_and_stays_valid(name):
    check_mutation(space(name), Random(0))


@each
def test_crossover_is_valid_and_takes_every_gene_from_a_parent(name):
    check_crossover(space(name), Random(0))


@each
def test_every_kind_of_corruption_is_rejected(name):
    for arch in archs(name)[-2:]:
        check_corruption_is_rejected(space(name), arch, Random(0))


@each
def test_architectures_survive_json(name):
    made = space(name)
    for arch in archs(name):
        again = json.loads(json.dumps(arch))
        assert made.validate(again) == arch
        assert made.canonical(again) == made.canonical(arch)
        assert (made.encode(again) == made.encode(arch)).all()


@each
def test_canonical_form_ignores_the_order_of_decisions_and_is_stable(name):
    made = space(name)
    for arch in archs(name):
        assert made.canonical(dict(reversed(arch.items()))) == made.canonical(arch) == made.canonical(dict(arch))
        assert isinstance(made.canonical(arch), str)


@pytest.mark.parametrize("name", [n for n in SMALL if type(space(n)).canonical is Space.canonical])
def test_canonical_forms_differ_where_nothing_is_relabelled(name):
    made = space(name)
    assert len({made.canonical(a) for a in made.enumerate()}) == made.size


@each_module
def test_the_graph_names_layers(name):
    graph = space(name).graph(archs(name)[-1])
    assert graph.number_of_nodes() > 1
    assert all("label" in data for _, data in graph.nodes(data=True))


@each_module
def test_only_the_live_path_gets_gradients(name):
    made = space(name)
    net = made.supernet().train()
    arch = archs(name)[0]
    out = net.activate(arch)(inputs(made))
    out.square().sum().backward()
    live = net.live_slices()
    for parameter, p in net.named_parameters():
        if p.grad is None:
            continue
        assert parameter in live
        if live[parameter]:
            outside = torch.ones_like(p, dtype=torch.bool)
            outside[live[parameter]] = False
            assert not p.grad[outside].any()


# --- random modules ------------------------------------------------------------------------------------------------

F = 3  # every random module maps [B, F] to [B, F]
WIDTHS = {"w0": [2, 4], "w1": [1, 2, 3]}
CHOICES = {"c0": 2, "c1": 3, "c2": 2}
DEPTHS = {"d0": 2, "d1": 1}
INPUTS = {"i0": (2, 1), "i1": (3, 2)}


class Joined(nn.Module):
    """The states after each of some modules, joined by an undecided choice of inputs."""

    def __init__(self, name, modules, edges, k):
        super().__init__()
        self.steps = nn.ModuleList(modules)
        self.join = Inputs(name, edges, k)

    def forward(self, x):
        states = [x]
        for m in self.steps:
            states.append(m(states[-1]))
        return self.join(states)


leaves = st.one_of(
    st.just(("linear",)),
    st.just(("tanh",)),
    st.tuples(st.just("elastic"), st.sampled_from(sorted(WIDTHS)), st.sampled_from(sorted(WIDTHS))),
)


def _grow(children):
    return st.one_of(
        st.tuples(st.just("chain"), st.lists(children, min_size=1, max_size=3)),
        *[st.tuples(st.just("choice"), st.just(n), st.tuples(*[children] * k)) for n, k in CHOICES.items()],
        *[st.tuples(st.just("depth"), st.just(n), st.tuples(*[children] * k)) for n, k in DEPTHS.items()],
        *[
            st.tuples(
                st.just("inputs"), st.just(n), st.tuples(*[children] * (s - 1)), st.tuples(*[children] * s), st.just(k)
            )
            for n, (s, k) in INPUTS.items()
        ],
    )  # fmt: skip


trees = st.recursive(leaves, _grow, max_leaves=8)


def build_tree(tree) -> nn.Module:
    kind, *rest = tree
    if kind == "linear":
        return nn.Linear(F, F)
    if kind == "tanh":
        return nn.Tanh()
    if kind == "elastic":
        a, b = (Width(n, WIDTHS[n]) for n in rest)
        return nn.Sequential(ElasticLinear(F, a), nn.ReLU(), ElasticLinear(a, b), ElasticLinear(b, F))
    if kind == "chain":
        return nn.Sequential(*map(build_tree, rest[0]))
    name, children = rest[0], [build_tree(c) for c in rest[1]]
    if kind == "choice":
        return Choice(name, {f"o{i}": c for i, c in enumerate(children)})
    if kind == "depth":
        return Depth(name, children)
    return Joined(name, children, [build_tree(c) for c in rest[2]], rest[3])


def random_space(tree) -> ModuleSpace:
    """The space of a random module; trees without decisions or with circular ones are passed over."""
    try:
        return ModuleSpace(lambda: build_tree(tree), torch.zeros(2, F), name="random")
    except SpaceError as error:
        assume("circle" not in str(error) and "Nothing in" not in str(error))
        raise


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tree=trees, seed=st.integers(0, 99))
def test_random_nested_modules_keep_the_laws_of_networks(tree, seed):
    made = random_space(tree)
    rng = Random(seed)
    chosen = [made.sample(rng) for _ in range(3)]
    x = torch.randn(4, F, generator=torch.Generator().manual_seed(seed))
    check_activation_is_extraction(made, chosen, x, training=seed % 2 == 0)
    check_live_slices_are_what_is_extracted(made, chosen)
    for arch in chosen:
        assert made.cost.params(arch) == count_params(made.build(arch))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tree=trees, seed=st.integers(0, 99))
def test_random_nested_modules_keep_the_laws_of_sets(tree, seed):
    made = random_space(tree)
    assume(made.size <= 2000)
    rng = Random(seed)
    check_size_is_the_number_enumerated(made)
    check_encoding_is_injective(made)
    check_crossover(made, rng, 5)
    check_corruption_is_rejected(made, made.sample(rng), rng)
    if made.size <= 100:
        check_sampling_is_uniform(made, 20 * int(made.size), rng)
    if made.size > 1 and all(any(d.mutable and d.name in a for d in made.decisions) for a in made.enumerate()):
        check_mutation(made, rng, 5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(tree=trees)
def test_every_listed_architecture_of_a_random_module_runs(tree):
    made = random_space(tree)
    net = made.supernet().eval()
    with torch.no_grad():
        for arch in itertools.islice(made.enumerate(), 30):
            assert net.activate(arch)(torch.zeros(1, F)).shape == (1, F)


def test_a_tied_name_is_open_if_any_of_its_places_is():
    made = space("nested")
    assert {"inner"} <= set(made.validate({"w": 3, "outer": "plain", "depth": 1, "inner": "tanh", "join": "0,2"}))
    assert "inner" not in made.validate({"w": 3, "outer": "plain", "depth": 0, "join": "0,2"})
    with pytest.raises(SpaceError, match="'inner' is closed by the others"):
        made.validate({"w": 3, "outer": "plain", "depth": 0, "inner": "tanh", "join": "0,2"})


def test_a_circle_of_conditions_is_an_error_that_shows_it():
    def circular():
        return nn.Sequential(
            Choice("a", {"x": Choice("b", {"x": nn.Tanh(), "y": nn.ReLU()}), "y": nn.Identity()}),
            Choice("b2", {"x": Choice("a2", {"x": nn.Tanh(), "y": nn.ReLU()}), "y": nn.Identity()}),
            Choice("a2", {"x": Choice("b2", {"x": nn.Tanh(), "y": nn.ReLU()}), "y": nn.Identity()}),
        )

    made = ModuleSpace(circular, torch.zeros(1, F))
    # Both stand somewhere unconditionally, so there is no circle.
    assert made.size == (2 + 1) * 2 * 2

    def hidden():
        return Choice("c", {
            "x": Choice("a", {"x": Choice("b", {"x": nn.Tanh(), "y": nn.ReLU()}), "y": nn.Identity()}),
            "y": Choice("b", {"x": Choice("a", {"x": nn.Tanh(), "y": nn.ReLU()}), "y": nn.Identity()}),
        })  # fmt: skip

    with pytest.raises(SpaceError, match="circle"):
        ModuleSpace(hidden, torch.zeros(1, F))


def test_one_name_with_two_lists_of_options_is_an_error():
    def clash():
        return nn.Sequential(ElasticLinear(F, Width("w", [1, 2])), ElasticLinear(Width("w", [1, 3]), F))

    with pytest.raises(SpaceError, match=r"'w' stands for \[1, 2\] in one place and \[1, 3\] in another"):
        ModuleSpace(clash, torch.zeros(1, F))


def test_spaces_named_decisions_are_plain_json_types():
    for name in ALL:
        for d in space(name).decisions:
            if isinstance(d, Decision):
                assert all(type(o) in (str, int, float, bool) for o in d.options)
