"""`rin curvature`: what the score ekfac needs."""

from typing import Annotated

import typer

from rapidin_cli.commands.adding import project_of, switch
from rapidin_cli.commands.options import Checkpoints, Devices, SkipBad, Workers
from rapidin_cli.output import console

Again = Annotated[bool, switch("Collect it again, after the data has changed a lot.", "--again")]


def curvature(
    context: typer.Context,
    checkpoints: Checkpoints = None,
    devices: Devices = "auto",
    workers: Workers = None,
    again: Again = False,
    skip_bad: SkipBad = False,
) -> None:
    """Collect the curvature that the best score, ekfac, needs; once per checkpoint.

    It goes over the data twice. If it is interrupted or killed, run it again: a single worker
    goes on from there. Cached rows stay as they are, and rows that you add later do not need it
    again.

    Examples:
        rin curvature
        rin curvature --workers 2 --again
    """
    parameters = 0
    with console.counting("curvature: reading rin.toml and checkpoints") as progress:
        project = project_of(context)
        for name, found, fresh in project.curvature(
            checkpoints or [],
            devices=devices,
            workers=workers,
            again=again,
            skip_bad=skip_bad,
            progress=progress,
        ):
            how = "collected" if fresh else "already collected"
            console.say(
                f"{name}: curvature of {len(found.layers):,} layers {how} on "
                f"{console.count(found.examples, 'example')}"
            )
            parameters = sum(layer.values.numel() for layer in found.layers)
    from rapidin_cli.commands.next_question import first_question

    gradient = project.config.gradient
    if gradient.row == "sketch" and parameters > gradient.dimensions:
        console.say(
            'note: for scores with curvature, [gradient] row = "factors" gives a better shortlist '
            "than sketches shorter than the gradient; docs/measurements.md compares their sizes"
        )
    console.say(f"next: {first_question(project, checkpoints or ())} --score ekfac")
