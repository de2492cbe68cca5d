"""The claim about single paths: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from archipel.claims import elastic_truth
from archipel.claims import spos as claim
from archipel.claims.harness import Table
from archipel.core.choice import Fixed
from archipel.search.oneshot.stand_alone import Truth

DEVIATIONS = (-0.01, 0.0, 0.01)


def made_up_truth(space, archs, dataset, recipe, seeds):
    """In place of training every network alone."""
    assert len(dataset.val) == 397  # judged on the test split
    noise = np.random.default_rng(0).uniform(0.0, 0.1, (seeds, len(archs)))
    return Truth(archs, 0.7 + noise)


@pytest.fixture
def _shrunken(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(elastic_truth, "stand_alone_truth", made_up_truth)
    monkeypatch.setattr(claim, "SUPERNET_EPOCHS", 1)
    monkeypatch.setattr(claim, "EVOLUTION", {"population": 2, "generations": 2, "crossover": 1, "mutation": 1})
    elastic_truth.full_truth.cache_clear()
    yield
    elastic_truth.full_truth.cache_clear()
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured_in_both_spaces_and_the_same_again():
    first = claim.measure(claim.SINGLE, {"lr": 0.1}, 0)
    assert claim.measure(claim.SINGLE, {"lr": 0.1}, 0) == first
    assert first.validation == pytest.approx((first.figures["shared"] + first.figures["ops shared"]) / 2)
    random, best = (claim.measure(arm, {"lr": 0.1}, 0).figures for arm in (claim.RANDOM, claim.BEST))
    assert first.figures["gain"] == pytest.approx(first.figures["picked"] - random["picked"])
    assert first.figures["to best"] == pytest.approx(best["picked"] - first.figures["picked"])
    assert claim.measure(claim.ALL_PATHS, {"lr": 0.1}, 0).validation != first.validation


@pytest.mark.usefixtures("_shrunken")
def test_truth_holds_every_network_once_and_searches_do_not_see_its_split():
    for name, size in ((elastic_truth.WIDTHS, 64), (elastic_truth.OPS, 27)):
        truth = elastic_truth.full_truth(name)
        assert len({elastic_truth.space(name).canonical(a) for a in truth.archs}) == size
        assert truth.accuracy_SN.shape == (elastic_truth.ALONE_SEEDS, size)
    sample = elastic_truth.sampled_truth(elastic_truth.WIDTHS, 3)
    assert len({elastic_truth.space(elastic_truth.WIDTHS).canonical(a) for a in sample.archs}) == 20
    data = elastic_truth.digits()
    assert data.openings == ["claim: stand-alone truth"] * len(data.openings)
    assert (len(data.train), len(data.val), len(data.open_test("claim: stand-alone truth"))) == (1000, 400, 397)


def test_untreated_arm_trains_every_channel_at_every_step():
    strategy = claim._AllChannels()
    supernet = elastic_truth.space(elastic_truth.WIDTHS).supernet(0)
    (decider,) = strategy._sampler(supernet, strategy.factors)(None)  # type: ignore[arg-type]
    assert isinstance(decider, Fixed)
    assert decider.arch == {"width0": 64, "width1": 64, "width2": 64}


def table(gain: float, tau: float) -> Table:
    """Figures of three seeds: what is picked is ``gain`` above random networks of 0.75, ranked with ``tau``."""
    random = {"picked": 0.75, "gain": 0.0, "to best": 0.1}
    best = {"picked": 0.85, "gain": 0.1, "to best": 0.0}
    other = {"evolved": 0.8, "ceiling": 0.7, "ops tau": 0.1, "ops ceiling": 0.1, "ops gain": 0.0}
    single = [
        {"picked": 0.75 + gain + d, "gain": gain + d, "to best": 0.1 - gain - d, "tau": tau + d, **other}
        for d in DEVIATIONS
    ]
    rest = {claim.RANDOM: random, claim.LARGEST: best, claim.BEST: best, claim.ALL_PATHS: single[0]}
    return Table({claim.SINGLE: single, **{arm: [row] * 3 for arm, row in rest.items()}})


@pytest.mark.parametrize(("gain", "tau", "expected"), [(0.09, 0.5, [1, 1]), (0.07, 0.16, [0, 1]), (0.09, 0.1, [1, 0])])
def test_gain_of_eight_points_and_a_tau_above_015_carry_the_verdict(gain, tau, expected):
    results = [c.test(table(gain, tau)) for c in claim.CLAIM.checks]
    assert [c.asserted for c in claim.CLAIM.checks] == [True] * 2 + [False] * 7
    assert [holds for holds, _ in results[:2]] == [bool(e) for e in expected]
    assert all(text for _, text in results)
