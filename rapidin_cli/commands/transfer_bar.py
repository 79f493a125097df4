"""What `rin push` and `rin pull` show: bytes, rate and remaining time."""

import threading
import time
from typing import Self

from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from rapidin_cli.output import console
from rapidin_cli.output.console import count, size
from rapidin_storage.sync import TransferProgress


class TransferBar(TransferProgress):
    """A bar for each cache in turn, and what was copied in all."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self.copied = self.present = self.size = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._open = console.progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = self._open.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._open.__exit__(*details)  # type: ignore[arg-type]

    def __call__(self, label: str) -> Self:
        """Begin a cache's bar."""
        self._task = self._bar.add_task(f"{self._verb} {label}", total=None)
        return self

    def start(self, objects: int, size: int) -> None:
        """See `TransferProgress`."""
        del objects
        self._left = size
        self._bar.reset(self._task, total=size)

    def advance(self, size: int, *, copied: bool) -> None:
        """See `TransferProgress`."""
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
        """Say what was copied."""
        seconds = max(time.monotonic() - self._start, 1e-3)
        there = f"; {self.present:,} were already there" if self.present else ""
        if not self.copied:
            return f"no objects to copy{there}"
        return (
            f"{count(self.copied, 'object')} copied, {size(self.size)} at "
            f"{size(self.size / seconds)}/s{there}"
        )
