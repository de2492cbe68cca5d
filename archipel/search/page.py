"""A run's report as a self-contained, interactive page, and drawings of architectures."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archipel.core.decision import Arch
from archipel.core.space import Space
from archipel.core.storage import write_atomically

if TYPE_CHECKING:
    import networkx as nx

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
