"""The outcome of `rin evaluate`, in a terminal and as a page with a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible
from rapidin_cli.report.html import render_page
from rapidin_cli.report.writing import save_page

View = Mapping[str, Any]

_BAR = 24
_TITLES = {
    "lds": "LDS: rank correlation of summed influence with the effect of training on random halves",
    "counterfactual": "Rise in the query's loss (nats) when a score's top rows are left out",
    "retrieval": "Ranking of the planted rows",
    "unlearn": "Rise in the query's loss (nats) as a score's top rows are unlearnt",
}


def title(found: View) -> str:
    """What was measured, in one line."""
    return _TITLES[found["kind"]]


def facts(found: View) -> str:
    """On what it was measured, in one line."""
    parts = [f"checkpoint {found['checkpoint']}", f"{found['examples']:,} examples"]
    parts.append(console.count(len(found["queries"]), "query").replace("querys", "queries"))
    if "trainings" in found:
        parts.append(console.count(found["trainings"], "training"))
    if "dropped" in found:
        parts.append(f"{found['dropped']:,} rows left out")
    if "unlearnt" in found:
        steps = console.count(found["steps"], "step")
        parts.append(f"{found['unlearnt']:,} rows unlearnt in {steps} of {found['rate']:g}")
    if "planted" in found:
        parts.append(f"{found['planted']:.1%} of the rows are planted")
    parts.append("scores from whole gradients" if found["exact"] else f"rows: {found['row']}")
    return ", ".join(parts)


NOT_A_TRAINING = (
    "unlearning pushes the weights of now and trains nothing anew: rin evaluate counterfactual does"
)


def show(found: View) -> None:
    """Print it."""
    if found["kind"] == "unlearn":
        console.warn(NOT_A_TRAINING)
    console.data(Text(f"{title(found)}\n{visible(facts(found))}"))
    for number, measure in enumerate(found["scores"][0]["measures"]):
        rows = sorted(
            ((score["name"], score["measures"][number]) for score in found["scores"]),
            key=lambda row: -row[1]["mean"],
        )
        most = max(abs(item["mean"]) for _, item in rows) or 1.0
        table = Table(box=None, pad_edge=False)
        for heading in ("score", measure["name"], "95% interval", ""):
            table.add_column(heading, justify="left" if heading in ("score", "") else "right")
        for name, item in rows:
            table.add_row(
                name,
                f"{item['mean']:+.3f}",
                f"{item['low']:+.3f} to {item['high']:+.3f}",
                "#" * max(0, round(_BAR * item["mean"] / most)),
            )
        console.data(table)


def save_html(found: View, path: Path, *, force: bool) -> int:
    """Write the page; return its bytes.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    plots = []
    for number, measure in enumerate(found["scores"][0]["measures"]):
        rows = sorted(
            ({**s["measures"][number], "name": s["name"]} for s in found["scores"]),
            key=lambda row: -row["mean"],
        )
        low = min(0.0, *(row["low"] for row in rows))
        high = max(0.0, *(row["high"] for row in rows))
        unit = 400 / ((high - low) or 1.0)
        bars = [
            {
                **row,
                "x": round((min(row["mean"], 0) - low) * unit, 1),
                "width": round(abs(row["mean"]) * unit, 1),
                "from": round((row["low"] - low) * unit, 1),
                "to": round((row["high"] - low) * unit, 1),
                "label": round((max(row["high"], 0) - low) * unit + 8, 1),
            }
            for row in rows
        ]
        plots.append({"name": measure["name"], "zero": round(-low * unit, 1), "bars": bars})
    text = render_page(
        "evaluation.html.j2", title=title(found), facts=facts(found), plots=plots, found=found
    )
    return save_page(text, path, force=force)
