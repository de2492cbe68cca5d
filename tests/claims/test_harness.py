"""The claims harness: equal tuning, verdicts, resuming, staleness."""

from __future__ import annotations

import json

import pytest

from archipel.claims import harness, stored
from archipel.claims.harness import Check, Claim, ClaimArm, Measurement, Table, run_claim, verdict
from archipel.core.errors import RunError, UsageError

CALLS: list[tuple] = []


def measure(arm, setting, seed):
    CALLS.append((arm, setting["lr"], seed))
    bonus = {"method": 1.0, "plain": 0.5, "random": 0.0}[arm]
    return Measurement(bonus - abs(setting["lr"] - 2), {"accuracy": bonus + 0.01 * seed, "lr": setting["lr"]})


def claim(checks=None, **changes):
    checks = checks or [
        Check("better than plain", lambda t: (t.mean("method", "accuracy") > t.mean("plain", "accuracy"), ""))
    ]
    given = {
        "slug": "random",  # any registered method: its code enters the fingerprint
        "statement": "It works.",
        "scale": "Three numbers.",
        "arms": [ClaimArm("method", "method"), ClaimArm("plain", "untreated"), ClaimArm("random", "trivial")],
        "measure": measure,
        "checks": checks,
        "grid": [{"lr": 1}, {"lr": 2}, {"lr": 3}],
    }
    return Claim(**{**given, **changes})


@pytest.fixture(autouse=True)
def _clear():
    CALLS.clear()


def test_every_arm_gets_the_same_grid_and_the_tuning_seed_is_not_reported(tmp_path):
    result = run_claim(claim(), results=tmp_path)
    tuned = [(arm, lr) for arm, lr, seed in CALLS if seed == harness.TUNING_SEED]
    assert tuned == [(arm, lr) for arm in ("method", "plain", "random") for lr in (1, 2, 3)]
    assert {a["setting"]["lr"] for a in result["arms"]} == {2}
    assert harness.TUNING_SEED not in result["seeds"]
    assert len(result["figures"]["method"]) == 3
    assert json.loads((tmp_path / "random.json").read_text())["verdict"] == "holds"


def test_a_claim_goes_on_where_it_stopped(tmp_path):
    def stops(arm, setting, seed):
        if len(CALLS) == 7:
            raise KeyboardInterrupt
        return measure(arm, setting, seed)

    stops.__module__ = measure.__module__
    with pytest.raises(KeyboardInterrupt):
        run_claim(claim(measure=stops), results=tmp_path)
    done = list(CALLS)
    run_claim(claim(), results=tmp_path)
    assert len(CALLS) == 9 + 9
    assert len(set(CALLS)) == len(CALLS)
    assert CALLS[:7] == done
    run_claim(claim(), results=tmp_path)
    assert len(CALLS) == 18
    run_claim(claim(), results=tmp_path, fresh=True)
    assert len(CALLS) == 36


def test_a_line_cut_short_by_a_kill_is_measured_again(tmp_path):
    run_claim(claim(), results=tmp_path, notebook=tmp_path)
    path = tmp_path / "random.jsonl"
    path.write_text(path.read_text()[:-20])
    run_claim(claim(), results=tmp_path, notebook=tmp_path)
    assert len(CALLS) == 19
    run_claim(claim(), results=tmp_path, notebook=tmp_path)
    assert len(CALLS) == 19


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([(True, True), (True, True)], "holds"),
        ([(True, True), (True, False)], "holds in part"),
        ([(True, False), (True, False)], "does not hold at this scale"),
        ([(True, True), (False, False)], "holds"),
        ([(True, False), (False, True)], "does not hold at this scale"),
    ],
)
def test_the_verdict_rests_on_asserted_checks_alone(outcomes, expected):
    assert verdict([{"asserted": a, "holds": h} for a, h in outcomes]) == expected


def test_a_failed_check_is_stored_as_it_came_out(tmp_path):
    checks = [Check("impossible", lambda t: (False, f"{t.mean('method', 'accuracy'):.2f}"))]
    result = run_claim(claim(checks), results=tmp_path)
    assert result["verdict"] == "does not hold at this scale"
    assert result["checks"][0]["numbers"] == "1.01"


def test_claims_without_control_arms_asserted_checks_or_three_seeds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="untreated or trivial"):
        claim(arms=[ClaimArm("method", "method")])
    with pytest.raises(ValueError, match="must be asserted"):
        claim([Check("x", lambda t: (True, ""), asserted=False)])
    with pytest.raises(ValueError, match="at least 3 seeds"):
        claim(seeds=2)
    with pytest.raises(UsageError, match="at least 3 seeds"):
        run_claim(claim(), seeds=1, results=tmp_path)
    with pytest.raises(ValueError, match="role"):
        ClaimArm("a", "winner")


def test_a_measurement_without_a_finite_validation_score_is_an_error(tmp_path):
    def broken(arm, setting, seed):
        return Measurement(float("nan"), {})

    broken.__module__ = measure.__module__
    with pytest.raises(RunError, match="validation nan"):
        run_claim(claim(measure=broken), results=tmp_path)


def test_the_fingerprint_changes_with_code_and_not_with_comments(tmp_path, monkeypatch):
    sources = {"a": "def f():\n    '''Doc.'''\n    return 1\n"}
    monkeypatch.setattr(harness.inspect, "getsource", lambda module: sources["a"])
    before = harness.fingerprint(claim())
    sources["a"] = "# A comment\ndef f():\n    '''Another doc.'''\n    return 1\n"
    assert harness.fingerprint(claim()) == before
    sources["a"] = "def f():\n    '''Doc.'''\n    return 2\n"
    assert harness.fingerprint(claim()) != before


def test_stored_claims_show_verdict_seeds_and_staleness(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "all_claims", lambda: {"random": claim()})
    assert stored.stored_claims("random", tmp_path)[0]["verdict"] == "not run"
    run_claim(claim(), results=tmp_path)
    assert stored.stored_claims("random", tmp_path) == [
        {"statement": "It works.", "verdict": "holds", "seeds": 3, "stale": False}
    ]
    monkeypatch.setattr(stored, "fingerprint", lambda c: "other")
    assert stored.stored_claims("random", tmp_path)[0]["stale"]


def test_tables_and_figures_show_every_arm(tmp_path):
    result = run_claim(claim(), results=tmp_path)
    for arm in ("method", "plain", "random"):
        assert arm in result["table"]
    assert stored.figure(result).startswith("<svg")
    assert Table({"a": [{"x": 1.0}]}).text().splitlines()[0].split() == ["arm", "x"]


def test_every_stored_result_belongs_to_a_claim_and_was_run_with_three_seeds():
    claims = harness.all_claims()
    for result in stored.stored_results():
        assert result["slug"] in claims
        assert len(result["seeds"]) >= 3
        assert result["verdict"] == verdict(result["checks"])
