"""How a terminal can show scores: in colours, with signs instead, or in plain ASCII."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.box import Box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from rapidin_cli.output import console
from rapidin_cli.output.sanitise import one_line, visible

# Strongest negative to strongest positive (the HTML report's dark theme); light text reads on all.
_BINS = (
    "#f5f5f5 on #1c68b5",
    "#f5f5f5 on #1a518c",
    "#f5f5f5 on #173b63",
    "#f5f5f5 on #14263a",
    "",
    "#f5f5f5 on #43260c",
    "#f5f5f5 on #693609",
    "#f5f5f5 on #8f4708",
    "#f5f5f5 on #a85206",
)
# The same in 16 colours, which each theme chooses: coloured text stays readable, so only the
# strongest have a background.
_FEW = (
    "white on blue",
    "white on blue",
    "blue",
    "",
    "",
    "",
    "yellow",
    "black on yellow",
    "black on yellow",
)
_BARS, _ASCII_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*%#"
_TOKEN_TABLE = 10
_TOKEN_WIDTH = 20


@dataclass(frozen=True)
class Look:
    """What a console can do.

    Attributes:
        width: columns.
        boxed: whether it is a terminal: boxes, and tables as wide as it.
        colours: `truecolor`, `256`, `standard` (16), or None.
        ascii: whether nothing else can be printed.
    """

    width: int
    boxed: bool
    colours: str | None
    ascii: bool

    @classmethod
    def of_stdout(cls) -> Look:
        """Return what standard output can do."""
        return cls.of(console.stdout())

    @classmethod
    def of(cls, out: Console) -> Look:
        """Return what a console can do."""
        colours = None if out.no_color else out.color_system
        return cls(out.width, out.is_terminal, colours, not out.encoding.startswith("utf"))

    @property
    def head(self) -> Box | None:
        """The lines of a table."""
        return box.SIMPLE_HEAD if self.boxed else None

    def signs(self) -> tuple[str, str]:
        """Marks of what raised and what lowered."""
        return ("+", "-") if self.ascii else ("▲", "▼")

    def plain(self, text: str) -> str:
        """Return our own words in what can be printed."""
        if not self.ascii:
            return text
        return text.replace("→", "->").replace("…", "...").replace("⏎", "\\n")

    def heat(self, text: Text, word: str, score: float, scale: float, *, chosen: bool) -> None:
        """Append a word with its score as a colour, or as a sign where there are no colours.

        Args:
            scale: the score of the strongest colour.
            chosen: underlined.
        """
        level = round(4 * score / scale) if scale else 0
        shown = self.plain(visible(word).replace("\n", "⏎").replace("\t", " "))
        if self.colours is None:
            sign = "+" if level > 1 else "-" if level < -1 else ""
            bare = shown.lstrip(" ")
            text.append(" " * (len(shown) - len(bare)) + (sign + bare if bare else ""))
            return
        style = (_FEW if self.colours == "standard" else _BINS)[4 + level]
        text.append(shown, style=f"{style} {'underline bold' if chosen else ''}".strip())

    def legend(self) -> str:
        """What `heat` means."""
        if self.colours is None:
            return "+word raised, -word lowered, by at least a third of the strongest"
        return f"{'yellow' if self.colours == 'standard' else 'orange'} raised, blue lowered"

    def histogram(self, counts: Sequence[int]) -> str:
        """Return a bar of eight heights for each count.

        Of square roots, so that a single outlier can still be seen beside thousands.
        """
        bars, tallest = _ASCII_BARS if self.ascii else _BARS, max(counts)
        return "".join(bars[math.ceil(8 * math.sqrt(count / tallest))] for count in counts)

    def token(self, text: str) -> Text:
        """Return a token for a table: blanks and line ends as they are written."""
        return Text(self.plain(one_line(repr(text)[1:-1], _TOKEN_WIDTH)))

    def heat_map(
        self, title: str, words: Sequence[str], scores: Sequence[float]
    ) -> list[RenderableType]:
        """Return a text with each word's score as its colour, and a table of the strongest."""
        scale = max(map(abs, scores), default=0.0)
        heat = Text(f"{title}\n")
        for word, score in zip(words, scores, strict=True):
            self.heat(heat, word, score, scale, chosen=False)
        table = self.table("token", "text", "influence")
        for number in sorted(range(len(words)), key=lambda n: -abs(scores[n]))[:_TOKEN_TABLE]:
            table.add_row(str(number), self.token(words[number]), f"{scores[number]:+.4g}")
        return [heat, table]

    def table(self, *headings: str) -> Table:
        """Return an empty table of numbers and tokens."""
        table = Table(box=self.head, pad_edge=False)
        for heading in headings:
            table.add_column(heading, justify="right")
        return table
