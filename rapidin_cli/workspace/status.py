"""What is cached for which checkpoint, and where."""

import contextlib
from dataclasses import asdict, dataclass, field
from typing import Any

from rapidin_cli.errors import InputError
from rapidin_cli.workspace.lock import LockEntry, read_lock
from rapidin_cli.workspace.project_checkpoint import ProjectCheckpoint
from rapidin_cli.workspace.workspace import Workspace
from rapidin_storage import Cache, CorruptError, NotFoundError, Snapshot, StorageError
from rapidin_storage.contents import parts
from rapidin_storage.objects import object_path
from rapidin_storage.sync import compare

_STANDS = {
    "equal": "has the same",
    "lacks": "lacks snapshots that are here",
    "more": "has more",
    "apart": "has other snapshots, and lacks some",
    "empty": "has none of it",
    "unreachable": "cannot be reached",
}


@dataclass(frozen=True)
class CheckpointStatus:
    """One checkpoint's line.

    Attributes:
        name: as in rin.toml.
        cached: examples of the data that have a row; all rows if the data is not here.
        missing: examples that have none.
        gone: cached rows whose example is no longer in the data.
        bad: unusable rows of the data.
        snapshot: number of the newest snapshot; None if nothing is cached.
        place: where it was found: `here`, or the name of a remote.
        elsewhere: its objects that are not on this machine (`rin gc --local`).
        remotes: name -> how it compares with the store: `equal`, `lacks` snapshots of the
            store, has `more`, has diverged (`apart`), `empty`, or `unreachable`.
        reasons: name -> why a remote cannot be reached.
        locked: rin.lock matches the store.
        promised: rin.lock names a snapshot that is not in the store.
        next: the command that fixes what is not up to date; empty if everything is.
        problem: why something could not be determined, or empty.
    """

    name: str
    cached: int = 0
    missing: int = 0
    gone: int = 0
    bad: int = 0
    snapshot: int | None = None
    place: str = "here"
    elsewhere: int = 0
    remotes: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    locked: bool = False
    promised: bool = False
    next: str = ""
    problem: str = ""

    def line(self) -> str:
        """For people."""
        parts = [self.problem or self._state()]
        if self.snapshot is not None or not self.problem:
            where = "" if self.place == "here" else f" in {self.place}, not here"
            parts.append(f"{self.cached:,} rows cached{where}")
        if self.elsewhere:
            parts.append(f"{self.elsewhere:,} objects only on a remote")
        if self.gone:
            parts.append(f"{self.gone:,} cached rows are no longer in the data")
        if self.bad:
            parts.append(f"{self.bad:,} rows of the data are unusable")
        for name, state in self.remotes.items():
            reason = f" ({self.reasons[name]})" if name in self.reasons else ""
            parts.append(f"{name} {_STANDS[state]}{reason}")
        return f"{self.name}: {', '.join(parts)}" + (f"  ->  {self.next}" if self.next else "")

    def _state(self) -> str:
        if not self.next:
            return "up to date"
        if self.snapshot is None:
            return "nothing cached"
        if self.missing:
            return f"{self.missing:,} rows missing"
        if self.promised:
            return "rin.lock names a snapshot that is not here"
        if self.place != "here":
            return "not here yet"
        if not self.locked:
            return "rin.lock is behind"
        return "not known everywhere" if self.reasons else "not the same everywhere"


@dataclass(frozen=True)
class ProjectStatus:
    """All checkpoints' lines."""

    root: str
    checkpoints: list[CheckpointStatus]

    @property
    def up_to_date(self) -> bool:
        """Whether nothing is left to do."""
        return not any(c.next or c.problem for c in self.checkpoints)

    @property
    def next(self) -> str:
        """The command for the first thing that is not up to date; empty if everything is."""
        steps = [c.next for c in self.checkpoints if c.next]
        missing = [c for c in self.checkpoints if c.next == f"rin cache {c.name}"]
        if steps and len(missing) == len(self.checkpoints):
            return "rin cache"
        return steps[0] if steps else ""

    def lines(self) -> list[str]:
        """For people."""
        return [f"project {self.root}", *(checkpoint.line() for checkpoint in self.checkpoints)]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "schema": "rin.status/1",
            "root": self.root,
            "up_to_date": self.up_to_date,
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
        }


def project_status(project: Workspace, *, offline: bool = False) -> ProjectStatus:
    """Compare data, checkpoints, lock, store and remotes.

    A problem with one checkpoint, or with one remote, does not hide the others.

    Args:
        offline: contact no remote.
    """
    lock = read_lock(project.root)
    found = []
    for settings in project.checkpoint_settings():
        entry = lock.get(settings.name)
        try:
            opened = project.opened(settings.name)
            found.append(_checkpoint_status(project, opened, entry, offline=offline))
        except InputError as error:
            found.append(_from_lock(project, settings.name, entry, error, offline=offline))
        except StorageError as error:
            damaged = isinstance(error, (CorruptError, NotFoundError))
            mend = "rin verify --repair" if damaged else "rin doctor"
            found.append(CheckpointStatus(settings.name, problem=str(error), next=mend))
    return ProjectStatus(str(project.root), found)


def _from_lock(
    project: Workspace, name: str, entry: LockEntry | None, error: InputError, *, offline: bool
) -> CheckpointStatus:
    """What is known without the model or the data: rin.lock says which cache to look at."""
    snapshot, place = None, "here"
    stands: dict[str, tuple[str, str]] = {}
    if entry is not None:
        stands = {} if offline else _stands(project, Cache(project.places.store, entry.cache))
        with contextlib.suppress(StorageError):
            snapshot, place = _newest(project, entry.cache, offline=offline)
    return CheckpointStatus(
        name,
        cached=snapshot.commit.rows if snapshot else 0,
        snapshot=snapshot.commit.number if snapshot else None,
        place=place,
        remotes={other: state for other, (state, _) in stands.items()},
        reasons={other: reason for other, (_, reason) in stands.items() if reason},
        locked=snapshot is not None
        and entry is not None
        and entry.snapshot == snapshot.commit.tree,
        next=error.hint,
        problem=error.message,
    )


def _newest(project: Workspace, cache_id: str, *, offline: bool) -> tuple[Snapshot | None, str]:
    """Return the newest snapshot, and where it is: `here`, or the name of a remote."""
    snapshot = project.places.cache(cache_id).snapshot()
    if snapshot is not None or offline:
        return snapshot, "here"
    snapshot = project.places.newest(cache_id)
    if snapshot is None:
        return None, "here"
    for name, root in project.places.remotes.items():
        with contextlib.suppress(StorageError):
            if Cache(root, cache_id).log.latest() is not None:
                return snapshot, name
    return snapshot, "here"


def _stands(project: Workspace, cache: Cache) -> dict[str, tuple[str, str]]:
    """How each remote compares with the store, and why it cannot be reached."""
    others = {n: r for n, r in project.places.remotes.items() if r.url != project.places.store.url}
    stands = {other: _stand(cache, Cache(root, cache.id)) for other, root in others.items()}
    return stands | {n: ("unreachable", why.message) for n, why in project.places.unusable.items()}


def _stand(here: Cache, there: Cache) -> tuple[str, str]:
    try:
        state = compare(here, there)
        if state.diverged:
            return "apart", ""
        if state.ahead:
            return ("lacks" if there.log.latest() else "empty"), ""
        if state.behind:
            return "more", ""
        return ("equal" if there.log.latest() else "empty"), ""
    except StorageError as error:
        return "unreachable", str(error)


def _checkpoint_status(
    project: Workspace, opened: ProjectCheckpoint, entry: LockEntry | None, *, offline: bool
) -> CheckpointStatus:
    name, cache = opened.name, opened.cache
    snapshot, place = _newest(project, cache.id, offline=offline)
    stands = {} if offline else _stands(project, cache)
    remotes = {other: state for other, (state, _) in stands.items()}
    present = set(snapshot.index) if snapshot else set()
    wanted = set(opened.dataset.by_digest)
    ours = entry is not None and entry.cache == cache.id
    locked = (
        ours
        and entry is not None
        and snapshot is not None
        and entry.snapshot == snapshot.commit.tree
        and entry.data == opened.dataset.digest
    )
    promised = ours and entry is not None and not locked and not cache.log.has_tree(entry.snapshot)
    missing = len(wanted - present)
    return CheckpointStatus(
        name,
        cached=len(wanted & present),
        missing=missing,
        gone=len(present - wanted),
        bad=len(opened.dataset.unusable),
        snapshot=snapshot.commit.number if snapshot else None,
        place=place,
        elsewhere=_elsewhere(project, snapshot) if snapshot and place == "here" else 0,
        remotes=remotes,
        reasons={other: reason for other, (_, reason) in stands.items() if reason},
        locked=locked,
        promised=promised,
        next=_next(
            name,
            remotes,
            list(project.config.remote) if offline else [],
            locked=locked,
            promised=promised,
            missing=missing,
            here=place == "here",
        ),
    )


def _elsewhere(project: Workspace, snapshot: Snapshot) -> int:
    """How many objects of a snapshot a local store lacks."""
    if project.places.store.shared:
        return 0
    named = (part.ref for part in parts(snapshot.objects, snapshot.commit))
    return sum(project.places.store.size(object_path(ref.digest)) is None for ref in named)


def _next(
    name: str,
    remotes: dict[str, str],
    unasked: list[str],
    *,
    locked: bool,
    promised: bool,
    missing: int,
    here: bool,
) -> str:
    """Return the command that fixes the first thing that is not up to date."""
    more = [remote for remote, state in remotes.items() if state in ("more", "apart")]
    less = [remote for remote, state in remotes.items() if state in ("lacks", "apart", "empty")]
    if more and (missing or not here or not less):
        return f"rin pull {more[0]}"
    if promised and unasked:
        return f"rin pull {unasked[0]}"
    if promised and remotes:
        return f"run rin push where it was cached, then rin pull here; or rin cache {name}"
    if missing or not locked:
        return f"rin cache {name}"
    if less:
        return f"rin push {less[0]}"
    return "rin doctor" if "unreachable" in remotes.values() else ""
