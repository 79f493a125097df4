"""What commits name: every object, and what it is for."""

import contextlib
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

from rapidin_storage.commits import Commit
from rapidin_storage.errors import CorruptError, NotFoundError, StorageError
from rapidin_storage.manifest import Manifest
from rapidin_storage.objects import ObjectRef, ObjectStore
from rapidin_storage.parallel import THREADS, each


@dataclass(frozen=True)
class Part:
    """An object of a commit.

    Attributes:
        ref: the object.
        array: which array it is a chunk of; `page` and `group` for the rest.
        chunk: number of the chunk or page; 0 for the group.
    """

    ref: ObjectRef
    array: str
    chunk: int

    def describe(self, commit: Commit) -> str:
        """Describe the object, for people."""
        where = f"snapshot {commit.number} of cache {commit.cache[:12]}"
        if self.array == PAGE:
            return f"manifest page {self.chunk} of {where}"
        if self.array == GROUP:
            return f"the group metadata of {where}"
        start, stop = self.slots(commit)
        return f"{self.array} of rows {start:,} to {stop - 1:,} of {where}"

    def slots(self, commit: Commit) -> tuple[int, int]:
        """The slots that need the object: all of them, unless it belongs to a chunk."""
        if self.array in (PAGE, GROUP):
            return 0, commit.slots
        start = self.chunk * commit.chunk_rows
        return start, min(start + commit.chunk_rows, commit.slots)


PAGE = "page"
GROUP = "group"


def parts(
    objects: ObjectStore,
    commit: Commit,
    seen: set[str] | None = None,
    lost: Set[str] = frozenset(),
    broken: Callable[[Part, StorageError], None] | None = None,
    manifest: Manifest | None = None,
) -> Iterator[Part]:
    """Yield what a commit names and `seen` does not; pages before what they list.

    Args:
        seen: digests that are left out, with all that a page of that digest lists; those
            that are yielded are added.
        lost: digests that were given up; left out in the same way.
        broken: called for a page that cannot be read, instead of raising an error.
        manifest: the commit's, should pages of it be loaded already.

    Raises:
        NotFoundError, CorruptError: a page cannot be read.
    """
    seen = set() if seen is None else seen
    manifest = manifest or commit.manifest(objects)

    def new(ref: ObjectRef) -> bool:
        if ref.digest in seen or ref.digest in lost:
            return False
        seen.add(ref.digest)
        return True

    if new(commit.group):
        yield Part(commit.group, GROUP, 0)
    for number, page in enumerate(commit.pages):
        if not new(page):
            continue
        part = Part(page, PAGE, number)
        yield part
        try:
            manifest.load(number)
        except (NotFoundError, CorruptError) as error:
            if broken is None:
                raise
            broken(part, error)
            continue
        for index in manifest.chunks_of_page(number):
            for name, ref in manifest.chunk(index).items():
                if new(ref):
                    yield Part(ref, name, index)


def all_parts(
    objects: ObjectStore,
    commits: Sequence[Commit],
    seen: set[str] | None = None,
    broken: Callable[[Part, StorageError], None] | None = None,
) -> Iterator[tuple[Commit, Part]]:
    """Yield what the commits of a log name, each object once, with the newest that names it.

    What a repair gave up is left out of the commits before it, and only of those: the same
    rows computed again make the same objects. The arguments are those of `parts`.
    """
    seen, lost = set() if seen is None else seen, set[str]()
    newest_first = commits[::-1]
    for start in range(0, len(newest_first), THREADS):
        batch = newest_first[start : start + THREADS]
        manifests = [commit.manifest(objects) for commit in batch]
        _load_new_pages(manifests, seen, shared=objects.root.shared)
        for commit, manifest in zip(batch, manifests, strict=True):
            for part in parts(objects, commit, seen, lost, broken, manifest):
                yield commit, part
            lost.update(commit.lost)


def _load_new_pages(manifests: Sequence[Manifest], seen: Set[str], *, shared: bool) -> None:
    """Load over a network at once what would be loaded one after the other."""
    wanted: dict[str, tuple[Manifest, int]] = {}
    for manifest in manifests:
        for number, page in enumerate(manifest.pages):
            if page.digest not in seen:
                wanted.setdefault(page.digest, (manifest, number))

    def load(item: tuple[Manifest, int]) -> None:
        with contextlib.suppress(NotFoundError, CorruptError):  # met again, and told, in its turn
            item[0].load(item[1])

    if shared:
        each(load, wanted.values())
