"""What `rin show` prints: one row, or the rows that influence themselves most."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from rapidin_cli.output import console
from rapidin_cli.output.sanitise import one_line, visible
from rapidin_cli.report.look import Look

View = Mapping[str, Any]


def show_row(facts: View) -> None:
    """Print what is known about one row."""
    text = Text()
    text.append(f"{visible(facts['id'])}  {facts['digest'][:12]}\n", "bold")
    if facts["places"] != [facts["id"]]:
        text.append(f"{visible(', '.join(facts['places']))}\n", "dim")
    text.append(f"{facts['tokens']:,} tokens, {facts['learnt']:,} learnt")
    text.append(", cut at max_tokens\n" if facts["truncated"] else "\n")
    if facts["cached"] is None:
        text.append(f"not cached for {visible(facts['checkpoint'])}\n")
    else:
        cached = facts["cached"]
        text.append(
            f"checkpoint {visible(facts['checkpoint'])}: loss {cached['loss']:.4f} nats "
            f"({cached['loss'] / max(1, facts['learnt']):.4f} per token), "
            f"gradient norm {cached['norm']:.4g}\n"
        )
        for layer in cached["layers"]:
            text.append(f"  {layer['norm']:10.4g}  {visible(layer['name'])}\n")
    text.append("\n")
    console.data(text.append_text(marked_text(facts["text"], Look.of_stdout())))


def marked_text(pieces: Sequence[View], look: Look) -> Text:
    """Return a row's tokens with what is learnt of them bright; without colours, in brackets."""
    opening, closing = ("[[", "]]") if look.ascii else ("⟦", "⟧")
    text = Text()
    for learnt, passage in groupby(pieces, key=lambda piece: piece["learnt"]):
        said = visible("".join(piece["text"] for piece in passage))
        if look.colours is None and learnt:
            said = f"{opening}{said}{closing}"
        text.append(said, "bold" if learnt else "dim")
    return text


def show_self_influences(found: View) -> None:
    """Print the rows that influence themselves most."""
    look = Look.of_stdout()
    table = Table(box=look.head, pad_edge=False)
    for heading in ("#", "self-influence", "loss per token", "tokens", "row", "text"):
        right = heading not in ("row", "text")
        table.add_column(heading, justify="right" if right else "left", no_wrap=right)
    for number, row in enumerate(found["rows"], 1):
        snippet = look.plain(one_line(row["prompt"], 50) + " → " + one_line(row["response"], 70))
        table.add_row(
            str(number),
            f"{row['self_influence']:.4g}",
            f"{row['loss'] / max(1, row['learnt']):.3f}",
            f"{row['learnt']:,}",
            Text(visible(row["id"])),
            Text(snippet),
        )
    console.data(table)
