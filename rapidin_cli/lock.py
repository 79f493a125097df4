"""rin.lock: which snapshot of which cache belongs to each checkpoint. Committed to git."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rapidin_cli.errors import InputError

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
    """

    fingerprint: str
    cache: str
    snapshot: str
    data: str
    rows: int


def read_lock(root: Path) -> dict[str, LockEntry]:
    """Return the lock's entries by checkpoint name; empty if there is none.

    Raises:
        InputError: not readable, or written by a newer program.
    """
    path = root / LOCK_FILE
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] > LOCK_FORMAT:
            raise InputError(f"{LOCK_FILE} was written by a newer rin", hint="upgrade rin")
        if body["format"] < LOCK_FORMAT:
            raise InputError(
                f"{LOCK_FILE} was written by an older rin",
                hint="delete it and run rin cache, which writes it anew",
            )
        return {name: LockEntry(**entry) for name, entry in body["checkpoints"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{LOCK_FILE} is not readable (a merge conflict?)",
            hint="restore it from git, or delete it and run rin cache, which writes it anew",
        ) from None


def write_lock(root: Path, entries: dict[str, LockEntry]) -> None:
    """Write the lock, one checkpoint a line, so that merges touch only what changed."""
    lines = [
        f"  {json.dumps(name)}: {json.dumps(asdict(entries[name]), sort_keys=True)}"
        for name in sorted(entries)
    ]
    inner = ",\n".join(lines)
    text = f'{{\n "format": {LOCK_FORMAT},\n "checkpoints": {{\n{inner}\n }}\n}}\n'
    path = root / LOCK_FILE
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    temporary = path.with_suffix(".lock.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
