"""`rin show`: one training row as the model sees it, and what is cached of it."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="show")(show)


def show(
    context: typer.Context,
    row: Annotated[str, typer.Argument(help="A row's id, FILE:LINE, or beginning of its digest.")],
    checkpoint: Annotated[
        str, typer.Option(help="Name from rin.toml; the last one by default.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show one training row: its text, its learnt tokens, its cached loss and gradient norms."""
    from rapidin_cli import console
    from rapidin_cli.project import Project
    from rapidin_cli.report import terminal
    from rapidin_cli.row_facts import row_facts

    facts = row_facts(Project.open(context.obj.directory), row, checkpoint)
    if as_json:
        console.as_json(facts)
    else:
        terminal.show_row(facts)
