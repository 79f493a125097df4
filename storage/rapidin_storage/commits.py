"""The commit log of one cache: numbered files, each created once and never changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rapidin_storage.arrays import ArraySpec, Document, check_documents
from rapidin_storage.errors import CorruptError, FormatError, NotFoundError
from rapidin_storage.manifest import PAGE_CHUNKS, Manifest
from rapidin_storage.objects import ObjectRef, ObjectStore, canonical_json, is_digest, reread
from rapidin_storage.parallel import each
from rapidin_storage.roots import FORMAT_VERSION, Root

_COMMIT_FILE = re.compile(r"(\d{8})\.json\Z")
_MAX_COMMIT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Commit:
    """One immutable version of a cache.

    Attributes:
        cache: cache-id.
        number: 1, 2, 3, ... without gaps.
        parent: SHA-256 of the previous commit's bytes; None for the first.
        slots: rows of the Zarr arrays, holes included (N).
        rows: slots that hold an example.
        chunk_rows: rows of one chunk.
        group: the object with the Zarr group's zarr.json.
        arrays: array name -> zarr.json.
        pages: manifest pages, in order.
        merged: trees of other stores' logs whose rows are all in this one.
        lost: objects (and commits) of earlier snapshots that were given up by a repair.
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
    group: ObjectRef
    arrays: dict[str, Document]
    pages: list[ObjectRef]
    time: str
    merged: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    writer: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"cache {self.cache[:12]} snapshot {self.number}"

    @property
    def chunk_count(self) -> int:
        """Chunks of every array: ceil(slots / chunk_rows)."""
        return -(-self.slots // self.chunk_rows)

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Array name -> spec, `digest` included."""
        return {name: ArraySpec.of(document) for name, document in sorted(self.arrays.items())}

    def manifest(self, objects: ObjectStore) -> Manifest:
        """Return the list of its chunks; nothing is read yet."""
        return Manifest(objects, self.pages, self.chunk_count, set(self.arrays))

    def _tree(self) -> dict[str, Any]:
        return {
            "slots": self.slots,
            "rows": self.rows,
            "chunk_rows": self.chunk_rows,
            "group": list(self.group),
            "arrays": self.arrays,
            "pages": [list(ref) for ref in self.pages],
        }

    @cached_property
    def tree(self) -> str:
        """SHA-256 of the content: equal in any store that holds the same rows and bytes."""
        return hashlib.sha256(canonical_json({"cache": self.cache, **self._tree()})).hexdigest()

    def encode(self) -> bytes:
        """Return the bytes of the log file."""
        body = {
            "format": FORMAT_VERSION,
            "cache": self.cache,
            "number": self.number,
            "parent": self.parent,
            "merged": self.merged,
            "lost": self.lost,
            "time": self.time,
            "writer": self.writer,
            **self._tree(),
        }
        check = hashlib.sha256(canonical_json(body)).hexdigest()
        return canonical_json({**body, "check": check}) + b"\n"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the log file's bytes: the next commit's `parent`."""
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
            if type(body["format"]) is int and FORMAT_VERSION < body["format"] < 1000:
                raise FormatError(f"{where} was written by a newer rin")
            slots, chunk_rows = _count(body["slots"]), _count(body["chunk_rows"])
            commit = cls(
                cache=body["cache"],
                number=_count(body["number"]),
                parent=None if body["parent"] is None else _digest(body["parent"]),
                slots=slots,
                rows=_count(body["rows"]),
                chunk_rows=chunk_rows,
                group=ObjectRef.parse(body["group"], where),
                arrays=check_documents(body["arrays"], slots, chunk_rows),
                pages=[ObjectRef.parse(ref, where) for ref in body["pages"]],
                time=str(body["time"]),
                merged=[_digest(tree) for tree in body["merged"]],
                lost=[_digest(digest) for digest in body["lost"]],
                writer=dict(body["writer"]),
            )
            consistent = (
                commit.cache == cache
                and commit.number == number
                and (commit.parent is None) == (number == 1)
                and commit.rows <= commit.slots
                and len(commit.pages) == -(-commit.chunk_count // PAGE_CHUNKS)
                # One spelling only, with its own check sum: the newest commit has no
                # successor that would name its digest.
                and commit.encode() == data
            )
        except (
            *(ValueError, KeyError, TypeError, AttributeError),
            *(RecursionError, ArithmeticError),
        ):
            raise corrupt from None
        if not consistent:
            raise corrupt
        return commit


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**40:
        raise ValueError(value)
    return value


def _digest(value: str) -> str:
    if not is_digest(value):
        raise ValueError(value)
    return value


class CommitLog:
    """Reads and extends `caches/<cache-id>/log/`."""

    def __init__(self, root: Root, cache_id: str) -> None:
        if not is_digest(cache_id):
            raise NotFoundError(f"{cache_id!r} is not the name of a cache")
        self.root = root
        self.cache_id = cache_id
        self._folder = f"caches/{cache_id}/log"

    def path(self, number: int) -> str:
        """Path of a commit, relative to the root."""
        return f"{self._folder}/{number:08d}.json"

    def numbers(self) -> list[int]:
        """The commits that exist, ascending."""
        matches = map(_COMMIT_FILE.match, self.root.list(self._folder))
        return sorted(int(match.group(1)) for match in matches if match)

    def read(self, number: int) -> Commit:
        """Return one commit; `NotFoundError` or `CorruptError` if it cannot be read."""
        path = self.path(number)
        where = f"commit {number} of cache {self.cache_id[:12]} ({self.root.url}/{path})"

        def read() -> Commit:
            data = self.root.read(path, _MAX_COMMIT_BYTES)
            return Commit.decode(data, self.cache_id, number, where)

        return reread(self.root, read)

    def read_all(self, numbers: Iterable[int] | None = None) -> list[Commit]:
        """Return several commits, all by default, in order."""
        wanted = self.numbers() if numbers is None else numbers
        return each(self.read, wanted, shared=self.root.shared)

    def damaged(self, number: int) -> str:
        """Path to which a repair moves an unreadable commit file."""
        return f"caches/{self.cache_id}/damaged/{number:08d}.json"

    def latest(self) -> Commit | None:
        """Return the newest commit, or None for a cache that has none."""
        numbers = self.numbers()
        return self.read(numbers[-1]) if numbers else None

    def has_tree(self, tree: str) -> bool:
        """Whether the log has, or has merged, the snapshot of a tree."""
        latest = self.latest()
        if latest is not None and latest.tree == tree:
            return True
        return any(tree == commit.tree or tree in commit.merged for commit in self.read_all())

    def append(self, commit: Commit) -> bool:
        """Try to add a commit; False if that number is taken by another writer's.

        A create that failed may be our own earlier attempt whose reply was lost: the
        commit carries a nonce, so reading it back tells.
        """
        data = commit.encode()
        if self.root.create(self.path(commit.number), data):
            return True
        return self.root.read(self.path(commit.number), _MAX_COMMIT_BYTES) == data
