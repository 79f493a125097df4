"""`rin status`: what is cached for which checkpoint, and what to do about the rest."""

from typing import Annotated

import typer

from rapidin_cli.commands.adding import project_of, switch
from rapidin_cli.commands.options import AsJson
from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible

Offline = Annotated[bool, switch("Do not contact remotes.", "--offline")]
ExitCode = Annotated[bool, switch("Exit with 1 if anything is not up to date.", "--exit-code")]


def status(
    context: typer.Context,
    as_json: AsJson = False,
    offline: Offline = False,
    exit_code: ExitCode = False,
) -> None:
    """Compare data, checkpoints, rin.lock and caches.

    Each line that is not up to date names the command that fixes it.

    Examples:
        rin status
        rin status --offline --exit-code
    """
    from rapidin_cli.commands.next_question import first_question
    from rapidin_cli.workspace.status import project_status

    project = project_of(context)
    found = project_status(project, offline=offline)
    if as_json:
        console.as_json(found.to_json())
    else:
        for line in found.lines():
            console.raw(visible(line))
        console.say(f"next: {found.next or first_question(project)}")
    if exit_code and not found.up_to_date:
        raise typer.Exit(1)
