"""The claim on patterns of evolution: its figures on a short run, and its checks on tables made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from archipel.claims import nas_evolution_patterns as claim
from archipel.claims.harness import Table
from archipel.spaces.nb201_codec import OPS, NB201Codes


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """A made-up table instead of the package's, and short evolutions."""
    space = NB201Codes()
    table = SimpleNamespace(
        space=space, evaluate=lambda arch: {"accuracy": sum(OPS.index(op) for op in arch.values()) / 24}
    )
    macs, sizes = dict(zip(OPS, (1, 2, 5, 40, 3))), dict(zip(OPS, (0, 0, 4, 36, 0)))
    monkeypatch.setattr(claim, "_truth", lambda: (table, macs, sizes))
    monkeypatch.setattr(claim, "EVALUATIONS", 400)
    claim._evolve.cache_clear()
    yield
    claim._evolve.cache_clear()


def test_an_arm_is_measured_the_same_every_time():
    first = claim.measure(claim.METHOD, {}, 3)
    claim._evolve.cache_clear()
    assert claim.measure(claim.METHOD, {}, 3) == first
    assert first.figures["alive@100"] == first.figures["fifo@100"] == 1
    assert first.figures["oldest donor"] <= claim.P
    assert first.figures["donor gone"] == 0 < claim.measure(claim.MANY[1], {}, 3).figures["donor gone"]
    assert first.validation == first.figures["best"]


def test_every_arm_gives_the_figures_that_its_checks_need():
    rows = {arm.name: [claim.measure(arm.name, {}, seed) for seed in (0, 1)] for arm in claim.CLAIM.arms}
    table = Table({arm: [m.figures for m in measured] for arm, measured in rows.items()})
    for check in claim.CLAIM.checks:
        holds, text = check.test(table)
        assert isinstance(holds, bool)
        assert "±" in text
    assert "donors" not in rows[claim.RANDOM][0].figures  # random search has none


def three(figure, values):
    """Two seeds of each of the three arms with one worker."""
    return {arm: [{**figure, **v}, {**figure, **v}] for arm, v in zip(claim.ONE, values)}


@pytest.mark.parametrize(("founders", "holds"), [((15, 3, 1), True), ((15, 15, 1), False)])
def test_concentration_wants_donors_and_founders_to_fall_with_the_sample(founders, holds):
    rows = three({}, [{"donors": d, "donor genomes": d, "founders": f} for d, f in zip((9, 4, 2), founders)])
    assert claim.concentrates(Table(rows))[0] is holds


@pytest.mark.parametrize(("alive", "lru", "holds"), [(1.0, 0.9, True), (0.999, 0.9, False), (1.0, 1.0, False)])
def test_a_single_miss_of_the_population_cache_or_a_perfect_lru_refutes(alive, lru, holds):
    rows = three({"alive@100": alive, "fifo@100": 1.0, "lru@100": lru}, [{}, {}, {}])
    assert claim.never_misses(Table(rows))[0] is holds


@pytest.mark.parametrize(("one", "many", "holds"), [(0.0, 0.1, True), (0.0, 0.0, False), (0.01, 0.1, False)])
def test_donors_may_only_be_lost_with_many_workers(one, many, holds):
    rows = {arm: [{"donor gone": g}] * 2 for arms, g in ((claim.ONE, one), (claim.MANY, many)) for arm in arms}
    assert claim.workers_lose_donors(Table(rows))[0] is holds


@pytest.mark.parametrize(("stored", "holds"), [(0.2, True), (0.5, False)])
def test_shared_layers_must_save_two_thirds(stored, holds):
    assert claim.layers_shared(Table(three({}, [{"stored unchanged": stored}] * 3)))[0] is holds


@pytest.mark.parametrize(("slopes", "holds"), [((-0.4, -0.5), True), ((-0.4, 0.1), False)])
def test_one_seed_in_which_better_ranks_are_less_popular_refutes(slopes, holds):
    rest = {"peak/sd age": 1.0, "peak/sd S/P": 1.0, "peak/sd W": 0.0, "r2": 0.3}
    assert claim.rank_makes_popular(Table({claim.POOLED: [{"peak/sd rank": s, **rest} for s in slopes]}))[0] is holds


@pytest.mark.parametrize(("donors", "oldest", "holds"), [(40, 900, True), (380, 900, False), (40, 100, False)])
def test_controls_must_differ_in_donors_and_keep_them_longer(donors, oldest, holds):
    def rows(*seeds):
        return [dict(zip(("donors", "oldest donor", "repeats"), values)) for values in seeds]

    table = {
        claim.METHOD: rows((380, 100, 0.7), (384, 99, 0.71), (378, 100, 0.7)),
        claim.NO_AGING: rows((donors, oldest, 0.8), (donors + 6, oldest, 0.8), (donors - 2, oldest, 0.8)),
        claim.RANDOM: [{"repeats": 0.05}] * 3,
    }
    assert claim.controls_differ(Table(table))[0] is holds
