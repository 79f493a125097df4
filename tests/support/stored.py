"""A small cache of known rows: how it is written, and what must be in it."""

import numpy as np

from rapidin_storage import ArraySpec, Cache, CacheWriter, cache_name

ARRAYS = {"sketch": ArraySpec("int8", (16,)), "loss": ArraySpec("float32")}

ID = cache_name({"checkpoint": "a", "gradient": {"k": 16}})


def digest(number: int) -> bytes:
    return int(number + 1).to_bytes(32, "little")


def rows(start: int, stop: int):
    numbers = np.arange(start, stop)
    return {
        "sketch": np.repeat((numbers % 100).astype(np.int8)[:, None], 16, axis=1),
        "loss": numbers.astype(np.float32),
        "digest": np.stack([np.frombuffer(digest(n), np.uint8) for n in numbers]),
    }


def writer(root, chunk_rows=8):
    return CacheWriter(Cache(root, ID), ARRAYS, {"made": "for a test"}, chunk_rows)


def contents(snapshot):
    """Digest -> loss, read through Zarr."""
    losses = snapshot.array("loss")[:]
    return {d: float(losses[slot]) for d, slot in snapshot.index.items()}


def expected(numbers):
    return {digest(n): float(n) for n in numbers}
