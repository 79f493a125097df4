"""`rin status`: what is cached for which checkpoint, and what to do about the rest."""

from __future__ import annotations

from typing import Annotated

import typer

from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="status")(status)


def status(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no remote.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 if anything is not up to date.")
    ] = False,
) -> None:
    """Compare data, checkpoints, lock and cache; name the command for each difference."""
    from rapidin_cli.api import Project
    from rapidin_cli.commands.next_question import first_question
    from rapidin_cli.workspace.status import project_status

    project = Project.open(context.obj.directory)
    found = project_status(project, offline=offline)
    if as_json:
        console.as_json(found.to_json())
    else:
        for line in found.lines():
            console.raw(visible(line))
        console.say(f"next: {found.next or first_question(project)}")
    if exit_code and not found.up_to_date:
        raise typer.Exit(1)
