"""Two results side by side (`rin.comparison/1`): which examples rose, fell, came and went.

Scores of the same kind are compared directly. Scores of two kinds have no common unit, so both
are counted in standard deviations of all scores of their own query.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rapidin_cli.errors import InputError
from rapidin_cli.report.span import Span
from rapidin_cli.report.tables import SIDES, ranked
from rapidin_cli.report.view import short

SCHEMA = "rin.comparison/1"

View = Mapping[str, Any]


def compare(first: View, second: View, query: str, other_query: str, top: int) -> dict[str, Any]:
    """Compare two reports, query by query.

    Args:
        query, other_query: ids in the first and the second report. If one is given, only that
            pair is compared; otherwise queries with equal texts are, or the only one of each.
        top: examples of each sign and report to compare.

    Raises:
        InputError: no query of one has a counterpart in the other.
    """
    same = first["score"]["name"] == second["score"]["name"]
    pairs = list(_pairs(first, second, query, other_query))
    if not pairs:
        raise InputError(
            f"results {first['id']} and {second['id']} have no query in common",
            hint="name two: rin report RESULT --query ID --against RESULT:ID",
        )
    return {
        "schema": SCHEMA,
        "scale": "score" if same else "standard deviations of all scores",
        "first": _source(first),
        "second": _source(second),
        "pairs": [_pair(*pair, same_unit=same, top=top) for pair in pairs],
    }


def _source(report: View) -> dict[str, Any]:
    return {
        "result": report["id"],
        "checkpoint": report["checkpoint"]["name"],
        "fingerprint": report["checkpoint"]["fingerprint"],
        "score": report["score"]["name"],
        "unit": report["score"]["unit"],
        "data": report["data"]["digest"],
    }


def _pairs(first: View, second: View, query: str, other_query: str) -> Iterator[tuple[View, View]]:
    ours, theirs = first["queries"], second["queries"]
    if query or other_query or len(ours) == len(theirs) == 1:
        yield _named(first, query), _named(second, other_query or query)
        return
    for one in ours:
        alike = [q for q in theirs if _text(q) == _text(one)]
        # Asked twice: take the one with the same id.
        alike.sort(key=lambda q: q["id"] != one["id"])
        if alike:
            yield one, alike[0]


def _text(query: View) -> tuple[str, str]:
    return query["prompt"], query["response"]


def _named(report: View, name: str) -> View:
    queries: list[View] = report["queries"]
    if not name and len(queries) == 1:
        return queries[0]
    for query in queries:
        if query["id"] == name:
            return query
    known = ", ".join(query["id"] for query in queries)
    raise InputError(
        f"result {report['id']} has no query {name!r}" if name else "say which query",
        hint=f"its queries: {known}",
    )


def _pair(one: View, other: View, *, same_unit: bool, top: int) -> dict[str, Any]:
    units = [1.0 if same_unit else query["distribution"]["std"] or 1.0 for query in (one, other)]
    placed = [_places(query, unit) for query, unit in zip((one, other), units, strict=True)]
    examples = {e["digest"]: e for query in (other, one) for e in query["examples"]}
    columns = {}
    for side in SIDES:
        shown = [d for d in examples if any(_within(p.get(d), side, top) for p in placed)]
        lines = [_line(examples[digest], placed[0], placed[1]) for digest in shown]
        columns[side] = sorted(lines, key=lambda line: _best_rank(line, side))
    return {
        "first": _query(one),
        "second": _query(other),
        "same_text": _text(one) == _text(other),
        "agree": {side: _agreement(columns[side], side, top) for side in SIDES},
        **columns,
    }


def _query(query: View) -> dict[str, Any]:
    names = ("id", "prompt", "response", "loss", "scored")
    return {**{name: query[name] for name in names}, "kept": len(query["examples"])}


def _places(query: View, unit: float) -> dict[str, dict[str, Any]]:
    """Side, rank and score of each kept example, by its digest."""
    everything = Span(0, 0, everything=True)
    return {
        example["digest"]: {"side": side, "rank": rank, "score": short(example["score"] / unit)}
        for side, examples in ranked(query, everything).items()
        for rank, example in enumerate(examples, 1)
    }


def _within(place: View | None, side: str, top: int) -> bool:
    return place is not None and place["side"] == side and place["rank"] <= top


def _line(example: View, first: View, second: View) -> dict[str, Any]:
    return {
        **{name: example[name] for name in ("digest", "id", "rows", "prompt", "response")},
        "first": first.get(example["digest"]),
        "second": second.get(example["digest"]),
    }


def _best_rank(line: View, side: str) -> tuple[int, int, str]:
    ranks = [
        place["rank"] if place is not None and place["side"] == side else 10**9
        for place in (line["first"], line["second"])
    ]
    return min(ranks), ranks[0], line["digest"]


def _agreement(lines: list[dict[str, Any]], side: str, top: int) -> dict[str, int]:
    """How many of the first list's top are in the second's."""
    ours = [line for line in lines if _within(line["first"], side, top)]
    both = sum(_within(line["second"], side, top) for line in ours)
    return {"of": len(ours), "both": both}


def change(line: View, side: str) -> str:
    """Say in a word how an example's rank changed."""
    before, after = line["first"], line["second"]
    if before is None or before["side"] != side:
        return "new" if before is None else f"was {before['side']}"
    if after is None or after["side"] != side:
        return "not kept" if after is None else f"now {after['side']}"
    steps = before["rank"] - after["rank"]
    return "=" if steps == 0 else f"{'up' if steps > 0 else 'down'} {abs(steps)}"
