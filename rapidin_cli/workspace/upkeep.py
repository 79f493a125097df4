"""Store maintenance: `rin verify`, `rin gc`, `rin log`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rapidin_cli.errors import MissingError, UsageError
from rapidin_cli.workspace.workspace import Workspace
from rapidin_storage import Cache, Commit, Root, list_caches
from rapidin_storage.compact import Compacted, compact
from rapidin_storage.gc import Dropped, Garbage, drop_local, find_garbage
from rapidin_storage.local import LocalRoot
from rapidin_storage.repair import Repaired, repair
from rapidin_storage.roots import GRACE
from rapidin_storage.sync import compare
from rapidin_storage.verify import Verdict, verify

_REPAIRS = 4


@dataclass(frozen=True)
class Checked:
    """What `rin verify` found and, with `--repair`, did.

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
    project: Workspace,
    remote: str = "",
    *,
    quick: bool = False,
    mend: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Checked:
    """Verify every cache of the store, or of a remote; repair what can be repaired.

    Objects that `rin gc --local` deleted here are fine if a remote has them; a remote itself
    must have everything.

    Raises:
        NotFoundError, FormatError, StorageError: there is no store, or it cannot be read.
    """
    root, others = project.places.place(remote)
    project.places.need_store(root, mend=mend)
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


def _need_all(project: Workspace, others: Sequence[Root]) -> None:
    """Refuse to repair while a remote that may have the lost objects cannot be reached.

    One on a network reports that itself. A folder that is not mounted looks like an empty one.
    """
    if project.places.unusable:
        raise next(iter(project.places.unusable.values()))
    for other in others:
        if isinstance(other, LocalRoot) and not other.folder.is_dir():
            raise MissingError(
                f"{other.url} does not exist, so the repair cannot use what it may contain",
                hint="mount it, or remove that remote from rin.toml",
            )


def garbage(project: Workspace, remote: str = "", *, grace: float = GRACE) -> tuple[Root, Garbage]:
    """Find what no commit of the store, or of a remote, refers to."""
    root, _ = project.places.place(remote)
    project.places.need_store(root)
    return root, find_garbage(root, grace)


def close_holes(project: Workspace, remote: str = "", *, write: bool) -> dict[str, Compacted]:
    """Compact every cache that has holes; return cache-id -> slots before and after."""
    root, upstreams = project.places.place(remote)
    project.places.need_store(root)
    found = {c: compact(Cache(root, c, upstreams), write=write) for c in list_caches(root)}
    return {cache: done for cache, done in found.items() if done}


def drop(project: Workspace, remote: str = "", *, remove: bool) -> Dropped:
    """Drop local objects that a remote was seen to hold and its commits name.

    Raises:
        MissingError: the remote lacks commits of this store: push first.
    """
    if project.places.store.shared:
        raise UsageError(
            f"the store of this project is {project.places.store.url} itself, not a copy",
            hint="rin gc removes what nothing there needs",
        )
    name = project.places.choose(remote)
    there = project.places.remote(name)
    project.places.need_store(project.places.store)
    project.places.need_store(there, f"rin push {name}")
    caches = list_caches(project.places.store)
    for cache_id in caches:
        if compare(Cache(project.places.store, cache_id), Cache(there, cache_id)).ahead:
            raise MissingError(
                f"remote {name!r} lacks snapshots of cache {cache_id[:12]}; nothing was dropped",
                hint=f"rin push {name} --all",
            )
    return drop_local(project.places.store, there, caches, remove=remove)


def history(project: Workspace, name: str, remote: str = "") -> list[Commit]:
    """Return the commits of a checkpoint's cache, oldest first.

    Raises:
        MissingError: there are none.
    """
    root, _ = project.places.place(remote)
    caches, unknown = project.cache_ids([name])
    if unknown:
        raise unknown[name]
    for cache_id in caches:
        if commits := Cache(root, cache_id).log.read_all():
            return commits
    hint = (
        f"rin cache {name}"
        if remote or not project.places.upstreams
        else f"rin pull, or rin cache {name}"
    )
    raise MissingError(f"nothing is cached for checkpoint {name!r} in {root.url}", hint=hint)
