"""The arrays of a cache: their specs, and the Zarr metadata that describes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

DIGEST = "digest"
"""The array that every cache has: SHA-256 of the example, (N, 32) uint8; zero in a hole."""

Rows = Mapping[str, np.ndarray[Any, Any]]
"""Array name -> (n, ...) values, the same n for all."""

Document = dict[str, Any]
"""An array's zarr.json."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_DTYPES = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))} | {
    f"float{bits}" for bits in (16, 32, 64)
}
_CODECS = {"bytes", "zstd", "blosc", "gzip", "crc32c"}
_MAX_CHUNK_BYTES = 2**31
_MAX_ROWS = 2**40
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class ArraySpec:
    """One array of a cache: its dtype and the shape of one row."""

    dtype: str
    row_shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, uncompressed."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.row_shape, dtype=np.int64))

    @classmethod
    def of(cls, document: Document) -> ArraySpec:
        """Return the spec that a checked zarr.json describes."""
        return cls(document["data_type"], tuple(document["shape"][1:]))


def chunk_key(name: str, index: int, dimensions: int) -> str:
    """Return the Zarr key of chunk `index`: arrays are chunked by rows only."""
    return f"{name}/c/{index}" + "/0" * (dimensions - 1)


def check_document(name: str, document: Any, slots: int, chunk_rows: int) -> Document:
    """Return a zarr.json that is safe to open; it came from a file that may be mangled.

    Raises:
        ValueError: it is not an array of `slots` rows in chunks of `chunk_rows`, or one
            chunk of it would take more memory than any writer gives it.
    """
    match document:
        case {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [int(length), *row_shape],
            "data_type": str(dtype),
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [int(rows), *chunk_row_shape]},
            },
            "chunk_key_encoding": {"name": "default"},
            "codecs": [*codecs],
        } if (
            _NAME.match(name)
            and length == slots <= _MAX_ROWS
            and rows == chunk_rows
            and row_shape == chunk_row_shape
            and len(row_shape) <= 4
            and all(type(size) is int and 0 < size < 2**31 for size in row_shape)
            and dtype in _DTYPES
            and all(isinstance(codec, dict) and codec.get("name") in _CODECS for codec in codecs)
            and not document.get("storage_transformers")
        ):
            if chunk_rows * ArraySpec(dtype, tuple(row_shape)).row_bytes > _MAX_CHUNK_BYTES:
                raise ValueError(f"a chunk of {name} would be absurdly large")
            return dict(document)
    raise ValueError(f"array {name} is not described as arrays of a cache are")


def check_content(document: Document, data: bytes, what: str) -> None:
    """Refuse a chunk that claims to unpack into more than its array's chunk is.

    Raises:
        ValueError: it would make the decoder allocate what the claim says.
    """
    chunk = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    expected = chunk * ArraySpec.of(document).row_bytes
    claimed = zstd_content_size(data)
    if claimed is not None and claimed > expected:
        raise ValueError(f"{what} claims {claimed} bytes instead of {expected}")


def zstd_content_size(data: bytes) -> int | None:
    """Return the size that a zstd frame claims to unpack to (RFC 8878, 3.1.1.1); else None."""
    if data[:4] != _ZSTD_MAGIC or len(data) < 6:
        return None
    descriptor = data[4]
    single, flag = bool(descriptor & 0x20), descriptor >> 6
    width = (1 if single else 0, 2, 4, 8)[flag]
    if not width:
        return None
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    return int.from_bytes(data[start : start + width], "little") + (256 if flag == 1 else 0)


def _template(
    specs: Mapping[str, ArraySpec], slots: int, chunk_rows: int, attributes: Mapping[str, Any]
) -> tuple[MemoryStore, dict[str, zarr.Array[Any]]]:
    memory = MemoryStore()
    group = zarr.create_group(memory, attributes=dict(attributes), zarr_format=3)
    # Reached again through the group, an array would have forgotten `write_empty_chunks`.
    return memory, {
        name: group.create_array(
            name,
            shape=(slots, *spec.row_shape),
            chunks=(chunk_rows, *spec.row_shape),
            dtype=spec.dtype,
            compressors=[ZstdCodec(level=1)],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        for name, spec in specs.items()
    }


def encode_chunk(rows: Rows, specs: Mapping[str, ArraySpec], chunk_rows: int) -> dict[str, bytes]:
    """Encode up to `chunk_rows` rows with Zarr's own codecs: array name -> stored bytes."""
    memory, arrays = _template(specs, len(rows[DIGEST]), chunk_rows, {})
    for name, values in rows.items():
        arrays[name][:] = values
    return {
        name: _stored(memory, chunk_key(name, 0, 1 + len(spec.row_shape)))
        for name, spec in specs.items()
    }


def describe(
    specs: Mapping[str, ArraySpec], slots: int, chunk_rows: int, attributes: Mapping[str, Any]
) -> tuple[bytes, dict[str, Document]]:
    """Return the group's zarr.json, as bytes, and each array's."""
    memory, _ = _template(specs, slots, chunk_rows, attributes)
    documents = {name: json.loads(_stored(memory, f"{name}/zarr.json")) for name in specs}
    return _stored(memory, "zarr.json"), documents


def resized(document: Document, slots: int) -> Document:
    """Return an array's zarr.json with another number of rows."""
    return {**document, "shape": [slots, *document["shape"][1:]]}


def _stored(memory: MemoryStore, key: str) -> bytes:
    buffer = sync(memory.get(key, default_buffer_prototype()))
    if buffer is None:
        raise ValueError(f"zarr wrote no {key}")
    return buffer.to_bytes()
