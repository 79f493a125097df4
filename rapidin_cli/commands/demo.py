"""`rin demo`: the whole story on an embedded tiny model."""

from pathlib import Path
from typing import Annotated

import typer

from rapidin_cli.commands.adding import arg, switch
from rapidin_cli.output import console

Folder = Annotated[Path, arg("FOLDER", "A new folder, or an earlier demo.")]
Force = Annotated[bool, switch("Replace an earlier demo.", "--force")]


def demo(context: typer.Context, folder: Folder = Path("rin-demo"), force: Force = False) -> None:
    """Train a tiny model with planted misbehaviour, then find the rows that caused it.

    It takes about a minute on two cores and leaves a folder to explore.

    Examples:
        rin demo
        rin demo ~/rin-demo --force
    """
    from rapidin_cli.setup.demo.story import run_demo

    run_demo(context.obj.directory / folder, force=force, say=console.say)
