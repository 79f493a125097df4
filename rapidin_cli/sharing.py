"""The store as a team uses it: push, pull, verify, gc, log, export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rapidin_cli.errors import InputError, MissingError, UsageError
from rapidin_cli.lock import read_lock
from rapidin_cli.remotes import choose
from rapidin_storage import Cache, Commit, CorruptError, NotFoundError, Root, list_caches
from rapidin_storage.compact import Compacted, compact
from rapidin_storage.gc import Dropped, Garbage, drop_local, find_garbage
from rapidin_storage.local import LocalRoot
from rapidin_storage.repair import Repaired, repair
from rapidin_storage.roots import FORMAT_FILE, FORMAT_MARK, GRACE
from rapidin_storage.sync import Progress, Silent, Synced, compare, synchronise
from rapidin_storage.verify import Verdict, verify

if TYPE_CHECKING:
    from rapidin_cli.project import Project

_REPAIRS = 4


@dataclass(frozen=True)
class Moved:
    """What a push or pull did for one cache.

    Attributes:
        names: the checkpoints that it belongs to; the cache-id if none.
        locked: whether the target now has the snapshot that rin.lock names; None if
            rin.lock names none.
    """

    names: str
    synced: Synced
    locked: bool | None


def move(
    project: Project,
    remote: str = "",
    names: Sequence[str] = (),
    *,
    pushing: bool,
    every: bool = False,
    progress: Callable[[str], Progress] = lambda _: Silent(),
    tell: Callable[[str], None] = lambda _: None,
) -> list[Moved]:
    """Copy caches to a remote, or from it; see `Project.push`."""
    remote = choose(project.config, remote)
    source, target = project.store, project.remote(remote)
    if not pushing:
        source, target = target, source
    if source.url == target.url:
        raise UsageError(
            f"the store of this project is {remote} itself: nothing has to be copied",
            hint="rin cache and rin retrieve work on it directly",
        )
    if pushing:
        _need_store(source, _fill(project))
    else:
        _need_store(source, "rin push, where it was cached; or rin cache here")
    wanted, unknown = _cache_ids(project, names)
    if unknown and (names or not (wanted or every)):
        error = next(iter(unknown.values()))
        raise InputError(f"rin.lock names no cache of it, and {error.message}", hint=error.hint)
    if every:
        wanted |= {c: c[:12] for c in list_caches(source) if c not in wanted}
    pinned = {entry.cache: entry.snapshot for entry in read_lock(project.root).values()}
    done, missing = [], []
    for cache_id, label in wanted.items():
        ours, theirs = Cache(source, cache_id), Cache(target, cache_id)
        if ours.log.latest() is None:
            if theirs.log.latest() is None:
                missing.append(label)
            continue
        synced = synchronise(ours, theirs, progress(label), refill=not pushing)
        tree = pinned.get(cache_id)
        locked = None if tree is None else has_tree(theirs, tree)
        done.append(Moved(label, synced, locked))
    if missing or not wanted:
        place = "this store" if pushing else f"remote {remote!r} ({source.url})"
        raise MissingError(
            f"{place} has nothing cached for {', '.join(missing) or 'any checkpoint'}"
            + ("; the others are copied" if done else ""),
            hint="rin cache" if pushing else "rin push, where it was cached; or rin cache here",
        )
    for name, error in unknown.items():
        tell(f"checkpoint {name} was left out: it is not in rin.lock, and {error.message}")
    return done


def _fill(project: Project) -> str:
    """Say how the project's own store comes to hold something."""
    return "rin pull; or rin cache" if project.upstreams else "rin cache"


def _need_store(root: Root, hint: str, *, mend: bool = False) -> None:
    """Refuse a place that has no store, or one of a newer program; mend a damaged mark."""
    try:
        root.check_format()
    except NotFoundError as error:
        raise MissingError(str(error), hint=hint) from None
    except CorruptError:
        if not mend:
            raise
        root.write(FORMAT_FILE, FORMAT_MARK)


def has_tree(cache: Cache, tree: str) -> bool:
    """Say whether a log has, or has merged, the snapshot of a tree."""
    latest = cache.log.latest()
    if latest is not None and latest.tree == tree:
        return True
    return any(tree == commit.tree or tree in commit.merged for commit in cache.log.read_all())


def _cache_ids(
    project: Project, names: Sequence[str] = ()
) -> tuple[dict[str, str], dict[str, InputError]]:
    """Return cache-id -> checkpoint names, and checkpoint -> why its cache is not known.

    What rin.lock says comes first, so that a machine that has neither model nor data can
    copy and look at caches.
    """
    lock = read_lock(project.root)
    found: dict[str, list[str]] = {}
    unknown: dict[str, InputError] = {}
    for settings in project.checkpoint_settings(names):
        # Opening a checkpoint may fetch a model from the hub: not for copying its cache.
        entry = lock.get(settings.name)
        try:
            cache_id = entry.cache if entry else project.opened(settings.name).cache.id
        except InputError as error:
            unknown[settings.name] = error
            continue
        found.setdefault(cache_id, []).append(settings.name)
    for name, entry in lock.items():
        if entry.curvature and name in {n for same in found.values() for n in same}:
            found.setdefault(entry.curvature, []).append(f"{name} (curvature)")
    return {cache_id: ", ".join(same) for cache_id, same in found.items()}, unknown


@dataclass(frozen=True)
class Checked:
    """What `rin verify` found, and with `repair` did.

    Attributes:
        found: before any repair.
        verdicts: after it.
    """

    found: list[Verdict]
    verdicts: list[Verdict]
    repaired: list[Repaired]

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong (any more)."""
        return not any(verdict.problems for verdict in self.verdicts)


def check(
    project: Project,
    remote: str = "",
    *,
    quick: bool = False,
    mend: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Checked:
    """Verify every cache of the store, or of a remote; mend what can be mended.

    What `rin gc --local` dropped here is well kept on a remote; a remote itself has to have
    everything.

    Raises:
        NotFoundError, FormatError, StorageError: there is no store, or it cannot be read.
    """
    root, others = _place(project, remote)
    _need_store(root, "rin push" if remote else _fill(project), mend=mend)
    excuses = [] if remote else others
    found, verdicts, repaired = [], [], []
    for cache_id in list_caches(root):
        cache = Cache(root, cache_id)
        verdict = verify(cache, excuses, quick=quick, advance=advance)
        found.append(verdict)
        for _ in range(_REPAIRS if mend else 0):
            if not verdict.problems:
                break
            _need_all(project, others)
            repaired.append(repair(cache, verdict.problems, others))
            verdict = verify(cache, excuses, quick=quick, advance=advance)
        verdicts.append(verdict)
    return Checked(found, verdicts, repaired)


def _need_all(project: Project, others: Sequence[Root]) -> None:
    """Refuse to repair while a remote, which may have what is lost, cannot be asked.

    One on a network says so itself. A folder that is not mounted looks like an empty one.
    """
    if project.unusable:
        raise next(iter(project.unusable.values()))
    for other in others:
        if isinstance(other, LocalRoot) and not other.folder.is_dir():
            raise MissingError(
                f"{other.url} does not exist, so what it may hold cannot be used for the repair",
                hint="mount it, or take that remote out of rin.toml",
            )


def _place(project: Project, remote: str) -> tuple[Root, list[Root]]:
    """The root that is meant, and the others that may have what it lacks."""
    if not remote:
        return project.store, project.upstreams
    root = project.remote(choose(project.config, remote))
    others = [project.store, *project.upstreams]
    return root, [other for other in others if other.url != root.url]


def garbage(project: Project, remote: str = "", *, grace: float = GRACE) -> tuple[Root, Garbage]:
    """Find what no commit of the store, or of a remote, names."""
    root, _ = _place(project, remote)
    _need_store(root, "rin push" if remote else _fill(project))
    return root, find_garbage(root, grace)


def close_holes(project: Project, remote: str = "", *, write: bool) -> dict[str, Compacted]:
    """Compact every cache that has holes; return cache-id -> slots before and after."""
    root, upstreams = _place(project, remote)
    _need_store(root, "rin push" if remote else _fill(project))
    found = {c: compact(Cache(root, c, upstreams), write=write) for c in list_caches(root)}
    return {cache: done for cache, done in found.items() if done}


def drop(project: Project, remote: str = "", *, remove: bool) -> Dropped:
    """Drop local objects that a remote was seen to hold and its commits name.

    Raises:
        MissingError: the remote lacks commits of this store: push first.
    """
    if project.store.shared:
        raise UsageError(
            f"the store of this project is {project.store.url} itself, not a copy",
            hint="rin gc removes what nothing needs there",
        )
    name = choose(project.config, remote)
    there = project.remote(name)
    _need_store(project.store, _fill(project))
    _need_store(there, f"rin push {name}")
    caches = list_caches(project.store)
    for cache_id in caches:
        if compare(Cache(project.store, cache_id), Cache(there, cache_id)).ahead:
            raise MissingError(
                f"remote {name!r} lacks snapshots of cache {cache_id[:12]}; nothing was dropped",
                hint=f"rin push {name} --all",
            )
    return drop_local(project.store, there, caches, remove=remove)


def history(project: Project, name: str, remote: str = "") -> list[Commit]:
    """Return the commits of a checkpoint's cache, oldest first.

    Raises:
        MissingError: there are none.
    """
    root, _ = _place(project, remote)
    caches, unknown = _cache_ids(project, [name])
    if unknown:
        raise unknown[name]
    for cache_id in caches:
        if commits := Cache(root, cache_id).log.read_all():
            return commits
    hint = (
        f"rin cache {name}" if remote or not project.upstreams else f"rin pull; or rin cache {name}"
    )
    raise MissingError(f"nothing is cached for checkpoint {name!r} in {root.url}", hint=hint)
