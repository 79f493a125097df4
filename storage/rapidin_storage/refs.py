"""The commit log of one cache: numbered files, each created once and never changed."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from rapidin_storage.errors import CorruptError, FormatError, NotFoundError
from rapidin_storage.objects import ObjectRef, canonical_json
from rapidin_storage.roots import FORMAT_VERSION, Root

_COMMIT_FILE = re.compile(r"(\d{8})\.json\Z")
_CACHE_ID = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Commit:
    """One immutable version of a cache.

    Attributes:
        number: 1, 2, 3, ... without gaps.
        parent: SHA-256 of the previous commit's bytes; None for the first.
        slots: rows of the Zarr arrays, holes included (N).
        rows: slots that hold an example.
        chunk_rows: rows of one chunk.
        metadata: Zarr metadata key (`sketch/zarr.json`) -> object.
        pages: manifest pages, in order.
        writer: who wrote it (host, process, program version, nonce): for people, and to
            recognise one's own commit after a lost reply.
        time: UTC, ISO 8601.
    """

    cache: str
    number: int
    parent: str | None
    slots: int
    rows: int
    chunk_rows: int
    metadata: dict[str, ObjectRef]
    pages: list[ObjectRef]
    time: str
    writer: dict[str, Any] = field(default_factory=dict)

    @property
    def chunk_count(self) -> int:
        """Chunks of every array: ceil(slots / chunk_rows)."""
        return -(-self.slots // self.chunk_rows)

    def encode(self) -> bytes:
        """Return the bytes of the log file."""
        body = {
            "format": FORMAT_VERSION,
            "cache": self.cache,
            "number": self.number,
            "parent": self.parent,
            "slots": self.slots,
            "rows": self.rows,
            "chunk_rows": self.chunk_rows,
            "metadata": {key: list(ref) for key, ref in self.metadata.items()},
            "pages": [list(ref) for ref in self.pages],
            "time": self.time,
            "writer": self.writer,
        }
        return canonical_json(body) + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the log file's bytes: what rin.lock pins."""
        return hashlib.sha256(self.encode()).hexdigest()

    @classmethod
    def decode(cls, data: bytes, cache: str, number: int, where: str) -> Commit:
        """Read a log file, checking every field.

        Raises:
            FormatError: written by a newer program. CorruptError: anything else.
        """
        corrupt = CorruptError(f"{where} is not a readable commit")
        try:
            body = json.loads(data)
            if body["format"] > FORMAT_VERSION:
                raise FormatError(f"{where} was written by a newer rin")
            commit = cls(
                cache=body["cache"],
                number=body["number"],
                parent=body["parent"],
                slots=_count(body["slots"]),
                rows=_count(body["rows"]),
                chunk_rows=_count(body["chunk_rows"]),
                metadata={
                    _metadata_key(key): ObjectRef.parse(ref, where)
                    for key, ref in body["metadata"].items()
                },
                pages=[ObjectRef.parse(ref, where) for ref in body["pages"]],
                time=str(body["time"]),
                writer=dict(body["writer"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise corrupt from None
        consistent = (
            commit.cache == cache
            and commit.number == number
            and commit.chunk_rows >= 1
            and commit.rows <= commit.slots
        )
        if not consistent:
            raise corrupt
        return commit


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise ValueError(value)
    return value


def _metadata_key(key: str) -> str:
    if not re.fullmatch(r"([a-z][a-z0-9_]*/)?zarr\.json", key):
        raise ValueError(key)
    return key


class CommitLog:
    """Reads and extends `caches/<cache-id>/log/`."""

    def __init__(self, root: Root, cache_id: str) -> None:
        if not _CACHE_ID.match(cache_id):
            raise NotFoundError(f"{cache_id!r} is not the name of a cache")
        self.root = root
        self.cache_id = cache_id
        self._folder = f"caches/{cache_id}/log"

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"

    def numbers(self) -> list[int]:
        """The commits that exist, ascending."""
        matches = map(_COMMIT_FILE.match, self.root.list(self._folder))
        return sorted(int(match.group(1)) for match in matches if match)

    def read(self, number: int) -> Commit:
        """Return one commit; `NotFoundError` or `CorruptError` if it cannot be had."""
        path = self._path(number)
        where = f"commit {number} of cache {self.cache_id[:12]} ({self.root.url}/{path})"
        return Commit.decode(self.root.read(path), self.cache_id, number, where)

    def latest(self) -> Commit | None:
        """Return the newest commit, or None for a cache that has none."""
        numbers = self.numbers()
        return self.read(numbers[-1]) if numbers else None

    def append(self, commit: Commit) -> bool:
        """Try to add a commit; False if that number is taken by another writer's.

        A create that failed may be our own earlier attempt whose reply was lost: the
        commit carries a nonce, so reading it back tells.
        """
        data = commit.encode()
        if self.root.create(self._path(commit.number), data):
            return True
        return self.root.read(self._path(commit.number)) == data
