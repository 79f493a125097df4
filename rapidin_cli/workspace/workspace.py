"""A project folder and its content; `rapidin_cli.api.Project` adds what can be done with it."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rapidin_cli.errors import InputError, NoProjectError
from rapidin_cli.models.fingerprints import Fingerprints
from rapidin_cli.workspace.config import (
    CONFIG_FILE,
    CheckpointSettings,
    Config,
    find_root,
    load_config,
)
from rapidin_cli.workspace.lock import read_lock
from rapidin_cli.workspace.places import Places
from rapidin_cli.workspace.project_checkpoint import ProjectCheckpoint, there
from rapidin_cli.workspace.results import Results
from rapidin_storage import Cache, NotFoundError, Snapshot

_IGNORE = "# All of this can be recreated or pulled; commit rin.toml and rin.lock instead.\n*\n"


class Workspace:
    """The folder that holds rin.toml.

    Args:
        root: the folder.
        store: see `Places`.

    Attributes:
        config: rin.toml, overridden by `.rin/config.local.toml`.
        places: the store and the remotes.
        results: the saved reports.
    """

    def __init__(self, root: Path, config: Config, store: str = "") -> None:
        self.root = root
        self.config = config
        self.places = Places(root, config, store)
        self.results = Results(root / ".rin" / "results")
        self.fingerprints = Fingerprints(root / ".rin" / "fingerprints.json")

    @classmethod
    def open(cls, start: str | Path = ".", store: str = "") -> Self:
        """Open the project of a folder or of the nearest folder above it.

        Args:
            store: name of a remote, URL or folder to use instead of `[storage] root`.

        Raises:
            NoProjectError: there is none. InputError: its rin.toml is wrong.
        """
        folder = find_root(Path(start))
        if folder is None:
            here = Path(start).resolve()
            raise NoProjectError(f"there is no {CONFIG_FILE} in {here} or above", hint="rin init")
        project = cls(folder, load_config(folder), store)
        with contextlib.suppress(OSError):  # reading needs none
            prepare_rin_folder(folder)
        return project

    def checkpoint_settings(self, names: Sequence[str] = ()) -> list[CheckpointSettings]:
        """Return the checkpoints of these names, or all; the model before training comes first.

        Raises:
            InputError: rin.toml names none, or none of that name.
        """
        known = {checkpoint.name: checkpoint for checkpoint in self.config.checkpoints}
        if not known:
            raise InputError(
                f"{CONFIG_FILE} names no checkpoint",
                hint=f"add [[checkpoints]] with a name and a path to {CONFIG_FILE}, then rin cache",
            )
        for name in names:
            if name not in known:
                raise InputError(
                    f"{CONFIG_FILE} has no checkpoint {name!r} (it has {', '.join(known)})",
                    hint="rin status lists them",
                )
        chosen = [known[name] for name in names] if names else list(known.values())
        return sorted(chosen, key=lambda settings: not settings.start)

    def opened(self, name: str = "", *, skip_bad: bool = True) -> ProjectCheckpoint:
        """Open one checkpoint, by default the last that rin.toml names."""
        settings = self.checkpoint_settings([name] if name else [])[-1]
        return ProjectCheckpoint(
            self.root, self.config, self.places, self.fingerprints, settings, skip_bad=skip_bad
        )

    def cache_ids(self, names: Sequence[str] = ()) -> tuple[dict[str, str], dict[str, InputError]]:
        """Return cache-id -> checkpoint names, and checkpoint -> why its cache is unknown.

        rin.lock comes first, so that a machine with neither model nor data can copy and inspect
        caches.
        """
        lock = read_lock(self.root)
        found: dict[str, list[str]] = {}
        unknown: dict[str, InputError] = {}
        for settings in self.checkpoint_settings(names):
            # Opening a checkpoint may fetch a model from the hub: not for copying its cache.
            entry = lock.get(settings.name)
            try:
                cache_id = entry.cache if entry else self.opened(settings.name).cache.id
            except InputError as error:
                unknown[settings.name] = error
                continue
            found.setdefault(cache_id, []).append(settings.name)
        for name, entry in lock.items():
            if entry.curvature and name in {n for same in found.values() for n in same}:
                found.setdefault(entry.curvature, []).append(f"{name} (curvature)")
        return {cache_id: ", ".join(same) for cache_id, same in found.items()}, unknown

    def resolve_snapshot(self, reference: str = "") -> tuple[str, Snapshot]:
        """Return checkpoint name and snapshot of `NAME`, `NAME@SNAPSHOT` or `@SNAPSHOT`.

        A snapshot is given by its number or by the start of its tree; the default is the newest,
        and the default checkpoint is the last one in rin.toml. Without a model, rin.lock says
        which cache.

        Raises:
            MissingError: nothing is cached. InputError: there is no such snapshot.
        """
        name, _, wanted = reference.partition("@")
        name = self.checkpoint_settings([name] if name else [])[-1].name
        try:
            cache_id = self.opened(name).cache.id
        except InputError:
            if (entry := read_lock(self.root).get(name)) is None:
                raise
            cache_id = entry.cache
        newest = there(self.places.newest(cache_id), name)
        if not wanted:
            return name, newest
        for root in (self.places.store, *self.places.upstreams):
            with contextlib.suppress(NotFoundError):
                found = Cache(root, cache_id).find(wanted)
                return name, Snapshot(newest.objects, found.commit)
        raise InputError(
            f"checkpoint {name!r} has no snapshot {wanted!r}", hint=f"rin log {name} lists them"
        )


def prepare_rin_folder(root: Path) -> None:
    """Make .rin/ with a .gitignore of its own."""
    ignore = root / ".rin" / ".gitignore"
    if not ignore.exists():
        ignore.parent.mkdir(parents=True, exist_ok=True)
        ignore.write_text(_IGNORE, encoding="utf-8")
