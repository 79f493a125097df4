"""A read-only Zarr v3 store over one snapshot: keys are resolved through its manifest."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from rapidin_storage.manifest import Manifest
from rapidin_storage.objects import ObjectRef, ObjectStore

if TYPE_CHECKING:
    from rapidin_storage.cache import Snapshot

# Chunked by rows only: "sketch/c/12/0" of a two-dimensional array, "loss/c/12" of a vector.
_CHUNK_KEY = re.compile(r"([a-z][a-z0-9_]*)/c/(\d{1,12})((?:/0)*)\Z")


class CacheStore(Store):
    """`zarr.open_group(CacheStore.at(snapshot), mode="r")` reads a cache without copying it."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(
        self, objects: ObjectStore, metadata: dict[str, ObjectRef], manifest: Manifest, label: str
    ) -> None:
        super().__init__(read_only=True)
        self._objects = objects
        self._metadata = metadata
        self._manifest = manifest
        self._label = label

    @classmethod
    def at(cls, snapshot: Snapshot) -> CacheStore:
        """Open the store of one snapshot."""
        commit = snapshot.commit
        label = f"{snapshot.objects.root.url}#{commit.cache[:12]}@{commit.number}"
        return cls(snapshot.objects, commit.metadata, snapshot.manifest, label)

    def __str__(self) -> str:
        return f"rin://{self._label}"

    def __repr__(self) -> str:
        return f"CacheStore({self._label!r})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CacheStore)
            and self._label == other._label
            and self._metadata == other._metadata
        )

    def with_read_only(self, read_only: bool = False) -> Store:
        """Return this store; a snapshot has no writable form."""
        if not read_only:
            raise ValueError("a snapshot is immutable; write through rapidin_storage.CacheWriter")
        return self

    def _resolve(self, key: str) -> ObjectRef | None:
        if key in self._metadata:
            return self._metadata[key]
        match = _CHUNK_KEY.match(key)
        if not match or int(match.group(2)) >= self._manifest.chunk_count:
            return None
        return self._manifest.chunk(int(match.group(2))).get(match.group(1))

    def _read(self, key: str) -> bytes | None:
        ref = self._resolve(key)
        return None if ref is None else self._objects.get(ref, f"{key} of {self._label}")

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the verified bytes of a key, or a range of them; None if there is no such key."""
        data = await asyncio.to_thread(self._read, key)
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
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
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

    def _keys(self) -> list[str]:
        keys = list(self._metadata)
        suffix = {
            key.split("/")[0]: "/0" * (len(json.loads(self._read(key) or b"")["shape"]) - 1)
            for key in self._metadata
            if "/" in key
        }
        for index in range(self._manifest.chunk_count):
            names = self._manifest.chunk(index)
            keys += [f"{name}/c/{index}{suffix[name]}" for name in names if name in suffix]
        return keys

    async def list(self) -> AsyncIterator[str]:
        """Yield every key."""
        for key in await asyncio.to_thread(self._keys):
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
