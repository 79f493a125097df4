"""`rin push` and `rin pull`: caches between the store and a remote."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rapidin_cli.errors import InputError, MissingError, UsageError
from rapidin_cli.workspace.lock import read_lock
from rapidin_cli.workspace.workspace import Workspace
from rapidin_storage import Cache, list_caches
from rapidin_storage.sync import Synced, TransferProgress, synchronise


@dataclass(frozen=True)
class Moved:
    """What a push or pull did for one cache.

    Attributes:
        names: the checkpoints that it belongs to; if none, the cache-id.
        locked: whether the target now has the snapshot that rin.lock names; None if
            rin.lock names none.
    """

    names: str
    synced: Synced
    locked: bool | None


def push(
    project: Workspace,
    remote: str = "",
    names: Sequence[str] = (),
    *,
    every: bool = False,
    progress: Callable[[str], TransferProgress] = lambda _: TransferProgress(),
    tell: Callable[[str], None] = lambda _: None,
) -> list[Moved]:
    """Copy the caches of checkpoints to a remote: the objects that it lacks, then the commits.

    Args:
        remote: its name; the only one, or `origin`, by default.
        names: checkpoints; all by default.
        every: copy all caches of the store.
        progress: makes a watcher for a cache.
        tell: called with a message for each checkpoint that was skipped.

    Raises:
        MissingError: nothing is cached here for a checkpoint.
        StorageError: something could not be copied; what was copied stays.
    """
    return _move(project, remote, names, True, every, progress, tell)


def pull(
    project: Workspace,
    remote: str = "",
    names: Sequence[str] = (),
    *,
    every: bool = False,
    progress: Callable[[str], TransferProgress] = lambda _: TransferProgress(),
    tell: Callable[[str], None] = lambda _: None,
) -> list[Moved]:
    """Copy the caches of checkpoints from a remote; the arguments are those of `push`.

    Needs neither models nor data: rin.lock says which caches.
    """
    return _move(project, remote, names, False, every, progress, tell)


def _move(
    project: Workspace,
    remote: str,
    names: Sequence[str],
    pushing: bool,
    every: bool,
    progress: Callable[[str], TransferProgress],
    tell: Callable[[str], None],
) -> list[Moved]:
    remote = project.places.choose(remote)
    source, target = project.places.store, project.places.remote(remote)
    if not pushing:
        source, target = target, source
    if source.url == target.url:
        raise UsageError(
            f"the store of this project is {remote} itself, so there is nothing to copy",
            hint="rin cache and rin retrieve work on it directly",
        )
    hint = "" if pushing else "run rin push where it was cached, or rin cache here"
    project.places.need_store(source, hint)
    wanted, unknown = project.cache_ids(names)
    if unknown and (names or not (wanted or every)):
        error = next(iter(unknown.values()))
        raise InputError(f"rin.lock has no cache for it, and {error.message}", hint=error.hint)
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
        locked = None if tree is None else theirs.log.has_tree(tree)
        done.append(Moved(label, synced, locked))
    if missing or not wanted:
        place = "this store" if pushing else f"remote {remote!r} ({source.url})"
        raise MissingError(
            f"{place} has nothing cached for {', '.join(missing) or 'any checkpoint'}"
            + ("; the others were copied" if done else ""),
            hint="rin cache" if pushing else "run rin push where it was cached, or rin cache here",
        )
    for name, error in unknown.items():
        tell(f"checkpoint {name} was skipped: it is not in rin.lock, and {error.message}")
    return done
