"""The report in a terminal: heat-mapped generation, what raised it and what lowered it."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rapidin_cli.errors import InputError
from rapidin_cli.output import console
from rapidin_cli.output.sanitise import one_line, visible
from rapidin_cli.report.look import Look
from rapidin_cli.report.snippet import snippet
from rapidin_cli.report.span import Span, parse_span, selected
from rapidin_cli.report.tables import ranked

View = Mapping[str, Any]

_SIDE_BY_SIDE, _CARDS = 100, 60
# Columns of a table before its text: rank, score, percentile, and the space between them.
_NUMBERS = 24
_SNIPPET_LINES = 3
_FIRST = 3
_PAIRS = 10
_LAYERS = 5
# A good match by words is worth a mention if its influence is not in the top or bottom tenth.
_UNMOVED = 90


def show(
    report: View, *, query: str = "", token: str = "", example: str = "", top: int = 5
) -> None:
    """Print a report, or one example of it.

    Raises:
        InputError: no such query or example. UsageError: no such token.
    """
    report = selected(report, query)
    look = Look.of_stdout()
    if example:
        console.data(_example(report, example, look))
        return
    spans = [parse_span(token, item) for item in report["queries"]]
    console.data(_header(report, look))
    for item, span in zip(report["queries"], spans, strict=True):
        console.data(_query(item, span, top, look, report["provenance"]))
    for warning in report["warnings"]:
        console.warn(warning)
    console.say(f"next: rin report {report['id']} --html report.html")


def show_first(report: View) -> None:
    """Print on stderr what the cached rows say of a question, before exact scores follow."""
    look = Look.of(console.stderr())
    (query,) = report["queries"]
    sides = ranked(query, Span.whole(query))
    lines = Text(f"ranking by cached rows, of {query['scored']:,}; exact scores follow")
    for name, sign in zip(("raised", "lowered"), look.signs(), strict=True):
        lines.append(f"\n{name} {sign}", "bold")
        for rank, example in enumerate(sides[name][:_FIRST], 1):
            head = f"\n  {rank}  {example['score']:+.3g}  {visible(example['id'])}  "
            room = max(20, look.width - len(head))
            lines.append(head + look.plain(snippet(example, room)))
    console.show(lines)


def _header(report: View, look: Look) -> RenderableType:
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
    if not look.boxed:
        return text
    return Panel(text, title=f"rin report {report['id']}", title_align="left", box=box.ROUNDED)


def _query(query: View, span: Span, top: int, look: Look, provenance: View) -> RenderableType:
    title = Text(f"query {visible(query['id'])}", style="bold")
    title.append(f"   loss {query['loss']:.3f} nats", style="not bold")
    parts: list[RenderableType] = [Text(), title]
    parts.append(Text(look.plain(f"prompt    {one_line(query['prompt'], 300)}"), style="dim"))
    parts.append(_generation(query, span, look))
    if query["distribution"]["counts"]:
        parts.append(_histogram(query["distribution"], look))
    if query["exact"] is not None:
        parts.append(_exactness(query, provenance))
    if query["words"]["of"]:
        parts.append(words_told(query["words"]))
    what = "all tokens" if span.everything else str(span)
    kept = f"{len(query['examples']):,} kept of {query['scored']:,} scored"
    sides = ranked(query, span)
    more = max(map(len, sides.values())) > top
    hint = f" (the first {top} of each sign; --top shows more)" if more else ""
    parts.append(Text(f"ranked by {what}, among {kept}{hint}"))
    side_by_side = look.boxed and look.width >= _SIDE_BY_SIDE
    width = look.width // 2 - 1 if side_by_side else look.width
    tables = [
        _table(f"{name:<7} {sign}", query, sides[name][:top], span, look, width)
        for name, sign in zip(("raised", "lowered"), look.signs(), strict=True)
    ]
    if side_by_side:
        grid = Table.grid(expand=True, padding=(0, 1))
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        grid.add_row(*tables)
        parts.append(grid)
    else:
        parts += tables
    return Group(*parts)


def _exactness(query: View, provenance: View) -> Text:
    exact, spread = query["exact"], query["distribution"]["std"]
    share = f" ({exact['sketch_error'] / spread:.1%} of the scores' sd)" if spread else ""
    text = (
        f"{console.count(exact['shortlist'], 'example')} scored exactly; sketches were off by "
        f"{exact['sketch_error']:.3g}{share}"
    )
    if any(Span.whole(query).is_sketched(query, example) for example in query["examples"]):
        text += "; ~ marks a score that is still a sketch's"
    if exact["doubtful"]:
        settled = settling(exact["doubtful"], provenance)
        text += f"; {exact['doubtful']:,} more may be among the best: {settled}"
    return Text(text)


def settling(doubtful: int, provenance: View) -> str:
    """Say how to score the examples that are in doubt, and what that takes."""
    each, command = provenance.get("example_seconds"), provenance["command"]
    if each is None:  # an older result
        return "raise --exact to find out"
    needed = doubtful * each
    # What scores tokens costs as much again, and a guess should not fall short.
    asked = "--within", f"{max(10, 10 * math.ceil(2.5 * needed / 10))}s"
    if not command:  # it was asked from Python
        return f"a longer `within`, such as {asked[1]}, settles that"
    again = shlex.join([*_without(shlex.split(command), "--exact", "--within"), *asked])
    return f"{visible(again)} settles that"


def _without(words: Sequence[str], *options: str) -> list[str]:
    """Leave options of a command out, with their values."""
    joined = tuple(f"{option}=" for option in options)
    kept, value = [], False
    for word in words:
        named = not value and word in options
        if not (value or named or word.startswith(joined)):
            kept.append(word)
        value = named
    return kept


def _unmoved(match: View) -> bool:
    return bool(100 - _UNMOVED < match["percentile"] < _UNMOVED)


def words_told(words: View) -> Text:
    """Say how much of the ranking shared words alone would give, and what only they find."""
    only = [match for match in words["matches"] if _unmoved(match)]
    text = f"shared words (BM25): their top 10 has {words['agree']} of the top {words['of']} raised"
    if only:
        names = ", ".join(visible(match["id"]) for match in only[:3])
        text += f"; similar words, but no special influence: {names}"
    return Text(text)


def _generation(query: View, span: Span, look: Look) -> Text:
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
        look.heat(text, token["text"], score, scale, chosen=chosen)
    if scale:
        told = f"strongest influence on each token: {look.legend()}; [10] is a token's number"
        text.append(f"\n          {told}", style="dim")
    return text


def _strongest(examples: Sequence[View], count: int) -> list[float]:
    """For each token, the score with the largest absolute value."""
    columns = [e["tokens"] for e in examples if e["tokens"] is not None]
    return [max((row[n] for row in columns), key=abs, default=0.0) for n in range(count)]


def _histogram(distribution: View, look: Look) -> Text:
    return Text(
        f"all scores {distribution['min']:+.3g} |{look.histogram(distribution['counts'])}| "
        f"{distribution['max']:+.3g}   mean {distribution['mean']:+.3g}, "
        f"sd {distribution['std']:.3g}"
    )


def _table(
    title: str, query: View, examples: Sequence[View], span: Span, look: Look, width: int
) -> RenderableType:
    """A table, or cards where that would leave no room for text."""
    if not examples:
        return Text.assemble("\n", (title, "bold"), ("  none", "dim"))
    cards = width < _CARDS - 12 or look.width < _CARDS
    room = _SNIPPET_LINES * (width - 2 if cards else max(20, width - _NUMBERS))
    table = Table.grid(padding=(0, 2, 0, 0))
    if not cards:
        for _ in ("rank", "score", "percentile"):
            table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for rank, example in enumerate(examples, 1):
        repeats = len(example["rows"])
        name = visible(example["id"]) + (f" (x{repeats})" if repeats > 1 else "")
        words = example["bm25"]["rank"]
        matched = "" if words is None else f"  words #{words}"
        snip = look.plain(snippet(example, room))
        mark = "~" if span.is_sketched(query, example) else ""
        numbers = f"{rank}", f"{mark}{span.score(example):+.4g}", f"{example['percentile']:.1f}%"
        if cards:
            first = "  ".join(numbers)
            text = Text.assemble((first, "bold"), f"  {name}", (matched, "dim"), f"\n{snip}\n")
            table.add_row(text)
        else:
            table.add_row(*numbers, Text.assemble((name, "bold"), (matched, "dim"), f"\n{snip}"))
    heading = Text.assemble("\n", (title, "bold"))
    if not cards:
        heading.append("  rank, score, percentile among all scored, row", style="dim")
    return Group(heading, table)


def _example(report: View, identity: str, look: Look) -> RenderableType:
    """One kept example in full, with the tokens that it influenced most."""
    for query in report["queries"]:
        for example in query["examples"]:
            if identity == example["id"] or (
                len(identity) >= 8 and example["digest"].startswith(identity)
            ):
                return _full(report, query, example, look)
    raise InputError(
        f"this result did not keep an example {identity!r}",
        hint=f"rin show {identity} shows any row; rin retrieve with a larger --top keeps more",
    )


def _full(report: View, query: View, example: View, look: Look) -> RenderableType:
    places = ", ".join(f"{row['file']}:{row['line']}" for row in example["rows"])
    text = Text()
    text.append(f"{visible(example['id'])}  score {example['score']:+.4g}, at or above ", "bold")
    text.append(f"{example['percentile']:.1f}% of all scores\n", "bold")
    text.append("\n" if places == example["id"] else f"{visible(places)}\n\n", "dim")
    text.append(f"prompt    {visible(example['prompt'])}\n")
    parts: list[RenderableType] = [text]
    if example["training"] is None:
        text.append(f"response  {visible(example['response'])}\n")
    else:
        words = [word for word, _ in example["training"]]
        scores = [score for _, score in example["training"]]
        title = f"which of its tokens had that influence ({look.legend()}):"
        parts += look.heat_map(title, words, scores)
    if example["layers"] is not None:
        parts.append(_layers(report["layers"], example["layers"], look))
    if example["tokens"] is None:
        return Group(*parts)
    explained = [token for token in query["tokens"] if token["explained"]]
    if example["cells"]:
        parts.append(_pairs(example, explained, look))
    title = "its influence on each generated token:"
    return Group(*parts, *look.heat_map(title, [t["text"] for t in explained], example["tokens"]))


def _layers(names: Sequence[str], layers: View, look: Look) -> RenderableType:
    table = look.table("layer", "influence")
    for layer, score in layers["strongest"][:_LAYERS]:
        table.add_row(Text(visible(names[layer])), f"{score:+.4g}")
    return table


def _pairs(example: View, explained: Sequence[View], look: Look) -> RenderableType:
    """The strongest pairs of a training token and a generated one."""
    table = look.table("training token", "text", "generated token", "text", "influence")
    for ours, theirs, score in example["cells"][:_PAIRS]:
        learnt = look.token(example["training"][theirs][0])
        said = look.token(explained[ours]["text"])
        table.add_row(str(theirs), learnt, str(ours), said, f"{score:+.4g}")
    return table
