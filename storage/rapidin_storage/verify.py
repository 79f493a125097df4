"""Reading everything again, and mending what can be mended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rapidin_storage.arrays import encode_chunk
from rapidin_storage.cache import Cache, Snapshot
from rapidin_storage.contents import Part, lost_in, parts
from rapidin_storage.errors import ConflictError, CorruptError, NotFoundError, StorageError
from rapidin_storage.manifest import ChunkRefs, Manifest
from rapidin_storage.objects import ObjectRef, ObjectStore, object_path
from rapidin_storage.refs import Commit, CommitLog
from rapidin_storage.roots import Root
from rapidin_storage.transfer import each
from rapidin_storage.writer import identify, now


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
    lost, seen = lost_in(commits), set[str]()

    def broken(part: Part, error: StorageError) -> None:
        """Its object is checked like every other."""

    wanted = [
        (part, commit)
        for commit in reversed(commits)
        for part in parts(pages, commit, seen, lost, broken)
    ]

    def check(item: tuple[Part, Commit]) -> Problem | bool:
        part, commit = item
        what = part.describe(commit)
        current = commit is commits[-1]
        try:
            _check_object(objects, part.ref, what, quick=quick)
        except NotFoundError as error:
            if any(u.size(object_path(part.ref.digest)) == part.ref.size for u in upstreams):
                return True
            return Problem(str(error), cache.id, commit.number, part, current)
        except CorruptError as error:
            return Problem(str(error), cache.id, commit.number, part, current)
        finally:
            advance(part.ref.size)
        return False

    results = each(check, wanted, size=lambda i: i[0].ref.size, shared=cache.root.shared)
    verdict.objects, verdict.size = len(wanted), sum(part.ref.size for part, _ in wanted)
    verdict.problems += [result for result in results if isinstance(result, Problem)]
    verdict.elsewhere = sum(result is True for result in results)
    return verdict


def _check_object(objects: ObjectStore, ref: ObjectRef, what: str, *, quick: bool) -> None:
    if not quick:
        objects.get(ref, what)
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
    for number in sorted(set(range(1, numbers[-1] if numbers else 0)) - set(numbers)):
        path = f"{log.root.url}/{log.path(number)}"
        notes.append((number, f"commit {number} of cache {log.cache_id[:12]} is missing ({path})"))
    forgiven, lost = set[int](), lost_in(commits)
    for before, commit in zip([None, *commits], commits, strict=False):
        last = before.number if before else 0
        if commit.parent in lost:
            forgiven.update(range(last + 1, commit.number))
        elif before and last == commit.number - 1 and commit.parent != before.digest:
            notes.append((last, f"commit {commit.number} does not follow commit {last} of {log}"))
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
    """

    fetched: int
    rows: int
    given_up: int


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
        if any(_fetch(cache, problem, upstream) for upstream in upstreams):
            fetched += 1
        else:
            left.append(problem)
    commits = [problem for problem in left if problem.part is None]
    digests = {problem.part.ref.digest for problem in left if problem.part is not None}
    for problem in commits:
        digests |= _set_aside(cache.log, problem.commit)
    rows = _give_up(cache, digests) if digests else 0
    return Repaired(fetched, rows, len(digests))


def _fetch(cache: Cache, problem: Problem, upstream: Root) -> bool:
    if problem.part is None:
        return _fetch_commit(cache.log, CommitLog(upstream, cache.id), problem.commit)
    ref = problem.part.ref
    try:
        cache.root.write(object_path(ref.digest), ObjectStore(upstream).get(ref))
    except (NotFoundError, CorruptError):
        return False
    return True


def _fetch_commit(log: CommitLog, upstream: CommitLog, number: int) -> bool:
    """Take the same commit from a remote, if its neighbours here say that it is the same."""
    try:
        found = upstream.read(number)
        numbers = log.numbers()
        before = log.read(number - 1).digest if number > 1 else None
        after = log.read(number + 1).parent if number + 1 in numbers else found.digest
    except (NotFoundError, CorruptError):
        return False
    if (before, after) != (found.parent, found.digest):
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


def _give_up(cache: Cache, digests: set[str]) -> int:
    """Commit a snapshot without the chunks that need lost objects; return the rows lost."""
    base = cache.log.latest()
    if base is None:
        return 0
    objects = ObjectStore(cache.root)
    gone = _lost_chunks(objects, base, digests)
    hole = _hole(objects, base)
    manifest = Manifest(objects, base.pages, base.chunk_count)
    chunks: dict[int, ChunkRefs] = {
        index: hole if index in gone else manifest.chunk(index) for index in range(base.chunk_count)
    }
    if base.group.digest in digests:
        raise StorageError(
            f"the group metadata of cache {base.cache[:12]} is lost: move caches/{base.cache} "
            f"out of {cache.root.url} and run rin cache"
        )
    draft = replace(
        base,
        number=base.number + 1,
        parent=base.digest,
        pages=Manifest(objects, [], 0).with_chunks(chunks).pages if gone else base.pages,
        time=now(),
        merged=[],
        lost=sorted(digests),
        writer=identify({"repair": True}),
    )
    held = Snapshot(objects, draft).digests.any(axis=1)
    if not cache.log.append(replace(draft, rows=int(np.count_nonzero(held)))):
        raise ConflictError(f"cache {base.cache[:12]} was written to during its repair")
    return base.rows - int(np.count_nonzero(held))


def _lost_chunks(objects: ObjectStore, base: Commit, digests: set[str]) -> set[int]:
    manifest = Manifest(objects, base.pages, base.chunk_count)
    gone: set[int] = set()
    for number, page in enumerate(base.pages):
        chunks = manifest.chunks_of_page(number)
        if page.digest in digests:
            gone.update(chunks)
            continue
        for index in chunks:
            if any(ref.digest in digests for ref in manifest.chunk(index).values()):
                gone.add(index)
    return gone


def _hole(objects: ObjectStore, base: Commit) -> dict[str, ObjectRef]:
    """Store a chunk in which every slot is a hole."""
    specs = base.specs
    rows = {
        name: np.zeros((base.chunk_rows, *spec.row_shape), spec.dtype)
        for name, spec in specs.items()
    }
    encoded = encode_chunk(rows, specs, base.chunk_rows)
    return {name: objects.put(data) for name, data in encoded.items()}
