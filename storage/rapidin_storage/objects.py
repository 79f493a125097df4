"""Immutable objects named by the SHA-256 of their stored bytes."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NamedTuple

from rapidin_storage.errors import CorruptError, NotFoundError
from rapidin_storage.roots import Root

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class ObjectRef(NamedTuple):
    """What a manifest keeps of an object: its SHA-256 in hex and its size in bytes."""

    digest: str
    size: int

    @classmethod
    def parse(cls, value: Any, where: str) -> ObjectRef:
        """Read `[digest, size]` from JSON; `CorruptError` naming `where` if it is not one."""
        match value:
            case [str(digest), int(size)] if _DIGEST.match(digest) and 0 <= size < 2**48:
                return cls(digest, size)
        raise CorruptError(f"{where} holds something that is not an object reference")


def canonical_json(value: Any) -> bytes:
    """One spelling per value: sorted keys, no spaces, UTF-8, no NaN. What is hashed is this."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def object_path(digest: str) -> str:
    """Where the object of that digest lies, relative to the root."""
    return f"objects/sha256/{digest[:2]}/{digest}"


class ObjectStore:
    """Puts and gets objects of one root. An object, once there, is never changed."""

    def __init__(self, root: Root) -> None:
        self.root = root

    def put(self, data: bytes) -> ObjectRef:
        """Store bytes (a no-op if they are there) and return their reference."""
        ref = ObjectRef(hashlib.sha256(data).hexdigest(), len(data))
        path = object_path(ref.digest)
        # The size is compared too: a file cut short by a failing disk is written anew.
        if self.root.size(path) != ref.size:
            self.root.write(path, data)
        return ref

    def get(self, ref: ObjectRef, what: str = "object") -> bytes:
        """Return the bytes, verified against their digest.

        Raises:
            NotFoundError, CorruptError: naming `what` (which array and rows), the object
                and the root.
        """
        path = object_path(ref.digest)
        size = self.root.size(path)
        if size is None:
            raise NotFoundError(f"{what} is missing: no object {ref.digest} in {self.root.url}")
        if size != ref.size:
            raise CorruptError(
                f"{what} is corrupt: object {ref.digest} in {self.root.url} has {size} bytes "
                f"instead of {ref.size}"
            )
        data = self.root.read(path)
        if hashlib.sha256(data).hexdigest() != ref.digest:
            raise CorruptError(
                f"{what} is corrupt: the bytes of object {ref.digest} in {self.root.url} do not "
                "have that SHA-256"
            )
        return data
