"""A cache: rows of equal shape, found by their example's digest, in immutable snapshots."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import random
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from rapidin_storage.errors import ConflictError, CorruptError, StorageError
from rapidin_storage.manifest import ChunkRefs, Manifest
from rapidin_storage.objects import ObjectRef, ObjectStore, canonical_json
from rapidin_storage.refs import Commit, CommitLog
from rapidin_storage.roots import FORMAT_VERSION, Root
from rapidin_storage.zarr_store import CacheStore

DIGEST = "digest"
"""The array that every cache has: SHA-256 of the example, (N, 32) uint8; zero in a hole."""

_ATTEMPTS = 64

Rows = Mapping[str, np.ndarray[Any, Any]]
"""Array name -> (n, ...) values, the same n for all."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a cache: its dtype and the shape of one row."""

    dtype: str
    row_shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, uncompressed."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.row_shape, dtype=np.int64))


def list_caches(root: Root) -> list[str]:
    """Names of the caches in a root, sorted."""
    return root.list("caches")


def cache_name(identity: Mapping[str, Any]) -> str:
    """Return the cache-id: SHA-256 of what makes rows comparable, the format included."""
    return hashlib.sha256(canonical_json({**identity, "format": FORMAT_VERSION})).hexdigest()


class Cache:
    """One cache of a root, by its id. Holds no state: every call reads the log."""

    def __init__(self, root: Root, cache_id: str) -> None:
        self.root = root
        self.id = cache_id
        self.log = CommitLog(root, cache_id)
        self.objects = ObjectStore(root)

    def snapshot(self, number: int | None = None) -> Snapshot | None:
        """Return a snapshot: the newest (None if there is no commit yet) or the one asked for.

        Raises:
            FormatError: the store is newer than this program.
            NotFoundError: the commit asked for does not exist.
        """
        commit = self.log.latest() if number is None else self.log.read(number)
        if commit is None:
            return None
        self.root.check_format()
        return Snapshot(self.objects, commit)

    def writer(
        self,
        arrays: Mapping[str, ArraySpec],
        attributes: Mapping[str, Any],
        chunk_rows: int,
        about: Mapping[str, Any] | None = None,
    ) -> CacheWriter:
        """Return a writer that appends rows.

        Args:
            arrays: the arrays of a row beside `digest`; must equal an existing cache's.
            attributes: JSON kept in the group's metadata (identity, layers).
            chunk_rows: rows of a chunk for a new cache; an existing one keeps its own.
            about: JSON about the writing program, kept in each commit.
        """
        return CacheWriter(self, arrays, attributes, chunk_rows, about or {})


class Snapshot:
    """One immutable version of a cache."""

    def __init__(self, objects: ObjectStore, commit: Commit) -> None:
        self.objects = objects
        self.commit = commit
        self.manifest = Manifest(objects, commit.pages, commit.chunk_count)

    @cached_property
    def group(self) -> zarr.Group:
        """The whole cache as a read-only Zarr group."""
        try:
            group = zarr.open_group(CacheStore.at(self), mode="r", zarr_format=3)
            for name, array in group.arrays():
                if array.shape[0] != self.commit.slots or array.chunks != (
                    self.commit.chunk_rows,
                    *array.shape[1:],
                ):
                    raise CorruptError(f"array {name} of {self} has not the shape its commit says")
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise CorruptError(f"the Zarr metadata of {self} cannot be read: {error}") from error
        return group

    def __str__(self) -> str:
        return f"cache {self.commit.cache[:12]} snapshot {self.commit.number}"

    @property
    def attributes(self) -> dict[str, Any]:
        """The JSON that the cache was made with."""
        return dict(self.group.attrs)

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one array; `CorruptError` if the cache has none of that name."""
        array = self.group.get(name)
        if not isinstance(array, zarr.Array):
            raise CorruptError(f"{self} has no array {name!r}")
        return array

    def arrays(self) -> dict[str, ArraySpec]:
        """The specs of all arrays, `digest` included."""
        return {
            name: ArraySpec(str(array.dtype), tuple(array.shape[1:]))
            for name, array in sorted(self.group.arrays())
        }

    @cached_property
    def digests(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Example digests by slot, (N, 32) uint8."""
        return np.asarray(self.array(DIGEST)[:])

    @cached_property
    def index(self) -> dict[bytes, int]:
        """Example digest -> slot, holes left out."""
        return index_digests(self.digests)

    def read(self, start: int, stop: int, names: list[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Return the rows of slots start..stop of some arrays; whole chunks read best."""
        return {name: np.asarray(self.array(name)[start:stop]) for name in names}

    def chunk_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) slots of each chunk, in order."""
        size = self.commit.chunk_rows
        for start in range(0, self.commit.slots, size):
            yield start, min(start + size, self.commit.slots)


def index_digests(digests: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[bytes, int]:
    """Map digest -> slot of an (N, 32) array, without the zero digests of holes."""
    filled = digests.any(axis=1)
    return {bytes(digests[slot]): int(slot) for slot in np.flatnonzero(filled)}


@dataclass
class _Chunk:
    """Rows that a writer holds: one chunk, full or the tail.

    The first `inherited` rows came from the chunk that this one replaces; the rest are new.
    """

    rows: dict[str, np.ndarray[Any, Any]]
    inherited: int = 0
    replaces: tuple[int, ChunkRefs] | None = None
    refs: ChunkRefs | None = field(default=None)

    def __len__(self) -> int:
        return len(self.rows[DIGEST])

    def only(self, keep: np.ndarray[Any, Any]) -> _Chunk:
        return _Chunk({name: values[keep] for name, values in self.rows.items()})


class CacheWriter:
    """Appends rows; nothing is visible to readers before `commit`.

    Rows of uncommitted chunks stay in memory, so commit at least every few chunks. The
    unfilled end of the last chunk is filled up by the next commit. Safe beside other
    writers: a commit that loses the race is rebased on the winner's and tried again.
    """

    def __init__(
        self,
        cache: Cache,
        arrays: Mapping[str, ArraySpec],
        attributes: Mapping[str, Any],
        chunk_rows: int,
        about: Mapping[str, Any],
    ) -> None:
        cache.root.check_format(create=True)
        self._cache = cache
        self._objects = cache.objects
        self._about = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "nonce": uuid.uuid4().hex,
            **about,
        }
        self.arrays = {**arrays, DIGEST: ArraySpec("uint8", (32,))}
        self._attributes = dict(attributes)
        self.base = cache.snapshot()
        self.chunk_rows = chunk_rows
        self._pending: list[_Chunk] = []
        if self.base is not None:
            if self.base.arrays() != self.arrays:
                raise StorageError(f"{self.base} has other arrays than the rows to be added")
            self.chunk_rows = self.base.commit.chunk_rows
            self._take_tail(self.base)
        self._digests = set(self.base.index) if self.base else set()

    def _take_tail(self, base: Snapshot) -> None:
        commit = base.commit
        filled = commit.slots % self.chunk_rows
        if filled:
            last = commit.chunk_count - 1
            rows = base.read(commit.slots - filled, commit.slots, sorted(self.arrays))
            refs = base.manifest.chunk(last)
            self._pending = [_Chunk(rows, filled, (last, refs), refs)]

    @property
    def new_rows(self) -> int:
        """Rows added since the last commit."""
        return sum(len(chunk) - chunk.inherited for chunk in self._pending)

    def add(self, rows: Rows) -> int:
        """Add rows, leaving out those whose digest is there already; return how many were new.

        Full chunks are stored at once, so that `commit` has little left to do.

        Raises:
            StorageError: wrong arrays, shapes or dtypes, or a zero digest.
        """
        self._check(rows)
        fresh = []
        for position, digest in enumerate(map(bytes, rows[DIGEST])):
            if digest not in self._digests:
                self._digests.add(digest)
                fresh.append(position)
        taken = {name: np.asarray(values)[fresh] for name, values in rows.items()}
        start = 0
        while start < len(fresh):
            if not self._pending or len(self._pending[-1]) == self.chunk_rows:
                self._pending.append(_Chunk({name: v[:0] for name, v in taken.items()}))
            tail = self._pending[-1]
            stop = start + self.chunk_rows - len(tail)
            # In one step: a signal between two arrays must not leave them of unequal length.
            tail.rows = {
                name: np.concatenate([tail.rows[name], values[start:stop]])
                for name, values in taken.items()
            }
            tail.refs = None
            start = stop
            if len(tail) == self.chunk_rows:
                tail.refs = self._store(tail)
        return len(fresh)

    def _check(self, rows: Rows) -> None:
        if set(rows) != set(self.arrays):
            raise StorageError(f"rows have arrays {sorted(rows)}, not {sorted(self.arrays)}")
        count = len(rows[DIGEST])
        for name, spec in self.arrays.items():
            values = rows[name]
            if values.shape != (count, *spec.row_shape) or values.dtype != np.dtype(spec.dtype):
                raise StorageError(
                    f"array {name}: rows of shape {values.shape} and dtype {values.dtype} do not "
                    f"fit ({count}, *{spec.row_shape}) {spec.dtype}"
                )
        if not rows[DIGEST].any(axis=1).all():
            raise StorageError("an all-zero digest marks a hole and cannot name an example")

    def commit(self) -> Snapshot | None:
        """Make everything added so far visible; return the newest snapshot.

        Without new rows nothing is written. None only if the cache is still empty.

        Raises:
            ConflictError: other writers won every attempt; the rows are still held.
        """
        for attempt in range(_ATTEMPTS):
            if not self.new_rows:
                return self.base
            snapshot = self._try_commit()
            if snapshot is not None:
                return snapshot
            time.sleep(random.uniform(0, min(2.0, 0.01 * 2**attempt)))
            latest = self._cache.snapshot()
            if latest is None:
                raise CorruptError(f"the log of cache {self._cache.id} has vanished")
            self._rebase(latest)
        raise ConflictError(f"{_ATTEMPTS} commits to cache {self._cache.id[:12]} were overtaken")

    def _try_commit(self) -> Snapshot | None:
        base = self.base.commit if self.base else None
        next_chunk = base.chunk_count if base else 0
        slots = base.slots if base else 0
        changed: dict[int, ChunkRefs] = {}
        placed: list[tuple[int, _Chunk]] = []
        for chunk in self._pending:
            chunk.refs = chunk.refs or self._store(chunk)
            if chunk.replaces:
                number = chunk.replaces[0]
            else:
                number, next_chunk = next_chunk, next_chunk + 1
            changed[number] = chunk.refs
            placed.append((number, chunk))
            slots = max(slots, number * self.chunk_rows + len(chunk))
        manifest = Manifest(
            self._objects, base.pages if base else [], base.chunk_count if base else 0
        ).with_chunks(changed)
        commit = Commit(
            cache=self._cache.id,
            number=base.number + 1 if base else 1,
            parent=base.digest if base else None,
            slots=slots,
            rows=(base.rows if base else 0) + self.new_rows,
            chunk_rows=self.chunk_rows,
            metadata=self._store_metadata(slots),
            pages=manifest.pages,
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            writer=self._about,
        )
        if not self._cache.log.append(commit):
            return None
        self.base = Snapshot(self._objects, commit)
        number, tail = placed[-1]
        self._pending = []
        if len(tail) < self.chunk_rows:
            self._pending = [_Chunk(tail.rows, len(tail), (number, changed[number]), tail.refs)]
        return self.base

    def _rebase(self, latest: Snapshot) -> None:
        """Put the new rows on top of another writer's commit: rows commute, slots do not."""
        theirs = set(latest.index)
        kept = []
        for chunk in self._pending:
            ours = (
                chunk.replaces is not None
                and latest.manifest.chunk(chunk.replaces[0]) == chunk.replaces[1]
            )  # nobody else filled that tail: it is still ours to fill
            new = np.array([bytes(digest) not in theirs for digest in chunk.rows[DIGEST]])
            new[: chunk.inherited] = ours
            if ours and not new.all():
                tail = chunk.only(new)
                kept.append(_Chunk(tail.rows, chunk.inherited, chunk.replaces))
            elif new.all():
                kept.append(chunk)
            elif new.any():
                kept.append(chunk.only(new))
        self._pending = kept
        self._digests |= theirs
        if latest.commit.chunk_rows != self.chunk_rows:
            raise StorageError(f"{latest} was begun with another chunk size; run again to continue")
        self.base = latest

    def _template(self, slots: int) -> tuple[MemoryStore, dict[str, zarr.Array[Any]]]:
        memory = MemoryStore()
        group = zarr.create_group(memory, attributes=self._attributes, zarr_format=3)
        # Reached again through the group, an array would have forgotten `write_empty_chunks`.
        return memory, {
            name: group.create_array(
                name,
                shape=(slots, *spec.row_shape),
                chunks=(self.chunk_rows, *spec.row_shape),
                dtype=spec.dtype,
                compressors=[ZstdCodec(level=1)],
                fill_value=0,
                config={"write_empty_chunks": True},
            )
            for name, spec in self.arrays.items()
        }

    def _store(self, chunk: _Chunk) -> dict[str, ObjectRef]:
        """Encode one chunk with Zarr's own codecs and store it: array name -> object."""
        memory, arrays = self._template(len(chunk))
        for name, values in chunk.rows.items():
            arrays[name][:] = values
        return {
            name: self._objects.put(_stored(memory, f"{name}/c/0" + "/0" * len(spec.row_shape)))
            for name, spec in self.arrays.items()
        }

    def _store_metadata(self, slots: int) -> dict[str, ObjectRef]:
        memory, _ = self._template(slots)
        keys = ["zarr.json", *(f"{name}/zarr.json" for name in self.arrays)]
        return {key: self._objects.put(_stored(memory, key)) for key in keys}

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Forget uncommitted rows; objects that no commit names are left to gc."""
        with contextlib.suppress(AttributeError):
            del self._pending


def _stored(memory: MemoryStore, key: str) -> bytes:
    buffer = sync(memory.get(key, default_buffer_prototype()))
    if buffer is None:
        raise StorageError(f"zarr wrote no {key}")
    return buffer.to_bytes()
