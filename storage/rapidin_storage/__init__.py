"""Content-addressed, versioned Zarr caches on a local path or any fsspec URL.

This package knows bytes, digests and arrays; it knows nothing of models. It needs only
zarr, numcodecs and fsspec, so that any tool can open a cache::

    from rapidin_storage import Cache, CacheStore, open_root
    cache = Cache(open_root(".rin"), cache_id)
    group = zarr.open_group(CacheStore.at(cache.snapshot()), mode="r")
"""

from rapidin_storage.cache import ArraySpec, Cache, CacheWriter, Snapshot, list_caches
from rapidin_storage.errors import (
    ConflictError,
    CorruptError,
    FormatError,
    NotFoundError,
    StorageError,
)
from rapidin_storage.objects import ObjectRef, ObjectStore, canonical_json
from rapidin_storage.roots import FORMAT_VERSION, Root, open_root
from rapidin_storage.zarr_store import CacheStore

__all__ = [
    "FORMAT_VERSION",
    "ArraySpec",
    "Cache",
    "CacheStore",
    "CacheWriter",
    "ConflictError",
    "CorruptError",
    "FormatError",
    "NotFoundError",
    "ObjectRef",
    "ObjectStore",
    "Root",
    "Snapshot",
    "StorageError",
    "canonical_json",
    "list_caches",
    "open_root",
]
