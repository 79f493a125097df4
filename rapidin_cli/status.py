"""What is cached for which checkpoint, and the facts about one row."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rapidin_cli.data.examples import IGNORED
from rapidin_cli.errors import InputError
from rapidin_cli.influence.tokens import token_texts
from rapidin_cli.lock import LockEntry, read_lock
from rapidin_cli.opened import Opened
from rapidin_cli.project import Project
from rapidin_storage import Cache, StorageError
from rapidin_storage.sync import compare

_LARGEST_LAYERS = 5
_STANDS = {
    "equal": "has the same",
    "lacks": "lacks snapshots of here",
    "more": "has more",
    "apart": "has other snapshots, and lacks some",
    "empty": "has nothing of it",
    "unreachable": "cannot be reached",
}


@dataclass(frozen=True)
class CheckpointStatus:
    """One checkpoint's line.

    Attributes:
        name: as in rin.toml.
        cached: examples of the data that have a row.
        missing: examples that have none.
        gone: cached rows whose example is no longer in the data.
        bad: unusable rows of the data.
        snapshot: number of the newest snapshot; None if nothing is cached.
        place: where it was found: `here`, or the name of a remote.
        remotes: name -> how it stands to the store: `equal`, `lacks` snapshots of the
            store, has `more`, has gone `apart` (both), `empty`, or `unreachable`.
        locked: rin.lock says what the store holds.
        next: the command that mends what is not up to date; empty if all is.
        problem: why nothing could be found out, or empty.
    """

    name: str
    cached: int = 0
    missing: int = 0
    gone: int = 0
    bad: int = 0
    snapshot: int | None = None
    place: str = "here"
    remotes: dict[str, str] = field(default_factory=dict)
    locked: bool = False
    next: str = ""
    problem: str = ""

    def line(self) -> str:
        """For people."""
        if self.problem:
            return f"{self.name}: {self.problem}"
        if not self.next:
            state = "up to date"
        elif self.snapshot is None:
            state = "nothing cached"
        elif self.missing:
            state = f"{self.missing:,} rows missing"
        elif self.locked:
            state = "not the same everywhere"
        else:
            state = "rin.lock is behind"
        where = "" if self.place == "here" else f" in {self.place}, not here"
        parts = [state, f"{self.cached:,} rows cached{where}"]
        if self.gone:
            parts.append(f"{self.gone:,} cached rows are no longer in the data")
        if self.bad:
            parts.append(f"{self.bad:,} rows of the data are unusable")
        parts += [f"{name} {_STANDS[state]}" for name, state in self.remotes.items()]
        return f"{self.name}: {', '.join(parts)}" + (f"  ->  {self.next}" if self.next else "")


@dataclass(frozen=True)
class ProjectStatus:
    """All checkpoints' lines."""

    root: str
    checkpoints: list[CheckpointStatus]

    @property
    def up_to_date(self) -> bool:
        """Whether nothing is left to do."""
        return not any(c.next or c.problem for c in self.checkpoints)

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


def project_status(project: Project, *, offline: bool = False) -> ProjectStatus:
    """Compare data, checkpoints, lock, store and remotes.

    Args:
        offline: ask no remote.
    """
    lock = read_lock(project.root)
    found = []
    for settings in project.checkpoint_settings():
        try:
            opened = project.opened(settings.name)
            remotes = {} if offline else _remotes(project, opened)
            found.append(_checkpoint_status(opened, lock.get(settings.name), remotes))
        except InputError as error:
            found.append(CheckpointStatus(settings.name, problem=error.message, next=error.hint))
    return ProjectStatus(str(project.root), found)


def _remotes(project: Project, opened: Opened) -> dict[str, str]:
    """How each remote stands to the store, for one cache."""
    return {
        name: _stand(opened.cache, Cache(root, opened.cache.id))
        for name, root in project.remotes.items()
        if root.url != project.store.url
    }


def _stand(here: Cache, there: Cache) -> str:
    try:
        state = compare(here, there)
        if state.diverged:
            return "apart"
        if state.ahead:
            return "lacks" if there.log.latest() else "empty"
        if state.behind:
            return "more"
        return "equal" if there.log.latest() else "empty"
    except StorageError:
        return "unreachable"


def _checkpoint_status(
    opened: Opened, entry: LockEntry | None, remotes: dict[str, str]
) -> CheckpointStatus:
    name = opened.checkpoint.name
    snapshot = opened.cache.snapshot()
    place = "here"
    if snapshot is None and "more" in remotes.values():
        snapshot = opened.snapshot()
        place = next(name for name, state in remotes.items() if state == "more")
    present = set(snapshot.index) if snapshot else set()
    wanted = set(opened.dataset.by_digest)
    locked = (
        entry is not None
        and snapshot is not None
        and entry.cache == opened.cache.id
        and entry.snapshot == snapshot.commit.tree
        and entry.data == opened.dataset.digest
    )
    missing = len(wanted - present)
    return CheckpointStatus(
        name,
        cached=len(wanted & present),
        missing=missing,
        gone=len(present - wanted),
        bad=len(opened.dataset.bad),
        snapshot=snapshot.commit.number if snapshot else None,
        place=place,
        remotes=remotes,
        locked=locked,
        next=_next(name, remotes, locked=locked, missing=missing, here=place == "here"),
    )


def _next(name: str, remotes: dict[str, str], *, locked: bool, missing: int, here: bool) -> str:
    """Return the command that mends the first thing that is not up to date."""
    more = [remote for remote, state in remotes.items() if state in ("more", "apart")]
    less = [remote for remote, state in remotes.items() if state in ("lacks", "apart", "empty")]
    if more and (missing or not here or not less):
        return f"rin pull {more[0]}"
    if missing or not locked:
        return f"rin cache {name}"
    return f"rin push {less[0]}" if less else ""


def row_facts(project: Project, identity: str, checkpoint: str) -> dict[str, Any]:
    """Return what is known of one training row (`rin.row/1`).

    Raises:
        InputError: no row has that id.
    """
    opened = project.opened(checkpoint)
    example = opened.dataset.find(identity)
    if example is None:
        raise InputError(
            f"no training row has the id {identity!r}",
            hint="ids are those of the data, FILE:LINE, or the beginning of a digest",
        )
    snapshot = opened.snapshot()
    slot = snapshot.index.get(example.digest) if snapshot else None
    cached = None
    if snapshot is not None and slot is not None:
        stored = snapshot.read(slot, slot + 1, ["loss", "norm"])
        layers = snapshot.attributes["rin"]["layout"]["layers"]
        norm = stored["norm"][0]
        cached = {
            "loss": float(stored["loss"][0]),
            "norm": float(np.linalg.norm(norm)),
            "layers": [
                {"name": layers[n][0], "norm": float(norm[n])}
                for n in np.argsort(-norm)[:_LARGEST_LAYERS]
            ],
        }
    texts = token_texts(opened.tokenizer, example.input_ids.tolist())
    return {
        "schema": "rin.row/1",
        "id": example.row.id,
        "digest": example.digest.hex(),
        "places": [
            f"{same.row.file}:{same.row.line}" for same in opened.dataset.by_digest[example.digest]
        ],
        "checkpoint": opened.checkpoint.name,
        "tokens": len(example.input_ids),
        "learnt": example.learnt,
        "truncated": example.truncated,
        "cached": cached,
        "text": [
            {"text": text, "learnt": bool(label != IGNORED)}
            for text, label in zip(texts, example.labels, strict=True)
        ],
    }
