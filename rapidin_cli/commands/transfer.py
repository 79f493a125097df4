"""`rin push` and `rin pull`: copy caches to and from a remote."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rapidin_cli.commands.adding import arg, opt, project_of, switch
from rapidin_cli.errors import MissingError
from rapidin_cli.output import console

if TYPE_CHECKING:
    from rapidin_cli.commands.transfer_bar import TransferBar
    from rapidin_cli.workspace.moving import Moved


RemoteName = Annotated[str, arg("REMOTE", "Name of a remote. Default: the only one, or origin.")]
Checkpoint = Annotated[
    list[str] | None,
    opt("CHECKPOINT", "Name from rin.toml; may be repeated. Default: all of them."),
]
Every = Annotated[bool, switch("Copy every cache, old ones too.", "--all")]


def push(
    context: typer.Context,
    remote: RemoteName = "",
    checkpoint: Checkpoint = None,
    every: Every = False,
) -> None:
    """Copy cached rows to a remote.

    Only what the remote lacks is copied, and commits go last. Run it again to resume.

    Examples:
        rin push
        rin push origin --checkpoint checkpoint-300
    """
    from rapidin_cli.commands.transfer_bar import TransferBar

    project = project_of(context)
    with TransferBar("pushing") as watch:
        moved = project.push(
            remote, checkpoint or (), every=every, progress=watch, tell=console.warn
        )
    _report(moved, watch)
    _check_lock(moved, "which neither the remote nor this store has", "rin cache")


def pull(
    context: typer.Context,
    remote: RemoteName = "",
    checkpoint: Checkpoint = None,
    every: Every = False,
) -> None:
    """Copy cached rows from a remote.

    Only what is missing here is copied. Run it again to resume. It needs neither model nor
    data: rin.lock says which caches to copy.

    Examples:
        rin pull
        rin pull origin --all
    """
    from rapidin_cli.commands.transfer_bar import TransferBar

    project = project_of(context)
    with TransferBar("pulling") as watch:
        moved = project.pull(
            remote, checkpoint or (), every=every, progress=watch, tell=console.warn
        )
    _report(moved, watch)
    _check_lock(
        moved,
        "which the remote does not have; what it has is here now",
        "run rin push where that was cached, or rin cache here",
    )
    console.say("next: rin status")


def _check_lock(moved: list[Moved], what: str, hint: str) -> None:
    """Fail if rin.lock names a snapshot that was not copied."""

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
