"""The claim about training heuristics: a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from archipel.claims import elastic_truth
from archipel.claims import supernet_heuristics as claim
from archipel.claims.harness import Table
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
    elastic_truth.full_truth.cache_clear()
    claim._finished.cache_clear()
    yield
    elastic_truth.full_truth.cache_clear()
    claim._finished.cache_clear()
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured_and_a_held_learning_rate_is_the_profile_at_it():
    first = claim.measure(claim.BATCH_STATS, {"lr": 0.3}, 0)
    held = claim.measure("lr 0.3", {"lr": 0.03}, 0)
    assert held.validation == first.validation == first.figures["accuracy"]
    assert held.figures["tau"] == first.figures["tau"]
    tracked = claim.measure(claim.TRACKED, {"lr": 0.3}, 0)
    assert tracked.figures["accuracy"] == held.figures["tracked accuracy"] != first.figures["accuracy"]
    claim._finished.cache_clear()
    assert claim.measure(claim.TRACKED, {"lr": 0.3}, 0) == tracked


@pytest.mark.usefixtures("_shrunken")
def test_random_order_is_ranked_like_any_other():
    figures = claim.measure(claim.RANDOM, {"lr": 0.1}, 0).figures
    assert abs(figures["tau"]) < 0.5
    assert figures["best"] > figures["picked"] > 0
    assert 0 < figures["p > random"] < 1


def table(accuracy: float, tau: float) -> Table:
    """Figures of three seeds: the profile has 0.75 and 0.7, tracked statistics ``accuracy`` and ``tau``."""

    def row(a: float, t: float, d: float) -> dict[str, float]:
        own = {"accuracy": a + d, "tau": t + d, "sparse tau": t + d, "p > random": 0.5, "picked": t + 0.1 + 2 * d}
        return {**own, "ceiling": 0.75, "tracked accuracy": accuracy + d, "tracked tau": tau + d,
                "ops tau": 0.1, "ops ceiling": 0.1, "best": 0.9}  # fmt: skip

    arms = {a.name: (0.75, 0.7) for a in claim.CLAIM.arms} | {claim.TRACKED: (accuracy, tau)}
    random = [row(0.1, -0.1, 0.0)] * len(DEVIATIONS)
    return Table({arm: [row(a, t, d) for d in DEVIATIONS] for arm, (a, t) in arms.items()} | {claim.RANDOM: random})


@pytest.mark.parametrize(("accuracy", "tau", "expected"), [(0.7, 0.6, [1, 1]), (0.76, 0.6, [0, 1]), (0.7, 0.7, [1, 0])])
def test_tracked_statistics_must_lower_accuracy_and_tau(accuracy, tau, expected):
    results = [c.test(table(accuracy, tau)) for c in claim.CLAIM.checks]
    assert [c.asserted for c in claim.CLAIM.checks] == [True] * 2 + [False] * 7
    assert [holds for holds, _ in results[:2]] == [bool(e) for e in expected]
    assert all(text for _, text in results)
