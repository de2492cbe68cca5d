"""The claim on joint search: small searches, and its checks on tables made by hand."""

from __future__ import annotations

import pytest

from archipel.claims import bohb_joint as claim
from archipel.claims.harness import Table


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(claim, "BUDGETS", (1, 3))
    monkeypatch.setattr(claim, "EPOCHS", 14)
    monkeypatch.setattr(claim, "CONFIGURATIONS", 12)
    for kept in (claim._found, claim._all_budgets):
        kept.cache_clear()
    yield
    for kept in (claim._found, claim._all_budgets):
        kept.cache_clear()


def test_a_search_is_the_same_every_time_and_opens_the_test_split_once():
    setting = claim.CLAIM.grid[0]
    first = claim.measure(claim.SEPARATE, setting, 991)
    table = claim.curves(991)
    assert len(table.data.openings) == 1
    assert claim.measure(claim.SEPARATE, setting, 991) == first
    assert first.figures["validation error"] == pytest.approx(1 - first.validation)
    assert first.figures["full trainings"] >= 1


def test_only_the_separate_search_heeds_the_default_learning_rate():
    low, high = claim.CLAIM.grid[0], claim.CLAIM.grid[-1]
    assert claim.measure(claim.RANDOM, low, 992) == claim.measure(claim.RANDOM, high, 992)
    table = claim.curves(992)
    assert claim._separate(table, 1e-3, 992) != claim._separate(table, 0.1, 992)


def test_searches_spend_no_more_than_their_epochs(monkeypatch):
    spent = []
    table = claim.curves(993)
    real = table.from_scratch
    monkeypatch.setattr(table, "from_scratch", lambda arch, epochs: (spent.append(epochs), real(arch, epochs))[1])
    for strategy in (claim._bohb(), claim.RandomSearch()):
        spent.clear()
        claim._search(table, table.space, strategy, claim.EPOCHS, 993)
        assert 0 < sum(spent) - spent[-1] < claim.EPOCHS  # at most the last one was cut by the end


@pytest.mark.parametrize(("joint", "holds"), [((0.17, 0.18), True), ((0.19, 0.18), False)])
def test_the_joint_search_must_not_be_worse_on_average(joint, holds):
    table = Table({a: [{"validation error": e} for e in row]
                   for a, row in ((claim.JOINT, joint), (claim.RANDOM, (0.18, 0.18)))})  # fmt: skip
    assert claim._against(claim.RANDOM)(table)[0] is holds


@pytest.mark.parametrize(("rho", "holds"), [((0.9, 0.7, 0.6), True), ((0.9, 0.6, 0.7), False)])
def test_rank_correlations_must_fall_with_every_step(rho, holds):
    rows = [{f"rho {k} apart": r for k, r in enumerate(rho, 1)}] * 2
    assert claim.far_budgets_disagree(Table({claim.ALL: rows}))[0] is holds


@pytest.mark.parametrize(("share", "holds"), [(0.2, True), (0.01, False)])
def test_interactions_must_explain_a_twentieth(share, holds):
    row = {"shape x training": share, "shape x lr": 0.1, "lr alone": 0.5, "forest r2": 0.4}
    assert claim.shape_and_training_interact(Table({claim.ALL: [row, row]}))[0] is holds
