"""Immutable objects named by the SHA-256 of their stored bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from rapidin_storage.errors import CorruptError, NotFoundError, StorageError
from rapidin_storage.local import LocalRoot
from rapidin_storage.roots import Root
from rapidin_storage.verified import settled, state

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")

OBJECTS = "objects/sha256"

_READS = 3

Result = TypeVar("Result")


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
        raise CorruptError(f"{where} contains something that is not an object reference")


def canonical_json(value: Any) -> bytes:
    """One spelling per value: sorted keys, no spaces, UTF-8, no NaN. What is hashed is this."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 in lower-case hex."""
    return bool(_DIGEST.match(text))


def object_path(digest: str) -> str:
    """Path of the object with that digest, relative to the root."""
    return f"{OBJECTS}/{digest[:2]}/{digest}"


def reread(root: Root, read: Callable[[], Result]) -> Result:
    """Read again what arrived damaged over a network, before blaming its source."""
    for _ in range(_READS - 1 if root.shared else 0):
        with contextlib.suppress(CorruptError):
            return read()
    return read()


class ObjectStore:
    """Puts and gets objects of one root. An object, once there, is never changed.

    With `upstreams`, what this root lacks is read from them, verified, and with `keep`
    stored here.
    """

    def __init__(self, root: Root, upstreams: Sequence[Root] = (), *, keep: bool = True) -> None:
        self.root = root
        self._keep = keep
        self.upstreams = [ObjectStore(upstream) for upstream in upstreams]

    @property
    def distant(self) -> bool:
        """Whether objects may have to come over a network."""
        return self.root.shared or any(upstream.distant for upstream in self.upstreams)

    def put(self, data: bytes) -> ObjectRef:
        """Store bytes (a no-op if they are there) and return their reference."""
        ref = ObjectRef(hashlib.sha256(data).hexdigest(), len(data))
        path = object_path(ref.digest)
        # Over a network asking costs as much as sending, and sending again does no harm.
        if self.root.shared or not self.root.refresh(path, ref.size):
            self.root.write(path, data)
        return ref

    def get(self, ref: ObjectRef, what: str = "object") -> bytes:
        """Return the bytes, verified against their digest, in one request.

        Raises:
            NotFoundError, CorruptError: naming `what` (which array and rows), the object
                and the root. StorageError: no place that may have it can be read.
        """
        try:
            return reread(self.root, lambda: self._read(ref, what))
        except NotFoundError:
            return self._get_upstream(ref, what)

    def get_into(self, ref: ObjectRef, buffer: memoryview, what: str = "object") -> None:
        """Do the same as `get`, into a buffer of the object's size.

        A file of a folder that has not changed since it was verified is not hashed again.
        """
        if isinstance(self.root, LocalRoot) and self._read_file(self.root, ref, buffer, what):
            return
        buffer[:] = self.get(ref, what)

    def _read_file(self, root: LocalRoot, ref: ObjectRef, buffer: memoryview, what: str) -> bool:
        """Fill the buffer; return whether the file exists."""
        try:
            status = root.read_into(object_path(ref.digest), buffer)
        except NotFoundError:
            return False
        if status.st_size != ref.size:
            return False  # `get` says what is wrong with it
        known = state(status)
        if not root.verified.has(ref.digest, known):
            self._check(buffer, ref, what)
            if settled(status):
                root.verified.add(ref.digest, known)
        return True

    def _read(self, ref: ObjectRef, what: str) -> bytes:
        data = self.root.read(object_path(ref.digest), ref.size + 1)
        self._check(data, ref, what)
        return data

    def _get_upstream(self, ref: ObjectRef, what: str) -> bytes:
        failures = []
        for upstream in self.upstreams:
            try:
                data = upstream.get(ref, what)
            except NotFoundError:
                continue
            except StorageError as error:  # the next one may have it, whole
                failures.append(error)
                continue
            # A full disk is no reason not to answer.
            with contextlib.suppress(StorageError):
                if self._keep:
                    self.put(data)
            return data
        if failures:
            raise failures[0]
        urls = ", ".join([self.root.url, *(u.root.url for u in self.upstreams)])
        raise NotFoundError(f"{what} is missing: no object {ref.digest} in {urls}") from None

    def _check(self, data: bytes | memoryview, ref: ObjectRef, what: str) -> None:
        corrupt = f"{what} is corrupt: object {ref.digest} in {self.root.url}"
        if len(data) != ref.size:
            # One byte more than wanted was asked for, so longer files are noticed too.
            count = self.root.size(object_path(ref.digest))
            raise CorruptError(f"{corrupt} has {count} bytes instead of {ref.size}")
        if hashlib.sha256(data).hexdigest() != ref.digest:
            raise CorruptError(f"{corrupt} has a different SHA-256")
