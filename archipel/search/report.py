"""What a search reports: the network, and how it compares with random architectures.

All figures are plain data, for ``report.json``; :mod:`archipel.search.page` shows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from archipel.search import metrics as ranking
from archipel.search.pareto import pareto_front

if TYPE_CHECKING:
    from archipel.search.driver import Search
    from archipel.search.loop import Arm
    from archipel.search.strategy import Trial


def build_report(
    search: Search, arms: list[Arm], finals: Arm | None, chosen: Trial, test: list[dict[str, float] | None] | None
) -> dict[str, Any]:
    """All figures of a run as JSON.

    Args:
        arms: the strategy's and, where it ran, the random baseline's.
        finals: the chosen network and the random ones that were trained like it; None if interrupted.
        chosen: the trial that is handed over.
        test: test metrics of ``finals``, in order.
    """
    config, space, main = search.config, search.parts.space, search.objectives[0]
    metrics = {f"val_{k}" if k in ("accuracy", "loss", "r2") else k: v for k, v in chosen.metrics.items()}
    tested = test[chosen.id] if test else None
    if tested:
        metrics |= {f"test_{k}": v for k, v in tested.items()}
    report: dict[str, Any] = {
        "status": "interrupted" if finals is None else "finished",
        "run": str(search.run.path),
        "chosen": {
            "arch": chosen.arch,
            "canonical": space.canonical(chosen.arch),
            "metrics": metrics,
            "costs": search.costs(chosen.arch),
            "epochs": (config.final_epochs or 2 * config.recipe.epochs) if finals else arms[0].resource(chosen),
        },
        "objective": {"metric": main.metric, "mode": main.mode},
        "limits": config.limits,
        "spent": {arm.name: arm.ledger.as_dict() for arm in [*arms, *([finals] if finals else [])]},
        "prepare_seconds": search.run.journal.recall("seconds:prepare", 0.0),
        "test_openings": [e for e in search.run.read_log() if e["event"] == "test opened"],
        "curves": {arm.name: _curve(arm) for arm in arms},
        "trials": [_point(arm.name, t) for arm in arms for t in _some([t for t in arm.trials if t.ok])],
        "failures": [{"arm": a.name, "id": t.id, "reason": t.failure} for a in arms for t in a.trials if t.failure],
        "pareto": _pareto(arms, search),
        "protocol": {
            "data": config.data,
            "space": space.name,
            "space_size": str(space.size),
            "strategy": config.strategy,
            "strategy_options": config.strategy_options,
            "budget": config.budget.describe(),
            "recipe": config.recipe.as_dict(),
            "final_epochs": config.final_epochs or 2 * config.recipe.epochs,
            "seed": config.seed,
            "workers": config.workers,
        },
        "notes": [],
    }
    report["random"] = _against_random(arms, finals, test, main, report["notes"], search.config.final_random)
    report["supernet"] = _supernet_ranking(search, arms, main)
    return report


def _against_random(
    arms: list[Arm],
    finals: Arm | None,
    test: list[dict[str, float] | None] | None,
    main: Any,
    notes: list[str],
    rivals: int,
) -> dict[str, Any] | None:
    """The comparison with random architectures under the same training, as far as it was paid for."""
    if not arms[0].complete_trials() and arms[0].best:
        most, full = arms[0].resource(arms[0].best), arms[0].problem.max_resource
        notes.append(f"No trial of the strategy had all {full} epochs; the network was chosen by results after {most}.")
    if len(arms) < 2:
        notes.append("No random baseline ran, so nothing here says that the search was worth it.")
        return None
    sign = 1.0 if main.mode == "max" else -1.0
    ours, random = (np.array([t.metrics[main.metric] for t in arm.complete_trials()]) for arm in arms[:2])
    out: dict[str, Any] = {"n": len(random), "epochs": arms[1].problem.max_resource}
    if len(random) < 2:
        notes.append(f"Only {len(random)} random architectures were trained; two or more are needed to compare.")
    elif len(ours):
        out |= _on_validation(arms, ours, random, sign)
        text = "Validation figures of the chosen network are the best of many and so favour it; test figures do not."
        notes.append(text)
    if finals and finals.best and test and main.metric in (test[finals.best.id] or {}):  # a cost needs no test
        out["final_test"] = final = _final_test(finals, test, main, rivals)
        if final["random"] and sign * final["random_best"] > sign * final["chosen"]:
            notes.append("After the same final training a random architecture did better on the test split.")
    return out


def _on_validation(arms: list[Arm], ours: np.ndarray, random: np.ndarray, sign: float) -> dict[str, Any]:
    """The strategy's complete trials against those of random search; ``sign`` is -1 where less is better."""
    best = max(sign * ours) * sign
    out = {
        "mean": float(random.mean()),
        "std": float(random.std(ddof=1)),
        "best": float(max(sign * random) * sign),
        "p_random_better": float((1 + (sign * random >= sign * best).sum()) / (1 + len(random))),
        "budget_matched": {
            "search": {"best": float(best), **_spent(arms[0])},
            "random": {"best": float(max(sign * random) * sign), **_spent(arms[1])},
        },
    }
    return out


# The report shows at most this many trials of an arm; all are in trials.sqlite.
SHOWN = 1_000


def _some(trials: list[Trial]) -> list[Trial]:
    """Evenly spaced trials, few enough to draw."""
    step = -(-len(trials) // SHOWN) if trials else 1
    return trials[::step]


def _spent(arm: Arm) -> dict[str, float]:
    return {"queries": arm.ledger.queries, "epochs": arm.ledger.epochs, "seconds": arm.ledger.seconds}


def _final_test(finals: Arm, test: list[dict[str, float] | None], main: Any, rivals: int) -> dict[str, Any]:
    """Test figures after the final training: the chosen network's and the random ones', which come last.

    The relative improvement (Yang et al. 2020) is over the average random architecture, trained and tested alike; its
    interval is the bootstrap's over the random ones.
    """
    assert finals.best is not None
    random = np.array([t[main.metric] for t in test[len(test) - rivals :] if t is not None])
    measured = test[finals.best.id]
    assert measured is not None
    chosen = measured[main.metric]
    out: dict[str, Any] = {"metric": main.metric, "chosen": chosen, "random": random.tolist()}
    if len(random):
        best = random.max() if main.mode == "max" else random.min()
        out |= {"random_mean": float(random.mean()), "random_best": float(best)}
    if len(random) and random.mean() > 0:
        out["relative_improvement_percent"] = float(100 * (chosen - random.mean()) / random.mean())
    if len(random) > 1 and random.mean() > 0:
        interval = ranking.bootstrap_ci(random, lambda r, axis: 100 * (chosen - r.mean(axis)) / r.mean(axis))
        out["relative_improvement_interval"] = [interval.low, interval.high]
    return out


def _supernet_ranking(search: Search, arms: list[Arm], main: Any) -> dict[str, Any] | None:
    """How well shared weights rank the architectures that were trained alone (random ones, if there are any)."""
    arm = arms[-1]
    done = [t for t in arm.trials if t.ok]
    shared = search.parts.strategy.shared_scores([t.arch for t in done]) if done else None
    if shared is None:
        return None
    alone = [main.score(t.metrics) for t in done]
    out: dict[str, Any] = {"architectures": len(done), "of": arm.name}
    if len(done) >= 3:
        out["kendall_tau"] = ranking.kendall_tau(alone, shared)
        out["spearman"] = ranking.spearman(alone, shared)
    return out


def _curve(arm: Arm) -> dict[str, list[float]]:
    """Best fully trained score so far, against queries and against seconds of training."""
    best, seconds = float("-inf"), 0.0
    curve: dict[str, list[float]] = {"queries": [], "seconds": [], "best": []}
    metric = arm.problem.objectives[0]
    for i, trial in enumerate(arm.trials, 1):
        seconds += trial.seconds
        if trial.ok and arm.complete(trial) and arm.score(trial) > best:
            best = arm.score(trial)
            curve["queries"].append(i)
            curve["seconds"].append(seconds)
            curve["best"].append(trial.metrics[metric.metric])
    if curve["queries"]:
        curve["queries"].append(len(arm.trials))
        curve["seconds"].append(seconds)
        curve["best"].append(curve["best"][-1])
    return curve


def _point(arm: str, trial: Trial) -> dict[str, Any]:
    return {"arm": arm, "id": trial.id, "arch": trial.arch, "resource": trial.resource, "metrics": trial.metrics}


def _pareto(arms: list[Arm], search: Search) -> list[dict[str, Any]]:
    """Trials that no other one beats in all objectives (main metric against MACs if there is only one)."""
    from archipel.search.strategy import Objective

    objectives = list(search.objectives)
    if len(objectives) == 1 and search.costs(arms[0].best.arch if arms[0].best else {}):
        objectives.append(Objective("macs", "min"))
    done = [(arm.name, t) for arm in arms for t in arm.contenders() if search.limits.feasible(t.arch)]
    if not done:
        return []
    scores = np.array([[o.score(t.metrics) for o in objectives] for _, t in done])
    front = sorted(pareto_front(scores), key=lambda i: -scores[i][0])
    once = {search.parts.space.canonical(done[i][1].arch): done[i] for i in reversed(front)}
    return [_point(*once[key]) for key in reversed(once)]
