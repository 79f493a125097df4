"""A comparison of two results in a terminal and as a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rapidin_cli.output import console
from rapidin_cli.output.sanitise import one_line, visible
from rapidin_cli.report.comparison import change
from rapidin_cli.report.html import render_page
from rapidin_cli.report.look import Look
from rapidin_cli.report.tables import SIDES

View = Mapping[str, Any]

_BAR = 60  # half the width of a bar of the page, in pixels


def show(found: View) -> None:
    """Print a comparison."""
    look = Look.of_stdout()
    text = Text()
    for name in ("first", "second"):
        text.append(f"{name:<8}{told(found[name])}\n")
    text.append(f"scale   {found['scale']}")
    console.data(text)
    for pair in found["pairs"]:
        console.data(_pair(pair, look))


def told(source: View) -> str:
    """Describe one of the two results in a line."""
    return (
        f"{source['result']}: {visible(source['checkpoint'])} "
        f"({source['fingerprint'][:12]}), score {source['score']}"
    )


def _pair(pair: View, look: Look) -> RenderableType:
    one, other = pair["first"], pair["second"]
    title = Text.assemble("\n", (f"query {visible(one['id'])}", "bold"))
    if one["id"] != other["id"]:
        title.append(f" and {visible(other['id'])}", style="bold")
    title.append(f"   loss {one['loss']:.3f} and {other['loss']:.3f} nats")
    lines: list[RenderableType] = [title]
    for query in (one,) if pair["same_text"] else (one, other):
        shown = f"{one_line(query['prompt'], 150)} → {one_line(query['response'], 150)}"
        lines.append(Text(look.plain(shown), style="dim"))
    for side, sign in zip(SIDES, look.signs(), strict=True):
        agree = pair["agree"][side]
        told_ = f"\n{side} {sign}  {agree['both']} of the first's top {agree['of']} are in both"
        lines += [Text(told_, style="bold"), _table(pair[side], side, look)]
    return Group(*lines)


def _table(examples: Sequence[View], side: str, look: Look) -> RenderableType:
    if not examples:
        return Text("none", style="dim")
    table = Table(box=look.head, pad_edge=False)
    for heading in ("first", "second"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("change", no_wrap=True)
    table.add_column("row", overflow="fold")
    room = 2 * max(20, look.width - 44)
    for example in examples:
        prompt = one_line(example["prompt"], room // 3)
        response = one_line(example["response"], room - len(prompt) - 3)
        snip = look.plain(f"{prompt} → {response}")
        text = Text.assemble((visible(example["id"]), "bold"), f"\n{snip}")
        places = (_place(example[name], side) for name in ("first", "second"))
        table.add_row(*places, change(example, side), text)
    return table


def _place(place: View | None, side: str) -> str:
    if place is None or place["side"] != side:
        return "-"
    return f"#{place['rank']}  {place['score']:+.3g}"


def page(found: View) -> str:
    """Return the comparison as an HTML page, with bars on one scale for each query."""
    pairs = []
    for pair in found["pairs"]:
        places = [e[n] for side in SIDES for e in pair[side] for n in ("first", "second")]
        most = max((abs(place["score"]) for place in places if place), default=0.0) or 1.0
        sides = [
            {
                "name": side,
                "agree": pair["agree"][side],
                "examples": [_with_bars(e, side, most) for e in pair[side]],
            }
            for side in SIDES
        ]
        pairs.append({**pair, "sides": sides})
    sources = [told(found["first"]), told(found["second"])]
    return render_page("comparison.html.j2", found=found, sources=sources, pairs=pairs)


def _with_bars(example: View, side: str, most: float) -> dict[str, Any]:
    bars: list[dict[str, Any] | None] = []
    for name in ("first", "second"):
        place = example[name]
        if place is None:
            bars.append(None)
            continue
        width = round(_BAR * abs(place["score"]) / most, 1)
        at = _BAR if place["score"] > 0 else round(_BAR - width, 1)
        bars.append({**place, "x": at, "width": width, "here": place["side"] == side})
    return {**example, "bars": bars, "change": change(example, side)}
