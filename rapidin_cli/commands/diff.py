"""`rin diff`: what changed between two snapshots or checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from rapidin_cli.commands import completion
from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="diff")(diff)


def diff(
    context: typer.Context,
    before: Annotated[
        str,
        typer.Argument(
            help="NAME, NAME@SNAPSHOT or @SNAPSHOT (of the last checkpoint).",
            autocompletion=completion.checkpoints,
        ),
    ],
    after: Annotated[
        str,
        typer.Argument(
            help="The same; the newest of BEFORE's by default.",
            autocompletion=completion.checkpoints,
        ),
    ] = "",
    result: Annotated[
        str | None,
        typer.Option(
            help="A saved result: show how its queries' top influences moved.",
            autocompletion=completion.results,
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Influences of each sign to compare.")] = 10,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 if rows were added or are gone.")
    ] = False,
) -> None:
    """Rows added and gone, and with --result how the influences of its queries moved."""
    from rapidin_cli.api import Project
    from rapidin_cli.workspace.diff import compare_influences, compare_rows, diff_lines

    project = Project.open(context.obj.directory)
    found = compare_rows(project, before, after)
    if result is not None:
        report = project.results.load(result)
        found["queries"] = compare_influences(project, before, after, report, top, device)
    if as_json:
        console.as_json(found)
    else:
        for line in diff_lines(found):
            console.raw(visible(line))
    if exit_code and (found["added"] or found["gone"]):
        raise typer.Exit(1)
