"""`rin report`: show a saved result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rapidin_cli.commands import completion
from rapidin_cli.errors import UsageError
from rapidin_cli.output import console


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="report")(report)


def report(
    context: typer.Context,
    result: Annotated[
        str,
        typer.Argument(
            help="Beginning of a result's id, or a JSON file; the newest if empty.",
            autocompletion=completion.results,
        ),
    ] = "",
    html: Annotated[Path | None, typer.Option(help="Write one offline HTML file.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the HTML file, and write even a huge one.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--open", help="Open it in a browser; without --html, from .rin/pages.")
    ] = False,
    split: Annotated[
        bool, typer.Option("--split", help="A page for each query, and one that lists them.")
    ] = False,
    shrink: Annotated[
        float | None,
        typer.Option(metavar="MB", min=0.1, help="Leave out what is missed least until it fits."),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="RESULT[:QUERY]",
            help="Compare with another result or query.",
            autocompletion=completion.results,
        ),
    ] = "",
    redact: Annotated[
        bool, typer.Option("--redact", help="Ids and scores only: no text of data or model.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    as_jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print a JSON object for each query and example.")
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a table for each query and example.")
    ] = False,
    query: Annotated[str, typer.Option(help="Show only the query of this id.")] = "",
    token: Annotated[
        str, typer.Option(metavar="N[:M]", help="Rank by one explained token, or a span.")
    ] = "",
    example: Annotated[str, typer.Option(help="Show this kept example in full.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Examples to show of each sign.")] = 5,
) -> None:
    """Show a saved result in the terminal, or as HTML, JSON or CSV; or compare two."""
    from rapidin_cli.api import Project
    from rapidin_cli.report import outputs, terminal

    formats = {"--json": as_json, "--jsonl": as_jsonl, "--csv": as_csv}
    chosen = [name for name, wanted in formats.items() if wanted]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} cannot be combined", hint="give one of them")
    if html is None and (split or shrink is not None):
        raise UsageError(
            "--split and --shrink are for --html", hint="rin report --html report.html --split"
        )
    results = Project.open(context.obj.directory).results
    if against:
        found = outputs.comparison(results, result, against, query, top, redacted=redact)
        page = results.page(found) if show and html is None else html
        outputs.give_comparison(found, html=page, force=force or html is None, as_json=as_json)
        _open(page, show)
        return
    saved = outputs.chosen(results, result, query, redacted=redact)
    page = results.page(saved) if show and html is None else html
    if page is not None:
        outputs.give_html(saved, page, force=force or html is None, split=split, megabytes=shrink)
    _open(page, show)
    if chosen:
        console.raw(outputs.text(saved, chosen[0], token))
    elif page is None:
        terminal.show(saved, token=token, example=example, top=top)


def _open(page: Path | None, show: bool) -> None:
    from rapidin_cli.output.browser import open_page

    if page is not None and show:
        opened = open_page(page)
        console.say(f"opened {page}" if opened else f"no browser is to be had here: open {page}")
