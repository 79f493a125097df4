"""Repairing what a check has found."""

import contextlib
import errno
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numcodecs import Zstd

from rapidin_storage.arrays import DIGEST, encode_chunk
from rapidin_storage.cache import Cache, Snapshot, index_digests
from rapidin_storage.commits import Commit, CommitLog
from rapidin_storage.contents import PAGE
from rapidin_storage.errors import ConflictError, CorruptError, NotFoundError, StorageError
from rapidin_storage.manifest import ChunkRefs, Manifest
from rapidin_storage.objects import ObjectRef, ObjectStore, object_path
from rapidin_storage.roots import Root
from rapidin_storage.verify import Problem, check_object
from rapidin_storage.writer import identify, now


@dataclass(frozen=True)
class Repaired:
    """What a repair did.

    Attributes:
        fetched: objects and commits that came from a remote.
        rows: rows removed from the newest snapshot, for `rin cache` to compute again.
        given_up: objects and commits of the log that nobody has any more.
        digests: of those rows, if their digests could still be read.
    """

    fetched: int
    rows: int
    given_up: int
    digests: frozenset[bytes] = frozenset()


def repair(cache: Cache, problems: Sequence[Problem], upstreams: Sequence[Root]) -> Repaired:
    """Fetch what a remote has; remove the rows that nobody has from the newest snapshot.

    Damaged commit files are set aside under `damaged/`. Check again afterwards: a page that
    was fetched may show more.

    Raises:
        ConflictError: other writers committed meanwhile; nothing was given up.
    """
    fetched = 0
    left: list[Problem] = []
    for problem in problems:
        if _is_mended(cache, problem):
            continue
        if any(_fetch(cache, problem, upstream) for upstream in upstreams):
            fetched += 1
        else:
            left.append(problem)
    # Fetching may have taken long: another repair, or writer, may have fixed the rest.
    left = [problem for problem in left if not _is_mended(cache, problem)]
    commits = [problem for problem in left if problem.part is None]
    digests = {problem.part.ref.digest for problem in left if problem.part is not None}
    for digest in digests:
        # Else the same rows, computed again, would find their object there: damaged.
        cache.root.remove(object_path(digest))
    for problem in commits:
        digests |= _set_aside(cache.log, problem.commit)
    rows, known = _give_up(cache, digests) if digests else (0, frozenset[bytes]())
    return Repaired(fetched, rows, len(digests | {str(p.commit) for p in commits}), known)


def _is_mended(cache: Cache, problem: Problem) -> bool:
    """Whether a problem is already fixed: another repair, or a pull, was faster."""
    try:
        commit = cache.log.read(problem.commit)
        if problem.part is not None:
            check_object(ObjectStore(cache.root), problem.part, commit, quick=False)
            if problem.part.array == PAGE:
                commit.manifest(ObjectStore(cache.root)).load(problem.part.chunk)
            return True
        later = problem.commit + 1
        return later not in cache.log.numbers() or cache.log.read(later).parent == commit.digest
    except StorageError as error:
        if _is_damage(error):
            return False
        raise


def _is_damage(error: StorageError) -> bool:
    """Whether an error means damage, and not that the object just cannot be read now or by us."""
    unreadable = getattr(error.__cause__, "errno", None) == errno.EIO
    return unreadable or isinstance(error, (NotFoundError, CorruptError))


def _fetch(cache: Cache, problem: Problem, upstream: Root) -> bool:
    if problem.part is None:
        return _fetch_commit(cache.log, CommitLog(upstream, cache.id), problem.commit)
    ref = problem.part.ref
    try:
        ObjectStore(cache.root).get(ref)
        return False  # it was written wrong, so every copy is
    except StorageError as error:
        if not _is_damage(error):
            raise
    try:
        cache.root.write(object_path(ref.digest), ObjectStore(upstream).get(ref))
    except (NotFoundError, CorruptError):
        return False
    return True


def _fetch_commit(log: CommitLog, upstream: CommitLog, number: int) -> bool:
    """Take the same commit from a remote, if its neighbours here show that it is the same.

    The newest has no successor that names it: then its pages must be here, since fetching
    what another writer committed under that number is the task of a pull.
    """
    try:
        found = upstream.read(number)
        before = log.read(number - 1).digest if number > 1 else None
        if number + 1 in log.numbers():
            same = log.read(number + 1).parent == found.digest
        else:
            same = all(log.root.size(object_path(page.digest)) for page in found.pages)
    except (NotFoundError, CorruptError):
        return False
    if not same or before != found.parent:
        return False
    log.root.write(log.path(number), found.encode())
    return True


def _set_aside(log: CommitLog, number: int) -> set[str]:
    """Move a commit file out of the log; return the digest that its successor knows it by."""
    try:
        data = log.root.read(log.path(number))
        log.root.write(log.damaged(number), data)
        log.root.remove(log.path(number))
    except NotFoundError:
        pass
    later = [n for n in log.numbers() if n > number]
    try:
        parent = log.read(later[0]).parent if later else None
    except CorruptError:
        return set()
    return {parent} if parent else set()


def _give_up(cache: Cache, digests: set[str]) -> tuple[int, frozenset[bytes]]:
    """Commit a snapshot without the chunks that need lost objects.

    Returns:
        How many rows are lost, and their digests, where they can be read.
    """
    base = cache.log.latest()
    if base is None:
        return 0, frozenset()
    if base.group.digest in digests:
        raise StorageError(
            f"the group metadata of cache {cache.id[:12]} in {cache.root.url} is lost: rin cache "
            "writes it again; then repair the rest"
        )
    cache.root.prepare()
    objects = ObjectStore(cache.root)
    kept = _kept_chunks(cache, base, digests)
    gone = set(range(base.chunk_count)) - set(kept)
    pages = base.pages
    if gone or any(page.digest in digests for page in pages):
        # A hole is stored only where one is needed: its objects may be what was just given up.
        hole = _hole(objects, base) if gone else {}
        chunks = {index: kept.get(index, hole) for index in range(base.chunk_count)}
        pages = Manifest(objects, [], 0, set(base.arrays)).with_chunks(chunks).pages
    draft = replace(
        base,
        number=base.number + 1,
        parent=base.digest,
        pages=pages,
        time=now(),
        merged=[],
        lost=sorted(digests),
        writer=identify({"repair": True}),
    )
    held = Snapshot(objects, draft).index
    if not cache.log.append(replace(draft, rows=len(held))):
        raise ConflictError(f"cache {base.cache[:12]} was written to during its repair")
    return base.rows - len(held), _digests_of(Snapshot(objects, base), gone) - held.keys()


def _digests_of(snapshot: Snapshot, chunks: set[int]) -> frozenset[bytes]:
    found: set[bytes] = set()
    for number, (start, stop) in enumerate(snapshot.chunk_ranges()):
        if number in chunks:
            with contextlib.suppress(NotFoundError, CorruptError):
                found.update(index_digests(snapshot.read(start, stop, [DIGEST])[DIGEST]))
    return frozenset(found)


def _kept_chunks(cache: Cache, base: Commit, digests: set[str]) -> dict[int, ChunkRefs]:
    """Return the chunks of a snapshot that need none of the lost objects.

    A lost page is a list only: earlier snapshots list most of the same chunks.
    """
    objects = ObjectStore(cache.root)
    manifest = base.manifest(objects)
    kept: dict[int, ChunkRefs] = {}
    unlisted: list[int] = []
    for number, page in enumerate(base.pages):
        if page.digest in digests:
            unlisted.append(number)
            continue
        kept |= {index: manifest.chunk(index) for index in manifest.chunks_of_page(number)}
    kept = {index: refs for index, refs in kept.items() if _is_whole(refs, digests)}
    held: set[bytes] = set()
    for refs in kept.values() if unlisted else ():
        held |= _row_digests(objects, refs)
    for number in unlisted:
        for index, refs in _listed_before(cache, base, number).items():
            if not _is_whole(refs, digests):
                continue
            with contextlib.suppress(StorageError):
                rows = _row_digests(objects, refs)
                # A hole of a repair since then: its rows may have been computed again.
                if not rows & held:
                    kept[index] = refs
                    held |= rows
    return kept


def _is_whole(refs: ChunkRefs, digests: set[str]) -> bool:
    return not any(ref.digest in digests for ref in refs.values())


def _row_digests(objects: ObjectStore, refs: ChunkRefs) -> set[bytes]:
    """Digests of the rows of one chunk."""
    data = bytes(Zstd().decode(objects.get(refs[DIGEST], "digests of a chunk")))
    return set(index_digests(np.frombuffer(data, np.uint8).reshape(-1, 32)))


def _listed_before(cache: Cache, base: Commit, page: int) -> dict[int, ChunkRefs]:
    """Return the chunks of a page as the newest earlier snapshot with such a page lists them.

    Left out are those that need what was given up since then and nobody stored again.
    """
    slots, given_up = base.slots, set(base.lost)
    for number in reversed([n for n in cache.log.numbers() if n < base.number]):
        try:
            commit = cache.log.read(number)
            same = commit.specs == base.specs and commit.chunk_rows == base.chunk_rows
            if commit.slots > slots or not same:
                break  # the holes were closed since: chunks had other numbers
            slots = commit.slots
            given_up.update(commit.lost)
            if page < len(commit.pages):
                manifest = commit.manifest(ObjectStore(cache.root))
                chunks = {i: manifest.chunk(i) for i in manifest.chunks_of_page(page)}
                gone = {d for d in given_up if cache.root.size(object_path(d)) is None}
                return {i: refs for i, refs in chunks.items() if _is_whole(refs, gone)}
        except (NotFoundError, CorruptError):
            continue
    return {}


def _hole(objects: ObjectStore, base: Commit) -> dict[str, ObjectRef]:
    """Store a chunk in which every slot is a hole."""
    specs = base.specs
    rows = {
        name: np.zeros((base.chunk_rows, *spec.row_shape), spec.dtype)
        for name, spec in specs.items()
    }
    encoded = encode_chunk(rows, specs, base.chunk_rows)
    return {name: objects.put(data) for name, data in encoded.items()}
