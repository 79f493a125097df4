"""Manifests: which object holds which chunk, in pages that commits share.

A page covers `PAGE_CHUNKS` consecutive chunks of all arrays, so a commit rewrites only the
pages whose chunks it changed. A page is zstd-compressed canonical JSON and is itself an
object: `{"first": 1024, "chunks": [{"sketch": [digest, size], ...}, ...]}`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Set

from numcodecs import Zstd

from rapidin_storage.arrays import zstd_content_size
from rapidin_storage.errors import CorruptError, StorageError
from rapidin_storage.objects import ObjectRef, ObjectStore, canonical_json

PAGE_CHUNKS = 1024
_MAX_PAGE_BYTES = 256 * 2**20

ChunkRefs = Mapping[str, ObjectRef]
"""The objects of one chunk of rows: array name -> reference."""


def encode_page(first: int, chunks: list[ChunkRefs]) -> bytes:
    """Return the stored bytes of a page that begins at chunk number `first`."""
    body = {
        "first": first,
        "chunks": [{name: list(ref) for name, ref in c.items()} for c in chunks],
    }
    return bytes(Zstd(level=3).encode(canonical_json(body)))


def decode_page(data: bytes, first: int, where: str) -> list[ChunkRefs]:
    """Read a page back, checking every field.

    Raises:
        CorruptError: naming `where`.
    """
    corrupt = CorruptError(f"{where} is not a manifest page")
    try:
        size = zstd_content_size(data)
        if size is None or size > _MAX_PAGE_BYTES:
            raise corrupt
        body = json.loads(bytes(Zstd().decode(data)))
    except (RuntimeError, ValueError, RecursionError):
        raise corrupt from None
    match body:
        case {"first": int(number), "chunks": list(chunks)} if (
            number == first and len(chunks) <= PAGE_CHUNKS
        ):
            if not all(isinstance(chunk, dict) for chunk in chunks):
                raise corrupt
            return [
                {str(name): ObjectRef.parse(ref, where) for name, ref in chunk.items()}
                for chunk in chunks
            ]
    raise corrupt


class Manifest:
    """All chunks of one snapshot; pages are fetched when first needed.

    Args:
        names: the arrays that every chunk has.
    """

    def __init__(
        self, objects: ObjectStore, pages: list[ObjectRef], chunk_count: int, names: Set[str]
    ) -> None:
        self._objects = objects
        self.pages = pages
        self.chunk_count = chunk_count
        self.names = names
        self._loaded: dict[int, list[ChunkRefs]] = {}
        self._lock = threading.Lock()

    def load(self, number: int) -> list[ChunkRefs]:
        """Return the chunks of a page, read once.

        Raises:
            NotFoundError, CorruptError: it cannot be read, or does not match the commit.
        """
        with self._lock:  # many chunks at once want the same page
            if number not in self._loaded:
                self._loaded[number] = self._read(number)
            return self._loaded[number]

    def _read(self, number: int) -> list[ChunkRefs]:
        ref = self.pages[number]
        where = f"manifest page {number} ({ref.digest})"
        chunks = decode_page(self._objects.get(ref, where), number * PAGE_CHUNKS, where)
        if len(chunks) != min(PAGE_CHUNKS, self.chunk_count - number * PAGE_CHUNKS):
            raise CorruptError(f"{where} has {len(chunks)} chunks, unlike its commit")
        if any(chunk.keys() != self.names for chunk in chunks):
            raise CorruptError(f"{where} has different arrays from its commit")
        return chunks

    def chunk(self, index: int) -> ChunkRefs:
        """Return the objects of chunk `index`; `IndexError` beyond the last."""
        if not 0 <= index < self.chunk_count:
            raise IndexError(index)
        return self.load(index // PAGE_CHUNKS)[index % PAGE_CHUNKS]

    def page_of(self, index: int) -> ObjectRef:
        """Return the page that lists chunk `index`."""
        return self.pages[index // PAGE_CHUNKS]

    def chunks_of_page(self, number: int) -> range:
        """Chunk numbers that a page lists."""
        first = number * PAGE_CHUNKS
        return range(first, min(first + PAGE_CHUNKS, self.chunk_count))

    def with_chunks(self, changed: Mapping[int, ChunkRefs]) -> Manifest:
        """Return a manifest in which the given chunks are replaced or appended, pages stored.

        Only pages with a changed chunk are written. New numbers must leave no gap.
        """
        count = max([self.chunk_count, *(index + 1 for index in changed)])
        if missing := set(range(self.chunk_count, count)) - set(changed):
            raise StorageError(f"chunks {sorted(missing)} would be left without objects")
        pages = list(self.pages)
        for number in sorted({index // PAGE_CHUNKS for index in changed}):
            first = number * PAGE_CHUNKS
            last = min(first + PAGE_CHUNKS, count)
            chunks = [changed.get(i) or self.chunk(i) for i in range(first, last)]
            ref = self._objects.put(encode_page(first, chunks))
            pages[number : number + 1] = [ref]
        return Manifest(self._objects, pages, count, self.names)
