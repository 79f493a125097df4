"""`rin push` and `rin pull`: copy caches to and from a remote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rapidin_cli.commands import completion
from rapidin_cli.errors import MissingError
from rapidin_cli.output import console

if TYPE_CHECKING:
    from rapidin_cli.commands.transfer_bar import TransferBar
    from rapidin_cli.workspace.moving import Moved


_REMOTE = Annotated[
    str,
    typer.Argument(
        help="A remote; the only one, or origin, by default.", autocompletion=completion.remotes
    ),
]
_CHECKPOINT = Annotated[
    list[str] | None,
    typer.Option(
        help="Name from rin.toml; all by default. May be repeated.",
        autocompletion=completion.checkpoints,
    ),
]
_ALL = Annotated[bool, typer.Option("--all", help="Every cache of the store, old ones too.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="push")(push)
    app.command(name="pull")(pull)


def push(
    context: typer.Context,
    remote: _REMOTE = "",
    checkpoint: _CHECKPOINT = None,
    every: _ALL = False,
) -> None:
    """Copy cached rows to a remote: only what it lacks, commits last. Run again to resume."""
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
    remote: _REMOTE = "",
    checkpoint: _CHECKPOINT = None,
    every: _ALL = False,
) -> None:
    """Copy cached rows from a remote: only what is missing here. Run again to resume.

    Needs neither model nor data: rin.lock says which caches.
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
