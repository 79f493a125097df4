"""`rin push` and `rin pull`: copy caches to and from a remote."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer

from rapidin_cli import completion

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from rapidin_cli.sharing import Moved

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
    from rapidin_cli import console
    from rapidin_cli.project import Project

    project = Project.open(context.obj.directory)
    with _Watch("pushing") as watch:
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
    from rapidin_cli import console
    from rapidin_cli.project import Project

    project = Project.open(context.obj.directory)
    with _Watch("pulling") as watch:
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
    from rapidin_cli.errors import MissingError

    if names := [one.names for one in moved if one.locked is False]:
        raise MissingError(
            f"rin.lock names another snapshot of {', '.join(names)}, {what}", hint=hint
        )


def _report(moved: list[Moved], watch: _Watch) -> None:
    from rapidin_cli import console

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


class _Watch:
    """Shows bytes, rate and remaining time of a transfer."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self.copied = self.present = self.size = 0
        self._lock = threading.Lock()

    def __enter__(self) -> _Watch:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        from rapidin_cli import console

        self._start = time.monotonic()
        self._open = console.progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._bar: Bar = self._open.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._open.__exit__(*details)  # type: ignore[arg-type]

    def __call__(self, label: str) -> _Watch:
        self._task = self._bar.add_task(f"{self._verb} {label}", total=None)
        return self

    def start(self, objects: int, size: int) -> None:
        del objects
        self._left = size
        self._bar.reset(self._task, total=size)

    def advance(self, size: int, *, copied: bool) -> None:
        with self._lock:  # many threads tell
            if copied:
                self.copied += 1
                self.size += size
                self._bar.advance(self._task, size)
            else:  # leaves the sum, so that the rate is that of the network
                self.present += 1
                self._left -= size
                self._bar.update(self._task, total=self._left)

    def summary(self) -> str:
        from rapidin_cli.console import count, size

        seconds = max(time.monotonic() - self._start, 1e-3)
        there = f"; {self.present:,} were there already" if self.present else ""
        if not self.copied:
            return f"no object had to be copied{there}"
        return (
            f"{count(self.copied, 'object')} copied, {size(self.size)} at "
            f"{size(self.size / seconds)}/s{there}"
        )
