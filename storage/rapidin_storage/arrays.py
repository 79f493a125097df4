"""The arrays of a cache: their specs, and the Zarr metadata that describes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import Zstd

from rapidin_storage.objects import canonical_json

DIGEST = "digest"
"""The array that every cache has: SHA-256 of the example, (N, 32) uint8; zero in a hole."""

Rows = Mapping[str, np.ndarray[Any, Any]]
"""Array name -> (n, ...) values, the same n for all."""

Document = dict[str, Any]
"""An array's zarr.json."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_DTYPES = {
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *(f"float{bits}" for bits in (16, 32, 64)),
}
_MAX_CHUNK_BYTES = 2**31
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 1
# Rows are nearly noise to a compressor. A chunk that becomes little smaller is stored as it is
# inside its frame (which level -1 does): that is read at 6 GB/s on a core, the other at 0.6.
_STORED = -1
_WORTH_IT = 0.8


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


def array_document(spec: ArraySpec, slots: int, chunk_rows: int) -> Document:
    """Return an array's zarr.json: as zarr-python writes it, and the only one we accept."""
    kind = np.dtype(spec.dtype)
    order = {} if kind.itemsize == 1 else {"configuration": {"endian": "little"}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [slots, *spec.row_shape],
        "data_type": spec.dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [chunk_rows, *spec.row_shape]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if kind.kind == "f" else 0,
        "codecs": [
            {"name": "bytes", **order},
            {"name": "zstd", "configuration": {"level": _LEVEL, "checksum": False}},
        ],
        "attributes": {},
        "storage_transformers": [],
    }


def array_documents(
    specs: Mapping[str, ArraySpec], slots: int, chunk_rows: int
) -> dict[str, Document]:
    """Return every array's zarr.json."""
    return {name: array_document(spec, slots, chunk_rows) for name, spec in specs.items()}


def group_document(attributes: Mapping[str, Any]) -> Document:
    """Return the group's zarr.json."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def check_group(data: bytes) -> None:
    """Refuse a group's zarr.json that no writer would write.

    Raises:
        ValueError: it is not JSON, or not a plain group with attributes.
    """
    try:
        document = json.loads(data)
        # By spelling: to Python 1, 1.0 and true are equal.
        wanted = group_document(dict(document["attributes"]))
        if canonical_json(document) == canonical_json(wanted):
            return
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError("the group's metadata is not what a writer would write")


def check_documents(documents: Any, slots: int, chunk_rows: int) -> dict[str, Document]:
    """Return the arrays' zarr.json, if a writer would write them: the file may be damaged.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: they are not; or one chunk would
            take more memory than any writer gives it.
    """
    for name, document in documents.items():
        dtype, row_shape = document["data_type"], document["shape"][1:]
        spec = ArraySpec(dtype, tuple(row_shape))
        good = (
            _NAME.match(name)
            and dtype in _DTYPES
            and len(row_shape) <= 4
            and all(type(size) is int and 0 < size < 2**31 for size in row_shape)
            and canonical_json(document) == canonical_json(array_document(spec, slots, chunk_rows))
            and chunk_rows * spec.row_bytes <= _MAX_CHUNK_BYTES
        )
        if not good:
            raise ValueError(f"the metadata of array {name} is not that of a cache's array")
    if ArraySpec.of(documents[DIGEST]) != ArraySpec("uint8", (32,)):
        raise ValueError("digests are 32 bytes")
    return dict(documents)


def check_content(document: Document, data: bytes | memoryview, what: str) -> None:
    """Refuse a chunk that does not claim to unpack to the size of its array's chunks.

    Raises:
        ValueError: it is not such a zstd frame; decoding it could take any amount of memory.
    """
    chunk = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    expected = chunk * ArraySpec.of(document).row_bytes
    claimed = zstd_content_size(data)
    if claimed != expected:
        raise ValueError(f"{what} does not unpack to {expected} bytes (it claims {claimed})")


def decode_content(document: Document, data: bytes, what: str) -> bytes:
    """Return the bytes that a chunk unpacks to.

    Raises:
        ValueError: it cannot be unpacked.
    """
    check_content(document, data, what)
    try:
        return bytes(Zstd().decode(data))
    except RuntimeError as error:
        raise ValueError(f"{what} cannot be unpacked: {error}") from None


def zstd_content_size(data: bytes | memoryview) -> int | None:
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


def encode_chunk(rows: Rows, specs: Mapping[str, ArraySpec], chunk_rows: int) -> dict[str, bytes]:
    """Encode up to `chunk_rows` rows as Zarr does: array name -> stored bytes.

    A chunk is stored whole: the rows that it lacks are zero.
    """
    encoded = {}
    for name, spec in specs.items():
        whole = np.zeros((chunk_rows, *spec.row_shape), np.dtype(spec.dtype).newbyteorder("<"))
        whole[: len(rows[name])] = rows[name]
        packed = Zstd(level=_LEVEL).encode(whole)
        if len(packed) > _WORTH_IT * whole.nbytes:
            packed = Zstd(level=_STORED).encode(whole)
        encoded[name] = bytes(packed)
    return encoded
