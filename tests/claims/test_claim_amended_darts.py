"""The claim about amended DARTS: its problems, a shrunken measurement, and its checks on tables made by hand."""

from __future__ import annotations

import pytest
import torch

from archipel.claims import amended_darts as claim
from archipel.claims import micro
from archipel.claims.harness import Table
from archipel.claims.hypergradients import NO_BATCH, MixedRegression, Quadratics
from archipel.search.differentiable.hypergradient import ConjugateGradients
from archipel.search.training import Recipe


def test_thousands_of_quadratics_are_solved_at_once_and_each_exactly():
    q = Quadratics([0.5, 1.0, 2.0], 2, 50, seed=0)
    torch.testing.assert_close(torch.linalg.eigvalsh(q.H), torch.tensor([0.5, 1.0, 2.0]).double().expand(50, 3))
    g = ConjugateGradients().gradient(q, NO_BATCH, NO_BATCH)["α"]
    by_hand = q.g - (q.M @ torch.linalg.solve(q.H, q.v[..., None])).squeeze(-1)
    torch.testing.assert_close(g, by_hand)


def test_the_regression_is_fitted_and_its_training_loss_has_the_decay(monkeypatch):
    monkeypatch.setattr(MixedRegression, "points", 8)
    p = MixedRegression(1.0, 0)
    assert sum(w.numel() for w in p.weights.values()) == 56
    assert p.fit(1e-3) < 1e-3
    squares = sum(float((w.detach() ** 2).sum()) for w in p.weights.values())
    difference = float((p.train_loss(p.train) - p.val_loss(p.train)).detach())
    assert difference == pytest.approx(squares / 2)


@pytest.fixture
def _shrunken(monkeypatch):
    small = {"DRAWS": 20, "PROBLEMS": 1, "DECAYS": (1.0,), "BATCH": 200}
    for name, value in small.items():
        monkeypatch.setattr(claim, name, value)
    monkeypatch.setattr(claim, "SEARCHES", {"first order, 1 epochs": ("first order", 1), "am": ("amended", 1)})
    monkeypatch.setattr(MixedRegression, "points", 8)
    monkeypatch.setattr(MixedRegression.fit, "__defaults__", (1e-3,))
    monkeypatch.setattr(micro, "RECIPE", Recipe(epochs=1, batch_size=200))
    monkeypatch.setattr(micro, "RANDOM_CELLS", 2)
    micro._retrained.cache_clear()
    yield
    micro._retrained.cache_clear()


@pytest.mark.usefixtures("_shrunken")
def test_arms_are_measured():
    found = {arm: claim.measure(arm, {}, 0) for arm in (claim.ESTIMATES, *claim.SEARCHES, claim.RANDOM)}
    assert all(-1 <= v <= 1 for k, v in found[claim.ESTIMATES].figures.items() if k.startswith("g"))
    assert found["am"].figures["ratio"] > 0
    assert "ratio" not in found["first order, 1 epochs"].figures


def table(free=(4.0, 4.0, 2.0, 2.0), test=(0.6, 0.6, 0.62, 0.65), ms=60.0, ratio=5.0, **changed):
    """Three seeds in which everything holds, but for what is changed."""
    one = {f"{n}, κ={k}": c for n, cs in claim.EXPECTED.items() for k, c in zip(claim.KAPPAS, cs)}
    for k in claim.KAPPAS:
        one |= {f"g amended, κ={k}, from 1": 0.7, f"g first order, κ={k}, from 1": 0.5}
    for d in claim.DECAYS:
        one |= {f"{n}, l2={d}": 0.5 for n in ("first order", "second order", "Neumann", "g2 second order")}
        one |= {f"amended, l2={d}": 0.6, f"g2 amended, l2={d}": 0.7, f"λ max, l2={d}": 9.0}
        one |= {f"positive, l2={d}": 4.0, f"above first, l2={d}": 3.0}
    arms = {claim.ESTIMATES: [one | changed.get("estimates", {})] * 3}
    for (arm, (name, _)), f, a in zip(claim.SEARCHES.items(), free, test):
        row = {"parameter-free": f, "ms": ms if name == "amended" else 20.0, "gap": 0.1}
        row |= {"ratio": ratio} if name == "amended" else {}
        arms[arm] = [{**row, "test": a + e} for e in (-0.01, 0.0, 0.01)]
    arms[claim.RANDOM] = [{"test": 0.4 + e, "between cells": 0.1} for e in (-0.01, 0.0, 0.01)]
    return Table({**arms, claim.CONV: [{"test": 0.6, "parameter-free": 0.0}] * 3})


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({}, []),
        ({"estimates": {"g amended, κ=10": 0.42}}, [0]),
        ({"estimates": {"positive, l2=0.1": 3.0}}, [1]),
        ({"estimates": {"g2 amended, l2=0.01": -0.1}}, [1]),
        ({"estimates": {"g amended, κ=100, from 1": 0.15}}, [2]),
        ({"estimates": {"amended, l2=0.01": -0.1}}, [3]),
        ({"ratio": 0.5}, [4]),
        ({"free": (2.0, 2.0, 2.0, 1.0)}, [5]),
        ({"free": (4.0, 5.0, 1.0, 3.0)}, [6]),
        ({"test": (0.6, 0.6, 0.62, 0.5)}, [7]),
        ({"test": (0.3, 0.3, 0.41, 0.65)}, [8]),
        ({"ms": 100.0}, [9]),
    ],
)
def test_each_check_fails_where_it_should(changed, failing):
    results = [c.test(table(**changed)) for c in claim.CLAIM.checks]
    assert [i for i, (holds, _) in enumerate(results) if not holds] == failing
    assert all(text for _, text in results)
    assert [c.asserted for c in claim.CLAIM.checks].count(True) == 2
