"""`rin init`: make a project of the current folder."""

from pathlib import Path
from typing import Annotated

import typer

from rapidin_cli.commands.adding import opt, switch
from rapidin_cli.errors import RinError
from rapidin_cli.output import console

_SHOWN_TOKENS = 400
_ASKED_ROWS = 10

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
    from rapidin_cli.models.checkpoints import is_here
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
    console.say("wrote rin.toml; commit it")
    if proposal.data and proposal.checkpoints:
        places = [proposal.checkpoints[-1][1].path, proposal.base.place]
        if not all(is_here(root, place) for place in places if place):
            console.say("once the model is here, rin show shows a row with what is learnt marked")
        elif _show_first_row(root):
            _ask_model(root)
    console.say(f"next: {proposal.next}")


def _show_first_row(root: Path) -> bool:
    """Show what training learnt of the first row, by what was written; return whether it could."""
    from rapidin_cli.api import Project
    from rapidin_cli.report.look import Look
    from rapidin_cli.report.rows import marked_text
    from rapidin_cli.workspace.training_row import first_row

    try:
        row = first_row(Project.open(root).opened())
    except RinError as error:
        console.warn(f"the first row cannot be shown: {error.message}")
        if error.hint:
            console.say(f"try: {error.hint}")
        return False
    console.say(f"row {row['id']}: {row['tokens']:,} tokens, {row['learnt']:,} learnt (marked):")
    console.show(marked_text(row["text"][:_SHOWN_TOKENS], Look.of(console.stderr())))
    if (more := len(row["text"]) - _SHOWN_TOKENS) > 0:
        console.say(f"... and {more:,} more tokens: rin show {row['id']}")
    console.say("if training learnt other words, correct [data] in rin.toml")
    return True


def _ask_model(root: Path) -> None:
    """Ask the checkpoint whether other settings fit better, where that takes seconds."""
    from rapidin_cli.api import Project
    from rapidin_cli.evaluation.fit import examine_rendering
    from rapidin_cli.models.weights import is_small

    try:
        opened = Project.open(root).opened()
        if not is_small(opened.checkpoint.base or opened.checkpoint.path):
            console.say("to ask the model whether these settings are training's: rin doctor --data")
            return
        found = examine_rendering(opened, rows=_ASKED_ROWS)
    except RinError as error:
        console.say(f"the model was not asked about these settings: {error.message}")
        return
    for complaint in found.complaints:
        console.warn(complaint)
    if not found.complaints:
        rows = console.count(found.rows, "row")
        console.say(f"the model was asked on {rows}: no other setting fits better")
