"""`rin curvature`: what the score ekfac needs."""

from __future__ import annotations

from typing import Annotated

import typer

from rapidin_cli.commands.options import Checkpoints, Devices, Workers
from rapidin_cli.output import console


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="curvature")(curvature)


def curvature(
    context: typer.Context,
    checkpoints: Checkpoints = None,
    devices: Devices = "auto",
    workers: Workers = None,
    again: Annotated[
        bool, typer.Option("--again", help="Collect anew: after the data has changed much.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave unusable rows out, instead of stopping.")
    ] = False,
) -> None:
    """Collect the EK-FAC curvature of checkpoints, once, for `rin retrieve --score ekfac`.

    Goes over the data twice. The cached rows stay as they are, and rows added to the data later
    do not need it again.
    """
    from rapidin_cli.api import Project
    from rapidin_cli.commands.next_question import first_question

    project = Project.open(context.obj.directory)
    parameters = 0
    with console.progress() as bar:
        task = bar.add_task("loading model", total=None)

        def advance(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        for name, found, fresh in project.curvature(
            checkpoints or [],
            devices=devices,
            workers=workers,
            again=again,
            skip_bad=skip_bad,
            progress=advance,
        ):
            how = "collected" if fresh else "is there already: collected"
            console.say(
                f"{name}: curvature of {len(found.layers):,} layers {how} on "
                f"{console.count(found.examples, 'example')}"
            )
            parameters = sum(layer.values.numel() for layer in found.layers)
    gradient = project.config.gradient
    if gradient.row == "sketch" and parameters > gradient.dimensions:
        console.say(
            'note: through curvature, rows of [gradient] row = "factors" shortlist better than '
            "sketches shorter than the gradient; which, and at how many bytes, is in the README"
        )
    console.say(f"next: {first_question(project, checkpoints or ())} --score ekfac")
