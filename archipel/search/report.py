"""What a search reports: the network, and how it compares with random architectures.

Numbers go to ``report.json``; ``report.html`` shows them, self-contained and interactive.
"""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.space import Space
from archipel.core.storage import write_atomically
from archipel.search import metrics as ranking
from archipel.search.pareto import pareto_front

if TYPE_CHECKING:
    import networkx as nx

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
    if len(arms) < 2:
        notes.append("No random baseline ran, so nothing here says that the search was worth it.")
        return None
    sign = 1.0 if main.mode == "max" else -1.0
    ours, random = (np.array([t.metrics[main.metric] for t in arm.complete_trials()]) for arm in arms[:2])
    out: dict[str, Any] = {"n": len(random)}
    if len(random) < 2 or not len(ours):
        notes.append(f"Only {len(random)} random architectures were trained; two or more are needed to compare.")
        return out
    best = max(sign * ours) * sign
    out |= {
        "mean": float(random.mean()),
        "std": float(random.std(ddof=1)),
        "best": float(max(sign * random) * sign),
        "p_random_better": float((1 + (sign * random >= sign * best).sum()) / (1 + len(random))),
        "budget_matched": {
            "search": {"best": float(best), **_spent(arms[0])},
            "random": {"best": float(max(sign * random) * sign), **_spent(arms[1])},
        },
    }
    if random.mean() > 0:
        interval = ranking.bootstrap_ci(random, lambda r, axis: 100 * (best - r.mean(axis)) / r.mean(axis))
        out["relative_improvement_percent"] = float(100 * (best - random.mean()) / random.mean())
        out["relative_improvement_interval"] = [interval.low, interval.high]
    notes.append("Validation figures of the chosen network are the best of many and so favour it; test figures do not.")
    if finals and finals.best and test and test[finals.best.id]:
        out["final_test"] = final = _final_test(finals, test, main, rivals)
        if final["random"] and sign * final["random_best"] > sign * final["chosen"]:
            notes.append("After the same final training a random architecture did better on the test split.")
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
    """Test figures after the final training: the chosen network's and the random ones', which come last."""
    assert finals.best is not None
    random = [t[main.metric] for t in test[len(test) - rivals :] if t is not None]
    chosen = test[finals.best.id]
    best = max if main.mode == "max" else min
    return {
        "metric": main.metric,
        "chosen": None if chosen is None else chosen[main.metric],
        "random": random,
        "random_mean": float(np.mean(random)) if random else None,
        "random_best": best(random) if random else None,
    }


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
        full = trial.resource is None or trial.resource >= arm.problem.max_resource
        if trial.ok and full and arm.score(trial) > best:
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
    full = search.config.recipe.epochs
    done = [
        (arm.name, t)
        for arm in arms
        for t in arm.trials
        if t.ok and (t.resource is None or t.resource >= full) and search.limits.feasible(t.arch)
    ]
    if not done:
        return []
    scores = np.array([[o.score(t.metrics) for o in objectives] for _, t in done])
    front = sorted(pareto_front(scores), key=lambda i: -scores[i][0])
    once = {search.parts.space.canonical(done[i][1].arch): done[i] for i in reversed(front)}
    return [_point(*once[key]) for key in reversed(once)]


# --- the page ------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1b2733 }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .6rem 0 } td, th { padding: .25rem .8rem .25rem 0; text-align: left;
border-bottom: 1px solid #dde3e8; vertical-align: top } th { font-weight: 600 }
.note { color: #5b6b7a } code, pre { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere }
svg { max-width: 100%; height: auto }
"""


def write_html(path: Path, report: dict[str, Any], space: Space, arch: Arch) -> None:
    """Write the self-contained page."""
    write_atomically(path, lambda f: f.write(render_html(report, drawing(space, arch)).encode()))


def render_html(report: dict[str, Any], picture: str = "") -> str:
    """The page as text."""
    import plotly.graph_objects as go
    import plotly.io as pio

    metric = report["objective"]["metric"]
    scatter = go.Figure(layout={"xaxis": {"title": "MACs", "type": "log"}, "yaxis": {"title": f"validation {metric}"}})
    colours = {"search": "#0b6e99", "baseline": "#c2813d"}
    for arm, colour in colours.items():
        points = [p for p in report["trials"] if p["arm"] == arm and "macs" in p["metrics"] and metric in p["metrics"]]
        scatter.add_scatter(
            x=[max(1, p["metrics"]["macs"]) for p in points],
            y=[p["metrics"][metric] for p in points],
            text=[f"{arm} {p['id']}: {_short(p['arch'])}" for p in points],
            mode="markers",
            name={"search": "strategy", "baseline": "random"}[arm],
            marker={"color": colour, "opacity": 0.75},
        )
    front = [p for p in report["pareto"] if "macs" in p["metrics"]]
    front.sort(key=lambda p: p["metrics"]["macs"])
    scatter.add_scatter(
        x=[max(1, p["metrics"]["macs"]) for p in front],
        y=[p["metrics"].get(metric) for p in front],
        mode="lines",
        name="Pareto front",
        line={"color": "#8a97a3", "dash": "dot"},
    )
    curve = go.Figure(layout={"xaxis": {"title": "queries"}, "yaxis": {"title": f"best validation {metric} so far"}})
    for arm, colour in colours.items():
        if arm in report["curves"]:
            c = report["curves"][arm]
            name = {"search": "strategy", "baseline": "random search"}[arm]
            curve.add_scatter(
                x=c["queries"], y=c["best"], mode="lines", name=name, line={"shape": "hv", "color": colour}
            )
    figures = [
        pio.to_html(f.update_layout(template="plotly_white", height=420), full_html=False, include_plotlyjs=(i == 0))
        for i, f in enumerate((scatter, curve))
    ]
    chosen, protocol = report["chosen"], report["protocol"]
    architecture = html.escape(json.dumps(chosen["arch"], indent=1))
    sections = [
        f"<h1>{html.escape(protocol['space'])} on {html.escape(protocol['data'])}</h1>",
        f"<p>Status: {report['status']}. Strategy {html.escape(protocol['strategy'])}, budget {protocol['budget']}, "
        f"limits {html.escape(', '.join(report['limits']) or 'none')}, seed {protocol['seed']}.</p>",
        "<h2>The network</h2>",
        _table({**chosen["metrics"], **chosen["costs"]}),
        f"<details><summary>Architecture</summary><pre>{architecture}</pre></details>",
        f"<details><summary>Drawing</summary>{picture}</details>",
        "<h2>Against random architectures</h2>",
        _table(_flat(report["random"])) if report["random"] else "",
        "".join(f"<p class=note>{html.escape(n)}</p>" for n in report["notes"]),
        "<h2>Accuracy and cost</h2>",
        figures[0],
        "<h2>Search curve</h2>",
        figures[1],
        "<h2>Rank correlation of shared weights</h2>" + _table(report["supernet"]) if report["supernet"] else "",
        "<h2>Spent</h2>",
        _table(_flat(report["spent"])),
        "<h2>Test split</h2>",
        "".join(f"<p>Opened: {html.escape(e['purpose'])}.</p>" for e in report["test_openings"])
        or "<p>Not opened.</p>",
        "<h2>Failed trials</h2>" + _table({f"{f['arm']} {f['id']}": f["reason"] for f in report["failures"]})
        if report["failures"]
        else "",
        "<h2>Protocol</h2>",
        _table(_flat(protocol)),
    ]
    title = html.escape(f"{protocol['space']} on {protocol['data']}")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{STYLE}</style><body>{''.join(sections)}</body></html>"
    )


def drawing(space: Space, arch: Arch) -> str:
    """The architecture's graph as SVG; a sentence where the space cannot draw itself."""
    import networkx as nx
    from matplotlib.figure import Figure

    from archipel.core.errors import SpaceError

    try:
        g = contract_chains(space.graph(arch))
    except SpaceError as error:
        return f"<p class=note>{html.escape(str(error))}</p>"
    layers = [sorted(nodes) for nodes in nx.topological_generations(g)]
    widest = max(len(nodes) for nodes in layers)
    figure = Figure(figsize=(max(7.0, 3.4 * widest), max(2.0, 0.5 * len(layers))))
    axes = figure.add_subplot()
    axes.axis("off")
    step = 1.0 / max(1, len(layers) - 1)
    position = {
        node: ((i + 0.5) / len(nodes), 1 - depth * step)
        for depth, nodes in enumerate(layers)
        for i, node in enumerate(nodes)
    }
    # A skip over several layers bends around them.
    depth_of = {node: depth for depth, nodes in enumerate(layers) for node in nodes}
    for a, b in g.edges:
        bend = 0.0 if depth_of[b] - depth_of[a] == 1 else 0.35
        axes.annotate(
            "",
            position[b],
            position[a],
            arrowprops={"arrowstyle": "->", "color": "#9aa7b2", "connectionstyle": f"arc3,rad={bend}", "shrinkB": 9},
        )
    box = {"boxstyle": "round", "fc": "#eef4f8", "ec": "#b9c7d3"}
    for node, (x, y) in position.items():
        axes.text(
            x, y, _clip(str(g.nodes[node].get("label", node)), 72), ha="center", va="center", fontsize=8, bbox=box
        )
    for a, b, d in g.edges(data=True):
        if "label" in d:
            (xa, ya), (xb, yb) = position[a], position[b]
            axes.text((xa + xb) / 2, (ya + yb) / 2, d["label"], ha="center", va="center", fontsize=8)
    axes.set_xlim(-0.1, 1.1)
    axes.set_ylim(-0.05, 1.05)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


# What follows another layer without branching is drawn in its box, unless it is a layer of this kind.
STANDING = ("Conv", "Linear", "add", "cat", "mul", "Sum", "Input", "Embedding", "output")


def contract_chains(g: nx.DiGraph) -> nx.DiGraph:
    """Draw norms, activations and reshapes in the box of the layer before them."""
    out = g.copy()
    if any("label" in d for *_, d in g.edges(data=True)):
        return out  # edges that carry operations are the drawing; leave it
    for node in list(out):
        before = list(out.predecessors(node))
        label = str(out.nodes[node].get("label", node))
        single = len(before) == 1 and out.out_degree(before[0]) == 1
        if not single or label.startswith(STANDING) or out.nodes[node].get("kind") == "placeholder":
            continue
        out.nodes[before[0]]["label"] = f"{out.nodes[before[0]].get('label', before[0])} · {label}"
        out.add_edges_from((before[0], after) for after in list(out.successors(node)))
        out.remove_node(node)
    return out


def _clip(text: str, n: int = 48) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"


def _short(arch: Arch) -> str:
    return _clip(", ".join(f"{k}={v}" for k, v in arch.items()), 160)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {}
    for k, v in value.items():
        out |= _flat(v, f"{prefix}.{k}" if prefix else str(k))
    return out


def _table(rows: dict[str, Any]) -> str:
    def show(v: Any) -> str:
        if isinstance(v, float):
            return f"{v:,.0f}" if v == int(v) and abs(v) >= 1000 else f"{v:.5g}"
        if isinstance(v, list) and v and all(isinstance(e, float) for e in v):
            return ", ".join(f"{e:.4g}" for e in v)
        return html.escape(str(v))

    body = "".join(
        f"<tr><th>{html.escape(str(k).replace('_', ' '))}</th><td>{show(v)}</td></tr>" for k, v in rows.items()
    )
    return f"<table>{body}</table>"
