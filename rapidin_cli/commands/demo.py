"""`rin demo`: the whole story on an embedded tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rapidin_cli.output import console


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="demo")(demo)


def demo(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Where to put it; must be new or an earlier demo.")
    ] = Path("rin-demo"),
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
) -> None:
    """Train a tiny model with planted misbehaviour, then find the rows that caused it.

    Takes about a minute on two cores and leaves a folder to explore.
    """
    from rapidin_cli.setup.demo.story import run_demo

    run_demo(context.obj.directory / folder, force=force, say=console.say)
