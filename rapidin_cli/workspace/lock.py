"""rin.lock: which snapshot of which cache belongs to each checkpoint. Committed to git."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapidin_cli.errors import InputError
from rapidin_cli.output.files import write_whole
from rapidin_storage.objects import is_digest

LOCK_FILE = "rin.lock"
LOCK_FORMAT = 2


@dataclass(frozen=True)
class LockEntry:
    """One checkpoint's line.

    Attributes:
        fingerprint: of its tensors and configuration.
        cache: cache-id.
        snapshot: tree of the newest snapshot: the same in every store that holds it.
        data: digest of the set of examples.
        rows: cached rows of that snapshot.
        curvature: cache-id of its curvature; empty if none was collected.
    """

    fingerprint: str
    cache: str
    snapshot: str
    data: str
    rows: int
    curvature: str = ""


def read_lock(root: Path) -> dict[str, LockEntry]:
    """Return the lock's entries by checkpoint name; empty if there is none.

    Raises:
        InputError: not readable, written by another version, or a checkpoint is named twice.
    """
    try:
        text = (root / LOCK_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {LOCK_FILE}: {error}", hint=f"git checkout {LOCK_FILE}"
        ) from None
    if any(line.startswith("<<<<<<< ") for line in text.splitlines()):
        raise InputError(
            f"{LOCK_FILE} has a merge conflict",
            hint="keep one line for each checkpoint, delete the rest, then run rin cache, which "
            "brings it up to date",
        )
    entries: dict[str, LockEntry] = {}
    try:
        head, *lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        if head["format"] > LOCK_FORMAT:
            raise InputError(f"{LOCK_FILE} was written by a newer rin", hint="upgrade rin")
        if head != {"format": LOCK_FORMAT}:
            raise ValueError(head)
        for line in lines:
            name = line.pop("checkpoint")
            if name in entries:
                raise InputError(
                    f"{LOCK_FILE} names checkpoint {name!r} twice",
                    hint="delete one of the lines, then run rin cache, which brings it up to date",
                )
            entries[name] = _checked(LockEntry(**line))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{LOCK_FILE} does not have the format of this version of rin",
            hint="restore it from git, or delete it and run rin cache, which writes a new one",
        ) from None
    return entries


def _checked(entry: LockEntry) -> LockEntry:
    texts = [entry.fingerprint, entry.cache, entry.snapshot, entry.data]
    texts += [entry.curvature] if entry.curvature else []
    if not all(map(is_digest, texts)) or type(entry.rows) is not int:
        raise ValueError(entry)
    return entry


def write_lock(root: Path, entries: dict[str, LockEntry]) -> None:
    """Write the lock: one line per checkpoint, sorted by name.

    No line depends on its neighbours, as it would with the commas of one JSON document, and
    an empty line follows each, so that git merges changes of two branches to different
    checkpoints (it treats changes of adjacent lines as a conflict).
    """
    lines: list[dict[str, Any]] = [{"format": LOCK_FORMAT}]
    for name in sorted(entries):
        line = {"checkpoint": name, **asdict(entries[name])}
        lines.append({key: value for key, value in line.items() if value != ""})
    text = "".join(json.dumps(line) + "\n\n" for line in lines)
    path = root / LOCK_FILE
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    write_whole(path, text)
