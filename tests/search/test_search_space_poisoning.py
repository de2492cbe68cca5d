"""Poisoned search spaces: what the poisons do, what they cannot change, and what a probe measures."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import nn
from toy_images import bars_dataset

from archipel.core.errors import SpaceError, UsageError
from archipel.cost.model import count_params
from archipel.search.poisoning import (
    Scale,
    Setting,
    bad_share,
    clean_probability,
    duplicates,
    probe_once,
    probe_poisoning,
)
from archipel.search.policy import Controller
from archipel.spaces.macro import MacroSpace, enas_operations
from archipel.spaces.poison import POISONS, GaussianNoise, check_keeps_shape, poison_operations, poisoned

torch.set_num_threads(1)

TINY = Scale(C=4, layers=2, epochs=1, updates=1, children=2, batch_size=8)


def space_with(poisons=(), m=0, layers=3, **settings):
    ops, instances = poisoned(enas_operations(), poisons, m)
    return MacroSpace((1, 6, 6), 2, ops, instances, C=4, layers=layers, **settings)


# --- the poisons ---------------------------------------------------------------------------------------------------


def test_a_stretched_convolution_is_a_pointwise_one_on_planes_up_to_its_padding():
    for side in (1, 8, 50):
        stretched = POISONS["stretched"]["stretched"](2, 1)[1]
        point = nn.Conv2d(2, 2, 1, bias=False)
        with torch.no_grad():
            point.weight.copy_(stretched.weight[:, :, 1:2, 1:2])
            x = torch.randn(1, 2, side, side)
            torch.testing.assert_close(stretched(x), point(x), rtol=1e-6, atol=1e-6)


def test_dropout_of_everything_is_zero_in_training_and_nothing_in_evaluation():
    op, x = POISONS["dropout1"]["dropout1"](2, 1), torch.randn(3, 2, 4, 4)
    assert torch.equal(op.train()(x), torch.zeros_like(x))
    assert torch.equal(op.eval()(x), x)


def test_noise_keeps_the_mean_in_training_and_is_nothing_in_evaluation():
    torch.manual_seed(0)
    op, x = GaussianNoise(2.0), torch.full((100_000,), 3.0)
    y = op.train()(x)
    assert abs(float(y.mean()) - 3.0) < 4 * 6.0 / 100_000**0.5
    assert abs(float(y.std()) - 6.0) < 0.1
    assert torch.equal(op.eval()(x), x)


def test_every_poison_keeps_the_shape_and_one_that_does_not_is_refused():
    x = torch.randn(2, 4, 7, 7)
    for label, make in poison_operations(list(POISONS)).items():
        assert make(4, 1)(x).shape == x.shape, label
    with pytest.raises(SpaceError, match="changes the shape"):
        check_keeps_shape("half", lambda C, s: nn.MaxPool2d(2))


def test_poison_changes_no_network_that_does_without_it():
    clean, spoilt = space_with(), space_with(["stretched", "transposed"], 3)
    arch = clean.sample(Random(0))
    a, b = clean.supernet(0), spoilt.supernet(0)
    shared = a.state_dict()
    b.load_state_dict({**b.state_dict(), **{k: shared[j] for k, j in _matching(a, b).items()}})
    x = torch.randn(4, 1, 6, 6)
    assert torch.equal(a.activate(arch).eval()(x), b.activate(arch).eval()(x))


def _matching(a, b):
    """Names of the base operations' tensors: options come in the same order, poison after them."""
    return {k: k for k in b.state_dict() if k in a.state_dict()}


def test_instances_share_one_set_of_weights():
    counts = {m: count_params(space_with(["stretched"], m).supernet(0)) for m in (1, 6, 36)}
    assert len(set(counts.values())) == 1
    assert counts[1] > count_params(space_with().supernet(0))
    assert space_with(["stretched"], 36, layers=1).size == 6 + 36


def test_chance_of_a_clean_network():
    assert [f"{clean_probability(6, 1, m, 12):.3g}" for m in (6, 36, 120, 300)] == [
        "0.000244", "7.22e-11", "1.36e-16", "3.23e-21",
    ]  # fmt: skip
    assert [round(clean_probability(6, 1, m, 1), 4) for m in (6, 36, 120, 300)] == [0.5, 0.1429, 0.0476, 0.0196]


def test_a_fresh_controller_draws_poison_by_chance():
    space = space_with(["dropout1"], 6)
    controller = Controller(space, 16, torch.Generator().manual_seed(0))
    archs = controller.sample(2000, torch.Generator().manual_seed(1))
    share = sum(bad_share(a, enas_operations()) for a in archs) / len(archs)
    assert abs(share - 0.5) < 0.06


def test_duplicates_are_found_by_module_and_by_behaviour():
    space = space_with(["dropout1", "identity"], 2, layers=1)
    found = duplicates(space.supernet(0), torch.randn(8, 1, 6, 6))
    # In evaluation dropout is the identity: behaviour puts all four together.
    assert found == {"l1.op": [["dropout1#0", "dropout1#1", "identity#0", "identity#1"]]}
    assert duplicates(space_with(layers=2).supernet(0), torch.randn(8, 1, 6, 6)) == {}


# --- the probe -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("searcher", ["enas", "enas-train", "random", "darts"])
def test_a_probe_measures_the_answer_of_a_search(searcher):
    found = probe_once(bars_dataset(), Setting(("stretched",), 3, searcher), 0, TINY)
    assert 0.0 <= found["test"] <= 1.0
    assert found["bad"] in (0.0, 0.5, 1.0)
    assert round(found["by chance"], 4) == round(3 / 9, 4)


def test_a_study_opens_the_test_split_once_for_each_answer():
    data = bars_dataset()
    rows = probe_poisoning(data, [Setting(), Setting(("dropout1",), 2, "random")], seeds=2, scale=TINY)
    assert list(rows) == ["clean, enas", "dropout1 x2, random"]
    assert data.openings == ["poisoning"] * 4
    assert all(r["bad"] == 0.0 for r in rows["clean, enas"])


def test_impossible_probes_are_refused():
    with pytest.raises(UsageError, match="No poison 'arsenic'"):
        poisoned(enas_operations(), ["arsenic"], 1)
    with pytest.raises(UsageError, match="-1 instances"):
        Setting(("dropout",), -1)
    with pytest.raises(UsageError, match="-1 instances"):
        poisoned(enas_operations(), ["dropout"], -1)
    with pytest.raises(UsageError, match="No searcher 'spos'"):
        Setting(searcher="spos")
    with pytest.raises(UsageError, match="at least one setting"):
        probe_poisoning(bars_dataset(), [])
    with pytest.raises(SpaceError, match="name of an operation"):
        poisoned({"identity": enas_operations()["avg"]}, ["identity"], 1)
    with pytest.raises(SpaceError, match="at least one instance"):
        MacroSpace((1, 6, 6), 2, instances={"avg": 0})
    with pytest.raises(SpaceError, match="Instances of 'wax'"):
        MacroSpace((1, 6, 6), 2, instances={"wax": 2})
