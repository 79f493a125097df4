"""Removing what no commit names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rapidin_storage.arrays import DIGEST
from rapidin_storage.cache import Cache, list_caches
from rapidin_storage.commits import CommitLog
from rapidin_storage.contents import GROUP, PAGE, all_parts
from rapidin_storage.errors import StorageError
from rapidin_storage.local import TEMPORARY
from rapidin_storage.objects import OBJECTS, ObjectStore, is_digest, object_path
from rapidin_storage.parallel import each
from rapidin_storage.roots import GRACE, PROBES, Entry, Root, probe_path

_BATCH = 500
_FOLDERS = ("objects", "caches", PROBES)


@dataclass(frozen=True)
class Garbage:
    """What nothing needs.

    Attributes:
        entries: the files.
        kept: how many files are needed.
        young: how many others are younger than the grace period.
        before: files written later than this are spared (the root's clock).
    """

    entries: Sequence[Entry]
    kept: int
    young: int
    before: float

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry.size for entry in self.entries)


def find_garbage(root: Root, grace: float = GRACE) -> Garbage:
    """Find objects that no commit of any cache in the root names, and what crashes left.

    Args:
        grace: seconds; what was written later is spared, because a writer may be about to
            name it. It must be longer than any writer takes from its first object to its
            commit, and `FRESH` (half the default) is what writers rely on.

    Raises:
        NotFoundError, CorruptError: a commit or page cannot be read: then nothing can be
            said to be garbage.
    """
    root.check_format()
    before = root.now() - grace
    # Listed first: what is committed after this was written after it, or refreshed.
    entries = [entry for folder in _FOLDERS for entry in root.entries(folder)]
    needed = _Named(root)
    candidates = [entry for entry in entries if not needed.has(entry)]
    old = [entry for entry in candidates if entry.modified < before]
    return Garbage(old, len(entries) - len(candidates), len(candidates) - len(old), before)


def remove_garbage(root: Root, garbage: Garbage) -> int:
    """Remove it, looking at the logs and at each file's age again; return the bytes freed."""
    needed = _Named(root)

    def remove(entry: Entry) -> int:
        return root.discard(entry.path, garbage.before)

    freed = 0
    for start in range(0, len(garbage.entries), _BATCH):
        needed.update()
        candidates = garbage.entries[start : start + _BATCH]
        batch = [entry for entry in candidates if not needed.has(entry)]
        freed += sum(each(remove, batch, shared=root.shared))
    return freed


class _Named:
    """The objects that the commits of a root name; new commits are added by `update`."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._objects = ObjectStore(root)
        self._read: set[tuple[str, int]] = set()
        self._digests: set[str] = set()
        self.update()

    def update(self) -> None:
        for cache in list_caches(self._root):
            log = CommitLog(self._root, cache)
            fresh = [n for n in log.numbers() if (cache, n) not in self._read]
            for _ in all_parts(self._objects, log.read_all(fresh), self._digests):
                pass
            self._read.update((cache, n) for n in fresh)

    def has(self, entry: Entry) -> bool:
        folder, _, name = entry.path.rpartition("/")
        if name.startswith(TEMPORARY) or folder == PROBES:
            return False
        # Anything that is not an object of ours is not ours to remove.
        ours = is_digest(name) and entry.path == object_path(name)
        return not ours or name in self._digests


@dataclass(frozen=True)
class Dropped:
    """What `drop_local` removed, or would: objects and bytes."""

    objects: int
    size: int


def drop_local(root: Root, remote: Root, caches: Iterable[str], *, remove: bool) -> Dropped:
    """Drop the bulk of local objects that a remote was seen to hold in full size.

    Only what the remote's own commits name: what else lies there, its gc may remove.
    Manifests, metadata and digests stay, so that `rin status` and `rin log` need no
    network; the rest is read from the remote again when it is needed.

    Raises:
        StorageError: both are one place, or the remote cannot be read; nothing was removed.
    """
    _check_apart(root, remote)
    there = {entry.path: entry.size for entry in remote.entries(OBJECTS)}
    droppable = {}
    for cache_id in caches:
        ours, theirs = Cache(root, cache_id), Cache(remote, cache_id)
        # The pages of the remote's commits are here, too, after a push or pull.
        pages = ObjectStore(root, [remote], keep=False)
        named = {part.ref for _, part in all_parts(pages, theirs.log.read_all())}
        for _, part in all_parts(ObjectStore(root, [remote]), ours.log.read_all()):
            path = object_path(part.ref.digest)
            if part.array in (PAGE, GROUP, DIGEST) or part.ref not in named:
                continue
            if there.get(path) == part.ref.size and root.size(path) is not None:
                droppable[path] = part.ref.size
    if remove:
        for path in droppable:
            root.remove(path)
    return Dropped(len(droppable), sum(droppable.values()))


def _check_apart(root: Root, remote: Root) -> None:
    """Refuse two names of one place: whatever it holds would seem to be safe elsewhere."""
    path = probe_path()
    root.write(path, b"here")
    try:
        if remote.entry(path) is not None:
            raise StorageError(f"{root.url} and {remote.url} are the same: nothing was deleted")
    finally:
        root.remove(path)


def parse_grace(text: str) -> float:
    """Return seconds of `90m`, `24h`, `7d` or `30s`.

    Raises:
        StorageError: it is not a duration.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isdecimal():
        raise StorageError(f"{text!r} is not a duration such as 24h, 90m or 7d")
    return float(number) * units[unit]
