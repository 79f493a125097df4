"""A root on any fsspec filesystem: one request per write, so never half a file."""

import contextlib
import datetime
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import fsspec

from rapidin_storage import s3
from rapidin_storage.errors import AccessError, NotFoundError, StorageError
from rapidin_storage.local import LocalRoot
from rapidin_storage.roots import FRESH, Entry, Root, checked

_CREATE_ATTEMPTS = 6
_READ_ATTEMPTS = 3
# What filesystems call the time of the last write: S3, SFTP and local, GCS, Azure, memory.
_TIMES = ("LastModified", "mtime", "updated", "last_modified", "modified", "created")


class FsspecRoot(Root):
    """A root behind a URL such as `s3://bucket/prefix`."""

    # fsspec's in-memory filesystem checks and then writes: make the pair one step.
    _memory_lock = threading.Lock()

    def __init__(
        self, url: str, *, name: str = "", single_writer: bool = False, **options: Any
    ) -> None:
        self.url = url.rstrip("/")
        self.name = name
        self.single_writer = single_writer
        self._options = options
        self._protocol = fsspec.utils.get_protocol(url)
        settings = s3.filesystem_options(**options) if self._is_s3 else options
        self._fs, self._base = fsspec.core.url_to_fs(self.url, **settings)
        if self._is_s3:
            # s3fs would repeat, in two loops around one another, what botocore has given up.
            self._fs.retries = 1
        self._patience = 2 * float(options.get("timeout", 60))
        self._exclusive = False

    def __str__(self) -> str:
        return f"{self.url} (remote {self.name})" if self.name else self.url

    @property
    def _is_s3(self) -> bool:
        return self._protocol in ("s3", "s3a")

    def __reduce__(self) -> tuple[Any, ...]:
        options = {**self._options, "name": self.name, "single_writer": self.single_writer}
        return _reopen, (self.url, options)

    def _path(self, path: str) -> str:
        return f"{self._base}/{checked(path)}"

    @contextlib.contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        where = f"{self.url}/{path}"
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # libraries of stores raise what they like
            if self._is_s3 and (refused := s3.refusal(error, str(self), self._options)):
                raise refused from error
            if self._is_s3 and (silent := s3.unreachable(error, str(self), self._options)):
                raise StorageError(silent) from error
            if isinstance(error, FileNotFoundError):
                raise NotFoundError(f"{where} does not exist") from None
            if isinstance(error, PermissionError):
                raise AccessError(f"{self} refused to {verb} {path}: {error}") from error
            reason = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, (OSError, *s3.transport_errors())):
                reason = f"{type(error).__name__}: {reason}"
            raise StorageError(f"cannot {verb} {where}: {reason}") from error

    def read(self, path: str, at_most: int | None = None) -> bytes:
        """See `Root.read`. With a limit this is one request; without, s3fs asks for the size."""
        if at_most == 0:
            return b""
        limits = {} if at_most is None else {"start": 0, "end": at_most}
        start = time.monotonic()
        with self._explained("read", path):
            for left in reversed(range(_READ_ATTEMPTS)):
                try:
                    return bytes(self._fs.cat_file(self._path(path), **limits))
                except Exception as error:
                    if s3.code(error) == "InvalidRange":  # there are no bytes: an empty object
                        return b""
                    # Who has not answered at all for so long was asked several times already.
                    silent = time.monotonic() - start > self._patience
                    if silent or not left or not s3.cut_short(error):
                        raise
                time.sleep(random.uniform(0, 0.2))
        raise AssertionError("unreachable")

    def entry(self, path: str) -> Entry | None:
        """See `Root.entry`."""
        try:
            with self._explained("read", path):
                if self._is_s3:  # `info` would also list, to see whether it is a folder
                    bucket, key, _ = self._fs.split_path(self._path(path))
                    head = self._fs.call_s3("head_object", Bucket=bucket, Key=key)
                    head = {"name": self._path(path), "size": head["ContentLength"], **head}
                    return self._entry(head)
                return self._entry(self._fs.info(self._path(path)))
        except NotFoundError:
            return None

    def _entry(self, info: dict[str, Any]) -> Entry:
        stamp = next((info[key] for key in _TIMES if info.get(key) is not None), None)
        if isinstance(stamp, str):
            stamp = datetime.datetime.fromisoformat(stamp)
        if isinstance(stamp, datetime.datetime):
            stamp = stamp.timestamp()
        path = str(info["name"]).removeprefix(f"{self._base}/")
        # Without a time it counts as just written, so that gc leaves it alone.
        return Entry(path, int(info["size"] or 0), time.time() if stamp is None else float(stamp))

    def write(self, path: str, data: bytes) -> None:
        """See `Root.write`."""
        with self._explained("write", path):
            self._fs.pipe_file(self._path(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """See `Root.create`. s3fs sends If-None-Match; a loser sees EEXIST or EINVAL."""
        target = self._path(path)
        for attempt in range(_CREATE_ATTEMPTS):
            with self._explained("write", path):
                try:
                    with self._memory_lock if self._protocol == "memory" else _nothing():
                        self._fs.pipe_file(target, data, mode="create")
                    return True
                except FileExistsError:
                    return False
                except OSError as error:
                    if self.size(path) is not None:
                        return False
                    # S3 refuses both of two simultaneous creates with 409.
                    again = s3.code(error) in ("ConditionalRequestConflict", "409")
                    if not again or attempt == _CREATE_ATTEMPTS - 1:
                        raise
            time.sleep(random.uniform(0, 0.05 * 2**attempt))
        raise AssertionError("unreachable")

    def prepare(self) -> None:
        """See `Root.prepare`. S3 itself refuses to replace, if it knows the condition."""
        super().prepare()
        if not (self._exclusive or self.single_writer):
            self.check_exclusive(race=not self._is_s3)
            self._exclusive = True

    def remove(self, path: str) -> None:
        """See `Root.remove`."""
        with contextlib.suppress(NotFoundError), self._explained("remove", path):
            self._fs.rm_file(self._path(path))

    def refresh(self, path: str, size: int) -> bool:
        """See `Root.refresh`. On S3, what is old is copied onto itself, which sets its time."""
        entry = self.entry(path)
        if entry is None or entry.size != size:
            return False
        if entry.modified > time.time() - FRESH:
            return True
        if not self._is_s3:
            return False
        try:
            with self._explained("refresh", path):
                self._fs.cp_file(self._path(path), self._path(path), MetadataDirective="REPLACE")
        except StorageError:  # it is gone by now, or the service cannot do that: write it again
            return False
        return True

    def list(self, folder: str) -> list[str]:
        """See `Root.list`."""
        try:
            with self._explained("list", folder):
                found = self._fs.ls(self._path(folder), detail=False)
        except NotFoundError:
            return []
        base = self._path(folder)
        names = (str(name).rstrip("/").rsplit("/", 1)[-1] for name in found if name != base)
        return sorted(names)

    def entries(self, folder: str) -> Iterator[Entry]:
        """See `Root.entries`."""
        with self._explained("list", folder):
            found = self._fs.find(self._path(folder), detail=True)
        for name in sorted(found):
            yield self._entry(found[name])

    def credentials(self) -> str:
        """Return where the credentials come from; empty if none are needed."""
        return s3.credentials_source(self._options) if self._is_s3 else ""


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _reopen(url: str, options: dict[str, Any]) -> FsspecRoot:
    return FsspecRoot(url, **options)


def open_root(location: str | os.PathLike[str], **options: Any) -> Root:
    """Open a local folder or an fsspec URL such as `s3://bucket/prefix` as a root.

    Nothing is read or written yet.

    Args:
        location: folder or URL.
        options: for S3 `endpoint_url`, `profile`, `region` and `timeout` (seconds without
            an answer before a request is tried again); else the fsspec filesystem's own.
            `name` is its name in messages. `single_writer` promises that nobody else writes
            there, and skips the check that concurrent writers are safe.

    Raises:
        ImportError, ValueError: no filesystem of that protocol is installed or known.
    """
    text = os.fspath(location)
    if "://" not in text:
        return LocalRoot(text)
    if text.startswith("file://"):
        return LocalRoot(text.removeprefix("file://"))
    return FsspecRoot(text, **options)
