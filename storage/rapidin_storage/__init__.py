"""Content-addressed, versioned Zarr caches on a local path or any fsspec URL.

This package knows bytes, digests and arrays; it knows nothing of models. It needs only
zarr, numcodecs and fsspec, so that any tool can open a cache::

    from rapidin_storage import Cache, CacheStore, open_root
    cache = Cache(open_root(".rin"), cache_id)
    group = zarr.open_group(CacheStore.at(cache.snapshot()), mode="r")
"""

from rapidin_storage.arrays import ArraySpec
from rapidin_storage.cache import Cache, Snapshot, cache_name, list_caches
from rapidin_storage.commits import Commit
from rapidin_storage.errors import (
    AccessError,
    ConflictError,
    CorruptError,
    FormatError,
    NoBucketError,
    NotFoundError,
    StorageError,
)
from rapidin_storage.objects import ObjectRef, ObjectStore, canonical_json
from rapidin_storage.remote import FsspecRoot, open_root
from rapidin_storage.roots import FORMAT_VERSION, Root
from rapidin_storage.writer import CacheWriter
from rapidin_storage.zarr_store import CacheStore

__all__ = [
    "FORMAT_VERSION",
    "AccessError",
    "ArraySpec",
    "Cache",
    "CacheStore",
    "CacheWriter",
    "Commit",
    "ConflictError",
    "CorruptError",
    "FormatError",
    "FsspecRoot",
    "NoBucketError",
    "NotFoundError",
    "ObjectRef",
    "ObjectStore",
    "Root",
    "Snapshot",
    "StorageError",
    "cache_name",
    "canonical_json",
    "list_caches",
    "open_root",
]
