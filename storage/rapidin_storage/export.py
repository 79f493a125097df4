"""A plain copy of a snapshot for programs that know only Zarr."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rapidin_storage.cache import Snapshot
from rapidin_storage.errors import StorageError
from rapidin_storage.local import UMASK
from rapidin_storage.parallel import each
from rapidin_storage.zarr_store import CacheStore


def export_zarr(
    snapshot: Snapshot, folder: Path, advance: Callable[[int], None] = lambda _: None
) -> int:
    """Write a snapshot as a plain Zarr v3 group; return its bytes.

    The chunks are copied as they are stored, verified. The folder appears when it is whole.

    Raises:
        StorageError: there is something at that place already, or it cannot be written.
        NotFoundError, CorruptError: the snapshot lacks or has damaged what it names.
    """
    if folder.exists():
        raise StorageError(f"{folder} already exists")
    store = CacheStore.at(snapshot)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}") from error

    def write(key: str) -> int:
        data = store.read(key)
        assert data is not None
        path = draft / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        advance(len(data))
        return len(data)

    try:
        size = sum(each(write, store.keys(), shared=snapshot.objects.root.shared))
        draft.chmod(0o777 & ~UMASK)  # mkdtemp's 0700 would shut colleagues out
        draft.rename(folder)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return size
