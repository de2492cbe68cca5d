"""Fills the generated pages — the catalogue and the claims — from the registry and the stored results."""

from __future__ import annotations

import html
from typing import Any


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Replace the markers of generated pages."""
    if "<!-- catalogue -->" in markdown:
        markdown = markdown.replace("<!-- catalogue -->", catalogue())
    if "<!-- claims -->" in markdown:
        markdown = markdown.replace("<!-- claims -->", claims())
    return markdown


def catalogue() -> str:
    from archipel.app.catalogue import entries
    from archipel.claims.stored import in_words

    rows = ["| method | family | slots | paper | claim |", "|---|---|---|---|---|"]
    for e in sorted(entries(), key=lambda e: (e["family"], e["slug"])):
        verdicts = "; ".join(map(in_words, e["claims"])) or "–"
        title = e["title"].replace("|", "\\|")
        paper = f"[{title}]({e['link']}), {e['year']}"
        rows.append(f"| `{e['slug']}` | {e['family']} | {', '.join(e['slots'])} | {paper} | {verdicts} |")
    return "\n".join(rows)


def claims() -> str:
    from archipel.claims.stored import figure, in_words, stored_claims, stored_results

    parts = []
    for r in stored_results():
        verdict = "; ".join(map(in_words, stored_claims(r["slug"])))
        checks = ["| check | rests on it | came out | numbers |", "|---|---|---|---|"]
        for c in r["checks"]:
            outcome = "holds" if c["holds"] else "does not hold"
            rests = "yes" if c["asserted"] else "no"
            checks.append(f"| {_cell(c['text'])} | {rests} | {outcome} | {_cell(c['numbers'])} |")
        machine = f"{r['environment']['cores']} cores, PyTorch {r['environment']['packages']['torch']}"
        grid = ", ".join(f"`{s}`" for s in r["grid"])
        tuned = f"Every arm was tuned on the same grid: {grid}." if len(r["grid"]) > 1 else "Nothing was tuned."
        parts += [
            f"## {r['slug']}: {verdict}",
            r["statement"],
            f"*Scale.* {r['scale']} {len(r['seeds'])} seeds, {r['seconds']:,.0f} s on {machine}. {tuned}",
            "\n".join(checks),
            f"```\n{r['table']}\n```",
            f'<figure markdown="0">{figure(r)}</figure>',
        ]
    return "\n\n".join(parts) or "No claim has been run yet."


def _cell(text: str) -> str:
    return html.escape(text).replace("|", "&#124;")
