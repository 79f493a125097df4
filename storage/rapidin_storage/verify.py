"""Reading everything again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rapidin_storage.arrays import check_group, decode_content
from rapidin_storage.cache import Cache
from rapidin_storage.commits import Commit, CommitLog
from rapidin_storage.contents import GROUP, PAGE, Part, all_parts
from rapidin_storage.errors import CorruptError, NotFoundError, StorageError
from rapidin_storage.objects import ObjectStore, object_path
from rapidin_storage.parallel import each
from rapidin_storage.roots import Root

_MOST_MISSING = 8


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        message: what and where, in a sentence.
        cache: cache-id.
        commit: number of the commit that is damaged, or that names the damaged object.
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
        problems: what is wrong; empty if nothing is.
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
        upstreams: remotes that may have objects that are missing here.
        quick: only check that they exist, in full size.
        advance: called with the bytes of each object checked.
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
            check_object(objects, part, commit, quick=quick)
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


def check_object(objects: ObjectStore, part: Part, commit: Commit, *, quick: bool) -> None:
    """Raise `NotFoundError` or `CorruptError` if an object is missing or damaged."""
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
