"""The folder .rin/ of a project."""

from __future__ import annotations

from pathlib import Path

_IGNORE = (
    "# All of this can be made again or pulled; rin.toml and rin.lock are what to commit.\n*\n"
)


def prepare_rin_folder(root: Path) -> None:
    """Make .rin/ with a .gitignore of its own."""
    ignore = root / ".rin" / ".gitignore"
    if not ignore.exists():
        ignore.parent.mkdir(parents=True, exist_ok=True)
        ignore.write_text(_IGNORE, encoding="utf-8")
