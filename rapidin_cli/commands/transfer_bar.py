"""What `rin push` and `rin pull` show: bytes, rate and remaining time."""

import threading
import time
from typing import Self

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
        self._open = console.stages()
        self._shown = self._open.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._open.__exit__(*details)  # type: ignore[arg-type]

    def __call__(self, label: str) -> Self:
        """Begin a cache's bar."""
        self._what = f"{self._verb} {label}"
        self._shown(self._what)
        return self

    def start(self, objects: int, size: int) -> None:
        """See `TransferProgress`."""
        del objects
        self._left, self._here = size, 0
        self._begun = time.monotonic()
        self._show()

    def advance(self, size: int, *, copied: bool) -> None:
        """See `TransferProgress`."""
        with self._lock:  # many threads tell
            if copied:
                self.copied += 1
                self.size += size
                self._here += size
            else:  # leaves the sum, so that the rate is that of the network
                self.present += 1
                self._left -= size
            self._show()

    def _show(self) -> None:
        seconds = time.monotonic() - self._begun
        rate = f"{size(self._here / seconds)}/s" if self._here and seconds else ""
        self._shown(self._what, self._here, self._left, note=rate, written=size)

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
