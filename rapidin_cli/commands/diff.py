"""`rin diff`: what changed between two snapshots or checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from rapidin_cli.commands import completion
from rapidin_cli.commands.adding import ASK, add
from rapidin_cli.commands.options import AsJson, Device
from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible

Before = Annotated[
    str,
    typer.Argument(
        metavar="BEFORE",
        help="NAME, NAME@SNAPSHOT, or @SNAPSHOT of the last checkpoint.",
        autocompletion=completion.checkpoints,
    ),
]
After = Annotated[
    str,
    typer.Argument(
        metavar="AFTER",
        help="The same. Default: the newest snapshot of BEFORE's checkpoint.",
        autocompletion=completion.checkpoints,
    ),
]
Result = Annotated[
    str | None,
    typer.Option(
        metavar="RESULT",
        help="A saved result: show how the influences of its queries moved.",
        autocompletion=completion.results,
    ),
]
Top = Annotated[int, typer.Option(min=1, metavar="N", help="Influences of each sign to compare.")]
ExitCode = Annotated[
    bool, typer.Option("--exit-code", help="Exit with 1 if rows were added or removed.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(
        app, "diff", diff, ASK,
        "rin diff checkpoint-100 checkpoint-300", "rin diff @1 --result 4f0c2a91d3b7",
    )  # fmt: skip


def diff(
    context: typer.Context,
    before: Before,
    after: After = "",
    result: Result = None,
    top: Top = 10,
    device: Device = "auto",
    as_json: AsJson = False,
    exit_code: ExitCode = False,
) -> None:
    """Compare two checkpoints or snapshots: which rows came and went.

    With --result, also how the influences of its queries moved.
    """
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
