"""A root in a local folder: fsync'd, so that a committed file survives a power cut."""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rapidin_storage.errors import NotFoundError, StorageError
from rapidin_storage.roots import Entry, Root, checked
from rapidin_storage.verified import Verified

TEMPORARY = ".tmp-"
"""How the names of files that are being written begin."""


def _umask() -> int:
    mask = os.umask(0)  # the only portable way to read it is to set it
    os.umask(mask)
    return mask


UMASK = _umask()


class LocalRoot(Root):
    """A root in a folder of this machine or of a file system mounted on it."""

    shared = False

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self.url = str(self.folder)
        self.verified = Verified(self.folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalRoot, (self.folder,)

    def _path(self, path: str) -> Path:
        return self.folder / checked(path)

    @contextlib.contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"{self.url}/{path} does not exist") from None
        except OSError as error:
            raise StorageError(f"cannot {verb} {self.url}/{path}: {error.strerror}") from error

    def read(self, path: str, at_most: int | None = None) -> bytes:
        """See `Root.read`."""
        with self._explained("read", path), self._path(path).open("rb") as file:
            # Never ask for more than there is: a mangled manifest may claim any size.
            size = os.fstat(file.fileno()).st_size
            return file.read(size if at_most is None else min(size, at_most))

    def read_into(self, path: str, buffer: memoryview) -> os.stat_result:
        """Fill a buffer with a file of the same size; a file of another size is not read.

        Returns:
            The file's status as it was before.
        """
        with self._explained("read", path), self._path(path).open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            done = 0
            while status.st_size == len(buffer) != done:
                count = file.readinto(buffer[done:])
                if not count:
                    raise StorageError(f"{self.url}/{path} became shorter while being read")
                done += count
            return status

    def entry(self, path: str) -> Entry | None:
        """See `Root.entry`."""
        try:
            with self._explained("read", path):
                stat = self._path(path).stat()
        except NotFoundError:
            return None
        return Entry(path, stat.st_size, stat.st_mtime)

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
        with self._explained("remove", path):
            self._path(path).unlink(missing_ok=True)

    def discard(self, path: str, before: float) -> int:
        """See `Root.discard`. No writer can refresh the file between the look and the removal.

        The file is taken out of the way first. A writer that comes later finds it gone and
        writes it again; one that came just before has left its mark, and it is put back.
        """
        entry = self.entry(path)
        if entry is None or entry.modified >= before:
            return 0
        target = self._path(path)
        aside = target.with_name(f"{TEMPORARY}gc-{uuid.uuid4().hex}")
        try:
            with self._explained("remove", path):
                target.rename(aside)
                if aside.stat().st_mtime < before:
                    aside.unlink()
                    return entry.size
                with contextlib.suppress(FileExistsError):
                    os.link(aside, target)
                aside.unlink()
        except NotFoundError:  # another gc was faster
            pass
        return 0

    def refresh(self, path: str, size: int) -> bool:
        """See `Root.refresh`."""
        if self.size(path) != size:
            return False
        try:
            os.utime(self._path(path))
        except OSError:  # removed meanwhile, or another user's: then it is written again
            return False
        return True

    @contextlib.contextmanager
    def _temporary(self, path: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        target = self._path(path)
        try:
            _make_folder(target.parent)
            handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=target.parent)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    # mkstemp's 0600 would shut colleagues out of a shared folder.
                    os.fchmod(handle, 0o666 & ~UMASK)
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
            with self._explained("list", folder):
                entries = [entry.name for entry in self._path(folder).iterdir()]
        except NotFoundError:
            return []
        return sorted(name for name in entries if not name.startswith(TEMPORARY))

    def entries(self, folder: str) -> Iterator[Entry]:
        """See `Root.entries`."""
        try:
            with self._explained("list", folder):
                found = sorted(os.scandir(self._path(folder)), key=lambda item: item.name)
        except NotFoundError:
            return
        for item in found:
            path = f"{folder}/{item.name}"
            if item.is_dir(follow_symlinks=False):
                yield from self.entries(path)
            elif entry := self.entry(path):
                yield entry


def _make_folder(folder: Path) -> None:
    """Make a folder whose name survives a power cut, with those above it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
