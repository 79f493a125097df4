"""A report as a table: one line for each query and kept example, ranked by all tokens or a span."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from rapidin_cli.report.span import Span, parse_span

View = Mapping[str, Any]

COLUMNS = (
    "query",
    "side",
    "rank",
    "score",
    "total",
    "percentile",
    "bm25_rank",
    "id",
    "file",
    "line",
    "rows",
    "digest",
    "prompt",
    "response",
)
SIDES = ("raised", "lowered")
_FORMULA = "=+-@\t\r"


def ranked(query: View, span: Span) -> dict[str, list[View]]:
    """Return the kept examples of a query that raised and that lowered it, the strongest first."""
    scored = [(span.score(example), example) for example in query["examples"]]
    raised = sorted((pair for pair in scored if pair[0] > 0), key=_order(-1))
    lowered = sorted((pair for pair in scored if pair[0] < 0), key=_order(1))
    return {
        "raised": [example for _, example in raised],
        "lowered": [example for _, example in lowered],
    }


def _order(sign: int) -> Any:
    return lambda pair: (sign * pair[0], pair[1]["digest"])


def lines(report: View, token: str = "") -> Iterator[dict[str, Any]]:
    """Yield a flat record for each query and kept example.

    Args:
        token: see `parse_span`.
    """
    for query in report["queries"]:
        span = parse_span(token, query)
        for side, examples in ranked(query, span).items():
            for rank, example in enumerate(examples, 1):
                yield _line(query, side, rank, span.score(example), example)


def _line(query: View, side: str, rank: int, score: float, example: View) -> dict[str, Any]:
    first = example["rows"][0]
    return {
        "query": query["id"],
        "side": side,
        "rank": rank,
        "score": score,
        "total": example["score"],
        "percentile": example["percentile"],
        "bm25_rank": example["bm25"]["rank"],
        "id": example["id"],
        "file": first["file"],
        "line": first["line"],
        "rows": len(example["rows"]),
        "digest": example["digest"],
        "prompt": example["prompt"],
        "response": example["response"],
    }


def as_jsonl(report: View, token: str = "") -> str:
    """Return the table with a JSON object a line, and each one's token scores."""
    found = []
    for query in report["queries"]:
        tokens = {example["digest"]: example["tokens"] for example in query["examples"]}
        for line in lines({**report, "queries": [query]}, token):
            found.append(json.dumps({**line, "tokens": tokens[line["digest"]]}, allow_nan=False))
    return "".join(f"{line}\n" for line in found)


def as_csv(report: View, token: str = "") -> str:
    """Return the table as CSV (RFC 4180)."""
    return csv_text(COLUMNS, lines(report, token))


def csv_text(columns: tuple[str, ...], records: Iterator[dict[str, Any]]) -> str:
    """Return records as CSV (RFC 4180) that no spreadsheet takes for formulas."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    for record in records:
        writer.writerow([_harmless(record[name]) for name in columns])
    return text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8")


def _harmless(value: Any) -> Any:
    """A spreadsheet would compute text that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in _FORMULA and value else value
