"""Reading everything again, and mending what can be mended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numcodecs import Zstd

from rapidin_storage.arrays import DIGEST, check_group, decode_content, encode_chunk
from rapidin_storage.cache import Cache, Snapshot, index_digests
from rapidin_storage.contents import GROUP, PAGE, Part, all_parts
from rapidin_storage.errors import ConflictError, CorruptError, NotFoundError, StorageError
from rapidin_storage.manifest import ChunkRefs, Manifest
from rapidin_storage.objects import ObjectRef, ObjectStore, object_path
from rapidin_storage.refs import Commit, CommitLog
from rapidin_storage.roots import Root
from rapidin_storage.transfer import each
from rapidin_storage.writer import identify, now

_MOST_MISSING = 8


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        message: what and where, in a sentence.
        cache: cache-id.
        commit: number of the commit that is damaged or names what is.
        part: the object; None if the commit itself is damaged.
        current: whether the newest snapshot needs it.
    """

    message: str
    cache: str
    commit: int
    part: Part | None
    current: bool


@dataclass
class Verdict:
    """What a check of one cache found.

    Attributes:
        objects, size: how many objects were checked, of how many bytes.
        elsewhere: objects that are not here, but in a remote.
        problems: what is wrong; empty if all is well.
    """

    cache: str
    commits: int = 0
    objects: int = 0
    size: int = 0
    elsewhere: int = 0
    problems: list[Problem] = field(default_factory=list)


def verify(
    cache: Cache,
    upstreams: Sequence[Root] = (),
    *,
    quick: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Verdict:
    """Check the log and every object of all snapshots of a cache.

    Args:
        upstreams: where objects may be that are missing here.
        quick: look only whether they are there, in full size.
        advance: is told the bytes of each object checked.
    """
    verdict = Verdict(cache.id)
    objects = ObjectStore(cache.root)
    pages = ObjectStore(cache.root, upstreams, keep=False)
    commits = _check_log(cache.log, verdict)
    unreadable: dict[str, StorageError] = {}

    def broken(part: Part, error: StorageError) -> None:
        unreadable[part.ref.digest] = error

    wanted = [(part, commit) for commit, part in all_parts(pages, commits, broken=broken)]

    def check(item: tuple[Part, Commit]) -> Problem | bool:
        part, commit = item
        current = commit is commits[-1]
        try:
            _check_object(objects, part, commit, quick=quick)
            if error := unreadable.get(part.ref.digest):
                raise error
        except NotFoundError as error:
            reasons = [str(error)]
            for upstream in upstreams:
                try:
                    if upstream.size(object_path(part.ref.digest)) == part.ref.size:
                        return True
                except StorageError as silent:
                    reasons.append(str(silent))
            return Problem("; ".join(reasons), cache.id, commit.number, part, current)
        except CorruptError as error:
            return Problem(str(error), cache.id, commit.number, part, current)
        except StorageError as error:
            if cache.root.shared:  # the service is to blame, not the object
                raise
            return Problem(str(error), cache.id, commit.number, part, current)
        finally:
            advance(part.ref.size)
        return False

    results = each(check, wanted, size=lambda i: i[0].ref.size, shared=cache.root.shared)
    verdict.objects, verdict.size = len(wanted), sum(part.ref.size for part, _ in wanted)
    verdict.problems += [result for result in results if isinstance(result, Problem)]
    verdict.elsewhere = sum(result is True for result in results)
    return verdict


def _check_object(objects: ObjectStore, part: Part, commit: Commit, *, quick: bool) -> None:
    ref, what = part.ref, part.describe(commit)
    if not quick:
        data = objects.get(ref, what)
        try:
            if part.array == GROUP:
                check_group(data)
            elif part.array != PAGE:
                decode_content(commit.arrays[part.array], data, what)
        except ValueError as error:
            raise CorruptError(f"{error}: object {ref.digest}") from None
        return
    size = objects.root.size(object_path(ref.digest))
    where = f"object {ref.digest} in {objects.root.url}"
    if size is None:
        raise NotFoundError(f"{what} is missing: no {where}")
    if size != ref.size:
        raise CorruptError(f"{what} is corrupt: {where} has {size} bytes instead of {ref.size}")


def _check_log(log: CommitLog, verdict: Verdict) -> list[Commit]:
    """Return the readable commits; note gaps, unreadable ones and broken chains."""
    numbers = log.numbers()
    verdict.commits = len(numbers)
    commits: list[Commit] = []
    notes: list[tuple[int, str]] = []
    for number in numbers:
        try:
            commits.append(log.read(number))
        except CorruptError as error:
            notes.append((number, str(error)))
    for before, number in zip([0, *numbers], numbers, strict=False):
        gap = range(before + 1, number)
        # A file with an absurd number does not make every other one a problem.
        for missing in gap if len(gap) <= _MOST_MISSING else gap[-1:]:
            path = f"{log.root.url}/{log.path(missing)}"
            text = f"commit {missing} of cache {log.cache_id[:12]} is missing ({path})"
            notes.append((missing, text))
    forgiven = set[int]()
    lost = {digest for commit in commits for digest in commit.lost}
    for earlier, commit in zip([None, *commits], commits, strict=False):
        last = earlier.number if earlier else 0
        if commit.parent in lost:
            forgiven.update(number for number, _ in notes if last < number < commit.number)
        elif earlier and last == commit.number - 1 and commit.parent != earlier.digest:
            text = f"commit {commit.number} of cache {log.cache_id[:12]} does not follow {last}"
            notes.append((last, text))
    newest = numbers[-1] if numbers else 0
    verdict.problems += [
        Problem(text, log.cache_id, number, None, number == newest)
        for number, text in sorted(notes)
        if number not in forgiven
    ]
    return commits


@dataclass(frozen=True)
class Repaired:
    """What a repair did.

    Attributes:
        fetched: objects and commits that came from a remote.
        rows: rows that are gone from the newest snapshot, for `rin cache` to compute again.
        given_up: objects and commits of the log that nobody has any more.
        digests: of those rows, as far as their digests could still be read.
    """

    fetched: int
    rows: int
    given_up: int
    digests: frozenset[bytes] = frozenset()


def repair(cache: Cache, problems: Sequence[Problem], upstreams: Sequence[Root]) -> Repaired:
    """Fetch what a remote has; take the rows that nobody has out of the newest snapshot.

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
    # Fetching may have taken long: another repair, or writer, may have mended the rest.
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
    """Say whether a problem is none any more: another repair, or a pull, was faster."""
    try:
        commit = cache.log.read(problem.commit)
        if problem.part is not None:
            _check_object(ObjectStore(cache.root), problem.part, commit, quick=False)
            if problem.part.array == PAGE:
                commit.manifest(ObjectStore(cache.root)).load(problem.part.chunk)
            return True
        later = problem.commit + 1
        return later not in cache.log.numbers() or cache.log.read(later).parent == commit.digest
    except StorageError:
        return False


def _fetch(cache: Cache, problem: Problem, upstream: Root) -> bool:
    if problem.part is None:
        return _fetch_commit(cache.log, CommitLog(upstream, cache.id), problem.commit)
    ref = problem.part.ref
    with contextlib.suppress(NotFoundError, CorruptError):
        ObjectStore(cache.root).get(ref)
        return False  # it was written wrong, so every copy is
    try:
        cache.root.write(object_path(ref.digest), ObjectStore(upstream).get(ref))
    except (NotFoundError, CorruptError):
        return False
    return True


def _fetch_commit(log: CommitLog, upstream: CommitLog, number: int) -> bool:
    """Take the same commit from a remote, if its neighbours here say that it is the same.

    The newest has no successor that names it: then its pages have to be here, since what
    another writer committed under that number is for a pull to bring.
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
        How many rows are lost, and the digests of those of which they can be read.
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
    hole = _hole(objects, base)
    chunks = {index: kept.get(index, hole) for index in range(base.chunk_count)}
    draft = replace(
        base,
        number=base.number + 1,
        parent=base.digest,
        pages=Manifest(objects, [], 0, set(base.arrays)).with_chunks(chunks).pages,
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
                # A hole of a repair since then: its rows may have been computed anew.
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
    """Return the chunks of a page as the newest earlier snapshot with such a page lists them."""
    slots = base.slots
    for number in reversed([n for n in cache.log.numbers() if n < base.number]):
        try:
            commit = cache.log.read(number)
            same = commit.specs == base.specs and commit.chunk_rows == base.chunk_rows
            if commit.slots > slots or not same:
                break  # the holes were closed since: chunks had other numbers
            slots = commit.slots
            if page < len(commit.pages):
                manifest = commit.manifest(ObjectStore(cache.root))
                return {i: manifest.chunk(i) for i in manifest.chunks_of_page(page)}
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
