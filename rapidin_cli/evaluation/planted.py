"""Which rows a query is known to come from."""

import re
from collections.abc import Callable
from pathlib import Path

from rapidin_cli.data.examples import Example
from rapidin_cli.data.files import read_values
from rapidin_cli.errors import InputError
from rapidin_cli.influence.queries import Question


def planted_rows(queries: Path, pattern: str) -> Callable[[Question, Example], bool]:
    """Return whether a row's id is one of those planted for a question.

    Args:
        queries: the file of the questions, in the order in which they are asked; an entry may
            have its own regular expression in a field `planted`.
        pattern: for the entries that have none.

    Raises:
        InputError: a broken expression, or a query without one.
    """
    patterns: dict[str, re.Pattern[str]] = {}
    for line, value in read_values(queries, str(queries)):
        own = value.get("planted") if isinstance(value, dict) else None
        text = own if isinstance(own, str) else pattern
        if not text:
            raise InputError(
                f"{queries}:{line}: nothing says which rows are planted for this query",
                hint='use --planted REGEX, or give the query a field "planted"',
            )
        try:
            compiled = re.compile(text)
        except re.error as error:
            raise InputError(
                f"{text!r} is not a regular expression: {error}", hint="correct --planted"
            ) from None
        named = isinstance(value, dict) and value.get("id") not in (None, "")
        patterns[str(value["id"]) if named else f"q{line}"] = compiled
    return lambda question, example: bool(patterns[question.id].search(example.row.id))
