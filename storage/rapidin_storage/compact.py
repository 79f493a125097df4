"""Closing holes: rows of half-empty chunks are merged into full ones."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rapidin_storage.arrays import DIGEST, array_documents, encode_chunk
from rapidin_storage.cache import Cache, Snapshot
from rapidin_storage.errors import ConflictError, CorruptError
from rapidin_storage.manifest import ChunkRefs, Manifest
from rapidin_storage.writer import identify, now

_ATTEMPTS = 8


@dataclass(frozen=True)
class Compacted:
    """What was done: slots before and after."""

    before: int
    after: int


def compact(cache: Cache, *, write: bool = True) -> Compacted | None:
    """Commit the newest rows without holes; None if there are none to close.

    Full chunks keep their objects and only get other numbers. Earlier snapshots stay, so
    this frees no space; it makes scans shorter.

    Raises:
        ConflictError: other writers committed meanwhile, again and again.
    """
    for _ in range(_ATTEMPTS):
        base = cache.snapshot()
        if base is None or base.commit.rows == base.commit.slots:
            return None
        done = Compacted(base.commit.slots, base.commit.rows)
        if not write or _try_compact(cache, base):
            return done
    raise ConflictError(f"{_ATTEMPTS} compactions of cache {cache.id[:12]} were overtaken")


def _try_compact(cache: Cache, base: Snapshot) -> bool:
    commit, specs, size = base.commit, base.commit.specs, base.commit.chunk_rows
    cache.root.prepare()
    chunks: list[ChunkRefs] = []
    held = 0
    loose: list[dict[str, np.ndarray[Any, Any]]] = []
    for number, (start, stop) in enumerate(base.chunk_ranges()):
        filled = np.flatnonzero(base.read(start, stop, [DIGEST])[DIGEST].any(axis=1))
        held += len(filled)
        if len(filled) == size:
            chunks.append(base.manifest.chunk(number))
        elif len(filled):
            rows = base.read(start, stop, sorted(specs))
            loose.append({name: values[filled] for name, values in rows.items()})
    if loose:
        joined = {name: np.concatenate([rows[name] for rows in loose]) for name in specs}
        for start in range(0, len(joined[DIGEST]), size):
            part = {name: values[start : start + size] for name, values in joined.items()}
            encoded = encode_chunk(part, specs, size)
            chunks.append({name: cache.objects.put(data) for name, data in encoded.items()})
    if held != commit.rows:
        raise CorruptError(f"{base} has {held} rows, not the {commit.rows} that its commit names")
    manifest = Manifest(cache.objects, [], 0, set(specs)).with_chunks(dict(enumerate(chunks)))
    return cache.log.append(
        replace(
            commit,
            number=commit.number + 1,
            parent=commit.digest,
            slots=commit.rows,
            arrays=array_documents(specs, commit.rows, size),
            pages=manifest.pages,
            time=now(),
            merged=[],
            lost=[],
            writer=identify({"compact": True}),
        )
    )
