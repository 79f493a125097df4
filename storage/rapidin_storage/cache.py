"""A cache: rows of equal shape, found by their example's digest, in immutable snapshots."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from rapidin_storage.arrays import DIGEST
from rapidin_storage.commits import Commit, CommitLog
from rapidin_storage.errors import CorruptError, NotFoundError
from rapidin_storage.objects import ObjectStore, canonical_json, is_digest, object_path
from rapidin_storage.roots import FORMAT_VERSION, Root
from rapidin_storage.stream import Buffers, stream
from rapidin_storage.zarr_store import CacheStore


def list_caches(root: Root) -> list[str]:
    """Names of the caches in a root, sorted."""
    return [name for name in root.list("caches") if is_digest(name)]


def cache_name(identity: Mapping[str, Any]) -> str:
    """Return the cache-id: SHA-256 of what makes rows comparable, the format included."""
    return hashlib.sha256(canonical_json({**identity, "format": FORMAT_VERSION})).hexdigest()


class Cache:
    """One cache of a root, by its id. Holds no state: every call reads the log.

    Args:
        upstreams: roots that objects are read from, and kept, when this one lacks them.
    """

    def __init__(self, root: Root, cache_id: str, upstreams: Sequence[Root] = ()) -> None:
        self.root = root
        self.id = cache_id
        self.log = CommitLog(root, cache_id)
        self.objects = ObjectStore(root, upstreams)

    def snapshot(self, number: int | None = None) -> Snapshot | None:
        """Return a snapshot: the newest (None if there is no commit yet) or the one asked for.

        Raises:
            FormatError: the store is newer than this program.
            NotFoundError: the commit asked for does not exist.
        """
        if not self.root.shared and self.root.list("caches"):
            self.root.check_format()  # over a network each commit's own version must do
        commit = self.log.latest() if number is None else self.log.read(number)
        return None if commit is None else Snapshot(self.objects, commit)

    def find(self, reference: str) -> Snapshot:
        """Return a snapshot by its number, or by the start of its tree (8 digits or more).

        Raises:
            NotFoundError: there is none.
        """
        if reference.isdecimal() and len(reference) <= 8:
            return Snapshot(self.objects, self.log.read(int(reference)))
        for commit in reversed(self.log.read_all()):
            if len(reference) >= 8 and commit.tree.startswith(reference):
                return Snapshot(self.objects, commit)
        raise NotFoundError(f"cache {self.id[:12]} in {self.root.url} has no snapshot {reference}")


class Snapshot:
    """One immutable version of a cache."""

    def __init__(self, objects: ObjectStore, commit: Commit) -> None:
        self.objects = objects
        self.commit = commit
        self.manifest = commit.manifest(objects)

    @cached_property
    def group(self) -> zarr.Group:
        """The whole cache as a read-only Zarr group."""
        try:
            return zarr.open_group(
                CacheStore.at(self), mode="r", zarr_format=3, use_consolidated=False
            )
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise CorruptError(f"the Zarr metadata of {self} cannot be read: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Snapshot, (self.objects, self.commit)

    def __str__(self) -> str:
        return str(self.commit)

    @property
    def has_group(self) -> bool:
        """Whether this root has the group's metadata; if not, the next writer stores it again."""
        return self.objects.root.size(object_path(self.commit.group.digest)) is not None

    @property
    def attributes(self) -> dict[str, Any]:
        """The JSON that the cache was made with."""
        return dict(self.group.attrs)

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one array; `CorruptError` if the cache has none of that name.

        Not by way of the group: rows can be read where its metadata was lost.
        """
        if name not in self.commit.arrays:
            raise CorruptError(f"{self} has no array {name!r}")
        try:
            return zarr.open_array(CacheStore.at(self), path=name, mode="r", zarr_format=3)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"array {name} of {self} cannot be read: {error}") from error

    @cached_property
    def digests(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Example digests by slot, (N, 32) uint8."""
        return self._values(DIGEST, 0, self.commit.slots)

    @cached_property
    def index(self) -> dict[bytes, int]:
        """Example digest -> slot, holes left out."""
        return index_digests(self.digests)

    def read(self, start: int, stop: int, names: list[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Return the rows of slots start..stop of some arrays; whole chunks read best."""
        return {name: self._values(name, start, stop) for name in names}

    def _values(self, name: str, start: int, stop: int) -> np.ndarray[Any, Any]:
        try:
            return np.asarray(self.array(name)[start:stop])
        except (ValueError, RuntimeError) as error:
            # The bytes have the right digest, so they were written wrong.
            raise CorruptError(
                f"rows {start} to {stop} of array {name} of {self} cannot be decoded: {error}"
            ) from error

    def stream(
        self, names: Sequence[str], chunks: Sequence[int] | None = None, keep: int = 0
    ) -> Iterator[tuple[int, int, Buffers]]:
        """See `rapidin_storage.stream.stream`."""
        return stream(self.objects, self.commit, self.manifest, names, chunks, keep)

    def chunk_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) slots of each chunk, in order."""
        size = self.commit.chunk_rows
        for start in range(0, self.commit.slots, size):
            yield start, min(start + size, self.commit.slots)


def index_digests(digests: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[bytes, int]:
    """Map digest -> slot of an (N, 32) array, without the zero digests of holes."""
    filled = digests.any(axis=1)
    return {bytes(digests[slot]): int(slot) for slot in np.flatnonzero(filled)}
