"""Reading a snapshot from end to end: the next chunks are fetched while one is used."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numcodecs import Zstd

from rapidin_storage.arrays import ArraySpec, check_content, chunk_key
from rapidin_storage.commits import Commit
from rapidin_storage.errors import CorruptError
from rapidin_storage.manifest import Manifest
from rapidin_storage.objects import ObjectStore

# Requests over a network wait; a folder's reads want a core each, for a little.
_NEAR, _FAR = 2, 8

Buffers = dict[str, np.ndarray[Any, Any]]


def stream(
    objects: ObjectStore,
    commit: Commit,
    manifest: Manifest,
    names: Sequence[str],
    chunks: Sequence[int] | None = None,
    keep: int = 0,
) -> Iterator[tuple[int, int, Buffers]]:
    """Yield (start, stop, arrays of the slots start..stop) of chunks, in order.

    The memory of what was yielded is used again: copy what is to outlive the next step.

    Args:
        objects, commit, manifest: of a snapshot.
        names: of the arrays.
        chunks: numbers of the chunks; all by default.
        keep: how many steps more what was yielded stays as it is.

    Raises:
        NotFoundError, CorruptError, StorageError: as `ObjectStore.get`, naming the rows.
    """
    size, slots = commit.chunk_rows, commit.slots
    numbers = deque(range(manifest.chunk_count) if chunks is None else chunks)
    ahead = _FAR if objects.distant else _NEAR
    reader = _Reader(objects, commit, manifest, names)
    spare = [reader.buffers() for _ in range(min(ahead + 1 + keep, len(numbers)))]
    in_use: deque[Buffers] = deque()
    waiting: deque[tuple[int, Buffers, Future[None]]] = deque()
    with ThreadPoolExecutor(ahead, thread_name_prefix="rin-read") as pool:
        try:
            while numbers or waiting:
                while numbers and spare:
                    number, buffers = numbers.popleft(), spare.pop()
                    waiting.append((number, buffers, pool.submit(reader.fill, number, buffers)))
                number, buffers, done = waiting.popleft()
                done.result()
                start = number * size
                stop = min(start + size, slots)
                yield start, stop, {name: part[: stop - start] for name, part in buffers.items()}
                in_use.append(buffers)
                if len(in_use) > keep:
                    spare.append(in_use.popleft())
        finally:
            for _, _, future in waiting:
                future.cancel()


class _Reader:
    def __init__(
        self, objects: ObjectStore, commit: Commit, manifest: Manifest, names: Sequence[str]
    ) -> None:
        self._objects = objects
        self._commit = commit
        self._manifest = manifest
        self._documents = {name: commit.arrays[name] for name in names}
        self._local = threading.local()

    def buffers(self) -> Buffers:
        """Room for a chunk of each array."""
        made = {}
        for name, document in self._documents.items():
            spec = ArraySpec.of(document)
            shape = (self._commit.chunk_rows, *spec.row_shape)
            made[name] = np.empty(shape, np.dtype(spec.dtype).newbyteorder("<"))
        return made

    def fill(self, number: int, buffers: Buffers) -> None:
        """Read and unpack one chunk."""
        refs = self._manifest.chunk(number)
        for name, document in self._documents.items():
            ref, into = refs[name], buffers[name]
            what = f"{chunk_key(name, number, into.ndim)} of {self._commit}"
            if ref.size > 2 * into.nbytes + 4096:
                raise CorruptError(f"{what} claims to take {ref.size} bytes packed")
            packed = self._room(ref.size)
            self._objects.get_into(ref, packed, what)
            try:
                check_content(document, packed, what)
                Zstd().decode(packed, into)
            except (ValueError, RuntimeError) as error:
                raise CorruptError(f"{what} cannot be unpacked: {error}") from None

    def _room(self, size: int) -> memoryview:
        """Memory of this thread, used for one object after the other."""
        room = getattr(self._local, "room", None)
        if room is None or len(room) < size:
            # A new page costs as much as reading it: keep them.
            room = self._local.room = memoryview(bytearray(size + size // 8))
        return room[:size]
