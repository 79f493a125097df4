"""Copying a cache of one root into another: what `rin push` and `rin pull` do.

Objects first, then commits. Where the target's newest tree is in the source's history,
the source's commits are repeated on the target, byte for byte if the logs are the same.
Where the two have diverged, the source's rows are merged into the target as a set.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rapidin_storage.arrays import DIGEST, Rows
from rapidin_storage.cache import Cache, Snapshot
from rapidin_storage.commits import Commit
from rapidin_storage.contents import Part, all_parts, parts
from rapidin_storage.errors import ConflictError, NotFoundError
from rapidin_storage.objects import ObjectStore, object_path
from rapidin_storage.parallel import each
from rapidin_storage.roots import FRESH
from rapidin_storage.writer import CacheWriter

_ATTEMPTS = 64
_SMALL = 64 * 2**10


class TransferProgress:
    """What a transfer reports; this one ignores it."""

    def start(self, objects: int, size: int) -> None:
        """This many objects, of this many bytes in all, must be there in the end."""

    def advance(self, size: int, *, copied: bool) -> None:
        """One of them is there: copied, or there already."""


@dataclass(frozen=True)
class Synced:
    """What a synchronisation did.

    Attributes:
        snapshot: the target's newest.
        commits: how many were added to its log.
        merged: whether the logs had diverged.
    """

    snapshot: Snapshot | None
    commits: int = 0
    merged: bool = False


@dataclass(frozen=True)
class Comparison:
    """How the logs of one cache in two places compare.

    Attributes:
        ahead: commits of the source that the target lacks, oldest first; with `diverged`
            those since they parted are unknown, and it holds only the newest.
        behind: the source's newest tree is in the target's history, which has continued.
        diverged: neither has the other's newest tree.
    """

    ahead: Sequence[Commit] = ()
    behind: bool = False
    diverged: bool = False

    @property
    def equal(self) -> bool:
        """Both have the same newest tree."""
        return not (self.ahead or self.behind)


def compare(source: Cache, target: Cache) -> Comparison:
    """Compare two logs of one cache, reading as few commits as possible."""
    newest, theirs = source.log.latest(), target.log.latest()
    if newest is None:
        return Comparison(behind=theirs is not None)
    if theirs is None:
        return Comparison(ahead=source.log.read_all())
    if newest.tree == theirs.tree:
        return Comparison()
    if newest.tree in theirs.merged and theirs.tree not in newest.merged:
        # Asked first: a merge may come out as a tree that the source had once and rearranged.
        return Comparison(behind=True)
    for known, unknown, forward in ((source, theirs, True), (target, newest, False)):
        since = _since(known, unknown)
        if since is not None:
            return Comparison(ahead=since) if forward else Comparison(behind=True)
    return Comparison(ahead=[newest], behind=True, diverged=True)


def _since(cache: Cache, commit: Commit) -> list[Commit] | None:
    """Return the commits of a log after a commit's tree; None if the log does not have it.

    If one place has given up rows since then, the other may have them: then the two have
    diverged, until one merges the other.
    """
    numbers = cache.log.numbers()
    if commit.number in numbers and cache.log.read(commit.number).tree == commit.tree:
        since = cache.log.read_all(n for n in numbers if n > commit.number)
        if not any(later.lost for later in since):
            return since
    since = []
    for ours in reversed(cache.log.read_all(numbers)):
        if commit.tree == ours.tree:
            return since[::-1]
        since.append(ours)
        if ours.lost:
            return None
        if commit.tree in ours.merged:
            return since[::-1]
    return None


def synchronise(
    source: Cache, target: Cache, progress: TransferProgress | None = None, *, refill: bool = False
) -> Synced:
    """Copy everything of a cache in `source` into `target`.

    May be stopped at any instant and run again: what was copied is not copied again.

    Args:
        refill: where the logs are equal, copy the objects of the newest snapshot that were
            deleted from the target (`rin gc --local`).

    Raises:
        NotFoundError, CorruptError: an object that the source names is missing or damaged.
        AccessError, StorageError: one of the two cannot be reached, read or written.
        ConflictError: other writers to the target won every attempt.
    """
    progress = progress or TransferProgress()
    added = 0
    for attempt in range(_ATTEMPTS):
        state = compare(source, target)
        if not state.ahead:
            newest = source.log.latest() if refill and state.equal else None
            if newest is not None:
                _copy(source, target, [newest], None, progress)
            return Synced(target.snapshot(), added)
        if attempt == 0:
            target.root.prepare()
        base = target.log.latest()
        start = time.time()
        _copy(source, target, state.ahead, base, progress)
        if time.time() - start > FRESH / 2:
            # The first objects were relied on so long ago that gc may take them: look again.
            continue
        if state.diverged:
            return Synced(_merge(source, target, state.ahead[-1]), added + 1, merged=True)
        for commit in state.ahead:
            base = replace(
                commit, number=base.number + 1 if base else 1, parent=base.digest if base else None
            )
            if not target.log.append(base):
                break
            added += 1
        else:
            return Synced(Snapshot(target.objects, base), added) if base else Synced(None)
        time.sleep(random.uniform(0, min(2.0, 0.01 * 2**attempt)))
    raise ConflictError(f"{_ATTEMPTS} commits to cache {target.id[:12]} were overtaken")


def _copy(
    source: Cache,
    target: Cache,
    commits: Sequence[Commit],
    base: Commit | None,
    progress: TransferProgress,
) -> None:
    """Put all objects that commits name into the target, save those that `base` names."""
    seen: set[str] = set()
    if base is not None:
        # Pages that both name need not be opened; of the others all entries are known.
        shared = {page for commit in commits for page in commit.pages}
        seen = {page.digest for page in base.pages if page in shared}
        seen.update(part.ref.digest for part in parts(target.objects, base, set(seen)))
    wanted = list(all_parts(source.objects, commits, seen))
    progress.start(len(wanted), sum(part.ref.size for _, part in wanted))

    def copy(item: tuple[Commit, Part]) -> None:
        commit, part = item
        path, size = object_path(part.ref.digest), part.ref.size
        # Asking over a network whether a small object is there costs as much as sending it.
        ask = size > _SMALL or not target.root.shared
        present = ask and target.root.refresh(path, size)
        if not present:
            try:
                target.root.write(path, source.objects.get(part.ref, part.describe(commit)))
            except NotFoundError:  # the source was relieved of it (`rin gc --local`)
                present = not ask and target.root.refresh(path, size)
                if not present:
                    raise
        progress.advance(size, copied=not present)

    each(
        copy,
        wanted,
        size=lambda item: item[1].ref.size,
        shared=source.root.shared or target.root.shared,
    )


def _merge(source: Cache, target: Cache, commit: Commit) -> Snapshot | None:
    """Add the rows of a commit of the source, whose objects the target has, to its newest."""
    # By now both have every object: the nearer one is read, what it was relieved of from the other.
    near, far = (source, target) if target.root.shared else (target, source)
    theirs = Snapshot(ObjectStore(near.root, [far.root], keep=False), commit)
    specs = {name: spec for name, spec in commit.specs.items() if name != DIGEST}
    writer = CacheWriter(
        target, specs, theirs.attributes, commit.chunk_rows, {"merge": commit.tree}
    )
    names = sorted(commit.arrays)
    for number, (start, stop) in enumerate(theirs.chunk_ranges()):
        digests = theirs.read(start, stop, [DIGEST])[DIGEST]
        filled = np.flatnonzero(digests.any(axis=1))

        def load(start: int = start, stop: int = stop, filled: Any = filled) -> Rows:
            return {n: v[filled] for n, v in theirs.read(start, stop, names).items()}

        if not len(filled):
            continue
        whole = filled[-1] == len(filled) - 1
        if whole and commit.chunk_rows == writer.chunk_rows:
            writer.adopt(theirs.manifest.chunk(number), digests[filled], load)
        else:
            writer.add(load())
    return writer.commit(merged=[commit.tree])
