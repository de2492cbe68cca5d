"""The claim of search-space poisoning is well-formed, and its asserted checks can hold and fail."""

from __future__ import annotations

from archipel.claims.harness import Table
from archipel.claims.search_space_poisoning import CLAIM, SETTINGS


def table(test):
    return Table(
        {a: [{"test": test(a) + 0.01 * s, "bad": 0.0, "sampled bad": 0.0} for s in range(3)] for a in SETTINGS}
    )


def test_every_arm_has_a_setting():
    assert {a.name for a in CLAIM.arms} == set(SETTINGS)


def test_asserted_checks_hold_where_poison_harms_and_fail_where_it_does_not():
    def harmed(arm):
        return 0.7 if "clean" in arm else 0.5 if "x1," in arm else 0.2

    asserted = [c for c in CLAIM.checks if c.asserted]
    assert all(c.test(table(harmed))[0] for c in asserted)
    unharmed = table(lambda arm: 0.2 if "random" in arm else 0.6)
    assert not any(c.test(unharmed)[0] for c in asserted)
