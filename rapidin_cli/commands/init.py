"""`rin init`: make a project of the current folder."""

from typing import Annotated

import typer

from rapidin_cli.commands.adding import opt, switch
from rapidin_cli.output import console

Data = Annotated[list[str] | None, opt("FILE", "Training data. Default: what is found here.")]
Checkpoint = Annotated[
    list[str] | None,
    opt("FOLDER", "Adapter or model: a folder or a hub name. Default: what is found."),
]
Base = Annotated[str, opt("MODEL", "Base model of the adapters, if not the one they name.")]
Template = Annotated[str, opt("NAME", "chat, alpaca, plain, or a text with {prompt}.")]
Yes = Annotated[bool, switch("Write rin.toml without asking.", "--yes", "-y")]


def init(
    context: typer.Context,
    data: Data = None,
    checkpoint: Checkpoint = None,
    base: Base = "",
    template: Template = "",
    yes: Yes = False,
) -> None:
    """Find your data and checkpoints here, and write a commented rin.toml.

    It never overwrites anything. In a folder that already has a rin.toml, it only says so.

    Examples:
        rin init
        rin init --data train.jsonl --checkpoint out/checkpoint-300 --yes
    """
    from rapidin_cli.setup.proposal import describe, initialise, propose

    root = context.obj.directory.resolve()
    proposal = propose(root, data or [], checkpoint or [], base, template)
    if proposal is None:
        console.say(f"{root / 'rin.toml'} already exists; nothing was changed")
        console.say("next: rin status")
        return
    for line in describe(root, proposal):
        console.say(line)
    if not yes and not console.confirm(f"write {root / 'rin.toml'}?", default=True):
        raise typer.Exit(1)
    initialise(root, proposal)
    console.say("wrote rin.toml; commit it, and check that [data] template is what training used")
    console.say(f"next: {proposal.next}")
