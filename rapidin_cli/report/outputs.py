"""What `rin report` gives: a saved result as a page, as text for programs, or beside another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rapidin_cli import console
from rapidin_cli.report import comparison_shown
from rapidin_cli.report.comparison import compare
from rapidin_cli.report.publish import publish
from rapidin_cli.report.saving import save_page
from rapidin_cli.report.smaller import redact, redact_comparison
from rapidin_cli.report.span import selected
from rapidin_cli.report.tables import as_csv, as_jsonl
from rapidin_cli.report.view import dump
from rapidin_cli.results import Results

View = Mapping[str, Any]


def chosen(results: Results, name: str, query: str, *, redacted: bool) -> dict[str, Any]:
    """Return a saved result, or one query of it.

    Raises:
        MissingError, InputError: there is none.
    """
    report = selected(results.load(name), query)
    return redact(report) if redacted else report


def text(report: View, kind: str, token: str) -> str:
    """Return a report as `--json`, `--jsonl` or `--csv` print it."""
    if kind == "--json":
        return dump(report)
    return as_csv(report, token) if kind == "--csv" else as_jsonl(report, token)


def give_html(
    report: View, path: Path, *, force: bool, split: bool, megabytes: float | None
) -> None:
    """Write a page and say so; see `publish`."""
    done = publish(report, path, force=force, megabytes=megabytes, split=split)
    pages = f", and {len(done.paths) - 1} pages beside it" if split else ""
    console.say(f"wrote {path}{pages} ({console.size(done.size)})")
    if done.warning:
        console.warn(done.warning)


def comparison(
    results: Results, name: str, other: str, query: str, top: int, *, redacted: bool
) -> dict[str, Any]:
    """Compare a saved result with another.

    Args:
        other: RESULT, RESULT:QUERY, or :QUERY of the same result.
    """
    second_name, _, second_query = other.partition(":")
    first = results.load(name)
    second = results.load(second_name) if second_name else first
    found = compare(first, second, query, second_query, top)
    return redact_comparison(found) if redacted else found


def give_comparison(found: View, *, html: Path | None, force: bool, as_json: bool) -> None:
    """Write, or print, a comparison."""
    if html is not None:
        size = save_page(comparison_shown.page(found), html, force=force)
        console.say(f"wrote {html} ({console.size(size)})")
    if as_json:
        console.as_json(found)
    elif html is None:
        comparison_shown.show(found)
