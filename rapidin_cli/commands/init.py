"""`rin init`: make a project of the current folder."""

from __future__ import annotations

from typing import Annotated

import typer

from rapidin_cli.output import console


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="init")(init)


def init(
    context: typer.Context,
    data: Annotated[
        list[str] | None, typer.Option(help="Training data; found by looking if not given.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="Adapter or model folder, or hub name; found by looking if not given."),
    ] = None,
    base: Annotated[
        str, typer.Option(help="Base model of adapters, if not the one that they name.")
    ] = "",
    template: Annotated[
        str, typer.Option(help="chat, alpaca, plain or a text with {prompt}.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write it without asking.")] = False,
) -> None:
    """Find data and checkpoints here, and write a commented rin.toml.

    Nothing that is there is ever overwritten; in a project it only says so.
    """
    from rapidin_cli.setup.proposal import describe, initialise, propose

    root = context.obj.directory.resolve()
    proposal = propose(root, data or [], checkpoint or [], base, template)
    if proposal is None:
        console.say(f"{root / 'rin.toml'} is there already; nothing was changed")
        console.say("next: rin status")
        return
    for line in describe(root, proposal):
        console.say(line)
    if not yes and not console.confirm(f"write {root / 'rin.toml'}?", default=True):
        raise typer.Exit(1)
    initialise(root, proposal)
    console.say("wrote rin.toml; commit it, and check that [data] template is training's")
    console.say(f"next: {proposal.next}")
