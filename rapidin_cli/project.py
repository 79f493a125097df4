"""A project: the folder with rin.toml, and everything that can be asked of it.

The Python API beside the command line; the commands use only this::

    from rapidin_cli import Project
    project = Project.open(".")
    project.cache()
    report = project.retrieve([Question("q1", prompt="...", response="...")])
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidin_cli import __version__, sharing
from rapidin_cli.caching import WHOLE, Part, Plan, Progress, Settings, Silent, cache_rows
from rapidin_cli.checkpoints import Fingerprints
from rapidin_cli.config import CONFIG_FILE, CheckpointSettings, Config, find_root, load_config
from rapidin_cli.data.examples import Dataset
from rapidin_cli.errors import InputError, MissingError, NoProjectError, RinError, UsageError
from rapidin_cli.lock import LockEntry, read_lock, write_lock
from rapidin_cli.opened import Opened
from rapidin_cli.remotes import choose, open_place, open_remote
from rapidin_cli.results import Results
from rapidin_cli.workers import LOCAL, RAY, check_devices, check_executor
from rapidin_storage import (
    AccessError,
    Cache,
    CorruptError,
    NotFoundError,
    ObjectStore,
    Root,
    Snapshot,
    StorageError,
    open_root,
)
from rapidin_storage.sync import synchronise

if TYPE_CHECKING:
    from rapidin_cli.curvature import Collection
    from rapidin_cli.forecast import Forecast
    from rapidin_cli.influence.queries import Question
    from rapidin_cli.influence.retrieve import Options, Retriever
    from rapidin_cli.report.compose import Session
    from rapidin_cli.workers import Job

_RIN_IGNORE = (
    "# All of this can be made again or pulled; rin.toml and rin.lock are what to commit.\n*\n"
)


@dataclass(frozen=True)
class Cached:
    """What `Project.cache` did for one checkpoint."""

    checkpoint: str
    computed: int
    snapshot: Snapshot
    dataset: Dataset


class Project:
    """The folder that holds rin.toml.

    Attributes:
        store: where `cache` writes: `[storage] root`, or the place given to `open`.
    """

    def __init__(self, root: Path, config: Config, store: str = "") -> None:
        self.root = root
        self.config = config
        self.results = Results(root / ".rin" / "results")
        self.fingerprints = Fingerprints(root / ".rin" / "fingerprints.json")
        self.store = open_place(store or config.storage.root, config, root)
        self.cache_settings = Settings(config.cache.batch_tokens, config.cache.commit_seconds)

    @cached_property
    def _remotes(self) -> dict[str, Root | InputError]:
        found: dict[str, Root | InputError] = {}
        for name, settings in self.config.remote.items():
            try:
                found[name] = open_remote(name, settings, self.root)
            except InputError as error:  # it may be another one that is needed
                found[name] = error
        return found

    @property
    def remotes(self) -> dict[str, Root]:
        """Name -> root of every `[remote.NAME]` that can be opened; nothing is asked of them."""
        return {name: root for name, root in self._remotes.items() if isinstance(root, Root)}

    @property
    def unusable(self) -> dict[str, InputError]:
        """Name -> why a `[remote.NAME]` cannot be opened."""
        return {name: why for name, why in self._remotes.items() if isinstance(why, InputError)}

    @property
    def upstreams(self) -> list[Root]:
        """The remotes that are not the store itself."""
        return [root for root in self.remotes.values() if root.url != self.store.url]

    def newest(self, cache_id: str) -> Snapshot | None:
        """Return the newest snapshot of a cache: the store's, else the first remote's.

        Objects that are not on this machine are read from where they are, verified, and
        kept in `.rin`.

        Raises:
            StorageError: the store cannot be read, or has none and a remote that may have
                one cannot be.
        """
        here = open_root(self.root / ".rin") if self.store.shared else self.store
        behind = [*([self.store] if self.store.shared else []), *self.upstreams]
        failures: list[StorageError] = []
        for root in (self.store, *self.upstreams):
            try:
                snapshot = Cache(root, cache_id).snapshot()
                if snapshot is None:
                    with contextlib.suppress(NotFoundError):
                        root.check_format()  # nothing may mean: written by a newer program
            except StorageError as error:
                if root is self.store:
                    raise
                failures.append(error)
                continue
            if snapshot is not None:
                if root is not here:
                    with contextlib.suppress(StorageError):  # a full disk does not keep, but reads
                        here.prepare()
                return Snapshot(ObjectStore(here, behind), snapshot.commit)
        if failures:
            raise failures[0]
        return None

    @classmethod
    def open(cls, start: str | Path = ".", store: str = "") -> Project:
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
        """Return the checkpoints of that name, or all.

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
        return [known[name] for name in names] if names else list(known.values())

    def opened(self, name: str = "", *, skip_bad: bool = True) -> Opened:
        """Open one checkpoint, by default the last that rin.toml names."""
        settings = self.checkpoint_settings([name] if name else [])[-1]
        return Opened(self, settings, skip_bad=skip_bad)

    def cache(
        self,
        names: Sequence[str] = (),
        *,
        devices: str = "auto",
        workers: int | None = None,
        skip_bad: bool = False,
        part: Part = WHOLE,
        fetch: bool = True,
        executor: str = LOCAL,
        tell: Callable[[str], None] = lambda _: None,
        progress: Callable[[str], Progress] = lambda _: Silent(),
    ) -> list[Cached]:
        """Compute and commit the rows that are missing; return what was done.

        Rows that a remote has are fetched and not computed.

        Args:
            names: checkpoints; all by default.
            devices: `auto`, `cpu` or `cuda:0,cuda:1`.
            workers: processes, when the device is the CPU.
            skip_bad: leave unusable rows out instead of stopping.
            part: which share of the rows is this run's, for job arrays.
            fetch: look for missing rows on the remotes first.
            executor: `local`, or `ray`: actors on the cluster of RAY_ADDRESS, so many as
                `workers`, or one on each of its GPUs.
            tell: is told what remotes delivered.
            progress: makes a watcher for a checkpoint.

        Raises:
            UsageError: an executor that cannot be had.
            RinError: bad data or settings; or a remote, which may have rows, cannot be asked.
            StorageError: the store cannot be read or written.
        """
        check_executor(executor, devices)
        done = []
        read_lock(self.root)  # what cannot be written at the end is better known now
        for settings in self.checkpoint_settings(names):
            opened = Opened(self, settings, skip_bad=skip_bad)
            snapshot = opened.cache.snapshot()
            plan = opened.plan(snapshot, part)
            if plan.batches and fetch and self._fetch(opened, tell):
                snapshot = opened.cache.snapshot()
                plan = opened.plan(snapshot, part)
            if not plan.batches and snapshot is None:
                tell(f"{settings.name}: there is no row to compute")
                continue
            if plan.batches or snapshot is None or not snapshot.has_group:
                watch = progress(settings.name)
                # What a cluster has, it knows itself.
                jobs = opened.jobs(devices if executor == LOCAL else "cpu", workers)
                snapshot = self._compute(opened, plan, jobs, watch, executor)
            self._lock(settings.name, opened, snapshot)
            done.append(Cached(settings.name, plan.rows, snapshot, opened.dataset))
        return done

    def forecast(
        self,
        names: Sequence[str] = (),
        *,
        devices: str = "auto",
        workers: int | None = None,
        skip_bad: bool = False,
        part: Part = WHOLE,
    ) -> Iterator[Forecast]:
        """Yield what `cache`, with the same arguments, would take for each checkpoint.

        Loads each model that there is work for and computes a few rows, which are not kept.
        """
        from rapidin_cli.forecast import forecast

        for settings in self.checkpoint_settings(names):
            opened = Opened(self, settings, skip_bad=skip_bad)
            plan = opened.plan(opened.cache.snapshot(), part)
            jobs = opened.jobs(devices, workers)
            yield forecast(settings.name, plan, jobs, self.cache_settings.commit_seconds)

    def curvature(
        self,
        names: Sequence[str] = (),
        *,
        devices: str = "auto",
        workers: int | None = None,
        again: bool = False,
        skip_bad: bool = False,
        progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> Iterator[tuple[str, Collection, bool]]:
        """Collect the curvature of checkpoints; yield (name, curvature, whether it is new).

        Args:
            names: checkpoints; all by default.
            devices, workers: see `cache`.
            again: collect anew what is there already.
            skip_bad: leave unusable rows out instead of stopping.
            progress: is told (checkpoint, done, all).
        """
        from rapidin_cli.curvature import ensure

        check_devices(devices)
        for settings in self.checkpoint_settings(names):
            opened = Opened(self, settings, skip_bad=skip_bad)
            found, fresh = ensure(
                self,
                opened,
                devices=devices,
                workers=workers,
                again=again,
                progress=partial(progress, settings.name),
            )
            entries = read_lock(self.root)
            if (entry := entries.get(settings.name)) is not None:
                entries[settings.name] = replace(entry, curvature=opened.curvature_cache.id)
                write_lock(self.root, entries)
            yield settings.name, found, fresh

    def _compute(
        self,
        opened: Opened,
        plan: Plan,
        jobs: Sequence[Job],
        progress: Progress,
        executor: str,
    ) -> Snapshot:
        """Compute and commit rows. rin.lock is to name even what an interrupted run committed."""
        about = {"rin": __version__, "checkpoint": opened.checkpoint.name}
        settings, identity = self.cache_settings, opened.identity
        try:
            return cache_rows(
                opened.cache, plan, jobs, settings, identity, about, progress, executor
            )
        except BaseException:
            with contextlib.suppress(StorageError, InputError, OSError):
                if (newest := opened.cache.snapshot()) is not None:
                    self._lock(opened.checkpoint.name, opened, newest)
            raise

    def _fetch(self, opened: Opened, tell: Callable[[str], None]) -> bool:
        """Bring what remotes have of a cache into the store; say whether any had something."""
        fetched = False
        for name in self.config.remote:
            root = self.remote(name)
            if root.url == self.store.url:
                continue
            try:
                done = synchronise(Cache(root, opened.cache.id), opened.cache)
            except StorageError as error:
                # Computing what it has would cost far more than the user's next command.
                damaged = isinstance(error, (CorruptError, NotFoundError))
                kind = InputError if isinstance(error, AccessError) else RinError
                mend = f"rin verify --repair --remote {name}" if damaged else "rin doctor"
                raise (MissingError if damaged else kind)(
                    f"remote {name} cannot give the rows that it may have: {error}",
                    hint=f"{mend}; or rin cache --no-pull, to compute them here",
                ) from error
            if done.commits and done.snapshot is not None:
                fetched = True
                rows = done.snapshot.commit.rows
                tell(f"{opened.checkpoint.name}: {rows:,} rows are here with those of {name}")
        return fetched

    def push(
        self, remote: str = "", names: Sequence[str] = (), **options: Any
    ) -> list[sharing.Moved]:
        """Copy the caches of checkpoints to a remote: what it lacks, and then the commits.

        Args:
            remote: its name; the only one, or `origin`, by default.
            names: checkpoints; all by default.
            options: `every` copies all caches of the store, `progress` makes a watcher,
                `tell` is told of checkpoints that were left out.

        Raises:
            MissingError: nothing is cached here for a checkpoint.
            StorageError: something could not be copied; what was, stays.
        """
        return sharing.move(self, remote, names, pushing=True, **options)

    def pull(
        self, remote: str = "", names: Sequence[str] = (), **options: Any
    ) -> list[sharing.Moved]:
        """Copy the caches of checkpoints from a remote; the arguments are those of `push`.

        Needs neither models nor data: rin.lock says which caches.
        """
        return sharing.move(self, remote, names, pushing=False, **options)

    def remote(self, name: str) -> Root:
        """Return a remote's root.

        Raises:
            InputError: there is none of that name, or it cannot be opened.
        """
        root = self._remotes[choose(self.config, name)]
        if isinstance(root, InputError):
            raise root
        return root

    def _lock(self, name: str, opened: Opened, snapshot: Snapshot) -> None:
        # Other parts of a job array may have gone on, and written the lock already.
        snapshot = opened.cache.snapshot() or snapshot
        entries = read_lock(self.root)
        entries[name] = LockEntry(
            fingerprint=opened.fingerprint,
            cache=opened.cache.id,
            snapshot=snapshot.commit.tree,
            data=opened.dataset.digest,
            rows=snapshot.commit.rows,
            curvature=self._locked_curvature(entries.get(name), opened),
        )
        known = {checkpoint.name for checkpoint in self.config.checkpoints}
        write_lock(self.root, {n: entry for n, entry in entries.items() if n in known})

    def _locked_curvature(self, before: LockEntry | None, opened: Opened) -> str:
        """The curvature that belongs to a line of rin.lock: what it said, or what is here."""
        if before is not None and before.fingerprint == opened.fingerprint and before.curvature:
            return before.curvature
        cache = opened.curvature_cache
        return cache.id if cache.log.latest() is not None else ""

    def snapshot(self, opened: Opened) -> Snapshot:
        """Return the newest snapshot of a checkpoint's cache.

        Raises:
            MissingError: nothing is cached for it yet.
        """
        return self._newest(opened.checkpoint.name, opened.cache.id)

    def _newest(self, name: str, cache_id: str) -> Snapshot:
        snapshot = self.newest(cache_id)
        if snapshot is None:
            raise MissingError(
                f"nothing is cached for checkpoint {name!r} with the settings of {CONFIG_FILE}",
                hint=f"rin cache {name}",
            )
        return snapshot

    def resolve_snapshot(self, reference: str = "") -> tuple[str, Snapshot]:
        """Return checkpoint name and snapshot of `NAME`, `NAME@SNAPSHOT` or `@SNAPSHOT`.

        A snapshot is given by its number or by the beginning of its tree; without one it
        is the newest, and without a name the last checkpoint of rin.toml. Where there is no
        model, rin.lock says which cache.

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
        newest = self._newest(name, cache_id)
        if not wanted:
            return name, newest
        for root in (self.store, *self.upstreams):
            with contextlib.suppress(NotFoundError):
                found = Cache(root, cache_id).find(wanted)
                return name, Snapshot(newest.objects, found.commit)
        raise InputError(
            f"checkpoint {name!r} has no snapshot {wanted!r}", hint=f"rin log {name} lists them"
        )

    def retriever(
        self,
        name: str = "",
        *,
        device: str = "auto",
        snapshot: Snapshot | None = None,
        opened: Opened | None = None,
        hold: str = "disk",
        executor: str = LOCAL,
    ) -> tuple[Retriever, Opened]:
        """Load a checkpoint and its cache, the newest or the given snapshot of it.

        Args:
            opened: the checkpoint, if it was opened already: its data need not be read again.
        """
        from rapidin_cli.curvature import load_for
        from rapidin_cli.influence.retrieve import Retriever
        from rapidin_cli.optimizer import second_moments
        from rapidin_cli.workers import build_engine

        opened = opened or self.opened(name)
        engine = build_engine(opened.jobs(device, 1)[0])
        retriever = Retriever(
            engine,
            opened.tokenizer,
            opened.encoder,
            opened.dataset,
            snapshot or self.snapshot(opened),
            partial(load_for, self, opened, engine.passes.targets),
            partial(second_moments, opened.checkpoint, engine.passes),
            hold,
            executor,
        )
        return retriever, opened

    def session(
        self,
        checkpoint: str = "",
        *,
        checkpoints: Sequence[str] | None = None,
        device: str = "auto",
        hold: str = "disk",
        executor: str = LOCAL,
    ) -> Session:
        """Load checkpoints once, to ask them any number of times.

        Args:
            checkpoint: whom to ask; the last by default.
            checkpoints: several whose scores are added, weighted by their learning rates; an
                empty list means all.
            hold: where cached rows stay after the first question: they are read for each on
                `disk`, and once into the memory of the `cpu` or the `gpu`.
            executor: `local`, or `ray`: the cluster of RAY_ADDRESS, or one that is started
                here, scans the cached rows of a single checkpoint.

        Raises:
            UsageError: an executor or a device that cannot be had; a checkpoint named twice.
        """
        from rapidin_cli.report.compose import Session

        check_executor(executor)
        if len(check_devices(device)) > 1:
            raise UsageError(
                f"questions are answered on one device, not on {device}",
                hint=f"rin retrieve --device {device.partition(',')[0]}",
            )
        names = [checkpoint] if checkpoint else []
        several = list(checkpoints or ())
        if twice := {name for name in several if several.count(name) > 1}:
            raise UsageError(
                f"checkpoint {sorted(twice)[0]!r} is named twice, and would count twice",
                hint=f"rin retrieve --checkpoints {','.join(dict.fromkeys(several))}",
            )
        chosen = self.checkpoint_settings(names if checkpoints is None else checkpoints)
        chosen = chosen[-1:] if checkpoints is None else chosen
        if executor == RAY and (hold != "disk" or len(chosen) > 1):
            raise UsageError(
                "--executor ray scans the rows of one checkpoint where they are stored",
                hint="leave out --executor, or --hold and --checkpoints",
            )
        if executor == RAY:
            from rapidin_cli.ray_pool import connect

            connect()  # complains before a model is loaded
        return Session(self, chosen, device, hold, executor)

    def retrieve(
        self,
        questions: Sequence[Question],
        options: Options | None = None,
        *,
        checkpoint: str = "",
        checkpoints: Sequence[str] | None = None,
        device: str = "auto",
        hold: str = "disk",
        executor: str = LOCAL,
        command: str = "",
        progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> dict[str, Any]:
        """Answer questions and save the result; return the report (`rin.report/1`).

        Loads everything for these questions; see `session`, which has the same arguments.

        Raises:
            UsageError: an unknown score, or a damping for one that has none.
        """
        from rapidin_cli.influence.score import check_score

        if options is not None:
            check_score(options.score, options.damping)
        asked = self.session(
            checkpoint, checkpoints=checkpoints, device=device, hold=hold, executor=executor
        )
        return asked.retrieve(questions, options, command=command, progress=progress)


def prepare_rin_folder(root: Path) -> None:
    """Make .rin/ with a .gitignore of its own."""
    ignore = root / ".rin" / ".gitignore"
    if not ignore.exists():
        ignore.parent.mkdir(parents=True, exist_ok=True)
        ignore.write_text(_RIN_IGNORE, encoding="utf-8")
