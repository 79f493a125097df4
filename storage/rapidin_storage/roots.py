"""A root: where one store lives, and the few ways of reading and writing that it relies on.

`read`, `write` (whole file or nothing) and `create` (whole file, only if absent) are all
that commits need. Locally they are temporary file + fsync + rename or hard link;
elsewhere one fsspec request each.
"""

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import NamedTuple

from rapidin_storage.errors import CorruptError, FormatError, NotFoundError, StorageError

FORMAT_NAME = "rapidin-store"
FORMAT_VERSION = 1
FORMAT_FILE = "format.json"
FORMAT_MARK = (
    json.dumps(
        {"format": FORMAT_NAME, "version": FORMAT_VERSION, "hash": "sha256"}, sort_keys=True
    ).encode()
    + b"\n"
)

GRACE = 24 * 3600.0
"""Seconds: what `gc` leaves alone by default, because a writer may be about to name it."""

FRESH = GRACE / 2
"""Seconds: an object that was written longer ago is written again before it is relied on."""

PROBES = "probes"
"""Folder of files that only test something; gc removes any that were left."""

_RACERS, _ROUNDS = 3, 3


def probe_path() -> str:
    """Return the path of a new probe."""
    return f"{PROBES}/{uuid.uuid4().hex}"


class Entry(NamedTuple):
    """A file: its path in the root, its size in bytes, when it was written (Unix time)."""

    path: str
    size: int
    modified: float


class Root(ABC):
    """A place that holds files under relative POSIX paths.

    Every method raises `StorageError` (or its `NotFoundError`, `AccessError`) with the path
    and the reason; none leaves a half-written file that a reader could see.
    """

    url: str
    shared = True
    """Whether requests go over a network: then many are made at once."""

    @abstractmethod
    def read(self, path: str, at_most: int | None = None) -> bytes:
        """Return the file, or its first `at_most` bytes; `NotFoundError` if there is none."""

    def size(self, path: str) -> int | None:
        """Return the file's size in bytes, or None if there is none."""
        entry = self.entry(path)
        return entry.size if entry else None

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Put the whole file there, atomically, replacing what was there."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Put the whole file there if nothing exists; return whether this call did it.

        Exactly one of any number of racing callers gets True. One whose reply was lost and
        that tried again may get False for its own file: read it back to know.
        """

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file; no error if there is none."""

    def discard(self, path: str, before: float) -> int:
        """Remove a file that was last written before a time; return the bytes freed, or 0."""
        entry = self.entry(path)
        if entry is None or entry.modified >= before:
            return 0
        self.remove(path)
        return entry.size

    @abstractmethod
    def list(self, folder: str) -> list[str]:
        """Names directly inside a folder, sorted; empty if there is no such folder."""

    @abstractmethod
    def entry(self, path: str) -> Entry | None:
        """Return what is known of a file, or None if there is none."""

    @abstractmethod
    def entries(self, folder: str) -> Iterator[Entry]:
        """All files below a folder, those of unfinished writes included."""

    @abstractmethod
    def refresh(self, path: str, size: int) -> bool:
        """Whether a file of that size exists and now counts as just written.

        If not, the caller writes it (again): gc spares what is younger than its grace.
        """

    def now(self) -> float:
        """Return the time by the clock that stamps this root's files (Unix time)."""
        path = probe_path()
        self.write(path, b"time")
        try:
            entry = self.entry(path)
        finally:
            self.remove(path)
        if entry is None:
            raise StorageError(f"{self.url} does not show a file that was just written")
        return entry.modified

    def check_format(self, *, create: bool = False) -> None:
        """Refuse a store that this program cannot read; with `create`, mark a new one.

        Raises:
            FormatError: it is newer than this program, or another program's.
            CorruptError: format.json is damaged.
            NotFoundError: there is no store here and `create` is false.
        """
        try:
            raw = self.read(FORMAT_FILE, 4096)
        except NotFoundError:
            if not create:
                raise NotFoundError(f"there is no store at {self.url}") from None
            self.create(FORMAT_FILE, FORMAT_MARK)
            return
        try:
            mark = json.loads(raw)
            name, version = mark["format"], mark["version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise CorruptError(f"{self.url}/{FORMAT_FILE} is not readable") from None
        if name != FORMAT_NAME:
            raise FormatError(f"{self.url}/{FORMAT_FILE} does not describe a rin store")
        if type(version) is not int or not 0 < version < 1000:
            raise CorruptError(f"{self.url}/{FORMAT_FILE} is not readable")
        if version > FORMAT_VERSION:
            raise FormatError(
                f"the store at {self.url} has format {version}; this program reads up to "
                f"{FORMAT_VERSION}, so it needs a newer rin"
            )

    def prepare(self) -> None:
        """Get ready to write: mark a new store, refuse one where writing is not safe.

        Raises:
            FormatError, CorruptError: see `check_format`.
            StorageError: it cannot be written, or `create` replaces files there.
        """
        self.check_format(create=True)

    def check_exclusive(self, *, race: bool = True) -> None:
        """Test what the safety of concurrent commits relies on: that `create` never replaces.

        Args:
            race: let several writers try at once, which also finds a filesystem that looks
                first and then writes; otherwise one after the other.

        Raises:
            StorageError: several won, or the file does not have the winner's bytes.
        """
        names = [probe_path() for _ in range(_ROUNDS if race else 1)]
        bodies = [f"writer {number}".encode() for number in range(_RACERS)]
        try:
            with ThreadPoolExecutor(_RACERS if race else 1) as pool:
                for name in names:
                    won = list(pool.map(lambda body, name=name: self.create(name, body), bodies))
                    # One who won may not know, if the reply was lost.
                    winner = bodies[won.index(True)] if any(won) else None
                    found = self.read(name, 64)
                    if sum(won) > 1 or found not in (bodies if winner is None else [winner]):
                        raise StorageError(
                            f"{self.url} let {sum(won)} of {_RACERS} writers create the same file: "
                            "commits of concurrent writers would be lost there"
                        )
        finally:
            for name in names:
                self.remove(name)


def checked(path: str) -> str:
    """Return a path; `StorageError` if it could lead out of the root."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise StorageError(f"not a path inside the store: {path!r}")
    return path
