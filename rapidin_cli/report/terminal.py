"""The report in a terminal: heat-mapped generation, what raised it and what lowered it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rapidin_cli import console
from rapidin_cli.errors import InputError, UsageError
from rapidin_cli.sanitise import one_line, visible

View = Mapping[str, Any]

# Strongest negative to strongest positive (REPORT.md, dark theme); light text reads on all.
_BINS = (
    "#1c68b5",
    "#1a518c",
    "#173b63",
    "#14263a",
    "",
    "#43260c",
    "#693609",
    "#8f4708",
    "#a85206",
)
_BARS = " ▁▂▃▄▅▆▇█"
_SIDE_BY_SIDE = 100
_TOKEN_TABLE = 10
# A good match by words is worth a mention if its influence is in neither tenth at the ends.
_UNMOVED = 90


@dataclass(frozen=True)
class Span:
    """Explained tokens first..last (numbered from 0), or all of them."""

    first: int
    last: int
    everything: bool

    def score(self, example: View) -> float:
        """An example's influence on the span."""
        if self.everything:
            return float(example["score"])
        return float(sum(example["tokens"][self.first : self.last + 1]))


def parse_span(text: str, query: View) -> Span:
    """Read `12` or `12:15`; empty means the whole response.

    Raises:
        UsageError: not a span of the query's explained tokens, or no token scores.
    """
    count = sum(token["explained"] for token in query["tokens"])
    if not text:
        return Span(0, count - 1, everything=True)
    first, _, last = text.partition(":")
    try:
        span = Span(int(first), int(last or first), everything=False)
    except ValueError:
        raise UsageError(
            f"--token {text} is neither a token number nor a span",
            hint="rin report --token 12, or --token 12:15",
        ) from None
    if not 0 <= span.first <= span.last < count:
        raise UsageError(
            f"--token {text}: query {query['id']!r} has tokens 0 to {count - 1}",
            hint="rin report shows their numbers",
        )
    if query["residual"] is None:
        raise UsageError(
            "this result has no token scores", hint="rin retrieve again without --no-tokens"
        )
    return span


def show(
    report: View, *, query: str = "", token: str = "", example: str = "", top: int = 5
) -> None:
    """Print a report, or one example of it.

    Raises:
        InputError: no such query or example. UsageError: no such token.
    """
    queries = [item for item in report["queries"] if query in ("", item["id"])]
    if not queries:
        known = ", ".join(item["id"] for item in report["queries"])
        raise InputError(f"this result has no query {query!r}", hint=f"its queries: {known}")
    if example:
        console.data(_example(queries, example))
        return
    console.data(_header(report))
    for item in queries:
        console.data(_query(item, parse_span(token, item), top))
    for warning in report["warnings"]:
        console.warn(warning)
    console.say(f"next: rin report {report['id']} --html report.html")


def _boxed() -> bool:
    return console.stdout().is_terminal


def _header(report: View) -> RenderableType:
    data, score = report["data"], report["score"]
    text = Text()
    for number, member in enumerate(report["checkpoints"]):
        text.append(f"{'' if number else 'checkpoint':<12}{visible(member['name'])}")
        weight = f", weight {member['weight']:.3f}" if len(report["checkpoints"]) > 1 else ""
        text.append(f"  ({member['fingerprint'][:12]}{weight})\n")
    text.append(f"data        {visible(', '.join(data['files']))}  ({data['rows']:,} rows)\n")
    text.append(f"score       {score['name']}: {score['unit']}\n")
    text.append(f"            {score['sign']}\n")
    text.append("            an estimate from gradients, not a retraining")
    if not _boxed():
        return text
    return Panel(text, title=f"rin report {report['id']}", title_align="left", box=box.ROUNDED)


def _query(query: View, span: Span, top: int) -> RenderableType:
    parts: list[RenderableType] = [Text()]
    title = Text(f"query {visible(query['id'])}", style="bold")
    title.append(f"   loss {query['loss']:.3f} nats", style="not bold")
    parts.append(title)
    parts.append(Text(f"prompt    {one_line(query['prompt'], 300)}", style="dim"))
    parts.append(_generation(query, span))
    parts.append(_histogram(query["distribution"]))
    kept = query["examples"]
    if query["exact"] is not None:
        parts.append(_exactness(query))
    parts.append(_words(query["words"]))
    what = "all tokens" if span.everything else f"tokens {span.first} to {span.last}"
    parts.append(Text(f"ranked by {what}, among {len(kept):,} kept of {query['scored']:,} scored"))
    raised = sorted(kept, key=lambda e: (-span.score(e), e["digest"]))
    lowered = sorted(kept, key=lambda e: (span.score(e), e["digest"]))
    tables = [
        _table("raised  ▲", [e for e in raised if span.score(e) > 0][:top], span),
        _table("lowered ▼", [e for e in lowered if span.score(e) < 0][:top], span),
    ]
    if console.stdout().width >= _SIDE_BY_SIDE and _boxed():
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(*tables)
        parts.append(grid)
    else:
        parts += tables
    return Group(*parts)


def _exactness(query: View) -> Text:
    exact, spread = query["exact"], query["distribution"]["std"]
    share = f" ({exact['sketch_error'] / spread:.1%} of the scores' sd)" if spread else ""
    text = (
        f"exact scores of {exact['shortlist']:,} shortlisted; sketches were off by "
        f"{exact['sketch_error']:.3g}{share}"
    )
    if exact["doubtful"]:
        text += f"; {exact['doubtful']:,} more may be among the best: a larger --exact settles it"
    return Text(text)


def _unmoved(match: View) -> bool:
    return bool(100 - _UNMOVED < match["percentile"] < _UNMOVED)


def _words(words: View) -> Text:
    """How much of the ranking shared words alone would give, and what only they would."""
    only = [match for match in words["matches"] if _unmoved(match)]
    text = f"shared words (BM25): {words['agree']} of the top {words['of']} raised are also its own"
    if only:
        names = ", ".join(visible(match["id"]) for match in only[:3])
        text += f"; alike in words, but of no special influence: {names}"
    return Text(text)


def _generation(query: View, span: Span) -> Text:
    """The explained tokens, coloured by their strongest influence; numbered every tenth."""
    explained = [token for token in query["tokens"] if token["explained"]]
    strongest = _strongest(query["examples"], len(explained))
    scale = max(map(abs, strongest), default=0.0)
    text = Text("response  ")
    for number, (token, score) in enumerate(zip(explained, strongest, strict=True)):
        if number % 10 == 0:
            text.append(f"[{number}]", style="dim")
        chosen = not span.everything and span.first <= number <= span.last
        if token["contrast"] and not explained[number - 1]["contrast"]:
            text.append("\ninstead of  ")
        _heat(text, token["text"], score, scale, underline=chosen)
    return text


def _strongest(examples: Sequence[View], count: int) -> list[float]:
    """For each token the score, of either sign, that is largest in size."""
    columns = [e["tokens"] for e in examples if e["tokens"] is not None]
    return [max((row[n] for row in columns), key=abs, default=0.0) for n in range(count)]


def _heat(text: Text, word: str, score: float, scale: float, *, underline: bool = False) -> None:
    """Append a word with its score as colour, or as a sign where there are no colours."""
    level = round(4 * score / scale) if scale else 0
    shown = visible(word).replace("\n", "⏎").replace("\t", " ")
    if console.stdout().color_system is None:
        sign = "+" if level > 1 else "-" if level < -1 else ""
        bare = shown.lstrip(" ")
        text.append(" " * (len(shown) - len(bare)) + (sign + bare if bare else ""))
        return
    colour = _BINS[4 + level]
    style = f"#f5f5f5 on {colour}" if colour else ""
    text.append(shown, style=f"{style} {'underline bold' if underline else ''}".strip())


def _histogram(distribution: View) -> Text:
    counts = distribution["counts"]
    if not counts:
        return Text()
    tallest = max(counts)
    # Square roots, so that a single outlier can still be seen beside thousands.
    blocks = "".join(_BARS[math.ceil(8 * math.sqrt(count / tallest))] for count in counts)
    return Text(
        f"all scores {distribution['min']:+.3g} |{blocks}| {distribution['max']:+.3g}"
        f"   mean {distribution['mean']:+.3g}, sd {distribution['std']:.3g}"
    )


def _table(title: str, examples: Sequence[View], span: Span) -> RenderableType:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD if _boxed() else None,
        expand=_boxed(),
        pad_edge=False,
    )
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("above", justify="right", no_wrap=True)
    table.add_column("bm25", justify="right", no_wrap=True)
    table.add_column("row", overflow="fold")
    table.add_column("text", ratio=1 if _boxed() else None, overflow="fold")
    for rank, example in enumerate(examples, 1):
        repeats = len(example["rows"])
        name = visible(example["id"]) + (f" (x{repeats})" if repeats > 1 else "")
        snippet = one_line(example["prompt"], 60) + " → " + one_line(example["response"], 90)
        table.add_row(
            str(rank),
            f"{span.score(example):+.4g}",
            f"{example['percentile']:.1f}%",
            "-" if example["bm25"]["rank"] is None else f"#{example['bm25']['rank']}",
            Text(name),
            Text(snippet),
        )
    if not examples:
        table.add_row("", "", "", "", "", Text("none", style="dim"))
    return table


def _example(queries: Sequence[View], identity: str) -> RenderableType:
    """One kept example in full, with the tokens that it moved most."""
    for query in queries:
        for example in query["examples"]:
            if identity == example["id"] or (
                len(identity) >= 8 and example["digest"].startswith(identity)
            ):
                return _full(query, example)
    raise InputError(
        f"example {identity!r} is not among those kept",
        hint=f"rin show {identity} shows any row; retrieve again with a larger --top to keep more",
    )


def _full(query: View, example: View) -> RenderableType:
    places = ", ".join(f"{row['file']}:{row['line']}" for row in example["rows"])
    text = Text()
    text.append(f"{visible(example['id'])}  score {example['score']:+.4g}, not below ", "bold")
    text.append(f"{example['percentile']:.1f}% of all scores\n", "bold")
    text.append(f"{visible(places)}\n\n", "dim")
    text.append(f"prompt    {visible(example['prompt'])}\n")
    parts: list[RenderableType] = [text]
    if example["training"] is None:
        text.append(f"response  {visible(example['response'])}\n")
    else:
        words = [word for word, _ in example["training"]]
        scores = [score for _, score in example["training"]]
        parts += _heat_map("what of it, token by token, had that influence:", words, scores)
    if example["tokens"] is None:
        return Group(*parts)
    explained = [token for token in query["tokens"] if token["explained"]]
    if example["cells"]:
        parts.append(_pairs(example, explained))
    words = [token["text"] for token in explained]
    title = "its influence on each token of the generation:"
    return Group(*parts, *_heat_map(title, words, example["tokens"]))


def _pairs(example: View, explained: Sequence[View]) -> RenderableType:
    """The strongest pairs of a training token and a generated one."""
    table = Table(box=box.SIMPLE_HEAD if _boxed() else None, pad_edge=False)
    for heading in ("training token", "text", "generated token", "text", "influence"):
        table.add_column(heading, justify="right")
    for ours, theirs, score in example["cells"][:_TOKEN_TABLE]:
        learnt = one_line(repr(example["training"][theirs][0])[1:-1], 20)
        said = one_line(repr(explained[ours]["text"])[1:-1], 20)
        table.add_row(str(theirs), Text(learnt), str(ours), Text(said), f"{score:+.4g}")
    return table


def _heat_map(title: str, words: Sequence[str], scores: Sequence[float]) -> list[RenderableType]:
    """A text with each word's score as its colour, and a table of the strongest."""
    scale = max(map(abs, scores), default=0.0)
    heat = Text(f"{title}\n")
    for word, score in zip(words, scores, strict=True):
        _heat(heat, word, score, scale)
    table = Table(box=box.SIMPLE_HEAD if _boxed() else None, pad_edge=False)
    for heading in ("token", "text", "influence"):
        table.add_column(heading, justify="right")
    for number in sorted(range(len(words)), key=lambda n: -abs(scores[n]))[:_TOKEN_TABLE]:
        shown = one_line(repr(words[number])[1:-1], 20)
        table.add_row(str(number), Text(shown), f"{scores[number]:+.4g}")
    return [heat, table]


def show_row(facts: View) -> None:
    """Print what `rin show` found out about one row."""
    text = Text()
    text.append(f"{visible(facts['id'])}  {facts['digest'][:12]}\n", "bold")
    text.append(f"{visible(', '.join(facts['places']))}\n", "dim")
    text.append(f"{facts['tokens']:,} tokens, {facts['learnt']:,} learnt")
    text.append(", cut at max_tokens\n" if facts["truncated"] else "\n")
    if facts["cached"] is None:
        text.append(f"not cached for {visible(facts['checkpoint'])}\n")
    else:
        cached = facts["cached"]
        text.append(
            f"checkpoint {visible(facts['checkpoint'])}: loss {cached['loss']:.4f} nats "
            f"({cached['loss'] / max(1, facts['learnt']):.4f} a token), "
            f"gradient norm {cached['norm']:.4g}\n"
        )
        for layer in cached["layers"]:
            text.append(f"  {layer['norm']:10.4g}  {visible(layer['name'])}\n")
    text.append("\n")
    for piece in facts["text"]:
        text.append(visible(piece["text"]), "" if piece["learnt"] else "dim")
    console.data(text)


def show_self_influences(found: View) -> None:
    """Print the rows that explain themselves most."""
    table = Table(box=box.SIMPLE_HEAD if _boxed() else None, pad_edge=False)
    for heading in ("#", "self-influence", "loss a token", "tokens", "row", "text"):
        right = heading not in ("row", "text")
        table.add_column(heading, justify="right" if right else "left", no_wrap=right)
    for number, row in enumerate(found["rows"], 1):
        snippet = one_line(row["prompt"], 50) + " → " + one_line(row["response"], 70)
        table.add_row(
            str(number),
            f"{row['self_influence']:.4g}",
            f"{row['loss'] / max(1, row['learnt']):.3f}",
            f"{row['learnt']:,}",
            Text(visible(row["id"])),
            Text(snippet),
        )
    console.data(table)
