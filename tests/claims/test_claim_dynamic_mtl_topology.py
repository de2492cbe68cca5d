"""The claim of dynamic topologies: checks that can hold and fail, and one measurement at a smaller scale."""

from __future__ import annotations

from archipel.claims import dynamic_mtl_topology as module
from archipel.claims.dynamic_mtl_topology import CHAIN, CHANCE, CLAIM, FLOW, LOOSE, SINGLE
from archipel.claims.harness import Table


def table(**changes):
    row = {f"{kind} {n}": 0.5 for n in (8, 5) for kind in ("cut", "test")} | {"digit depth": 1.0, "params 8": 100.0}
    rows = {a.name: [dict(row) for _ in range(3)] for a in CLAIM.arms}
    for arm, figures in changes.items():
        for r in rows[arm.replace("_", " ")]:
            r |= figures
    return Table(rows)


def test_asserted_checks_hold_and_fail():
    flow, squeeze, good = (c.test for c in CLAIM.checks if c.asserted)
    right = table(**{CHANCE: {"cut 8": 0.4, "cut 5": 0.3}, LOOSE: {"digit depth": 2.0}, SINGLE: {"params 8": 300.0}})
    assert flow(right)[0] and squeeze(right)[0] and good(right)[0]  # noqa: PT018
    wrong = table(**{FLOW: {"cut 5": 0.2, "test 8": 0.3, "digit depth": 1.5}, CHAIN: {"test 8": 0.6}})
    assert not flow(wrong)[0]
    assert not squeeze(wrong)[0]
    assert not good(wrong)[0]


def test_measurements(monkeypatch):
    for name in ("WARMUP", "EPOCHS", "TUNE"):
        monkeypatch.setattr(module, name, 1)
    module.searched.cache_clear()
    try:
        found = module.measure(FLOW, {}, 0).figures
        assert {"cut 8", "test 5", "digit depth", "params 8"} <= set(found)
        assert found["params 5"] <= found["params 8"]
        assert {"test 8", "params 8"} <= set(module.measure(SINGLE, {}, 0).figures)
    finally:
        module.searched.cache_clear()
