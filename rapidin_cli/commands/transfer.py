"""`rin push` and `rin pull`: copy caches to and from a remote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rapidin_cli.commands import completion
from rapidin_cli.commands.adding import SHARE, add
from rapidin_cli.errors import MissingError
from rapidin_cli.output import console

if TYPE_CHECKING:
    from rapidin_cli.commands.transfer_bar import TransferBar
    from rapidin_cli.workspace.moving import Moved


RemoteName = Annotated[
    str,
    typer.Argument(
        metavar="REMOTE",
        help="Name of a remote. Default: the only one, or origin.",
        autocompletion=completion.remotes,
    ),
]
Checkpoint = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Name from rin.toml; may be repeated. Default: all of them.",
        autocompletion=completion.checkpoints,
    ),
]
Every = Annotated[bool, typer.Option("--all", help="Copy every cache, old ones too.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add(app, "push", push, SHARE, "rin push", "rin push origin --checkpoint checkpoint-300")
    add(app, "pull", pull, SHARE, "rin pull", "rin pull origin --all")


def push(
    context: typer.Context,
    remote: RemoteName = "",
    checkpoint: Checkpoint = None,
    every: Every = False,
) -> None:
    """Copy cached rows to a remote.

    Only what the remote lacks is copied, and commits go last. Run it again to resume.
    """
    from rapidin_cli.api import Project
    from rapidin_cli.commands.transfer_bar import TransferBar

    project = Project.open(context.obj.directory)
    with TransferBar("pushing") as watch:
        options = {"every": every, "progress": watch, "tell": console.warn}
        moved = project.push(remote, checkpoint or (), **options)
    _report(moved, watch)
    _check_lock(moved, "and the remote has not got it, nor has this store", "rin cache")


def pull(
    context: typer.Context,
    remote: RemoteName = "",
    checkpoint: Checkpoint = None,
    every: Every = False,
) -> None:
    """Copy cached rows from a remote.

    Only what is missing here is copied. Run it again to resume. It needs neither model nor
    data: rin.lock says which caches to copy.
    """
    from rapidin_cli.api import Project
    from rapidin_cli.commands.transfer_bar import TransferBar

    project = Project.open(context.obj.directory)
    with TransferBar("pulling") as watch:
        options = {"every": every, "progress": watch, "tell": console.warn}
        moved = project.pull(remote, checkpoint or (), **options)
    _report(moved, watch)
    _check_lock(
        moved,
        "and the remote has not got it; what it has is here now",
        "rin push, where that was cached; or rin cache here",
    )
    console.say("next: rin status")


def _check_lock(moved: list[Moved], what: str, hint: str) -> None:
    """Fail if rin.lock promises what was not delivered."""

    if names := [one.names for one in moved if one.locked is False]:
        raise MissingError(
            f"rin.lock names another snapshot of {', '.join(names)}, {what}", hint=hint
        )


def _report(moved: list[Moved], watch: TransferBar) -> None:

    for one in moved:
        snapshot = one.synced.snapshot
        parts = [
            console.count(one.synced.commits, "commit") if one.synced.commits else "up to date"
        ]
        if one.synced.merged:
            parts.append("merged with what others had added")
        if snapshot is not None:
            rows = console.count(snapshot.commit.rows, "row")
            parts.append(f"{rows} in snapshot {snapshot.commit.number}")
        console.say(f"{one.names}: {', '.join(parts)}")
    console.say(watch.summary())
