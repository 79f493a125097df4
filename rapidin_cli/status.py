"""What is cached for which checkpoint, and the facts about one row."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rapidin_cli.data.examples import IGNORED
from rapidin_cli.errors import InputError
from rapidin_cli.influence.tokens import token_texts
from rapidin_cli.lock import LockEntry, read_lock
from rapidin_cli.project import Opened, Project

_LARGEST_LAYERS = 5


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
        else:
            state = f"{self.missing:,} rows missing" if self.missing else "rin.lock is behind"
        parts = [state, f"{self.cached:,} rows cached"]
        if self.gone:
            parts.append(f"{self.gone:,} cached rows are no longer in the data")
        if self.bad:
            parts.append(f"{self.bad:,} rows of the data are unusable")
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


def project_status(project: Project) -> ProjectStatus:
    """Compare data, checkpoints, lock and store."""
    lock = read_lock(project.root)
    found = []
    for settings in project.checkpoint_settings():
        try:
            opened = project.opened(settings.name)
            found.append(_checkpoint_status(opened, lock.get(settings.name)))
        except InputError as error:
            found.append(CheckpointStatus(settings.name, problem=error.message, next=error.hint))
    return ProjectStatus(str(project.root), found)


def _checkpoint_status(opened: Opened, entry: LockEntry | None) -> CheckpointStatus:
    name = opened.checkpoint.name
    snapshot = opened.cache.snapshot()
    present = set(snapshot.index) if snapshot else set()
    wanted = set(opened.dataset.by_digest)
    locked = (
        entry is not None
        and snapshot is not None
        and entry.cache == opened.cache.id
        and entry.commit == snapshot.commit.digest
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
        locked=locked,
        next="" if locked and not missing else f"rin cache {name}",
    )


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
    snapshot = opened.cache.snapshot()
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
