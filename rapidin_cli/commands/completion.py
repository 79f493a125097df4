"""What the shell completes: names of the project's checkpoints, results and remotes.

Runs whenever somebody presses the tab key: it reads rin.toml and lists a folder, imports
nothing heavy, and where there is no project it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rapidin_cli.workspace.config import Config

SCORES = ("auto", "ekfac", "adam", "dot", "gram", "cosine", "rapidin")


def checkpoints(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the checkpoints in rin.toml."""
    return _names(context, incomplete, _checkpoints)


def several_checkpoints(context: typer.Context, incomplete: str) -> list[str]:
    """The same for a list with commas, whose earlier names stay; and `all`."""
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    names = [name for name in checkpoints(context, last) if name not in taken]
    if not comma and "all".startswith(last):
        names.append("all")
    return [f"{before}{comma}{name}" for name in names]


def results(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of the saved results, the newest first."""
    return _names(context, incomplete, lambda root, _: _results(root))


def remotes(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the remotes in rin.toml."""
    return _names(context, incomplete, lambda _, config: list(config.remote))


def scores(incomplete: str) -> list[str]:
    """Names of the scores."""
    return [name for name in SCORES if name.startswith(incomplete)]


def _checkpoints(_: Path, config: Config) -> list[str]:
    return [checkpoint.name for checkpoint in config.checkpoints]


def _results(root: Path) -> list[str]:
    from rapidin_cli.workspace.results import Results

    return Results(root / ".rin" / "results").names()[::-1]


def _names(
    context: typer.Context, incomplete: str, find: Callable[[Path, Config], list[str]]
) -> list[str]:
    """Names in the project of the current folder, or of the one that -C names."""
    from rapidin_cli.errors import RinError
    from rapidin_cli.workspace.config import find_root, load_config

    try:
        root = find_root(Path(context.find_root().params.get("directory") or "."))
        names = find(root, load_config(root)) if root is not None else []
    except (RinError, OSError, ValueError):
        return []
    return [name for name in names if name.startswith(incomplete)]
