"""`rin doctor`: is everything here that rin needs?"""

from typing import Annotated

import typer

from rapidin_cli.commands.adding import switch
from rapidin_cli.commands.options import AsJson, Checkpoint, Device
from rapidin_cli.output import console
from rapidin_cli.output.sanitise import visible

Data = Annotated[bool, switch("Ask the model whether the rows are as training had them.", "--data")]


def doctor(
    context: typer.Context,
    data: Data = False,
    checkpoint: Checkpoint = "",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Check versions, devices, the project, its store and its remotes.

    With --data, load the checkpoint instead, and compare on some 30 rows how well it predicts
    them under the templates that fit. Training's own has the lowest loss.

    Exits with 1 if something is wrong.

    Examples:
        rin doctor
        rin doctor --data
    """
    from rapidin_cli.setup.doctor import examine, rendering

    if data:
        checks = rendering(context.obj.directory, checkpoint, device)
    else:
        checks = examine(context.obj.directory)
    if as_json:
        console.as_json({"schema": "rin.doctor/1", "checks": [check.to_json() for check in checks]})
    else:
        for check in checks:
            console.raw(visible(str(check)))
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
