"""Writing a cache: rows into chunks, chunks into commits, and what to do when overtaken."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rapidin_storage.arrays import (
    DIGEST,
    ArraySpec,
    Rows,
    array_documents,
    encode_chunk,
    group_document,
)
from rapidin_storage.cache import Cache, Snapshot
from rapidin_storage.commits import Commit
from rapidin_storage.errors import ConflictError, CorruptError, StorageError
from rapidin_storage.manifest import ChunkRefs, Manifest
from rapidin_storage.objects import canonical_json
from rapidin_storage.parallel import each
from rapidin_storage.roots import FRESH

# Eight writers that did nothing but commit needed up to 37.
_ATTEMPTS = 256

Digests = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass
class _Chunk:
    """One chunk that a writer is about to commit: full, or the tail.

    The first `inherited` rows came from the chunk that this one replaces; the rest are new.
    An adopted chunk is stored already and is loaded only if some of its rows must go.
    """

    digests: Digests
    load: Callable[[], Rows]
    inherited: int = 0
    replaces: tuple[int, ChunkRefs] | None = None
    refs: ChunkRefs | None = None
    stored: float = field(default_factory=time.time)

    @classmethod
    def of(cls, rows: Rows, **settings: Any) -> _Chunk:
        return cls(rows[DIGEST], lambda: rows, **settings)

    def __len__(self) -> int:
        return len(self.digests)

    def grown(self, rows: Rows) -> _Chunk:
        """Return it with rows at its end."""
        held = self.load()
        whole = {name: np.concatenate([held[name], values]) for name, values in rows.items()}
        return _Chunk.of(whole, inherited=self.inherited, replaces=self.replaces)

    def only(self, keep: Any, **settings: Any) -> _Chunk:
        return _Chunk.of({name: values[keep] for name, values in self.load().items()}, **settings)


class CacheWriter:
    """Appends rows; nothing is visible to readers before `commit`.

    Rows of uncommitted chunks stay in memory, so commit at least every few chunks. The
    unfilled end of the last chunk is filled up by the next commit. Safe beside other
    writers: a commit that loses the race is rebased on the winner's and tried again.

    Args:
        arrays: the arrays of a row beside `digest`; must equal an existing cache's.
        attributes: JSON kept in the group's metadata (identity, layers).
        chunk_rows: rows of a chunk for a new cache; an existing one keeps its own.
        about: JSON about the writing program, kept in each commit.

    Raises:
        StorageError: the root cannot be written, lets several writers create the same file,
            or has a cache with other arrays.
    """

    def __init__(
        self,
        cache: Cache,
        arrays: Mapping[str, ArraySpec],
        attributes: Mapping[str, Any],
        chunk_rows: int,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        cache.root.prepare()
        self._cache = cache
        self._objects = cache.objects
        self._about = identify(about or {})
        self.arrays = {**arrays, DIGEST: ArraySpec("uint8", (32,))}
        self.base = cache.snapshot()
        self.chunk_rows = self.base.commit.chunk_rows if self.base else chunk_rows
        self._group = canonical_json(group_document(attributes))
        self._pending: list[_Chunk] = []
        self._digests: set[bytes] = set()
        if self.base is not None:
            self._check_base(self.base)
            if hashlib.sha256(self._group).hexdigest() == self.base.commit.group.digest:
                self._objects.put(self._group)  # again, in case it was lost
            self._digests = set(self.base.index)
            self._take_tail(self.base)

    def _check_base(self, base: Snapshot) -> None:
        if base.commit.specs != self.arrays:
            raise StorageError(f"{base} has different arrays from the rows to be added")

    def _take_tail(self, base: Snapshot) -> None:
        commit = base.commit
        filled = commit.slots % self.chunk_rows
        if filled:
            last = commit.chunk_count - 1
            rows = base.read(commit.slots - filled, commit.slots, sorted(self.arrays))
            refs = base.manifest.chunk(last)
            self._pending = [_Chunk.of(rows, inherited=filled, replaces=(last, refs), refs=refs)]

    @property
    def new_rows(self) -> int:
        """Rows added since the last commit."""
        return sum(len(chunk) - chunk.inherited for chunk in self._pending)

    def add(self, rows: Rows) -> int:
        """Add rows, except those whose digest already exists; return how many were new.

        Full chunks are stored at once, so that `commit` has little left to do.

        Raises:
            StorageError: wrong arrays, shapes or dtypes, or a zero digest.
        """
        self._check(rows)
        fresh = self._fresh(rows[DIGEST])
        taken = {name: np.asarray(values)[fresh] for name, values in rows.items()}
        start = 0
        while start < len(fresh):
            last = len(self._pending) - 1
            open_end = last >= 0 and len(self._pending[last]) < self.chunk_rows
            held = len(self._pending[last]) if open_end else 0
            part = {n: v[start : start + self.chunk_rows - held] for n, v in taken.items()}
            grown = self._pending[last].grown(part) if open_end else _Chunk.of(part)
            # In one step, and marked as held afterwards: a signal may come at any instant.
            self._pending[last if open_end else last + 1 :] = [grown]
            self._digests.update(map(bytes, part[DIGEST]))
            start += len(part[DIGEST])
            if len(grown) == self.chunk_rows:
                self._store(grown)
        return len(fresh)

    def adopt(self, refs: ChunkRefs, digests: Digests, load: Callable[[], Rows]) -> int:
        """Add a chunk whose objects are in this store already; return how many rows were new.

        Args:
            digests: (n, 32), without holes at the end.
            load: reads its n rows: called only if some of them are here already.
        """
        fresh = self._fresh(digests)
        if len(fresh) == len(digests):
            chunk = _Chunk(digests, load, refs=refs)
            # A tail that is still open stays last, for the rows to come.
            self._pending.insert(max(0, len(self._pending) - 1), chunk)
            self._digests.update(map(bytes, digests))
        elif len(fresh):
            self.add({name: values[fresh] for name, values in load().items()})
        return len(fresh)

    def _fresh(self, digests: Digests) -> list[int]:
        """Positions of the digests that are not here yet, the first of each."""
        first: dict[bytes, int] = {}
        for position, digest in enumerate(map(bytes, digests)):
            first.setdefault(digest, position)
        return [position for digest, position in first.items() if digest not in self._digests]

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

    def commit(self, merged: Sequence[str] = ()) -> Snapshot | None:
        """Make everything added so far visible; return the newest snapshot.

        Without new rows nothing is written. None only if the cache is still empty.

        Args:
            merged: trees of another store whose rows are all in this commit; with them a
                commit is made even without new rows.

        Raises:
            ConflictError: other writers won every attempt; the rows are still held.
        """
        for attempt in range(_ATTEMPTS):
            if not self.new_rows and not merged:
                return self.base
            snapshot = self._try_commit(list(merged))
            if snapshot is not None:
                return snapshot
            time.sleep(random.uniform(0, min(2.0, 0.01 * 2**attempt)))
            latest = self._cache.snapshot()
            if latest is None:
                raise CorruptError(f"the log of cache {self._cache.id} has vanished")
            self._rebase(latest)
        raise ConflictError(f"{_ATTEMPTS} commits to cache {self._cache.id[:12]} were overtaken")

    def _try_commit(self, merged: list[str]) -> Snapshot | None:
        base = self.base.commit if self.base else None
        next_chunk = base.chunk_count if base else 0
        slots = base.slots if base else 0
        changed: dict[int, ChunkRefs] = {}
        placed: list[tuple[int, _Chunk]] = []
        for chunk in self._pending:
            if chunk.replaces:
                number = chunk.replaces[0]
            else:
                number, next_chunk = next_chunk, next_chunk + 1
            changed[number] = self._stored(chunk)
            placed.append((number, chunk))
            slots = max(slots, number * self.chunk_rows + len(chunk))
        manifest = Manifest(
            self._objects,
            base.pages if base else [],
            base.chunk_count if base else 0,
            set(self.arrays),
        ).with_chunks(changed)
        commit = Commit(
            cache=self._cache.id,
            number=base.number + 1 if base else 1,
            parent=base.digest if base else None,
            slots=slots,
            rows=(base.rows if base else 0) + self.new_rows,
            chunk_rows=self.chunk_rows,
            group=base.group if base else self._objects.put(self._group),
            arrays=array_documents(self.arrays, slots, self.chunk_rows),
            pages=manifest.pages,
            time=now(),
            merged=merged,
            writer=self._about,
        )
        if commit.chunk_count != manifest.chunk_count:
            raise StorageError(f"{commit.chunk_count} chunks would be {manifest.chunk_count}")
        if not self._cache.log.append(commit):
            return None
        rest: list[_Chunk] = []
        if placed and len(placed[-1][1]) < self.chunk_rows:
            number, tail = placed[-1]
            place = (number, changed[number])
            rest = [
                _Chunk(tail.digests, tail.load, inherited=len(tail), replaces=place, refs=tail.refs)
            ]
        snapshot = Snapshot(self._objects, commit)
        self._pending, self.base = rest, snapshot
        return snapshot

    def _rebase(self, latest: Snapshot) -> None:
        """Put the new rows on top of another writer's commit: rows commute, slots do not."""
        self._check_base(latest)
        if latest.commit.chunk_rows != self.chunk_rows:
            raise StorageError(f"{latest} was started with another chunk size; run it again")
        theirs = self._digests_since_base(latest)
        kept = []
        for chunk in self._pending:
            ours = (
                chunk.replaces is not None
                and chunk.replaces[0] < latest.commit.chunk_count
                and latest.manifest.chunk(chunk.replaces[0]) == chunk.replaces[1]
            )  # nobody else filled that tail: it is still ours to fill
            new = np.array([bytes(digest) not in theirs for digest in chunk.digests])
            new[: chunk.inherited] = ours
            if new.all():
                kept.append(chunk)
            elif ours:
                kept.append(chunk.only(new, inherited=chunk.inherited, replaces=chunk.replaces))
            elif new.any():
                kept.append(chunk.only(new))
        self._pending = kept
        self._digests |= theirs
        self.base = latest

    def _digests_since_base(self, latest: Snapshot) -> set[bytes]:
        """Digests of the rows that other writers committed; only changed chunks are read."""
        base, size = self.base, self.chunk_rows
        theirs: set[bytes] = set()
        same = set(base.commit.pages) if base else set()
        for number, (start, stop) in enumerate(latest.chunk_ranges()):
            if latest.manifest.page_of(number) in same:
                continue
            known = base is not None and number < base.commit.chunk_count
            refs = latest.manifest.chunk(number)
            if known and base is not None and base.manifest.chunk(number)[DIGEST] == refs[DIGEST]:
                continue
            digests = latest.read(start, stop, [DIGEST])[DIGEST]
            theirs.update(map(bytes, digests[digests.any(axis=1)]))
            if known and base is not None:
                stop = min(stop, base.commit.slots)
                before = base.read(number * size, stop, [DIGEST])[DIGEST]
                theirs.difference_update(map(bytes, before))
        return theirs

    def _stored(self, chunk: _Chunk) -> ChunkRefs:
        """Return the objects of a chunk, stored so lately that no gc may remove them."""
        named = chunk.replaces is not None and chunk.refs == chunk.replaces[1]
        if chunk.refs is None or (not named and time.time() - chunk.stored > FRESH):
            self._store(chunk)
        assert chunk.refs is not None
        return chunk.refs

    def _store(self, chunk: _Chunk) -> None:
        encoded = encode_chunk(chunk.load(), self.arrays, self.chunk_rows)
        chunk.stored = time.time()
        refs = each(self._objects.put, encoded.values(), shared=self._cache.root.shared)
        chunk.refs = dict(zip(encoded, refs, strict=True))

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Forget uncommitted rows; objects that no commit names are left to gc."""
        with contextlib.suppress(AttributeError):
            del self._pending


def identify(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return who writes, for a commit: with a nonce, so that no two are equal by chance."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "nonce": uuid.uuid4().hex, **about}


def now() -> str:
    """Return the time for a commit: UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
