"""A root: where one store lives, and the three ways of writing that its safety rests on.

`read`, `write` (whole file or nothing) and `create` (whole file, only if absent) are all
that the rest of the package uses. Locally they are temporary file + fsync + rename or
hard link; elsewhere one fsspec request each.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from rapidin_storage.errors import FormatError, NotFoundError, StorageError

FORMAT_NAME = "rapidin-store"
FORMAT_VERSION = 1
FORMAT_FILE = "format.json"


def _umask() -> int:
    mask = os.umask(0)  # the only portable way to read it is to set it
    os.umask(mask)
    return mask


_UMASK = _umask()


class Root(ABC):
    """A place that holds files under relative POSIX paths.

    Every method raises `StorageError` (or its `NotFoundError`) with the path and the
    reason; none leaves a half-written file that a reader could see.
    """

    url: str

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the whole file; `NotFoundError` if there is none."""

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Return the file's size in bytes, or None if there is none."""

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Put the whole file there, atomically, replacing what was there."""

    @abstractmethod
    def create(self, path: str, data: bytes) -> bool:
        """Put the whole file there if nothing is; say whether this call did it.

        Of any number of racing callers exactly one gets True.
        """

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file; no error if there is none. Never used on objects or commits here."""

    @abstractmethod
    def list(self, folder: str) -> list[str]:
        """Names directly inside a folder, sorted; empty if there is no such folder."""

    def check_format(self, *, create: bool = False) -> None:
        """Refuse a store that this program cannot read; with `create`, mark a new one.

        Raises:
            FormatError: format.json is unreadable, foreign or newer than this program.
            NotFoundError: there is no store here and `create` is false.
        """
        try:
            raw = self.read(FORMAT_FILE)
        except NotFoundError:
            if not create:
                raise NotFoundError(f"there is no store at {self.url}") from None
            mark = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "hash": "sha256"}
            self.create(FORMAT_FILE, json.dumps(mark, sort_keys=True).encode() + b"\n")
            return
        try:
            mark = json.loads(raw)
            name, version = mark["format"], mark["version"]
        except (ValueError, KeyError, TypeError):
            raise FormatError(f"{self.url}/{FORMAT_FILE} is not readable") from None
        if name != FORMAT_NAME or not isinstance(version, int):
            raise FormatError(f"{self.url}/{FORMAT_FILE} does not describe a rin store")
        if version > FORMAT_VERSION:
            raise FormatError(
                f"the store at {self.url} has format {version}; this program reads up to "
                f"{FORMAT_VERSION}, so it needs a newer rin"
            )


def _checked(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise StorageError(f"not a path inside the store: {path!r}")
    return path


class LocalRoot(Root):
    """A root in a local folder. fsync'd, so that a committed file survives a power cut."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self.url = str(self.folder)

    def _path(self, path: str) -> Path:
        return self.folder / _checked(path)

    def read(self, path: str) -> bytes:
        """See `Root.read`."""
        try:
            return self._path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"{self.url}/{path} does not exist") from None
        except OSError as error:
            raise StorageError(f"cannot read {self.url}/{path}: {error.strerror}") from error

    def size(self, path: str) -> int | None:
        """See `Root.size`."""
        try:
            return self._path(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"cannot read {self.url}/{path}: {error.strerror}") from error

    def write(self, path: str, data: bytes) -> None:
        """See `Root.write`."""
        with self._temporary(path, data) as (temporary, target):
            temporary.replace(target)
            _sync_folder(target.parent)

    def create(self, path: str, data: bytes) -> bool:
        """See `Root.create`. A hard link fails if the name is taken: that is the race's referee."""
        with self._temporary(path, data) as (temporary, target):
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            _sync_folder(target.parent)
            return True

    def remove(self, path: str) -> None:
        """See `Root.remove`."""
        try:
            self._path(path).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot remove {self.url}/{path}: {error.strerror}") from error

    @contextlib.contextmanager
    def _temporary(self, path: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        target = self._path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".tmp-", dir=target.parent)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    # mkstemp's 0600 would shut colleagues out of a shared folder.
                    os.fchmod(handle, 0o666 & ~_UMASK)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary, target
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {self.url}/{path}: {error.strerror}") from error

    def list(self, folder: str) -> list[str]:
        """See `Root.list`. Temporary files of writers that died are not listed."""
        try:
            entries = [entry.name for entry in self._path(folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageError(f"cannot list {self.url}/{folder}: {error.strerror}") from error
        return sorted(name for name in entries if not name.startswith(".tmp-"))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FsspecRoot(Root):
    """A root on any fsspec filesystem; one request per write, so never half a file."""

    # fsspec's in-memory filesystem checks and then writes: make the pair one step.
    _memory_lock = threading.Lock()

    def __init__(self, url: str, **options: Any) -> None:
        protocol = fsspec.utils.get_protocol(url)
        if protocol in ("s3", "s3a"):
            options.setdefault("use_listings_cache", False)
        self.url = url.rstrip("/")
        self._options = options
        self._fs, self._base = fsspec.core.url_to_fs(self.url, **options)
        self._in_memory = protocol == "memory"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.url, self._options)

    def _path(self, path: str) -> str:
        return f"{self._base}/{_checked(path)}"

    def read(self, path: str) -> bytes:
        """See `Root.read`."""
        try:
            return bytes(self._fs.cat_file(self._path(path)))
        except FileNotFoundError:
            raise NotFoundError(f"{self.url}/{path} does not exist") from None
        except OSError as error:
            raise StorageError(f"cannot read {self.url}/{path}: {error}") from error

    def size(self, path: str) -> int | None:
        """See `Root.size`."""
        try:
            return int(self._fs.info(self._path(path))["size"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {self.url}/{path}: {error}") from error

    def write(self, path: str, data: bytes) -> None:
        """See `Root.write`."""
        try:
            self._fs.pipe_file(self._path(path), data)
        except OSError as error:
            raise StorageError(f"cannot write {self.url}/{path}: {error}") from error

    def create(self, path: str, data: bytes) -> bool:
        """See `Root.create`. s3fs sends If-None-Match; a loser sees EEXIST or EINVAL."""
        try:
            with self._memory_lock if self._in_memory else contextlib.nullcontext():
                self._fs.pipe_file(self._path(path), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if self.size(path) is not None:
                return False
            raise StorageError(f"cannot write {self.url}/{path}: {error}") from error
        return True

    def remove(self, path: str) -> None:
        """See `Root.remove`."""
        try:
            self._fs.rm_file(self._path(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"cannot remove {self.url}/{path}: {error}") from error

    def list(self, folder: str) -> list[str]:
        """See `Root.list`."""
        try:
            entries = self._fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"cannot list {self.url}/{folder}: {error}") from error
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)


def _reopen(url: str, options: dict[str, Any]) -> FsspecRoot:
    return FsspecRoot(url, **options)


def open_root(location: str | os.PathLike[str], **options: Any) -> Root:
    """Open a local folder or an fsspec URL such as `s3://bucket/prefix` as a root.

    Nothing is read or written yet. `options` go to the fsspec filesystem.
    """
    text = os.fspath(location)
    if "://" not in text:
        return LocalRoot(text)
    if text.startswith("file://"):
        return LocalRoot(text.removeprefix("file://"))
    return FsspecRoot(text, **options)
