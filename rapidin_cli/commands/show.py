"""`rin show`: one training row as the model sees it, and what is cached of it."""

from __future__ import annotations

from typing import Annotated

import typer

from rapidin_cli.commands.options import Checkpoint
from rapidin_cli.errors import UsageError
from rapidin_cli.output import console


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="show")(show)


def show(
    context: typer.Context,
    row: Annotated[
        str, typer.Argument(help="A row's id, FILE:LINE, or beginning of its digest.")
    ] = "",
    checkpoint: Checkpoint = "",
    self_influence: Annotated[
        bool, typer.Option("--self-influence", help="List the rows that explain themselves most.")
    ] = False,
    score: Annotated[str, typer.Option(help="Of --self-influence: dot or gram.")] = "dot",
    top: Annotated[int, typer.Option(min=1, help="Rows to list.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show one training row: its text, its learnt tokens, its cached loss and gradient norms.

    With --self-influence, list the rows whose own gradient moves their own loss most: often
    outliers and wrong labels.
    """
    from rapidin_cli.api import Project
    from rapidin_cli.report import rows
    from rapidin_cli.workspace.rows import row_facts

    if bool(row) == self_influence:
        raise UsageError(
            "give either a row or --self-influence",
            hint="rin show ROW, or rin show --self-influence",
        )
    project = Project.open(context.obj.directory)
    opened = project.opened(checkpoint)
    if self_influence:
        from rapidin_cli.influence.self_influence import self_influences

        spec = project.config.gradient
        found = self_influences(opened.name, opened.dataset, opened.snapshot(), spec, score, top)
        if as_json:
            console.as_json(found)
        else:
            rows.show_self_influences(found)
        return
    facts = row_facts(opened, row)
    if as_json:
        console.as_json(facts)
    else:
        rows.show_row(facts)
