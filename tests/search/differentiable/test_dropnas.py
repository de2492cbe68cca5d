"""DropNAS: masks of groups, the steps that leave dropped operations alone, and the adjustment of the logits."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from archipel.core.choice import Choice
from archipel.core.errors import SpaceError, UsageError
from archipel.core.registry import get_method
from archipel.core.storage import Checkpoints
from archipel.cost.model import count_params
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import DifferentiableSearch, Schedule, Softmax
from archipel.search.differentiable.arch_gradient import OneLevel
from archipel.search.differentiable.dropnas import DecoupledSteps, adjust_kept, dropnas
from archipel.search.differentiable.grouped_dropout import (
    GroupedDropout,
    drop_probability,
    expected_kept,
    feature_similarity,
    groups_of,
    kept_softmax,
)
from archipel.search.differentiable.objective import CrossEntropy
from archipel.search.differentiable.parameters import Row
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.genotypes import Genotype
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.operations import Zero, choice_edge

torch.set_num_threads(1)

QUICK = Schedule(epochs=2, batch_size=8, alpha_lr=0.05, weight_decay=0.0, alpha_decay=0.0, alpha_share=0.0)
HEAVY = 0.05  # of three options 37 % are dropped, of two 22 %


def images(n: int = 32, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    return Context(Dataset("bars", images(), images(seed=1), None, "classification", 2), Recipe(epochs=1), **kw)


def micro(**kw) -> MicroNB201:
    return MicroNB201((1, 8, 8), 2, **{"C": 2, "cells": 1, **kw})


def state_of(mix=None, space=None, gradient=None, schedule: Schedule = QUICK, **slots):
    search = DifferentiableSearch(mix=mix or GroupedDropout(HEAVY), schedule=schedule, **slots)
    search.setup(Problem(space or micro()))
    state = search.start(context())
    state.supernet.train()
    (gradient or DecoupledSteps()).started(state)
    return state


def prepared(search, space=None, **kw):
    search.setup(Problem(space or micro()))
    search.prepare(context(**kw))
    return search


def data():
    d = images()
    return d.x[:8], d.y[:8]


def step(state, gradient=None, **masks):
    if masks:
        state.mix.give(masks)
    return (gradient or DecoupledSteps()).update(state, data(), data())


# --- masks ---------------------------------------------------------------------------------------------------------


def test_the_groups_are_operations_with_and_without_parameters():
    state = state_of(space=DartsSpace((1, 8, 8), 2, C=2, layers=3, nodes=1))
    for kind in ("normal", "reduce"):
        row = state.parameters.rows[f"{kind}.e02"]
        with_parameters, without = ([row.labels[i] for i in g] for g in groups_of(row))
        assert with_parameters == ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
        assert without == ["max_pool_3x3", "avg_pool_3x3", "skip_connect", "none"]  # though a reduction's skip has some
    assert [len(g) for g in state_of().mix.groups["e01"]] == [2, 3]


def test_golden_drop_probability_and_expected_work():
    assert drop_probability(3e-5, 4) == pytest.approx(0.0740083, abs=1e-7)
    assert expected_kept(3e-5, [4]) == pytest.approx(3.70, abs=0.005)
    p = drop_probability(0.1, 3)
    assert expected_kept(0.1, [3]) == pytest.approx(3 * (1 - (p - p**3) / (1 - p**3)))


def test_every_group_keeps_an_option_and_frequencies_are_those_of_the_redraw():
    mix, n = state_of().mix, 4_000
    torch.manual_seed(0)
    masks = torch.stack([mix.draw("e01") for _ in range(n)])
    for group in mix.groups["e01"]:
        assert masks[:, group].any(1).all()
        p, size = drop_probability(HEAVY, len(group)), len(group)
        expected = (p - p**size) / (1 - p**size)
        sigma = math.sqrt(expected * (1 - expected) / n)
        for i in group:
            assert abs((~masks[:, i]).double().mean().item() - expected) < 3 * sigma


def test_kept_weights_sum_to_one_and_dropped_ones_are_exactly_zero_with_no_gradient():
    logits = torch.randn(5, requires_grad=True)
    keep = torch.tensor([True, False, True, True, False])
    w = kept_softmax(logits, keep)
    assert w.sum().item() == pytest.approx(1.0)
    assert torch.equal(w[~keep], torch.zeros(2))
    torch.testing.assert_close(w[keep], logits[keep].exp() / logits[keep].exp().sum())  # not scaled by 1/(1 − p)
    (g,) = torch.autograd.grad((w * torch.randn(5)).sum(), logits)
    assert torch.equal(g[~keep], torch.zeros(2))
    assert g[keep].abs().min() > 0


def test_dropped_operations_are_not_computed_and_tied_cells_share_their_masks():
    state = state_of(space=micro(cells=3))
    computed = set()
    for name, row in state.parameters.rows.items():
        for k, choice in enumerate(row.modules):
            for i, op in enumerate(choice.blended):
                op.register_forward_hook(lambda *_, key=(name, k, i): computed.add(key))
    torch.manual_seed(1)
    state.output(data()[0], state.mixture_weights(training=True))
    for name, row in state.parameters.rows.items():
        seen = {k: {i for n, j, i in computed if (n, j) == (name, k)} for k in range(3)}
        kept = {i for i in range(5) if state.mix.masks[name][i] and not isinstance(row.modules[0].blended[i], Zero)}
        assert seen == dict.fromkeys(range(3), kept)
    assert any(not m.all() for m in state.mix.masks.values())


def test_masks_are_drawn_anew_and_only_while_training():
    mix = GroupedDropout(HEAVY, warmup=1)
    state = state_of(mix)
    state.mixture_weights(training=True)
    assert all(m.all() for m in state.mix.masks.values())  # warming up
    state.move_to(1, 0)
    drawn = []
    for _ in range(5):
        state.mixture_weights(training=True)
        drawn.append(tuple(torch.cat(list(state.mix.masks.values())).tolist()))
    assert len(set(drawn)) > 1
    assert all(w.min() > 0 for w in state.mixture_weights().values())


# --- the step ------------------------------------------------------------------------------------------------------

KEEP = [True, True, False, True, False]  # conv1x1 and avgpool3x3 are dropped


def trained():
    """A state whose optimisers have moments of everything."""
    state = state_of()
    everyone = {n: [True] * 5 for n in state.logits}
    for _ in range(2):
        step(state, **everyone)
    return state


def test_dropped_operations_keep_weights_momentum_and_moments():
    state = trained()
    row = state.parameters.rows["e13"]
    dropped = list(row.modules[0].blended[2].parameters())
    weights = [p.detach().clone() for p in dropped]
    momenta = [state.weight_optimizer.state[p]["momentum_buffer"].clone() for p in dropped]
    logits, moments = (
        state.logits["e13"].detach().clone(),
        copy.deepcopy(state.alpha_optimizer.state[state.logits["e13"]]),
    )
    others = {n: p.detach().clone() for n, p in state.weights.items() if all(p is not q for q in dropped)}
    step(state, e13=KEEP)
    for p, w, m in zip(dropped, weights, momenta, strict=True):
        assert torch.equal(p, w)
        assert torch.equal(state.weight_optimizer.state[p]["momentum_buffer"], m)
    gone = ~torch.tensor(KEEP)
    assert torch.equal(state.logits["e13"][gone], logits[gone])
    after = state.alpha_optimizer.state[state.logits["e13"]]
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[key][gone], moments[key][gone])
        assert not torch.equal(after[key][~gone], moments[key][~gone])
    assert all(not torch.equal(state.weights[n], w) for n, w in others.items())


def test_moments_of_entries_that_are_dropped_in_the_first_step_are_zero():
    state = state_of()
    step(state, e13=KEEP)
    moments = state.alpha_optimizer.state[state.logits["e13"]]
    gone = ~torch.tensor(KEEP)
    assert torch.equal(moments["exp_avg"][gone], torch.zeros(2))
    assert torch.equal(moments["exp_avg_sq"][gone], torch.zeros(2))


def test_probabilities_of_dropped_operations_are_kept_and_ratios_of_the_others_are_those_of_the_step():
    state, free = trained(), trained()
    before = state.mixture_weights()["e13"].detach()
    step(state, e13=KEEP)
    step(free, DecoupledSteps(adjust=False), e13=KEEP)
    after, unadjusted = (s.mixture_weights()["e13"].detach() for s in (state, free))
    gone = ~torch.tensor(KEEP)
    torch.testing.assert_close(after[gone], before[gone], rtol=0, atol=1e-7)
    torch.testing.assert_close(after[~gone] / after[0], unadjusted[~gone] / unadjusted[0])
    assert not torch.equal(after[~gone], before[~gone])


def test_without_the_adjustment_dropped_operations_drift():
    old = torch.randn(5, dtype=torch.double)
    new = old + torch.tensor([0.3, 0.1, 0.0, 0.2, 0.0])
    before, drifted = torch.softmax(old, 0), torch.softmax(new, 0)
    assert (drifted - before)[2].abs() > 1e-3
    logits = {"e": new.clone()}
    adjust_kept(logits, {"e": torch.tensor(KEEP)}, {"e": old})
    torch.testing.assert_close(torch.softmax(logits["e"], 0)[[2, 4]], before[[2, 4]])


def test_the_adjustment_is_the_constant_of_the_paper():
    old, keep = torch.randn(5, dtype=torch.double), torch.tensor(KEEP)
    new = torch.where(keep, old + torch.randn(5, dtype=torch.double), old)
    rho = old[keep].exp().sum() / old.exp().sum()
    k = torch.log(rho / (1 - rho) * new[~keep].exp().sum() / new[keep].exp().sum())
    logits = {"e": new.clone()}
    adjust_kept(logits, {"e": keep}, {"e": old})
    torch.testing.assert_close(logits["e"], torch.where(keep, new + k, new))


def test_decay_is_a_second_step_of_what_had_a_gradient_and_runs_no_network():
    state = state_of(schedule=Schedule(**{**QUICK.__dict__, "momentum": 0.0, "clip": 0.0}))
    plain = copy.deepcopy(state.supernet.state_dict())
    runs = []
    state.supernet.register_forward_hook(lambda *_: runs.append(1))
    state.mix.give({"e13": KEEP})
    DecoupledSteps(decay=0.1, alpha_decay=0.0).update(state, data(), data())
    assert len(runs) == 1
    decayed = {n: w.detach().clone() for n, w in state.weights.items()}
    state.supernet.load_state_dict(plain)
    for p, q in zip(state.logits.values(), state_of().logits.values()):
        p.data = q.data.clone()
    state.mix.give({"e13": KEEP})
    DecoupledSteps(decay=0.0, alpha_decay=0.0).update(state, data(), data())
    dropped = {id(p) for p in state.parameters.rows["e13"].modules[0].blended[2].parameters()}
    for n, w in state.weights.items():
        factor = 1.0 if id(w) in dropped else 1 - 2 * 0.1 * state.step_size
        torch.testing.assert_close(decayed[n], factor * w.detach())


def test_logits_with_a_noticeable_gradient_decay(monkeypatch):
    state, received = state_of(), []
    real = state.alpha_step
    monkeypatch.setattr(state, "alpha_step", lambda g: (received.append({n: t.clone() for n, t in g.items()}), real(g)))
    for p in state.logits.values():
        p.data.normal_()
    state.mix.give({"e13": KEEP})
    DecoupledSteps(alpha_decay=0.5).update(state, data(), data())
    loss, decay = (g["e13"] for g in received)
    assert torch.equal(loss == 0, ~torch.tensor(KEEP))
    assert torch.equal(decay == 0, ~torch.tensor(KEEP))


# --- the search ----------------------------------------------------------------------------------------------------


def test_no_dropout_is_darts_on_one_level_bitwise():
    plain = DifferentiableSearch(mix=Softmax(), arch_gradient=OneLevel(), schedule=QUICK)
    whole = prepared(plain)
    found = prepared(dropnas(r=0.0, decay=0.0, alpha_decay=0.0, schedule=QUICK))
    assert found.log == whole.log
    decayed = prepared(DifferentiableSearch(mix=Softmax(), arch_gradient=DecoupledSteps(), schedule=QUICK))
    assert prepared(dropnas(r=0.0, schedule=QUICK)).log == decayed.log != whole.log


@pytest.mark.parametrize("space", [micro(), DartsSpace((1, 8, 8), 2, C=2, layers=3, nodes=1)], ids=["micro", "darts"])
def test_a_search_ends_with_an_architecture_of_the_space(space):
    search = prepared(dropnas(r=HEAVY, schedule=Schedule(**{**QUICK.__dict__, "epochs": 1})), space)
    assert space.validate(search.ask().arch)
    assert search.state.halves[0] is search.state.halves[1]  # all training data for both


def test_an_interrupted_search_ends_bit_identical(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        raise Killed

    whole = prepared(dropnas(r=HEAVY, schedule=QUICK))
    with pytest.raises(Killed):
        prepared(dropnas(r=HEAVY, schedule=QUICK), checkpoints=Checkpoints(tmp_path), progress=kill)
    assert prepared(dropnas(r=HEAVY, schedule=QUICK), checkpoints=Checkpoints(tmp_path)).log == whole.log


def test_the_architecture_can_rest_while_weights_warm_up():
    search = dropnas(r=HEAVY, schedule=Schedule(**{**QUICK.__dict__, "warmup": 1}))
    search.setup(Problem(micro()))
    initial = {n: p.detach().tolist() for n, p in search.start(context()).logits.items()}
    search.prepare(context())
    assert search.log[0]["alpha"] == initial != search.log[1]["alpha"]


def test_the_searched_network_has_its_golden_number_of_weights():
    with torch.device("meta"):
        net = DartsSpace((3, 32, 32), 10, C=16, layers=14).cells(choice_edge)
    assert count_params(net) == 3_239_674


def test_the_published_cell_is_an_architecture_of_the_space():
    s3, d3, d5 = "sep_conv_3x3", "dil_conv_3x3", "dil_conv_5x5"
    cell = ((s3, 1), ("skip_connect", 0), (s3, 1), (s3, 0), (s3, 1), (s3, 0), (d5, 4), (d3, 1))
    space = DartsSpace((3, 32, 32), 10, C=36, layers=20)
    arch = space.from_genotype(Genotype(cell, cell, (2, 3, 4, 5)))
    assert (arch["normal.n5"], arch["normal.e45"], arch["normal.e15"]) == ("1,4", d5, d3)


def test_the_settings_are_those_of_the_reference_code():
    assert get_method("dropnas").obj is dropnas
    search, s = dropnas(), dropnas().schedule
    assert (s.epochs, s.batch_size, s.lr, s.lr_min, s.clip, s.alpha_lr) == (76, 96, 0.0375, 0.0015, 3.0, 3e-4)
    assert (s.weight_decay, s.alpha_decay, s.alpha_share, s.warmup) == (0, 0, 0, 0)
    assert (search.mix.r, search.arch_gradient.decay, search.arch_gradient.alpha_decay) == (3e-5, 3e-4, 1e-3)


def test_similar_operations_are_told_from_different_ones():
    state = state_of()
    for row in state.parameters.rows.values():  # all operations of an edge alike: cosine 1
        for choice in row.modules:
            for i in range(1, 5):
                choice.blended[i] = nn.Identity()
    assert feature_similarity(state, data()[0]) == pytest.approx(1.0)
    assert feature_similarity(state_of(), data()[0]) < 0.9


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GroupedDropout(1.0), "at least 0 and below 1, not 1.0"),
        (lambda: GroupedDropout(-0.1), "at least 0 and below 1, not -0.1"),
        (lambda: DecoupledSteps(decay=-1.0), "must not be negative"),
        (lambda: adjust_kept({}, {}, {}), "there was none yet"),
        (lambda: state_of().mix.give({"e13": [False, False, True, True, False]}), "at least one op per group must be"),
        (lambda: state_of().mix.give({"e13": [True] * 4}), "mask of 4 for 'e13'"),
        (lambda: state_of().mix.give({"e31": [True] * 5}), "'e31', which is no choice"),
        (lambda: state_of(schedule=Schedule(epochs=2)), r"weight_decay=0\.0003, alpha_decay=0\.001"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_a_choice_without_one_of_the_groups_is_refused():
    choice = Choice("op", {"a": nn.Identity(), "b": nn.ReLU()})
    with pytest.raises(SpaceError, match="'op' has no operation with parameters among a, b"):
        groups_of(Row("op", ("a", "b"), (choice,)))
    with pytest.raises(SpaceError, match="'op' has no operation without parameters"):
        groups_of(Row("op", ("a",), (Choice("op", {"a": nn.Linear(1, 1)}),)))


def test_an_objective_that_projects_is_refused_since_the_adjustment_would_undo_it():
    class Projecting(CrossEntropy):
        def project(self, parameters, moment):
            pass

    with pytest.raises(UsageError, match="Projecting projects the logits"):
        state_of(objective=Projecting())
