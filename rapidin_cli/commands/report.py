"""`rin report`: show a saved result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rapidin_cli import completion


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
    force: Annotated[bool, typer.Option("--force", help="Overwrite the HTML file.")] = False,
    show: Annotated[
        bool, typer.Option("--open", help="Open it in a browser; without --html, from .rin/pages.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    query: Annotated[str, typer.Option(help="Show only the query of this id.")] = "",
    token: Annotated[
        str, typer.Option(help="Rank by one explained token, or a span: 12 or 12:15.")
    ] = "",
    example: Annotated[str, typer.Option(help="Show this kept example in full.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Examples to show of each sign.")] = 5,
) -> None:
    """Show a saved result in the terminal, as HTML or as JSON."""
    from rapidin_cli import console
    from rapidin_cli.project import Project
    from rapidin_cli.report import terminal

    project = Project.open(context.obj.directory)
    saved = project.results.load(result)
    if as_json:
        console.as_json(saved)
    if show and html is None:
        html, force = project.results.page(saved), True
    if html is not None:
        from rapidin_cli.report.html import save_html

        size = save_html(saved, html, force=force)
        console.say(f"wrote {html} ({size:,} bytes)")
    if html is not None and show:
        from rapidin_cli.browser import open_page

        opened = open_page(html)
        console.say(f"opened {html}" if opened else f"no browser is to be had here: open {html}")
    if as_json or html is not None:
        return
    terminal.show(saved, query=query, token=token, example=example, top=top)
