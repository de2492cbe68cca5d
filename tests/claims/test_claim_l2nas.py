"""The claim about L²NAS: a shrunken measurement, its table, and its checks on tables made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from archipel.claims import l2nas as claim
from archipel.claims.harness import Table


def test_the_table_is_standardised_and_spread_out():
    z = claim._scores(0)
    assert z.shape == (15625,)
    assert (z.mean(), z.std()) == pytest.approx((0.0, 1.0))
    table, related = claim._table(), claim._table(True)
    assert 0.5 < table.min() < 0.65 < 0.75 < table.max() < 0.9
    assert np.corrcoef(table, related)[0, 1] > 0.9
    assert claim._accuracy(table, {f"e{i}": int(v) for i, v in enumerate(claim.CELLS[777])}) == table[777]


@pytest.mark.parametrize("arm", claim.ARMS)
def test_arms_are_measured(arm, monkeypatch):
    for name, value in {"QUERIES": 30, "TRANSFER": 6, "AT": (10, 20)}.items():
        monkeypatch.setattr(claim, name, value)
    figures = claim.measure(arm, {}, 0).figures
    assert 0 <= figures["regret"] <= figures["regret at 20"] <= figures["regret at 10"] < 0.4
    if arm in claim.L2NAS:
        both = [figures[f"regret of {who} proposals"] for who in ("actor", "random")]
        assert figures["regret"] == pytest.approx(min(both))
    assert ("warm" in figures) == (arm == claim.QUANTILE)


def table(**changed):
    """Ten seeds in which everything holds, but for what is changed: arm -> figures."""
    common = {"regret at 100": 0.05, "regret at 250": 0.03, "ms": 10.0}
    regrets = {"QUANTILE": 0.001, "SQUARED": 0.004, "RANDOM": 0.02, "EVOLUTION": 0.002, "REINFORCE": 0.003}
    arms = {getattr(claim, n): {**common, "regret": r} for n, r in regrets.items()}
    proposals = {f"regret of {who}": r for who, r in (("actor proposals", 0.001), ("random proposals", 0.03))}
    arms[claim.QUANTILE] |= {**proposals, "regret of the actor's answer": 0.002, "warm": 0.01, "cold": 0.03}
    for arm, figures in changed.items():
        arms[getattr(claim, arm)] |= figures
    return Table({arm: [dict(f) for _ in range(10)] for arm, f in arms.items()})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"RANDOM": {"regret": 0.0}}, [0, 6]),
        ({"SQUARED": {"regret": 0.0}}, [1, 6]),
        ({"QUANTILE": {"warm": 0.04}}, [2]),
        ({"QUANTILE": {"regret of actor proposals": 0.04}}, [3]),
        ({"EVOLUTION": {"regret": 0.0}}, [4, 6]),
        ({"REINFORCE": {"regret": 0.0}}, [5, 6]),
        ({"QUANTILE": {"ms": 60.0}}, [7]),
    ],
    ids=str,
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
