"""`rin diff`: what changed between two snapshots or checkpoints."""

from typing import Annotated

import typer

from rapidin_cli.commands.adding import arg, opt, project_of, switch
from rapidin_cli.commands.options import AsJson, Device
from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible

Before = Annotated[str, arg("BEFORE", "NAME, NAME@SNAPSHOT, or @SNAPSHOT of the last checkpoint.")]
After = Annotated[
    str, arg("AFTER", "The same. Default: the newest snapshot of BEFORE's checkpoint.")
]
Result = Annotated[
    str | None, opt("RESULT", "A saved result: show how the influences of its queries moved.")
]
Top = Annotated[int, opt("N", "Influences of each sign to compare.", min=1)]
ExitCode = Annotated[bool, switch("Exit with 1 if rows were added or removed.", "--exit-code")]


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

    Examples:
        rin diff checkpoint-100 checkpoint-300
        rin diff @1 --result 4f0c2a91d3b7
    """
    from rapidin_cli.workspace.diff import compare_influences, compare_rows, diff_lines

    project = project_of(context)
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
