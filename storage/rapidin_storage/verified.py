"""Which files of a folder were found to match their names, and have not changed since.

Hashing is slower than everything else that a scan does, and a folder's files are hashed when
they are written. So a scan hashes a file the first time it reads it, and again when its inode,
size or times differ (any write changes its ctime). `verify` always hashes: only that finds bytes
that a disk has changed on its own.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

NAME = "verified.log"

# A file that changes within one tick of the clock after it was looked at looks the same.
_SETTLED = 2.0
_MAX_BYTES = 32 * 2**20


def state(status: os.stat_result) -> str:
    """Return what distinguishes one state of a file from another."""
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def settled(status: os.stat_result) -> bool:
    """Whether a file is old enough for a later change to show."""
    return time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED


class Verified:
    """Lines of `digest state` in an append-only file; the last line of a digest counts.

    Losing it costs only time: a process that cannot read or write it hashes again.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._known: dict[str, str] | None = None
        self._lock = threading.Lock()

    def has(self, digest: str, state: str) -> bool:
        """Whether this state of the object's file was verified."""
        with self._lock:
            if self._known is None:
                self._known = self._read()
            return self._known.get(digest) == state

    def add(self, digest: str, state: str) -> None:
        """Remember that it was."""
        with self._lock, contextlib.suppress(OSError):
            if self._known is not None:
                self._known[digest] = state
            # One short write: lines of several processes do not mix.
            with self._path.open("ab", buffering=0) as file:
                file.write(f"{digest} {state}\n".encode())

    def _read(self) -> dict[str, str]:
        try:
            if self._path.stat().st_size > _MAX_BYTES:
                self._path.unlink()
            lines = self._path.read_text("ascii", "replace").splitlines()
        except OSError:
            return {}
        pairs = (line.partition(" ") for line in lines)
        return {digest: state for digest, _, state in pairs}
