"""`rin report`: show a saved result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rapidin_cli.commands.adding import arg, opt, project_of, switch
from rapidin_cli.commands.options import AsJson, Html, Span
from rapidin_cli.errors import UsageError
from rapidin_cli.output import console

if TYPE_CHECKING:
    from rapidin_cli.workspace.results import Results

Result = Annotated[
    str, arg("RESULT", "The start of a result's id, or a JSON file. Default: the newest result.")
]
Force = Annotated[bool, switch("Overwrite the HTML file; write it even if it is huge.", "--force")]
Show = Annotated[
    bool, switch("Open the page in a browser. Without --html it is in .rin/pages.", "--open")
]
Split = Annotated[bool, switch("Write a page for each query, and one that lists them.", "--split")]
Shrink = Annotated[
    float | None, opt("MB", "Leave out the least important parts until it fits.", min=0.1)
]
Against = Annotated[str, opt("RESULT[:QUERY]", "Compare with another result or query.")]
Redact = Annotated[bool, switch("Show ids and scores only, no text of data or model.", "--redact")]
AsJsonl = Annotated[bool, switch("Print one JSON object for each query and example.", "--jsonl")]
AsCsv = Annotated[bool, switch("Print one line of CSV for each query and example.", "--csv")]
Query = Annotated[str, opt("ID", "Show only this query.")]
Example = Annotated[str, opt("ID", "Show this kept example in full.")]
Top = Annotated[int, opt("N", "Examples of each sign to show.", min=1)]


def report(
    context: typer.Context,
    result: Result = "",
    html: Html = None,
    force: Force = False,
    show: Show = False,
    split: Split = False,
    shrink: Shrink = None,
    against: Against = "",
    redact: Redact = False,
    as_json: AsJson = False,
    as_jsonl: AsJsonl = False,
    as_csv: AsCsv = False,
    query: Query = "",
    token: Span = "",
    example: Example = "",
    top: Top = 5,
) -> None:
    """Show a saved result in the terminal, or as HTML, JSON or CSV; or compare two results.

    Examples:
        rin report
        rin report --html report.html
        rin report --token 12:15 --top 20
    """
    from rapidin_cli.report import shrinking, terminal, writing
    from rapidin_cli.report.span import selected

    formats = {"json": as_json, "jsonl": as_jsonl, "csv": as_csv}
    chosen = [name for name, wanted in formats.items() if wanted]
    _check(chosen, html, split=split, shrink=shrink)
    results = project_of(context).results
    first = results.load(result)
    if against:
        _compare(results, first, against, query, top, redact, html, show, force, as_json)
        return
    saved = shrinking.redact(selected(first, query)) if redact else selected(first, query)
    page = results.page(saved) if show and html is None else html
    if page is not None:
        _write(saved, page, force=force or html is None, split=split, megabytes=shrink)
    _open(page, show)
    if chosen:
        console.raw(writing.text(saved, chosen[0], token))
    elif page is None:
        terminal.show(saved, token=token, example=example, top=top)


def _check(chosen: list[str], html: Path | None, *, split: bool, shrink: float | None) -> None:
    if len(chosen) > 1:
        raise UsageError(
            f"{' and '.join(f'--{name}' for name in chosen)} cannot be combined",
            hint="use one of them",
        )
    if html is None and (split or shrink is not None):
        raise UsageError(
            "--split and --shrink need --html", hint="rin report --html report.html --split"
        )


def _compare(
    results: Results,
    first: dict[str, Any],
    against: str,
    query: str,
    top: int,
    redact: bool,
    html: Path | None,
    show: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Show two results side by side; `against` is RESULT, RESULT:QUERY, or :QUERY of the same."""
    from rapidin_cli.report import comparison_shown, shrinking, writing
    from rapidin_cli.report.comparison import compare

    other, _, other_query = against.partition(":")
    second = results.load(other) if other else first
    found = compare(first, second, query, other_query, top)
    if redact:
        found = shrinking.redact_comparison(found)
    page = results.page(found) if show and html is None else html
    if page is not None:
        size = writing.save_page(comparison_shown.page(found), page, force=force or html is None)
        console.say(f"wrote {page} ({console.size(size)})")
    if as_json:
        console.as_json(found)
    elif page is None:
        comparison_shown.show(found)
    _open(page, show)


def _write(
    report: dict[str, Any], path: Path, *, force: bool, split: bool, megabytes: float | None
) -> None:
    from rapidin_cli.report.writing import publish

    done = publish(report, path, force=force, megabytes=megabytes, split=split)
    pages = f", and {len(done.paths) - 1} pages beside it" if split else ""
    console.say(f"wrote {path}{pages} ({console.size(done.size)})")
    if done.warning:
        console.warn(done.warning)


def _open(page: Path | None, show: bool) -> None:
    from rapidin_cli.output.browser import open_page

    if page is not None and show:
        opened = open_page(page)
        console.say(f"opened {page}" if opened else f"cannot find a browser here: open {page}")
