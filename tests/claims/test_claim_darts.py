"""The claim about DARTS: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from archipel.claims import darts as claim
from archipel.claims import micro
from archipel.claims.harness import Table
from archipel.core.errors import DataError
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable.schedule import Schedule
from archipel.search.training import Recipe

OPERATIONS = {"none": 0.0, "skip": 1.0, "conv1x1": 1.0, "conv3x3": 4.0, "avgpool3x3": 0.0}
DEVIATIONS = (-0.01, 0.0, 0.01)


@pytest.fixture
def _shrunken(monkeypatch):
    images = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = Split(images, torch.arange(40) % 10)

    if importlib.util.find_spec("analognasbench") is None:
        pytest.skip("the table of NAS-Bench-201 is not installed (extra 'tables')")
    monkeypatch.setattr(claim, "_cifar", lambda: Dataset("noise", data, data, None, "classification", 10))
    monkeypatch.setattr(claim, "REAL", Schedule(epochs=2, batch_size=20))
    monkeypatch.setattr(claim, "MICRO", Schedule(epochs=2, batch_size=100))
    monkeypatch.setattr(micro, "RECIPE", Recipe(epochs=1, batch_size=200))
    monkeypatch.setattr(micro, "RANDOM_CELLS", 2)
    micro._retrained.cache_clear()
    yield
    micro._retrained.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured_and_a_search_is_the_same_again():
    first = claim.measure(claim.PARTIAL, {}, 0)
    assert claim.measure(claim.PARTIAL, {}, 0) == first
    assert sum(first.figures[op] for op in OPERATIONS) == 6
    assert 0 <= first.figures["p random better"] < 1
    later = claim.measure(claim.DROP, {}, 0).figures
    assert {"trained", "p random better", "gap"} <= set(later)
    best, random = (claim.measure(arm, {}, 0).figures for arm in (claim.BEST, claim.RANDOM))
    assert best["p random better"] == 0
    assert best["trained"] > random["trained"] > 0.8


def test_missing_images_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ARCHIPEL_DATA", str(tmp_path))
    claim._cifar.cache_clear()
    with pytest.raises(DataError, match=r"cifar10: cifar-10-python.tar.gz is missing: not in ARCHIPEL_DATA"):
        claim._cifar()


def table(search, random):
    """Figures of three seeds: searches reach ``search`` ± 0.01, random cells ``random``."""
    common = {"mixture": 0.5, "one_hot": 0.3, "gap": 0.2, "micro gap": 0.1, **OPERATIONS}
    found = [{"trained": search + d, "micro test": search + d, "p random better": 0.1, **common} for d in DEVIATIONS]
    fixed = {"trained": 0.93, "micro test": 0.5, **OPERATIONS}
    chance = {"trained": random, "micro test": random}
    rest = {claim.RANDOM: [chance] * 3, claim.CONV: [fixed] * 3, claim.BEST: [fixed] * 3}
    return Table({**dict.fromkeys((*claim.SEARCHES, *claim.LATER), found), **rest})


@pytest.mark.parametrize(("search", "expected"), [(0.92, True), (0.88, False), (0.885, False)])
def test_searches_must_beat_random_cells_by_more_than_two_standard_errors(search, expected):
    results = [c.test(table(search, random=0.88)) for c in claim.CLAIM.checks]
    assert [holds for holds, _ in results[:4]] == [expected] * 4
    assert all(text for _, text in results)
    assert [c.asserted for c in claim.CLAIM.checks] == [True] * 4 + [False] * 8
