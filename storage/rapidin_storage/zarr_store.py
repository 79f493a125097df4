"""A read-only Zarr v3 store over one snapshot: keys are resolved through its manifest."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Protocol

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from rapidin_storage.arrays import check_content, check_group, chunk_key
from rapidin_storage.commits import Commit
from rapidin_storage.errors import CorruptError
from rapidin_storage.manifest import Manifest
from rapidin_storage.objects import ObjectRef, ObjectStore, canonical_json

# Chunked by rows only: "c/12/0" of a two-dimensional array, "c/12" of a vector.
_CHUNK = re.compile(r"c/(0|[1-9]\d{0,11})((?:/0)*)\Z")


class _Version(Protocol):
    """What is read of a `Snapshot`."""

    objects: ObjectStore
    commit: Commit
    manifest: Manifest


class CacheStore(Store):
    """`zarr.open_group(CacheStore.at(snapshot), mode="r")` reads a cache without copying it."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, objects: ObjectStore, commit: Commit, manifest: Manifest) -> None:
        super().__init__(read_only=True)
        self._objects = objects
        self._commit = commit
        self._manifest = manifest
        self._label = f"{objects.root.url}#{commit.cache[:12]}@{commit.number}"

    @classmethod
    def at(cls, snapshot: _Version) -> CacheStore:
        """Open the store of one snapshot."""
        return cls(snapshot.objects, snapshot.commit, snapshot.manifest)

    def __str__(self) -> str:
        return f"rin://{self._label}"

    def __repr__(self) -> str:
        return f"CacheStore({self._label!r})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CacheStore)
            and self._label == other._label
            and self._commit.tree == other._commit.tree
        )

    def with_read_only(self, read_only: bool = False) -> Store:
        """Return this store; a snapshot has no writable form."""
        if not read_only:
            raise ValueError("a snapshot is immutable; write through rapidin_storage.CacheWriter")
        return self

    def _resolve(self, key: str) -> ObjectRef | bytes | None:
        """Return where a key's bytes are; an array's metadata is in the commit itself."""
        if key == "zarr.json":
            return self._commit.group
        name, _, rest = key.partition("/")
        document = self._commit.arrays.get(name)
        if document is None:
            return None
        if rest == "zarr.json":
            return canonical_json(document)
        match = _CHUNK.match(rest)
        if not match or int(match.group(1)) >= self._manifest.chunk_count:
            return None
        if len(match.group(2)) != 2 * (len(document["shape"]) - 1):
            return None
        return self._manifest.chunk(int(match.group(1))).get(name)

    def read(self, key: str) -> bytes | None:
        """Return the verified bytes of a key; None if the snapshot has no such key.

        Raises:
            NotFoundError, CorruptError: naming the key, the object and the root.
        """
        found = self._resolve(key)
        if not isinstance(found, ObjectRef):
            return found
        what = f"{key} of {self._label}"
        data = self._objects.get(found, what)
        try:
            if key == "zarr.json":
                check_group(data)
            else:
                check_content(self._commit.arrays[key.partition("/")[0]], data, what)
        except ValueError as error:
            raise CorruptError(f"{error}: object {found.digest}") from None
        return data

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the verified bytes of a key, or a range of them; None if there is no such key."""
        data = await asyncio.to_thread(self.read, key)
        if data is None:
            return None
        match byte_range:
            case None:
                part = data
            case RangeByteRequest(start=start, end=end):
                part = data[start:end]
            case OffsetByteRequest(offset=offset):
                part = data[offset:]
            case SuffixByteRequest(suffix=suffix):
                part = data[max(0, len(data) - suffix) :]
            case _:
                raise ValueError(f"Unexpected byte_range, got {byte_range}.")
        return prototype.buffer.from_bytes(part)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several values or ranges at once."""
        return list(
            await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))
        )

    async def exists(self, key: str) -> bool:
        """Say whether the snapshot has the key; asks the manifest, not the objects."""
        return await asyncio.to_thread(self._resolve, key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: a snapshot is immutable."""
        raise ValueError(f"store is read-only: cannot set {key} ({len(value)} bytes)")

    async def delete(self, key: str) -> None:
        """Refuse: a snapshot is immutable."""
        raise ValueError(f"store is read-only: cannot delete {key}")

    def keys(self) -> Iterator[str]:
        """Yield every key, metadata first."""
        yield "zarr.json"
        for name in self._commit.arrays:
            yield f"{name}/zarr.json"
        for index in range(self._manifest.chunk_count):
            for name in self._manifest.chunk(index):
                if document := self._commit.arrays.get(name):
                    yield chunk_key(name, index, len(document["shape"]))

    async def list(self) -> AsyncIterator[str]:
        """Yield every key."""
        for key in await asyncio.to_thread(lambda: list(self.keys())):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield every key that begins with `prefix`."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly below `prefix`."""
        base = f"{prefix.rstrip('/')}/" if prefix else ""
        seen: set[str] = set()
        async for key in self.list_prefix(base):
            name = key.removeprefix(base).split("/", 1)[0]
            if name not in seen:
                seen.add(name)
                yield name
