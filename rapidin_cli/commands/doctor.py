"""`rin doctor`: is everything here that rin needs?"""

import typer

from rapidin_cli.commands.options import AsJson
from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible


def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Check versions, devices, the project, its store and its remotes.

    Exits with 1 if something is wrong.

    Examples:
        rin doctor
        rin doctor --json
    """
    from rapidin_cli.setup.doctor import examine

    checks = examine(context.obj.directory)
    if as_json:
        console.as_json({"schema": "rin.doctor/1", "checks": [check.to_json() for check in checks]})
    else:
        for check in checks:
            console.raw(visible(str(check)))
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
