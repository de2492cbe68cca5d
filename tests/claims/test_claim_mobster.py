"""The claim about MOBSTER: its objectives, one small measurement, and checks on tables made by hand."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from archipel.claims import mobster as claim
from archipel.claims.harness import Table, verdict


def table(matern, decay, asha):
    rows = {claim.MATERN: matern, claim.DECAY: decay, claim.UNTREATED: asha, claim.TRIVIAL: -1.1, claim.RIVAL: -1.2}
    figures = ("log10 regret", "table regret", "seconds to ASHA's end")
    return Table({arm: [dict.fromkeys(figures, v + 0.01 * s) for s in range(5)] for arm, v in rows.items()})


def outcome(t):
    return [{"asserted": c.asserted, "holds": c.test(t)[0]} for c in claim.CLAIM.checks]


def test_the_verdict_rests_on_both_kernels_being_below_plain_halving():
    assert verdict(outcome(table(-1.8, -1.9, -1.3))) == "holds"
    assert verdict(outcome(table(-1.8, -1.2, -1.3))) == "holds in part"
    assert verdict(outcome(table(-1.3, -1.2, -1.3))) == "does not hold at this scale"
    assert sum(c.asserted for c in claim.CLAIM.checks) == 2


def test_no_point_is_better_than_the_optimum_and_curves_fall_towards_their_asymptote():
    rng = Random(0)
    for seed in range(5):
        objective = claim.LearningCurves(seed)
        for _ in range(200):
            arch = objective.space.sample(rng)
            losses = [objective.evaluate(arch, r)["loss"] for r in range(1, claim.EPOCHS + 1)]
            assert losses == sorted(losses, reverse=True)
            assert losses[-1] > objective.optimum
        assert objective.optimum < 0.1


def test_rows_of_a_table_are_encoded_as_what_they_decide():
    inner = claim.LearningCurves.space
    archs = [inner.sample(Random(s)) for s in range(7)]
    rows = claim.Rows(inner, archs)
    assert (rows.size, rows.encoding_size) == (7, 4)
    for i, arch in enumerate(archs):
        np.testing.assert_array_equal(rows.encode({"row": i}), inner.encode(arch))


@pytest.fixture
def _small(monkeypatch):
    accuracy = 1 - np.exp(-np.outer(np.linspace(0.01, 0.2, 40), np.arange(1, claim.EPOCHS + 1)))
    accuracy[3, 5:] = np.nan  # diverged
    inner = claim.LearningCurves.space
    rows = claim.Rows(inner, [inner.sample(Random(s)) for s in range(40)])
    monkeypatch.setattr(claim, "_table", lambda: (rows, accuracy))
    for name in ("HORIZON", "TABLE_HORIZON"):
        monkeypatch.setattr(claim, name, 30)
    claim._on_curves.cache_clear()
    yield
    claim._on_curves.cache_clear()


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("arm", [claim.MATERN, claim.TRIVIAL])
def test_a_measurement_is_deterministic_and_all_its_figures_make_sense(arm):
    first = claim.measure(arm, {}, 1)
    figures = first.figures
    assert first.validation == -figures["log10 regret"]
    assert figures["idle seconds"] == 0
    assert 0 <= figures["table final regret"] <= figures["table regret at 50%"] <= 1
    assert 0 < figures["final regret"] <= figures["regret at 50%"]
    assert 1 <= figures["seconds to ASHA's end"] <= 30
    claim._on_curves.cache_clear()
    assert claim.measure(arm, {}, 1) == first
