"""Which generated tokens are meant: all, one, or a span of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rapidin_cli.errors import InputError, UsageError

View = Mapping[str, Any]


@dataclass(frozen=True)
class Span:
    """Explained tokens first..last (numbered from 0), or all of them."""

    first: int
    last: int
    everything: bool

    def __str__(self) -> str:
        if self.first == self.last:
            return f"token {self.first}"
        return f"tokens {self.first} to {self.last}"

    def score(self, example: View) -> float:
        """An example's influence on the span."""
        if self.everything:
            return float(example["score"])
        return float(sum(example["tokens"][self.first : self.last + 1]))

    def is_sketched(self, query: View, example: View) -> bool:
        """Whether that is a sketch's, where others' are exact."""
        if query["exact"] is None:
            return False
        exact = example["sketched"] is not None
        return not (exact if self.everything else example.get("tokens_exact", exact))

    @classmethod
    def whole(cls, query: View) -> Span:
        """All explained tokens of a query."""
        count = sum(token["explained"] for token in query["tokens"])
        return cls(0, count - 1, everything=True)


def parse_span(text: str, query: View) -> Span:
    """Read `12` or `12:15`; empty means the whole response.

    Raises:
        UsageError: not a span of the query's explained tokens, or no token scores.
    """
    count = sum(token["explained"] for token in query["tokens"])
    if not text:
        return Span.whole(query)
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
            "this result has no token scores", hint="run rin retrieve again without --no-tokens"
        )
    return span


def selected(report: View, query: str) -> dict[str, Any]:
    """Return the report with one query only, or whole if none is named.

    Raises:
        InputError: there is no such query.
    """
    queries = [item for item in report["queries"] if query in ("", item["id"])]
    if not queries:
        known = ", ".join(item["id"] for item in report["queries"])
        raise InputError(f"this result has no query {query!r}", hint=f"its queries: {known}")
    return {**report, "queries": queries}
